"""The results as tables: what holds and what fails, between markers of the page, and one result in full."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cgdpm_med.files import atomic_write

from .harness import OUTPUT, ROOT

MISSING = "**no reason given yet**"
MACHINES = {"amd": "AMD", "intel": "Xeon", "gpu": "H200"}  # folders of results and their headings
Results = Mapping[str, Mapping[str, Any]]


def add_render_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results", help="a folder for each machine"
    )
    parser.add_argument("--page", type=Path, default=ROOT / "benchmarks" / "README.md")


def add_show_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("result", nargs="?", type=Path, default=OUTPUT, help="a JSON file, or a folder of them")


def render(folder: Path, page: Path) -> str:
    """Fill ``<!-- holds -->`` and ``<!-- fails -->`` … ``<!-- end -->`` of the page from ``machine/name.json``.

    ``reasons.json`` beside the page says why a claim failed, by "machine/name: claim".
    """
    results = {
        path.relative_to(folder).with_suffix("").as_posix(): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*/*.json"))
        if path.parent.name != "quick" and not path.name.startswith(".")
    }
    reasons = page.with_name("reasons.json")
    told = json.loads(reasons.read_text(encoding="utf-8")) if reasons.exists() else {}
    tables = {"holds": holds(results), "fails": fails(results, told)}

    def fill(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n\n{tables[match[1]]}\n\n<!-- end -->"

    text = re.sub(r"<!-- (holds|fails) -->.*?<!-- end -->", fill, page.read_text(encoding="utf-8"), flags=re.DOTALL)
    with atomic_write(page) as file:
        file.write(text.encode())
    return text


def holds(results: Results) -> str:
    """The claims that were met, a row for each target and a column for each machine."""
    folders = [*MACHINES, *sorted({name.partition("/")[0] for name in results} - MACHINES.keys())]
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for name, claim in targets(results, passed=True):
        machine, _, benchmark = name.partition("/")
        rows.setdefault((f"`{benchmark}`", claim["name"], target(claim)), {})[machine] = number(claim)
    table = [[*row, *(cells.get(folder, "") for folder in folders)] for row, cells in sorted(rows.items())]
    return markdown(["benchmark", "what", "target", *(MACHINES.get(f, f) for f in folders)], table)


def fails(results: Results, reasons: Mapping[str, str]) -> str:
    """The claims that were missed, and why."""
    rows = []
    for name, claim in targets(results, passed=False):
        machine, _, benchmark = name.partition("/")
        why = reasons.get(f"{name}: {claim['name']}", MISSING)
        rows.append(
            [MACHINES.get(machine, machine), f"`{benchmark}`", claim["name"], target(claim), number(claim), why]
        )
    return markdown(["machine", "benchmark", "what", "target", "measured (spread)", "why"], rows)


def targets(results: Results, *, passed: bool) -> Sequence[tuple[str, Mapping[str, Any]]]:
    """The claims that have a target and met it, or did not, with the names of their results."""
    found = [(name, claim) for name, result in results.items() for claim in result["claims"]]
    return [(name, claim) for name, claim in found if claim["target"] is not None and bool(claim["passed"]) == passed]


def show(path: Path) -> str:
    """A result in full, or all those of a folder."""
    paths = sorted(path.glob("*.json")) if path.is_dir() else [path]
    return "\n\n".join(f"## {p.stem}\n\n{section(json.loads(p.read_text(encoding='utf-8')))}" for p in paths)


def section(result: Mapping[str, Any]) -> str:
    """Claims, tables and circumstances of one benchmark."""
    parts = [
        markdown(
            ["what", "measured (spread)", "target", ""],
            [[c["name"], number(c), target(c), verdict(c["passed"])] for c in result["claims"]],
        )
    ]
    for table in result["tables"]:
        parts.append(f"{table['title']}:\n\n{markdown(table['columns'], table['rows'])}")
    place = result["environment"]
    where = place["gpu"] or f"{place['processor']}, {place['threads']} thread(s)"
    versions = ", ".join(f"{name} {value}" for name, value in place["versions"].items())
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in result["settings"].items())
    parts.append(f"{where}; {versions}. Settings: {settings}. Median of {result['repeats']} alternating repeats.")
    parts += result.get("notes", [])
    return "\n\n".join(parts)


def number(claim: Mapping[str, Any]) -> str:
    """The value with its spread."""
    value = digits(claim["value"]) + claim["unit"]
    return f"{value} ({' … '.join(map(digits, claim['spread']))})" if claim["spread"] else value


def target(claim: Mapping[str, Any]) -> str:
    if claim["target"] is None:
        return ""
    return f"{'at most' if claim['at_most'] else 'at least'} {digits(claim['target'])}{claim['unit']}"


def verdict(passed: bool | None) -> str:
    return "" if passed is None else "met" if passed else "**failed**"


def digits(value: float | None) -> str:
    """Three significant digits, thousands as they are."""
    if value is None:
        return "never"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def markdown(columns: Any, rows: Any) -> str:
    """A table."""
    lines = ["| " + " | ".join(map(str, columns)) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])
