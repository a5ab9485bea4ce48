"""Images of one orientation and contrast as slices x phases: a volume or cine, and the grid it lies on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from cgdpm_med.files import listed
from cgdpm_med.volumes.dicom.clocks import NoOrder, phases_in_order
from cgdpm_med.volumes.dicom.groups import (
    ImageGroup,
    Slices,
    directions_of,
    normal_of,
    position_of,
    spacing_of,
)
from cgdpm_med.volumes.dicom.headers import DicomImage
from cgdpm_med.volumes.dicom.lattice import EVEN, SIDEWAYS, in_blocks, numbered_again, overlapping
from cgdpm_med.volumes.dicom.pixels import read_pixels
from cgdpm_med.volumes.dicom.repeats import latest_of_each, repeated_throughout
from cgdpm_med.volumes.grid import Grid, check_size, grid_from_header, with_shape
from cgdpm_med.volumes.nifti import Volume
from cgdpm_med.volumes.spacing import Spacing

_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False, repr=False)
class DicomStack:
    """The images of one volume or cine.

    Attributes:
        folder: the deepest folder that holds all of them.
        series: their SeriesNumbers.
        images: ``images[k][t]`` is slice k, counted along the normal, in phase t.
        affine: (4, 4), voxel indices (column, row, k) to mm, RAS+.
        seconds: from one phase to the next, or 0 where the headers do not say.
        notes: what was odd about the files, and what was taken.
    """

    folder: Path
    series: tuple[int, ...]
    images: tuple[tuple[DicomImage, ...], ...]
    affine: NDArray[np.float64]
    seconds: float
    notes: tuple[str, ...] = ()

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
        """All files, each once, in the order of their first image."""
        return tuple(dict.fromkeys(image.path for of_slice in self.images for image in of_slice))

    def grid(self, spacing: Spacing = "auto") -> Grid:
        """The grid of the volume, under a NIfTI header that holds geometry and nothing else.

        Args:
            spacing: three numbers in mm overrule the headers; words choose nothing, since DICOM has one source.
        """
        header = with_shape(nib.Nifti1Header(), self.shape)
        columns = self.affine[:3, :3]
        lengths = np.linalg.norm(columns, axis=0)
        if np.abs((columns / lengths).T @ (columns / lengths) - np.eye(3)).max() < 1e-4:
            header.set_qform(self.affine, 1)  # a quaternion cannot hold a sheared stack
        header.set_sform(self.affine, 1)
        header["pixdim"][1:5] = [*lengths, self.seconds]
        header.set_xyzt_units("mm", "sec")
        grid = grid_from_header(header, "affine" if isinstance(spacing, str) else spacing, self.folder)
        notes = [*([grid.note] if grid.note else []), *self.notes]
        return replace(grid, note="; ".join(notes) or None)

    def read(self, spacing: Spacing = "auto") -> Volume:
        """The voxels on their grid, float32, rescaled as the headers say.

        Args:
            spacing: as of :meth:`grid`.

        Raises:
            InputError: images that cannot be decoded, are not finite or constant, or are too many to hold.
        """
        check_size(self.shape, path=self.folder)
        grid = self.grid(spacing)
        data = np.empty((*self.shape[:3], self.phases), np.float32, order="F")
        for k, of_slice in enumerate(self.images):
            for t, image in enumerate(of_slice):
                data[:, :, k, t] = read_pixels(image)
        group = ImageGroup(image for of_slice in self.images for image in of_slice)
        if not np.isfinite(data).all():
            raise group.error("holds values that are not finite", "Export the series again")
        if data.min() == data.max():
            raise group.error(f"is constant: every voxel is {float(data.flat[0]):g}", "Export the series again")
        return Volume(data if self.phases > 1 else data[..., 0], grid, self.folder)


# --- geometry and time ------------------------------------------------------------------------------------------------


def stack_of(group: ImageGroup) -> DicomStack:
    """The stack these images make, which have one orientation, size, pixel spacing and contrast.

    Raises:
        InputError: they do not make slices x phases on one grid.
    """
    _require_magnitude(group)
    slices, notes = latest_of_each(group, group.slices)
    _require_equal_counts(group, slices)
    ordered, seconds, remarks = _phases(group, slices)
    affine = _TO_RAS @ _affine(group, ordered)
    notes = [f"series {listed(group.series)}: {note}" if group.series else note for note in (*notes, *remarks)]
    kept = ImageGroup(image for of_slice in ordered for image in of_slice)
    return DicomStack(group.folder, kept.series, tuple(map(tuple, ordered)), affine, seconds, tuple(notes))


def shifted_stacks(group: ImageGroup, *, named: bool) -> list[ImageGroup]:
    """The group, or the two stacks it holds that are shifted into each other by half a gap.

    Slices that are numbered in turns, one half after the other, are not enough for that where a UID says that they are
    one series: that is how scanners acquire neighbours without disturbing them.

    Args:
        group: images of one view of a series.
        named: whether a UID makes it one series.
    """
    slices = group.slices
    if len(slices) < 4:
        return [group]
    gaps = np.diff([float(position_of(of_slice[0]) @ normal_of(slices[0][0])) for of_slice in slices])
    if np.ptp(gaps) > EVEN * gaps.min() or not _are_two(slices, float(gaps.min()), named):
        return [group]
    return [ImageGroup(image for of_slice in half for image in of_slice) for half in (slices[::2], slices[1::2])]


def _are_two(slices: Slices, gap: float, named: bool) -> bool:
    """Whether every other slice of an even stack is of another stack."""
    images = list(chain(*slices))
    first, second = ([image.instance for image in chain(*half)] for half in (slices[::2], slices[1::2]))
    between = [image.between for image in images if image.between is not None]
    twice = bool(between) and abs(float(np.median(between)) - 2 * gap) < 0.1 * gap
    if numbered_again(first, second) or (twice and not _in_sequence(slices)):
        return True
    cine = all(len(of_slice) > 1 for of_slice in slices)
    unknown = not named and all(image.thickness is None for image in images)
    return cine and in_blocks(first, second) and (unknown or overlapping(slices, gap))


def _in_sequence(slices: Slices) -> bool:
    """Whether the slices are numbered one after the other along the normal, up or down, as those of one stack are."""
    numbers = [[image.instance for image in of_slice if image.instance is not None] for of_slice in slices]
    if any(len(known) < len(of_slice) for known, of_slice in zip(numbers, slices, strict=True)):
        return False
    steps = np.sign(np.diff([min(known) for known in numbers]))
    return abs(int(steps.sum())) == len(steps)


def _require_magnitude(group: ImageGroup) -> None:
    part = group.images[0].contrast.no_magnitude
    if part is not None:
        what = f"shows the {part} of the signal, which is no anatomy, and is left out"
        raise group.error(what, "Choose the series of magnitude images with --series")


def _affine(group: ImageGroup, slices: Sequence[Sequence[DicomImage]]) -> NDArray[np.float64]:
    """(4, 4), indices (column, row, slice) to mm, LPS+; a function of the images, whatever files hold them."""
    first = slices[0][0]
    origins = np.array([np.mean([position_of(image) for image in of_slice], axis=0) for of_slice in slices])
    _require_even(group, origins @ normal_of(first))
    step = (origins[-1] - origins[0]) / (len(origins) - 1)
    spacing, directions = spacing_of(first), directions_of(first)
    placed = zip(slices, origins[0] + np.arange(len(origins))[:, None] * step, strict=True)
    for number, (of_slice, place) in enumerate(placed, start=1):
        aside = max(float(np.abs(directions @ (position_of(image) - place)).max()) for image in of_slice)
        if aside > SIDEWAYS * min(spacing):
            what = f"has slices that are shifted sideways, slice {number} by {aside:.3g} mm"
            raise group.error(what, "Resample them onto one grid, or give NIfTI")
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = directions[0] * spacing[0], directions[1] * spacing[1]
    affine[:3, 2], affine[:3, 3] = step, origins[0]
    return affine


def _require_even(group: ImageGroup, places: NDArray[np.float64]) -> None:
    gaps = np.diff(places)
    usual = float(gaps.min())
    multiples = np.rint(gaps / usual)
    fits = (np.abs(gaps - multiples * usual) <= EVEN * usual).all()
    if fits and multiples.max() == 1:
        return
    if fits:
        after = [int(k) + 1 for k in np.flatnonzero(multiples > 1)]
        raise group.error(
            f"lacks {int(multiples.sum()) - len(gaps)} of its slices (gaps of more than {usual:.4g} mm"
            f" after slice {listed(after)})",
            "Export the series completely",
        )
    raise group.error(
        f"has uneven gaps between its slices, from {gaps.min():.4g} to {gaps.max():.4g} mm",
        "Export the series completely, or resample it and give NIfTI",
    )


def _phases(group: ImageGroup, slices: Slices) -> tuple[Slices, float, list[str]]:
    """The images of each slice in the order of time, seconds from one to the next, and notes."""
    if len(slices[0]) == 1:
        return slices, 0.0, []
    try:
        order = phases_in_order(slices)
        return order.slices, order.seconds, list(order.notes)
    except NoOrder as problem:
        repeated = repeated_throughout(group, slices)
        if repeated is None:
            remedy = "Export the series again with the times its scanner wrote, or give NIfTI with its phases in order"
            raise group.error(str(problem), remedy) from None
    once, notes = repeated
    ordered, seconds, more = _phases(group, once)
    return ordered, seconds, [*notes, *more]


def _require_equal_counts(group: ImageGroup, slices: Slices) -> None:
    numbers: dict[int, list[int]] = defaultdict(list)
    for number, of_slice in enumerate(slices, start=1):
        numbers[len(of_slice)].append(number)
    if len(numbers) == 1:
        return
    counts = "; ".join(f"{count} in slice {listed(those)}" for count, those in sorted(numbers.items()))
    raise group.error(f"has different numbers of phases: {counts}", "Export the series completely")
