"""Training objectives: noise prediction and its relatives, learned variance, masks, the guidance network.

Each objective of the denoiser is a function ``objective(output, x_0, eps, x_t, t, schedule) -> loss per example (B,)``;
:class:`DiffusionLoss` draws t and eps and applies one. :class:`GuidanceLoss` stands apart: its x_t are given to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .sampling import gaussian, learned_log_variance, split_variance
from .schedule import NoiseSchedule

Objective = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, NoiseSchedule], Tensor]
TimestepDraw = Callable[..., Tensor]
"""``draw(T, batch, generator, device) -> t``, int64 (B,)."""


def uniform_timesteps(T: int, batch: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """t uniform over 0 … T-1, as in the training algorithm of Ho et al. (2020)."""
    return torch.randint(T, (batch,), generator=generator, device=device)


class NoisyTimesteps:
    """t drawn more often where noise prevails: t = floor(T (1 - u^power)), u uniform on [0, 1).

    The density grows like (1 - t/T)^(1/power - 1). At power 2, 45 % of the draws are at or above 0.8 T, where a mask
    must be found in the image alone, and 18 % below T/3, where x_t shows it. Power 1 is uniform.

    Raises:
        ValueError: for a power that is not positive.
    """

    def __init__(self, power: float = 2.0) -> None:
        if power <= 0:
            raise ValueError(f"power must be positive, not {power}")
        self.power = power

    def __call__(self, T: int, batch: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        u = torch.rand(batch, generator=generator, device=device, dtype=torch.float64)
        return (T * (1 - u**self.power)).long().clamp(max=T - 1)  # u = 0 would be T


class DiffusionLoss(nn.Module):
    """Draw t and eps, form x_t by eq. (3), and score the network's output there.

    Args:
        schedule: the training schedule.
        objective: a function of this module, by default :func:`simple_loss`.
        timesteps: how t is drawn, by default :func:`uniform_timesteps`. Another draw weighs the timesteps differently;
            what is best at each of them stays the same.
    """

    def __init__(
        self, schedule: NoiseSchedule, objective: Objective | None = None, timesteps: TimestepDraw = uniform_timesteps
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.objective = objective or simple_loss
        self.timesteps = timesteps

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
        t = self.timesteps(self.schedule.T, x_0.shape[0], generator, device).to(x_0.device)
        eps = gaussian(x_0, generator)
        x_t = self.schedule.q_sample(x_0, t, eps)
        output = network(x_t, t, context, **network_arguments)
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        return self.objective(output, x_0, eps, x_t, t, self.schedule).mean()


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
    _check_shape(output, x_0, "a network that predicts its variance trains with hybrid_loss")
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


class MaskLoss:
    """Cross-entropy and Dice on the predicted x_0 of a mask: an objective for :class:`DiffusionLoss`.

    The network's output is read as class logits: softmax over C channels, a sigmoid for one. Decoded to +-1 channels
    by ``ensemble.MaskDenoiser`` they are E[x_0 | x_t, y] where cross-entropy alone is minimal, so the network stays a
    denoiser. The Dice term pulls the probabilities towards 0 and 1; ``dice_weight=0`` leaves the exact denoiser.

    Args:
        dice_weight: weight of the soft Dice term. It is pooled over the batch (so that a slice without a structure
            does not dominate it), the same for every example, and leaves out the background.
        class_weights: factors of each pixel's cross-entropy by its true class, or None; the mean over pixels stays
            unweighted. Two values, background and foreground, when C = 1.
        scale: magnitude of the encoded mask. Given, x_0 / scale is read as probabilities, so that soft labels count as
            such; by default a class is present where its channel is positive.
    """

    def __init__(
        self, dice_weight: float = 1.0, class_weights: Sequence[float] | None = None, scale: float | None = None
    ) -> None:
        self.dice_weight = dice_weight
        self.class_weights = class_weights
        self.scale = scale

    def __call__(
        self, output: Tensor, x_0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule
    ) -> Tensor:
        """output: logits (B, C, *S); x_0: encoded masks (B, C, *S). -> (B,)."""
        _check_shape(output, x_0, "one logit for each channel of the mask")
        truth = self.truth(x_0).to(output.dtype)
        if output.shape[1] == 1:
            probabilities, foreground = output.sigmoid(), truth
            output = torch.cat([torch.zeros_like(output), output], dim=1)  # sigmoid(a) = softmax(0, a)
            truth = torch.cat([1 - truth, truth], dim=1)
        else:
            probabilities, foreground = output.softmax(dim=1)[:, 1:], truth[:, 1:]
        weights = None if self.class_weights is None else output.new_tensor(self.class_weights)
        loss = mean_flat(F.cross_entropy(output, truth, weight=weights, reduction="none"))
        if self.dice_weight:
            loss = loss + self.dice_weight * soft_dice_loss(probabilities, foreground)
        return loss

    def truth(self, x_0: Tensor) -> Tensor:
        """Class probabilities of the encoded masks, shaped like ``x_0``."""
        return (x_0 > 0).float() if self.scale is None else ((x_0 / self.scale + 1) / 2).clamp(0, 1)


def soft_dice_loss(probabilities: Tensor, truth: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - (|P| + |T| - |P - T|) / (|P| + |T|), sums over batch and space, mean over channels; (B, C, *S) -> scalar.

    For labels in {0, 1} this is the usual 1 - 2 |P T| / (|P| + |T|). For soft labels it is still smallest at P = T,
    which the usual form is not: at T = 1/2 that one asks for P = 0 or 1.
    """
    dims = (0, *range(2, truth.ndim))
    total = probabilities.sum(dims) + truth.sum(dims)
    difference = (probabilities - truth).abs().sum(dims)
    return 1 - ((total - difference + smooth) / (total + smooth)).mean()


