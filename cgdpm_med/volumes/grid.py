"""Where voxels lie: shape, spacing and affine, and the rule for headers that contradict themselves."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from cgdpm_med.files import InputError, PathLike
from cgdpm_med.volumes.header_geometry import CONFLICTS, header_geometry
from cgdpm_med.volumes.spacing import Spacing, in_mm

VOXEL_LIMIT = 2**29
"""Most voxels accepted in one file, 512 x 512 x 2048: 2 GiB once in float32."""

_MILLIMETRE, _TIME_UNIT = 2, 0x38  # NIFTI_UNITS_MM, and the bits of xyzt_units that hold the unit of time
_WARNED: set[str] = set()  # kinds of header conflict already reported by this process


class HeaderWarning(UserWarning):
    """A header that contradicts itself; the text names the rule that was applied."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of one file lie.

    Attributes:
        shape: (x, y, z) or (x, y, z, t) exactly as stored, so also with trailing axes of 1.
        spacing: true voxel size in mm along x, y, z, after the rule of :func:`read_volume`.
        affine: (4, 4) float64, voxel indices to world mm: the directions and the origin of the header's affine with
            columns of length ``spacing``.
        header: the header as read (extensions left out), the basis of every file written on this grid.
        header_affine: (4, 4) float64, the affine of the header that was chosen (sform, else qform, else pixdim alone),
            in mm, as it is stated there.
        note: what is odd about the header and which rule was applied, or None.
        directions: whether the header says where the axes point.
        flip_slices: whether the user said that the slices run the other way than the header has them, or, without
            directions, from apex to base.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, float, float]
    affine: NDArray[np.float64]
    header: nib.Nifti1Header
    header_affine: NDArray[np.float64]
    note: str | None = None
    directions: bool = True
    flip_slices: bool = False

    @property
    def spatial_shape(self) -> tuple[int, int, int]:
        """(x, y, z)."""
        x, y, z = self.shape[:3]
        return x, y, z

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel in mm^3: the product of ``spacing`` unless the affine is sheared."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def frame(self) -> Grid:
        """The three-dimensional grid of a single time frame of this grid."""
        return replace(self, shape=self.spatial_shape, header=with_shape(self.header, self.spatial_shape))

    def difference(self, other: Grid) -> str | None:
        """One line saying how ``other`` differs in place from this grid, or None where they agree.

        Trailing axes of length 1 are ignored. The affines agree when no corner of the volume moves by more than a
        tenth of the smallest spacing: the quaternions of a qform round by far less, a shift by a voxel is seen.
        """
        if without_trailing_ones(self.shape) != without_trailing_ones(other.shape):
            return f"shape {_by(other.shape)} instead of {_by(self.shape)}"
        corners = np.array(list(product(*((0, size - 1) for size in self.spatial_shape), [1])))
        moved = float(np.linalg.norm(corners @ (self.affine - other.affine).T, axis=1).max())
        if moved > 0.1 * min(self.spacing):
            return f"its voxels lie up to {moved:.3g} mm elsewhere (spacing {in_mm(other.spacing)})"
        return None


def check_size(shape: Sequence[int], *, path: PathLike | None = None) -> None:
    """Refuse shapes that are empty or too large to hold, before anything of that size is allocated.

    Raises:
        InputError: a dimension below 1, or more than :data:`VOXEL_LIMIT` voxels; with the number.
    """
    sizes = [int(size) for size in shape]
    for axis, size in enumerate(sizes):
        if size < 1:
            raise InputError(
                f"has size {size} along axis {axis} (shape {_by(sizes)})", path=path, remedy="Export the image again"
            )
    if prod(sizes) > VOXEL_LIMIT:
        raise InputError(
            f"has {prod(sizes):,} voxels (shape {_by(sizes)}), more than the limit of {VOXEL_LIMIT:,}",
            path=path,
            remedy="Crop or split the image; if the file is smaller than that, its header is damaged",
        )


def grid_from_header(header: nib.Nifti1Header, spacing: Spacing, path: Path) -> Grid:
    """The grid a header describes, with the true spacing by the rule of :func:`~cgdpm_med.volumes.read_volume`.

    Raises:
        InputError: an affine that is singular or not finite, or no plausible spacing.
    """
    found = header_geometry(header, spacing, path)
    for kind in CONFLICTS & found.notes.keys():
        _warn_once(kind, f"{found.notes[kind]} (first seen in {path}, later files are not reported)")
    for array in (found.affine, found.stated):
        array.setflags(write=False)
    x, y, z = (float(size) for size in found.spacing)
    note = "; ".join(found.notes.values()) or None
    return Grid(stored_shape(header), (x, y, z), found.affine, header, found.stated, note, found.directions)


def _warn_once(kind: str, text: str) -> None:
    if kind not in _WARNED:
        _WARNED.add(kind)
        warnings.warn(text, HeaderWarning, stacklevel=5)  # the caller of read_volume or read_labels


def stored_shape(header: nib.Nifti1Header) -> tuple[int, ...]:
    """The header's shape, without nibabel's special cases for surface files."""
    return tuple(int(size) for size in header["dim"][1 : int(header["dim"][0]) + 1])


def with_shape(header: nib.Nifti1Header, shape: Sequence[int]) -> nib.Nifti1Header:
    """A copy of the header with another shape and nothing else changed (nibabel's setter resets pixdim)."""
    changed = header.copy()
    changed["dim"] = [len(shape), *shape] + [1] * (7 - len(shape))
    return changed


def mark_millimetres(header: nib.Nifti1Header) -> None:
    """State millimetres in ``xyzt_units``; the unit of time stays."""
    header["xyzt_units"] = _MILLIMETRE | (int(header["xyzt_units"]) & _TIME_UNIT)


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape)


def without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape of at least three axes without what ones there are at its end beyond the third."""
    length = len(shape)
    while length > 3 and shape[length - 1] == 1:
        length -= 1
    return shape[:length]
