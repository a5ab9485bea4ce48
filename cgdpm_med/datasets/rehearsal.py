"""A plan's training before there is a run: ``train.yaml`` on random slices, to measure what it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cgdpm_med.datasets.plan import Plan
from cgdpm_med.datasets.run import slice_input
from cgdpm_med.models.description import SliceInput, TrainingData


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
    def input(self) -> SliceInput:
        """What the network sees."""
        return slice_input(self.plan, self.channels)

    @property
    def training(self) -> TrainingData:
        """Nobody."""
        return TrainingData()

    def training_slices(self) -> RandomSlices:
        """Noise in place of the data set."""
        return RandomSlices(len(self.input.channels), self.classes, self.plan.field, 100 * self.plan.batch_size)

    def validation_items(self) -> list[dict[str, Tensor]]:
        """None: nothing is validated."""
        return []


class RandomSlices(Dataset):
    """One slice of noise with a soft label, ``length`` times."""

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


def rehearsal_parser(task: Rehearsal, device: torch.device | str = "cpu") -> Any:
    """``train.yaml`` as a MONAI ConfigParser, its task one that has no folder."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    template = resources.files("cgdpm_med") / "datasets" / "templates" / "train.yaml"
    with resources.as_file(template) as path:
        parser.read_config(str(path))
    parser["task"], parser["device"] = task, f"$torch.device('{device}')"
    return parser
