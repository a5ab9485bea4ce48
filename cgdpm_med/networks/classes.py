"""Class labels that travel with the condition image, so that whatever moves one moves the other."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .denoiser import Denoiser, per_member


class ClassFeatures(NamedTuple):
    """What :class:`ClassConditioned` keeps of the condition: the network's features, and labels int64 (B,)."""

    features: Any
    labels: Tensor

    def labels_of(self, rows: int) -> Tensor:
        """The label of each of so many rows, the members of an image beside each other."""
        return self.labels.repeat_interleave(rows // self.labels.shape[0])


class ClassConditioned(Denoiser):
    """Adapter: a network that takes class labels becomes one whose condition carries its class as a last channel.

    Samplers, ensembles, windows, guidance and losses know one condition tensor per image; with the class inside it
    (:func:`append_class`) they need not know that there are classes.

    Args:
        network: ``network(x_t, t, context, class_labels)``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def encode(self, y: Tensor, size: Any = None) -> ClassFeatures:
        """y: (B, Cc + 1, *S), the last channel constant -> the network's features of the others, and the labels.

        Raises:
            ValueError: for a bfloat16 condition, which cannot hold class indices above 256.
        """
        if y.dtype == torch.bfloat16:
            raise ValueError(
                "a bfloat16 condition cannot carry a class index: keep it float32, whatever the network computes in"
            )
        image = y[:, :-1]
        features = self.network.encode(image, size=size) if hasattr(self.network, "encode") else image
        return ClassFeatures(features, y[:, -1].flatten(1)[:, 0].round().long())

    def forward(self, x_t: Tensor, t: Tensor, features: Tensor | ClassFeatures) -> Tensor:
        """x_t: (B * K, C, *S), the K members of an image beside each other -> the network's output."""
        if isinstance(features, Tensor):
            features = self.encode(features, size=x_t.shape[2:])
        rows = x_t.shape[0]
        of_image = per_member(features.features, rows)
        return self.network(x_t, t, of_image, class_labels=features.labels_of(rows))


def append_class(y: Tensor, labels: Tensor) -> Tensor:
    """Condition images (B, Cc, *S) and labels (B,) to conditions (B, Cc + 1, *S) for :class:`ClassConditioned`."""
    plane = labels.to(y).reshape(-1, *[1] * (y.ndim - 1)).expand(y.shape[0], 1, *y.shape[2:])
    return torch.cat([y, plane], dim=1)
