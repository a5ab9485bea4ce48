"""Guided sampling, the guidance loss and the replay, against closed forms, ADM's numbers and plain loops.

The scalar Gaussian x_0 | y ~ N(m, s^2) has an exact score, so the exact guidance network of each coupling is known:
reverse: F* = sqrt(ab) (m - x0_theta) / (1 - ab); forward with the exact denoiser: 0.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import shared_path
from torch import Tensor, nn

from cgdpm_med.diffusion.ensemble import MaskDenoiser, sample_ensemble
from cgdpm_med.diffusion.guidance import Replay, ScaledGuide, ShuffleBuffer, guided, strided_timesteps
from cgdpm_med.diffusion.losses import GuidanceLoss, guidance_target
from cgdpm_med.diffusion.sampling import ddim_step, ddpm_step, sample, shift_prediction, split_variance, trajectory
from cgdpm_med.diffusion.schedule import NoiseSchedule

M, S = 0.7, 0.5
SCHEDULE = NoiseSchedule()


def gaussian_eps(x_t: Tensor, t: Tensor, context: Any = None, schedule: NoiseSchedule = SCHEDULE) -> Tensor:
    """The exact denoiser of N(M, S^2)."""
    ab = schedule.at("alpha_bar", t, x_t)
    return (1 - ab).sqrt() * (x_t - ab.sqrt() * M) / (ab * S**2 + 1 - ab)


def gaussian_f(x_t: Tensor, t: Tensor, context: Any = None) -> Tensor:
    """sqrt(1 - alpha_bar) F* of the reverse coupling, as DESIGN prints F*."""
    ab = SCHEDULE.at("alpha_bar", t, x_t)
    return -(1 - ab).sqrt() * (x_t - ab.sqrt() * M) * (1 / (1 - ab) - 1 / (ab * S**2 + 1 - ab))


def two_mode_eps(x_t: Tensor, t: Tensor, context: Any = None) -> Tensor:
    """The exact denoiser of x_0 uniform on {-1, +1}."""
    ab = SCHEDULE.at("alpha_bar", t, x_t)
    return SCHEDULE.eps_from_x0(torch.tanh(ab.sqrt() * x_t / (1 - ab)), x_t, t)


def two_mode_f(x_t: Tensor, t: Tensor, context: Any = None) -> Tensor:
    """f of the reverse coupling: the target where s_0 is at its mean, 0."""
    ab = SCHEDULE.at("alpha_bar", t, x_t)
    return -(ab / (1 - ab)).sqrt() * torch.tanh(ab.sqrt() * x_t / (1 - ab))


def never(*_: Any) -> Tensor:
    raise AssertionError("the guidance network was evaluated")


def noise(n: int = 4096, seed: int = 0) -> Tensor:
    """n draws with mean exactly 0 and variance exactly 1, float64."""
    x = torch.randn(n, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x - x.mean()) / x.std(correction=0)


def final_std(denoiser: Callable[..., Any], **as_trajectory: Any) -> float:
    x_0 = sample(denoiser, noise(), None, SCHEDULE, **{"steps": 1000, **as_trajectory})
    return float(x_0.std(correction=0))


class SmallGuide(nn.Module):
    """A scalar network of x_t and t."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.last = nn.Linear(width, 1)

    def forward(self, x_t: Tensor, t: Tensor, context: Any = None) -> Tensor:
        lam = SCHEDULE.at("log_snr", t, x_t)
        inputs = [x_t, lam / 4, torch.sigmoid(2 * lam), x_t * torch.sigmoid(2 * lam)]
        return self.last(self.net(torch.cat(inputs, dim=1)))


