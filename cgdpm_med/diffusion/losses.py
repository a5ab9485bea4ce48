"""Training objectives of the denoiser: noise prediction and its relatives, learned variance, masks.

Each objective is a function ``objective(output, x_0, eps, x_t, t, schedule) -> loss per example (B,)``;
:class:`DiffusionLoss` draws t and eps and applies one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .sampling import gaussian, learned_log_variance, split_variance
from .schedule import NoiseSchedule

Objective = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, NoiseSchedule], Tensor]


class DiffusionLoss(nn.Module):
    """Draw t uniformly and eps, form x_t by eq. (3), and score the network's output there.

    Args:
        schedule: the training schedule.
        objective: a function of this module, by default :func:`simple_loss`.
    """

    def __init__(self, schedule: NoiseSchedule, objective: Objective | None = None) -> None:
        super().__init__()
        self.schedule = schedule
        self.objective = objective or simple_loss

    def forward(
        self,
        network: Callable[..., Tensor],
        x_0: Tensor,
        context: Any = None,
        *,
        generator: torch.Generator | None = None,
        **network_arguments: Any,
    ) -> Tensor:
        """Mean loss over the batch.

        Args:
            network: called as ``network(x_t, t, context, **network_arguments)``.
            x_0: targets, (B, C, *S).
            generator: of t and eps; the global one by default.
        """
        device = x_0.device if generator is None else generator.device
        t = torch.randint(self.schedule.T, (x_0.shape[0],), generator=generator, device=device).to(x_0.device)
        eps = gaussian(x_0, generator)
        x_t = self.schedule.q_sample(x_0, t, eps)
        output = network(x_t, t, context, **network_arguments)
        return self.objective(output.float(), x_0, eps, x_t, t, self.schedule).mean()


def regression_target(x_0: Tensor, eps: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """What the network should output, by ``schedule.prediction_type``."""
    if schedule.prediction_type == "epsilon":
        return eps
    return x_0 if schedule.prediction_type == "sample" else schedule.velocity(x_0, eps, t)


def simple_loss(output: Tensor, x_0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Mean squared error of the prediction (Ho et al., 2020, eq. 14); (B, C, …) -> (B,)."""
    return mean_flat((output - regression_target(x_0, eps, t, schedule)) ** 2)


def hybrid_loss(output: Tensor, x_0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Learned variance (Nichol & Dhariwal, 2021, eq. 16): the simple loss plus the variational bound on Sigma alone.

    ``output`` is (B, 2C, …). The bound is in bits per dimension, weighted by T / 1000, and its gradient does not reach
    the mean.
    """
    prediction, v = split_variance(output, x_t)
    if v is None:
        raise ValueError(f"learned variance needs {2 * x_t.shape[1]} output channels, got {output.shape[1]}")
    vlb = vlb_term(prediction.detach(), v, x_0, x_t, t, schedule)
    return simple_loss(prediction, x_0, eps, x_t, t, schedule) + schedule.T / 1000 * vlb


def vlb_term(prediction: Tensor, v: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """L_{t-1} of the variational bound (eq. 5), or the decoder term L_0 at t = 0; bits per dimension, (B,).

    The decoder assumes x_0 in [-1, 1] quantised to 256 levels, as images are.
    """
    true_mean, _ = schedule.q_posterior(x_0, x_t, t)
    true_log_variance = schedule.at("posterior_log_variance", t, x_t)
    mean, _ = schedule.q_posterior(schedule.to_x0(prediction, x_t, t), x_t, t)
    log_variance = learned_log_variance(schedule, v, t)
    kl = gaussian_kl(true_mean, true_log_variance, mean, log_variance)
    decoder = -discretised_gaussian_log_likelihood(x_0, mean, log_variance)
    first = (t == 0).reshape(-1, *[1] * (x_t.ndim - 1))
    return mean_flat(torch.where(first, decoder, kl)) / math.log(2)


def gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N1 || N2) elementwise, in nats."""
    return 0.5 * (
        log_variance2
        - log_variance1
        - 1
        + (log_variance1 - log_variance2).exp()
        + (mean1 - mean2) ** 2 * (-log_variance2).exp()
    )


def discretised_gaussian_log_likelihood(x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log-probability of the 1/255-wide bin around x_0 under N(mean, variance), in nats; the end bins are open."""
    inverse_std = (-0.5 * log_variance).exp()
    upper = torch.special.ndtr((x_0 - mean + 1 / 255) * inverse_std)
    lower = torch.special.ndtr((x_0 - mean - 1 / 255) * inverse_std)
    upper = torch.where(x_0 > 0.999, torch.ones_like(upper), upper)
    lower = torch.where(x_0 < -0.999, torch.zeros_like(lower), lower)
    return (upper - lower).clamp(min=1e-12).log()


class MaskLoss:
    """Cross-entropy and Dice on the predicted x_0 of a mask: an objective for :class:`DiffusionLoss`.

    The network's output is read as class logits. With the softmax of them decoded to +-1 channels
    (``ensemble.MaskDenoiser``), cross-entropy is the proper score of E[x_0 | x_t, y], so the network stays a denoiser.

    Args:
        dice_weight: weight of the soft Dice term, pooled over the batch, mean over foreground classes.
        class_weights: weights of the classes in the cross-entropy, or None.
    """

    def __init__(self, dice_weight: float = 1.0, class_weights: list[float] | None = None) -> None:
        self.dice_weight = dice_weight
        self.class_weights = class_weights

    def __call__(
        self, output: Tensor, x_0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule
    ) -> Tensor:
        """output: logits (B, C, *S); x_0: (B, C, *S), positive where the class is present. -> (B,)."""
        truth = (x_0 > 0).to(output.dtype)
        if output.shape[1] == 1:
            probabilities = output.sigmoid()
            entropy = F.binary_cross_entropy_with_logits(output, truth, reduction="none")
            foreground = slice(0, 1)
        else:
            weights = None if self.class_weights is None else output.new_tensor(self.class_weights)
            probabilities = output.softmax(dim=1)
            entropy = F.cross_entropy(output, truth.argmax(dim=1), weight=weights, reduction="none")
            foreground = slice(1, None)
        loss = mean_flat(entropy)
        if self.dice_weight:
            loss = loss + self.dice_weight * soft_dice_loss(probabilities[:, foreground], truth[:, foreground])
        return loss


def soft_dice_loss(probabilities: Tensor, truth: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - 2|P T| / (|P| + |T|), the sums over batch and space, mean over channels; (B, C, *S) -> scalar."""
    dims = (0, *range(2, truth.ndim))
    overlap = (probabilities * truth).sum(dims)
    total = probabilities.sum(dims) + truth.sum(dims)
    return 1 - ((2 * overlap + smooth) / (total + smooth)).mean()


def mean_flat(x: Tensor) -> Tensor:
    """Mean over all but the batch dimension; (B, …) -> (B,)."""
    return x.flatten(1).mean(dim=1)
