"""Two settings on the same validation volumes: paired differences of Dice."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cgdpm_med import Segmenter, acdc_datalist
from cgdpm_med.evaluation.reference_labels import read_reference
from cgdpm_med.files import InputError
from cgdpm_med.metrics.masks import dice_per_structure
from cgdpm_med.volumes import read_volume

from .harness import Journal, console


def add_options(parser: argparse.ArgumentParser, volumes: int) -> None:
    parser.add_argument("--dataset-dir", type=Path, help="ACDC's training folder; without it Dice is left out")
    parser.add_argument("--volumes", type=int, default=volumes, help="of the 20 validation volumes, evenly chosen")
    parser.add_argument("--weights", type=Path, help="denoiser instead of the bundle's")


def paired_dice(
    settings: Mapping[str, Mapping[str, Any]], arguments: argparse.Namespace, name: str
) -> dict[str, list[dict[str, float]]]:
    """Average Dice in percent and seconds of each volume under each setting; the same command continues a stopped run.

    Args:
        settings: by name, keys of the bundle's inference configuration.
        name: of the journal.
    """
    datalist = acdc_datalist(arguments.dataset_dir, "validation")
    if not datalist:
        raise InputError("holds no validation patients", path=arguments.dataset_dir, remedy="Give ACDC's own folder")
    chosen = [datalist[int(i)] for i in np.linspace(0, len(datalist) - 1, min(arguments.volumes, len(datalist)))]
    weights = {} if arguments.weights is None else {"weights": str(arguments.weights)}
    journal = Journal(arguments.output / f".{name}.journal.json", weights)
    found: dict[str, list[dict[str, float]]] = {setting: [] for setting in settings}
    segmenters = {setting: Segmenter.from_bundle(**{**weights, **keys}) for setting, keys in settings.items()}
    for number, item in enumerate(chosen, start=1):
        for setting, segmenter in segmenters.items():
            entry = f"{item['key']} {json.dumps(settings[setting], sort_keys=True)}"
            row = journal.get(entry, partial(score, segmenter, item))
            found[setting].append(row)
            console.print(f"  {number}/{len(chosen)}  {setting}: Dice {row['dice']:.2f}, {row['seconds']:.1f} s")
    return found


def score(segmenter: Segmenter, item: Mapping[str, str]) -> dict[str, float]:
    """Dice of the fused mask, mean over the structures, and the seconds it took."""
    volume = read_volume(item["image"])
    start = time.perf_counter()
    mask = segmenter(volume, item["key"]).mask
    seconds = time.perf_counter() - start
    dice = dice_per_structure(mask, read_reference(item["label"], segmenter.labels))
    return {"dice": 100 * float(np.mean(list(dice.values()))), "seconds": seconds}


def difference(a: list[dict[str, float]], b: list[dict[str, float]]) -> tuple[float, float]:
    """Mean of a - b over the volumes in Dice points, and its standard error."""
    differences = [x["dice"] - y["dice"] for x, y in zip(a, b, strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
    return statistics.mean(differences), error
