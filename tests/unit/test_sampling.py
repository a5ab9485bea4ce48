"""Samplers against the closed-form Gaussian, plain-loop twins and steps computed with published code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from conftest import shared_path
from oracles import Gaussian, ddim_mean_std, ddpm_mean_std, sampled_mean_std
from torch import Tensor

from cgdpm_med.diffusion.samplers import ddim_step, ddpm_step, learned_log_variance, shift_prediction
from cgdpm_med.diffusion.sampling import METHODS, Guided, Sampling, sample, split_variance, trajectory
from cgdpm_med.diffusion.schedule import PREDICTION_TYPES, NoiseSchedule, linspace_timesteps, log_snr_timesteps

SCHEDULE = NoiseSchedule()


class RecordedNoise:
    """A noise source that hands out given tensors in order."""

    def __init__(self, draws: Tensor) -> None:
        self.draws = list(draws)

    def randn(self, shape: Sequence[int], *, device: object, dtype: torch.dtype) -> Tensor:
        noise = self.draws.pop(0)
        assert noise.shape == torch.Size(shape)
        assert noise.dtype == dtype
        return noise


# --- deterministic samplers on the Gaussian -------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "simulated_std"), [(1000, 0.4987), (50, 0.4727), (10, 0.362)])
def test_ddim_on_a_gaussian(steps: int, simulated_std: float) -> None:
    gaussian = Gaussian(SCHEDULE, m=0.7, s=0.5)
    mean, std = sampled_mean_std(gaussian, SCHEDULE, steps=steps)
    exact = ddim_mean_std(gaussian, linspace_timesteps(1000, steps).tolist(), start=(0.0, 1.0))
    assert (mean, std) == pytest.approx(exact, rel=1e-10)
    # from the true marginal of x_T the mean is kept; the standard deviations known from simulation agree to its error
    ab = SCHEDULE.alpha_bar[-1]
    start = (float(ab.sqrt() * 0.7), float(gaussian.marginal_std(ab)))
    assert mean + std * start[0] == pytest.approx(0.6999, abs=2e-4)
    assert std * start[1] == pytest.approx(simulated_std, abs=1e-3)


def test_a_number_of_steps_takes_the_place_of_timesteps() -> None:
    named = Sampling(timesteps=(999, 500), members=3)
    assert named.with_dials(steps=5) == Sampling(steps=5, members=3)
    assert named.with_dials(start=600) == Sampling(steps=2, start=600, members=3)
    assert named.with_dials(steps=5, timesteps=(999, 400)) == Sampling(timesteps=(999, 400), members=3)
    assert named.with_dials(eta=0.5).timesteps == (999, 500)
    walk = trajectory(Gaussian(SCHEDULE), torch.zeros(1, 1), None, SCHEDULE, sampling=named, steps=4)
    assert [step.t for step in walk] == linspace_timesteps(1000, 4).flip(0).tolist()


@pytest.mark.parametrize(
    ("method", "timesteps", "expected_std"),
    [("dpmpp_2m", None, 0.304), ("dpmpp_2m", linspace_timesteps(1000, 20), 0.389), ("ddim", None, 0.238)],
)
def test_twenty_steps_on_a_narrow_gaussian(method: str, timesteps: Tensor | None, expected_std: float) -> None:
    gaussian = Gaussian(SCHEDULE, m=0.7, s=0.3)
    mean, std = sampled_mean_std(gaussian, SCHEDULE, steps=20, method=method, timesteps=timesteps)
    assert std == pytest.approx(expected_std, abs=5e-4)
    assert mean == pytest.approx(0.7, abs=2e-3)


def test_a_truncated_chain_from_the_true_marginal() -> None:
    """Where ``q_sample`` of the truth starts the chain, as many steps over fewer timesteps err less."""
    gaussian, errors = Gaussian(SCHEDULE, m=0.7, s=0.5), []
    for start in (999, 600, 300):
        ab = SCHEDULE.alpha_bar[start]
        marginal = (float(ab.sqrt() * 0.7), float(gaussian.marginal_std(ab)))
        offset, slope = sampled_mean_std(gaussian, SCHEDULE, steps=50, start=start)
        exact = ddim_mean_std(gaussian, linspace_timesteps(start + 1, 50).tolist(), start=marginal)
        mean, std = offset + slope * marginal[0], slope * marginal[1]
        assert (mean, std) == pytest.approx(exact, rel=1e-10)
        assert mean == pytest.approx(0.7, abs=1e-3)
        errors.append(0.5 - std)
    assert 0 < errors[2] < errors[1] < errors[0]


def test_a_chain_truncated_without_an_estimate_keeps_the_noise_it_started_from() -> None:
    """Pure noise at t: its mean lacks sqrt(alpha_bar) m, so the result keeps a part of the difference (eq. 3)."""
    gaussian, errors = Gaussian(SCHEDULE, m=0.7, s=0.5), []
    for start in (900, 600, 300):
        mean, _ = sampled_mean_std(gaussian, SCHEDULE, steps=start + 1, start=start)
        ab = SCHEDULE.alpha_bar[start]
        flow = float(0.7 - 0.5 * ab.sqrt() * 0.7 / gaussian.marginal_std(ab))  # the probability flow of x = 0
        assert mean == pytest.approx(flow, abs=2e-3)
        errors.append(0.7 - mean)
    assert errors == sorted(errors)


@pytest.mark.parametrize("method", METHODS)
def test_a_truncated_chain_visits_nothing_above_its_start(method: str, generator: torch.Generator) -> None:
    how: dict[str, Any] = {"steps": 4, "method": method, "start": 600, "generator": generator}
    visited = [step.t for step in trajectory(Gaussian(SCHEDULE), torch.ones(1, 1), None, SCHEDULE, **how)]
    assert (visited[0], visited[-1], len(visited)) == (600, 0, 4)
    if method == "dpmpp_2m":
        gaps = SCHEDULE.log_snr[visited].diff()
        torch.testing.assert_close(gaps, gaps.mean().expand(3), rtol=0.05, atol=0)
    else:
        assert visited == [600, 400, 200, 0]


@pytest.mark.parametrize("method", METHODS)
def test_the_whole_chain_is_the_one_that_starts_at_the_end(method: str) -> None:
    x_T = torch.randn(3, 1, 2, dtype=torch.float64)
    whole, given = (
        sample(
            Gaussian(SCHEDULE),
            x_T,
            None,
            SCHEDULE,
            steps=5,
            method=method,
            start=start,
            generator=torch.Generator().manual_seed(1),
        )
        for start in (None, 999)
    )
    assert torch.equal(whole, given)


@pytest.mark.parametrize(("method", "order"), [("ddim", 1), ("dpmpp_2m", 2)])
def test_measured_order_of_convergence(method: str, order: int) -> None:
    # many timesteps, so that rounding to them disturbs the spacing little; the error is taken before the last step,
    # which goes to alpha_bar = 1 at first order
    schedule = NoiseSchedule(10_000)
    gaussian = Gaussian(schedule, m=0.7, s=0.3)
    x_T = torch.ones(1, 1, 1, dtype=torch.float64)
    truth = gaussian.probability_flow(x_T, schedule.alpha_bar[-1], schedule.alpha_bar[0])
    counts, errors = [40, 80, 160], []
    for steps in counts:
        kept = log_snr_timesteps(schedule, steps)
        *_, last = trajectory(gaussian, x_T, None, schedule, method=method, timesteps=kept)
        assert last.t == 0
        errors.append(float((last.x_t - truth).abs()))
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert -slope == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("method", METHODS)
def test_prediction_types_agree(prediction_type: str, method: str) -> None:
    schedule = NoiseSchedule(prediction_type=prediction_type)
    x_T = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    results = [
        sample(Gaussian(s, 0.7, 0.3), x_T, None, s, steps=7, method=method, generator=torch.Generator().manual_seed(4))
        for s in (schedule, SCHEDULE)
    ]
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-10)


def test_one_step_returns_the_denoised_noise() -> None:
    gaussian, x_T = Gaussian(SCHEDULE), torch.randn(3, 1, 2, dtype=torch.float64)
    for method in METHODS:
        torch.testing.assert_close(
            sample(gaussian, x_T, None, SCHEDULE, steps=1, method=method), gaussian.x0(x_T, torch.tensor([999]))
        )


def test_dpm_solver_equals_a_plain_loop() -> None:
    gaussian, timesteps = Gaussian(SCHEDULE, 0.7, 0.3), [0, 40, 300, 310, 700, 999]
    x, before, lam_before = 0.8, None, None
    for t, t_next in zip(timesteps[:0:-1], timesteps[-2::-1], strict=True):
        a, a_next = math.sqrt(SCHEDULE.alpha_bar[t]), math.sqrt(SCHEDULE.alpha_bar[t_next])
        sigma, sigma_next = math.sqrt(1 - a * a), math.sqrt(1 - a_next * a_next)
        lam, lam_next = math.log(a / sigma), math.log(a_next / sigma_next)
        x0 = float(gaussian.x0(torch.full((1, 1), x, dtype=torch.float64), torch.tensor([t])))
        D = x0
        if before is not None and lam_before is not None:
            r = (lam - lam_before) / (lam_next - lam)
            D = (1 + 1 / (2 * r)) * x0 - before / (2 * r)
        x = sigma_next / sigma * x - a_next * (math.exp(lam - lam_next) - 1) * D
        before, lam_before = x0, lam
    x_T = torch.full((1, 1), 0.8, dtype=torch.float64)
    *_, last = trajectory(gaussian, x_T, None, SCHEDULE, method="dpmpp_2m", timesteps=timesteps)
    assert float(last.x_t) == pytest.approx(x, rel=1e-9)
    torch.testing.assert_close(last.x_prev, gaussian.x0(last.x_t, torch.tensor([0])))


# --- stochastic samplers --------------------------------------------------------------------------------------------


def plain_ddpm(gaussian: Gaussian, x: float, draws: list[float], timesteps: list[int]) -> float:
    """DDPM on a number, with betas from the ratio of the visited alpha_bar."""
    ab = [1.0, *(float(gaussian.schedule.alpha_bar[t]) for t in timesteps)]
    for i in range(len(timesteps), 0, -1):
        eps = float(gaussian.eps(torch.full((1, 1), x, dtype=torch.float64), torch.tensor([timesteps[i - 1]])))
        beta = 1 - ab[i] / ab[i - 1]
        mean = (x - beta / math.sqrt(1 - ab[i]) * eps) / math.sqrt(1 - beta)  # Ho et al. (2020), eq. 11
        sigma = math.sqrt(beta * (1 - ab[i - 1]) / (1 - ab[i]))
        x = mean + (sigma * draws.pop(0) if i > 1 else 0.0)
    return x


@pytest.mark.parametrize("steps", [10, 50, 1000])
def test_ddpm_equals_a_plain_loop(steps: int) -> None:
    gaussian = Gaussian(SCHEDULE, m=0.7, s=0.3)
    draws = torch.randn(steps, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = RecordedNoise(draws[1:])
    result = sample(gaussian, draws[0], None, SCHEDULE, steps=steps, method="ddpm", generator=noise)
    timesteps = linspace_timesteps(1000, steps).tolist()
    x_T, *rest = draws.flatten().tolist()
    assert float(result) == pytest.approx(plain_ddpm(gaussian, x_T, rest, timesteps), abs=1e-9)
    assert not noise.draws  # the last step is without noise


@pytest.mark.parametrize(("steps", "known_std"), [(10, 0.1636), (50, 0.252), (1000, 0.2963)])
def test_ddpm_approaches_the_truth(steps: int, known_std: float) -> None:
    gaussian = Gaussian(SCHEDULE, m=0.7, s=0.3)
    mean, std = ddpm_mean_std(gaussian, linspace_timesteps(1000, steps).tolist())
    assert std == pytest.approx(known_std, abs=3e-4)
    n = 4000
    generator = torch.Generator().manual_seed(5)
    x_T = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    x_0 = sample(gaussian, x_T, None, SCHEDULE, steps=steps, method="ddpm", generator=generator)
    # four standard errors
    assert x_0.mean().item() == pytest.approx(mean, abs=4 * std / math.sqrt(n))
    assert x_0.std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * n))


def test_ddim_with_full_noise_is_ddpm() -> None:
    gaussian = Gaussian(SCHEDULE)
    x_T = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ddim, ddpm = (
        sample(gaussian, x_T, None, SCHEDULE, steps=9, generator=torch.Generator().manual_seed(2), **how)
        for how in ({"method": "ddim", "eta": 1.0}, {"method": "ddpm"})
    )
    torch.testing.assert_close(ddim, ddpm, rtol=0, atol=1e-10)


def test_learned_variance_interpolates_in_log_space() -> None:
    for t in (0, 1, 500, 999):
        beta = SCHEDULE.beta[t].item()
        posterior = SCHEDULE.posterior_variance[max(t, 1)].item()
        v = torch.tensor([[-1.0, -0.5, 0.0, 1.0]], dtype=torch.float64)
        expected = [posterior, posterior**0.75 * beta**0.25, math.sqrt(posterior * beta), beta]
        torch.testing.assert_close(
            learned_log_variance(SCHEDULE, v, t).exp(), torch.tensor([expected], dtype=torch.float64), rtol=1e-9, atol=0
        )


def test_learned_variance_reaches_the_ddpm_step() -> None:
    gaussian, v, t = Gaussian(SCHEDULE), 0.3, 600

    def denoiser(x_t: Tensor, t: Tensor, context: None) -> Tensor:
        return torch.cat([gaussian(x_t, t), torch.full_like(x_t, v)], dim=1)

    x_T = torch.zeros(1, 1, 1, dtype=torch.float64)
    first, _ = trajectory(
        denoiser,
        x_T,
        None,
        SCHEDULE,
        method="ddpm",
        timesteps=[300, t],
        generator=RecordedNoise(torch.ones(1, 1, 1, 1).double()),
    )
    spaced = SCHEDULE.respace([300, t])
    mean, posterior = spaced.q_posterior(first.x0, x_T, 1)
    variance = math.exp((1 + v) / 2 * math.log(spaced.beta[1]) + (1 - v) / 2 * math.log(posterior))
    assert float(first.x_prev) == pytest.approx(float(mean) + math.sqrt(variance), rel=1e-12)


# --- steps of the public ADM code -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["full", "respaced25"])
@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_steps_equal_published_code(name: str, which: int) -> None:
    reference = np.load(shared_path("reference", f"guided_sampling_linear1000_{name}.npz"))
    schedule = SCHEDULE.respace(reference["timestep_map"])
    i = (0, 1, schedule.T // 2, schedule.T - 1)[which]
    x_t, output, noise, score = (
        torch.from_numpy(reference[key]).double() for key in ("x_t", "model_output", "noise", "guidance_score")
    )
    eps, v = split_variance(output, x_t)
    assert v is not None
    x0 = schedule.to_x0(eps, x_t, i)
    shift = score / -schedule.score(torch.ones_like(score), i)  # sqrt(1 - alpha_bar) F
    eps_hat, x0_hat = shift_prediction(schedule, i, x_t, eps, x0, shift)
    ours = {
        "mean": schedule.q_posterior(x0, x_t, i)[0],
        "variance": learned_log_variance(schedule, v, i).exp(),
        "x0_unguided": x0,
        "ddpm_unguided": ddpm_step(schedule, i, x_t, x0, v, generator=RecordedNoise(noise[None])),
        "ddim_unguided": ddim_step(schedule, i, x_t, x0, eps),
        "ddpm_guided": ddpm_step(schedule, i, x_t, x0, v, shift, generator=RecordedNoise(noise[None])),
        "ddim_guided": ddim_step(schedule, i, x_t, x0_hat, eps_hat),
    }
    for key, value in ours.items():
        expected = torch.from_numpy(reference[f"{key}_i{i}"])
        torch.testing.assert_close(value.float(), expected, rtol=1e-5, atol=1e-5)


# --- the generator of steps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_trajectory_is_a_chain_of_consistent_steps(method: str, generator: torch.Generator) -> None:
    gaussian, x_T = Gaussian(SCHEDULE), torch.randn(2, 1, 3, dtype=torch.float64)
    steps = list(trajectory(gaussian, x_T, None, SCHEDULE, steps=6, method=method, generator=generator))
    kept = log_snr_timesteps(SCHEDULE, 6) if method == "dpmpp_2m" else linspace_timesteps(1000, 6)
    assert [step.t for step in steps] == kept.flip(0).tolist()
    assert torch.equal(steps[0].x_t, x_T)
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        torch.testing.assert_close(SCHEDULE.q_sample(step.x0, step.t, step.eps), step.x_t, rtol=0, atol=1e-12)
        if following is not None:
            assert torch.equal(step.x_prev, following.x_t)
        else:
            torch.testing.assert_close(step.x_prev, step.x0, rtol=0, atol=1e-12)


def test_given_timesteps_may_come_in_any_order() -> None:
    gaussian, x_T = Gaussian(SCHEDULE), torch.ones(1, 1, dtype=torch.float64)
    for order in ([999, 3, 500], (500, 3, 999), torch.tensor([3, 999, 500])):
        assert [step.t for step in trajectory(gaussian, x_T, None, SCHEDULE, timesteps=order)] == [999, 500, 3]


@pytest.mark.parametrize("method", METHODS)
def test_clip_bounds_the_predicted_x0(method: str, generator: torch.Generator) -> None:
    gaussian, x_T = Gaussian(SCHEDULE, m=0.9, s=0.5), torch.linspace(-3, 3, 7, dtype=torch.float64).reshape(7, 1)
    steps = list(trajectory(gaussian, x_T, None, SCHEDULE, steps=5, method=method, clip=(-1, 1), generator=generator))
    assert all(bool((step.x0.abs() <= 1).all()) for step in steps)
    assert bool((steps[-1].x_prev.abs() <= 1).all())
    free = sample(gaussian, x_T, None, SCHEDULE, steps=5, method="ddim")
    assert bool((free > 1).any())  # the bound was needed
    for step in steps:  # eps goes with the clipped x_0
        torch.testing.assert_close(SCHEDULE.q_sample(step.x0, step.t, step.eps), step.x_t, rtol=0, atol=1e-12)


def test_nothing_records_gradients_and_the_callers_mode_returns() -> None:
    weight = torch.ones((), requires_grad=True)
    gaussian = Gaussian(SCHEDULE)
    for step in trajectory(lambda x, t, y: weight * gaussian(x, t), torch.ones(1, 1), None, SCHEDULE, steps=3):
        assert not step.x_prev.requires_grad
        assert torch.is_grad_enabled()


def test_context_is_encoded_once_and_images_only() -> None:
    calls = []

    class Denoiser:
        def encode(self, y: Tensor) -> tuple[Tensor]:
            calls.append(y)
            return (2 * y,)

        def __call__(self, x_t: Tensor, t: Tensor, context: tuple[Tensor]) -> Tensor:
            assert t.dtype == torch.int64
            assert t.shape == (len(x_t),)
            return x_t - context[0]

    denoiser, x_T, y = Denoiser(), torch.ones(2, 1), torch.full((2, 1), 0.25)
    from_image = sample(denoiser, x_T, y, SCHEDULE, steps=4)
    assert len(calls) == 1
    assert torch.equal(sample(denoiser, x_T, (2 * y,), SCHEDULE, steps=4), from_image)
    assert len(calls) == 1


def test_guidance_shift_of_zero_changes_nothing_and_none_is_unguided() -> None:
    gaussian, x_T = Gaussian(SCHEDULE), torch.randn(2, 1, 3, dtype=torch.float64)
    for method in METHODS:
        how: dict[str, Any] = {"steps": 5, "method": method}
        plain, none, zero = (
            sample(denoiser, x_T, None, SCHEDULE, generator=torch.Generator().manual_seed(0), **how)
            for denoiser in (
                gaussian,
                lambda x, t, y: Guided(gaussian(x, t), None),
                lambda x, t, y: Guided(gaussian(x, t), torch.zeros_like(x)),
            )
        )
        assert torch.equal(plain, none)
        torch.testing.assert_close(plain, zero, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "euler"}, "method must be one of"),
        ({"method": "ddpm", "eta": 0.5}, "eta belongs to ddim"),
        ({"eta": 1.5}, "eta must be between 0 and 1"),
        ({"noise_scale": -0.5}, "noise_scale must be 0 or more"),
        ({"noise_scale": 0.5, "eta": 0.1}, "draw no noise on the way"),
        ({"noise_scale": 0.5, "method": "ddpm"}, "draw no noise on the way"),
        ({"noise_scale": 0.0}, "makes 8 members alike"),
        ({"steps": 0}, "steps must be between"),
        ({"steps": 1001}, "steps must be between"),
        ({"start": 1000}, "must start at a timestep 0 … 999, not 1000"),
        ({"start": -1}, "must start at a timestep 0 … 999, not -1"),
        ({"start": 10.5}, "must start at a timestep 0 … 999, not 10.5"),
        ({"start": 9, "steps": 11}, "steps must be between 1 and 10"),
        ({"timesteps": [4, 4]}, r"different whole numbers of 0 or more, not \[4, 4\]"),
        ({"timesteps": [0, 1000]}, r"different whole numbers 0 … 999, not \[1000, 0\]"),
        ({"timesteps": [0.5]}, "different whole numbers"),
        ({"timesteps": [-1, 5]}, "different whole numbers"),
        ({"timesteps": []}, "different whole numbers"),
    ],
)
def test_bad_arguments_are_named_at_the_call(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trajectory(Gaussian(SCHEDULE), torch.ones(1, 1), None, SCHEDULE, **arguments)  # type: ignore[arg-type]


def test_wrong_number_of_channels_is_named() -> None:
    with pytest.raises(ValueError, match="x_t has 1 channels, the network's output 3"):
        sample(lambda x, t, y: x.repeat(1, 3), torch.ones(1, 1), None, SCHEDULE)
