"""What lies below a folder: volumes to segment, what is left out and why, and images that are of no use.

The rule, so that nothing is passed over in silence:

- *Volumes* are files named as one of the formats that are read, and DICOM files, which are found by what they hold.
- *Left out*, with a note: label maps (by name, by folder, or 8-bit files of few whole numbers), views other than the
  short axis (by name), results of earlier runs (by the JSON beside them, maps also by the mask), pictures and films.
- *Unusable*, which counts as failed: volumes in formats that are not read, archives, voxels whose header is missing,
  binary files of an unknown kind, folders that may not be read, and links to folders elsewhere.
- *Harmless*, and not mentioned: hidden files and folders, documents, tables, settings and whatever else is text, and
  the files in which the voxels of a header lie.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from cgdpm_med.files import InputError, listed
from cgdpm_med.images.pictures import PICTURE_SUFFIXES
from cgdpm_med.studies.map_names import is_map
from cgdpm_med.volumes import read_volume
from cgdpm_med.volumes.formats import (
    METAIMAGE,
    NIFTI,
    NRRD,
    PAIR_HEADERS,
    PAIR_VOXELS,
    READABLE,
    VOLUME_SUFFIXES,
    files_of,
    is_dicom_file,
    is_named,
    pair_header,
    raster_of,
    volume_stem,
)

LABEL_MAPS, OTHER_VIEWS = "label maps", "views other than the short axis, by their names"
RESULTS, PICTURES = "results of an earlier run", "pictures"

_OTHER_VOLUMES = (
    *(
        ".mnc",
        ".mnc.gz",
        ".minc",
        ".vtk",
        ".vti",
        ".vtkhdf",
        ".gipl",
        ".gipl.gz",
        ".par",
        ".rec",
        ".v3d",
        ".v",
        ".ecat",
    ),
    *(
        ".npy",
        ".npz",
        ".mat",
        ".h5",
        ".hdf5",
        ".hdf",
        ".zarr",
        ".tif",
        ".tiff",
        ".pic",
        ".lsm",
        ".bmp3d",
        ".mrc",
        ".am",
    ),
    *(".head", ".brik", ".brik.gz", ".raw", ".raw.gz", ".zraw"),
)
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
PACKED = (".gz", ".bz2", ".xz", ".zst")
"""Of single files, such as ``.dcm.gz``; a name that ends in ``.nii.gz`` or another volume's suffix is that."""
_PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".svg", ".avi", ".mp4", ".mov", ".mkv", ".wmv")
_DOCUMENTS = (
    *(
        ".json",
        ".csv",
        ".tsv",
        ".txt",
        ".md",
        ".rst",
        ".cfg",
        ".ini",
        ".toml",
        ".yaml",
        ".yml",
        ".xml",
        ".html",
        ".log",
    ),
    *(".bval", ".bvec", ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".ppt", ".pptx", ".odt", ".ods", ".ctbl", ".label"),
    *(".py", ".pyc", ".ipynb", ".m", ".sh", ".pt", ".pth", ".safetensors", ".db", ".sqlite", ".lock"),
)
_LABEL_NAME = re.compile(
    r"(^|[_\-. ])(gt|d?segs?|probseg|segmentations?|labels?|labelmaps?|masks?|ground_?truth|annotations?)\d*$"
    r"|^(gt|seg|label|mask)[_\-]",
    re.IGNORECASE,
)
_LABEL_FOLDER = re.compile(
    r"(gt_)?(labels?|masks?|gts?|segs?|segmentations?|ground_?truths?|annotations?)(tr|ts|val)?", re.IGNORECASE
)
_OTHER_VIEW = re.compile(r"la|lax|vla|hla|(la|lax)?[234]ch(amber)?|long_?axis", re.IGNORECASE)
_MOST_LABELS = 16


class FolderWarning(UserWarning):
    """Files that are left out of a run, and why."""


@dataclass
class Contents:
    """What :func:`survey` found.

    Attributes:
        volumes: files to read, sorted; a NIfTI pair by its header.
        left_out: by reason.
        unusable: one error for each folder and kind.
        patients: folders that hold an Info.cfg.
    """

    volumes: list[Path] = field(default_factory=list)
    left_out: dict[str, list[Path]] = field(default_factory=dict)
    unusable: list[InputError] = field(default_factory=list)
    patients: list[Path] = field(default_factory=list)

    def leave_out(self, reason: str, path: Path) -> None:
        """Count a file as left out for this reason."""
        self.left_out.setdefault(reason, []).append(path)


