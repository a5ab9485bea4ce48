"""Formats of volumes: which a file has, which files it is made of, and the reader, imported for files of its kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from cgdpm_med.files import InputError, PathLike

if TYPE_CHECKING:
    from cgdpm_med.volumes.grid import Grid
    from cgdpm_med.volumes.raster import Raster
    from cgdpm_med.volumes.spacing import Spacing

NIFTI = (".nii", ".nii.gz")
PAIR_HEADERS = (".hdr", ".hdr.gz")
PAIR_VOXELS = (".img", ".img.gz")
NRRD = (".nrrd", ".nhdr")
METAIMAGE = (".mha", ".mhd")
MGH = (".mgh", ".mgz")
_NAMED_DICOM = (".dcm", ".dicom", ".ima")

VOLUME_SUFFIXES = (*NIFTI, *PAIR_HEADERS, *NRRD, *METAIMAGE, *MGH)
"""Of the files that are read as volumes; of a NIfTI pair that is the header."""

READABLE = "NIfTI (.nii, .nii.gz, .hdr with .img), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd) or MGH (.mgh, .mgz)"
"""The formats in words, for remedies."""

_COMPOSITE = (".seq.nrrd", ".seg.nrrd", ".seq.mha", ".seq.nhdr", ".seg.nhdr")  # 3D Slicer's: one suffix each


def volume_suffix(path: PathLike) -> str:
    """The suffix of a volume's file in lower case, ``.seq.nrrd`` and its like as one; "" for any other file."""
    name = Path(path).name.lower()
    known = (*_COMPOSITE, *VOLUME_SUFFIXES, *PAIR_VOXELS)
    return max((suffix for suffix in known if name.endswith(suffix)), key=len, default="")


def volume_stem(path: PathLike) -> str:
    """File name without the suffix of a volume, in any case."""
    name = Path(path).name
    return name[: len(name) - len(volume_suffix(path))]


def is_named(path: PathLike, suffixes: tuple[str, ...]) -> bool:
    """Whether a name ends in one of ``suffixes``, in any case."""
    return Path(path).name.lower().endswith(suffixes)


def pair_header(path: Path) -> Path:
    """The header beside the voxels of a NIfTI pair: of ``a.img`` that is ``a.hdr`` or ``a.hdr.gz``.

    Where there is none the usual name is returned.
    """
    return _beside(path, PAIR_VOXELS, PAIR_HEADERS)


def pair_voxels(path: Path) -> Path:
    """The voxels beside the header of a NIfTI pair, under the usual name where there are none."""
    return _beside(path, PAIR_HEADERS, PAIR_VOXELS)


def is_dicom_file(path: Path) -> bool:
    """Whether a regular file looks like DICOM from outside; a disc's table of contents does not count."""
    name = path.name.lower()
    if name.endswith(NIFTI) or name == "dicomdir" or not path.is_file():
        return False
    return name.endswith(_NAMED_DICOM) or has_dicom_mark(path)


def has_dicom_mark(path: Path) -> bool:
    """Whether DICM stands after the preamble of 128 bytes (PS3.10, 7.1)."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _beside(path: Path, mine: tuple[str, ...], theirs: tuple[str, ...]) -> Path:
    """The partner of the same name; both files compressed, or both not, is what is usual."""
    compressed = is_named(path, (".gz",))
    stem = path.name[: -len(mine[compressed])]
    names = [stem + suffix for suffix in theirs]
    names += [stem + suffix.upper() for suffix in theirs]
    usual = names[compressed]
    return next((p for name in (usual, *names) if (p := path.with_name(name)).is_file()), path.with_name(usual))


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
