"""The reverse process: DDPM, DDIM and DPM-Solver++(2M) as one generator of steps.

A denoiser is any callable ``denoiser(x_t, t, context) -> output`` with t int64 of shape (B,) and the output
(B, C, *S), or (B, 2C, *S) when it also predicts ADM's variance interpolation. If it has ``encode_condition(y)`` the
context is encoded once, before the first step; what it returns serves K members of each image and is no bare tensor,
unless it is y itself. A guided denoiser (guidance.py) returns :class:`Guided` instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .schedule import NoiseSchedule, linspace_timesteps, log_snr_timesteps

Denoiser = Callable[[Tensor, Tensor, Any], Any]
METHODS = ("ddim", "ddpm", "dpmpp_2m")


class NoiseSource(Protocol):
    """Anything that yields standard normal noise; see ``ensemble.KeyedNoise``."""

    def randn(self, shape: Sequence[int], *, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """Noise of this shape, on this device, in this precision."""
        ...


GeneratorLike = torch.Generator | NoiseSource | None


class Guided(NamedTuple):
    """A denoiser's output with the guidance beside it: w f = w sqrt(1 - alpha_bar) F, or None where guidance is off."""

    output: Tensor
    shift: Tensor | None


class Step(NamedTuple):
    """One reverse step: the timestep, the state it started from, what was predicted there, the state it reached.

    ``eps`` and ``x0`` are the denoiser's own, before guidance; ``x0`` is after clipping or correction.
    """

    t: int
    x_t: Tensor
    eps: Tensor
    x0: Tensor
    x_prev: Tensor


def trajectory(
    denoiser: Denoiser,
    x_T: Tensor,
    context: Any,
    schedule: NoiseSchedule,
    *,
    steps: int = 20,
    method: str = "ddim",
    eta: float = 0.0,
    clip: tuple[float, float] | None = None,
    correct: Callable[[Tensor], Tensor] | None = None,
    start: int | None = None,
    timesteps: Sequence[int] | Tensor | None = None,
    generator: GeneratorLike = None,
) -> Iterator[Step]:
    """Walk the reverse chain from x_T to x_0, yielding every step, without gradients.

    Args:
        x_T: Gaussian noise, (B, C, *S), float32 or float64; x_start for a truncated chain.
        context: handed to the denoiser, encoded once if it can be.
        steps: number of denoiser evaluations. DDPM and DDIM take evenly spaced timesteps, DPM-Solver++ even log-SNR.
        method: "ddim" (Song et al., 2021), "ddpm" (eq. 4) or "dpmpp_2m" (Lu et al., 2022).
        eta: DDIM's noise, between 0 (deterministic) and 1 (DDPM's variance).
        clip: bounds on the predicted x_0.
        correct: what every predicted x_0 goes through instead, for example a target's ``correct``.
        start: the first visited timestep, T-1 by default. A smaller one truncates the chain (Zheng et al., 2022): good
            where x_start is nearly noise still, or made by ``schedule.q_sample`` from an estimate of x_0 (Chung et
            al., 2022).
        timesteps: the visited timesteps instead of ``steps`` and ``start``, in any order.
        generator: of the noise in stochastic steps; the global one by default.

    Raises:
        ValueError: at the call, for an unknown method, steps outside 1 … start + 1, timesteps given twice or outside
            0 … T-1, eta outside [0, 1] or given to a method that has none, a denoiser that says it predicts something
            else than the schedule.
    """
    check_prediction(getattr(denoiser, "prediction_type", None), schedule)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    if eta and method != "ddim":
        raise ValueError(f"eta belongs to ddim; {method} has none")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be between 0 and 1, not {eta}")
    if timesteps is not None:
        kept = torch.as_tensor(timesteps).sort().values
    else:
        walked = schedule if start is None else schedule.respace(range(check_start(start, schedule.T) + 1))
        kept = log_snr_timesteps(walked, steps) if method == "dpmpp_2m" else linspace_timesteps(walked.T, steps)
    return _walk(denoiser, x_T, context, schedule.respace(kept), method, eta, correct or _clipping(clip), generator)


def _clipping(clip: tuple[float, float] | None) -> Callable[[Tensor], Tensor] | None:
    return None if clip is None else lambda x0: x0.clamp(*clip)


