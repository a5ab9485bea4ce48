"""A folder in which a data set is trained on: what its files say, for the configuration that trains."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from cgdpm_med.data.augment_patches import enlarged
from cgdpm_med.data.patches import PatchDataset
from cgdpm_med.data.slices import SliceDataset
from cgdpm_med.datasets.dataset import DataSet, patient_in
from cgdpm_med.datasets.folders import read_dataset
from cgdpm_med.datasets.json_files import read_json
from cgdpm_med.datasets.loading import Loaded, load_example
from cgdpm_med.datasets.plan import Plan, read_plan
from cgdpm_med.datasets.prepare import hard_labels, prepare
from cgdpm_med.datasets.prepare_volumes import prepare_volume
from cgdpm_med.datasets.split import of_part
from cgdpm_med.files import InputError
from cgdpm_med.models.description import PatchInput, SliceInput, TrainingData

PLAN, TASK, SPLIT = "configs/plan.json", "configs/task.json", "models/split.json"


@dataclass(frozen=True)
class Run:
    """A run's folder and its data.

    Attributes:
        folder: of the run.
        source: of the data set.
    """

    folder: Path
    source: Path

    @cached_property
    def plan(self) -> Plan:
        """As chosen before the start."""
        return read_plan(self.folder / PLAN)

    @cached_property
    def task(self) -> dict[str, Any]:
        """Names of labels and channels, and how patients are found."""
        return read_json(self.folder / TASK)

    @cached_property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Patients by part."""
        content = read_json(self.folder / SPLIT)
        return {part: tuple(content[part]) for part in ("train", "validation", "test")}

    @property
    def labels(self) -> list[str]:
        """Names of the classes 1, 2, …."""
        return list(self.task["labels"])

    @property
    def guidance(self) -> int:
        """Training steps of a guidance network; 0 without one."""
        return int(self.task.get("guidance", 0))

    @property
    def classes(self) -> int:
        """The background included."""
        return len(self.labels) + 1

    @cached_property
    def input(self) -> SliceInput | PatchInput:
        """What the network sees."""
        return planned_input(self.plan, self.task["channels"])

    @cached_property
    def dataset(self) -> DataSet:
        """Read again.

        Raises:
            InputError: its classes are others than when the run began.
        """
        dataset = read_dataset(self.source)
        if list(dataset.labels) != self.labels:
            remedy = "Give the data set of this run, or restore its labels"
            raise InputError("has other classes than when this run began", path=self.source, remedy=remedy)
        return dataset.grouped(self.task["patients"]) if self.task["patients"] else dataset

    @property
    def stored(self) -> dict[int, int]:
        """Value in the files of label maps -> class, {} where they are the classes."""
        return {int(value): number for value, number in self.task.get("values", {}).items()}

    def patient_of(self, key: str) -> str:
        """Whose image bears a name: as the data set said, else as the run's pattern finds it, else the name itself."""
        name = key.rpartition("/")[2]
        if (known := self.task.get("keys", {}).get(name)) is not None:
            return str(known)
        pattern = self.task["patients"]
        match = re.search(pattern, name) if pattern else None
        return (match and patient_in(match)) or name

    @property
    def training(self) -> TrainingData:
        """For the model file."""
        return TrainingData(self.parts["train"], split_digest(self.parts))

    def training_slices(self) -> RepeatedSlices:
        """Of the training part, enough of them for an epoch."""
        assert isinstance(self.input, SliceInput)
        items = [prepare(each, self.input, self.classes, field=self.plan.field) for each in self._loaded("train")]
        return RepeatedSlices(
            SliceDataset(items, neighbours=self.plan.neighbours), self.plan.epoch * self.plan.batch_size
        )

    def training_patches(self) -> PatchDataset:
        """Of the training part's volumes, larger than the crop, for the augmentation; an epoch of them."""
        seen = self.volume_input
        items = [prepare_volume(each, seen, self.classes) for each in self._loaded("train")]
        return PatchDataset(items, enlarged(self.plan.crop), self.plan.epoch * self.plan.batch_size)

    @property
    def volume_input(self) -> PatchInput:
        """What a 3D network sees."""
        assert isinstance(self.input, PatchInput)
        return self.input

    def validation_items(self) -> list[dict[str, Tensor]]:
        """The first cases of the validation part that show a structure, filled up with others, with hard labels.

        Cases without any structure say nothing of Dice, and in some data sets most are such.
        """
        most, marked, empty = self.plan.validation_cases, list[Loaded](), list[Loaded]()
        for loaded in self._loaded("validation"):
            if loaded.label is not None and loaded.label.any():
                marked.append(loaded)
            elif len(empty) < most:
                empty.append(loaded)
            if len(marked) == most:
                break
        chosen = [*marked, *empty][:most]
        return [hard_labels(self._prepared(each)) for each in chosen]

    def _prepared(self, loaded: Loaded) -> dict[str, Tensor]:
        if isinstance(self.input, PatchInput):
            return prepare_volume(loaded, self.input, self.classes, padded=True)
        return prepare(loaded, self.input, self.classes, multiple=self.plan.multiple)

    def _loaded(self, part: str) -> Iterator[Loaded]:
        channels = len(self.task["channels"])
        return (load_example(self.dataset, each, channels) for each in of_part(self.dataset, self.parts, part))


def planned_input(plan: Plan, channels: Sequence[str]) -> SliceInput | PatchInput:
    """What the network of a plan sees."""
    window = tuple((pair[0], pair[1]) for pair in plan.window) if plan.intensity == "fixed" else ()
    if plan.volumes:
        x, y, z = plan.crop
        return PatchInput(
            (plan.spacing, plan.spacing, plan.between), tuple(channels), (x, y, z), plan.intensity, window
        )
    return SliceInput(
        plan.spacing, tuple(channels), plan.neighbours, plan.intensity, window, plan.region, plan.region and plan.crop
    )


class RepeatedSlices(Dataset):
    """Slices of a small set again and again, so that an epoch has its length.

    Args:
        slices: indexed by (epoch, number).
        least: length at least.
    """

    def __init__(self, slices: SliceDataset, least: int) -> None:
        self.slices = slices
        self.length = -(-least // len(slices)) * len(slices)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: tuple[int, int]) -> dict[str, Any]:
        epoch, number = index
        return self.slices[epoch, number % len(self.slices)]


def split_digest(parts: Mapping[str, Sequence[str]]) -> str:
    """SHA-256 of the parts, whatever order they are written in."""
    sections = {name: sorted(members) for name, members in parts.items()}
    return hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()