class GuidanceLoss(nn.Module):
    """Eq. (10), || F + score_theta(x_t | y) - score(x_t | s_0) ||^2, for a network f = sqrt(1 - alpha_bar) F.

    With eqs. (11) and (12) the bracket is (f - target) / sqrt(1 - alpha_bar), the target being
    :func:`guidance_target`. Every weighting has the same minimiser; they differ in how much each timestep counts.

    Args:
        schedule: the denoiser's.
        weighting: "simple" is (1 - alpha_bar) times eq. (10), the mean squared error of f. "literal" is eq. (10) as
            printed, 1 / (1 - alpha_bar) times that: up to 10^4 at t = 0. "bounded" is min(1, 1 / SNR) times the error
            of f, with SNR = alpha_bar / (1 - alpha_bar): it counts the error of f where noise prevails, and of the
            implied x_0 where signal does, so that no timestep outweighs the others. "sample" is 1 / SNR times the
            error of f at every t, the error of the implied x_0: for denoisers that predict x_0 or v (see
            ``guidance.ScaledGuide``).

    Raises:
        ValueError: for an unknown weighting.
    """

    def __init__(self, schedule: NoiseSchedule, weighting: str = "simple") -> None:
        super().__init__()
        if weighting not in GUIDANCE_WEIGHTINGS:
            raise ValueError(f"weighting must be one of {', '.join(GUIDANCE_WEIGHTINGS)}, not {weighting!r}")
        self.schedule = schedule
        self.weighting = weighting

    def forward(
        self,
        guide: Callable[..., Tensor],
        x_t: Tensor,
        t: Tensor,
        target: Tensor,
        context: Any = None,
        **network_arguments: Any,
    ) -> Tensor:
        """Mean loss over the batch.

        Args:
            guide: called as ``guide(x_t, t, context, **network_arguments)``; only the first C channels of a network
                with learned variance count.
            x_t: (B, C, *S), from the reverse chain (the paper) or from q(x_t | s_0).
            t: int64, (B,).
            target: of f, as :func:`guidance_target` returns it.
        """
        f, _ = split_variance(guide(x_t, t, context, **network_arguments), x_t)
        ab = self.schedule.at("alpha_bar", t, x_t)
        return (GUIDANCE_WEIGHTINGS[self.weighting](ab) * (f.float() - target) ** 2).mean()


GUIDANCE_WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "simple": torch.ones_like,
    "literal": lambda ab: 1 / (1 - ab),
    "bounded": lambda ab: ((1 - ab) / ab).clamp(max=1),
    "sample": lambda ab: (1 - ab) / ab,
}
"""Weight of the squared error of f, as a function of alpha_bar."""


def guidance_target(eps: Tensor, s_0: Tensor, x_t: Tensor, t: Tensor | int, schedule: NoiseSchedule) -> Tensor:
    """What f should be on average: sqrt(1 - alpha_bar) (score(x_t | s_0) - score_theta(x_t | y)), eqs. (11, 12).

    Equally sqrt(SNR) times the error of the predicted x_0, which is how large it gets when t -> 0.

    Args:
        eps: the frozen denoiser's noise prediction at (x_t, t), (B, C, *S); ``schedule.to_eps`` makes it of any output.
        s_0: the true target, (B, C, *S).
    """
    return eps - schedule.eps_from_x0(s_0, x_t, t)


def _check_shape(output: Tensor, x_0: Tensor, remedy: str) -> None:
    if output.shape != x_0.shape:
        raise ValueError(f"the network's output is {tuple(output.shape)}, the target {tuple(x_0.shape)}: {remedy}")


def mean_flat(x: Tensor) -> Tensor:
    """Mean over all but the batch dimension; (B, …) -> (B,)."""
    return x.flatten(1).mean(dim=1)
