"""A search among recipes on ACDC: each trained with one small budget, scored on validation patients, its cost told.

python scripts/recipes.py --dataset-dir DIR --output OUT --iterations 600 default mask_scale_0.3 baseline_unet

A recipe is a YAML file of overrides: configs/recipes/<name>.yaml, the bundle's configs/<name>.yaml, or a path;
"default" is the bundle as it stands. It is stacked on train.yaml, and on inference.yaml for scoring, where the network
is what the model file says; a file <name>_inference.yaml beside it takes its place there. Keys below a section that
one of the two lacks (loss#timesteps#power) reach the other alone. Without names the rows are default, every file of
configs/recipes, and baseline_unet.

Every row starts from random weights, or from --initial-weights (of one network, so recipes that change it are out).
Writes recipes.csv and recipes.md after every row. The same command continues a run that was stopped: finished rows are
kept, and a row in work goes on from its last epoch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser, ConfigWorkflow
from torch.utils.flop_counter import FlopCounterMode

from cgdpm_med import DiffusionPredictor, InputError, Segmenter, acdc_datalist, bundle_path, keep_freed_memory
from cgdpm_med.evaluation.sweep import score_setting
from cgdpm_med.models.weights import weights_digest
from cgdpm_med.tables.csv_files import write_csv
from cgdpm_med.tables.markdown import markdown_table
from cgdpm_med.tables.numbers import MISSING, format_number
from cgdpm_med.tables.rows import Row, kept_row, write_text

RECIPES = Path(__file__).resolve().parents[1] / "configs" / "recipes"
DEFAULT = "default"
SCORES = ("dice", "rv", "myo", "lv", "member_dice", "pairwise_dice", "ged", "ece", "brier", "auroc", "seconds")
# column -> heading and digits
COLUMNS = {
    "dice": ("Dice %", 2),
    "rv": ("RV", 2),
    "myo": ("Myo", 2),
    "lv": ("LV", 2),
    "member_dice": ("member Dice %", 2),
    "ece": ("ECE", 4),
    "brier": ("Brier", 4),
    "auroc": ("AUROC", 3),
    "seconds": ("s a volume", 1),
    "seconds_per_step": ("s a training step", 3),
    "parameters": ("parameters", 0),
    "gflops": ("GFLOPs", 1),
}


@dataclass(frozen=True)
class Recipe:
    """Overrides of the bundle's training and of its inference, and what they are about in a line."""

    name: str
    about: str
    training: Mapping[str, Any]
    inference: Mapping[str, Any]


