"""From a folder of data to a trained ensemble: look, plan, write a bundle, train, score."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from cgdpm_med import __version__
from cgdpm_med.apps.hours import Hours, plan_for_hours
from cgdpm_med.apps.train_stages import WEIGHTS, run_stages
from cgdpm_med.datasets.choices import make_plan
from cgdpm_med.datasets.dataset import DataSet, Example, check_number, stem
from cgdpm_med.datasets.fingerprint import Fingerprint, fingerprint
from cgdpm_med.datasets.folders import read_dataset
from cgdpm_med.datasets.json_files import read_json
from cgdpm_med.datasets.loading import load_example
from cgdpm_med.datasets.plan import Plan, parse_settings, plan_page, read_plan, write_plan
from cgdpm_med.datasets.rehearsal import templates_of
from cgdpm_med.datasets.run import PLAN, SPLIT, TASK, Run, planned_input
from cgdpm_med.datasets.split import make_split, of_part
from cgdpm_med.files import InputError, atomic_write, check_place
from cgdpm_med.inference.segmenter import choose_device
from cgdpm_med.runtime.free_memory import free_memory
from cgdpm_med.studies.mask_pairs import base_name

CONFIGS = ("train.yaml", "train_guidance.yaml", "inference.yaml", "evaluate.yaml")
GUIDANCE_SHARE = 0.2
"""Steps of the guidance network by steps of the denoiser, as in the shipped bundle (384 of about 2100)."""
GUIDANCE_COST = 0.35
"""What they take of the denoiser's time: a step of theirs walks the frozen chain, too. An estimate."""
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wishes:
    """What a user decides.

    Attributes:
        hours, iterations: how long to train, in one of the two; 5000 iterations without either.
        settings: ``NAME=VALUE`` of the plan.
        patients: pattern that finds the patient in an image's name.
        folds, fold: of cross-validation.
        seed: of the split and the training.
        guidance: train a guidance network after the denoiser.
    """

    hours: float | None = None
    iterations: int | None = None
    settings: Sequence[str] = ()
    patients: str | None = None
    folds: int | None = None
    fold: int | None = None
    seed: int | None = None
    guidance: bool = False

    @property
    def none(self) -> bool:
        """Whether nothing is decided."""
        return not self.settings and self == Wishes(settings=self.settings)


@dataclass(frozen=True)
class Planned:
    """What ``plan`` finds and chooses."""

    dataset: DataSet
    seen: Fingerprint
    plan: Plan
    parts: Mapping[str, tuple[str, ...]]
    page: str = field(repr=False)


def plan_dataset(
    source: str | Path, wishes: Wishes | None = None, *, device: str = "auto", say: Say = lambda text: None
) -> Planned:
    """Read a data set once, and choose how to train on it.

    Raises:
        InputError: for a data set that cannot be used, or wishes that cannot be fulfilled.
    """
    wishes = wishes or Wishes()
    if wishes.hours is not None and wishes.iterations is not None:
        raise InputError("both hours and iterations are given", remedy="Give --hours or --iterations")
    if wishes.fold is not None and wishes.folds is None:
        raise InputError(f"fold {wishes.fold} is given, and not of how many", remedy="Give --folds, too")
    given = parse_settings(wishes.settings)
    if "iterations" in given and (wishes.hours is not None or wishes.iterations is not None):
        other = "--iterations" if wishes.hours is None else "--hours"
        what = f"both --set iterations={given['iterations']} and {other} are given"
        raise InputError(what, remedy=f"Give {other} alone, or --set iterations alone")
    place = choose_device(device)
    dataset = read_dataset(source)
    if wishes.patients:
        dataset = dataset.grouped(wishes.patients)
        check_number(dataset)
    parts = make_split(dataset, seed=wishes.seed or 0, folds=wishes.folds, fold=wishes.fold or 0)
    begin = time.perf_counter()
    seen = fingerprint(dataset)
    _check_marked(dataset, parts, seen.present)
    reading = time.perf_counter() - begin
    how: dict[str, Any] = {"given": given, "memory": 0.8 * free_memory(place), "large": place.type == "cuda"}
    make = partial(make_plan, seen, **how)
    if wishes.hours is not None:
        step_cost = 1 + GUIDANCE_COST if wishes.guidance else 1.0
        plan = plan_for_hours(Hours(wishes.hours, begin, reading), make, seen, parts, place, say, step_cost=step_cost)
    else:
        plan = make(iterations=wishes.iterations or 5000)
    return Planned(dataset, seen, plan, parts, plan_page(seen, plan, parts, dataset.name))


