"""One evaluation of the first timestep for all members: equal where x_T does not count, near where it hardly does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from oracles import Gaussian
from torch import Tensor, nn

from cgdpm_med.diffusion.ensemble import KeyedNoise
from cgdpm_med.diffusion.samplers import SAMPLERS
from cgdpm_med.diffusion.sampling import Guided, Sampling
from cgdpm_med.diffusion.schedule import NEGLIGIBLE, NoiseSchedule
from cgdpm_med.diffusion.targets import MaskTarget
from cgdpm_med.inference.inferers import WindowedDenoiser
from cgdpm_med.inference.predictor import DiffusionPredictor
from cgdpm_med.runtime.batching import sample_ensemble

SCHEDULE = NoiseSchedule(schedule="cosine", prediction_type="sample")
SHAPE = (1, 8, 8)
IMAGES = torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8)
WALKS: list[dict[str, Any]] = [
    {"steps": 4},
    {"steps": 3, "eta": 0.5},
    {"steps": 4, "noise_scale": 0.5},
    {"steps": 4, "method": "ddpm"},
    {"steps": 3, "method": "dpmpp_2m"},
    {"timesteps": (999, 666, 333)},
]


def drawn(denoiser: Any, shared: bool = True, schedule: NoiseSchedule = SCHEDULE, **how: Any) -> Tensor:
    how = {"members": 3, "seed": 5, "shape": SHAPE, "shared_first_step": shared, **how}
    return sample_ensemble(denoiser, how.pop("images", IMAGES), schedule, **how)


def deaf(x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """An x_0 that the state says nothing of."""
    return y * (1 + t.reshape(-1, 1, 1, 1) / 1000)


def hearing(x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """An x_0 that depends on the state at every timestep."""
    return torch.tanh(0.7 * x_t + y + t.reshape(-1, 1, 1, 1) / 1000)


@pytest.mark.parametrize("walk", WALKS, ids=str)
def test_nothing_changes_where_the_denoiser_ignores_the_state(walk: dict[str, Any]) -> None:
    torch.testing.assert_close(drawn(deaf, **walk), drawn(deaf, shared=False, **walk), rtol=0, atol=1e-6)


@pytest.mark.parametrize("walk", WALKS, ids=str)
def test_the_first_member_keeps_its_walk_and_the_others_their_own_noise(walk: dict[str, Any]) -> None:
    shared, own = drawn(hearing, **walk), drawn(hearing, shared=False, **walk)
    torch.testing.assert_close(shared[0], own[0], rtol=0, atol=1e-6)
    assert bool(((shared[1:] - shared[:1]).abs().amax(dim=(2, 3, 4)) > 1e-3).all())


def test_each_member_goes_on_from_the_shared_x0_with_the_noise_of_its_own() -> None:
    seen: dict[int, Tensor] = {}

    def denoiser(x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen[int(t[0])] = x_t
        return hearing(x_t, t, y)

    drawn(denoiser, timesteps=(999, 400))
    noise = KeyedNoise(5, [(b, k) for b in range(3) for k in range(3)]).randn((9, *SHAPE))
    first = noise[::3]
    assert torch.equal(seen[999], first)
    x0 = hearing(first, torch.tensor([999]), IMAGES).repeat_interleave(3, dim=0)
    eps = (noise - SCHEDULE.at("sqrt_alpha_bar", 999, noise) * x0) / SCHEDULE.at("sqrt_one_minus_alpha_bar", 999, noise)
    torch.testing.assert_close(seen[400], SCHEDULE.q_sample(x0, 400, eps), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", SAMPLERS)
@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_the_truth_about_gaussian_data_moves_by_no_more_than_the_tolerance(method: str, prediction_type: str) -> None:
    # E[x_0 | x_t] = sqrt(alpha_bar) x_t for x_0 ~ N(0, 1): no later step magnifies what the first one missed
    schedule = NoiseSchedule(schedule="cosine", prediction_type=prediction_type)
    gaussian = Gaussian(schedule, m=0.0, s=1.0)

    def optimal(x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return gaussian(x_t.double(), t).to(x_t.dtype)

    how: dict[str, Any] = {"schedule": schedule, "method": method, "steps": 5, "members": 4}
    shared = drawn(optimal, **how)
    own = drawn(optimal, shared=False, **how)
    noise = KeyedNoise(5, [(b, k) for k in range(4) for b in range(3)]).randn((12, *SHAPE)).unflatten(0, (4, 3))
    apart = (shared - own).abs()
    assert float(apart[1:].max()) > 5e-6  # it does differ
    assert bool((apart <= NEGLIGIBLE**0.5 * (noise - noise[:1]).abs() + 2e-5).all())


class Counting:
    """Counts the fields evaluated at each timestep."""

    def __init__(self) -> None:
        self.fields: dict[int, int] = {}

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.fields[int(t[0])] = self.fields.get(int(t[0]), 0) + len(x_t)
        return hearing(x_t, t, y)


@pytest.mark.parametrize("max_batch", [1, 2, 5, 100])
def test_one_evaluation_for_each_image_then_one_for_each_member(max_batch: int) -> None:
    counting = Counting()
    drawn(counting, timesteps=(999, 666, 333), max_batch=max_batch)
    assert counting.fields == {999: 3, 666: 9, 333: 9}


def test_a_first_timestep_that_holds_some_of_x0_is_each_members_own() -> None:
    counting = Counting()
    shared = drawn(counting, start=600, steps=2)
    assert counting.fields == {600: 9, 0: 9}
    assert torch.equal(shared, drawn(hearing, shared=False, start=600, steps=2))


@pytest.mark.parametrize("walk", WALKS, ids=str)
def test_batches_and_the_choice_of_members_change_nothing(walk: dict[str, Any]) -> None:
    whole = drawn(hearing, members=5, **walk)
    for max_batch in (1, 2, 3, 7):
        torch.testing.assert_close(drawn(hearing, members=5, max_batch=max_batch, **walk), whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(drawn(hearing, member_ids=[3, 1], **walk), whole[[3, 1]], rtol=0, atol=1e-6)
    of_two = drawn(hearing, members=5, images=IMAGES[1:], keys=[1, 2], **walk)
    torch.testing.assert_close(of_two, whole[:, 1:], rtol=0, atol=1e-6)


def test_images_of_one_key_share_their_noise_and_keep_their_own_prediction() -> None:
    together = drawn(hearing, keys=["a", "a", "a"], steps=3)
    for b in range(3):
        alone = drawn(hearing, images=IMAGES[b : b + 1], keys=["a"], steps=3)
        torch.testing.assert_close(together[:, b : b + 1], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", SAMPLERS)
def test_guidance_is_shared_with_the_prediction(method: str) -> None:
    def guided(x_t: Tensor, t: Tensor, y: Tensor) -> Guided:
        signal, noise = (SCHEDULE.at(f"sqrt_{name}alpha_bar", t, y) for name in ("", "one_minus_"))
        return Guided(hearing(x_t, t, y), y * (signal / noise) * (t.reshape(-1, 1, 1, 1) == 999))

    steps = 1 if method != "ddpm" else 3  # the last step of ddpm has no variance to shift by
    shared = drawn(guided, method=method, steps=steps)
    own = drawn(guided, shared=False, method=method, steps=steps)
    torch.testing.assert_close(shared[0], own[0], rtol=0, atol=1e-4)
    if method != "ddpm":
        torch.testing.assert_close(shared - drawn(hearing, method=method, steps=1), IMAGES.expand_as(shared))


def test_a_correction_sees_the_image_of_each_field() -> None:
    def correct(x_0: Tensor, y: Tensor) -> Tensor:
        assert len(x_0) == len(y)
        return x_0.clamp(max=0.5) + y

    shared = drawn(deaf, steps=3, correct=correct, max_batch=4)
    torch.testing.assert_close(shared, drawn(deaf, False, steps=3, correct=correct), rtol=0, atol=1e-6)


@pytest.mark.parametrize("window", [(8, 8), (4, 4)])
def test_windows_share_the_first_step_too(window: Sequence[int]) -> None:
    windowed, counting = WindowedDenoiser(hearing, window), Counting()
    torch.testing.assert_close(drawn(windowed, steps=3), drawn(hearing, steps=3), rtol=0, atol=1e-5)
    drawn(WindowedDenoiser(counting, window), steps=2, max_batch=4)
    assert 3 * counting.fields[999] == counting.fields[0]


def test_a_denoiser_of_eps_is_refused() -> None:
    with pytest.warns(UserWarning, match="epsilon"):
        schedule = NoiseSchedule(schedule="cosine")
    with pytest.raises(ValueError, match="predicts x_0 or v"):
        drawn(deaf, schedule=schedule)


def test_the_schedule_says_where_nothing_is_left() -> None:
    assert [t for t in range(1000) if SCHEDULE.is_noise(t)] == [999]
    assert not NoiseSchedule(prediction_type="sample").is_noise(999)  # linear betas
    assert SCHEDULE.is_noise(500, tolerance=1)
    assert Sampling(shared_first_step=True, timesteps=(999, 3)).shares_first_step(SCHEDULE)
    assert not Sampling(shared_first_step=True, timesteps=(500, 3)).shares_first_step(SCHEDULE)
    assert not Sampling(timesteps=(999, 3)).shares_first_step(SCHEDULE)


def test_the_last_timestep_need_not_be_0() -> None:
    for method in SAMPLERS:
        found = drawn(deaf, method=method, timesteps=(999, 333))
        torch.testing.assert_close(found, (IMAGES * 1.333).expand_as(found), rtol=0, atol=1e-5)


def test_timesteps_are_written_down_in_one_way() -> None:
    asked = Sampling(steps=7, start=600, timesteps=(333, 999))
    assert asked == Sampling(timesteps=(999, 333))
    assert (asked.timesteps, asked.steps, asked.start) == ((999, 333), 2, None)


@pytest.mark.parametrize(("steps", "members"), [(1, 1), (2, 2)])
def test_one_shared_step_is_no_ensemble(steps: int, members: int) -> None:
    """Its members would be equal, which looks certain."""
    shared: dict[str, Any] = {"schedule": SCHEDULE, "target": MaskTarget(2), "shared_first_step": True}
    DiffusionPredictor(nn.Identity(), **shared, steps=steps, members=members)
    with pytest.raises(ValueError, match="one member"):
        DiffusionPredictor(nn.Identity(), **shared, steps=1, members=2)
