"""NoiseSchedule against plain loops, published tables and its own inverses."""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from conftest import shared_path
from oracles import Gaussian

from cgdpm_med.diffusion.schedule import (
    PREDICTION_TYPES,
    SCHEDULES,
    NoiseSchedule,
    linspace_timesteps,
    log_snr_timesteps,
)

TABLES = (
    "beta",
    "alpha",
    "alpha_bar",
    "alpha_bar_prev",
    "sqrt_alpha_bar",
    "sqrt_one_minus_alpha_bar",
    "posterior_variance",
    "posterior_log_variance",
    "posterior_coef_x0",
    "posterior_coef_xt",
    "log_snr",
)


@pytest.mark.parametrize("name", ["full", "respaced25"])
def test_tables_equal_published_code(name: str) -> None:
    reference = np.load(shared_path("reference", f"guided_sampling_linear1000_{name}.npz"))
    schedule = NoiseSchedule()
    np.testing.assert_allclose(schedule.beta, reference["betas"], atol=1e-12, rtol=0)
    np.testing.assert_allclose(schedule.alpha_bar, reference["alphas_cumprod"], atol=1e-12, rtol=0)
    kept = reference["timestep_map"]
    spaced = schedule.respace(kept)
    np.testing.assert_allclose(spaced.alpha_bar, reference["alphas_cumprod"][kept], atol=1e-12, rtol=0)
    assert spaced.timesteps.tolist() == kept.tolist()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("T", [1, 2, 3, 1000])
def test_tables_equal_a_plain_loop(name: str, T: int) -> None:
    schedule = NoiseSchedule(T, name, "v_prediction")
    alpha_bar = 1.0
    for t, beta in enumerate(schedule.beta.tolist()):
        previous, alpha_bar = alpha_bar, alpha_bar * (1 - beta)
        assert schedule.alpha_bar[t].item() == pytest.approx(alpha_bar, rel=1e-12)
        assert schedule.alpha_bar_prev[t].item() == pytest.approx(previous, rel=1e-12)
        # Bayes' rule for two Gaussians: precisions add
        precision = (1 - beta) / beta + (1 / (1 - previous) if t else math.inf)
        assert schedule.posterior_variance[t].item() == pytest.approx(1 / precision, rel=1e-9, abs=1e-300)
        expected_coef_x0 = math.sqrt(previous) / (1 - previous) / precision if t else 1.0
        assert schedule.posterior_coef_x0[t].item() == pytest.approx(expected_coef_x0, rel=1e-9)
        expected_coef_xt = math.sqrt(1 - beta) / beta / precision
        assert schedule.posterior_coef_xt[t].item() == pytest.approx(expected_coef_xt, rel=1e-9, abs=1e-300)
        assert schedule.log_snr[t].item() == pytest.approx(0.5 * math.log(alpha_bar / (1 - alpha_bar)), rel=1e-9)
    if T > 1:
        expected = [schedule.posterior_variance[1].item(), *schedule.posterior_variance[1:].tolist()]
        np.testing.assert_allclose(schedule.posterior_log_variance.exp(), expected, rtol=1e-12)


def test_known_values_of_the_schedules() -> None:
    linear = NoiseSchedule(1000, "linear_beta")
    assert linear.beta[0].item() == pytest.approx(1e-4)
    assert linear.beta[-1].item() == pytest.approx(2e-2)
    assert 1 / linear.sqrt_alpha_bar[-1].item() == pytest.approx(157.4, abs=0.1)
    cosine = NoiseSchedule(1000, "cosine", "sample")
    u = (500 / 1000 + 0.008) / 1.008
    at_0 = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert cosine.alpha_bar[499].item() == pytest.approx(math.cos(u * math.pi / 2) ** 2 / at_0, rel=1e-12)
    assert 1 / cosine.sqrt_alpha_bar[-1].item() == pytest.approx(20290, abs=10)
    # the same end points whatever T: the more steps, the less of x_0 is left
    more = NoiseSchedule(2000, "constant_beta_range", "sample")
    assert more.beta[0].item() == pytest.approx(1e-4)
    assert more.beta[-1].item() == pytest.approx(2e-2)
    assert more.alpha_bar[-1] < 1e-4 * linear.alpha_bar[-1]


def test_scaled_linear_schedule_ends_at_the_same_noise() -> None:
    for T in (500, 2000):
        total = NoiseSchedule(T).log_snr[-1].item()
        assert total == pytest.approx(NoiseSchedule().log_snr[-1].item(), rel=0.03)