def main() -> None:
    arguments = parse_arguments()
    keep_freed_memory()
    results: dict[str, list[Row]] = {}
    recipes = [read_recipe(name, arguments.bundle) for name in arguments.recipes]  # all, before the first long part
    for seed in arguments.seeds:
        for recipe in recipes:
            print(f"== {recipe.name}, seed {seed}", flush=True)
            work = Work(recipe, seed, arguments)
            row = kept_row(work.folder, work.made_with(), work)
            results.setdefault(recipe.name, []).append({"about": recipe.about, "seed": seed, **row})
            write_tables(results, arguments)
    print((arguments.output / "recipes.md").read_text(encoding="utf-8"))


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="names or files; all, by default")
    parser.add_argument("--dataset-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=600, help="training steps of each row")
    parser.add_argument("--epoch", type=int, default=50, help="training steps between checkpoints")
    parser.add_argument("--every", type=int, default=1, help="score every n-th validation volume only")
    parser.add_argument("--members", type=int, default=4, help="unless the recipe says")
    parser.add_argument("--steps", type=int, default=4, help="of the sampler, unless the recipe says")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--initial-weights", type=Path, help="where every row starts; random by default")
    parser.add_argument("--settings", type=Path, nargs="*", default=[], help="overrides common to all rows")
    parser.add_argument("--bundle", default="acdc_segmentation")
    arguments = parser.parse_args(words)
    if arguments.iterations % arguments.epoch:
        parser.error(f"--iterations {arguments.iterations} is not a multiple of --epoch {arguments.epoch}")
    if not arguments.recipes:
        files = sorted(path for path in RECIPES.glob("*.yaml") if not path.stem.endswith("_inference"))
        arguments.recipes = [DEFAULT, *(path.stem for path in files), "baseline_unet"]
    return arguments


# --- recipes ----------------------------------------------------------------------------------------------------------


def read_recipe(name: str, bundle: str = "acdc_segmentation") -> Recipe:
    """The overrides of one name, shared out between training and inference.

    Raises:
        InputError: when there is no such file, or one of its keys would have no effect.
    """
    if name == DEFAULT:
        return Recipe(DEFAULT, "the bundle as it stands", {}, {})
    path = find_recipe(name, bundle)
    beside = path.with_name(f"{path.stem}_inference.yaml")
    training, inference = (base_config(bundle, stage) for stage in ("train", "inference"))
    for_training = ConfigParser.load_config_file(path) or {}
    for_inference = (ConfigParser.load_config_file(beside) or {}) if beside.exists() else for_training
    for file, overrides in ((path, for_training), (beside, for_inference)):
        check_keys(file, overrides, training.keys() | inference.keys())
    first = path.read_text(encoding="utf-8").splitlines()[0]
    return Recipe(
        name=path.stem,
        about=first.lstrip("# ").rstrip(".") if first.startswith("#") else "",
        training=reaching(for_training, training),
        inference=reaching(for_inference, inference),
    )


def find_recipe(name: str, bundle: str) -> Path:
    places = [Path(name), RECIPES / f"{name}.yaml", bundle_path(bundle) / "configs" / f"{name}.yaml"]
    for path in places:
        if path.is_file():
            return path
    raise InputError(f"there is no recipe {name!r}", remedy=f"Give a file, or add {RECIPES.name}/{name}.yaml")


def base_config(bundle: str, stage: str) -> dict[str, Any]:
    config: dict[str, Any] = ConfigParser.load_config_file(bundle_path(bundle) / "configs" / f"{stage}.yaml")
    return config


def section_of(key: str) -> str:
    """The top-level key that an override reaches into."""
    return re.split("#|::", key)[0]


def check_keys(path: Path, overrides: Mapping[str, Any], known: Any) -> None:
    """Raises InputError for a key that nothing reads: neither the bundle's own configurations nor the recipe."""
    text = json.dumps(overrides)
    for key in overrides:
        section = section_of(key)
        if section not in known and f"@{section}" not in text:
            raise InputError(f"sets {section!r}, which nothing reads", path=path, remedy="Correct the name")


def reaching(overrides: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides without those below a section that the configuration lacks."""
    sections = config.keys() | {key for key in overrides if section_of(key) == key}
    return {key: value for key, value in overrides.items() if section_of(key) in sections}


# --- one row ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """Makes one row: trains, then scores."""

    recipe: Recipe
    seed: int
    arguments: argparse.Namespace

    def __call__(self) -> Row:
        training = self.train()
        flow = self.workflow(
            "inference",
            {"members": self.arguments.members, "steps": self.arguments.steps, "seed": self.seed},
            self.recipe.inference,
            {"weights": str(self.folder / "model_last.pt")},  # the last: no weights are chosen by their score
        )
        segmenter: Segmenter = flow.parser.get_parsed_content("segmenter")
        model = flow.parser.get_parsed_content("model")
        datalist = self.datalist()
        return {
            **score_setting(segmenter, datalist),
            **training,
            "parameters": sum(p.numel() for p in model.network.parameters()),
            "gflops": gflops(segmenter, len(model.input.channels), model.input.field),
            "volumes": len(datalist),
            "device": str(segmenter.device),
        }

    @property
    def folder(self) -> Path:
        """What this row writes lies here."""
        folder: Path = self.arguments.output / f"seed{self.seed}" / self.recipe.name
        return folder

    def made_with(self) -> dict[str, Any]:
        """What the row depends on; the configurations by a digest of what they say."""
        arguments = self.arguments
        configs = [base_config(arguments.bundle, stage) for stage in ("train", "inference")]
        configs += [ConfigParser.load_config_file(path) for path in arguments.settings]
        return {
            "training": self.recipe.training,
            "inference": self.recipe.inference,
            "configs": hashlib.sha256(json.dumps(configs, sort_keys=True).encode()).hexdigest()[:16],
            "dataset": arguments.dataset_dir.name,
            "initial_weights": weights_digest(arguments.initial_weights) if arguments.initial_weights else None,
            **{name: getattr(arguments, name) for name in ("iterations", "epoch", "every", "members", "steps")},
            "seed": self.seed,
        }

    def datalist(self) -> list[dict[str, str]]:
        return acdc_datalist(self.arguments.dataset_dir, "validation")[:: self.arguments.every]

    def train(self) -> Row:
        """Train to the end, or go on; what it cost is kept beside the checkpoint."""
        file = self.folder / "training.json"
        if file.exists():
            known: Row = json.loads(file.read_text(encoding="utf-8"))
            return known
        epochs = self.arguments.iterations // self.arguments.epoch
        flow = self.workflow(
            "train",
            {},
            self.recipe.training,
            {
                "output_dir": str(self.folder),
                "seed": self.seed,
                "epochs": epochs,
                "val_interval": epochs,  # the last epoch writes the weights
                "train#sampler#max_batches": self.arguments.epoch,
                "validate#dataset#data": self.datalist(),
            },
            self.start(),
        )
        length = len(flow.parser.get_parsed_content("train#dataloader"))
        if length != self.arguments.epoch:
            what = f"one pass over the training slices has {length} steps, fewer than --epoch {self.arguments.epoch}"
            raise InputError(what, remedy=f"Give --epoch {length} or less")
        trainer = flow.parser.get_parsed_content("train#trainer")
        seconds: list[float] = []

        def note(engine: Engine) -> None:
            seconds.append(engine.state.times[Events.EPOCH_COMPLETED.name])  # the steps alone, without validation

        trainer.add_event_handler(Events.EPOCH_COMPLETED, note)
        flow.run()
        spent = statistics.fmean(seconds) / self.arguments.epoch if seconds else None
        cost = {"iterations": trainer.state.iteration, "seconds_per_step": spent}
        write_text(file, json.dumps(cost, indent=2))
        return cost

    def start(self) -> dict[str, str]:
        """The override that has the network begin at given weights."""
        if self.arguments.initial_weights is None:
            return {}
        weights = str(self.arguments.initial_weights.resolve())
        place = "to(@device, memory_format=torch.channels_last)"
        return {"network": f"$cgdpm_med.load_weights(@network_def, {weights!r}).{place}"}

    def workflow(self, stage: str, *overrides: Mapping[str, Any]) -> ConfigWorkflow:
        root = bundle_path(self.arguments.bundle)
        files = [root / "configs" / f"{stage}.yaml", *self.arguments.settings]
        merged: dict[str, Any] = {"bundle_root": str(root), "dataset_dir": str(self.arguments.dataset_dir)}
        for more in overrides:
            merged |= more
        flow = ConfigWorkflow(
            [str(file) for file in files],
            str(root / "configs" / "metadata.json"),
            logging_file=False,
            workflow_type="train" if stage == "train" else "infer",
            **merged,
        )
        flow.initialize()
        return flow


@torch.no_grad()
def gflops(segmenter: Segmenter, channels: int, field: int) -> float:
    """Of one evaluation of the network on a slice of ``field`` x ``field``, its condition included."""
    predictor, device = segmenter.predictor, segmenter.device
    assert isinstance(predictor, DiffusionPredictor)
    image = torch.zeros(1, channels, field, field, device=device)
    x_t = torch.zeros(1, predictor.out_channels, field, field, device=device)
    t = torch.zeros(1, dtype=torch.int64, device=device)
    with FlopCounterMode(display=False) as counter:
        predictor.denoiser.eval()(x_t, t, image)
    return counter.get_total_flops() / 1e9


# --- results ----------------------------------------------------------------------------------------------------------


def write_tables(results: Mapping[str, Sequence[Row]], arguments: argparse.Namespace) -> None:
    """recipes.csv with a row for each recipe and seed, recipes.md with means over seeds."""
    columns = [*SCORES, *(name for name in COLUMNS if name not in SCORES), "iterations", "volumes", "device"]
    rows = [
        {"recipe": name, "seed": run["seed"], **{column: run[column] for column in columns}}
        for name, runs in results.items()
        for run in runs
    ]
    write_csv(arguments.output / "recipes.csv", rows)
    write_text(arguments.output / "recipes.md", table(results, arguments))


def table(results: Mapping[str, Sequence[Row]], arguments: argparse.Namespace) -> str:
    """Markdown: what each recipe gave and what it cost."""
    heading = ["recipe", "", *(name for name, _ in COLUMNS.values())]
    rows = [
        [name, runs[0]["about"], *(mean(runs, column, digits) for column, (_, digits) in COLUMNS.items())]
        for name, runs in results.items()
    ]
    first = next(iter(results.values()))[0]
    weights = arguments.initial_weights
    start = "" if weights is None else f" from given weights (sha256 {weights_digest(weights)[:16]})"
    return "\n".join(
        [
            markdown_table(heading, rows),
            "",
            f"{arguments.iterations} training steps a row{start}, {first['volumes']} volumes of the validation "
            f"patients, {arguments.members} members and {arguments.steps} steps unless the recipe says otherwise, "
            f"seeds {', '.join(str(seed) for seed in arguments.seeds)}, {first['device']}. The averaged weights of the "
            "end are scored. GFLOPs: one evaluation of the network on a slice.",
            "",
        ]
    )


def mean(runs: Sequence[Row], column: str, digits: int) -> str:
    """Mean over seeds, with their standard deviation where there are several."""
    values = [run[column] for run in runs if run[column] is not None]
    if not values:
        return MISSING
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(set(values)) > 1 else ""
    return f"{format_number(statistics.fmean(values), digits)}{deviation}"


if __name__ == "__main__":
    main()