def _check_marked(dataset: DataSet, parts: Mapping[str, tuple[str, ...]], present: Sequence[int]) -> None:
    """Raise InputError where no structure is marked in a part that is needed, or one is never trained on.

    Args:
        present: examples in which each class is.
    """
    other = "give another split" if all(each.part for each in dataset.labelled) else "give another --seed"
    there: dict[str, set[int]] = {}
    for part in ("train", "validation"):
        loaded = (load_example(dataset, example).label for example in of_part(dataset, parts, part))
        there[part] = {int(n) for label in loaded if label is not None for n in np.unique(label)} - {0}
        if not there[part]:
            remedy = f"Add patients with marked structures, or {other}"
            raise InputError(f"has only empty label maps in its {part} part", path=dataset.root, remedy=remedy)
    for number, name in enumerate(dataset.labels, start=1):
        if number not in there["train"]:
            what = f"has no {name} in any label map of its train part"
            way = other if present[number - 1] else "take the name out of the labels"
            raise InputError(what, path=dataset.root, remedy=f"Add patients who have it, or {way}")


def patients_by_name(examples: Sequence[Example]) -> dict[str, str]:
    """Whose image bears a name: by key, by the names of files, and by those that their masks get.

    The name of two patients' files is left out; a key belongs to one.
    """
    named: dict[str, set[str]] = {}
    for example in examples:
        for file in (*example.images, *([example.label] if example.label else [])):
            for name in (stem(file), base_name(file)):
                named.setdefault(name, set()).add(example.patient)
    alone = {name: next(iter(patients)) for name, patients in sorted(named.items()) if len(patients) == 1}
    return alone | {example.key: example.patient for example in examples}


# --- the bundle -------------------------------------------------------------------------------------------------------


def write_run(planned: Planned, run: Path, source: Path, wishes: Wishes) -> None:
    """The folder of a run as a MONAI bundle, the plan last: a folder without it is begun anew."""
    (run / "logs").mkdir(parents=True, exist_ok=True)
    templates = resources.files("cgdpm_med") / "datasets" / "templates"
    for name in CONFIGS:
        text = "".join((templates / part).read_text(encoding="utf-8") for part in templates_of(planned.plan, name))
        if name == "train.yaml":
            text = text.replace("dataset_dir: ./data\n", f"dataset_dir: {_place_of(source, run)}\n")
            text = text.replace("\nseed: 0\n", f"\nseed: {wishes.seed or 0}\n")
        if name == "inference.yaml":
            text = sampled_as(planned.plan, text)
        _write(run / "configs" / name, text)
    _write_json(run / "configs" / "metadata.json", metadata(planned))
    _write_json(run / SPLIT, {**planned.parts, "trained_on": sorted(planned.parts["train"])})
    task = {"name": planned.dataset.name, "labels": planned.seen.labels, "channels": planned.seen.channels}
    names = {
        "values": {str(value): number for value, number in planned.dataset.values.items()},
        "keys": patients_by_name(planned.dataset.labelled),
    }
    steps = guidance_steps(planned.plan) if wishes.guidance else 0
    of_user = {"guidance": steps, "patients": wishes.patients, "wishes": asdict(wishes)}
    _write_json(run / TASK, {**task, **names, **of_user, "fingerprint": asdict(planned.seen)})
    _write(run / "docs" / "README.md", planned.page + "\n" + (templates / "use.md").read_text(encoding="utf-8"))
    write_plan(planned.plan, run / PLAN)


def sampled_as(plan: Plan, text: str) -> str:
    """``inference.yaml`` with the plan's members and walk."""
    text = text.replace("\nmembers: 8\n", f"\nmembers: {plan.members}\n")
    walk = list(plan.timesteps) or "null"
    return text.replace("\ntimesteps: null ", f"\ntimesteps: {walk} ")


def _place_of(source: Path, run: Path) -> str:
    """The data set as seen from the run's folder, so that both can be moved together."""
    way = os.path.relpath(source.resolve(), run.resolve())
    return json.dumps(f"$os.path.join(@bundle_root, {way!r})")


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    _write(path, json.dumps(content, indent=2))


