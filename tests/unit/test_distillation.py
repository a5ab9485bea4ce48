"""Distillation: a student's lessons against closed forms, and a student that has learned them against its teacher.

With an exact denoiser of N(m, s^2) DDIM without noise is affine: what a student has to predict at one of its timesteps
is a x_t + b, and two states tell a and b.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import Gaussian
from torch import Tensor, nn

from cgdpm_med.diffusion.distillation import DistillationLoss
from cgdpm_med.diffusion.guidance import guided
from cgdpm_med.diffusion.sampling import sample
from cgdpm_med.diffusion.schedule import NoiseSchedule
from cgdpm_med.diffusion.targets import MaskTarget, Target
from cgdpm_med.networks.denoiser import Denoiser

SCHEDULE = NoiseSchedule(schedule="cosine", prediction_type="sample")
TEACHER = Gaussian(SCHEDULE)
WALK = (999, 800, 600, 400, 200)


class Field(Target):
    """Numbers as they are."""

    channels = 1


class Affine:
    """A student that has learned its lessons of the affine teacher by heart."""

    def __init__(self, loss: DistillationLoss) -> None:
        x_T = torch.tensor([-1.0, 1.0], dtype=torch.float64).reshape(2, 1, 1)
        self.by_timestep = {}
        for lesson in loss.lessons(x_T, None):
            (x_a, x_b), (y_a, y_b) = lesson.x_t.flatten().tolist(), lesson.x_0.flatten().tolist()
            slope = (y_b - y_a) / (x_b - x_a)
            self.by_timestep[lesson.t] = (slope, y_a - slope * x_a)

    def __call__(self, x_t: Tensor, t: Tensor, context: Any = None) -> Tensor:
        lines = torch.tensor([self.by_timestep[int(each)] for each in t], dtype=x_t.dtype)
        slope, offset = lines.T.reshape(2, -1, 1, 1)
        return slope * x_t + offset


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def distillation(visited: tuple[int, ...], teacher: Any = TEACHER, **options: Any) -> DistillationLoss:
    return DistillationLoss(teacher, SCHEDULE, Field(), **{"timesteps": WALK, "visited": visited, **options})


@pytest.mark.parametrize("visited", [(999,), (999, 600), (999, 800, 400), (999, 200), WALK])
def test_a_student_ends_where_its_teacher_does(visited: tuple[int, ...]) -> None:
    loss, x_T = distillation(visited), noise(8, 1, 3)
    student = Affine(loss)
    found = sample(student, x_T, None, SCHEDULE, timesteps=visited)
    expected = sample(TEACHER, x_T, None, SCHEDULE, timesteps=WALK)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_student_that_knows_its_lessons_has_no_loss_and_its_teacher_has_some() -> None:
    loss, x_0 = distillation((999, 600)), torch.zeros(16, 1, 3, dtype=torch.float64)
    assert float(loss(Affine(loss), x_0)) < 1e-20
    assert float(loss(TEACHER, x_0)) > 1e-4


def test_states_are_those_of_the_walk() -> None:
    """999 is x_T itself; 600 is reached by the teacher's steps over 999 and 800."""
    x_T = noise(2, 1, 3)
    first, second = distillation((999, 600)).lessons(x_T, None)
    assert (first.t, second.t) == (999, 600)
    torch.testing.assert_close(first.x_t, x_T)
    x_t = x_T
    for t, s in ((999, 800), (800, 600)):
        x_0 = TEACHER.x0(x_t, torch.tensor([t]))
        eps = (x_t - SCHEDULE.alpha_bar[t].sqrt() * x_0) / (1 - SCHEDULE.alpha_bar[t]).sqrt()
        x_t = SCHEDULE.alpha_bar[s].sqrt() * x_0 + (1 - SCHEDULE.alpha_bar[s]).sqrt() * eps
    torch.testing.assert_close(second.x_t, x_t)


