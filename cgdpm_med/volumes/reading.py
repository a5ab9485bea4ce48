"""Which reader a volume's file goes to, and which files it is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from cgdpm_med.files import InputError
from cgdpm_med.volumes.formats import (
    METAIMAGE,
    MGH,
    NRRD,
    PAIR_HEADERS,
    PAIR_VOXELS,
    is_named,
    pair_header,
    pair_voxels,
)
from cgdpm_med.volumes.grid import Grid
from cgdpm_med.volumes.metaimage import metaimage_files, metaimage_raster
from cgdpm_med.volumes.mgh import read_mgh
from cgdpm_med.volumes.nrrd import nrrd_files, nrrd_raster
from cgdpm_med.volumes.raster import read_raster
from cgdpm_med.volumes.spacing import Spacing


def is_other_format(path: Path) -> bool:
    """Whether a file is named as a volume that has no NIfTI header."""
    return is_named(path, (*NRRD, *METAIMAGE, *MGH))


def read_other(path: Path, spacing: Spacing) -> tuple[NDArray[Any], Grid]:
    """Voxels (X, Y, Z) or (X, Y, Z, T) in their stored type, and a grid whose header states where they lie.

    Raises:
        InputError: the file cannot be used.
    """
    if is_named(path, MGH):
        return read_mgh(path, spacing)
    raster = nrrd_raster(path) if is_named(path, NRRD) else metaimage_raster(path)
    return read_raster(raster, path, spacing)


def files_of(path: Path) -> tuple[Path, ...]:
    """A volume's file and whatever further files hold its voxels; those of a header that is damaged stay unknown."""
    if is_named(path, PAIR_HEADERS):
        return path, pair_voxels(path)
    if is_named(path, PAIR_VOXELS):
        return pair_header(path), path
    find = nrrd_files if is_named(path, NRRD) else metaimage_files if is_named(path, METAIMAGE) else None
    try:
        return (path, *find(path)) if find else (path,)
    except InputError:
        return (path,)
