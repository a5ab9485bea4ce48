"""Validation cases of a 3D network as people look at them: one slice of a patch around its structures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cgdpm_med.data.patches import patch, within
from cgdpm_med.inference.predictor import DiffusionPredictor
from cgdpm_med.training.validation_pictures import Case, ValidationPictures


class ValidationPatches(ValidationPictures):
    """As :class:`ValidationPictures`; of each case a patch is drawn, and its slice that shows most structures.

    Args:
        size: of the patch.
        writer, predictor, items, labels, cases, members: as there.
    """

    def __init__(
        self,
        writer: Any,
        predictor: DiffusionPredictor,
        items: Sequence[Mapping[str, Tensor]],
        labels: Sequence[str],
        size: Sequence[int],
        cases: int = 2,
        members: int = 4,
    ) -> None:
        super().__init__(writer, predictor, [], labels, members=members)
        self.cases = [chosen_patch(item, size) for item in items[:cases]]


def chosen_patch(item: Mapping[str, Tensor], size: Sequence[int]) -> Case:
    """The patch (C, *size) about the structures, and the slice of it that shows most of them."""
    image, label = (torch.as_tensor(item[name]).as_subclass(Tensor) for name in ("image", "label"))
    marked = (label[0] > 0).nonzero().float()
    shape = label.shape[1:]
    middle = marked.mean(dim=0).tolist() if len(marked) else [n / 2 for n in shape]
    starts = [within(round(c - side / 2), side, n) for c, side, n in zip(middle, size, shape, strict=True)]
    condition, truth = patch(image, starts, size), patch(label, starts, size)[0]
    shown = (truth > 0).sum(dim=(0, 1))
    z = int(shown.argmax()) if bool(shown.any()) else truth.shape[-1] // 2
    return Case(condition, condition[..., z], truth[..., z], z + starts[2], z)
