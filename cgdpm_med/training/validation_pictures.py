"""Validation cases as people look at them: the image, the reference, the ensemble's mask and where it doubts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import Tensor

from cgdpm_med.data.slices import slice_stack
from cgdpm_med.data.transforms import CombineMembersd
from cgdpm_med.images.case_pictures import Pixels, contoured, doubtful, enlarged, shown, table_of
from cgdpm_med.inference.labels import Labels
from cgdpm_med.inference.predictor import DiffusionPredictor

HEADINGS = ("image", "reference", "ensemble", "doubt (entropy)")


class Case(NamedTuple):
    """What is shown of a case.

    Attributes:
        condition: (Cc, X, Y) or (Cc, X, Y, Z), as the network sees it.
        image: (C, X, Y), the slice.
        label: (X, Y), its classes.
        z: its number in the volume.
        within: its number in the condition, where that is a volume.
    """

    condition: Tensor
    image: Tensor
    label: Tensor
    z: int
    within: int | None = None


class ValidationPictures:
    """A grid in TensorBoard after every validation: a few cases, each by the slice that shows most of its structures.

    Args:
        writer: a SummaryWriter.
        predictor: draws the ensemble, usually around the averaged network.
        items: with ``image`` (C, X, Y, Z) and ``label`` (1, X, Y, Z), the classes.
        labels: names of the classes 1, 2, ….
        neighbours: slices on each side that the network sees.
        cases, members: how many of each.
    """

    def __init__(
        self,
        writer: Any,
        predictor: DiffusionPredictor,
        items: Sequence[Mapping[str, Tensor]],
        labels: Sequence[str],
        neighbours: int = 0,
        cases: int = 4,
        members: int = 4,
    ) -> None:
        self.writer, self.predictor, self.members = writer, predictor, members
        self.labels = Labels(tuple(labels))
        self.cases = [chosen_slice(item, neighbours) for item in items[:cases]]

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        self.writer.add_image("validation", self.picture(), engine.state.epoch, dataformats="HWC")

    @torch.inference_mode()
    def picture(self) -> Pixels:
        """(H, W, 3), a row for each case."""
        rows = [self._row(number, case) for number, case in enumerate(self.cases)]
        names = [f"case {number + 1}, slice {case.z + 1}" for number, case in enumerate(self.cases)]
        legend = list(zip(self.labels.colours, self.labels.names, strict=True))
        return table_of(rows, HEADINGS, names, legend)

    def _row(self, number: int, case: Case) -> list[Pixels]:
        device = next(self.predictor.parameters()).device
        drawn = self.predictor.ensemble(
            case.condition[None].to(device), keys=[f"picture/{number}"], member_ids=range(self.members)
        )
        drawn = drawn if case.within is None else drawn[..., case.within]
        channels = self.predictor.out_channels
        combine = CombineMembersd(num_classes=max(channels, 2), channels=channels)
        found = combine({"pred": drawn[:, 0].flatten(0, 1).cpu()})
        plain, colours = shown(case.image.numpy()), dict(enumerate(self.labels.colours, start=1))
        mask, truth = (torch.as_tensor(each).numpy().astype(np.uint8) for each in (found["mask"][0], case.label))
        return [
            enlarged(plain),
            contoured(plain, truth, colours),
            contoured(plain, mask, colours),
            doubtful(torch.as_tensor(found["entropy"][0]).numpy()),
        ]


def chosen_slice(item: Mapping[str, Tensor], neighbours: int) -> Case:
    """The slice that shows most structures."""
    image, label = (torch.as_tensor(item[name]).as_subclass(Tensor) for name in ("image", "label"))
    marked = (label[0] > 0).sum(dim=(0, 1))
    z = int(marked.argmax()) if bool(marked.any()) else label.shape[-1] // 2
    return Case(slice_stack(image, neighbours)[z], image[..., z], label[0, ..., z], z)
