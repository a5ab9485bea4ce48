"""Baselines as denoisers, so that they train, sample and are scored by the same code as the diffusion model.

The paper's own, plain regression and SR3's conditioning on the noise level, wrap a network of any ``fusion``: the
comparison changes one thing at a time. :class:`ConditionOnly` takes a network from elsewhere, such as MONAI's U-Nets.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from cgdpm_med.networks.denoiser import Denoiser, evaluate

from .schedule import NoiseSchedule

LEVEL_SCALE = 1000.0  # noise levels lie in (0, 1); the sinusoids of the timestep embedding resolve steps of about one


class Regression(Denoiser):
    """Adapter: the network becomes a regression of x_0 on y; neither the noise nor the timestep reaches it.

    With ``NoiseSchedule(prediction_type="sample")`` the loss is the mean squared error of the result, and one step of
    any sampler is the whole inference.

    Args:
        network: ``network(x_t, t, context) -> x_0``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_t: Tensor, t: Tensor, features: Any = None) -> Tensor:
        """-> x_0, (B, C, *S), the same for every x_t and t."""
        return evaluate(self.network, torch.zeros_like(x_t), torch.zeros_like(t), features)


class ConditionOnly(Denoiser):
    """Adapter: an ordinary network of the image alone, for a segmentation its class logits; x_t and t are ignored.

    With ``DiffusionLoss(schedule, MaskTarget(4))`` it learns by cross-entropy and Dice, as a plain U-Net does. Inside a
    ``MaskDenoiser`` one step of DDIM is the whole inference: the predictor's probabilities are the network's softmax.
    Every member of an ensemble is the same.

    Args:
        network: ``network(y) -> logits``, (B, Cc, *S) to (B, C, *S).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def networks(self) -> tuple[Any, ...]:
        """None: the image itself is needed at every step."""
        return ()

    def forward(self, x_t: Tensor, t: Tensor, features: Tensor) -> Tensor:
        """features: the image, (B, Cc, *S) -> the network's output, (B, C, *S)."""
        return self.network(features)


class Mirrored(Denoiser):
    """Adapter: class probabilities averaged over the mirror images of a slice, at one evaluation for each.

    Args:
        network: ``network(x_t, t, context) -> logits`` (B, C, H, W), with a plain image as context; one channel is the
            foreground of two classes.
        axes: the mirrors; all their combinations count, four for the two axes of a slice.
    """

    def __init__(self, network: nn.Module, axes: Sequence[int] = (-2, -1)) -> None:
        super().__init__()
        self.network = network
        self.flips = [chosen for n in range(len(axes) + 1) for chosen in combinations(axes, n)]

    def networks(self) -> tuple[Any, ...]:
        """None: the image itself is needed at every step."""
        return ()

    def forward(self, x_t: Tensor, t: Tensor, features: Tensor) -> Tensor:
        """-> logits of the mean probabilities, (B, C, H, W)."""
        logits = [self.network(x_t.flip(flips), t, features.flip(flips)).float().flip(flips) for flips in self.flips]
        if logits[0].shape[1] == 1:
            return torch.stack(logits).sigmoid().mean(dim=0).logit(eps=torch.finfo(torch.float32).eps)
        mean = torch.stack(logits).softmax(dim=2).mean(dim=0)
        return mean.clamp(min=torch.finfo(mean.dtype).tiny).log()


class NoiseLevelConditioned(Denoiser):
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

    def forward(self, x_t: Tensor, t: Tensor, features: Any = None) -> Tensor:
        """x_t: (B, C, *S), t: int64 (B,) -> the network's output."""
        level = self.schedule.at("sqrt_alpha_bar", t, x_t).flatten()
        return evaluate(self.network, x_t, LEVEL_SCALE * level, features)
