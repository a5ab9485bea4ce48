"""A finer grid over the same anatomy: every voxel cut into equal parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cgdpm_med.volumes.grid import Grid, grid_from_header, mark_millimetres, with_shape


def refined_grid(grid: Grid, factors: Sequence[int]) -> Grid:
    """The grid that cuts each voxel into ``factors`` parts along x, y, z, covering the same box in the world.

    Index i becomes f i + (f - 1) / 2: the centre of the first new voxel lies (f - 1) / 2 new voxels before the centre
    of the first old one. The header states this geometry in pixdim, in the sform and, where the input had one, in the
    qform, with the true spacing and in millimetres; a conflict in the input's header is therefore settled here.

    Args:
        factors: three whole numbers of at least 1.

    Raises:
        ValueError: for other factors.
    """
    if len(factors) != 3 or any(f != int(f) or f < 1 for f in factors):
        raise ValueError(f"factors must be three whole numbers of at least 1, not {tuple(factors)}")
    f = np.array(factors, dtype=np.float64)
    old_from_new = np.diag([*(1 / f), 1.0])
    old_from_new[:3, 3] = -(f - 1) / (2 * f)
    affine = grid.affine @ old_from_new
    shape = [int(n * k) for n, k in zip(grid.spatial_shape, factors, strict=True)]
    header = with_shape(grid.header, [*shape, *grid.shape[3:]])
    mark_millimetres(header)
    if header["qform_code"] > 0:
        header.set_qform(affine, int(header["qform_code"]))  # strips a shear, which a quaternion cannot hold
    # a sform as well where there was none: it alone holds any affine, to the full precision of float32
    header.set_sform(affine, int(header["sform_code"]) or int(header["qform_code"]) or 1)
    header["pixdim"][1:4] = np.array(grid.spacing) / f
    fine = grid_from_header(header, "pixdim", Path())
    return replace(fine, directions=grid.directions, flip_slices=grid.flip_slices)
