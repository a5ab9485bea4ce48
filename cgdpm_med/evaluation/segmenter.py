"""The locked evaluation protocol, run: segment, score against references on the native grid, write the table.

Masks that are there already, from whatever method, are scored by :mod:`~cgdpm_med.evaluation.masks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cgdpm_med.console import CaseBar, complain
from cgdpm_med.data.acdc import Section, Split, acdc_datalist
from cgdpm_med.evaluation.calibration_file import Calibration, find_calibration
from cgdpm_med.evaluation.case import CaseResult, evaluate_segmentation, notes_on_labels, summarise_results
from cgdpm_med.evaluation.files import write_results
from cgdpm_med.evaluation.function_scores import compare_function, known_studies
from cgdpm_med.evaluation.reference_labels import Named, read_reference, structures_of_references
from cgdpm_med.evaluation.training_patients import check_unseen, training_record
from cgdpm_med.files import InputError
from cgdpm_med.inference.labels import Labels
from cgdpm_med.inference.segmenter import Segmenter, ensemble_settings
from cgdpm_med.metrics.masks import VolumeScore
from cgdpm_med.volumes import read_volume


def evaluate_acdc(
    segmenter: Segmenter,
    root: str | Path,
    section: Section = "test",
    output: str | Path | None = None,
    *,
    split: str | Path | Split | None = None,
    reference_labels: Named = None,
) -> dict[str, Any]:
    """:func:`evaluate_segmenter` on one section of a folder in ACDC's layout; see :func:`~cgdpm_med.acdc_datalist`.

    A volume without its reference mask counts as failed.

    Raises:
        InputError: where patients for validation or test trained the network; or no item could be scored.
    """
    errors: list[InputError] = []
    items = acdc_datalist(root, section, split=split, on_error=errors.append)
    note = _seen_in_training(items, segmenter, section)
    notes = [] if note is None else [note]
    return evaluate_segmenter(segmenter, items, output, errors=errors, notes=notes, reference_labels=reference_labels)


def _seen_in_training(items: Sequence[Mapping[str, str]], segmenter: Segmenter, section: Section) -> str | None:
    """A note; sections train and all may hold training patients, whose scores say nothing of others."""
    patients = {item["patient"] for item in items}
    if section in ("validation", "test"):
        return check_unseen(patients, segmenter.weights, section)
    records = [record for file in segmenter.weights if (record := training_record(file)) is not None]
    seen = patients & {name for record in records for name in record.patients}
    if not seen:
        return None
    return f"{len(seen)} of {len(patients)} patients trained the network, and score better than new ones"


def evaluate_segmenter(
    segmenter: Segmenter,
    datalist: Sequence[Mapping[str, str]],
    output: str | Path | None = None,
    *,
    errors: Sequence[InputError] = (),
    notes: Sequence[str] = (),
    reference_labels: Named = None,
) -> dict[str, Any]:
    """Segment and score every item of a datalist; write ``cases.csv`` and ``summary.json``.

    An item that cannot be used is reported, counted under ``failed`` and left out of the means. Where a calibration of
    these weights and settings lies beside the weights, calibration and coverage are reported with it and without.

    Args:
        datalist: as made by :func:`~cgdpm_med.acdc_datalist`.
        output: folder of the two files; None writes nothing.
        errors: of items that were found bad before, reported and counted like the others.
        notes: lines to report and to keep in the summary.
        reference_labels: what the references' values mean, ``1=liver,2=tumour``, where they have other numbers than the
            model's structures; None takes the names of a dataset.json with them, else the model's numbers.

    Returns:
        The summary: see :func:`summarise`, with the ensemble's values, ``failed`` and the ``settings`` behind it.

    Raises:
        InputError: when no item could be scored, or the references' labels look exchanged with the model's.
    """
    structures = structures_of_references(datalist, segmenter.labels, reference_labels)
    results: list[CaseResult] = []
    failed = {str(error.path): str(error) for error in errors}
    made_with = ensemble_settings(segmenter)
    as_fused = {**made_with, "staple": False, "keep_largest": False}
    calibration, ignored = find_calibration(segmenter.weights, as_fused)
    with CaseBar("evaluating", [item["key"] for item in datalist]) as bar:
        for line in (*notes, *([] if ignored is None else [ignored])):
            bar.line(line)
        for error in errors:
            complain(error, bar)
        for item in datalist:
            try:
                results.append(_evaluate_item(segmenter, item, bar, calibration, reference_labels))
            except InputError as error:
                failed[item["key"]] = str(error)
                complain(error, bar)
            else:
                bar.note(f"evaluated {item['key']}: {_dice_line(results[-1].score, segmenter.labels)}")
        for line in (on_labels := notes_on_labels(results, structures)):
            bar.line(line)
    studies = known_studies(result.volumes for result in results if result.volumes is not None)
    intervals: dict[str, Any] = (
        {} if calibration is None else {"widening": calibration.widening, "margin": calibration.margin}
    )
    summary = summarise_results(results, segmenter.labels.by_number) | {
        "function": compare_function(studies, [study.found(**intervals) for study in studies]),
        "failed": failed,
        "notes": [*notes, *on_labels],
        "settings": made_with,
        "calibration": None
        if calibration is None
        else {
            "temperature": calibration.temperature,
            "doubt": calibration.doubt,
            **calibration.data,
        },
    }
    if output is not None:
        write_results(results, summary, Path(output), segmenter.labels.by_number)
    return summary


def _evaluate_item(
    segmenter: Segmenter,
    item: Mapping[str, str],
    bar: CaseBar,
    calibration: Calibration | None,
    reference_labels: Named,
) -> CaseResult:
    key = item["key"]
    volume = read_volume(item["image"])
    # a bad reference is found before the long part
    read_reference(item["label"], segmenter.labels, named=reference_labels, like=volume.grid)
    found = segmenter(volume, key, lambda fraction: bar.update(key, fraction))
    return evaluate_segmentation(found, item, calibration, reference_labels)


def _dice_line(score: VolumeScore, labels: Labels) -> str:
    return ", ".join(f"{name} {score.dice[label]:.3f}" for label, name in labels.by_number.items())
