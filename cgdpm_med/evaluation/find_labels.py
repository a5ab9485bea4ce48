"""Where the names of two sides' labels come from: options, files beside the masks, a run, or the values themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cgdpm_med.evaluation.label_names import (
    ACDC,
    LabelSet,
    Structures,
    find_dataset_file,
    label_set,
    match_labels,
    read_dataset_labels,
    require_usual_numbers,
)
from cgdpm_med.evaluation.picture_masks import table_labels, value_labels
from cgdpm_med.files import InputError
from cgdpm_med.inference.labels import DEFAULT_LABELS


@dataclass(frozen=True)
class RunLabels:
    """What a run of ``train`` calls its classes.

    Attributes:
        names: by number, as its masks hold them.
        stored: value in the files of its data set -> number; {} where they are the numbers.
    """

    names: LabelSet
    stored: Mapping[int, int] = field(default_factory=dict)


def find_labels(
    predictions: str | Path,
    references: str | Path,
    *,
    labels: LabelSet | None = None,
    prediction_labels: LabelSet | None = None,
    reference_labels: LabelSet | None = None,
    run: RunLabels | None = None,
) -> Structures:
    """What is scored between two sides, each with the first of these that there is:

    the labels given for it, those given for both, those of a dataset.json or labels.json with it, those of ``segment``
    where it made the predictions, those of the run, those of the other side, ACDC's. Picture masks that no file
    describes are read by their values, see :func:`~cgdpm_med.evaluation.picture_masks.value_labels`.

    Raises:
        InputError: no structure is on both sides; a file cannot be used; or references in ACDC's layout that nothing
            names lie beside predictions that give ACDC's structures other numbers.
    """
    reference, prediction = reference_labels or labels, prediction_labels or labels
    if reference is None or prediction is None:  # a file that does not matter need not be readable
        references, predictions = Path(references), Path(predictions)
        of_run = run.names if run else None
        with_references = _labels_with(references) or table_labels(references)
        with_predictions = _labels_of_predictions(predictions)
        if reference is None and with_references is None and _in_acdc_layout(references):
            require_usual_numbers(references, prediction or with_predictions or of_run or ACDC)
        told = with_references or of_run
        known = told or reference
        prediction = (
            prediction or with_predictions or value_labels(predictions, known, beside=references) or told or ACDC
        )
        told = with_predictions or of_run
        reference = (
            reference
            or with_references
            or value_labels(references, told or prediction, run.stored if run else None)
            or told
            or ACDC
        )
    return match_labels(reference, prediction)


def _in_acdc_layout(place: Path) -> bool:
    folder = place.parent if place.is_file() else place
    return any(folder.rglob("Info.cfg"))


def _labels_with(place: Path, above: int | None = None) -> LabelSet | None:
    file = find_dataset_file(place) if above is None else find_dataset_file(place, above)
    return None if file is None else read_dataset_labels(file)


def _labels_of_predictions(place: Path) -> LabelSet | None:
    beside = _labels_with(place, 0) or table_labels(place, 0)
    return beside or _labels_of_segment(place) or _labels_with(place) or table_labels(place)


def _labels_of_segment(place: Path) -> LabelSet | None:
    """Labels in the first record of ``segment`` that lies there: a JSON that says what it measured; or None."""
    folder = place.parent if place.is_file() else place
    recorded = (_recorded_labels(file) for file in sorted(folder.rglob("*.json")))
    return next((labels for labels in recorded if labels is not None), None)


def _recorded_labels(file: Path) -> LabelSet | None:
    """Of an image's record ``{"volume_ml": …, "labels": {"1": "liver", …}}``, or a study's; version 0.1 named none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if "volume_ml" in content:
            names = {int(value): str(name) for value, name in content.get("labels", DEFAULT_LABELS.by_number).items()}
        elif "volumes_ml" in content["study"]:
            names = dict(enumerate(map(str, content["study"].get("labels", DEFAULT_LABELS.names)), 1))
        else:
            return None
        return label_set(names, "segment's")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError):
        return None  # of something else
