"""A comparison of methods as tables: text, CSV, Markdown and LaTeX."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cgdpm_med.evaluation.drawn_slices import few_drawn_lines
from cgdpm_med.evaluation.files import write_left_out
from cgdpm_med.evaluation.paired_statistics import smallest_p
from cgdpm_med.files import listed
from cgdpm_med.tables.csv_files import write_csv
from cgdpm_med.tables.markdown import markdown_table
from cgdpm_med.tables.numbers import MISSING, format_number
from cgdpm_med.tables.rows import counted, write_text

_METRICS = {"dice": ("Dice %", 100.0), "hd95": ("HD95 {unit}", 1.0), "assd": ("ASSD {unit}", 1.0)}
"""Heading of each metric, and the factor from its value to what is shown."""
_COLUMNS = (
    *("structure", "metric", "first", "second", "mean_first", "mean_second", "difference", "low", "high"),
    *("p", "p_holm", "patients", "volumes", "undefined"),
)
_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_SPECIAL |= {character: f"\\{character}" for character in "&%$#_{}"}


def write_comparison(comparison: Mapping[str, Any], cases: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """``comparison.csv``, ``.md``, ``.tex`` and ``.json``; ``cases.csv``; ``left_out.csv`` where something was.

    Args:
        comparison: of :func:`~cgdpm_med.compare_methods`.
        cases: rows of ``cases.csv``: every score of every method.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "comparison.csv", [_csv_row(row) for row in comparison["rows"]])
    write_csv(folder / "cases.csv", cases)
    write_left_out(comparison, folder)
    write_text(folder / "comparison.md", comparison_markdown(comparison))
    write_text(folder / "comparison.tex", comparison_latex(comparison))
    write_text(folder / "comparison.json", json.dumps(comparison, indent=2))


def _csv_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Small p-values keep their digits."""
    precise = {name: None if row[name] is None else f"{row[name]:.6g}" for name in ("p", "p_holm")}
    return {name: row[name] for name in _COLUMNS} | precise


def comparison_cells(comparison: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of the table, as text."""
    level = 100 * comparison["settings"]["level"]
    heading = ["", "", "first", "second", "difference", f"{level:.0f} % interval", "p", "p (Holm)", "patients"]
    two = len(comparison["methods"]) == 2
    if two:
        heading[2:4] = comparison["methods"]
    else:
        heading[1:2] = ["methods", ""]
    return heading, [_cells(row, two, comparison.get("unit", "mm")) for row in comparison["rows"]]


def _cells(row: Mapping[str, Any], two: bool, unit: str) -> list[str]:
    title, factor = _METRICS[row["metric"]]
    metric = title.format(unit=unit)
    means = [format_number(row[name], 2, factor) for name in ("mean_first", "mean_second")]
    low, high = (format_number(row[name], 2, factor) for name in ("low", "high"))
    difference = MISSING if row["difference"] is None else f"{factor * row['difference']:+.2f}"
    interval = MISSING if row["low"] is None else f"{low} to {high}"
    methods = [] if two else [f"{row['first']}, {row['second']}"]
    tests = [format_p(row["p"]), format_p(row["p_holm"])]
    return [
        row["structure"],
        *methods,
        metric.format(unit=unit),
        *means,
        difference,
        interval,
        *tests,
        str(row["patients"]),
    ]


def format_p(p: float | None) -> str:
    """Three decimals; smaller ones as a bound."""
    return MISSING if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def comparison_notes(comparison: Mapping[str, Any]) -> list[str]:
    """What a reader of the table has to know: power, labels that look swapped, what was left out."""
    lines = [f"note: {name}: {hint['message']}" for name, hints in comparison["label_hints"].items() for hint in hints]
    patients, tests = comparison["patients"], comparison["tests"]
    if patients < 2:
        lines.append("note: one patient says nothing of others: there are neither intervals nor tests")
    elif (least := smallest_p(patients, tests)) > 0.05:
        what = f"with {patients} patients and {tests} tests Holm's correction leaves no p below {least:.2g}"
        lines.append(f"note: {what}: no difference, however clear, can be found at 0.05")
    if patients == comparison["cases"] > 1:
        lines.append("note: every case counts as a patient of its own; give --patient-pattern if some share one")
    lines += few_drawn_lines(comparison.get("few_drawn", {}))
    undefined = sum(row["undefined"] for row in comparison["rows"])
    if undefined:
        lines.append("note: volumes in which a method misses or invents a structure have no distances: see 'undefined'")
    left_out = comparison["left_out"]
    lines += [f"left out: case {key}: {reason}" for key, reason in left_out["cases"].items()]
    lines += [f"left out: structure {name}: {reason}" for name, reason in left_out["structures"].items()]
    if left_out["frames"]:
        count = sum(map(len, left_out["frames"].values()))
        lines.append(f"left out: {count} frames that the reference does not draw, in {listed(left_out['frames'])}")
    return lines


def comparison_caption(comparison: Mapping[str, Any]) -> str:
    """What the numbers are, in two sentences."""
    settings = comparison["settings"]
    patients, volumes = counted(comparison["patients"], "patient"), counted(comparison["cases"], "volume")
    of = f"{patients} ({volumes}, patients by {settings['patients']})"
    return (
        f"Means over {of}; difference: second less first. "
        f"Intervals: BCa bootstrap over patients, {settings['resamples']} resamples, seed {settings['seed']}; "
        "p: Wilcoxon signed-rank over patients, two-sided; "
        f"Holm over all {comparison['tests']} tests of this table."
    )


def format_comparison(comparison: Mapping[str, Any]) -> str:
    """The table as text."""
    heading, rows = comparison_cells(comparison)
    widths = [max(len(line[column]) for line in [heading, *rows]) for column in range(len(heading))]
    lines = [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in [heading, *rows]
    ]
    failed = [f"failed: {len(comparison['failed'])}"] if comparison["failed"] else []
    return "\n".join([*lines, comparison_caption(comparison), *comparison_notes(comparison), *failed])


def comparison_markdown(comparison: Mapping[str, Any]) -> str:
    """The table in Markdown, with what it is and what was left out."""
    heading, rows = comparison_cells(comparison)
    failed = [f"failed: {reason}" for reason in comparison["failed"].values()]
    remarks = "\n".join(f"- {line}" for line in [*comparison_notes(comparison), *failed])
    parts = [markdown_table(heading, rows), comparison_caption(comparison), remarks]
    return "\n\n".join(part for part in parts if part) + "\n"


def comparison_latex(comparison: Mapping[str, Any]) -> str:
    """A table for a paper (booktabs), what it is as its caption, and as comments what was left out."""
    heading, rows = comparison_cells(comparison)
    texts = len(heading) - 7  # structure, methods where they differ, metric
    lines = [" & ".join(_latex(cell) for cell in line) + r" \\" for line in [heading, *rows]]
    remarks = [f"% {line}" for line in comparison_notes(comparison)]
    head = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{'l' * texts}{'r' * 7}}}", r"\toprule"]
    foot = [r"\bottomrule", r"\end{tabular}", rf"\caption{{{_latex(comparison_caption(comparison))}}}", r"\end{table}"]
    return "\n".join([*remarks, *head, lines[0], r"\midrule", *lines[1:], *foot]) + "\n"


def _latex(text: str) -> str:
    escaped = "".join(_SPECIAL.get(character, character) for character in text)
    return escaped.replace("–", "--").replace("<", r"$<$")
