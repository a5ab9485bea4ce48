"""Fills ``eval_metrics`` of a bundle's metadata from what its evaluation measured.

python scripts/eval_metrics.py bundles/acdc_segmentation OUT/summary.json

``summary.json`` is what ``configs/evaluate.yaml`` writes, or the JSON of ``python -m benchmarks cardiac_sr``. Scores
have four digits; everything else of the file stays.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgdpm_med.files import InputError, atomic_write

ENTRY = re.compile(r'"eval_metrics": \{[^{}]*\}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("summary", type=Path)
    arguments = parser.parse_args()
    try:
        print(json.dumps(fill(arguments.bundle, arguments.summary)))
    except InputError as error:
        parser.exit(2, f"error: {error}\n")


def fill(bundle: Path, summary: Path) -> dict[str, float]:
    """Write the metrics of a summary into the bundle's metadata, and return them."""
    metrics = metrics_of(_read(summary), summary)
    path = bundle / "configs" / "metadata.json"
    text, places = ENTRY.subn(f'"eval_metrics": {json.dumps(metrics)}', path.read_text(encoding="utf-8"))
    if places != 1:
        raise InputError("has no entry eval_metrics", path=path, remedy="Add one, empty")
    with atomic_write(path) as file:
        file.write(text.encode())
    return metrics


def metrics_of(summary: Mapping[str, Any], path: Path) -> dict[str, float]:
    """Mean Dice of masks, over all and by structure, or PSNR and SSIM of pictures or refined volumes.

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
        found = {name: scores[name] for name in ("psnr", "ssim", "lpips", "dice") if scores.get(name) is not None}
    else:
        raise InputError("is no summary of an evaluation", path=path, remedy="Give the one of configs/evaluate.yaml")
    return {name: round(value, 4) for name, value in found.items()}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        remedy = "Give the summary.json of configs/evaluate.yaml"
        raise InputError("is no readable JSON file", path=path, remedy=remedy) from error


if __name__ == "__main__":
    main()