def survey(source: Path, exclude: Path | None = None) -> Contents:
    """Every file below a folder, sorted into what this module's rule says.

    Args:
        source: the folder; links to folders are not followed.
        exclude: a folder of which nothing is said.
    """
    found = Contents()
    files = list(_files(source, exclude, found))
    results = _earlier_results(files)
    voxels = {data for path in files if is_named(path, (*NRRD, *METAIMAGE)) for data in files_of(path)[1:]}
    unusable: dict[tuple[Path, str], list[Path]] = {}
    for path in files:
        if is_volume(path):
            reason = RESULTS if path in results else _reason(path, source)
            if reason is None:
                found.volumes.append(path)
            else:
                found.leave_out(reason, path)
        elif path not in voxels and not is_dicom_file(path) and (kind := _kind(path)):
            if kind == PICTURES:
                found.leave_out(PICTURES, path)
            else:
                unusable.setdefault((path.parent, kind), []).append(path)
    found.unusable += [_unusable(kind, paths) for (_, kind), paths in unusable.items()]
    _leave_out_leftovers(found)
    return found


def _leave_out_leftovers(found: Contents) -> None:
    """Maps beside a mask that has no JSON, as a run leaves them that was stopped."""
    masks = {(path.parent, volume_stem(path)) for path in found.left_out.get(LABEL_MAPS, ())}
    for path in [path for path in found.volumes if is_map(path, masks)]:
        found.volumes.remove(path)
        found.leave_out(RESULTS, path)


def volume_files(folder: Path) -> list[Path]:
    """Every file below a folder that is named as a volume, sorted; hidden files are left out.

    Links to nowhere and pipes count as files: whoever reads them says what is wrong, and no input is lost in silence.
    """
    return [path for path in _files(folder, None, Contents()) if is_volume(path)]


def picture_files(folder: Path) -> list[Path]:
    """Every file below a folder that is named as a picture, sorted; hidden files are left out."""
    return [path for path in _files(folder, None, Contents()) if path.suffix.lower() in PICTURE_SUFFIXES]


def is_volume(path: Path) -> bool:
    """Whether a file is named as one of the formats that are read; of a NIfTI pair only the header is."""
    return is_named(path, VOLUME_SUFFIXES)


def real_path(path: Path) -> Path:
    """The path without symbolic links, for comparing; one that runs in circles stays as it is."""
    return Path(os.path.realpath(path))


