"""References beside a model: their values are brought to the model's own numbers by the names of the structures.

What the values of a reference mean is given, or said by a dataset.json with it. Where neither is, the model's own
numbers are taken, unless they contradict ACDC's: then nothing says which of the two was drawn, and none is guessed.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgdpm_med.data.structure_names import EXAMPLE, plain_name
from cgdpm_med.evaluation.label_hint import label_hints
from cgdpm_med.evaluation.label_names import (
    LabelSet,
    Structures,
    find_dataset_file,
    match_labels,
    parse_labels,
    read_dataset_labels,
    require_usual_numbers,
)
from cgdpm_med.files import InputError, PathLike
from cgdpm_med.inference.labels import Labels
from cgdpm_med.volumes import Grid, Spacing, read_labels

OPTION = "--reference-labels"

Named = LabelSet | str | None
"""The meaning of the references' values: labels, a text such as ``1=liver,2=tumour``, or None to find it."""


def read_reference(
    path: PathLike, labels: Labels, *, named: Named = None, like: Grid | None = None, spacing: Spacing = "auto"
) -> NDArray[np.uint8]:
    """A reference mask (X, Y, Z) with the numbers of a model; structures that the model does not know are background.

    Args:
        labels: of the model.
        named: what the file's values mean; None is :func:`names_of_reference`.
        like, spacing: see :func:`~cgdpm_med.read_labels`.

    Raises:
        InputError: the file is bad, or holds a value without a name; nothing says which value is which structure; or
            the references have no name for a structure of the model.
    """
    structures = structures_of(path, labels, named)
    mask = read_labels(path, allowed=range(2**16), like=like, spacing=spacing)
    structures.reference.require(mask, OPTION)
    return structures.of_reference(mask.data).astype(np.uint8)


def structures_of(path: PathLike, labels: Labels, named: Named = None) -> Structures:
    """The model's structures under its own numbers, and what the values of a reference and of the model mean.

    Raises:
        InputError: as :func:`read_reference`, but for what is wrong with the file itself.
    """
    reference = parse_labels(named, OPTION) if isinstance(named, str) else named
    reference = reference or names_of_reference(Path(path), labels)
    model = _names_of(labels)
    known = {plain_name(name) for name in reference.names.values()}
    if missing := [name for name in labels.names if plain_name(name) not in known]:
        raise InputError(
            f"the references have {', '.join(reference.names.values())}, the model also {', '.join(missing)}",
            path=path,
            remedy=f"Name them all with {OPTION}, as in {EXAMPLE} ; compare masks alone where some are not drawn",
        )
    left_out = match_labels(reference, model).left_out
    return Structures(labels.by_number, reference, model, left_out)


def structures_of_references(datalist: Sequence[Mapping[str, str]], labels: Labels, named: Named = None) -> Structures:
    """:func:`structures_of` what names the first reference of a datalist, and with it all of them."""
    return structures_of(datalist[0]["label"], labels, named) if datalist else Structures(labels.by_number)


def names_of_reference(path: Path, labels: Labels) -> LabelSet:
    """What a reference's values mean: as a dataset.json with it says, else as the model numbers its own structures.

    Raises:
        InputError: there is no dataset.json, and the model's numbers of ACDC's structures are not ACDC's.
    """
    file = find_dataset_file(path)
    found = None if file is None else read_dataset_labels(file)
    if found is None:
        require_usual_numbers(path, _names_of(labels))
    return found or _names_of(labels)


def _names_of(labels: Labels) -> LabelSet:
    return LabelSet(labels.by_number, "the model's")


def require_fitting_labels(cases: Sequence[tuple[str, NDArray[np.int64]]], structures: Structures) -> list[str]:
    """Notes on cases whose labels look exchanged; where all do, the names of the references are wrong.

    Args:
        cases: key and :func:`~cgdpm_med.evaluation.label_hint.confusion` of each.

    Raises:
        InputError: with the names that would fit.
    """
    hints = label_hints(cases, structures)
    for hint in hints:
        if len(hint["cases"]) == len(cases):
            raise InputError(_exchanged(hint), remedy=_renamed(hint))
    return [hint["message"] for hint in hints]


def _exchanged(hint: dict[str, Any]) -> str:
    before, after = (100 * hint[name] for name in ("dice", "exchanged"))
    return f"the references' labels look exchanged: Dice {before:.1f} % as they are named, {after:.1f} % exchanged"


def _renamed(hint: dict[str, Any]) -> str:
    return f"Look at one of them; if so, name the values with {OPTION} {shlex.quote(hint['reference_labels'])}"
