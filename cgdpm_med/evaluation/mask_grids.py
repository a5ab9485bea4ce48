"""Two masks voxel by voxel: the prediction in the reference's order of axes, or one error that says what differs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from cgdpm_med.files import InputError
from cgdpm_med.volumes import Grid, Volume

_IGNORE = "If both hold the same voxels in the same order, give --ignore-geometry: the reference's grid then counts"


def voxels_on_grid(prediction: Volume, reference: Volume, *, ignore_geometry: bool = False) -> NDArray[Any]:
    """The prediction's voxels in the order of the reference's.

    Masks that hold the same places in another order of axes, as tools write them that turn every image to RAS, are
    turned without loss.

    Args:
        ignore_geometry: take the voxels as they are stored; shapes must still agree.

    Raises:
        InputError: the grids differ otherwise; it says in what.
    """
    if prediction.grid.spatial_shape == reference.grid.spatial_shape and (
        ignore_geometry or same_places(reference.grid, prediction.grid.affine, prediction.grid.spatial_shape)
    ):
        return prediction.data
    data, affine = _turned(prediction, reference.grid)
    shape = data.shape[:3]
    if not ignore_geometry and same_places(reference.grid, affine, shape):
        return data
    if ignore_geometry or reference.grid.spatial_shape not in (shape, prediction.grid.spatial_shape):
        affine, shape = prediction.grid.affine, prediction.grid.spatial_shape
    raise InputError(
        f"is not on its reference's grid: {'; '.join(grid_differences(reference.grid, affine, shape))}",
        path=prediction.path,
        remedy=_remedy(reference.grid, affine, shape),
    )


def same_places(grid: Grid, affine: NDArray[np.float64], shape: Sequence[int]) -> bool:
    """Whether voxels of this affine and spatial shape lie on the grid, within a tenth of its smallest spacing."""
    if tuple(shape) != grid.spatial_shape:
        return False
    moved = np.linalg.norm(_corners(shape) @ (grid.affine - affine).T, axis=1).max()
    return bool(moved <= 0.1 * min(grid.spacing))


def grid_differences(grid: Grid, affine: NDArray[np.float64], shape: Sequence[int]) -> list[str]:
    """What differs from the grid, each in a few words: shape, spacing, directions, origin."""
    found = []
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if tuple(shape) != grid.spatial_shape:
        found.append(f"shape {_by(shape)} instead of {_by(grid.spatial_shape)}")
    if not np.allclose(lengths, grid.spacing, rtol=0.01, atol=0):
        found.append(f"spacing {_by(lengths)} mm instead of {_by(grid.spacing)} mm")
    turned = _largest_angle(affine[:3, :3] / lengths, grid.affine[:3, :3] / np.asarray(grid.spacing))
    if turned > 0.5:
        found.append(f"directions up to {turned:.0f} degrees apart")
    shift = float(np.linalg.norm(affine[:3, 3] - grid.affine[:3, 3]))
    if shift > 0.1 * min(grid.spacing) or not found:
        found.append(f"origin {shift:.3g} mm elsewhere")
    return found


def _turned(mask: Volume, grid: Grid) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Axes permuted and flipped so that they point as nearly as possible along the grid's."""
    ours, theirs = (nib.io_orientation(affine) for affine in (mask.grid.affine, grid.affine))
    change = nib.orientations.ornt_transform(ours, theirs)
    data = nib.apply_orientation(mask.data, change)
    return data, mask.grid.affine @ nib.orientations.inv_ornt_aff(change, mask.grid.spatial_shape)


def _remedy(grid: Grid, affine: NDArray[np.float64], shape: Sequence[int]) -> str:
    overlap = _overlap(grid, affine, shape)
    if tuple(shape) == grid.spatial_shape:
        return f"{_IGNORE}. Otherwise resample the prediction, with nearest neighbour" if overlap else _IGNORE
    if overlap:
        return "Resample the prediction to the reference's grid, with nearest neighbour"
    return "The two share no place, so one header is wrong: write the prediction with the header of its image"


def _overlap(grid: Grid, affine: NDArray[np.float64], shape: Sequence[int]) -> bool:
    """Whether the box around the voxels touches the grid's, seen along the grid's axes."""
    places = (_corners(shape) @ (np.linalg.inv(grid.affine) @ affine).T)[:, :3]
    return bool(((places.max(0) >= 0) & (places.min(0) <= np.array(grid.spatial_shape) - 1)).all())


def _corners(shape: Sequence[int]) -> NDArray[np.float64]:
    return np.array(list(product(*((0, size - 1) for size in shape[:3]), [1])), dtype=np.float64)


def _largest_angle(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    cosines = np.clip((a * b).sum(axis=0), -1, 1)
    return float(np.degrees(np.arccos(cosines)).max())


def _by(sizes: Sequence[float] | NDArray[np.float64]) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)
