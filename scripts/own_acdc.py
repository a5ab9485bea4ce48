"""ACDC as an nnU-Net raw data set: what ``cgdpm-med train`` plans and reaches, beside the recipe made by hand for it.

python scripts/own_acdc.py ACDC FOLDER [--patients 100] [--iterations 0] [--members 2] [--seed 0]
    [--widths 64,96,160,192] [--batch 16] [--set NAME=VALUE]

Prints each choice of ``bundles/acdc_segmentation/configs/train.yaml`` beside the plan's, as a GPU would have it. With
iterations both are trained that long from random weights, on the same patients, and the validation patients' volumes
are scored on their own pixels. Both get the warm-up and the averaging of weights that the plan has for so short a run:
those of the recipe are for 2000 steps. Narrower networks and smaller batches, for both, make a CPU's minutes count.
With --set, a choice of the plan such as dimensions=3, the plan alone is trained: the recipe knows no such choice.
FOLDER holds the data set, which links to ACDC's files, and both runs, made by one process each.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from monai.bundle import ConfigParser

from cgdpm_med import Segmenter, acdc_datalist, read_volume
from cgdpm_med.apps.evaluate_slices import evaluate_part
from cgdpm_med.apps.segment_slices import load_segmenter
from cgdpm_med.apps.train import Planned, Wishes, write_run
from cgdpm_med.apps.train_stages import train_denoiser
from cgdpm_med.datasets.choices import make_plan
from cgdpm_med.datasets.dataset import DataSet
from cgdpm_med.datasets.fingerprint import Fingerprint, fingerprint
from cgdpm_med.datasets.folders import read_dataset
from cgdpm_med.datasets.plan import Plan, parse_settings, plan_page
from cgdpm_med.datasets.split import make_split
from cgdpm_med.metrics.masks import dice_per_structure

BUNDLE = Path(__file__).parents[1] / "bundles" / "acdc_segmentation"
LABELS = ("RV", "Myo", "LV")
CPU = "$torch.device('cpu')"
BATCHES = 25
"""Between two of the recipe's reports; a run is a multiple of it."""
PATIENT = r"^(patient\d+)"