def check_prediction(prediction_type: str | None, schedule: NoiseSchedule) -> None:
    """Raises ValueError where a network's outputs would be read as something else; None says nothing of them."""
    if prediction_type not in (None, schedule.prediction_type):
        raise ValueError(
            f"the denoiser predicts {prediction_type!r}, and the schedule reads its outputs as "
            f"{schedule.prediction_type!r}: give NoiseSchedule(…, prediction_type={prediction_type!r})"
        )


def check_start(start: int, T: int) -> int:
    """The first timestep of a truncated chain, 0 … T-1.

    Raises:
        ValueError: for any other.
    """
    if start != int(start) or not 0 <= start < T:
        raise ValueError(f"a truncated chain must start at a timestep 0 … {T - 1}, not {start}")
    return int(start)


@torch.no_grad()
def _walk(
    denoiser: Denoiser,
    x_T: Tensor,
    context: Any,
    spaced: NoiseSchedule,
    method: str,
    eta: float,
    correct: Callable[[Tensor], Tensor] | None,
    generator: GeneratorLike,
) -> Iterator[Step]:
    """The loop of :func:`trajectory` over every entry of a respaced schedule."""
    context = encode(denoiser, context)
    x_t = x_T
    before: Tensor | None = None
    for i in reversed(range(spaced.T)):
        t = int(spaced.timesteps[i])
        output, shift = denoise(denoiser, x_t, t, context)
        output, variance = split_variance(output, x_t)
        x0 = spaced.to_x0(output, x_t, i)
        if correct is None:
            eps = spaced.to_eps(output, x_t, i)
        else:
            x0 = correct(x0)
            eps = spaced.eps_from_x0(x0, x_t, i)
        if method == "ddpm":
            x_prev = ddpm_step(spaced, i, x_t, x0, variance, shift, generator)
        else:
            eps_hat, x0_hat = shift_prediction(spaced, i, x_t, eps, x0, shift)
            if method == "ddim":
                x_prev = ddim_step(spaced, i, x_t, x0_hat, eps_hat, eta, generator)
            else:
                x_prev = dpmpp_2m_step(spaced, i, x_t, x0_hat, before)
                before = x0_hat
        yield Step(t, x_t, eps, x0, x_prev)
        x_t = x_prev
        del output, shift, variance, x0, eps, x_prev  # large images: hold nothing of this step during the next


def sample(denoiser: Denoiser, x_T: Tensor, context: Any, schedule: NoiseSchedule, **as_trajectory: Any) -> Tensor:
    """The x_0 at the end of :func:`trajectory`, which takes the same arguments. (B, C, *S) -> (B, C, *S)."""
    x_0 = x_T
    for step in trajectory(denoiser, x_T, context, schedule, **as_trajectory):
        x_0 = step.x_prev
        del step  # its other tensors need not be held during the next one
    return x_0


def encode(denoiser: Denoiser, context: Any) -> Any:
    """The denoiser's features of the condition image, when it can compute them ahead; else the context itself."""
    if isinstance(context, Tensor) and hasattr(denoiser, "encode_condition"):
        return denoiser.encode_condition(context)
    return context


def denoise(denoiser: Denoiser, x_t: Tensor, t: int, context: Any) -> Guided:
    """Evaluate the denoiser at one timestep for the whole batch, guided or not."""
    # filled on the device, as a copy would have the CPU wait for a GPU's queue; expanded, so that a network can tell
    # from the stride that one timestep serves the batch
    times = torch.full((1,), t, device=x_t.device).expand(len(x_t))
    output = denoiser(x_t, times, context)
    return output if isinstance(output, Guided) else Guided(output, None)


def split_variance(output: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor | None]:
    """Separate (B, 2C, *S) into the prediction and ADM's v; v is None when the network has no learned variance.

    Raises:
        ValueError: for an output with neither C nor 2C channels.
    """
    output = output.to(x_t.dtype)
    if output.shape[1] == x_t.shape[1]:
        return output, None
    if output.shape[1] == 2 * x_t.shape[1]:
        prediction, v = output.chunk(2, dim=1)
        return prediction, v
    raise ValueError(f"x_t has {x_t.shape[1]} channels, the network's output {output.shape[1]}: expected C or 2C")


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
    ab_prev = schedule.at("alpha_bar_prev", i, x_t)
    sigma = eta * schedule.at("posterior_variance", i, x_t).sqrt()
    x_prev = ab_prev.sqrt() * x0 + (1 - ab_prev - sigma**2).clamp(min=0).sqrt() * eps
    return x_prev + sigma * gaussian(x_t, generator) if eta and i else x_prev


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
