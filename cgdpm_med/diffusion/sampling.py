"""The reverse process: what is set of it (:class:`Sampling`), and the walk from x_T to x_0 as a generator of steps.

A denoiser is any callable ``denoiser(x_t, t, context) -> output`` with t int64 of shape (B,) and the output
(B, C, *S), or (B, 2C, *S) when it also predicts ADM's variance interpolation. If it has ``encode(y)``, as every
:class:`~cgdpm_med.networks.denoiser.Denoiser` has, the condition is encoded once, before the first step. A guided
denoiser (guidance.py) returns :class:`Guided` instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cgdpm_med.networks.denoiser import as_denoiser, evaluate, features_of, per_member

from .samplers import SAMPLERS, GeneratorLike, Prediction
from .schedule import NoiseSchedule

DenoiserLike = Callable[[Tensor, Tensor, Any], Any]
METHODS = tuple(SAMPLERS)


@dataclass(frozen=True)
class Sampling:
    """Every dial of how samples are drawn; passed, recorded and compared as a whole.

    Attributes:
        steps: evaluations of the denoiser for each member.
        method: a name of :data:`~.samplers.SAMPLERS`.
        eta: DDIM's noise, between 0 (deterministic) and 1 (DDPM's variance).
        noise_scale: standard deviation of the x_T that members start from, in walks that draw no other noise. Below 1
            they lie nearer to the mean and differ less than the truth may (the temperature of Kingma & Dhariwal, 2018).
        start: the first visited timestep, T-1 by default. A smaller one truncates the chain (Zheng et al., 2022): good
            where x_start is nearly noise still, or made by ``schedule.q_sample`` from an estimate of x_0 (Chung et al.,
            2022).
        timesteps: the visited timesteps instead of ``steps`` and ``start``, in any order. The x_0 predicted at the
            least of them is the answer: they need not end at 0. ``steps`` is then their number, and ``start`` None.
        members: K, samples for each condition image.
        seed: base seed of the noise; a member depends on (seed, key, member) alone.
        guidance_scale: w of the guidance network, where there is one; 0 is off, 1 the paper's.
        guidance_interval: [t_lo, t_hi) in which it acts; None is everywhere.
        shared_noise: a member has one noise for all slices of a volume, and does in one slice what it does in the next.
        shared_first_step: one evaluation for each image serves the first step of all its members where x_T is all but
            noise, see :meth:`shares_first_step`.

    Raises:
        ValueError: for dials that no schedule could have.
    """

    steps: int = 10
    method: str = "ddim"
    eta: float = 0.0
    noise_scale: float = 1.0
    start: int | None = None
    timesteps: tuple[int, ...] | None = None
    members: int = 8
    seed: int = 0
    guidance_scale: float = 1.0
    guidance_interval: tuple[int, int] | None = None
    shared_noise: bool = True
    shared_first_step: bool = False

    def __post_init__(self) -> None:
        for name in ("timesteps", "guidance_interval"):  # lists of a configuration, tensors: values that compare
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(torch.as_tensor(value).tolist()))
        if self.timesteps is not None:  # one walk, one way to write it down
            object.__setattr__(self, "timesteps", check_timesteps(self.timesteps))
            object.__setattr__(self, "steps", len(self.timesteps))
            object.__setattr__(self, "start", None)
        if self.method not in SAMPLERS:
            raise ValueError(f"method must be one of {', '.join(SAMPLERS)}, not {self.method!r}")
        if self.eta and not SAMPLERS[self.method].stochastic:
            raise ValueError(f"eta belongs to ddim; {self.method} has none")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be between 0 and 1, not {self.eta}")
        if self.noise_scale != 1:
            self._check_noise_scale()
        if not 0 <= self.guidance_scale < math.inf:
            raise ValueError(f"guidance_scale must be 0 or more, and finite, not {self.guidance_scale}")
        if self.members < 1:
            raise ValueError(f"an ensemble needs at least one member, not {self.members}")

    def with_dials(self, **dials: Any) -> Sampling:
        """A copy with other values of some fields. Steps or a start given without timesteps take the place of these.

        Raises:
            ValueError: for dials that no schedule could have.
        """
        if dials.get("steps") is not None or dials.get("start") is not None:
            dials = {"timesteps": None} | dials
        return replace(self, **dials)

    def _check_noise_scale(self) -> None:
        if not 0 <= self.noise_scale < math.inf:
            raise ValueError(f"noise_scale must be 0 or more, not {self.noise_scale}")
        if self.eta or SAMPLERS[self.method].draws:
            raise ValueError("noise_scale is for walks that draw no noise on the way, ddim with eta 0 or dpmpp_2m")
        if self.noise_scale == 0 and self.members > 1:
            raise ValueError(f"noise_scale 0 makes {self.members} members alike: take one member, or a larger scale")

    def visited(self, schedule: NoiseSchedule) -> Tensor:
        """The timesteps of the walk, ascending, int64.

        Raises:
            ValueError: for steps, a start, an interval or timesteps beyond the schedule.
        """
        check_interval(self.guidance_interval, schedule.T)
        if self.timesteps is not None:
            return torch.as_tensor(check_timesteps(self.timesteps, schedule.T), dtype=torch.int64).flip(0)
        last = schedule.T - 1 if self.start is None else check_start(self.start, schedule.T)
        if not 1 <= self.steps <= last + 1:
            raise ValueError(f"steps must be between 1 and {last + 1} (the chain's timesteps), not {self.steps}")
        walked = schedule if self.start is None else schedule.respace(range(last + 1))
        return SAMPLERS[self.method].timesteps(walked, self.steps)

    def shares_first_step(self, schedule: NoiseSchedule) -> bool:
        """Whether one prediction of x_0 serves the first step of all members of an image.

        It does where that is wanted and the first timestep is all but noise (:meth:`.NoiseSchedule.is_noise`): what is
        predicted there does not depend on which x_T it is predicted from. Other first steps are each member's own.

        Raises:
            ValueError: for a denoiser of eps, whose x_0 in pure noise is its error magnified.
        """
        if not (self.shared_first_step and schedule.is_noise(int(self.visited(schedule)[-1]))):
            return False
        if schedule.prediction_type == "epsilon":
            raise ValueError("a shared first step needs a denoiser that predicts x_0 or v: eps says nothing in noise")
        return True


BEFORE_DIALS: dict[str, Any] = {"eta": 0.0, "noise_scale": 1.0, "timesteps": None, "shared_first_step": False}
"""What records of version 0.1 do not say of the sampling, and what it was."""


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
    denoiser: DenoiserLike,
    x_T: Tensor,
    context: Any,
    schedule: NoiseSchedule,
    sampling: Sampling | None = None,
    *,
    clip: tuple[float, float] | None = None,
    correct: Callable[[Tensor], Tensor] | None = None,
    generator: GeneratorLike = None,
    first: Prediction | None = None,
    **dials: Any,
) -> Iterator[Step]:
    """Walk the reverse chain from x_T to x_0, yielding every step, without gradients.

    Args:
        x_T: Gaussian noise, (B, C, *S), float32 or float64; x_start for a truncated chain.
        context: handed to the denoiser, encoded once if it can be.
        sampling: how; twenty steps of DDIM by default. DDPM and DDIM take evenly spaced timesteps, DPM-Solver++ even
            log-SNR.
        clip: bounds on the predicted x_0.
        correct: what every predicted x_0 goes through instead, for example a target's ``correct``.
        generator: of the noise in stochastic steps; the global one by default.
        first: of :func:`first_prediction`, for x_T of K members of each of its images: stands for an evaluation in the
            first step.
        dials: fields of :class:`Sampling`, in place of those of ``sampling``.

    Raises:
        ValueError: at the call, for dials that do not fit together or not to the schedule, and for a denoiser that says
            it predicts something else than the schedule.
    """
    check_prediction(getattr(denoiser, "prediction_type", None), schedule)
    sampling = (sampling or Sampling(steps=20)).with_dials(**dials)
    spaced = schedule.respace(sampling.visited(schedule))
    return _walk(denoiser, x_T, context, spaced, sampling, correct or _clipping(clip), generator, first)


@torch.no_grad()
def first_prediction(
    denoiser: DenoiserLike,
    x_T: Tensor,
    context: Any,
    schedule: NoiseSchedule,
    sampling: Sampling,
    *,
    clip: tuple[float, float] | None = None,
    correct: Callable[[Tensor], Tensor] | None = None,
) -> Prediction:
    """What is predicted in the first step, for :func:`trajectory` to share among the members of each image.

    Args:
        x_T: one for each image, (B, C, *S).
        context, clip, correct: as for :func:`trajectory`, of these B images.
    """
    denoiser = as_denoiser(denoiser)
    t = int(sampling.visited(schedule)[-1])
    return predict(denoiser, x_T, features_of(denoiser, context), schedule, t, correct or _clipping(clip))


def check_prediction(prediction_type: str | None, schedule: NoiseSchedule) -> None:
    """Raises ValueError where a network's outputs would be read as something else; None says nothing of them."""
    if prediction_type not in (None, schedule.prediction_type):
        raise ValueError(
            f"the denoiser predicts {prediction_type!r}, and the schedule reads its outputs as "
            f"{schedule.prediction_type!r}: give NoiseSchedule(…, prediction_type={prediction_type!r})"
        )


