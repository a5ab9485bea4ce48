"""Objectives: how a network's output is scored at x_t. Noise prediction and its relatives, learned variance, masks.

Each is a function ``objective(output, x_0, eps, x_t, t, schedule) -> loss per example (B,)``; a target
(``targets.py``) names the one it trains with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .samplers import learned_log_variance
from .sampling import split_variance
from .schedule import NoiseSchedule

Objective = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, NoiseSchedule], Tensor]


def regression_target(x_0: Tensor, eps: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """What the network should output, by ``schedule.prediction_type``; shaped like ``x_0``."""
    if schedule.prediction_type == "epsilon":
        return eps
    return x_0 if schedule.prediction_type == "sample" else schedule.velocity(x_0, eps, t)


def simple_loss(output: Tensor, x_0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Mean squared error of the prediction (Ho et al., 2020, eq. 14); (B, C, …) -> (B,).

    Raises:
        ValueError: for an output of another shape than x_0, as a network with learned variance has.
    """
    check_shape(output, x_0, "a network that predicts its variance trains with hybrid_loss")
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
    """Log-probability under N(mean, variance) of the bin of half-width 1/255 around x_0, in nats, elementwise.

    The 256 bins tile the real line: those of -1 and +1 are open outwards. Ho et al. (2020), eq. 13.
    """
    inverse_std = (-0.5 * log_variance).exp()
    offset = x_0 - mean
    # the normal is symmetric: every bin is taken in the left tail, where the logarithm of the CDF keeps its precision
    left = -offset.abs()
    upper = torch.special.log_ndtr((left + 1 / 255) * inverse_std)
    lower = torch.special.log_ndtr((left - 1 / 255) * inverse_std)
    inside = upper + (-torch.expm1(lower - upper)).clamp(min=torch.finfo(upper.dtype).tiny).log()
    first = torch.special.log_ndtr((offset + 1 / 255) * inverse_std)
    last = torch.special.log_ndtr((1 / 255 - offset) * inverse_std)
    return torch.where(x_0 < -0.999, first, torch.where(x_0 > 0.999, last, inside))


def mask_loss(
    logits: Tensor, truth: Tensor, dice_weight: float = 1.0, class_weights: Sequence[float] | None = None
) -> Tensor:
    """Cross-entropy and soft Dice; logits and true probabilities (B, C, *S) -> (B,).

    Softmax over C channels, a sigmoid for one. The Dice term is pooled over the batch (so that a slice without a
    structure does not dominate it), the same for every example, and leaves out the background.

    Args:
        class_weights: factors of each pixel's cross-entropy by its true class, or None; the mean over pixels stays
            unweighted. Two values, background and foreground, when C = 1.
    """
    check_shape(logits, truth, "one logit for each channel of the mask")
    truth = truth.to(logits.dtype)
    if logits.shape[1] == 1:
        probabilities, foreground = logits.sigmoid(), truth
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)  # sigmoid(a) = softmax(0, a)
        truth = torch.cat([1 - truth, truth], dim=1)
    else:
        probabilities, foreground = logits.softmax(dim=1)[:, 1:], truth[:, 1:]
    weights = None if class_weights is None else logits.new_tensor(class_weights)
    loss = mean_flat(F.cross_entropy(logits, truth, weight=weights, reduction="none"))
    return loss + dice_weight * soft_dice_loss(probabilities, foreground) if dice_weight else loss


def soft_dice_loss(probabilities: Tensor, truth: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - (|P| + |T| - |P - T|) / (|P| + |T|), sums over batch and space, mean over channels; (B, C, *S) -> scalar.

    For labels in {0, 1} this is the usual 1 - 2 |P T| / (|P| + |T|). For soft labels it is still smallest at P = T,
    which the usual form is not: at T = 1/2 that one asks for P = 0 or 1.
    """
    dims = (0, *range(2, truth.ndim))
    total = probabilities.sum(dims) + truth.sum(dims)
    difference = (probabilities - truth).abs().sum(dims)
    return 1 - ((total - difference + smooth) / (total + smooth)).mean()


def check_shape(output: Tensor, x_0: Tensor, remedy: str) -> None:
    """Raises ValueError, with the remedy, for an output of another shape than the target's."""
    if output.shape != x_0.shape:
        raise ValueError(f"the network's output is {tuple(output.shape)}, the target {tuple(x_0.shape)}: {remedy}")


def mean_flat(x: Tensor) -> Tensor:
    """Mean over all but the batch dimension; (B, …) -> (B,)."""
    return x.flatten(1).mean(dim=1)
