"""The table of an evaluation: as files, and as text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cgdpm_med.evaluation.case import CaseResult, ensemble_names
from cgdpm_med.evaluation.drawn_slices import few_drawn_lines
from cgdpm_med.files import listed
from cgdpm_med.inference.labels import DEFAULT_LABELS
from cgdpm_med.studies.task import known_measures
from cgdpm_med.tables.csv_files import csv_text, write_csv
from cgdpm_med.tables.numbers import format_number
from cgdpm_med.tables.rows import write_text

METRICS = ("dice", "hd95", "assd")


def write_results(
    results: Sequence[CaseResult],
    summary: Mapping[str, Any],
    folder: Path,
    names: Mapping[int, str] = DEFAULT_LABELS.by_number,
) -> None:
    """``cases.csv``, a row per case with an empty field for a missing value, ``summary.json``, and ``left_out.csv``.

    The last is there where something was left out: a row for each file, frame and structure, with the reason.

    Args:
        names: of the structures by number; those that no reference holds have no columns.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = {number: name for number, name in names.items() if name in summary["structures"]}
    write_csv(folder / "cases.csv", _case_rows(results, shown))
    write_left_out(summary, folder)
    write_text(folder / "summary.json", json.dumps(summary, indent=2))


def write_left_out(summary: Mapping[str, Any], folder: Path) -> None:
    """``left_out.csv`` of a summary; one of an earlier run goes where nothing is left out."""
    rows = left_out_rows(summary)
    if rows:
        write_text(folder / "left_out.csv", csv_text(("what", "name", "reason"), rows))
    else:
        (folder / "left_out.csv").unlink(missing_ok=True)


def _case_rows(results: Sequence[CaseResult], names: Mapping[int, str]) -> list[dict[str, Any]]:
    of_ensembles = ensemble_names(results)
    return [
        {
            "case": result.score.key,
            "phase": result.score.phase,
            "group": result.score.group,
            **{f"{metric}_{name}": v for metric in METRICS for name, v in _by_name(result, metric, names).items()},
            **{name: result.ensemble.get(name) for name in of_ensembles},
        }
        for result in results
    ]


def _by_name(result: CaseResult, metric: str, names: Mapping[int, str]) -> dict[str, float | None]:
    scores = getattr(result.score, metric)
    return {name: scores[number] for number, name in names.items()}


# --- what was left out ------------------------------------------------------------------------------------------------


def left_out_rows(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """All that was left out: "file", "case", "frame", "structure" or "ensemble", its name, and the reason."""
    left_out = summary.get("left_out", {})
    rows = [("file", key, reason) for key, reason in summary["failed"].items()]
    rows += [("case", key, reason) for key, reason in left_out.get("cases", {}).items()]
    for key, numbers in left_out.get("frames", {}).items():
        rows += [("frame", f"{key}/frame{number:03d}", "not drawn in the reference") for number in numbers]
    rows += [("structure", name, reason) for name, reason in left_out.get("structures", {}).items()]
    rows += [("structure", name, absence(invented)) for name, invented in summary.get("absent", {}).items()]
    return rows + [("ensemble", key, reason) for key, reason in left_out.get("ensembles", {}).items()]


def absence(invented: int) -> str:
    """Why a structure that no reference holds is left out."""
    return "no reference holds it" + (f"; predictions do in {_volumes(invented)}" if invented else "")


def notes(summary: Mapping[str, Any]) -> list[str]:
    """What a reader of the table has to know: labels that look swapped, and what was left out, failed files apart."""
    left_out = summary.get("left_out", {})
    lines = [f"note: {hint['message']}" for hint in summary.get("label_hints", [])]
    lines += few_drawn_lines(summary.get("few_drawn", {}))
    undrawn = {key: len(numbers) for key, numbers in left_out.get("frames", {}).items()}
    if undrawn:
        what = f"{sum(undrawn.values())} frames that the reference does not draw, in {listed(undrawn)}"
        lines.append(f"left out: {what}")
    rows = [row for row in left_out_rows(summary) if row[0] in ("structure", "ensemble")]
    return lines + [f"left out: {what} {name}: {reason}" for what, name, reason in rows]


def _volumes(count: int) -> str:
    return f"{count} volume{'' if count == 1 else 's'}"


# --- as text ----------------------------------------------------------------------------------------------------------


def format_summary(summary: Mapping[str, Any]) -> str:
    """The table as text: structures in rows, then what was missed or failed, the ensemble's values and the settings."""
    width = max(8, *(len(name) + 1 for name in summary["structures"]))
    distances = [f"{name} {summary.get('unit', 'mm')}" for name in ("HD95", "ASSD")]
    lines = [f"{'':{width}}{'Dice %':>8}{distances[0]:>9}{distances[1]:>9}{'missed':>8}{'invented':>10}"]
    for name, s in summary["structures"].items():
        lines.append(_distance_row(name, s, width) + f"{s['missed']:>8}{s['invented']:>10}")
    lines.append(_distance_row("average", summary["average"], width))
    lines.append(f"volumes {summary['volumes']}, failed {len(summary['failed'])}")
    lines += [
        f"{phase}: average Dice {format_number(part['average']['dice'], 2, 100)}" for phase, part in _parts(summary)
    ]
    ensemble = {name: value for name, value in summary["ensemble"].items() if isinstance(value, float)}
    lines.append(", ".join(f"{name} {value:.4f}" for name, value in ensemble.items()))
    lines += format_function(summary.get("function"))
    lines += [f"labels of the {side}: {labels}" for side, labels in summary.get("labels", {}).items()]
    lines += notes(summary)
    lines.append(", ".join(f"{name} {value}" for name, value in summary.get("settings", {}).items()))
    return "\n".join(line for line in lines if line)


def format_function(function: Mapping[str, Any] | None) -> list[str]:
    """Lines of text: for each measure the error, and the coverage of its intervals, calibrated where they are."""
    if function is None:
        return []
    lines = [
        f"function of {function['patients']} patients, error: mean, standard deviation, correlation; 90 % intervals"
    ]
    definitions = known_measures()
    for name, s in function["measures"].items():
        measure = definitions[name]
        error, deviation, correlation = (format_number(s[k]) for k in ("error_mean", "error_sd", "correlation"))
        line = f"{f'{measure.title}, {measure.unit}':34}{error:>8}{deviation:>8}{correlation:>7}"
        for kind, scores in (("", s), ("calibrated ", (function["calibrated"] or {}).get(name))):
            if scores is not None and scores["coverage"] is not None:
                line += f"   {kind}cover {100 * scores['coverage']:.0f} %, length {scores['width']:.1f}"
        lines.append(line)
    return lines


def _parts(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [*summary["by_phase"].items(), *summary["by_group"].items()]


def _distance_row(name: str, values: Mapping[str, float | None], width: int) -> str:
    dice = format_number(values["dice"], 2, 100)
    hd95, assd = (format_number(values[metric]) for metric in ("hd95", "assd"))
    return f"{name:{width}}{dice:>8}{hd95:>9}{assd:>9}"