def _clipping(clip: tuple[float, float] | None) -> Callable[[Tensor], Tensor] | None:
    return None if clip is None else lambda x0: x0.clamp(*clip)


def check_timesteps(timesteps: Sequence[float], T: int | None = None) -> tuple[int, ...]:
    """The visited timesteps from the first, the greatest, to the last.

    Raises:
        ValueError: for none, one twice, or one that is not 0 … T-1.
    """
    ordered = tuple(sorted((int(t) for t in timesteps), reverse=True))
    most = math.inf if T is None else T - 1
    whole = all(t == int(t) and 0 <= t <= most for t in timesteps)
    if not ordered or not whole or len(set(ordered)) < len(ordered):
        chain = "of 0 or more" if T is None else f"0 … {T - 1}"
        raise ValueError(f"timesteps must be different whole numbers {chain}, not {list(timesteps)}")
    return ordered


def check_start(start: int, T: int) -> int:
    """The first timestep of a truncated chain, 0 … T-1.

    Raises:
        ValueError: for any other.
    """
    if start != int(start) or not 0 <= start < T:
        raise ValueError(f"a truncated chain must start at a timestep 0 … {T - 1}, not {start}")
    return int(start)


def check_interval(interval: Sequence[int] | None, T: int) -> tuple[int, int]:
    """The guidance interval [t_lo, t_hi) as two integers; (0, T) for None.

    Raises:
        ValueError: for one outside 0 <= t_lo <= t_hi <= T.
    """
    t_lo, t_hi = (0, T) if interval is None else interval
    if t_lo != int(t_lo) or t_hi != int(t_hi) or not 0 <= t_lo <= t_hi <= T:
        raise ValueError(f"the guidance interval must be timesteps 0 <= t_lo <= t_hi <= {T}, not [{t_lo}, {t_hi})")
    return int(t_lo), int(t_hi)


