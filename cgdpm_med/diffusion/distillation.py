"""Fewer steps by training: a student learns to answer in a few steps what a frozen teacher's walk answers in more.

Progressive distillation (Salimans & Ho, 2022), on the timesteps of one walk and on the states that the walk itself
visits. DDIM without noise is a function of its state, so there is one right answer at each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cgdpm_med.networks.denoiser import evaluate, features_of, per_member

from .samplers import Prediction, gaussian
from .sampling import DenoiserLike, Sampling, check_timesteps, first_prediction, trajectory
from .schedule import NoiseSchedule
from .targets import Target


class Lesson(NamedTuple):
    """A state of the teacher's walk and what a student should predict there: t, x_t and x_0, both (B, C, *S)."""

    t: int
    x_t: Tensor
    x_0: Tensor


class DistillationLoss(nn.Module):
    """Score a student where its own walk will be, against where the teacher's walk of more steps gets from there.

    Every example draws x_T, the teacher walks from it, and the student is scored at one of its own timesteps. It has
    the teacher's answers alone: images without truth would do, and the doubt that it learns is the teacher's.

    Args:
        teacher: the frozen denoiser, x_0 as its target has it (``target.denoiser(network)``); put in evaluation mode,
            and its parameters stop requiring gradients.
        schedule: the training schedule of both.
        target: decides how the student's output is scored, as in training, and corrects each x_0 of the teacher.
        timesteps: visited by the teacher.
        visited: those of them that the student visits, the first among them.
        shares: how often each of those is drawn, in their order from the greatest down; by default evenly. Where the
            teacher goes on to the student's next timestep, the student has nothing new to learn, only to remember.
        members: walks from each image, which share its features and, where it is all but noise, the first step.

    Raises:
        ValueError: for timesteps that the schedule does not have, ``visited`` that is no part of them or begins
            elsewhere, or another number of shares.

    Source: Salimans & Ho, Progressive Distillation for Fast Sampling of Diffusion Models, ICLR 2022, algorithm 2.
    """

    def __init__(
        self,
        teacher: DenoiserLike,
        schedule: NoiseSchedule,
        target: Target,
        *,
        timesteps: Sequence[int],
        visited: Sequence[int],
        shares: Sequence[float] | None = None,
        members: int = 1,
    ) -> None:
        super().__init__()
        self.timesteps = check_timesteps(timesteps, schedule.T)
        self.visited = check_timesteps(visited, schedule.T)
        if self.visited[0] != self.timesteps[0] or not set(self.visited) <= set(self.timesteps):
            raise ValueError(
                f"a student that visits {list(self.visited)} cannot follow a walk over {list(self.timesteps)}: "
                "it visits some of those, the first among them"
            )
        self.shares = torch.ones(len(self.visited)) if shares is None else torch.as_tensor(shares, dtype=torch.float32)
        if len(self.shares) != len(self.visited):
            raise ValueError(f"{len(self.shares)} shares were given for the timesteps {list(self.visited)}")
        target.check(schedule)
        if isinstance(teacher, nn.Module):
            teacher.eval().requires_grad_(False)
        self.teacher, self.schedule, self.target, self.members = teacher, schedule, target, members
        self.sampling = Sampling(timesteps=self.timesteps, shared_first_step=True)

    def forward(
        self,
        student: Callable[..., Tensor],
        x_0: Tensor,
        context: Any = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean loss over the batch.

        Args:
            student: called as ``student(x_t, t, context)``; its outputs are those of a network trained with ``target``.
            x_0: true targets (B, C, *S), of which the shape alone counts.
            context: condition images y (B, Cc, *S').
            generator: of x_T and of the timesteps; the global one by default.
        """
        rows = len(x_0) * self.members
        lessons = self.lessons(gaussian(per_member(x_0, rows), generator), context)
        device = x_0.device if generator is None else generator.device
        chosen = self.shares.to(device).multinomial(rows, replacement=True, generator=generator).to(x_0.device)
        t = torch.tensor(self.visited, device=x_0.device)[chosen]
        x_t, wanted = (picked([getattr(each, name) for each in lessons], chosen) for name in ("x_t", "x_0"))
        output = evaluate(student, x_t, t, features_of(student, context))
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        eps = self.schedule.eps_from_x0(wanted, x_t, t)
        return self.target.objective(output, wanted, eps, x_t, t, self.schedule).mean()

    @torch.no_grad()
    def lessons(self, x_T: Tensor, context: Any) -> list[Lesson]:
        """The student's timesteps of the teacher's walk from x_T (B * K, C, *S), from the first to the last.

        Between two of them the student takes one DDIM step, x_s = a_s x_0 + (sigma_s / sigma_t) (x_t - a_t x_0) with
        a = sqrt(alpha_bar) and sigma = sqrt(1 - alpha_bar). What it should predict is the x_0 for which this is where
        the teacher gets. At its last timestep that is the teacher's answer.
        """
        features, correct = features_of(self.teacher, context), self.corrected(per_member(context, len(x_T)))
        first = self.first_prediction(x_T, features, context)
        steps = list(
            trajectory(self.teacher, x_T, features, self.schedule, self.sampling, correct=correct, first=first)
        )
        states, answer = {step.t: step.x_t for step in steps}, steps[-1].x_prev  # the guidance in it
        found = [
            Lesson(t, states[t], self.x0_between(t, states[t], s, states[s]))
            for t, s in zip(self.visited, self.visited[1:], strict=False)
        ]
        return [*found, Lesson(self.visited[-1], states[self.visited[-1]], answer)]

    def first_prediction(self, x_T: Tensor, features: Any, context: Any) -> Prediction | None:
        """What the members of an image share of the first step, or None where each has its own."""
        if self.members == 1 or not self.sampling.shares_first_step(self.schedule):
            return None
        correct = self.corrected(context)
        one_each = x_T[:: self.members]
        return first_prediction(self.teacher, one_each, features, self.schedule, self.sampling, correct=correct)

    def corrected(self, y: Any) -> Callable[[Tensor], Tensor]:
        """The target's correction of a predicted x_0, for these condition images."""
        return lambda x_0: self.target.correct(x_0, y)

    def x0_between(self, t: int, x_t: Tensor, s: int, x_s: Tensor) -> Tensor:
        """The x_0 whose DDIM step from x_t at t ends in x_s at s < t."""
        a_t, a_s = (self.schedule.at("sqrt_alpha_bar", each, x_t) for each in (t, s))
        sigma_t, sigma_s = (self.schedule.at("sqrt_one_minus_alpha_bar", each, x_t) for each in (t, s))
        ratio = sigma_s / sigma_t
        return (x_s - ratio * x_t) / (a_s - ratio * a_t)


def picked(choices: Sequence[Tensor], chosen: Tensor) -> Tensor:
    """Row by row one of several tensors (B, …), by number: chosen int64 (B,)."""
    stacked = torch.stack(list(choices))
    return stacked[chosen, torch.arange(len(chosen), device=chosen.device)]