def test_epsilon_under_cosine_warns_and_nothing_else_does() -> None:
    with pytest.warns(UserWarning, match="epsilon prediction is ill-posed"):
        schedule = NoiseSchedule(1000, "cosine", "epsilon")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule.respace([0, 500, 999])
        NoiseSchedule(1000, "cosine", "v_prediction")
        NoiseSchedule(1000, "cosine", "sample")
        NoiseSchedule(1000, "linear_beta", "epsilon")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_batches_never_change_tables(dtype: torch.dtype) -> None:
    schedule = NoiseSchedule(50)
    before = {name: getattr(schedule, name).clone() for name in TABLES}
    x, t = torch.randn(3, 1, 2, 2, dtype=dtype), torch.tensor([0, 20, 49])
    assert schedule.q_sample(x, t, x).dtype == dtype
    schedule.velocity(x, x, t)
    schedule.to_x0(x, x, t)
    schedule.to_eps(x, x, 7)
    schedule.q_posterior(x, x, t)
    schedule.score(x, t)
    for name, table in before.items():
        assert getattr(schedule, name).dtype == torch.float64
        assert torch.equal(getattr(schedule, name), table)
        gathered = schedule.at(name, t, x.double())
        assert torch.equal(gathered.flatten(), table[t])


def test_half_precision_is_computed_in_single() -> None:
    schedule = NoiseSchedule()
    x, output = torch.tensor([[[0.5]], [[-0.25]]], dtype=torch.bfloat16)
    x0 = schedule.to_x0(output, x, torch.tensor([999]))
    expected = schedule.to_x0(output.double(), x.double(), torch.tensor([999]))
    assert x0.dtype == torch.float32
    torch.testing.assert_close(x0.double(), expected, rtol=1e-6, atol=0)


def test_single_precision_keeps_small_noise_levels() -> None:
    # 1 - alpha_bar[0] = 1e-4: taken in float32 it would be off by up to 6e-4 of itself
    schedule = NoiseSchedule()
    sigma = schedule.at("sqrt_one_minus_alpha_bar", 0, torch.zeros(1)).item()
    assert sigma == pytest.approx(1e-2, rel=1e-6)


def test_gather_by_int_equals_gather_by_tensor() -> None:
    schedule, like = NoiseSchedule(), torch.zeros(2, 3, 4, 4)
    for table in TABLES:
        by_tensor = schedule.at(table, torch.tensor([5, 900]), like)
        assert by_tensor.shape == (2, 1, 1, 1)
        assert torch.equal(by_tensor[1:].expand(2, 3, 4, 4), schedule.at(table, 900, like).expand_as(like))
        assert by_tensor[0].item() == pytest.approx(getattr(schedule, table)[5].item(), rel=1e-6)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("t", [0, 3, torch.tensor([0, 4])])
def test_conversions_round_trip(prediction_type: str, t: int | torch.Tensor, generator: torch.Generator) -> None:
    schedule = NoiseSchedule(5, torch.tensor([0.01, 0.1, 0.3, 0.5, 0.9]), prediction_type)
    x_0 = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    eps = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    x_t = schedule.q_sample(x_0, t, eps)
    output = {"epsilon": eps, "sample": x_0, "v_prediction": schedule.velocity(x_0, eps, t)}[prediction_type]
    torch.testing.assert_close(schedule.to_x0(output, x_t, t), x_0, rtol=0, atol=1e-12)
    torch.testing.assert_close(schedule.to_eps(output, x_t, t), eps, rtol=0, atol=1e-12)
    torch.testing.assert_close(schedule.eps_from_x0(x_0, x_t, t), eps, rtol=0, atol=1e-12)


def test_score_is_the_gradient_of_the_log_density() -> None:
    schedule = NoiseSchedule()
    gaussian = Gaussian(schedule, m=0.7, s=0.3)
    x_t = torch.linspace(-2, 2, 5, dtype=torch.float64).reshape(5, 1).requires_grad_()
    t = torch.tensor([0, 10, 100, 500, 999])
    ab = schedule.alpha_bar[t][:, None]
    density = torch.distributions.Normal(ab.sqrt() * 0.7, (ab * 0.3**2 + 1 - ab).sqrt())
    (gradient,) = torch.autograd.grad(density.log_prob(x_t).sum(), x_t)
    torch.testing.assert_close(schedule.score(gaussian.eps(x_t.detach(), t), t), gradient, rtol=1e-9, atol=1e-9)