@torch.no_grad()
def _walk(
    denoiser: DenoiserLike,
    x_T: Tensor,
    context: Any,
    spaced: NoiseSchedule,
    sampling: Sampling,
    correct: Callable[[Tensor], Tensor] | None,
    generator: GeneratorLike,
    first: Prediction | None,
) -> Iterator[Step]:
    """The loop of :func:`trajectory` over every entry of a respaced schedule."""
    denoiser, sampler = as_denoiser(denoiser), SAMPLERS[sampling.method]
    context = features_of(denoiser, context)
    x_t = x_T
    before: Tensor | None = None
    for i in reversed(range(spaced.T)):
        if first is None:
            at = predict(denoiser, x_t, context, spaced, i, correct)
        else:
            at, first = for_members(first, x_t, spaced, i), None
        x_prev, before = sampler.step(spaced, i, at._replace(x0_before=before), sampling.eta, generator)
        yield Step(int(spaced.timesteps[i]), x_t, at.eps, at.x0, x_prev)
        x_t = x_prev
        del x_prev, at  # large images: hold nothing of this step during the next


def predict(
    denoiser: DenoiserLike,
    x_t: Tensor,
    context: Any,
    schedule: NoiseSchedule,
    i: int,
    correct: Callable[[Tensor], Tensor] | None,
) -> Prediction:
    """Evaluate the denoiser at index i of a schedule, and read its output."""
    output, shift = denoise(denoiser, x_t, int(schedule.timesteps[i]), context)
    output, v = split_variance(output, x_t)
    x0 = schedule.to_x0(output, x_t, i)
    if correct is None:
        return Prediction(x_t, x0, schedule.to_eps(output, x_t, i), v, shift)
    x0 = correct(x0)
    return Prediction(x_t, x0, schedule.eps_from_x0(x0, x_t, i), v, shift)


def for_members(first: Prediction, x_t: Tensor, schedule: NoiseSchedule, i: int) -> Prediction:
    """A prediction for B images as that of their K members at x_t (B * K, C, *S), each with an eps of its own."""
    x0, v, shift = (None if each is None else per_member(each, len(x_t)) for each in (first.x0, first.v, first.shift))
    assert x0 is not None
    return Prediction(x_t, x0, schedule.eps_from_x0(x0, x_t, i), v, shift)


def sample(
    denoiser: DenoiserLike,
    x_T: Tensor,
    context: Any,
    schedule: NoiseSchedule,
    sampling: Sampling | None = None,
    **as_trajectory: Any,
) -> Tensor:
    """The x_0 at the end of :func:`trajectory`, which takes the same arguments. (B, C, *S) -> (B, C, *S)."""
    x_0 = x_T
    for step in trajectory(denoiser, x_T, context, schedule, sampling, **as_trajectory):
        x_0 = step.x_prev
        del step  # its other tensors need not be held during the next one
    return x_0


def denoise(denoiser: DenoiserLike, x_t: Tensor, t: int, context: Any) -> Guided:
    """Evaluate the denoiser at one timestep for the whole batch, guided or not."""
    # filled on the device, as a copy would have the CPU wait for a GPU's queue; expanded, so that a network can tell
    # from the stride that one timestep serves the batch
    times = torch.full((1,), t, device=x_t.device).expand(len(x_t))
    output = evaluate(denoiser, x_t, times, context)
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