def test_where_nothing_is_skipped_the_lesson_is_what_the_teacher_says() -> None:
    for lesson in distillation(WALK).lessons(noise(4, 1, 2), None):
        torch.testing.assert_close(lesson.x_0, TEACHER.x0(lesson.x_t, torch.tensor([lesson.t])), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("visited", [(999,), (999, 400), WALK])
def test_a_guided_teacher_is_followed_to_its_end(visited: tuple[int, ...]) -> None:
    teacher = guided(TEACHER, lambda x_t, t, context: torch.full_like(x_t, 0.01), SCHEDULE, scale=0.5)
    loss, x_T = distillation(visited, teacher), noise(8, 1, 3)
    found = sample(Affine(loss), x_T, None, SCHEDULE, timesteps=visited)
    torch.testing.assert_close(found, sample(teacher, x_T, None, SCHEDULE, timesteps=WALK), rtol=1e-9, atol=1e-9)


def test_a_teacher_of_one_opinion_teaches_it() -> None:
    loss = distillation((999, 400), teacher=lambda x_t, t, y: torch.full_like(x_t, 0.3))
    for lesson in loss.lessons(noise(2, 1, 2), None):
        torch.testing.assert_close(lesson.x_0, torch.full_like(lesson.x_0, 0.3))


def test_a_mask_student_that_is_its_teacher_learns_nothing_at_the_first_step() -> None:
    """Of the cross-entropy with the teacher's own probabilities the gradient is 0."""
    target = MaskTarget(3, dice_weight=0)
    network = Logits()
    loss = DistillationLoss(
        target.denoiser(Logits()), SCHEDULE, target, timesteps=(999, 500), visited=(999, 500), shares=(1, 0)
    )
    loss(network, torch.zeros(2, 3, 4, 4), torch.ones(2, 1, 4, 4)).backward()
    assert network.weight.grad is not None
    assert float(network.weight.grad.abs().max()) < 1e-6


class Logits(nn.Module):
    """(B, 3, *S) logits that depend on x_t."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]).reshape(1, 3, 1, 1))

    def forward(self, x_t: Tensor, t: Tensor, context: Any) -> Tensor:
        return self.weight * (1 + x_t)


def test_shares_decide_where_the_student_is_asked() -> None:
    asked: list[int] = []

    def student(x_t: Tensor, t: Tensor, context: Any) -> Tensor:
        asked.extend(t.tolist())
        return x_t

    x_0 = torch.zeros(2000, 1, 1)
    distillation((999, 600, 400), shares=(0.1, 0, 0.9))(student, x_0, generator=torch.Generator().manual_seed(0))
    assert 150 < asked.count(999) < 250  # 200, standard deviation 13
    assert asked.count(600) == 0
    assert len(asked) == 2000
    asked.clear()
    distillation((999, 600))(student, x_0, generator=torch.Generator().manual_seed(0))
    assert 900 < asked.count(999) < 1100


class Counting(Denoiser):
    """Counts images encoded and rows evaluated at each timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.network = TEACHER
        self.encoded, self.rows = 0, dict.fromkeys(WALK, 0)

    def encode(self, y: Tensor) -> None:
        self.encoded += len(y)

    def forward(self, x_t: Tensor, t: Tensor, features: Any) -> Tensor:
        for each in t.expand(len(x_t)).tolist():
            self.rows[each] += 1
        return TEACHER(x_t, t)


@pytest.mark.parametrize(("schedule", "first"), [("cosine", 2), ("linear_beta", 6)])
def test_walks_from_one_image_share_its_features_and_a_first_step_in_noise(schedule: str, first: int) -> None:
    noisy = NoiseSchedule(schedule=schedule, prediction_type="sample")
    teacher, student = Counting(), Counting()
    loss = DistillationLoss(teacher, noisy, Field(), timesteps=WALK, visited=(999, 600), members=3)
    loss(student, torch.zeros(2, 1, 4), torch.zeros(2, 1, 4))
    assert (teacher.encoded, student.encoded) == (2, 2)
    assert teacher.rows == {999: first, 800: 6, 600: 6, 400: 6, 200: 6}
    assert sum(student.rows.values()) == 6


def test_shared_first_steps_give_the_lessons_of_separate_ones() -> None:
    x_T = noise(6, 1, 3)
    alone = distillation((999, 600)).lessons(x_T, torch.zeros(6, 1, 3))
    together = distillation((999, 600), members=3).lessons(x_T, torch.zeros(2, 1, 3))
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one.x_t, other.x_t, rtol=0, atol=1e-3)  # alpha_bar is 2e-9 where they share
        torch.testing.assert_close(one.x_0, other.x_0, rtol=0, atol=1e-3)


def test_the_teacher_stays_as_it_was() -> None:
    teacher = Logits()
    target = MaskTarget(3)
    loss = DistillationLoss(target.denoiser(teacher), SCHEDULE, target, timesteps=(999, 500), visited=(999,))
    student = Logits()
    loss(student, torch.zeros(2, 3, 4, 4), torch.ones(2, 1, 4, 4)).backward()
    assert student.weight.grad is not None
    assert teacher.weight.grad is None
    assert not teacher.weight.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"visited": (800, 400)}, "the first among them"),
        ({"visited": (999, 500)}, "cannot follow"),
        ({"visited": (999, 400), "shares": (1,)}, "1 shares"),
        ({"visited": (999,), "timesteps": (1000, 999)}, "0 … 999"),
        ({"visited": ()}, "different whole numbers"),
    ],
)
def test_walks_that_do_not_fit_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distillation(**{"visited": (999, 400), **options})
