"""Volumes and the grid they lie on: read with one clear error or a right result, write on the same grid.

A *grid* is what ties an array index (i, j, k) to a place in the patient: the shape, the voxel spacing in mm and the
affine from indices to world millimetres (RAS+). :class:`Grid` keeps the header as it was read beside the geometry
derived from it, because the two differ in the wild: every ACDC file holds a unit sform while the true spacing is only
in ``pixdim``. Resampling and volumes use the derived geometry, output is written with the header as read.

``grid`` holds the geometry, ``header_geometry`` the rule for headers that contradict themselves, ``orientation`` the
way to look at a stack, ``refine`` finer grids, ``nifti`` the format, and the folder ``dicom`` finds which images belong
together and puts them in the order of space and time.

Formats other than NIfTI: ``formats`` knows their names and chooses the reader, ``nrrd`` and ``metaimage`` read headers
in text and ``raster`` the voxels behind them, ``mgh`` and ``pairs`` the rest.
"""

from __future__ import annotations

from cgdpm_med.volumes.grid import VOXEL_LIMIT, Grid, HeaderWarning, check_size
from cgdpm_med.volumes.nifti import Volume, frames, read_labels, read_volume, write_on_grid
from cgdpm_med.volumes.orientation import (
    ShortAxisView,
    directions_known,
    reoriented_grid,
    short_axis_view,
    slice_order,
    view_of,
)
from cgdpm_med.volumes.refine import refined_grid
from cgdpm_med.volumes.spacing import Spacing, check_spacing, parse_spacing

__all__ = [
    "VOXEL_LIMIT",
    "Grid",
    "HeaderWarning",
    "ShortAxisView",
    "Spacing",
    "Volume",
    "check_size",
    "check_spacing",
    "directions_known",
    "frames",
    "parse_spacing",
    "read_labels",
    "read_volume",
    "refined_grid",
    "reoriented_grid",
    "short_axis_view",
    "slice_order",
    "view_of",
    "write_on_grid",
]
