"""Images that are judged together, how errors call them, and the slices they show."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cgdpm_med.files import InputError, listed
from cgdpm_med.volumes.dicom.headers import DicomImage

SAME_PLACE = 0.1
"""Distance in mm below which two images show the same slice."""

Slices = list[list[DicomImage]]
"""The images of each slice."""

Item = TypeVar("Item")


class ImageGroup:
    """Images that are judged together: a series, a view, a stack.

    Attributes:
        images: in order of files and frames, whatever order they were found in.
    """

    def __init__(self, images: Iterable[DicomImage]) -> None:
        self.images = sorted(images, key=lambda image: (image.path, image.frame))

    @cached_property
    def folder(self) -> Path:
        """The deepest folder that holds all of them."""
        return Path(os.path.commonpath([image.path.parent for image in self.images]))

    @cached_property
    def series(self) -> tuple[int, ...]:
        """Their SeriesNumbers, in order."""
        return tuple(sorted({image.series for image in self.images if image.series is not None}))

    @cached_property
    def slices(self) -> Slices:
        """The images of each slice, slices in the order of their positions along the normal."""
        normal = normal_of(self.images[0])
        ordered = sorted(self.images, key=lambda image: float(position_of(image) @ normal))
        slices = [[ordered[0]]]
        for image in ordered[1:]:
            if (position_of(image) - position_of(slices[-1][0])) @ normal > SAME_PLACE:
                slices.append([])
            slices[-1].append(image)
        return slices

    def error(self, what: str, remedy: str) -> InputError:
        """One that names the folder and the series."""
        numbers = listed(self.series) if self.series else "without a number"
        return InputError(f"series {numbers} {what}", path=self.folder, remedy=remedy)


def joined(groups: Iterable[ImageGroup]) -> ImageGroup:
    """All their images as one group."""
    return ImageGroup(image for group in groups for image in group.images)


def classes_of(items: Iterable[Item], same: Callable[[Item, Item], bool]) -> list[list[Item]]:
    """Items that are the same as the first of their class."""
    classes: list[list[Item]] = []
    for item in items:
        for members in classes:
            if same(members[0], item):
                members.append(item)
                break
        else:
            classes.append([item])
    return classes


def same_orientation(a: DicomImage, b: DicomImage) -> bool:
    """Whether two images lie parallel and are turned alike; the last digits of rounding do not count."""
    return bool(np.allclose(directions_of(a), directions_of(b), rtol=0, atol=1e-3))


def same_raster(a: DicomImage, b: DicomImage) -> bool:
    """Whether two images have as many pixels, of the same size."""
    return a.size == b.size and bool(np.allclose(spacing_of(a), spacing_of(b), rtol=1e-4, atol=0))


def normal_of(image: DicomImage) -> NDArray[np.float64]:
    """(3,) unit vector perpendicular to an image, LPS+."""
    across, down = directions_of(image)
    normal: NDArray[np.float64] = np.cross(across, down)
    return normal / np.linalg.norm(normal)


def position_of(image: DicomImage) -> NDArray[np.float64]:
    """Of an image that is known to have it: (3,) mm, LPS+."""
    assert image.position is not None
    return image.position


def directions_of(image: DicomImage) -> NDArray[np.float64]:
    """Of an image that is known to have them: (2, 3), LPS+."""
    assert image.directions is not None
    return image.directions


def spacing_of(image: DicomImage) -> tuple[float, float]:
    """Of an image that is known to have it: mm between columns, and between rows."""
    assert image.spacing is not None
    return image.spacing
