"""What a cohort of known truth says of an ensemble, in Markdown: accuracy, function, calibration, checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cgdpm_med.studies.task import known_measures
from cgdpm_med.tables.markdown import markdown_table
from cgdpm_med.tables.numbers import format_number


def statistics_page(title: str, facts: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Markdown of a summary.

    Args:
        facts: what the numbers depend on, one line each.
        summary: of :func:`~cgdpm_med.evaluation.masks.evaluate_pairs`, or its ``function`` and ``quality`` alone.
    """
    parts = [f"# {title}", "\n".join(f"- {name}: {value}" for name, value in facts.items())]
    if "structures" in summary:
        parts += ["## Masks", _masks(summary)]
    if summary.get("function") is not None:
        parts += [f"## Function, {summary['function']['patients']} patients", function_table(summary["function"])]
    if summary.get("ensemble"):
        parts += ["## Probabilities", _probabilities(summary["ensemble"])]
    if summary.get("quality") is not None:
        parts += ["## Checks", _checks(summary["quality"])]
    return "\n\n".join(parts) + "\n"


def _masks(summary: Mapping[str, Any]) -> str:
    rows = [(name, *_distances(s), s["missed"] + s["invented"]) for name, s in summary["structures"].items()]
    rows.append(("average", *_distances(summary["average"]), ""))
    counted = f"{summary['volumes']} volumes, {len(summary['failed'])} failed."
    unit = summary.get("unit", "mm")
    heading = ("", "Dice %", f"HD95 {unit}", f"ASSD {unit}", "missed or invented")
    table = markdown_table(heading, rows, numbers=True)
    return f"{table}\n\n{counted}"


def _distances(s: Mapping[str, Any]) -> tuple[str, str, str]:
    return format_number(s["dice"], 2, 100), format_number(s["hd95"], 2), format_number(s["assd"], 2)


def function_table(function: Mapping[str, Any]) -> str:
    """Error (value less truth) and intervals of every measure; the members' own spread, and calibrated where it is.

    Args:
        function: of :func:`~cgdpm_med.evaluation.function_scores.compare_function`.
    """
    head = ["", "error, mean ± sd", "correlation", "90 % interval covers", "its mean length"]
    if function["calibrated"] is not None:
        head += ["calibrated covers", "its mean length"]
    rows = []
    definitions = known_measures()
    for name, found in function["measures"].items():
        measure = definitions[name]
        mean, deviation = (format_number(found[moment], 1) for moment in ("error_mean", "error_sd"))
        row = [measure.title, f"{mean} ± {deviation} {measure.unit}", format_number(found["correlation"], 3)]
        for scores in (found, *([] if function["calibrated"] is None else [function["calibrated"][name]])):
            row += [format_number(scores["coverage"], 0, 100, "%"), format_number(scores["width"], 1)]
        rows.append(row)
    return markdown_table(head, rows, numbers=True)


def _probabilities(ensemble: Mapping[str, Any]) -> str:
    rows = [
        (label, format_number(ensemble.get(name), 4), format_number(ensemble.get(f"{name}_calibrated"), 4))
        for name, label in (
            ("ece", "expected calibration error"),
            ("brier", "Brier score"),
            ("auroc", "AUROC of the entropy for wrong voxels"),
        )
        if name in ensemble
    ]
    tables = (
        [markdown_table(("inside the structures' box", "ensemble", "calibrated"), rows, numbers=True)] if rows else []
    )
    lines = []
    if (correlation := ensemble.get("predicted_true_dice")) is not None:
        pearson, spearman = (format_number(correlation[kind], 3) for kind in ("pearson", "spearman"))
        lines.append(f"Predicted and true Dice of the volumes: Pearson {pearson}, Spearman {spearman}.")
    if "worst_decile_auroc" in ensemble:
        auroc = format_number(ensemble["worst_decile_auroc"], 3)
        lines.append(f"Predicted Dice finds the worst tenth of the volumes with AUROC {auroc}.")
    return "\n\n".join([*tables, *lines])


def _checks(quality: Mapping[str, Any]) -> str:
    text = f"{quality['review']} of {quality['studies']} studies go to review."
    rows = [(check, count) for check, count in quality["reasons"].items()]
    return f"{text}\n\n{markdown_table(('reason', 'studies'), rows, numbers=True)}" if rows else text