def test_posterior_agrees_with_regression_on_samples() -> None:
    # eqs. (6, 7) hold for x_{t-1} given x_t at fixed x_0: compare with a linear regression on simulated pairs
    schedule = NoiseSchedule(3, torch.tensor([0.2, 0.3, 0.4]))
    generator, x_0 = torch.Generator().manual_seed(1), torch.full((200_000, 1), 0.8, dtype=torch.float64)
    draw = torch.randn(2, *x_0.shape, generator=generator, dtype=torch.float64)
    x_prev = schedule.q_sample(x_0, 1, draw[0])
    x_t = schedule.alpha[2].sqrt() * x_prev + schedule.beta[2].sqrt() * draw[1]
    mean, variance = schedule.q_posterior(x_0, x_t, 2)
    residual = x_prev - mean
    assert residual.mean().item() == pytest.approx(0, abs=4e-3)
    assert (residual * x_t).mean().item() == pytest.approx(0, abs=4e-3)
    assert residual.var().item() == pytest.approx(variance.item(), rel=0.02)


@pytest.mark.parametrize("T", [1, 2, 3, 7, 100, 1000])
@pytest.mark.parametrize("name", ["linear_beta", "cosine"])
def test_timesteps_of_every_method_ascend_between_the_ends(name: str, T: int) -> None:
    schedule = NoiseSchedule(T, name, "sample")
    for steps in sorted({1, 2, 3, 5, 10, 20, 50, 99, 100, T // 2, T - 1, T} & set(range(1, T + 1))):
        for kept in (linspace_timesteps(T, steps), log_snr_timesteps(schedule, steps)):
            assert len(kept) == steps
            assert bool((kept.diff() > 0).all())
            assert kept[-1] == T - 1
            assert kept[0] == (0 if steps > 1 else T - 1)
            if steps == T:
                assert torch.equal(kept, torch.arange(T))
            spaced = schedule.respace(kept)
            assert torch.equal(spaced.timesteps, kept)
            torch.testing.assert_close(spaced.alpha_bar, schedule.alpha_bar[kept], rtol=1e-6, atol=0)


def test_linspace_timesteps_by_hand() -> None:
    assert linspace_timesteps(1000, 5).tolist() == [0, 250, 500, 749, 999]  # 249.75, 499.5, 749.25; ties to even


def test_log_snr_timesteps_are_even_in_log_snr() -> None:
    schedule = NoiseSchedule()
    kept = log_snr_timesteps(schedule, 12)
    spacing = -schedule.log_snr[kept].diff()
    # away from the data end, where neighbouring timesteps lie further apart than the spacing
    expected = (schedule.log_snr[0] - schedule.log_snr[-1]) / 11
    torch.testing.assert_close(spacing[3:], expected.expand(8), rtol=0.05, atol=0)


@pytest.mark.parametrize("steps", [0, -1, 11])
def test_impossible_step_counts_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="steps must be between 1 and 10"):
        linspace_timesteps(10, steps)
    with pytest.raises(ValueError, match="steps must be between 1 and 10"):
        log_snr_timesteps(NoiseSchedule(10, "cosine", "sample"), steps)


def test_respacing_all_is_the_identity_and_respacing_twice_composes() -> None:
    schedule = NoiseSchedule()
    assert torch.equal(schedule.respace(range(1000)).beta, schedule.beta)
    twice = schedule.respace(range(0, 1000, 10)).respace([3, 50, 99])
    once = schedule.respace([30, 500, 990])
    assert twice.timesteps.tolist() == [30, 500, 990]
    torch.testing.assert_close(twice.beta, once.beta, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kept", [[], [3, 3], [5, 2], [-1, 4], [0, 1000]])
def test_respacing_refuses_other_timesteps(kept: list[int]) -> None:
    with pytest.raises(ValueError, match="ascend strictly"):
        NoiseSchedule().respace(kept)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": "quadratic"}, "schedule must be one of"),
        ({"prediction_type": "noise"}, "prediction_type must be one of"),
        ({"num_train_timesteps": 0}, "at least 1"),
        ({"schedule": torch.tensor([0.1, 1.0])}, "strictly between 0 and 1"),
        ({"schedule": torch.tensor([])}, "strictly between 0 and 1"),
        ({"schedule": torch.tensor([0.1]), "timesteps": torch.tensor([0, 1])}, "2 timesteps for 1 betas"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseSchedule(**arguments)  # type: ignore[arg-type]


def test_schedule_can_be_copied() -> None:
    schedule = NoiseSchedule(100)
    schedule.at("beta", torch.tensor([1]), torch.zeros(1, 1))
    assert torch.equal(copy.deepcopy(schedule).alpha_bar, schedule.alpha_bar)
