"""Where voxels lie: shape, spacing and affine, and the rule for headers that contradict themselves."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from cgdpm_med.volumes.files import InputError, PathLike

Spacing = Literal["auto", "pixdim", "affine"] | Sequence[float]

VOXEL_LIMIT = 2**29
"""Most voxels accepted in one file, 512 x 512 x 2048: 2 GiB once in float32."""

CONFLICT_TOLERANCE = 0.01
"""Relative difference above which pixdim and the lengths of the affine's columns are called in conflict."""

_PLAUSIBLE_SPACING = (1e-4, 200.0)  # mm: finer than microscopy, coarser than any scanner's slice distance
_UNIT_IN_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units & 7: unknown, metre, millimetre, micrometre
_MILLIMETRE, _TIME_UNIT = 2, 0x38  # NIFTI_UNITS_MM, and the bits of xyzt_units that hold the unit of time
_REPAIR = "Repair sform or qform in the header"
_WARNED: set[str] = set()  # kinds of header conflict already reported by this process


class HeaderWarning(UserWarning):
    """A header that contradicts itself; the text names the rule that was applied."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of one file lie.

    Attributes:
        shape: (x, y, z) or (x, y, z, t) exactly as stored, so also (x, y, z, 1).
        spacing: true voxel size in mm along x, y, z, after the rule of :func:`read_volume`.
        affine: (4, 4) float64, voxel indices to world mm: the directions and the origin of the header's affine with
            columns of length ``spacing``.
        header: the header as read (extensions left out), the basis of every file written on this grid.
        header_affine: (4, 4) float64, the affine the header states (sform, else qform, else pixdim alone), in mm.
        note: what is odd about the header and which rule was applied, or None.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, float, float]
    affine: NDArray[np.float64]
    header: nib.Nifti1Header
    header_affine: NDArray[np.float64]
    note: str | None = None

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
        header = with_shape(self.header, self.spatial_shape)
        return Grid(self.spatial_shape, self.spacing, self.affine, header, self.header_affine, self.note)

    def difference(self, other: Grid) -> str | None:
        """One line saying how ``other`` differs in place from this grid, or None where they agree.

        Trailing axes of length 1 are ignored. The affines agree when no corner of the volume moves by more than a
        tenth of the smallest spacing: the quaternions of a qform round by far less, a shift by a voxel is seen.
        """
        if _without_trailing_ones(self.shape) != _without_trailing_ones(other.shape):
            return f"shape {_by(other.shape)} instead of {_by(self.shape)}"
        corners = np.array(list(product(*((0, size - 1) for size in self.spatial_shape), [1])))
        moved = float(np.linalg.norm(corners @ (self.affine - other.affine).T, axis=1).max())
        if moved > 0.1 * min(self.spacing):
            return f"its voxels lie up to {moved:.3g} mm elsewhere (spacing {_mm(other.spacing)})"
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
    unit = _UNIT_IN_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    try:
        header_affine = _header_affine(header)
    except ValueError as error:  # a quaternion longer than 1
        raise InputError(f"has an impossible qform ({error})", path=path, remedy=_REPAIR) from error
    header_affine[:3] *= unit
    columns = header_affine[:3, :3]
    lengths = np.linalg.norm(columns, axis=0)
    if not (np.isfinite(header_affine).all() and np.isfinite(lengths).all()):
        raise InputError("has an affine that is not finite", path=path, remedy=_REPAIR)
    if not (lengths > 0).all() or abs(np.linalg.det(columns / lengths)) < 1e-3:
        raise InputError("has a singular affine", path=path, remedy=_REPAIR)
    pixdim = header["pixdim"][1:4].astype(np.float64) * unit
    true, note = _true_spacing(pixdim, lengths, bool(header["sform_code"] != 0), spacing, path)
    cosines = (columns / lengths).T @ (columns / lengths)
    skew = float(np.degrees(np.arcsin(min(1.0, np.abs(cosines - np.eye(3)).max()))))
    if skew > 0.5:
        sheared = f"the affine is sheared by {skew:.1f} degrees"
        note = sheared if note is None else f"{note}; {sheared}"
    affine = header_affine.copy()
    if not np.allclose(true, lengths, rtol=1e-4, atol=0):
        affine[:3, :3] = columns / lengths * true
    for array in (affine, header_affine):
        array.setflags(write=False)
    x, y, z = (float(size) for size in true)
    return Grid(stored_shape(header), (x, y, z), affine, header, header_affine, note)


def _header_affine(header: nib.Nifti1Header) -> NDArray[np.float64]:
    """The affine as nibabel chooses it (sform, qform, pixdim alone), where pixdim may hold signs, zeros and no qfac."""
    repaired = header.copy()
    pixdim = np.abs(repaired["pixdim"][1:4])
    repaired["pixdim"][1:4] = np.where(np.isfinite(pixdim) & (pixdim > 0), pixdim, 1)
    if repaired["pixdim"][0] not in (-1, 1):
        repaired["pixdim"][0] = 1  # nifti1.h: 0 means 1
    return np.array(repaired.get_best_affine(), dtype=np.float64)


def _true_spacing(
    pixdim: NDArray[np.float64], lengths: NDArray[np.float64], has_sform: bool, spacing: Spacing, path: Path
) -> tuple[NDArray[np.float64], str | None]:
    """The rule stated in :func:`read_volume`: spacing in mm and a note where the header contradicts itself."""
    usable = bool(np.isfinite(pixdim).all() and (pixdim != 0).all())
    size = np.abs(pixdim)
    note: str | None = None
    if not isinstance(spacing, str):
        true = np.array(spacing, dtype=np.float64)
        if true.shape != (3,):
            raise InputError(f"spacing {spacing} is not three numbers", remedy="Give x, y and z spacing in mm")
    elif spacing not in ("auto", "pixdim", "affine"):
        raise InputError(f"spacing {spacing!r} is unknown", remedy="Use auto, pixdim, affine or three numbers in mm")
    elif spacing == "affine" and has_sform:
        true = lengths
    elif not usable and not (spacing == "auto" and has_sform):
        raise InputError(
            f"has no voxel spacing: pixdim is {_mm(pixdim)}", path=path, remedy="Give the spacing in mm explicitly"
        )
    elif spacing != "auto" or not has_sform or (usable and _agree(size, lengths)):
        true = size
    else:
        true, note = _settle(pixdim, lengths, usable, path)
    low, high = _PLAUSIBLE_SPACING
    if not ((true >= low) & (true <= high)).all():
        raise InputError(
            f"has an implausible voxel spacing of {_mm(true)}", path=path, remedy="Give the spacing in mm explicitly"
        )
    return true, note


def _settle(
    pixdim: NDArray[np.float64], lengths: NDArray[np.float64], usable: bool, path: Path
) -> tuple[NDArray[np.float64], str]:
    never_filled = _agree(pixdim, np.ones(3)) or bool((pixdim < 0).any())
    if not usable or (never_filled and not _agree(lengths, np.ones(3))):
        true, taken = lengths, "the affine"
    else:
        true, taken = np.abs(pixdim), "pixdim"
    note = f"pixdim says {_mm(pixdim)}, the affine {_mm(lengths)}: {taken} is taken"
    _warn_once(taken, f"{note} (override with spacing=; first seen in {path}, later files are not reported)")
    return true, note


def _agree(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    return bool(np.allclose(a, b, rtol=CONFLICT_TOLERANCE, atol=0))


def _warn_once(kind: str, text: str) -> None:
    if kind not in _WARNED:
        _WARNED.add(kind)
        warnings.warn(text, HeaderWarning, stacklevel=7)  # the caller of read_volume or read_labels


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


def _mm(spacing: Sequence[float] | NDArray[np.float64]) -> str:
    return " x ".join(f"{size:.5g}" for size in spacing) + " mm"


def _without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:3] if all(size == 1 for size in shape[3:]) else shape
