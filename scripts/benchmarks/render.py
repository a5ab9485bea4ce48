"""The JSON files as Markdown tables between markers of docs/benchmarks.md; the prose around them stays."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgdpm_med.files import atomic_write

from .harness import ROOT

MISSING = "**no reason given yet**"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks", help="folder of the JSON files")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md")


def render(folder: Path, page: Path) -> str:
    """Fill every ``<!-- name -->`` … ``<!-- end -->`` of the page from ``name.json``; ``summary`` is that of all.

    Results of another machine are those in a folder beside the others, which is named for it: ``<!-- gpu/name -->``.
    Those of quick runs are no results.

    ``reasons.json`` in the folder says why a claim failed, by "name: claim".
    """
    results = {}
    for path in [*sorted(folder.glob("*.json")), *sorted(folder.glob("*/*.json"))]:
        if path.stem != "reasons" and not path.name.startswith(".") and path.parent != folder / "quick":
            results[path.relative_to(folder).with_suffix("").as_posix()] = json.loads(path.read_text(encoding="utf-8"))
    reasons_file = folder / "reasons.json"
    reasons = json.loads(reasons_file.read_text(encoding="utf-8")) if reasons_file.exists() else {}
    text = page.read_text(encoding="utf-8")

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        if name == "summary":
            body = summary(results, reasons)
        else:
            body = section(results[name]) if name in results else "Not measured yet."
        return f"<!-- {name} -->\n\n{body}\n\n<!-- end -->"

    text = re.sub(r"<!-- ([\w/]+) -->.*?<!-- end -->", fill, text, flags=re.DOTALL)
    with atomic_write(page) as file:
        file.write(text.encode())
    return text


def summary(results: Mapping[str, Mapping[str, Any]], reasons: Mapping[str, str]) -> str:
    """All claims that have a target, and the reasons of those that failed."""
    rows, failures = [], []
    for name, result in results.items():
        for claim in result["claims"]:
            if claim["target"] is None:
                continue
            rows.append([f"`{name}`", claim["name"], number(claim), target(claim), verdict(claim["passed"])])
            if not claim["passed"]:
                key = f"{name}: {claim['name']}"
                failures.append(f"- {key}: {reasons.get(key, MISSING)}")
    table = markdown(["benchmark", "what", "measured (spread)", "target", ""], rows)
    return table + ("\n\nWhy the failed ones failed:\n\n" + "\n".join(failures) if failures else "")


def section(result: Mapping[str, Any]) -> str:
    """Claims, tables and circumstances of one sub-benchmark."""
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