def metadata(planned: Planned) -> dict[str, Any]:
    """As MONAI's schema wants it."""
    seen, plan = planned.seen, planned.plan
    inputs = planned_input(plan, seen.channels).channels
    classes = ["background", *seen.labels]
    outputs = classes if len(classes) > 2 else classes[1:]
    shape = [f"{multiple}*n" for multiple in plan.multiples]
    common: dict[str, Any] = {"type": "image", "spatial_shape": shape, "dtype": "float32", "is_patch_data": False}
    return {
        "schema": SCHEMA,
        "version": "0.0.1",
        "changelog": {"0.0.1": "planned and trained by cgdpm-med train"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "required_packages_version": {"cgdpm-med": __version__, "pytorch-ignite": version("pytorch-ignite")},
        "supported_apps": {},
        "name": planned.dataset.name,
        "task": f"Segmentation of {', '.join(seen.labels)}, with uncertainty",
        "description": "A conditional diffusion model draws an ensemble of masks; their spread is the uncertainty.",
        "authors": "",
        "copyright": "",
        "data_type": "pictures" if seen.pictures else "nibabel",
        "image_classes": ", ".join(inputs),
        "label_classes": ", ".join(f"{n} {name}" for n, name in enumerate(classes)),
        "pred_classes": f"{len(outputs)} channels of probabilities: {', '.join(outputs)}",
        "intended_use": "Research. Not a medical device, and not for diagnosis or treatment",
        "network_data_format": {
            "inputs": {
                "image": {
                    **common,
                    "format": "magnitude",
                    "num_channels": len(inputs),
                    "value_range": [-1, 1],
                    "channel_def": {str(n): name for n, name in enumerate(inputs)},
                }
            },
            "outputs": {
                "pred": {
                    **common,
                    "type": "probabilities",
                    "format": "segmentation",
                    "num_channels": len(outputs),
                    "value_range": [0, 1],
                    "channel_def": {str(n): name for n, name in enumerate(outputs)},
                }
            },
        },
    }


# --- training ---------------------------------------------------------------------------------------------------------


def train(
    source: str | Path,
    run: str | Path,
    wishes: Wishes | None = None,
    *,
    device: str = "auto",
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Plan, write the run and train it; a run that was begun is continued as it was planned.

    Returns:
        ``run``, ``weights``, and ``test``: Dice on the test part, None where there is none.

    Raises:
        InputError: for data or wishes that cannot be used, wishes for a run that is planned already, or a folder that
            holds something else.
    """
    source, run, wishes = Path(source), Path(run), wishes or Wishes()
    if (run / PLAN).is_file():
        _take_up(run, source, wishes)
        say(f"continuing {run}")
    else:
        _check_new(run)
        check_place(run)
        planned = plan_dataset(source, wishes, device=device, say=say)
        write_run(planned, run, source, wishes)
        say(planned.page)
    test = run_stages(source, run, choose_device(device), say)
    return {"run": str(run), "weights": str(run / WEIGHTS), "test": test}


def _take_up(run: Path, source: Path, wishes: Wishes) -> None:
    """Go on with a run as it was planned; a guidance network may still be asked for.

    Raises:
        InputError: for other wishes, or a data set that has not the classes and values which the run learned.
    """
    task = read_json(run / TASK)
    begun, asked = task["wishes"], json.loads(json.dumps(asdict(wishes)))
    if not replace(wishes, guidance=False).none and {**asked, "guidance": begun["guidance"]} != begun:
        remedy = "Leave the options out to continue it, or give another folder"
        raise InputError("is planned already, with other options", path=run, remedy=remedy)
    begun_with = Run(run, source)
    if dict(begun_with.dataset.values) != begun_with.stored:
        what = "gives its classes other values in the label maps than when this run began"
        raise InputError(what, path=source, remedy="Restore them, or train in another folder")
    if wishes.guidance and not task["guidance"]:
        steps = guidance_steps(read_plan(run / PLAN))
        _write_json(run / TASK, {**task, "guidance": steps, "wishes": {**begun, "guidance": True}})


def guidance_steps(plan: Plan) -> int:
    """Training steps of a guidance network."""
    return max(1, round(GUIDANCE_SHARE * plan.iterations))


def _check_new(run: Path) -> None:
    if not run.exists():
        return
    if not run.is_dir() or any(
        path.name not in ("configs", "models", "logs", "docs", "evaluation") for path in run.iterdir()
    ):
        remedy = "Give a new folder, or one that train began"
        raise InputError("holds something else", path=run, remedy=remedy)
    if (run / "models" / "model.pt").exists():
        raise InputError("holds weights but no plan", path=run, remedy="Give a new folder")