def link_raw(acdc: Path, folder: Path, patients: int) -> Path:
    """ACDC's volumes under the names that nnU-Net gives them; every so many patients, evenly spread."""
    items = acdc_datalist(acdc, "all")
    names = sorted({item["patient"] for item in items})
    chosen = {names[int(n)] for n in np.linspace(0, len(names) - 1, min(patients, len(names)))}
    kept = [item for item in items if item["patient"] in chosen]
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for item in kept:
        link(folder / "imagesTr" / f"{item['key']}_0000.nii.gz", Path(item["image"]))
        link(folder / "labelsTr" / f"{item['key']}.nii.gz", Path(item["label"]))
    content = {
        "channel_names": {"0": "cine MR"},
        "labels": {name: n for n, name in enumerate(("background", *LABELS))},
        "numTraining": len(kept),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def link(place: Path, file: Path) -> None:
    """A symbolic link, made once."""
    if not place.is_symlink():
        place.symlink_to(file.resolve())


# --- choices ----------------------------------------------------------------------------------------------------------


def by_hand() -> dict[str, Any]:
    """The recipe's values under the plan's names."""
    recipe = yaml.safe_load((BUNDLE / "configs" / "train.yaml").read_text(encoding="utf-8"))
    crop = (recipe["crop"],) * 2
    return {
        "spacing": recipe["spacing"],
        "crop": crop,
        "crop in mm": tuple(round(n * recipe["spacing"]) for n in crop),
        "field": (recipe["field"],) * 2,
        "widths": tuple(recipe["channels"]),
        "patch_size": recipe["network_def"]["patch_size"],
        "neighbours": recipe["neighbours"],
        "intensity": "percentiles",
        "scale": recipe["target"]["scale"],
        "batch_size": recipe["batch_size"],
        "learning_rate": recipe["learning_rate"],
    }


def planned_values(plan: Plan) -> dict[str, Any]:
    """The same of a plan; the recipe's field is what its network is shown of an image."""
    values = {name: getattr(plan, name) for name in by_hand() if name != "crop in mm"}
    return {
        **values,
        "field": plan.region or plan.field,
        "crop in mm": tuple(round(n * plan.spacing) for n in plan.crop),
    }


def apart(one: Any, other: Any) -> float:
    """Largest relative difference of two values; 1 for words that differ."""
    if isinstance(one, str):
        return float(one != other)
    a, b = np.atleast_1d(one), np.atleast_1d(other)
    return 1.0 if a.shape != b.shape else float(np.max(np.abs(b - a) / np.maximum(np.abs(a), 1e-9)))


def choices_table(hand: Mapping[str, Any], planned: Mapping[str, Any], reasons: Mapping[str, str]) -> str:
    """Markdown."""
    rows = [
        f"| {name} | {value} | {planned[name]} | {100 * apart(value, planned[name]):.0f} % | {reasons.get(name, '')} |"
        for name, value in hand.items()
    ]
    return "\n".join(
        ["| choice | by hand | planned | apart | the plan's reason |", "| --- | --- | --- | --- | --- |", *rows]
    )


# --- trainings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """Of both trainings."""

    iterations: int
    members: int
    widths: tuple[int, ...]
    batch: int
    seed: int
    choices: tuple[str, ...] = ()

    @property
    def settings(self) -> list[str]:
        """Of a plan; validated once, at the end."""
        numbers = {"iterations": self.iterations, "epoch": BATCHES, "validate_every": self.iterations // BATCHES}
        sizes = {"members": self.members, "batch_size": self.batch, "widths": ",".join(map(str, self.widths))}
        return [*(f"{name}={value}" for name, value in (numbers | sizes).items()), *self.choices]

    @property
    def changes(self) -> dict[str, Any]:
        """Of the recipe; averaging and warm-up as the plan's template has them."""
        return {
            "epochs": self.iterations // BATCHES,
            "val_interval": self.iterations // BATCHES,
            "train#sampler#max_batches": BATCHES,
            "channels": list(self.widths),
            "batch_size": self.batch,
            "seed": self.seed,
            "ema_momentum": min(0.5, max(0.002, 10 / self.iterations)),
            "lr_scheduler#warmup": max(1, self.iterations // 10),
        }


Scores = tuple[dict[str, float], float]
"""Dice by structure, and the seconds that a CPU trained."""


def score_by_hand(acdc: Path, folder: Path, split: Path, size: Size) -> Scores:
    """The recipe as it is, on a split, for so many steps."""
    begin = time.process_time()
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "train.yaml"))
    places = {"bundle_root": BUNDLE, "dataset_dir": acdc, "split": split, "output_dir": folder}
    given = {name: str(place) for name, place in places.items()} | {"device": CPU}
    for name, value in (given | size.changes).items():
        parser[name] = value
    parser.parse()
    for step in ("initialize", "run"):
        parser.get_parsed_content(step)
    seconds = time.process_time() - begin
    return dice_by_hand(folder / "model.pt", acdc_datalist(acdc, "validation", split=split), size.members), seconds


def dice_by_hand(weights: Path, items: Sequence[Mapping[str, str]], members: int) -> dict[str, float]:
    """Mean over volumes of each structure's Dice, on the volumes' own pixels."""
    segmenter = Segmenter.from_bundle(BUNDLE, weights=str(weights), members=members, device=CPU)
    found = [
        dice_per_structure(segmenter(read_volume(item["image"]), item["key"]).mask, read_volume(item["label"]).data)
        for item in items
    ]
    return {name: float(np.mean([each[n] for each in found])) for n, name in enumerate(LABELS, start=1)}


def score_planned(source: Path, run: Path, members: int) -> Scores:
    """The run that was written."""
    begin = time.process_time()
    train_denoiser(source, run, torch.device("cpu"))
    seconds = time.process_time() - begin
    segmenter = load_segmenter(run, device=CPU)
    return evaluate_part(segmenter, run, source, "validation", run / "evaluation")["dice"], seconds


def write_planned(dataset: DataSet, seen: Fingerprint, folder: Path, size: Size) -> Planned:
    """The run of the plan that a GPU would have."""
    parts = make_split(dataset, seed=size.seed, folds=4, fold=0)
    plan = make_plan(seen, given=parse_settings(size.settings), large=True, memory=1e11)
    planned = Planned(dataset, seen, plan, parts, plan_page(seen, plan, parts, dataset.name))
    write_run(planned, folder, dataset.root, Wishes(settings=size.settings, patients=PATIENT, seed=size.seed))
    return planned


def compare(acdc: Path, folder: Path, dataset: DataSet, seen: Fingerprint, size: Size) -> Iterator[str]:
    """Train both at once, or the plan alone where it has choices of its own, and score them."""
    run = folder / "run"
    parts = write_planned(dataset, seen, run, size).parts
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        trained = {"planned": pool.submit(score_planned, dataset.root, run, size.members)}
        if not size.choices:
            by_hand = (acdc, folder / "by_hand", run / "models" / "split.json", size)
            trained = {"by hand": pool.submit(score_by_hand, *by_hand), **trained}
    counts = f"{len(parts['train'])} patients trained, {len(parts['validation'])} validate"
    made = ", ".join((f"batch {size.batch}", f"widths {size.widths}", f"{size.members} members", *size.choices))
    yield f"{counts}; {size.iterations} steps, {made}"
    for name, (dice, seconds) in ((name, future.result()) for name, future in trained.items()):
        words = ", ".join(f"{label} {dice[label]:.3f}" for label in LABELS)
        yield f"{name}: validation Dice {np.mean(list(dice.values())):.3f} ({words}), {seconds:.0f} s of a CPU"


def main(words: Sequence[str] | None = None) -> int:
    given = parsed(words)
    dataset = read_dataset(link_raw(given.acdc, given.folder / "raw", given.patients)).grouped(PATIENT)
    seen = fingerprint(dataset)
    if not given.set:
        plan = make_plan(seen, large=True, memory=1e11)
        reasons = {**plan.reasons, "field": plan.reasons["region" if plan.region else "field"]}
        print(choices_table(by_hand(), planned_values(plan), reasons), flush=True)
    widths = tuple(map(int, given.widths.split(",")))
    size = Size(given.iterations, given.members, widths, given.batch, given.seed, tuple(given.set))
    for line in compare(given.acdc, given.folder, dataset, seen, size) if given.iterations else ():
        print(line, flush=True)
    return 0


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("acdc", type=Path, help="folder in ACDC's layout")
    parser.add_argument("folder", type=Path, help="new folder")
    parser.add_argument("--patients", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=0, help=f"a multiple of {BATCHES}; 0 plans only")
    parser.add_argument("--members", type=int, default=2)
    parser.add_argument("--widths", default="64,96,160,192")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a choice of the plan")
    return parser.parse_args(words)


if __name__ == "__main__":
    raise SystemExit(main())
