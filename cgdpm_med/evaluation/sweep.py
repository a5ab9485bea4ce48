"""One score sheet per sampling setting: what steps, samplers, guidance and members buy, and what they cost."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cgdpm_med.evaluation.case import evaluate_segmentation, summarise_results
from cgdpm_med.inference.segmenter import Segmentation, Segmenter
from cgdpm_med.metrics.masks import dice_per_structure
from cgdpm_med.tables.csv_files import write_csv
from cgdpm_med.volumes import Volume, read_labels, read_volume

SCORES = ("dice", "rv", "myo", "lv", "member_dice", "pairwise_dice", "ged", "ece", "brier", "auroc", "seconds")


def score_setting(
    segmenter: Callable[[Volume, str], Segmentation], datalist: Sequence[Mapping[str, str]]
) -> dict[str, float]:
    """Scores of one setting over the cases of a datalist, Dice in percent.

    ``dice`` is the combined mask's, ``member_dice`` the mean of single members', ``pairwise_dice`` (in [0, 1]) and
    ``ged`` describe the spread of the members, ``seconds`` is the mean time of a volume, reading and scoring left out.
    """
    results, members, seconds = [], [], 0.0
    for item in datalist:
        volume = read_volume(item["image"])
        start = time.perf_counter()
        segmentation = segmenter(volume, item["key"])
        seconds += time.perf_counter() - start
        results.append(evaluate_segmentation(segmentation, item))
        reference = read_labels(item["label"]).data
        members += [np.mean(list(dice_per_structure(member, reference).values())) for member in segmentation.members]
    summary = summarise_results(results)
    ensemble = summary["ensemble"]
    scores = {
        "dice": 100 * summary["average"]["dice"],
        **{name.lower(): 100 * values["dice"] for name, values in summary["structures"].items()},
        "member_dice": 100 * float(np.mean(members)),
        **{name: ensemble[name] for name in ("pairwise_dice", "ged", "ece", "brier", "auroc")},
        "seconds": seconds / len(datalist),
    }
    return {name: float("nan") if (score := scores.get(name)) is None else float(score) for name in SCORES}


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
        table: CSV, a row per setting: the setting, then :data:`SCORES`.
        report: called with each row.
        resume: keep the rows that an interrupted sweep, of the same weights and cases, has left in the table.
    """
    found = read_table(table) if resume else {}
    rows: list[dict[str, Any]] = []
    for setting in settings:
        named = tuple((name, _plain(value)) for name, value in setting.items())
        scores = found.get(named) or score_setting(Segmenter.from_bundle(bundle, **setting), datalist)
        rows.append({**setting, **scores})
        plain = [{n: float(v) if n in SCORES else _plain(v) for n, v in row.items()} for row in rows]
        write_csv(table, plain, number_format=".4f")
        report(rows[-1])
    return rows


def read_table(table: Path) -> dict[tuple[tuple[str, str], ...], dict[str, float]]:
    """Scores by setting, each as (key, text) pairs in the order of the columns; nothing when there is no table."""
    if not table.exists():
        return {}
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        tuple((name, text) for name, text in row.items() if name not in SCORES): {n: float(row[n]) for n in SCORES}
        for row in rows
    }


def _plain(value: Any) -> str:
    return ":".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
