"""File names of volumes: which suffix is which format, and which further files hold a volume's voxels."""

from __future__ import annotations

from pathlib import Path

from cgdpm_med.files import PathLike

NIFTI = (".nii", ".nii.gz")
PAIR_HEADERS = (".hdr", ".hdr.gz")
PAIR_VOXELS = (".img", ".img.gz")
NRRD = (".nrrd", ".nhdr")
METAIMAGE = (".mha", ".mhd")
MGH = (".mgh", ".mgz")

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


def _beside(path: Path, mine: tuple[str, ...], theirs: tuple[str, ...]) -> Path:
    """The partner of the same name; both files compressed, or both not, is what is usual."""
    compressed = is_named(path, (".gz",))
    stem = path.name[: -len(mine[compressed])]
    names = [stem + suffix for suffix in theirs]
    names += [stem + suffix.upper() for suffix in theirs]
    usual = names[compressed]
    return next((p for name in (usual, *names) if (p := path.with_name(name)).is_file()), path.with_name(usual))
