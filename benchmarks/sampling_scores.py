"""What ``sampling`` tells of its settings, from the rows of their patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cgdpm_med.evaluation.calibrate import KnownFrame, voxel_scores
from cgdpm_med.evaluation.held_out import held_out_function, held_out_voxels

from .harness import Claim, Table

OLD = "version 0.1"
WANTED = 0.4
"""CPU seconds of a volume against those of version 0.1."""

OF_VOLUMES = ("dice", "member_dice", "hd95", "ged", "auroc")
COLUMNS: Mapping[str, tuple[str, str]] = {
    "dice": ("Dice %", ".2f"),
    "member_dice": ("Dice % of a member", ".2f"),
    "hd95": ("HD95 mm", ".2f"),
    "ged": ("GED", ".4f"),
    "brier": ("Brier", ".4f"),
    "auroc": ("AUROC", ".4f"),
    "ece": ("ECE", ".4f"),
    "ece_held_out": ("ECE, calibrated by the others", ".4f"),
    "review": ("patients to review", "d"),
    "cpu_seconds": ("CPU seconds", ".1f"),
    "cpu_ratio": (f"of {OLD}'s", ".2f"),
}


def scores(rows: Sequence[Mapping[str, Any]], frames: Sequence[KnownFrame]) -> dict[str, Any]:
    """Means over volumes, counts over patients; calibrated ones by held-out patients."""
    volumes = [volume for row in rows for volume in row["volumes"]]
    held_out = held_out_voxels(frames)
    return {
        **{name: _mean([volume[name] for volume in volumes]) for name in OF_VOLUMES},
        **voxel_scores(frames),
        **{f"{name}_held_out": value for name, value in held_out.items()},
        "review": sum(row["status"] == "review" for row in rows),
        "cpu_seconds": sum(row["cpu_seconds"] for row in rows) / len(volumes),
        "function": held_out_function(frames),
    }


def _mean(values: Sequence[float | None]) -> float:
    return float(np.mean([value for value in values if value is not None]))


def claims(rows: Mapping[str, Mapping[str, Any]]) -> list[Claim]:
    """CPU seconds against version 0.1's, where it took part."""
    if OLD not in rows:
        return []
    return [
        Claim(f"{name} / {OLD}, CPU seconds", _ratio(row, rows), WANTED, at_most=True)
        for name, row in rows.items()
        if name != OLD
    ]


def _ratio(row: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> float:
    return float(row["cpu_seconds"] / rows[OLD]["cpu_seconds"]) if OLD in rows else float("nan")


def tables(rows: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Quality and cost; intervals of the measures."""
    quality = [
        [name, *(format({**row, "cpu_ratio": _ratio(row, rows)}[key], form) for key, (_, form) in COLUMNS.items())]
        for name, row in rows.items()
    ]
    return [
        Table("Quality and cost", ["timesteps", *(title for title, _ in COLUMNS.values())], quality),
        Table(
            "Intervals, calibrated by the other patients",
            ["timesteps", "measure", "error, mean ± sd", "covered %", "length"],
            [_interval_row(name, *score) for name, row in rows.items() for score in row["function"].items()],
        ),
    ]


def _interval_row(setting: str, measure: str, score: Mapping[str, Any]) -> list[str]:
    error = f"{score['error_mean']:+.1f} ± {score['error_sd']:.1f}"
    return [setting, measure, error, f"{100 * score['coverage']:.0f}", f"{score['width']:.1f}"]