def is_below(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder, links resolved."""
    return real_path(path).is_relative_to(real_path(folder))


def in_label_folder(path: Path, source: Path) -> bool:
    """Whether a folder between a file and ``source`` is called like one of label maps."""
    return any(_LABEL_FOLDER.fullmatch(name) for name in path.relative_to(source).parent.parts)


def is_label_map(data: NDArray[Any]) -> bool:
    """Whether an image holds no values but whole numbers from 0 to 15, or 0 and 255 alone: no scanner's image does."""
    step = max(1, data.size // 10_000)
    if len(np.unique(data.ravel()[::step])) > _MOST_LABELS:
        return False
    values = np.unique(data)
    few = values[0] == 0 and values[-1] < _MOST_LABELS and (values == np.rint(values)).all()
    return bool(few) or values.tolist() == [0, 255]


def is_series(path: Path) -> bool:
    """Whether a file holds several volumes; one that cannot be read counts as such."""
    try:
        return _dimensions(path) > 3
    except (InputError, ImageFileError, OSError, EOFError, ValueError):
        return True


def _dimensions(path: Path) -> int:
    if not is_named(path, (*NIFTI, *PAIR_HEADERS)):
        return read_volume(path).data.ndim
    shape = list(nib.load(path).shape)  # type: ignore[attr-defined]
    while shape and shape[-1] == 1:
        shape.pop()
    return len(shape)


def left_out_lines(source: Path, left_out: dict[str, list[Path]]) -> list[str]:
    """One line for each reason, with the first few files."""
    return [
        f"{source}: left out {len(paths)} {reason}: {listed(path.relative_to(source) for path in paths)}"
        for reason, paths in left_out.items()
    ]


# --- walking ----------------------------------------------------------------------------------------------------------


def _files(source: Path, exclude: Path | None, found: Contents) -> Iterator[Path]:
    """Files below a folder in the order of their paths; folders that are not entered become errors of ``found``."""

    def not_entered(error: OSError) -> None:
        what = f"cannot be read: {(error.strerror or str(error)).lower()}"
        found.unusable.append(InputError(what, path=error.filename, remedy="Ask for permission to read it"))

    paths = []
    for parent, folders, names in os.walk(source, onerror=not_entered):
        here = Path(parent)
        folders[:] = [name for name in folders if not name.startswith(".")]
        if exclude is not None:
            folders[:] = [name for name in folders if not is_below(here / name, exclude)]
            names = [] if is_below(here, exclude) else [n for n in names if not is_below(here / n, exclude)]
        found.unusable += [_elsewhere(link) for name in folders if _leads_away(link := here / name, source)]
        paths += [here / name for name in names if not name.startswith(".")]
        found.patients += [here] if "Info.cfg" in names else []
    found.patients.sort()
    yield from sorted(paths)


def _leads_away(path: Path, source: Path) -> bool:
    """Whether a folder is a link to what is not searched anyway; a patient of ACDC may be one."""
    return (
        path.is_symlink()
        and not is_below(path, source)
        and not is_below(source, path)
        and not (path / "Info.cfg").is_file()
    )


def _elsewhere(link: Path) -> InputError:
    what = "is a link to a folder elsewhere, which is not followed"
    return InputError(what, path=link, remedy="Give that folder by itself, or move it here")


# --- what a file is ---------------------------------------------------------------------------------------------------


def _reason(path: Path, source: Path) -> str | None:
    """Why a volume is left out, if it is."""
    folders = path.relative_to(source).parent.parts
    stem = volume_stem(path).removesuffix("_0000")
    named = _LABEL_NAME.search(stem) or is_named(path, (".seg.nrrd", ".seg.nhdr"))
    if named or in_label_folder(path, source):
        return LABEL_MAPS
    words = [word.lower() for word in re.split(r"[_\-. ]+", stem)]
    other = any(_OTHER_VIEW.fullmatch(word) for word in (*words, *folders)) or words == ["ao"]
    if other and not {"sa", "sax"} & set(words):
        return OTHER_VIEWS
    return LABEL_MAPS if _holds_labels(path) else None


def _holds_labels(path: Path) -> bool:
    """Whether a file of 8-bit voxels is a label map; others are not read for that here."""
    try:
        return _stored_type(path).itemsize == 1 and is_label_map(read_volume(path).data)
    except (InputError, ImageFileError, OSError, EOFError, ValueError):
        return False  # whoever reads it will say what is wrong


def _stored_type(path: Path) -> np.dtype[Any]:
    if is_named(path, (*NRRD, *METAIMAGE)):
        return raster_of(path).dtype
    return np.dtype(nib.load(path).header.get_data_dtype())  # type: ignore[attr-defined]


def _earlier_results(files: Iterable[Path]) -> set[Path]:
    """What the JSON of segmented volumes and studies names as theirs."""
    return {path.parent / name for path in files if is_named(path, (".json",)) for name in _names_in(path)}


def _names_in(path: Path) -> list[str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(content, dict) or not isinstance(content.get("files"), list):
        return []
    mine = "made_with" in content or ("case" in content and ("volume_ml" in content or "frames" in content))
    return [name for name in content["files"] if isinstance(name, str)] if mine else []


def _kind(path: Path) -> str | None:
    """What a file that is neither read nor known as harmless may be."""
    if is_named(path, PAIR_VOXELS):
        return None if pair_header(path).is_file() else "voxels without their header (.hdr)"
    if is_named(path, _ARCHIVES):
        return "an archive"
    if is_named(path, _PICTURES):
        return PICTURES
    if is_named(path, _OTHER_VOLUMES):
        return f"in a format that is not read ({path.suffix.lower()})"
    if is_named(path, _DOCUMENTS) or path.name.lower() in ("dicomdir", "thumbs.db"):
        return None
    if path.is_symlink() and not path.exists():
        return "a link to nowhere"
    if is_named(path, PACKED):
        return "packed"
    if not _is_binary(path):
        return None
    return "of a kind unknown here"


def _is_binary(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            return b"\0" in file.read(4096)
    except OSError:
        return True


def _unusable(kind: str, paths: list[Path]) -> InputError:
    """One error for the files of a kind in one folder; its path is the file, or the folder of several."""
    remedies = {
        "an archive": "Unpack it and give what it holds, or move it elsewhere",
        "packed": "Unpack it and give what it holds, or move it elsewhere",
        "a link to nowhere": "Correct the link, or move it elsewhere",
        "voxels without their header (.hdr)": "Put the header beside it, or move it elsewhere",
    }
    remedy = remedies.get(kind, f"Convert it to {READABLE}, or move it elsewhere")
    if len(paths) == 1:
        return InputError(f"is {kind}", path=paths[0], remedy=remedy)
    names = listed((path.name for path in paths), most=3)
    return InputError(f"holds {len(paths)} files that are {kind}: {names}", path=paths[0].parent, remedy=remedy)
