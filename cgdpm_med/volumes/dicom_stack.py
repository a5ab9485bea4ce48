"""Images of one orientation as slices x phases: their order in space and time, and the grid they lie on."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from cgdpm_med.volumes.dicom_files import DicomImage, read_pixels
from cgdpm_med.volumes.files import InputError, listed
from cgdpm_med.volumes.grid import Grid, check_size, grid_from_header, with_shape
from cgdpm_med.volumes.nifti import Volume

SAME_PLACE = 0.1
"""Distance in mm below which two images show the same slice."""

EVEN = 0.05
"""Largest difference between gaps of slices, relative to the smallest."""

SIDEWAYS = 0.1
"""Largest distance of an image from its place in the stack within its own plane, in pixels."""

_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Lot:
    """Images that are judged together, and how errors call them."""

    def __init__(self, images: Sequence[DicomImage]) -> None:
        self.images = list(images)

    @cached_property
    def folder(self) -> Path:
        """The deepest folder that holds all of them."""
        return Path(os.path.commonpath([image.path.parent for image in self.images]))

    @cached_property
    def series(self) -> tuple[int, ...]:
        """Their SeriesNumbers, in order."""
        return tuple(sorted({image.series for image in self.images if image.series is not None}))

    def error(self, what: str, remedy: str) -> InputError:
        """One that names the folder and the series."""
        numbers = listed(self.series) if self.series else "without a number"
        return InputError(f"series {numbers} {what}", path=self.folder, remedy=remedy)


@dataclass(frozen=True, eq=False, repr=False)
class DicomStack:
    """The images of one volume or cine.

    Attributes:
        folder: the deepest folder that holds all of them.
        series: their SeriesNumbers.
        images: ``images[k][t]`` is slice k, counted along the normal, in phase t.
        affine: (4, 4), voxel indices (column, row, k) to mm, RAS+.
        seconds: from one phase to the next, or 0 where the headers do not say.
    """

    folder: Path
    series: tuple[int, ...]
    images: tuple[tuple[DicomImage, ...], ...]
    affine: NDArray[np.float64]
    seconds: float

    @property
    def phases(self) -> int:
        """Number of images of each slice."""
        return len(self.images[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """(columns, rows, slices), and the number of phases where there are several."""
        shape = (*self.images[0][0].size, len(self.images))
        return (*shape, self.phases) if self.phases > 1 else shape

    @property
    def files(self) -> tuple[Path, ...]:
        """All files, slice by slice."""
        return tuple(image.path for of_slice in self.images for image in of_slice)

    def grid(self) -> Grid:
        """The grid of the volume, under a NIfTI header that holds geometry and nothing else."""
        header = with_shape(nib.Nifti1Header(), self.shape)
        columns = self.affine[:3, :3]
        spacing = np.linalg.norm(columns, axis=0)
        if np.abs((columns / spacing).T @ (columns / spacing) - np.eye(3)).max() < 1e-4:
            header.set_qform(self.affine, 1)  # a quaternion cannot hold a sheared stack
        header.set_sform(self.affine, 1)
        header["pixdim"][1:5] = [*spacing, self.seconds]
        header.set_xyzt_units("mm", "sec")
        return grid_from_header(header, "affine", self.folder)

    def read(self) -> Volume:
        """The voxels on their grid, float32, rescaled as the headers say.

        Raises:
            InputError: images that cannot be decoded, are not finite or constant, or are too many to hold.
        """
        check_size(self.shape, path=self.folder)
        grid = self.grid()
        data = np.empty((*self.shape[:3], self.phases), np.float32, order="F")
        for k, of_slice in enumerate(self.images):
            for t, image in enumerate(of_slice):
                data[:, :, k, t] = read_pixels(image)
        lot = Lot([image for of_slice in self.images for image in of_slice])
        if not np.isfinite(data).all():
            raise lot.error("holds values that are not finite", "Export the series again")
        if data.min() == data.max():
            raise lot.error(f"is constant: every voxel is {float(data.flat[0]):g}", "Export the series again")
        return Volume(data if self.phases > 1 else data[..., 0], grid, self.folder)


# --- geometry and time ------------------------------------------------------------------------------------------------


def stack_of(lot: Lot) -> DicomStack:
    """The stack these images make, which have one orientation, size and pixel spacing.

    Raises:
        InputError: they do not make slices x phases on one grid.
    """
    twice = [copies for copies in _by_instance(lot.images).values() if len(copies) > 1]
    if twice:
        which = listed(sorted({image.instance or 0 for copies in twice for image in copies}))
        raise lot.error(f"holds the same image more than once (instances {which})", "Remove the copies")
    slices = slices_of(lot)
    images, seconds = _phases(lot, slices)
    return DicomStack(lot.folder, lot.series, images, _TO_RAS @ _affine(lot, slices), seconds)


def _by_instance(images: Iterable[DicomImage]) -> dict[str, list[DicomImage]]:
    found: dict[str, list[DicomImage]] = defaultdict(list)
    for image in images:
        found[image.instance_uid].append(image)
    return found


def slices_of(lot: Lot) -> list[list[DicomImage]]:
    """The images of each slice, slices in the order of their positions along the normal."""
    normal = _normal(lot)
    ordered = sorted(lot.images, key=lambda image: float(position_of(image) @ normal))
    slices = [[ordered[0]]]
    for image in ordered[1:]:
        if (position_of(image) - position_of(slices[-1][0])) @ normal > SAME_PLACE:
            slices.append([])
        slices[-1].append(image)
    return slices


def _affine(lot: Lot, slices: Sequence[Sequence[DicomImage]]) -> NDArray[np.float64]:
    """(4, 4), indices (column, row, slice) to mm, LPS+."""
    origins = np.array([np.mean([position_of(image) for image in of_slice], axis=0) for of_slice in slices])
    _require_even(lot, origins @ _normal(lot))
    step = (origins[-1] - origins[0]) / (len(origins) - 1)
    spacing, directions = spacing_of(lot.images[0]), directions_of(lot.images[0])
    placed = zip(slices, origins[0] + np.arange(len(origins))[:, None] * step, strict=True)
    for number, (of_slice, place) in enumerate(placed, start=1):
        aside = max(float(np.abs(directions @ (position_of(image) - place)).max()) for image in of_slice)
        if aside > SIDEWAYS * min(spacing):
            what = f"has slices that are shifted sideways, slice {number} by {aside:.3g} mm"
            raise lot.error(what, "Resample them onto one grid, or give NIfTI")
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = directions[0] * spacing[0], directions[1] * spacing[1]
    affine[:3, 2], affine[:3, 3] = step, origins[0]
    return affine


def _require_even(lot: Lot, places: NDArray[np.float64]) -> None:
    gaps = np.diff(places)
    usual = float(gaps.min())
    multiples = np.rint(gaps / usual)
    fits = (np.abs(gaps - multiples * usual) <= EVEN * usual).all()
    if fits and multiples.max() == 1:
        return
    if fits:
        after = [int(k) + 1 for k in np.flatnonzero(multiples > 1)]
        raise lot.error(
            f"lacks {int(multiples.sum()) - len(gaps)} of its slices (gaps of more than {usual:.4g} mm"
            f" after slice {listed(after)})",
            "Export the series completely",
        )
    raise lot.error(
        f"has uneven gaps between its slices, from {gaps.min():.4g} to {gaps.max():.4g} mm",
        "Export the series completely, or resample it and give NIfTI",
    )


_CLOCKS: dict[str, Callable[[DicomImage], float | None]] = {
    "trigger time": lambda image: image.trigger,
    "temporal position": lambda image: image.temporal,
    "instance number": lambda image: image.instance,
}


def _phases(lot: Lot, slices: Sequence[Sequence[DicomImage]]) -> tuple[tuple[tuple[DicomImage, ...], ...], float]:
    """The images of each slice in the order of time, and seconds from one to the next."""
    if any(len({image.contrast for image in of_slice}) > 1 for of_slice in slices):
        what = "mixes echoes, inversion times, or magnitude and phase"
        raise lot.error(what, "Give the series of magnitude images of one contrast alone")
    clock = _clock(lot, slices)
    _require_equal_counts(lot, slices)
    if clock is None:
        return tuple(tuple(of_slice) for of_slice in slices), 0.0
    time = _CLOCKS[clock]
    ordered = tuple(tuple(sorted(of_slice, key=lambda image: time(image) or 0.0)) for of_slice in slices)
    if clock != "trigger time":
        return ordered, 0.0
    return ordered, float(np.median(np.diff([image.trigger or 0.0 for image in ordered[0]]))) / 1000


def _clock(lot: Lot, slices: Sequence[Sequence[DicomImage]]) -> str | None:
    """The name of what orders the phases; None where no slice has two images."""
    if all(len(of_slice) == 1 for of_slice in slices):
        return None
    for name, time in _CLOCKS.items():
        values = [[time(image) for image in of_slice] for of_slice in slices]
        if any(None in of_slice for of_slice in values) or all(len(set(of_slice)) == 1 for of_slice in values):
            continue
        for number, of_slice in enumerate(values, start=1):
            value, count = Counter(of_slice).most_common(1)[0]
            if count > 1:
                what = f"holds slice {number} {count} times with {name} {value:g}"
                raise lot.error(what, "Remove the copies, or the series that does not belong")
        return name
    raise lot.error(
        "holds several images of a slice and no trigger time, temporal position or instance number that differs",
        "Remove the copies, or export the series with its headers",
    )


def _require_equal_counts(lot: Lot, slices: Sequence[Sequence[DicomImage]]) -> None:
    numbers: dict[int, list[int]] = defaultdict(list)
    for number, of_slice in enumerate(slices, start=1):
        numbers[len(of_slice)].append(number)
    if len(numbers) == 1:
        return
    if max(numbers, key=lambda count: len(numbers[count])) == 1:
        several = sorted(number for count, those in numbers.items() if count > 1 for number in those)
        what = f"holds slice {listed(several)} more than once"
        raise lot.error(what, "Remove the copies, or the series that does not belong")
    counts = "; ".join(f"{count} in slice {listed(those)}" for count, those in sorted(numbers.items()))
    raise lot.error(f"has different numbers of phases: {counts}", "Export the series completely")


def _normal(lot: Lot) -> NDArray[np.float64]:
    across, down = directions_of(lot.images[0])
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