def pairs(
    draw: Callable[[torch.Generator], Tensor], seed: int = 0, batches: int = 10**9
) -> Iterator[tuple[Tensor, Tensor]]:
    """A stream of (s_0, y) with an empty condition."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(batches):
        s_0 = draw(generator)
        yield s_0, s_0.new_zeros(len(s_0), 0)


def gaussian_pairs(seed: int = 0, batches: int = 10**9, images: int = 16) -> Iterator[tuple[Tensor, Tensor]]:
    return pairs(lambda g: M + S * torch.randn(images, 1, generator=g), seed, batches)


def train_guide(denoiser: Callable[..., Tensor], draw: Callable[[torch.Generator], Tensor], coupling: str) -> nn.Module:
    """A small guide trained on replayed examples, bounded weighting, about two seconds."""
    torch.manual_seed(0)
    iterations = 600
    guide = ScaledGuide(SmallGuide(), SCHEDULE)
    replay = Replay(
        denoiser,
        SCHEDULE,
        generator=torch.Generator().manual_seed(1),
        capacity=12_800,
        coupling=coupling,
        chains=1,
        steps=25,
    )
    loss = GuidanceLoss(SCHEDULE, "bounded")
    optimiser = torch.optim.Adam(guide.parameters(), lr=1e-2)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    for _, examples in zip(range(iterations), replay.batches(pairs(draw), 1024), strict=False):
        optimiser.zero_grad()
        loss(guide, *examples).backward()
        optimiser.step()
        decay.step()
    return guide.requires_grad_(False)


def gaussian_images(generator: torch.Generator) -> Tensor:
    """256 targets in pairs about the mean, which quietens the training."""
    z = S * torch.randn(128, 1, generator=generator)
    return M + torch.cat([z, -z])


def two_mode_images(generator: torch.Generator) -> Tensor:
    return torch.cat([torch.ones(128, 1), -torch.ones(128, 1)])


# ---------------------------------------------------------------------------------------------- guided sampling


@pytest.mark.parametrize(("scale", "law"), [(0.25, 0.145), (0.5, 0.0370), (0.75, 0.0069), (1.0, 0.0)])
def test_final_std_of_guided_ddim(scale: float, law: float) -> None:
    assert final_std(guided(gaussian_eps, gaussian_f, SCHEDULE, scale=scale)) == pytest.approx(law, rel=0.01, abs=1e-4)


@pytest.mark.parametrize("scale", [0.25, 0.5, 0.75])
def test_final_std_follows_the_closed_form_of_the_probability_flow(scale: float) -> None:
    # 1000 steps are 3-5 % above the law of the continuous flow, which evaluates to .141, .0354, .0066
    smin2 = float((1 - SCHEDULE.alpha_bar[0]) / SCHEDULE.alpha_bar[0])
    smax2 = float((1 - SCHEDULE.alpha_bar[-1]) / SCHEDULE.alpha_bar[-1])
    law = S ** (1 - scale) * smin2 ** (scale / 2) * (smax2 / (S**2 + smax2)) ** ((1 - scale) / 2)
    assert final_std(guided(gaussian_eps, gaussian_f, SCHEDULE, scale=scale)) == pytest.approx(
        (1 - scale) * law, rel=0.06
    )


@pytest.mark.parametrize(("interval", "std"), [((500, 1000), 0.493), ((200, 1000), 0.409)])
def test_an_interval_keeps_spread(interval: tuple[int, int], std: float) -> None:
    assert final_std(guided(gaussian_eps, gaussian_f, SCHEDULE, interval=interval)) == pytest.approx(std, abs=5e-4)


@pytest.mark.parametrize("method", ["ddim", "dpmpp_2m"])
def test_full_guidance_ends_at_the_conditional_mean(method: str) -> None:
    x_0 = sample(guided(gaussian_eps, gaussian_f, SCHEDULE), noise(), None, SCHEDULE, steps=20, method=method)
    torch.testing.assert_close(x_0, torch.full_like(x_0, M))


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_guided_ddpm_follows_the_recursion_of_its_mean_and_variance(scale: float) -> None:
    """Each step is linear in x_t: x_{t-1} - sqrt(ab') m = a (x_t - sqrt(ab) m) + sqrt(Sigma) z, with eq. (13) in a."""
    steps = 50
    spaced = SCHEDULE.respace(torch.linspace(0, 999, steps, dtype=torch.float64).round().long())
    offset, variance = -math.sqrt(float(spaced.alpha_bar[-1])) * M, 1.0
    for i in reversed(range(steps)):
        ab, ab_prev, beta = (float(getattr(spaced, name)[i]) for name in ("alpha_bar", "alpha_bar_prev", "beta"))
        total = ab * S**2 + 1 - ab
        sigma = beta * (1 - ab_prev) / (1 - ab)
        a = beta * math.sqrt(ab_prev) / (1 - ab) * math.sqrt(ab) * S**2 / total  # eq. (7), by way of x0_theta
        a += (1 - ab_prev) * math.sqrt(1 - beta) / (1 - ab)
        a -= scale * sigma * (1 / (1 - ab) - 1 / total)
        offset, variance = a * offset, a**2 * variance + sigma
    x_0 = sample(
        guided(gaussian_eps, gaussian_f, SCHEDULE, scale=scale),
        noise(20_000),
        None,
        SCHEDULE,
        steps=steps,
        method="ddpm",
        generator=torch.Generator().manual_seed(0),
    )
    assert float(x_0.mean()) == pytest.approx(M + offset, abs=4 * math.sqrt(variance / 20_000))
    assert float(x_0.std()) == pytest.approx(math.sqrt(variance), rel=4 / math.sqrt(2 * 20_000))


@pytest.mark.parametrize("scale", [0.25, 0.5, 1.0])
def test_two_modes_under_exact_guidance_move_to_one_minus_w(scale: float) -> None:
    """E[s_0] = 0, so x0_hat = (1 - w) x0_theta and the modes -1, +1 end at -(1 - w), 1 - w."""
    x_0 = sample(guided(two_mode_eps, two_mode_f, SCHEDULE, scale=scale), noise(), None, SCHEDULE, steps=50)
    assert float(x_0.std(correction=0)) == pytest.approx(1 - scale, abs=1e-3)


@pytest.mark.parametrize("method", ["ddim", "ddpm", "dpmpp_2m"])
@pytest.mark.parametrize("off", [{"scale": 0.0}, {"interval": (300, 300)}])
def test_guidance_off_is_the_denoiser_itself(method: str, off: dict[str, Any]) -> None:
    composed = guided(gaussian_eps, never, SCHEDULE, **off)

    def run(denoiser: Callable[..., Any]) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return sample(denoiser, noise(64), None, SCHEDULE, steps=20, method=method, generator=generator)

    assert torch.equal(run(composed), run(gaussian_eps))


def test_guide_is_evaluated_inside_the_interval_only() -> None:
    asked: list[int] = []

    def guide(x_t: Tensor, t: Tensor, context: Any) -> Tensor:
        asked.append(int(t[0]))
        return gaussian_f(x_t, t)

    visited = [0, 199, 200, 500, 799, 800, 999]
    denoiser = guided(gaussian_eps, guide, SCHEDULE, interval=(200, 800))
    sample(denoiser, noise(4), None, SCHEDULE, timesteps=visited)
    assert asked == [799, 500, 200]


def test_timesteps_mixed_in_one_batch_are_guided_one_by_one() -> None:
    t = torch.tensor([100, 500, 900])
    x_t = noise(3)
    output, shift = guided(gaussian_eps, gaussian_f, SCHEDULE, scale=0.5, interval=(400, 600))(x_t, t, None)
    expected = torch.zeros_like(x_t)
    expected[1] = 0.5 * gaussian_f(x_t[1:2], t[1:2])[0]
    assert torch.equal(output, gaussian_eps(x_t, t))
    torch.testing.assert_close(shift, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scale": -1.0}, "at least 0"),
        ({"scale": math.nan}, "at least 0"),
        ({"interval": (500, 200)}, r"0 <= t_lo <= t_hi <= 1000, not \[500, 200\)"),
        ({"interval": (0, 1001)}, "1000"),
        ({"interval": (0.2, 0.8)}, "timesteps"),
    ],
)
def test_wrong_dials_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        guided(gaussian_eps, gaussian_f, SCHEDULE, **wrong)


