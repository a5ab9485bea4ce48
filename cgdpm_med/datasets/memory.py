"""How much memory the training of a plan takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cgdpm_med.datasets.plan import Plan
from cgdpm_med.datasets.rehearsal import Rehearsal, rehearsal_parser

PROGRAM = 450e6
"""Bytes of Python with PyTorch and MONAI."""
COPIES = 5
"""Of the weights: themselves, their gradients, the optimiser's two moments, their average."""
WORKSPACE = 1.3
"""Times what the forward pass keeps: gradients on their way and the convolutions' own buffers come on top."""
FLOAT, HALF = 4, 2


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Attributes:
        held: the program, the data set, and all copies of the weights.
        example: each example of a batch.
    """

    held: float
    example: float

    def peak(self, batch: int) -> float:
        """Of a training with so many examples in a step."""
        return self.held + batch * self.example


def training_memory(plan: Plan, channels: Sequence[str], labels: Sequence[str], slices: int) -> Memory:
    """What a training takes on a CPU; on a GPU the data set stays outside.

    Args:
        channels, labels: names, as in the data set.
        slices: of the training part, which are held.
    """
    kept, weights = network_bytes(Rehearsal(plan, channels, labels))
    views, classes = len(channels) * (2 * plan.neighbours + 1), len(labels) + 1
    pixels = slices * math.prod(plan.field)
    return Memory(PROGRAM + pixels * (FLOAT * views + HALF * classes) + COPIES * weights, WORKSPACE * kept)


class FusedAttention(TorchFunctionMode):
    """Attention as devices compute it, without a matrix of all pairs; the meta device alone would keep that."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args, **(kwargs or {}))[0]
        return func(*args, **(kwargs or {}))


def network_bytes(task: Rehearsal) -> tuple[int, int]:
    """What the forward pass of one example keeps for the gradient, and the weights; nothing is computed for it."""
    parser = rehearsal_parser(task)
    with torch.device("meta"):
        network = parser.get_parsed_content("network_def")
    loss = parser.get_parsed_content("loss").to("meta")
    weights = {parameter.untyped_storage()._cdata: parameter.nbytes for parameter in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # held, so that no other takes its address
        return tensor

    y = torch.empty(1, len(task.input.channels), *task.plan.crop, device="meta")
    x_0 = torch.empty(1, parser.get_parsed_content("target").channels, *task.plan.crop, device="meta")
    with FusedAttention(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(network, x_0, y)
    return sum(storage.nbytes() for storage in kept.values()), sum(weights.values())
