"""The one contract of everything that is sampled: features of the condition once, then an output at each (x_t, t).

Adapters put something around a network and inherit the rest; runtime copies put another way of running beneath it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .arguments import KeepsArguments


class Denoiser(KeepsArguments, nn.Module):
    """``encode(y) -> features`` once per condition image, and ``forward(x_t, t, features) -> output`` at every step.

    A subclass that wraps a network keeps it as ``self.network`` and inherits ``encode``. Features are no bare tensor,
    which would pass for an image that is not encoded yet: a tuple holds even a single one. They serve all members of an
    image: x_t is (B * K, C, *S) with the K members of an image beside each other.
    """

    network: Any

    def networks(self) -> tuple[Any, ...]:
        """The networks inside whose features are needed."""
        return (self.network,)

    def run(self, function: Callable[..., Any], network: Any, *arguments: Any) -> Any:
        """``function(network, *arguments)``: where a runtime copy does so in its own way."""
        return function(network, *arguments)

    def encode(self, y: Tensor) -> Any:
        """What the network inside needs of y (B, Cc, *S); a tuple for several; y itself where there is none."""
        found = tuple(self.run(features_of, network, y) for network in self.networks())
        return found[0] if len(found) == 1 else found or y

    def forward(self, x_t: Tensor, t: Tensor, features: Any) -> Any:
        """The output of the network inside at x_t (B * K, C, *S) and t (B * K,)."""
        return self.run(evaluate, self.network, x_t, t, features)


class Plain(Denoiser):
    """A callable ``network(x_t, t, context)`` from elsewhere as it is."""

    def __init__(self, network: Callable[..., Any]) -> None:
        super().__init__()
        self.network = network


def as_denoiser(network: Any) -> Any:
    """The network itself where it can encode, else :class:`Plain`."""
    return network if hasattr(network, "encode") else Plain(network)


def features_of(network: Any, y: Any) -> Any:
    """The network's features of y; y itself where it computes none, or is no image any more.

    Raises:
        TypeError: for features that are a bare tensor other than y, see :class:`Denoiser`.
    """
    if not isinstance(y, Tensor) or not hasattr(network, "encode"):
        return y
    features = network.encode(y)
    if isinstance(features, Tensor) and features is not y:
        raise TypeError(f"{type(network).__name__}.encode returned a bare tensor: return a tuple of features")
    return features


def evaluate(network: Any, x_t: Tensor, t: Tensor, features: Any) -> Any:
    """``network(x_t, t, features)``; a plain image is repeated for its members."""
    return network(x_t, t, per_member(features, x_t.shape[0]))


def per_member(features: Any, rows: int) -> Any:
    """A plain image repeated for its members, which lie beside each other in a batch of so many rows.

    Features that are not a tensor know by themselves how to serve several members.
    """
    if isinstance(features, Tensor) and features.shape[0] != rows:
        return features.repeat_interleave(rows // features.shape[0], dim=0)
    return features
