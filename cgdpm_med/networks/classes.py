"""Class labels that travel with the condition image, so that whatever moves one moves the other."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class ClassFeatures(NamedTuple):
    """What :class:`ClassConditioned` keeps of the condition: the network's features, and labels int64 (B,)."""

    features: Any
    labels: Tensor


class ClassConditioned(nn.Module):
    """Adapter: a network that takes class labels becomes one whose condition carries its class as a last channel.

    Samplers, ensembles, windows, guidance and losses know one condition tensor per image; with the class inside it
    (:func:`append_class`) they need not know that there are classes.

    Args:
        network: ``network(x_t, t, context, class_labels)``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def encode_condition(self, y: Tensor, size: Any = None) -> ClassFeatures:
        """y: (B, Cc + 1, *S), the last channel constant -> the network's features of the others, and the labels.

        Raises:
            ValueError: for a bfloat16 condition, which cannot hold class indices above 256.
        """
        if y.dtype == torch.bfloat16:
            raise ValueError("a bfloat16 condition cannot carry a class index: keep it float32, or use autocast")
        image = y[:, :-1]
        encoder = getattr(self.network, "encode_condition", None)
        features = image if encoder is None else encoder(image, size=size)
        return ClassFeatures(features, y[:, -1].flatten(1)[:, 0].round().long())

    def forward(self, x_t: Tensor, t: Tensor, context: Tensor | ClassFeatures) -> Tensor:
        """x_t: (B * K, C, *S), the K members of an image beside each other -> the network's output."""
        if isinstance(context, Tensor):
            context = self.encode_condition(context, size=x_t.shape[2:])
        features, labels = context
        members = x_t.shape[0] // labels.shape[0]
        if isinstance(features, Tensor):
            features = features.repeat_interleave(members, dim=0)
        return self.network(x_t, t, features, class_labels=labels.repeat_interleave(members))


def append_class(y: Tensor, labels: Tensor) -> Tensor:
    """Condition images (B, Cc, *S) and labels (B,) to conditions (B, Cc + 1, *S) for :class:`ClassConditioned`."""
    plane = labels.to(y).reshape(-1, *[1] * (y.ndim - 1)).expand(y.shape[0], 1, *y.shape[2:])
    return torch.cat([y, plane], dim=1)
