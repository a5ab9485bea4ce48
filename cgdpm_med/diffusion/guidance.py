"""The guidance network: guided sampling (eqs. 13-15), and where its training examples come from (section 3.2).

The network outputs f = sqrt(1 - alpha_bar) F, which stays finite where the score F does not. What eq. (10) makes it
learn, and what the scale w and the interval do, is told in docs/guidance.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cgdpm_med.networks.denoiser import Denoiser, evaluate, features_of, per_member

from .losses import GUIDANCE_WEIGHTINGS, guidance_target, guidance_weight
from .samplers import gaussian
from .sampling import DenoiserLike, Guided, Sampling, check_interval, check_prediction, split_variance, trajectory
from .schedule import NoiseSchedule
from .targets import Target

COUPLINGS = {"reverse": ("reverse",), "forward": ("forward",), "mixed": ("reverse", "forward")}


def guided(
    denoiser: DenoiserLike,
    guide: DenoiserLike,
    schedule: NoiseSchedule,
    *,
    scale: float = 1.0,
    interval: Sequence[int] | None = None,
) -> DenoiserLike:
    """Compose a denoiser and a guidance network into one that every sampler takes.

    Args:
        denoiser: the denoiser, of any prediction type.
        guide: ``guide(x_t, t, context) -> f`` (B, C, *S), or (B, 2C, *S) of which the first C channels count.
        schedule: the training schedule of both.
        scale: w; the paper has 1. With 0 the denoiser itself comes back.
        interval: guidance acts for t_lo <= t < t_hi, by default everywhere. Outside, the guide is not evaluated.

    Raises:
        ValueError: for a scale that is negative or not finite, an interval outside 0 <= t_lo <= t_hi <= T, or a
            denoiser that says it predicts something else than the schedule.
    """
    check_prediction(getattr(denoiser, "prediction_type", None), schedule)
    if not (math.isfinite(scale) and scale >= 0):
        raise ValueError(f"the guidance scale must be a number of at least 0, not {scale}")
    t_lo, t_hi = check_interval(interval, schedule.T)
    if scale == 0 or t_lo == t_hi:
        return denoiser
    return GuidedDenoiser(denoiser, guide, scale, None if (t_lo, t_hi) == (0, schedule.T) else (t_lo, t_hi))


class GuidedDenoiser(Denoiser):
    """A denoiser with w f beside its output; made by :func:`guided`. Its features are those of both networks."""

    def __init__(
        self, denoiser: DenoiserLike, guide: DenoiserLike, scale: float, interval: tuple[int, int] | None
    ) -> None:
        super().__init__()
        self.denoiser, self.guide, self.scale, self.interval = denoiser, guide, scale, interval

    def networks(self) -> tuple[Any, ...]:
        """Both: each condition branch runs once per image."""
        return self.denoiser, self.guide

    def forward(self, x_t: Tensor, t: Tensor, features: Any) -> Guided:
        """The denoiser's output, and the shift w f of eqs. (13) and (14), or None when no t lies in the interval.

        Args:
            features: those of both networks, or the condition image.
        """
        of_denoiser, of_guide = features if type(features) is tuple else (features, features)
        output = evaluate(self.denoiser, x_t, t, of_denoiser)
        inside = None if self.interval is None else (t >= self.interval[0]) & (t < self.interval[1])
        if inside is not None and not bool(inside.any()):
            return Guided(output, None)
        f, _ = split_variance(evaluate(self.guide, x_t, t, of_guide), x_t)
        if inside is not None:
            f = torch.where(inside.reshape(-1, *[1] * (f.ndim - 1)), f, torch.zeros_like(f))
        return Guided(output, self.scale * f)


class ScaledGuide(Denoiser):
    """Adapter: f = output of ``network`` / sqrt(weight), so that its loss is the mean squared error of the output.

    Under the reverse coupling f is sqrt(SNR) times the error of the predicted x_0, SNR = alpha_bar / (1 - alpha_bar): a
    hundred times that at t = 0, and next to nothing at t = T - 1. A network inside this adapter has targets of order
    one: "sample" makes it output the error of x_0 itself, which is right for a denoiser that predicts x_0; "bounded"
    that where SNR >= 1 and f elsewhere, for one that predicts eps or v, whose x_0 is arbitrarily wrong in pure noise.

    Args:
        network: ``network(x_t, t, context)``; only its first C channels count.
        schedule: the denoiser's.
        weighting: the one of ``GuidanceLoss`` that turns into a plain mean squared error.
    """

    def __init__(self, network: nn.Module, schedule: NoiseSchedule, weighting: str = "bounded") -> None:
        super().__init__()
        if weighting not in GUIDANCE_WEIGHTINGS:
            raise ValueError(f"weighting must be one of {', '.join(GUIDANCE_WEIGHTINGS)}, not {weighting!r}")
        self.network = network
        self.schedule = schedule
        self.weighting = weighting

    def forward(self, x_t: Tensor, t: Tensor, features: Any = None) -> Tensor:
        """-> f, (B, C, *S)."""
        output, _ = split_variance(evaluate(self.network, x_t, t, features), x_t)
        return output * guidance_weight(self.weighting, self.schedule, t, x_t).rsqrt()


def guidance_weighting(schedule: NoiseSchedule) -> str:
    """How f is scaled and its loss weighted for a denoiser of this prediction type; see :class:`ScaledGuide`.

    The x_0 of a network that predicts x_0 or v is wrong by a bounded amount at every t. That of one that predicts eps
    is arbitrarily wrong in pure noise.
    """
    return "bounded" if schedule.prediction_type == "epsilon" else "sample"


class Examples(NamedTuple):
    """Training examples: x_t (N, C, *S), t int64 (N,), target of f (N, C, *S), condition image y (N, Cc, *S')."""

    x_t: Tensor
    t: Tensor
    target: Tensor
    y: Tensor


class ShuffleBuffer:
    """A bounded store of examples on their device, drawn at random, each once.

    Args:
        capacity: most examples held; memory is taken once, at the first ``put``.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.count = 0
        self.tables: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return self.count

    @property
    def room(self) -> int:
        """How many examples still fit."""
        return self.capacity - self.count

    def put(self, examples: Sequence[Tensor]) -> None:
        """Append examples; the caller has looked at ``room``."""
        if not self.tables:
            self.tables = tuple(column.new_empty((self.capacity, *column.shape[1:])) for column in examples)
        end = self.count + len(examples[0])
        for table, column in zip(self.tables, examples, strict=True):
            table[self.count : end] = column
        self.count = end

    def draw(self, n: int, generator: torch.Generator) -> Examples:
        """Take out ``n`` examples chosen uniformly without replacement."""
        picked = torch.randperm(self.count, generator=generator, device=generator.device)[:n].cpu()
        drawn = Examples(*(table[picked.to(table.device)] for table in self.tables))
        # the examples at the end move into the holes
        remaining = self.count - n
        gone = torch.zeros(self.count, dtype=torch.bool)
        gone[picked] = True
        holes, movers = gone[:remaining].nonzero()[:, 0], remaining + (~gone[remaining:]).nonzero()[:, 0]
        for table in self.tables:
            table[holes.to(table.device)] = table[movers.to(table.device)]
        self.count = remaining
        return drawn

    def contents(self) -> Examples | None:
        """Copies of all examples held, in their order; None before the first ``put``."""
        return Examples(*(table[: self.count].clone() for table in self.tables)) if self.tables else None


class Replay:
    """Training examples for the guidance network at about one frozen evaluation each.

    The literal algorithm (section 3.2) denoises T - t steps for every example and keeps the last state. Here the frozen
    denoiser walks its reverse chain once, and every state it visits is an example: the evaluation that moves the chain
    on is also eps_theta of eq. (11). A buffer mixes chains and timesteps, and each example is drawn once.

    Strided chains start at T - 1, as sampling does, and visit one timestep of each stride behind it, at an offset drawn
    anew for every batch of images: all t are equally likely. As every chain visits T - 1, only one in ``stride`` of
    those states is kept.

    Args:
        denoiser: the frozen network; a module is put in evaluation mode and its parameters stop requiring gradients.
        schedule: its training schedule.
        generator: source of all randomness here: chains, offsets, shuffling. Give each process its own seed.
        capacity: examples held on the device; more mix better. At least those of one batch of images:
            images x chains x steps, twice that for "mixed".
        coupling: where x_t comes from. "reverse": the reverse chain (the paper). "forward": q(x_t | s_0), which
            corrects the denoiser and keeps the spread of its samples. "mixed": half of each.
        chains: reverse chains per image; as many forward examples per image and step.
        steps: timesteps visited by a chain.
        method, eta: how the chain walks, see ``trajectory``. Take those of later use.
        target: what is made; corrects every predicted x_0, as it does in later use. None corrects nothing.
        interval: keep examples with t_lo <= t < t_hi only; a chain still starts at T - 1, and ends at t_lo.
        device: where chains run and the buffer lies; by default where the images are.

    Attributes:
        evaluations: frozen evaluations so far, counted per field.
        examples: examples produced so far.
        image_batches: image batches used so far; a resumed run continues its stream behind them.

    Raises:
        ValueError: for unknown choices, or fewer than 2 or more than T steps.
    """

    def __init__(
        self,
        denoiser: DenoiserLike,
        schedule: NoiseSchedule,
        *,
        generator: torch.Generator,
        capacity: int = 2048,
        coupling: str = "reverse",
        chains: int = 2,
        steps: int = 50,
        method: str = "ddpm",
        eta: float = 0.0,
        target: Target | None = None,
        interval: Sequence[int] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if coupling not in COUPLINGS:
            raise ValueError(f"coupling must be one of {', '.join(COUPLINGS)}, not {coupling!r}")
        if not 2 <= steps <= schedule.T:
            raise ValueError(f"steps must be between 2 and {schedule.T} (the timesteps of the schedule), not {steps}")
        if chains < 1 or capacity < 1:
            raise ValueError(f"chains and capacity must be at least 1, not {chains} and {capacity}")
        self.interval = check_interval(interval, schedule.T)
        if self.interval[0] == self.interval[1]:
            raise ValueError("an empty interval leaves nothing to train on")
        if isinstance(denoiser, nn.Module):
            denoiser.eval().requires_grad_(False)
        self.denoiser, self.schedule, self.generator = denoiser, schedule, generator
        self.coupling, self.chains, self.steps = coupling, chains, steps
        if target is not None:
            target.check(schedule)
        self.target, self.sampling = target, Sampling(steps=steps, method=method, eta=eta)
        self.device = device
        self.buffer = ShuffleBuffer(capacity)
        self.evaluations = self.examples = self.image_batches = 0

    def __len__(self) -> int:
        """Examples in the buffer."""
        return len(self.buffer)

    @property
    def stride(self) -> float:
        """Mean distance between the timesteps of a chain."""
        return (self.schedule.T - 1) / (self.steps - 1)

    @property
    def forward_steps(self) -> int:
        """Forward examples of a row of ``chains``: as many as a reverse chain has in the interval, on average."""
        t_lo, t_hi = self.interval
        return min(max(1, round((t_hi - t_lo) / self.stride)), self.steps)

    def batches(self, images: Iterable[tuple[Tensor, Tensor]], batch_size: int) -> Iterator[Examples]:
        """Batches of examples for as long as ``images`` lasts, and then until the buffer is empty.

        Args:
            images: a stream of (s_0, y): true targets (B, C, *S) and condition images (B, Cc, *S').
        """
        stream = iter(images)
        upcoming = next(stream, None)
        while True:
            while upcoming is not None and self.has_room(len(upcoming[0])):
                self.fill(*upcoming)
                upcoming = next(stream, None)
            if not len(self):
                return
            yield self.draw(min(batch_size, len(self)))

    def has_room(self, images: int) -> bool:
        """Whether the examples of a batch of so many images fit now.

        Raises:
            ValueError: when they would not even fit into an empty buffer.
        """
        t_lo, t_hi = self.interval
        visited = min(self.steps, math.ceil((t_hi - t_lo) / self.stride) + 1)
        counts = {"reverse": visited, "forward": self.forward_steps}
        most = sum(counts[coupling] for coupling in COUPLINGS[self.coupling]) * images * self.chains
        if most > self.buffer.capacity:
            raise ValueError(
                f"a buffer of {self.buffer.capacity} examples cannot hold the {most} of one batch of {images} images; "
                "raise capacity, or lower the images per batch, chains or steps"
            )
        return most <= self.buffer.room

    @torch.no_grad()
    def fill(self, s_0: Tensor, y: Tensor) -> None:
        """Make the examples of one batch of images: s_0 (B, C, *S) with y (B, Cc, *S')."""
        self.has_room(len(s_0))
        s_0, y = s_0.to(self.device or s_0.device), y.to(self.device or y.device)
        rows = len(s_0) * self.chains
        context = per_member(features_of(self.denoiser, y), rows)
        s_0, y = per_member(s_0, rows), per_member(y, rows)
        for coupling in COUPLINGS[self.coupling]:
            visits = self._reverse(s_0, y, context) if coupling == "reverse" else self._forward(s_0, y, context)
            for x_t, t, eps, kept in visits:
                examples = Examples(x_t, t, guidance_target(eps, s_0, x_t, t, self.schedule), y)
                self.buffer.put([column[kept] for column in examples])
                self.examples += len(examples.t[kept])
        self.image_batches += 1

    def draw(self, batch_size: int) -> Examples:
        """Take a random batch out of the buffer.

        Raises:
            ValueError: when the buffer holds fewer examples.
        """
        if batch_size > len(self):
            raise ValueError(f"{batch_size} examples asked of a buffer that holds {len(self)}; fill it first")
        return self.buffer.draw(batch_size, self.generator)

    def _reverse(self, s_0: Tensor, y: Tensor, context: Any) -> Iterator[tuple[Tensor, Tensor, Tensor, Any]]:
        """States of the frozen chain with eps_theta there, and which rows to keep."""
        t_lo, t_hi = self.interval
        x_T = gaussian(s_0, self.generator)
        visited = [t for t in strided_timesteps(self.schedule.T, self.steps, self.generator) if t >= t_lo]
        target = self.target
        chain = trajectory(
            self.denoiser,
            x_T,
            context,
            self.schedule,
            replace(self.sampling, timesteps=tuple(visited)),
            generator=self.generator,
            correct=None if target is None else lambda x_0: target.correct(x_0, y),
        )
        for step in chain:
            self.evaluations += len(s_0)
            if step.t >= t_hi:
                continue
            t = torch.full((len(s_0),), step.t, device=s_0.device)
            yield step.x_t, t, step.eps, self._thinned(len(s_0)) if step.t == self.schedule.T - 1 else slice(None)

    def _thinned(self, rows: int) -> list[int]:
        """One row in ``stride``, at random."""
        u = torch.rand(rows, generator=self.generator, device=self.generator.device)
        return (u * self.stride < 1).nonzero()[:, 0].tolist()

    def _forward(self, s_0: Tensor, y: Tensor, context: Any) -> Iterator[tuple[Tensor, Tensor, Tensor, Any]]:
        """x_t ~ q(x_t | s_0) at uniform t with eps_theta there."""
        for _ in range(self.forward_steps):
            draws = torch.randint(*self.interval, (len(s_0),), generator=self.generator, device=self.generator.device)
            t = draws.to(s_0.device)
            x_t = self.schedule.q_sample(s_0, t, gaussian(s_0, self.generator))
            output, _ = split_variance(evaluate(self.denoiser, x_t, t, context), x_t)
            self.evaluations += len(s_0)
            eps = self.schedule.to_eps(output, x_t, t)
            if self.target is not None:
                x_0 = self.target.correct(self.schedule.to_x0(output, x_t, t), y)
                eps = self.schedule.eps_from_x0(x_0, x_t, t)
            yield x_t, t, eps, slice(None)

    def restart(self, seed: int) -> None:
        """Empty the buffer and reseed the generator: what follows depends on ``seed`` alone. The counters go on."""
        self.buffer.count = 0
        self.generator.manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers for an exact resume; the networks and the place in the stream are the caller's."""
        contents = self.buffer.contents()
        return {
            "rng": self.generator.get_state(),
            "buffer": None if contents is None else dict(contents._asdict()),
            "evaluations": self.evaluations,
            "examples": self.examples,
            "image_batches": self.image_batches,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state, with a stream of images that goes on behind ``image_batches`` batches.

        Raises:
            ValueError: when the saved buffer holds more examples than this one can.
        """
        buffer = ShuffleBuffer(self.buffer.capacity)
        if state["buffer"] is not None:
            saved = Examples(**state["buffer"])
            if len(saved.t) > buffer.capacity:
                raise ValueError(f"{len(saved.t)} saved examples for a buffer of {buffer.capacity}; raise capacity")
            buffer.put([column.to(self.device or column.device) for column in saved])
        self.generator.set_state(state["rng"].cpu())
        self.buffer = buffer
        self.evaluations, self.examples = state["evaluations"], state["examples"]
        self.image_batches = state["image_batches"]


def strided_timesteps(T: int, steps: int, generator: torch.Generator) -> list[int]:
    """T - 1, and ``steps`` - 1 timesteps below it at even distances and a random offset; ascending.

    Each of 0 … T-2 is visited with the same probability, (steps - 1) / (T - 1).
    """
    # float32: a draw so close to one that the sum below rounds up cannot occur
    offset = float(torch.rand((), generator=generator, device=generator.device, dtype=torch.float32))
    stride = (T - 1) / (steps - 1)
    return [*(math.floor((k + offset) * stride) for k in range(steps - 1)), T - 1]
