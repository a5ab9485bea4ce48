"""Closed-form truths: the diffusion of a Gaussian, whose score, optimal networks and sampler outputs are known.

x_0 | y ~ N(m, s^2) in every pixel. Then x_t ~ N(sqrt(ab) m, ab s^2 + 1 - ab), with ab = alpha_bar[t], and all samplers
are affine in x_T: two points, 0 and 1, give the mean and the standard deviation of what a sampler makes of N(0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from cgdpm_med.diffusion.sampling import DenoiserLike, sample
from cgdpm_med.diffusion.schedule import NoiseSchedule


class Gaussian:
    """N(m, s^2) and what an optimal network predicts for it.

    Args:
        schedule: gives alpha_bar and the prediction type of :meth:`__call__`.
    """

    def __init__(self, schedule: NoiseSchedule, m: float = 0.7, s: float = 0.5) -> None:
        self.schedule, self.m, self.s = schedule, m, s

    def _alpha_bar(self, t: Tensor, like: Tensor) -> Tensor:
        return self.schedule.alpha_bar[t.cpu()].to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))

    def marginal_std(self, alpha_bar: Tensor) -> Tensor:
        """Standard deviation of x_t."""
        return (alpha_bar * self.s**2 + 1 - alpha_bar).sqrt()

    def score(self, x_t: Tensor, t: Tensor) -> Tensor:
        """grad log p(x_t)."""
        ab = self._alpha_bar(t, x_t)
        return -(x_t - ab.sqrt() * self.m) / (ab * self.s**2 + 1 - ab)

    def x0(self, x_t: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t], by the formula of Tweedie."""
        ab = self._alpha_bar(t, x_t)
        return (x_t + (1 - ab) * self.score(x_t, t)) / ab.sqrt()

    def eps(self, x_t: Tensor, t: Tensor) -> Tensor:
        """E[eps | x_t]."""
        return -(1 - self._alpha_bar(t, x_t)).sqrt() * self.score(x_t, t)

    def __call__(self, x_t: Tensor, t: Tensor, context: object = None) -> Tensor:
        """The optimal denoiser, in the schedule's prediction type."""
        if self.schedule.prediction_type == "epsilon":
            return self.eps(x_t, t)
        if self.schedule.prediction_type == "sample":
            return self.x0(x_t, t)
        ab = self._alpha_bar(t, x_t)
        return ab.sqrt() * self.eps(x_t, t) - (1 - ab).sqrt() * self.x0(x_t, t)

    def guidance_score(self, x_t: Tensor, t: Tensor) -> Tensor:
        """F*: the minimiser of eq. (10) when x_t comes from the reverse chain, so that E[s_0 | x_t, y] = m."""
        ab = self._alpha_bar(t, x_t)
        return -(x_t - ab.sqrt() * self.m) * (1 / (1 - ab) - 1 / (ab * self.s**2 + 1 - ab))

    def guide(self, x_t: Tensor, t: Tensor, context: object = None) -> Tensor:
        """The optimal guidance network, f = sqrt(1 - alpha_bar) F*."""
        return (1 - self._alpha_bar(t, x_t)).sqrt() * self.guidance_score(x_t, t)

    def probability_flow(self, x_T: Tensor, alpha_bar_T: Tensor, alpha_bar: Tensor) -> Tensor:
        """Exact solution of the probability-flow equation: the distance from the mean scales with the marginal std."""
        deviations = (x_T - alpha_bar_T.sqrt() * self.m) / self.marginal_std(alpha_bar_T)
        return alpha_bar.sqrt() * self.m + deviations * self.marginal_std(alpha_bar)


def sampled_mean_std(denoiser: DenoiserLike, schedule: NoiseSchedule, **as_trajectory: Any) -> tuple[float, float]:
    """Mean and standard deviation of a deterministic affine sampler's output for x_T ~ N(0, 1), without sampling."""
    x_T = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1)
    at_0, at_1 = sample(denoiser, x_T, None, schedule, **as_trajectory).flatten().tolist()
    return at_0, abs(at_1 - at_0)


def reverse_pairs(schedule: NoiseSchedule, timesteps: Sequence[int]) -> Iterator[tuple[float, float]]:
    """(alpha_bar, alpha_bar of the next visited timestep) from noise to data; the last step goes to 1."""
    ab = [1.0, *(float(schedule.alpha_bar[t]) for t in sorted(timesteps))]
    for i in range(len(ab) - 1, 0, -1):
        yield ab[i], ab[i - 1]


def ddim_mean_std(gaussian: Gaussian, timesteps: Sequence[int], start: tuple[float, float]) -> tuple[float, float]:
    """Exact mean and standard deviation after deterministic DDIM from x_T ~ N(*start), in scalars, from eq. (15)."""
    m, s = gaussian.m, gaussian.s
    mean, std = start
    for ab, ab_prev in reverse_pairs(gaussian.schedule, timesteps):
        variance = ab * s**2 + 1 - ab
        # x_prev = sqrt(ab_prev) m + slope (x_t - sqrt(ab) m)
        slope = (math.sqrt(ab_prev * ab) * s**2 + math.sqrt((1 - ab_prev) * (1 - ab))) / variance
        mean = math.sqrt(ab_prev) * m + slope * (mean - math.sqrt(ab) * m)
        std *= slope
    return mean, std


def ddpm_mean_std(gaussian: Gaussian, timesteps: Sequence[int]) -> tuple[float, float]:
    """Exact mean and standard deviation after DDPM with the posterior variance, from x_T ~ N(0, 1).

    Each step is affine in x_t and adds independent noise; scalars in a plain loop, from eqs. (6) and (7).
    """
    m, s = gaussian.m, gaussian.s
    mean, variance = 0.0, 1.0
    for ab, ab_prev in reverse_pairs(gaussian.schedule, timesteps):
        alpha = ab / ab_prev
        coef_x0 = math.sqrt(ab_prev) * (1 - alpha) / (1 - ab)
        coef_xt = math.sqrt(alpha) * (1 - ab_prev) / (1 - ab)
        # E[x_0 | x_t] = m + gain (x_t - sqrt(ab) m)
        gain = math.sqrt(ab) * s**2 / (ab * s**2 + 1 - ab)
        slope = coef_x0 * gain + coef_xt
        mean = slope * mean + coef_x0 * m * (1 - gain * math.sqrt(ab))
        variance = slope**2 * variance + (1 - alpha) * (1 - ab_prev) / (1 - ab)
    return mean, math.sqrt(variance)


def guided_std(schedule: NoiseSchedule, s: float, w: float) -> float:
    """Standard deviation after DDIM guided by F* with scale w, in the limit of many steps.

    (1 - w) s^(1-w) smin^w (S^2 / (s^2 + S^2))^((1-w)/2) with smin^2 = (1 - ab_0) / ab_0 and S^2 = (1 - ab_T) / ab_T.
    """
    ab_0, ab_T = float(schedule.alpha_bar[0]), float(schedule.alpha_bar[-1])
    smin, S2 = math.sqrt((1 - ab_0) / ab_0), (1 - ab_T) / ab_T
    return (1 - w) * s ** (1 - w) * smin**w * (S2 / (s**2 + S2)) ** ((1 - w) / 2)
