"""The locked evaluation protocol, run: segment reference cases, score them on their native grid, write the table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgdpm_med.apps.segment import Segmentation, Segmenter
from cgdpm_med.data import ACDC_LABELS
from cgdpm_med.metrics import (
    VolumeScore,
    brier,
    calibration_error,
    calibration_table,
    error_uncertainty_auroc,
    foreground_region,
    generalised_energy_distance,
    mean_pairwise_dice,
    predicted_true_dice_correlation,
    score_volume,
    summarise,
)
from cgdpm_med.volumes import InputError, atomic_write, read_labels, read_volume


@dataclass(frozen=True)
class CaseResult:
    """Scores of one case: the mask's, and the ensemble's."""

    score: VolumeScore
    ensemble: Mapping[str, float | None]
    calibration: NDArray[np.float64]


def evaluate_segmentation(segmentation: Segmentation, item: Mapping[str, str]) -> CaseResult:
    """Score one segmentation against its reference mask on the native grid.

    Args:
        item: of a datalist, with ``label``, ``key``, ``frame`` (phase) and ``group``.

    Ensemble values: GED (IoU) and mean pairwise Dice of the members, and, inside the reference's bounding box grown
    by 10 voxels, the multi-class Brier score and the AUROC of the entropy for finding wrong voxels.
    """
    reference = read_labels(item["label"], like=segmentation.grid).data
    region = foreground_region(reference)
    return CaseResult(
        score=score_volume(
            segmentation.mask,
            reference,
            segmentation.grid.spacing,
            key=item["key"],
            phase=item.get("frame", ""),
            group=item.get("group", ""),
            path=item["label"],
        ),
        ensemble={
            "ged": generalised_energy_distance(segmentation.members, reference[None]),
            "pairwise_dice": mean_pairwise_dice(segmentation.members) if len(segmentation.members) > 1 else None,
            "brier": brier(segmentation.probabilities, reference, region),
            "auroc": error_uncertainty_auroc(segmentation.entropy, segmentation.mask != reference, region),
        },
        calibration=calibration_table(segmentation.probabilities, reference, region=region),
    )


def evaluate_segmenter(
    segmenter: Segmenter,
    datalist: Sequence[Mapping[str, str]],
    output: str | Path | None = None,
    *,
    progress: bool = True,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Segment and score every case of ``datalist``; write ``cases.csv`` and ``summary.json`` below ``output``.

    A case that cannot be read is reported, counted under ``failed`` and left out of the means.

    Returns:
        The summary: see :func:`summarise`, with the ensemble's values and the settings that produced it.
    """
    from rich.progress import track

    results: list[CaseResult] = []
    failed: dict[str, str] = {}
    for item in track(datalist, "evaluating", disable=not progress):
        try:
            results.append(evaluate_segmentation(segmenter(read_volume(item["image"]), key=item["key"]), item))
        except InputError as error:
            failed[item["key"]] = str(error)
            report(f"failed: {error}")
    summary = summarise_results(results) | {"failed": failed, "settings": settings(segmenter)}
    if output is not None:
        write_results(results, summary, Path(output))
    report(format_summary(summary))
    return summary


def summarise_results(results: Sequence[CaseResult]) -> dict[str, Any]:
    """Means over cases; calibration pooled over all voxels of the regions."""
    summary: dict[str, Any] = dict(summarise([r.score for r in results]))
    names = sorted({name for r in results for name in r.ensemble})
    values = {name: [v for r in results if (v := r.ensemble[name]) is not None] for name in names}
    summary["ensemble"] = {name: float(np.mean(v)) if v else None for name, v in values.items()}
    summary["ensemble"]["ece"] = calibration_error(np.sum([r.calibration for r in results], axis=0))
    agreement = [r.ensemble["pairwise_dice"] for r in results]
    if len(results) > 2 and None not in agreement:
        true = [float(np.mean(list(r.score.dice.values()))) for r in results]
        predicted = [float(a) for a in agreement if a is not None]
        summary["ensemble"]["predicted_true_dice"] = predicted_true_dice_correlation(predicted, true)
    return summary


def settings(segmenter: Segmenter) -> dict[str, Any]:
    """What a reported number depends on besides the weights and the data."""
    p = segmenter.predictor
    return {
        "members": p.members,
        "steps": p.steps,
        "method": p.method,
        "seed": p.seed,
        "precision": p.precision,
        "guidance_scale": p.guidance_scale if p.guide is not None else 0.0,
        "guidance_interval": p.guidance_interval if p.guide is not None else None,
        "device": str(segmenter.device),
    }


def write_results(results: Sequence[CaseResult], summary: Mapping[str, Any], folder: Path) -> None:
    """``cases.csv``, a row per case, and ``summary.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    metrics = ("dice", "hd95", "assd")
    columns = [f"{m}_{name}" for m in metrics for name in ACDC_LABELS.values()]
    writer = csv.writer(text)
    writer.writerow(["case", "phase", "group", *columns, *results[0].ensemble] if results else ["case"])
    for r in results:
        values = [getattr(r.score, m)[label] for m in metrics for label in ACDC_LABELS]
        row = [*values, *r.ensemble.values()]
        writer.writerow(
            [r.score.key, r.score.phase, r.score.group, *("" if v is None else f"{v:.5f}" for v in row)]
        )
    with atomic_write(folder / "cases.csv") as file:
        file.write(text.getvalue().encode())
    with atomic_write(folder / "summary.json") as file:
        file.write(json.dumps(summary, indent=2).encode())


def format_summary(summary: Mapping[str, Any]) -> str:
    """The table as text: structures in rows, then the ensemble's values and the settings."""
    lines = [f"{'':8}{'Dice %':>8}{'HD95 mm':>9}{'ASSD mm':>9}{'missed':>8}{'invented':>10}"]

    def number(value: float | None, factor: float = 1.0) -> str:
        return "-" if value is None else f"{factor * value:.2f}"

    for name, s in summary["structures"].items():
        lines.append(
            f"{name:8}{number(s['dice'], 100):>8}{number(s['hd95']):>9}{number(s['assd']):>9}"
            f"{s['missed']:>8}{s['invented']:>10}"
        )
    a = summary["average"]
    lines.append(f"{'average':8}{number(a['dice'], 100):>8}{number(a['hd95']):>9}{number(a['assd']):>9}")
    lines.append(f"volumes {summary['volumes']}, failed {len(summary.get('failed', {}))}")
    for phase, part in summary["by_phase"].items():
        lines.append(f"{phase}: average Dice {number(part['average']['dice'], 100)}")
    ensemble = {k: v for k, v in summary["ensemble"].items() if isinstance(v, float)}
    lines.append(", ".join(f"{name} {value:.4f}" for name, value in ensemble.items()))
    lines.append(", ".join(f"{k} {v}" for k, v in summary.get("settings", {}).items()))
    return "\n".join(lines)
