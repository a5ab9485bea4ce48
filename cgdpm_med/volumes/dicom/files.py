"""Which files below a folder are DICOM files: by their content, or by the endings of DICOM files."""

from __future__ import annotations

import os
from pathlib import Path

_NAMED_DICOM = (".dcm", ".dicom", ".ima")
_OTHER_FORMATS = (".nii", ".nii.gz")


def dicom_files(folder: Path, exclude: Path | None = None) -> list[Path]:
    """Every DICOM file below a folder but discs' tables of contents, sorted; links to folders are not followed.

    A file counts if it bears DICOM's mark after 128 bytes, or an ending of DICOM files. Hidden files, whatever lies
    below ``exclude``, and names that end in .nii or .nii.gz do not count.
    """
    found: list[Path] = []
    for parent, folders, names in os.walk(folder):
        if exclude is not None and Path(os.path.realpath(parent)).is_relative_to(os.path.realpath(exclude)):
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(parent, name) for name in sorted(names) if not name.startswith("."))
        found += [path for path in paths if is_dicom_file(path)]
    return found


def is_dicom_file(path: Path) -> bool:
    """Whether a regular file looks like DICOM from outside; a disc's table of contents does not count."""
    name = path.name.lower()
    if name.endswith(_OTHER_FORMATS) or name == "dicomdir" or not path.is_file():
        return False
    return name.endswith(_NAMED_DICOM) or has_dicom_mark(path)


def has_dicom_mark(path: Path) -> bool:
    """Whether DICM stands after the preamble of 128 bytes (PS3.10, 7.1)."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
