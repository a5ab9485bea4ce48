"""Which reader a volume's file goes to, and which files it is made of; a reader is imported for files of its kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from cgdpm_med.volumes.spacing import Spacing

if TYPE_CHECKING:
    from cgdpm_med.volumes.raster import Raster


def is_other_format(path: Path) -> bool:
    """Whether a file is named as a volume that has no NIfTI header."""
    return is_named(path, (*NRRD, *METAIMAGE, *MGH))


def read_other(path: Path, spacing: Spacing) -> tuple[NDArray[Any], Grid]:
    """Voxels (X, Y, Z) or (X, Y, Z, T) in their stored type, and a grid whose header states where they lie.

    Raises:
        InputError: the file cannot be used.
    """
    if is_named(path, MGH):
        from cgdpm_med.volumes.mgh import read_mgh

        return read_mgh(path, spacing)
    from cgdpm_med.volumes.raster import read_raster

    return read_raster(raster_of(path), path, spacing)


def raster_of(path: Path) -> Raster:
    """What the header of a NRRD or MetaImage file says of its voxels.

    Raises:
        InputError: the header cannot be used.
    """
    if is_named(path, NRRD):
        from cgdpm_med.volumes.nrrd import nrrd_raster

        return nrrd_raster(path)
    from cgdpm_med.volumes.metaimage import metaimage_raster

    return metaimage_raster(path)


def files_of(path: Path) -> tuple[Path, ...]:
    """A volume's file and whatever further files hold its voxels; those of a header that is damaged stay unknown."""
    if is_named(path, PAIR_HEADERS):
        return path, pair_voxels(path)
    if is_named(path, PAIR_VOXELS):
        return pair_header(path), path
    try:
        return path, *_voxel_files(path)
    except InputError:
        return (path,)


def _voxel_files(path: Path) -> Sequence[Path]:
    """The files a NRRD or MetaImage header names."""
    if is_named(path, NRRD):
        from cgdpm_med.volumes.nrrd import nrrd_files

        return nrrd_files(path)
    if is_named(path, METAIMAGE):
        from cgdpm_med.volumes.metaimage import metaimage_files

        return metaimage_files(path)
    return ()
