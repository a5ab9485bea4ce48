"""The paper's baselines as denoisers: plain regression, and SR3's conditioning on the noise level.

Both wrap a network of any ``fusion``, so that a comparison changes one thing at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .sampling import encode
from .schedule import NoiseSchedule

LEVEL_SCALE = 1000.0  # noise levels lie in (0, 1); the sinusoids of the timestep embedding resolve steps of about one


class Regression(nn.Module):
    """Adapter: the network becomes a regression of x_0 on y; neither the noise nor the timestep reaches it.

    With ``NoiseSchedule(prediction_type="sample")`` the loss is the mean squared error of the result, and one step of
    any sampler is the whole inference.

    Args:
        network: ``network(x_t, t, context) -> x_0``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def encode_condition(self, y: Tensor) -> Any:
        """The network's own features of y, or y itself when it has no ``encode_condition``."""
        return encode(self.network, y)

    def forward(self, x_t: Tensor, t: Tensor, context: Any = None) -> Tensor:
        """-> x_0, (B, C, *S), the same for every x_t and t."""
        return self.network(torch.zeros_like(x_t), torch.zeros_like(t), context)


class NoiseLevelConditioned(nn.Module):
    """Adapter: the network is told the noise level sqrt(alpha_bar) instead of t (SR3: Saharia et al., 2021).

    SR3 draws levels continuously between those of neighbouring timesteps; here they are the levels of the T timesteps.

    Args:
        network: ``network(x_t, timesteps, context)``; takes timesteps that are not whole numbers.
        schedule: the training schedule.
    """

    def __init__(self, network: nn.Module, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule

    def encode_condition(self, y: Tensor) -> Any:
        """The network's own features of y, or y itself when it has no ``encode_condition``."""
        return encode(self.network, y)

    def forward(self, x_t: Tensor, t: Tensor, context: Any = None) -> Tensor:
        """x_t: (B, C, *S), t: int64 (B,) -> the network's output."""
        level = self.schedule.at("sqrt_alpha_bar", t, x_t).flatten()
        return self.network(x_t, LEVEL_SCALE * level, context)
