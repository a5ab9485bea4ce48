"""Fills ``eval_metrics`` of a bundle's metadata from what its evaluation measured.

python scripts/eval_metrics.py bundles/acdc_segmentation OUT/summary.json   # one bundle, from a new evaluation
python scripts/eval_metrics.py                                              # every bundle, from the file that it keeps

``summary.json`` is what ``configs/evaluate.yaml`` writes, or the JSON of ``python -m benchmarks cardiac_sr``. Its
scores and settings are kept in the bundle, as ``docs/evaluation.json``. Metrics have four digits; the rest of the
metadata stays.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgdpm_med.files import InputError, atomic_write

REPO = Path(__file__).resolve().parents[1]
KEPT = ("settings", "volumes", "average", "structures", "means", "methods")
ENTRY = re.compile(r'"eval_metrics": \{[^{}]*\}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("summary", type=Path, nargs="?")
    arguments = parser.parse_args()
    if (arguments.bundle is None) != (arguments.summary is None):
        parser.error("give a bundle and its summary, or nothing")
    try:
        if arguments.bundle is not None:
            keep(arguments.bundle, arguments.summary)
        for bundle in [arguments.bundle] if arguments.bundle else shipped():
            print(bundle.name, json.dumps(fill(bundle)))
    except InputError as error:
        parser.exit(2, f"error: {error}\n")


def shipped() -> list[Path]:
    """Bundles of this checkout that have weights, and so have scores."""
    return [path.parents[1] for path in sorted(REPO.glob("bundles/*/models/model.pt"))]


def keep(bundle: Path, summary: Path) -> None:
    """Copy what was measured, and how, into the bundle; nothing of single patients.

    Raises:
        InputError: the file is not a summary of a kind that is known.
    """
    read = _read(summary)
    metrics_of(read, summary)
    found = {"settings": read.get("settings", {}), **read.get("raw", {}).get("summary", read)}
    text = json.dumps({name: found[name] for name in KEPT if name in found}, indent=1) + "\n"
    with atomic_write(bundle / "docs" / "evaluation.json") as file:
        file.write(text.encode())


def fill(bundle: Path) -> dict[str, float]:
    """Write the metrics of the evaluation that the bundle keeps into its metadata, and return them.

    Raises:
        InputError: the bundle keeps none, or its metadata have no place for them.
    """
    kept = bundle / "docs" / "evaluation.json"
    metrics = metrics_of(_read(kept), kept)
    path = bundle / "configs" / "metadata.json"
    text, places = ENTRY.subn(f'"eval_metrics": {json.dumps(metrics)}', path.read_text(encoding="utf-8"))
    if places != 1:
        raise InputError("has no entry eval_metrics", path=path, remedy="Add one, empty")
    with atomic_write(path) as file:
        file.write(text.encode())
    return metrics


def metrics_of(summary: Mapping[str, Any], path: Path) -> dict[str, float]:
    """Mean Dice of masks in [0, 1], over all and by structure, or PSNR in dB and SSIM of pictures or refined volumes.

    Raises:
        InputError: the file is not a summary of either kind.
    """
    summary = summary.get("raw", {}).get("summary", summary)  # a benchmark keeps it there
    if "structures" in summary:
        found = {"mean_dice": summary["average"]["dice"]}
        found |= {f"mean_dice_{name.lower()}": scores["dice"] for name, scores in summary["structures"].items()}
    elif "means" in summary:
        found = {name: summary["means"]["output"][name] for name in ("psnr", "ssim")}
    elif "refined" in summary.get("methods", {}):
        scores = summary["methods"]["refined"]
        found = {name: scores[name] for name in ("psnr", "ssim", "lpips") if scores.get(name) is not None}
        if scores.get("dice") is not None:
            found["mean_dice"] = scores["dice"] / 100  # of its segmentation, in percent there
    else:
        raise InputError("is no summary of an evaluation", path=path, remedy="Give the one of configs/evaluate.yaml")
    return {name: round(value, 4) for name, value in found.items()}


def _read(path: Path) -> Any:
    remedy = "Give the summary.json of configs/evaluate.yaml: python scripts/eval_metrics.py BUNDLE SUMMARY"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("is no readable JSON file", path=path, remedy=remedy) from error


if __name__ == "__main__":
    main()
