"""Which files below a folder are DICOM files: by their content, or by the endings of DICOM files."""

from __future__ import annotations

import os
from pathlib import Path

from cgdpm_med.volumes.formats import is_dicom_file


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
