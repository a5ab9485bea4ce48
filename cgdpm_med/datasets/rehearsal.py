"""A plan's training before there is a run: ``train.yaml`` on random examples, to measure what it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cgdpm_med.data.augment_patches import enlarged
from cgdpm_med.datasets.plan import Plan
from cgdpm_med.datasets.run import planned_input
from cgdpm_med.models.description import PatchInput, SliceInput, TrainingData


@dataclass(frozen=True)
class Rehearsal:
    """What ``train.yaml`` asks of a run.

    Attributes:
        plan: of the run to be.
        channels, labels: their names.
    """

    plan: Plan
    channels: Sequence[str]
    labels: Sequence[str]

    @property
    def classes(self) -> int:
        """The background included."""
        return len(self.labels) + 1

    @property
    def input(self) -> SliceInput | PatchInput:
        """What the network sees."""
        return planned_input(self.plan, self.channels)

    @property
    def training(self) -> TrainingData:
        """Nobody."""
        return TrainingData()

    def training_slices(self) -> RandomExamples:
        """Noise in place of the data set."""
        return RandomExamples(len(self.input.channels), self.classes, self.plan.field, 100 * self.plan.batch_size)

    def training_patches(self) -> RandomExamples:
        """Noise in place of the data set."""
        size = enlarged(self.plan.crop)
        return RandomExamples(len(self.input.channels), self.classes, size, 100 * self.plan.batch_size)

    def validation_items(self) -> list[dict[str, Tensor]]:
        """None: nothing is validated."""
        return []


class RandomExamples(Dataset):
    """One slice or patch of noise with a soft label, ``length`` times."""

    def __init__(self, channels: int, classes: int, field: Sequence[int], length: int) -> None:
        self.item = {
            "image": torch.randn(channels, *field),
            "label": torch.rand(classes, *field).softmax(dim=0).half(),
        }
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> dict[str, Tensor]:
        return self.item


def templates_of(plan: Plan, name: str) -> list[str]:
    """Files below ``templates`` that make a configuration of a run: what is otherwise in 3D comes last."""
    return [name, "train_3d.yaml"] if plan.volumes and name == "train.yaml" else [name]


def rehearsal_parser(task: Rehearsal, device: torch.device | str = "cpu") -> Any:
    """``train.yaml`` as a MONAI ConfigParser, its task one that has no folder."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    templates = resources.files("cgdpm_med") / "datasets" / "templates"
    with resources.as_file(templates) as folder:
        parser.read_config([str(folder / name) for name in templates_of(task.plan, "train.yaml")])
    parser["task"], parser["device"] = task, f"$torch.device('{device}')"
    return parser
