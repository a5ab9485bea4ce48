"""Samplers: which timesteps are visited, and one reverse step. A table of functions, each the size of its formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .schedule import NoiseSchedule, linspace_timesteps, log_snr_timesteps


class NoiseSource(Protocol):
    """Anything that yields standard normal noise; see ``ensemble.KeyedNoise``."""

    def randn(self, shape: Sequence[int], *, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """Noise of this shape, on this device, in this precision."""
        ...


GeneratorLike = torch.Generator | NoiseSource | None


Moved = tuple[Tensor, Tensor | None]
"""x_prev, and the x_0 for the next step to remember where it is to."""


class Prediction(NamedTuple):
    """What is known at one timestep of a walk.

    Attributes:
        x_t: the state, (B, C, *S).
        x0, eps: the denoiser's own predictions.
        v: ADM's interpolation of the variance, or None.
        shift: guidance, w sqrt(1 - alpha_bar) F, or None.
        x0_before: the guided x_0 of the step before, or None in the first.
    """

    x_t: Tensor
    x0: Tensor
    eps: Tensor
    v: Tensor | None = None
    shift: Tensor | None = None
    x0_before: Tensor | None = None


class Sampler(NamedTuple):
    """A way to walk.

    Attributes:
        timesteps: ``timesteps(schedule, steps) -> visited``, ascending.
        step: ``step(schedule, i, prediction, eta, generator) -> Moved``, with a schedule respaced to the visited
            timesteps and the index i into it.
        stochastic: takes ``eta``.
        draws: noise in every step but the last, whatever ``eta`` is.
    """

    timesteps: Callable[[NoiseSchedule, int], Tensor]
    step: Callable[[NoiseSchedule, int, Prediction, float, GeneratorLike], Moved]
    stochastic: bool = False
    draws: bool = False


def _evenly(schedule: NoiseSchedule, steps: int) -> Tensor:
    return linspace_timesteps(schedule.T, steps)


def _ddpm(s: NoiseSchedule, i: int, at: Prediction, eta: float, generator: GeneratorLike) -> Moved:
    return ddpm_step(s, i, at.x_t, at.x0, at.v, at.shift, generator), None


def _ddim(s: NoiseSchedule, i: int, at: Prediction, eta: float, generator: GeneratorLike) -> Moved:
    eps, x0 = shift_prediction(s, i, at.x_t, at.eps, at.x0, at.shift)
    return ddim_step(s, i, at.x_t, x0, eps, eta, generator), None


def _dpmpp_2m(s: NoiseSchedule, i: int, at: Prediction, eta: float, generator: GeneratorLike) -> Moved:
    _, x0 = shift_prediction(s, i, at.x_t, at.eps, at.x0, at.shift)
    return dpmpp_2m_step(s, i, at.x_t, x0, at.x0_before), x0


SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler(_evenly, _ddim, stochastic=True),
    "ddpm": Sampler(_evenly, _ddpm, draws=True),
    "dpmpp_2m": Sampler(log_snr_timesteps, _dpmpp_2m),
}
"""DDIM (Song et al., 2021), DDPM (eq. 4) and DPM-Solver++(2M) (Lu et al., 2022)."""


# --- one step ---------------------------------------------------------------------------------------------------------


def shift_prediction(
    schedule: NoiseSchedule, i: int, x_t: Tensor, eps: Tensor, x0: Tensor, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Eq. (14): eps_hat = eps - w sqrt(1 - alpha_bar) F, and the x_0 that goes with it."""
    if shift is None:
        return eps, x0
    noise_to_signal = schedule.at("sqrt_one_minus_alpha_bar", i, x_t) / schedule.at("sqrt_alpha_bar", i, x_t)
    return eps - shift, x0 + noise_to_signal * shift


def ddpm_step(
    schedule: NoiseSchedule,
    i: int,
    x_t: Tensor,
    x0: Tensor,
    v: Tensor | None = None,
    shift: Tensor | None = None,
    generator: GeneratorLike = None,
) -> Tensor:
    """Eq. (13): x_{t-1} ~ N(mu + w Sigma F, Sigma), with mu from eq. (6). No noise in the last step.

    Args:
        schedule: respaced to the visited timesteps.
        i: index into it.
        v: ADM's learned interpolation, nominally in [-1, 1], or None for the posterior variance.
        shift: w sqrt(1 - alpha_bar) F.
    """
    mean, variance = schedule.q_posterior(x0, x_t, i)
    if v is not None:
        variance = learned_log_variance(schedule, v, i).exp()
    if shift is not None:
        mean = mean + variance * shift / schedule.at("sqrt_one_minus_alpha_bar", i, x_t)
    if i == 0:
        return mean
    return mean + variance.sqrt() * gaussian(x_t, generator)


def learned_log_variance(schedule: NoiseSchedule, v: Tensor, t: Tensor | int) -> Tensor:
    """Nichol & Dhariwal (2021), eq. 15: log Sigma = u log beta + (1 - u) log posterior variance, u = (v + 1) / 2."""
    u = (v + 1) / 2
    return u * schedule.at("beta", t, v).log() + (1 - u) * schedule.at("posterior_log_variance", t, v)


def ddim_step(
    schedule: NoiseSchedule,
    i: int,
    x_t: Tensor,
    x0: Tensor,
    eps: Tensor,
    eta: float = 0.0,
    generator: GeneratorLike = None,
) -> Tensor:
    """Eq. (15); with eta > 0, eq. 12 of Song et al. (2021), whose eta = 1 is DDPM with the posterior variance."""
    ab_prev, variance = float(schedule.alpha_bar_prev[i]), eta**2 * float(schedule.posterior_variance[i])
    x_prev = math.sqrt(ab_prev) * x0 + math.sqrt(max(0.0, 1 - ab_prev - variance)) * eps
    return x_prev + math.sqrt(variance) * gaussian(x_t, generator) if eta and i else x_prev


def dpmpp_2m_step(schedule: NoiseSchedule, i: int, x_t: Tensor, x0: Tensor, x0_before: Tensor | None) -> Tensor:
    """Lu et al. (2022b), algorithm 2: second-order multistep in log-SNR; the last step, to alpha_bar = 1, is x_0.

    Args:
        x0_before: the prediction of the step before (index i + 1), or None in the first step (first order).
    """
    if i == 0:
        return x0
    lam = schedule.log_snr
    h = float(lam[i - 1] - lam[i])
    D = x0
    if x0_before is not None:
        r = float(lam[i] - lam[i + 1]) / h
        D = x0 + (x0 - x0_before) / (2 * r)
    ab, ab_prev = float(schedule.alpha_bar[i]), float(schedule.alpha_bar[i - 1])
    decay = ((1 - ab_prev) / (1 - ab)) ** 0.5
    return decay * x_t - ab_prev**0.5 * math.expm1(-h) * D


def gaussian(x: Tensor, generator: GeneratorLike = None) -> Tensor:
    """Standard normal noise shaped like ``x``, drawn where the generator lives."""
    if generator is None or isinstance(generator, torch.Generator):
        device = x.device if generator is None else generator.device
        return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)
    return generator.randn(x.shape, device=x.device, dtype=x.dtype)
