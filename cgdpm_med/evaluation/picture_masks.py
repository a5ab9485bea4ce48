"""Masks that are pictures: read as volumes of one slice, and what their values mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from cgdpm_med.datasets.folders import labels_from_table
from cgdpm_med.datasets.label_values import found_classes, stored_labels
from cgdpm_med.evaluation.label_names import LabelSet
from cgdpm_med.files import InputError
from cgdpm_med.studies.mask_pairs import is_picture_mask, mask_files
from cgdpm_med.volumes import Grid, Spacing, Volume, read_labels

TABLE = "labels.json"
_ANY_LABEL = range(2**16)


def read_mask(path: Path, spacing: Spacing = "auto") -> Volume:
    """A mask of any values: a volume, or a picture (H, W) as (H, W, 1) whose pixels have the size 1.

    Args:
        spacing: see :func:`~cgdpm_med.read_volume`; of a picture x, between columns, comes first.

    Raises:
        InputError: for a file that cannot be read, or is no mask.
    """
    if not is_picture_mask(path):
        return read_labels(path, allowed=_ANY_LABEL, spacing=spacing)
    stored = stored_labels(path)[..., None]
    return Volume(stored, _pixel_grid(stored.shape, spacing), path)


def _pixel_grid(shape: tuple[int, ...], spacing: Spacing) -> Grid:
    across, down, through = (1.0, 1.0, 1.0) if isinstance(spacing, str) else (float(size) for size in spacing)
    sizes = (down, across, through)
    header, affine = nib.Nifti1Header(), np.diag([*sizes, 1.0])
    header.set_data_shape(shape)
    header.set_zooms(sizes)
    return Grid(tuple(shape), sizes, affine, header, affine, directions=False)


def same_kind(prediction: Path, reference: Path) -> None:
    """Raise InputError where one of two masks is a picture and the other a volume."""
    kinds = [("a picture" if is_picture_mask(path) else "a volume") for path in (prediction, reference)]
    if kinds[0] != kinds[1]:
        what = f"is {kinds[0]}, its reference {reference.name} {kinds[1]}"
        raise InputError(what, path=prediction, remedy="Give both as pictures, or both as volumes")


# --- what values mean -------------------------------------------------------------------------------------------------


def table_labels(place: Path, above: int = 1) -> LabelSet | None:
    """Labels of a labels.json in a folder (or a file's folder) or just above it, or None.

    Raises:
        InputError: for a file that names no classes.
    """
    folder = (place.parent if place.is_file() else place).resolve()
    for candidate in [folder, *folder.parents][: above + 1]:
        if (file := candidate / TABLE).is_file():
            names, values = labels_from_table(file)
            return _named(values, names, TABLE)
    return None


def _named(values: Mapping[int, int], names: Sequence[str], source: str) -> LabelSet:
    """A stored value that is background is called so: 0 itself may be a class where a table says it."""
    called = {value: names[number - 1] if number else "background" for value, number in values.items()}
    return LabelSet({value: name for value, name in called.items() if value or name != "background"}, source)


def value_labels(
    place: Path, known: LabelSet | None, stored: Mapping[int, int] | None = None, beside: Path | None = None
) -> LabelSet | None:
    """Labels of picture masks by the values that they hold; None where a place holds no picture masks.

    The values are those of ``known`` where all of them are among them; else those in ``stored``, by which a run's data
    set writes its classes; else one foreground is the one structure of ``known``; else they have names of their own.

    Args:
        known: names of the structures by their number, as the other side or a run has them.
        stored: value in files -> number.
        beside: the other side's masks, of which nothing is known either: a class that only they hold is one all the
            same, which this side missed.

    Raises:
        InputError: for colours that nothing names, or files that are no masks.
    """
    files = mask_files(place)
    if not files or not is_picture_mask(files[0]):
        return None
    present = {int(value) for file in files for value in np.unique(stored_labels(file))}
    if known is not None and present <= known.values:
        return known
    if known is not None and stored and present <= stored.keys():
        by_number: dict[int, Any] = dict(known.names)
        return LabelSet({value: by_number[number] for value, number in stored.items() if number}, "the run's")
    others = mask_files(beside) if beside is not None and known is None else []
    if others and is_picture_mask(others[0]):
        held = {int(value) for file in others for value in np.unique(stored_labels(file))}
        if {len(present - {0}), len(held - {0})} != {1}:  # one structure each may be 1 here and 255 there
            files = [*files, *others]
    names, values = found_classes(files)
    if known is not None and len(names) == len(set(known.names.values())) == 1:
        names = tuple(known.names.values())
    return _named(values, names, "their values")