class Encoding:
    """A network whose features are 10 y, and which counts how often it computes them."""

    def __init__(self, sign: float) -> None:
        self.sign, self.encoded = sign, 0

    def encode_condition(self, y: Tensor) -> dict[str, Tensor]:
        self.encoded += 1
        return {"features": 10 * y}

    def __call__(self, x_t: Tensor, t: Tensor, context: dict[str, Tensor]) -> Tensor:
        return self.sign * context["features"].repeat_interleave(len(x_t) // len(context["features"]), 0)


def test_condition_is_encoded_once_by_each_network() -> None:
    denoiser, guide = Encoding(1.0), Encoding(-1.0)
    y = torch.tensor([[1.0], [2.0]])
    steps = list(trajectory(guided(denoiser, guide, SCHEDULE, scale=0.5), noise(2), y, SCHEDULE, steps=5))
    assert (denoiser.encoded, guide.encoded) == (1, 1)
    # eps_hat = 10 y + 0.5 * 10 y enters eq. (15) from the first step on
    spaced = SCHEDULE.respace([0, 250, 500, 749, 999])
    eps_hat = 15 * y.double()
    x0_hat = spaced.to_x0(eps_hat, steps[0].x_t, 4)
    torch.testing.assert_close(steps[0].x_prev, ddim_step(spaced, 4, steps[0].x_t, x0_hat, eps_hat))


def test_ensemble_repeats_a_plain_condition_for_both_networks() -> None:
    y = torch.tensor([[1.0], [3.0]])
    denoiser = guided(lambda x_t, t, c: x_t - c, lambda x_t, t, c: 0.1 * c, SCHEDULE)
    together = sample_ensemble(denoiser, y, SCHEDULE, shape=(1,), members=3, steps=4, keys=["a", "b"])
    alone = sample_ensemble(denoiser, y[1:], SCHEDULE, shape=(1,), members=3, steps=4, keys=["b"])
    torch.testing.assert_close(together[:, 1:], alone, rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------------------------------ numbers of the ADM code


@pytest.mark.parametrize("name", ["full", "respaced25"])
def test_guided_steps_equal_adms(name: str) -> None:
    with np.load(shared_path("reference", f"guided_sampling_linear1000_{name}.npz")) as file:
        ref = {key: torch.from_numpy(file[key]) for key in file.files if file[key].ndim}
    schedule = NoiseSchedule()
    spaced = schedule.respace(ref["timestep_map"])

    def guide(x_t: Tensor, t: Tensor, context: Any) -> Tensor:
        return (1 - schedule.at("alpha_bar", t, x_t)).sqrt() * ref["guidance_score"]

    class Reference:
        def randn(self, *_: Any, **__: Any) -> Tensor:
            return ref["noise"]

    denoiser = guided(lambda *_: ref["model_output"], guide, schedule)
    x_t, n = ref["x_t"], spaced.T
    for i in (0, 1, n // 2, n - 1):
        t = spaced.timesteps[i].expand(len(x_t))
        output, shift = denoiser(x_t, t, None)
        eps, v = split_variance(output, x_t)
        x0 = spaced.to_x0(eps, x_t, i)
        assert shift is not None
        ddpm = ddpm_step(spaced, i, x_t, x0, v, shift, Reference())
        eps_hat, x0_hat = shift_prediction(spaced, i, x_t, eps, x0, shift)
        torch.testing.assert_close(ddpm, ref[f"ddpm_guided_i{i}"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            ddim_step(spaced, i, x_t, x0_hat, eps_hat), ref[f"ddim_guided_i{i}"], rtol=1e-5, atol=1e-5
        )


def test_guided_ddpm_differs_from_folding_into_eps() -> None:
    """Eq. (13) moves the mean by Sigma F; eps_hat in eq. (4) would move it by beta F / sqrt(alpha)."""
    x_t, i = noise(8), 400
    t = torch.full((8,), i)
    eps, f = gaussian_eps(x_t, t), gaussian_f(x_t, t)
    x0 = SCHEDULE.to_x0(eps, x_t, i)

    def mean(x0: Tensor, shift: Tensor | None) -> Tensor:
        return ddpm_step(SCHEDULE, i, x_t, x0, None, shift, torch.Generator().manual_seed(0))

    moved = mean(x0, f) - mean(x0, None)
    folded = mean(SCHEDULE.to_x0(eps - f, x_t, i), None) - mean(x0, None)
    sigma, beta, alpha = (float(getattr(SCHEDULE, name)[i]) for name in ("posterior_variance", "beta", "alpha"))
    F = f / math.sqrt(1 - float(SCHEDULE.alpha_bar[i]))
    torch.testing.assert_close(moved, sigma * F)
    torch.testing.assert_close(folded, beta / math.sqrt(alpha) * F)
    assert beta / math.sqrt(alpha) > 1.004 * sigma


# -------------------------------------------------------------------------------------------------------- the loss


def test_target_is_eq_10_times_sqrt_one_minus_alpha_bar() -> None:
    generator = torch.Generator().manual_seed(0)
    x_t, s_0, eps, F = torch.randn(4, 5, 2, 3, generator=generator, dtype=torch.float64)
    t = torch.tensor([0, 10, 300, 700, 999])
    ab = SCHEDULE.alpha_bar[t].reshape(5, 1, 1)
    bracket = F + -eps / (1 - ab).sqrt() - -(x_t - ab.sqrt() * s_0) / (1 - ab)  # eqs. (10, 11, 12) as printed
    f = (1 - ab).sqrt() * F
    torch.testing.assert_close(f - guidance_target(eps, s_0, x_t, t, SCHEDULE), (1 - ab).sqrt() * bracket)
    weights = {"simple": 1 - ab, "literal": torch.ones_like(ab), "bounded": (1 - ab) * ((1 - ab) / ab).clamp(max=1)}
    for weighting, weight in weights.items():
        loss = GuidanceLoss(SCHEDULE, weighting)(lambda *_: f, x_t, t, guidance_target(eps, s_0, x_t, t, SCHEDULE))
        assert float(loss) == pytest.approx(float((weight * bracket**2).mean()), rel=1e-5)


def test_target_is_the_error_of_the_predicted_x_0() -> None:
    x_t, t = noise(5), torch.tensor([0, 10, 300, 700, 999])
    s_0, x0 = noise(5, seed=1), noise(5, seed=2)
    snr = (SCHEDULE.alpha_bar / (1 - SCHEDULE.alpha_bar))[t, None]
    target = guidance_target(SCHEDULE.eps_from_x0(x0, x_t, t), s_0, x_t, t, SCHEDULE)
    torch.testing.assert_close(target, snr.sqrt() * (s_0 - x0))


def test_exact_F_is_the_conditional_mean_of_the_target() -> None:
    """E[target | x_t] under the reverse coupling, s_0 independent of x_t, is linear in s_0: put the mean there."""
    x_t, t = noise(50), torch.arange(0, 1000, 20)
    target = guidance_target(gaussian_eps(x_t, t), torch.full_like(x_t, M), x_t, t, SCHEDULE)
    torch.testing.assert_close(gaussian_f(x_t, t), target)


def test_learned_variance_of_the_guide_is_ignored() -> None:
    x_t, t, target = noise(3), torch.tensor([1, 2, 3]), noise(3, seed=1)
    loss = GuidanceLoss(SCHEDULE)(lambda x, t, c: torch.cat([x, 1e6 * x], dim=1), x_t, t, target)
    assert float(loss) == pytest.approx(float(((x_t - target) ** 2).mean()), rel=1e-5)


def test_scaled_guide_with_bounded_weighting_is_plain_mse_of_its_network() -> None:
    network = SmallGuide().double().requires_grad_(False)
    x_t, t, target = noise(6), torch.tensor([0, 5, 50, 250, 500, 999]), noise(6, seed=1)
    scale = torch.tensor([max(1.0, math.exp(lam)) for lam in SCHEDULE.log_snr[t].tolist()], dtype=torch.float64)[
        :, None
    ]
    loss = GuidanceLoss(SCHEDULE, "bounded")(ScaledGuide(network, SCHEDULE), x_t, t, target)
    assert float(loss) == pytest.approx(float(((network(x_t, t) - target / scale) ** 2).mean()), rel=1e-5)


def test_unknown_weighting_is_named() -> None:
    with pytest.raises(ValueError, match="simple, literal, bounded"):
        GuidanceLoss(SCHEDULE, "snr")


# ------------------------------------------------------------------------------------------------ trained networks


TIMES = (20, 100, 200, 300)


def rms_on_typical_states(t: int, *functions: Callable[..., Tensor]) -> list[float]:
    """Root mean square of functions of (x_t, t) within two standard deviations of the Gaussian's marginal at t."""
    ab = float(SCHEDULE.alpha_bar[t])
    x_t = math.sqrt(ab) * M + torch.linspace(-2, 2, 9)[:, None] * math.sqrt(ab * S**2 + 1 - ab)
    return [float(function(x_t, torch.full((9,), t)).square().mean().sqrt()) for function in functions]


def test_trained_reverse_guide_approaches_the_exact_one() -> None:
    guide = train_guide(gaussian_eps, gaussian_images, "reverse")
    for t in TIMES:
        error, size = rms_on_typical_states(t, lambda x, t: guide(x, t) - gaussian_f(x, t), gaussian_f)
        assert error < 0.1 * size, t


def test_trained_forward_guide_of_an_exact_denoiser_is_near_zero() -> None:
    guide = train_guide(gaussian_eps, gaussian_images, "forward")
    for t in TIMES:
        got, reverse = rms_on_typical_states(t, guide, gaussian_f)
        assert got < 0.02 * reverse, t


def test_two_modes_reverse_shrinks_the_spread_and_forward_keeps_it() -> None:
    def stds(coupling: str) -> list[float]:
        guide = train_guide(two_mode_eps, two_mode_images, coupling)
        return [
            final_std(guided(two_mode_eps, lambda x, t, c: guide(x.float(), t).double(), SCHEDULE, scale=w), steps=50)
            for w in (0.0, 0.25, 0.5, 0.75, 1.0)
        ]

    unguided, *reverse = stds("reverse")
    assert unguided == pytest.approx(1.0, abs=0.01)
    assert all(after < before for before, after in zip([unguided, *reverse[:-1]], reverse, strict=True))
    # not 0, as with exact guidance: near x = 0, where it leads, the unguided chain never was in training
    assert reverse[-1] < 0.5
    assert stds("forward") == pytest.approx([unguided] * 5, rel=0.05)


# ------------------------------------------------------------------------------------------------------ the replay


BETAS = torch.linspace(0.02, 0.6, 12)
SHORT = NoiseSchedule(schedule=BETAS)


def short_eps(x_t: Tensor, t: Tensor, context: Any = None) -> Tensor:
    return gaussian_eps(x_t, t, schedule=SHORT)


def make_replay(seed: int = 0, denoiser: Callable[..., Tensor] = short_eps, **settings: Any) -> Replay:
    settings = {"capacity": 20_000, "steps": 12, **settings}
    return Replay(denoiser, SHORT, generator=torch.Generator().manual_seed(seed), **settings)


def literal_examples(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """The paper's algorithm as a plain loop: uniform t, T - 1 - t DDPM steps from noise, eps_theta there.

    Returns x_t, t, target and the number of frozen evaluations.
    """
    generator = torch.Generator().manual_seed(seed)
    x_ts, ts, targets, evaluations = [], [], [], 0
    for t in range(SHORT.T):  # every t equally often
        x = torch.randn(n, 1, generator=generator)
        for u in range(SHORT.T - 1, t, -1):
            alpha, ab, beta = (float(getattr(SHORT, name)[u]) for name in ("alpha", "alpha_bar", "beta"))
            mean = (x - beta / math.sqrt(1 - ab) * short_eps(x, torch.full((n,), u))) / math.sqrt(alpha)
            x = mean + math.sqrt(float(SHORT.posterior_variance[u])) * torch.randn(n, 1, generator=generator)
            evaluations += n
        ab = float(SHORT.alpha_bar[t])
        s_0 = M + S * torch.randn(n, 1, generator=generator)
        eps = short_eps(x, torch.full((n,), t))
        evaluations += n
        x_ts.append(x)
        ts.append(torch.full((n,), t))
        targets.append(eps - (x - math.sqrt(ab) * s_0) / math.sqrt(1 - ab))
    return torch.cat(x_ts), torch.cat(ts), torch.cat(targets), evaluations


def linear_gradients(x_t: Tensor, t: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard error of the loss gradient of f = a x_t + b + c t / T at a = .5, b = .1, c = -.2."""
    u = t[:, None] / SHORT.T
    residual = 0.5 * x_t + 0.1 - 0.2 * u - target
    gradients = 2 * residual * torch.cat([x_t, torch.ones_like(x_t), u], dim=1)
    return gradients.mean(dim=0), gradients.std(dim=0) / math.sqrt(len(gradients))


def test_replay_has_the_literal_gradient_at_one_evaluation_per_example() -> None:
    replay = make_replay(chains=1, capacity=12_000)
    (examples,) = replay.batches(gaussian_pairs(seed=5, batches=1, images=1000), 12_000)
    x_t, t, target, evaluations = literal_examples(1000, seed=7)
    got, got_error = linear_gradients(examples.x_t, examples.t, examples.target)
    want, want_error = linear_gradients(x_t, t, target)
    # states of one chain are correlated: 3 more than covers the effect on the error
    assert bool(((got - want).abs() < 3 * (3 * got_error + want_error)).all()), (got, want, got_error)
    assert evaluations / len(t) == (SHORT.T + 1) / 2
    assert (replay.evaluations, replay.examples) == (12_000, 12_000)


def test_replay_loss_gradient_is_the_module_s() -> None:
    replay = make_replay(chains=1)
    replay.fill(*next(gaussian_pairs(images=20)))
    examples = replay.draw(240)
    weights = torch.tensor([0.5, 0.1, -0.2], requires_grad=True)

    def guide(x_t: Tensor, t: Tensor, context: Any) -> Tensor:
        return weights[0] * x_t + weights[1] + weights[2] * t[:, None] / SHORT.T

    GuidanceLoss(SHORT)(guide, *examples).backward()
    torch.testing.assert_close(weights.grad, linear_gradients(examples.x_t, examples.t, examples.target)[0])


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_reverse_examples_are_the_states_of_the_chain(method: str) -> None:
    replay = make_replay(seed=3, chains=2, method=method)
    s_0, y = torch.tensor([[0.4], [-0.9]]), torch.tensor([[1.0], [2.0]])
    replay.fill(s_0, y)
    twin = torch.Generator().manual_seed(3)
    x_T = torch.randn(4, 1, generator=twin)
    torch.rand((), generator=twin)  # the offset: without effect when every timestep is visited
    chain = trajectory(short_eps, x_T, None, SHORT, timesteps=range(12), method=method, generator=twin)
    first = next(chain)
    torch.rand(4, generator=twin)  # the thinning of T - 1 keeps all
    contents = replay.buffer.contents()
    assert contents is not None
    for k, step in enumerate([first, *chain]):
        rows = slice(4 * k, 4 * k + 4)
        assert contents.t[rows].tolist() == [step.t] * 4
        torch.testing.assert_close(contents.x_t[rows], step.x_t, rtol=0, atol=0)
        snr = float(SHORT.alpha_bar[step.t] / (1 - SHORT.alpha_bar[step.t]))
        target = math.sqrt(snr) * (torch.tensor([[0.4], [0.4], [-0.9], [-0.9]]) - step.x0)
        torch.testing.assert_close(contents.target[rows], target, rtol=1e-4, atol=1e-4)
        assert contents.y[rows].tolist() == [[1.0], [1.0], [2.0], [2.0]]


def test_forward_examples_come_from_q_with_the_true_noise() -> None:
    """With x_t = sqrt(ab) s_0 + sqrt(1 - ab) e the target is eps_theta - e, so x_t is recovered from it."""
    replay = make_replay(coupling="forward", chains=2)
    s_0 = torch.tensor([[0.4]])
    replay.fill(s_0, s_0)
    x_t, t, target, _ = replay.draw(24)
    ab = SHORT.alpha_bar[t, None].float()
    true_noise = short_eps(x_t, t) - target
    torch.testing.assert_close(x_t, ab.sqrt() * 0.4 + (1 - ab).sqrt() * true_noise)
    assert float(true_noise.square().mean()) == pytest.approx(1.0, abs=0.6)
    assert replay.evaluations == replay.examples == 24


def test_mixed_is_half_and_half() -> None:
    replay = make_replay(coupling="mixed", chains=1)
    replay.fill(*next(gaussian_pairs(images=10)))
    assert replay.examples == replay.evaluations == 240
    contents = replay.buffer.contents()
    assert contents is not None
    assert torch.bincount(contents.t[:120]).tolist() == [10] * 12  # the chains, every timestep once
    assert torch.bincount(contents.t[120:], minlength=12).tolist() != [10] * 12


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
@pytest.mark.parametrize("coupling", ["reverse", "forward"])
def test_examples_do_not_depend_on_the_prediction_type(prediction_type: str, coupling: str) -> None:
    other = NoiseSchedule(schedule=BETAS, prediction_type=prediction_type)

    def convert(x_t: Tensor, t: Tensor, context: Any) -> Tensor:
        eps = short_eps(x_t, t)
        x_0 = SHORT.to_x0(eps, x_t, t)
        output = x_0 if prediction_type == "sample" else SHORT.velocity(x_0, eps, t)
        return torch.cat([output, torch.full_like(output, 9.0)], dim=1)  # with a learned variance nobody asks for here

    settings: dict[str, Any] = {"capacity": 64, "steps": 12, "method": "ddim", "coupling": coupling, "chains": 1}
    replays = [
        Replay(denoiser, schedule, generator=torch.Generator().manual_seed(0), **settings)
        for denoiser, schedule in ((short_eps, SHORT), (convert, other))
    ]
    for replay in replays:
        replay.fill(*next(gaussian_pairs(images=4)))
    want, got = (replay.draw(48) for replay in replays)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def test_mask_denoiser_is_a_denoiser_of_the_replay() -> None:
    """Certain logits: x0_theta is +-1, so the target is sqrt(SNR) (s_0 - x0_theta), zero where the mask is right."""

    class Certain(nn.Module):
        def encode_condition(self, y: Tensor, size: Any = None) -> tuple[Tensor]:
            return (y,)

        def forward(self, x_t: Tensor, t: Tensor, context: tuple[Tensor]) -> Tensor:
            return 100 * context[0].repeat_interleave(len(x_t) // len(context[0]), 0)

    schedule = NoiseSchedule(schedule=BETAS, prediction_type="sample")
    replay = Replay(
        MaskDenoiser(Certain()), schedule, generator=torch.Generator().manual_seed(0), capacity=24, steps=12, chains=2
    )
    y = torch.tensor([1.0, -1.0]).reshape(1, 1, 2, 1)
    replay.fill(torch.ones(1, 1, 2, 1), y)
    _, t, target, _ = replay.draw(24)
    snr = (schedule.alpha_bar / (1 - schedule.alpha_bar))[t].float()
    torch.testing.assert_close(target[:, 0, 0, 0], torch.zeros(24), rtol=0, atol=2e-3)
    torch.testing.assert_close(target[:, 0, 1, 0], 2 * snr.sqrt(), rtol=1e-4, atol=2e-3)


def test_strided_timesteps_visit_every_timestep_equally_often() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(100)
    for _ in range(2000):
        visited = strided_timesteps(100, 12, generator)
        assert visited[-1] == 99
        assert len(visited) == len(set(visited)) == 12
        assert sorted(visited) == visited
        counts[visited] += 1
    expected = 2000 * 11 / 99
    assert float((counts[:99] - expected).abs().max()) < 5 * math.sqrt(expected * (1 - 11 / 99))
    assert strided_timesteps(12, 12, generator) == list(range(12))


def test_strided_chains_keep_timesteps_uniform_at_about_one_evaluation() -> None:
    schedule = NoiseSchedule(101)
    replay = Replay(
        lambda x_t, t, c: gaussian_eps(x_t, t, schedule=schedule),
        schedule,
        generator=torch.Generator().manual_seed(0),
        capacity=16_000,
        steps=21,
        chains=4,
    )
    drawn = torch.cat([examples.t for examples in replay.batches(gaussian_pairs(batches=60, images=10), 1000)])
    counts = torch.bincount(drawn, minlength=101).double()
    expected = replay.examples / 101
    assert len(drawn) == replay.examples
    assert 1.0 <= replay.evaluations / replay.examples <= 1.1
    # a chain batch of 40 shares its offset: 60 batches, one in five visits each t
    assert float((counts - expected).abs().max()) < 5 * 40 * math.sqrt(60 * 0.2 * 0.8)
    assert float(counts[100]) == pytest.approx(expected, rel=0.25)


def test_interval_restricts_examples_but_chains_start_at_the_top() -> None:
    seen: list[int] = []

    def denoiser(x_t: Tensor, t: Tensor, context: Any) -> Tensor:
        seen.append(int(t[0]))
        return short_eps(x_t, t)

    replay = make_replay(denoiser=denoiser, interval=(4, 9), chains=1)
    replay.fill(*next(gaussian_pairs(images=2)))
    assert seen == [11, 10, 9, 8, 7, 6, 5, 4]
    contents = replay.buffer.contents()
    assert contents is not None
    assert contents.t.tolist() == [8, 8, 7, 7, 6, 6, 5, 5, 4, 4]
    assert (replay.evaluations, replay.examples) == (16, 10)


def test_buffer_draws_each_row_once_and_mixes() -> None:
    buffer, generator = ShuffleBuffer(10), torch.Generator().manual_seed(0)

    def rows(first: int, last: int) -> list[Tensor]:
        n = torch.arange(first, last)
        return [10.0 * n[:, None], n, -1.0 * n[:, None], n[:, None]]

    buffer.put(rows(0, 10))
    drawn = [buffer.draw(4, generator)]
    buffer.put(rows(10, 14))
    drawn += [buffer.draw(7, generator), buffer.draw(3, generator)]
    order = torch.cat([examples.t for examples in drawn])
    assert sorted(order.tolist()) == list(range(14))
    assert order.tolist() != sorted(order.tolist())
    for x_t, t, target, y in drawn:  # columns stay together
        assert torch.equal(x_t[:, 0], 10.0 * t)
        assert torch.equal(target[:, 0], -1.0 * t)
        assert torch.equal(y[:, 0], t)
    assert (len(buffer), buffer.room) == (0, 10)


def test_batches_mix_images_and_use_every_example_once() -> None:
    replay = make_replay(chains=2, capacity=24 * 8)
    images = [(torch.full((2, 1), float(i)), torch.full((2, 1), float(i))) for i in range(20)]
    batches = list(replay.batches(images, 50))
    assert len(torch.unique(batches[0].y)) > 2
    every = torch.cat([examples.y for examples in batches])
    assert torch.bincount(every[:, 0].long()).tolist() == [48] * 20  # 2 images x 2 chains x 12 steps
    assert [len(examples.t) for examples in batches] == [50] * 19 + [10]
    assert replay.image_batches == 20


def test_resume_is_exact() -> None:
    def run(replay: Replay, skip: int, count: int) -> list[Tensor]:
        images = list(gaussian_pairs(batches=40, images=3))[skip:]
        stream = replay.batches(images, 16)
        return [torch.cat([e.x_t, e.t[:, None], e.target], dim=1) for _, e in zip(range(count), stream, strict=False)]

    settings: dict[str, Any] = {"capacity": 100, "coupling": "mixed", "chains": 1}
    whole = run(make_replay(**settings), 0, 12)
    first = make_replay(**settings)
    run(first, 0, 5)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = make_replay(seed=99, **settings)
    second.load_state_dict(torch.load(file, weights_only=True))
    resumed = run(second, second.image_batches, 7)
    assert all(torch.equal(a, b) for a, b in zip(whole[5:], resumed, strict=True))


def test_replay_freezes_the_denoiser() -> None:
    network = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    make_replay(denoiser=network)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"coupling": "backward"}, "reverse, forward, mixed"),
        ({"method": "euler"}, "ddim, ddpm"),
        ({"steps": 1}, "between 2 and 12"),
        ({"chains": 0}, "at least 1"),
        ({"interval": (5, 5)}, "nothing to train on"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_replay(**wrong)


def test_wrong_sizes_are_named() -> None:
    replay = make_replay(capacity=30, chains=1)
    with pytest.raises(ValueError, match="30 examples cannot hold the 36 of one batch of 3 images"):
        replay.fill(*next(gaussian_pairs(images=3)))
    replay.fill(*next(gaussian_pairs(images=2)))
    with pytest.raises(ValueError, match="25 examples asked of a buffer that holds 24"):
        replay.draw(25)
    state = replay.state_dict()
    with pytest.raises(ValueError, match="24 saved examples for a buffer of 20"):
        make_replay(capacity=20).load_state_dict(state)
