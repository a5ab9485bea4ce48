"""One score sheet per sampling setting: what steps, samplers, guidance and members buy, and what they cost."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cgdpm_med.evaluation.case import evaluate_segmentation, notes_on_labels, summarise_results
from cgdpm_med.evaluation.reference_labels import read_reference, structures_of_references
from cgdpm_med.inference.labels import DEFAULT_LABELS
from cgdpm_med.inference.segmenter import Segmentation, Segmenter
from cgdpm_med.metrics.masks import dice_per_structure
from cgdpm_med.tables.csv_files import write_csv
from cgdpm_med.volumes import Volume, read_volume

FIRST_SCORE = "dice"
"""The column that follows those of the setting in a table."""

_OF_ENSEMBLES = ("pairwise_dice", "ged", "ece", "brier", "auroc")


def score_setting(
    segmenter: Callable[[Volume, str], Segmentation], datalist: Sequence[Mapping[str, str]]
) -> dict[str, float]:
    """Scores of one setting over the cases of a datalist, Dice in percent; NaN for what is not known.

    ``dice`` is the combined mask's, followed by that of each structure under its name, ``member_dice`` the mean of
    single members', ``pairwise_dice`` (in [0, 1]) and ``ged`` describe the spread of the members, ``seconds`` is the
    mean time of a volume, reading and scoring left out.
    """
    results, members, seconds, labels = [], [], 0.0, DEFAULT_LABELS
    for item in datalist:
        volume = read_volume(item["image"])
        start = time.perf_counter()
        segmentation = segmenter(volume, item["key"])
        seconds += time.perf_counter() - start
        labels = segmentation.labels
        results.append(evaluate_segmentation(segmentation, item))
        members += _member_dice(segmentation, item)
    notes_on_labels(results, structures_of_references(datalist, labels))
    summary = summarise_results(results, labels.by_number)
    structures, ensemble = summary["structures"], summary["ensemble"]
    scores = {
        FIRST_SCORE: 100 * summary["average"]["dice"],
        **{name.lower(): 100 * structures[name]["dice"] if name in structures else None for name in labels.names},
        "member_dice": 100 * float(np.mean(members)),
        **{name: ensemble[name] for name in _OF_ENSEMBLES},
        "seconds": seconds / len(datalist),
    }
    return {name: float("nan") if score is None else float(score) for name, score in scores.items()}


def _member_dice(segmentation: Segmentation, item: Mapping[str, str]) -> list[float]:
    """Of each member, the mean over the structures."""
    structures = tuple(segmentation.labels.by_number)
    reference = read_reference(item["label"], segmentation.labels)
    by_member = (dice_per_structure(member, reference, structures) for member in segmentation.members)
    return [float(np.mean(list(dice.values()))) for dice in by_member]


def sweep(
    settings: Sequence[Mapping[str, Any]],
    datalist: Sequence[Mapping[str, str]],
    table: Path,
    bundle: str | Path = "acdc_segmentation",
    report: Callable[[Mapping[str, Any]], None] = lambda row: None,
    resume: bool = False,
) -> list[dict[str, Any]]:
    """Score every setting (keys of the bundle's inference configuration) and keep the table written as it grows.

    Args:
        settings: all with the same keys.
        table: CSV, a row per setting: the setting, then the scores, from :data:`FIRST_SCORE` on.
        report: called with each row.
        resume: keep the rows that an interrupted sweep, of the same weights and cases, has left in the table.
    """
    found = read_table(table) if resume else {}
    rows: list[dict[str, Any]] = []
    for setting in settings:
        named = tuple((name, _plain(value)) for name, value in setting.items())
        scores = found.get(named) or score_setting(Segmenter.from_bundle(bundle, **setting), datalist)
        rows.append({**setting, **scores})
        plain = [{n: _plain(v) if n in setting else float(v) for n, v in row.items()} for row in rows]
        write_csv(table, plain, number_format=".4f")
        report(rows[-1])
    return rows


def read_table(table: Path) -> dict[tuple[tuple[str, str], ...], dict[str, float]]:
    """Scores by setting, each as (key, text) pairs in the order of the columns; nothing when there is no table."""
    if not table.exists():
        return {}
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return dict(_setting_and_scores(row) for row in rows)


def _setting_and_scores(row: Mapping[str, str]) -> tuple[tuple[tuple[str, str], ...], dict[str, float]]:
    columns = list(row.items())
    first = list(row).index(FIRST_SCORE)
    return tuple(columns[:first]), {name: float(text) for name, text in columns[first:]}


def _plain(value: Any) -> str:
    return ":".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
