"""Training objectives: numerical integrals, hand-computed masks, and what their minimisers are."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracles import Gaussian
from torch import Tensor

from cgdpm_med.diffusion.losses import DiffusionLoss, NoisyTimesteps
from cgdpm_med.diffusion.objectives import (
    Objective,
    discretised_gaussian_log_likelihood,
    gaussian_kl,
    hybrid_loss,
    regression_target,
    simple_loss,
    soft_dice_loss,
    vlb_term,
)
from cgdpm_med.diffusion.schedule import PREDICTION_TYPES, NoiseSchedule
from cgdpm_med.diffusion.targets import MaskTarget, Target

SCHEDULE = NoiseSchedule()
T0 = torch.zeros(1, dtype=torch.int64)
NONE = torch.zeros(0)  # for arguments an objective does not read


def image(*rows: list[float]) -> Tensor:
    """(1, 1, H, W) from rows."""
    return torch.tensor([[list(rows)]])


# --- regression -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_perfect_output_has_no_loss_and_an_offset_its_square(prediction_type: str, generator: torch.Generator) -> None:
    schedule = NoiseSchedule(prediction_type=prediction_type)
    x_0, eps = torch.randn(2, 2, 1, 3, 3, generator=generator).unbind()
    t = torch.tensor([3, 700])
    target = regression_target(x_0, eps, t, schedule)
    x_t = schedule.q_sample(x_0, t, eps)
    torch.testing.assert_close(schedule.to_x0(target, x_t, t), x_0, rtol=1e-3, atol=1e-3)
    offset = torch.tensor([0.5, 2.0]).reshape(2, 1, 1, 1)
    loss = simple_loss(target + offset, x_0, eps, x_t, t, schedule)
    torch.testing.assert_close(loss, torch.tensor([0.25, 4.0]))


def test_loss_of_the_optimal_denoiser_is_the_posterior_variance() -> None:
    # E ||eps - E[eps | x_t]||^2 = Var(eps | x_t) = ab s^2 / (ab s^2 + 1 - ab), averaged over t
    gaussian, n = Gaussian(SCHEDULE, m=0.7, s=0.3), 200_000
    generator = torch.Generator().manual_seed(0)
    x_0 = 0.7 + 0.3 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    loss = DiffusionLoss(SCHEDULE)(gaussian, x_0, generator=generator)
    ab = SCHEDULE.alpha_bar
    expected = (ab * 0.09 / (ab * 0.09 + 1 - ab)).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)
    assert loss.dtype == torch.float64


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_noisy_timesteps_follow_their_distribution(power: float) -> None:
    # P(t < c T) = P(u^power > 1 - c) = 1 - (1 - c)^(1/power)
    n, T = 100_000, 1000
    t = NoisyTimesteps(power)(T, n, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert t.dtype == torch.int64
    assert t.min() >= 0
    assert t.max() == T - 1
    for c in (0.2, 1 / 3, 0.8):
        assert (t < c * T).double().mean().item() == pytest.approx(1 - (1 - c) ** (1 / power), abs=0.005)


def scored_by(objective: Objective) -> Target:
    target = Target()
    vars(target)["objective"] = objective
    return target


def test_noisy_timesteps_weigh_the_loss_and_refuse_no_power() -> None:
    seen = []

    def objective(output: Tensor, x_0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
        seen.append(t)
        return t.double()

    x_0 = torch.zeros(50_000, 1)
    loss = DiffusionLoss(SCHEDULE, scored_by(objective), NoisyTimesteps(2.0))
    value = loss(lambda x_t, t, context: x_t, x_0, generator=torch.Generator().manual_seed(0))
    assert torch.equal(value, seen[0].double().mean())
    assert value.item() == pytest.approx(1000 * (1 - 1 / 3), rel=0.01)  # E[u^2] = 1/3
    with pytest.raises(ValueError, match="positive"):
        NoisyTimesteps(0)


def test_diffusion_loss_passes_on_what_it_drew() -> None:
    seen: dict[str, Any] = {}

    def network(x_t: Tensor, t: Tensor, context: object, *, class_labels: Tensor) -> Tensor:
        seen.update(x_t=x_t, t=t, context=context, class_labels=class_labels)
        return torch.zeros_like(x_t, dtype=torch.bfloat16)

    def objective(output: Tensor, x_0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
        assert output.dtype == torch.float32  # half-precision outputs are scored in float32
        assert torch.equal(x_t, seen["x_t"])
        assert torch.equal(t, seen["t"])
        torch.testing.assert_close(schedule.q_sample(x_0, t, eps), x_t)
        return eps.flatten(1).square().mean(1)

    x_0, labels = torch.randn(64, 1, 8, 8), torch.zeros(64, dtype=torch.int64)
    draw = [
        DiffusionLoss(SCHEDULE, scored_by(objective))(
            network, x_0, "y", generator=torch.Generator().manual_seed(seed), class_labels=labels
        )
        for seed in (1, 1, 2)
    ]
    assert seen["context"] == "y"
    assert seen["class_labels"] is labels
    assert seen["t"].dtype == torch.int64
    assert seen["t"].min() < 100
    assert seen["t"].max() >= 900
    assert draw[0].item() == pytest.approx(1, abs=0.1)  # unit noise
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])


# --- learned variance -----------------------------------------------------------------------------------------------


def grid_density(mean: float, log_variance: float) -> tuple[Tensor, torch.distributions.Normal]:
    std = math.exp(0.5 * log_variance)
    grid = torch.linspace(mean - 12 * std, mean + 12 * std, 200_001, dtype=torch.float64)
    return grid, torch.distributions.Normal(torch.tensor(mean, dtype=torch.float64), std)


def test_kl_equals_a_numerical_integral() -> None:
    for mean1, lv1, mean2, lv2 in [(0.0, 0.0, 0.0, 0.0), (0.3, -2.0, -0.1, -1.5), (1.0, -1.0, 0.5, -3.0)]:
        grid, p = grid_density(mean1, lv1)
        q = torch.distributions.Normal(torch.tensor(mean2, dtype=torch.float64), math.exp(0.5 * lv2))
        integral = torch.trapezoid(p.log_prob(grid).exp() * (p.log_prob(grid) - q.log_prob(grid)), grid)
        closed = gaussian_kl(*(torch.tensor(v, dtype=torch.float64) for v in (mean1, lv1, mean2, lv2)))
        assert closed.item() == pytest.approx(integral.item(), abs=1e-9)


@pytest.mark.parametrize("log_variance", [-14.0, -9.2, -4.0, 0.0])
@pytest.mark.parametrize("mean", [-1.3, 0.004, 0.97])
def test_bins_of_the_discretised_gaussian_sum_to_one(mean: float, log_variance: float) -> None:
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64)
    log_p = discretised_gaussian_log_likelihood(
        levels, torch.tensor(mean).double(), torch.tensor(log_variance).double()
    )
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_bin_probability_equals_a_numerical_integral() -> None:
    mean, log_variance = 0.1, -5.0
    _, p = grid_density(mean, log_variance)
    for level in (0, 1, 100, 140, 254, 255):
        x = -1 + 2 * level / 255
        low = -3.0 if level == 0 else x - 1 / 255
        high = 3.0 if level == 255 else x + 1 / 255
        grid = torch.linspace(low, high, 400_001, dtype=torch.float64)
        integral = torch.trapezoid(p.log_prob(grid).exp(), grid)
        log_p = discretised_gaussian_log_likelihood(*(torch.tensor(v).double() for v in (x, mean, log_variance)))
        assert log_p.item() == pytest.approx(integral.log().item(), abs=1e-6)


def test_far_tails_stay_finite_with_gradients() -> None:
    # 2 / exp(-7) is a thousand standard deviations: the probability itself underflows, its logarithm need not
    mean = torch.tensor([1.0, 0.5, -1.0, 0.9], requires_grad=True)
    log_variance = torch.full((4,), -14.0, requires_grad=True)
    x_0 = torch.tensor([-1.0, -0.5, 1.0, 0.9])
    log_p = discretised_gaussian_log_likelihood(x_0, mean, log_variance)
    log_p.sum().backward()
    assert bool(log_p.isfinite().all())
    assert mean.grad is not None
    assert log_variance.grad is not None
    assert bool(mean.grad.isfinite().all())
    assert bool(log_variance.grad.isfinite().all())
    assert mean.grad[:3].sign().tolist() == [-1, -1, 1]  # towards x_0
    expected = -0.5 * ((2 - 1 / 255) * math.exp(7)) ** 2  # leading term of log ndtr
    assert log_p[0].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_vlb_term_equals_numerical_integration(prediction_type: str, t: int) -> None:
    schedule = NoiseSchedule(prediction_type=prediction_type)
    x_0, eps, v = (torch.full((1, 1), value, dtype=torch.float64) for value in (27 / 255, -0.4, 0.2))
    at = torch.tensor([t])
    x_t = schedule.q_sample(x_0, at, eps)
    prediction = regression_target(x_0 + 0.05, schedule.eps_from_x0(x_0 + 0.05, x_t, at), at, schedule)
    term = vlb_term(prediction, v, x_0, x_t, at, schedule).item()

    # the model's x_0 is 0.05 too large; eqs. (6, 7) from beta and alpha_bar alone, integrals on a grid
    beta, ab = schedule.beta[t].item(), schedule.alpha_bar[t].item()
    previous = ab / (1 - beta)

    def posterior_mean(x: float) -> float:
        on_x_t = math.sqrt(1 - beta) * (1 - previous) / (1 - ab)
        return math.sqrt(previous) * beta / (1 - ab) * x + on_x_t * x_t.item()

    def posterior_variance(s: int) -> float:
        b, a = schedule.beta[s].item(), schedule.alpha_bar[s].item()
        return b * (1 - a / (1 - b)) / (1 - a)

    log_variance = 0.6 * math.log(beta) + 0.4 * math.log(posterior_variance(max(t, 1)))
    _, model = grid_density(posterior_mean(27 / 255 + 0.05), log_variance)
    if t == 0:
        grid = torch.linspace(26 / 255, 28 / 255, 100_001, dtype=torch.float64)
        expected = -torch.trapezoid(model.log_prob(grid).exp(), grid).log()
    else:
        grid, true = grid_density(posterior_mean(27 / 255), math.log(posterior_variance(t)))
        expected = torch.trapezoid(true.log_prob(grid).exp() * (true.log_prob(grid) - model.log_prob(grid)), grid)
    assert term == pytest.approx(expected.item() / math.log(2), rel=1e-6, abs=1e-9)


def test_hybrid_loss_trains_the_mean_by_the_simple_loss_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    x_0, eps = torch.rand(2, 3, 2, 4, 4, generator=generator).unbind()
    t = torch.tensor([0, 20, 900])
    x_t = SCHEDULE.q_sample(x_0, t, eps)
    output = torch.randn(3, 4, 4, 4, generator=generator, requires_grad=True)
    loss = hybrid_loss(output, x_0, eps, x_t, t, SCHEDULE)
    (gradient,) = torch.autograd.grad(loss.sum(), output)
    prediction, v = output.chunk(2, dim=1)
    vlb = vlb_term(prediction, v, x_0, x_t, t, SCHEDULE)
    torch.testing.assert_close(loss, simple_loss(prediction, x_0, eps, x_t, t, SCHEDULE) + vlb)  # T / 1000 = 1
    (simple_gradient,) = torch.autograd.grad(simple_loss(output[:, :2], x_0, eps, x_t, t, SCHEDULE).sum(), output)
    torch.testing.assert_close(gradient[:, :2], simple_gradient[:, :2])
    assert bool((gradient[:, 2:] != 0).any())


def test_objectives_refuse_outputs_of_the_wrong_width() -> None:
    x, t = torch.zeros(1, 1, 2, 2), T0
    with pytest.raises(ValueError, match="trains with hybrid_loss"):
        simple_loss(torch.zeros(1, 2, 2, 2), x, x, x, t, SCHEDULE)  # would broadcast
    with pytest.raises(ValueError, match="learned variance needs 2 output channels, got 1"):
        hybrid_loss(x, x, x, x, t, SCHEDULE)
    with pytest.raises(ValueError, match="one logit for each channel"):
        MaskTarget(4).objective(x, torch.zeros(1, 4, 2, 2), x, x, t, SCHEDULE)


# --- masks ----------------------------------------------------------------------------------------------------------


def mask_loss(target: MaskTarget, logits: Tensor, x_0: Tensor) -> Tensor:
    return target.objective(logits, x_0, NONE, NONE, NONE, SCHEDULE)


def test_binary_mask_loss_by_hand() -> None:
    # probabilities 3/4 1/2 / 1/4 1/2, truth 1 0 / 0 1
    a = math.log(3)
    logits, x_0 = image([a, 0.0], [-a, 0.0]), image([0.1, -0.1], [-0.1, 0.1])
    entropy = (2 * math.log(4 / 3) + 2 * math.log(2)) / 4
    # overlap 3/4 + 1/2, total 2 + 2
    dice = 1 - (2 * 1.25 + 1) / (4 + 1)
    assert mask_loss(MaskTarget(2, 0.1), logits, x_0).item() == pytest.approx(entropy + dice, rel=1e-6)
    assert mask_loss(MaskTarget(2, 0.1, dice_weight=0), logits, x_0).item() == pytest.approx(entropy, rel=1e-6)
    weighted = (3 * (math.log(4 / 3) + math.log(2)) + math.log(4 / 3) + math.log(2)) / 4
    assert mask_loss(MaskTarget(2, 0.1, dice_weight=0, class_weights=(1, 3)), logits, x_0).item() == pytest.approx(
        weighted, rel=1e-6
    )


def test_two_class_mask_loss_by_hand() -> None:
    # softmax of (0, a) is the sigmoid of a: the same numbers as above, foreground in channel 1
    a = math.log(3)
    foreground, present = image([a, 0.0], [-a, 0.0]), image([1.0, -1.0], [-1.0, 1.0])
    logits = torch.cat([torch.zeros_like(foreground), foreground], dim=1)
    x_0 = torch.cat([-present, present], dim=1)
    entropy, dice = (2 * math.log(4 / 3) + 2 * math.log(2)) / 4, 1 - 3.5 / 5
    assert mask_loss(MaskTarget(2, 1.0, True, dice_weight=2.0), logits, x_0).item() == pytest.approx(
        entropy + 2 * dice, rel=1e-6
    )
    weighted = (3 * (math.log(4 / 3) + math.log(2)) + math.log(4 / 3) + math.log(2)) / 4
    assert mask_loss(
        MaskTarget(2, 1.0, True, dice_weight=0, class_weights=(1, 3)), logits, x_0
    ).item() == pytest.approx(weighted, rel=1e-6)


def test_mask_loss_is_per_example_with_pooled_dice() -> None:
    logits = torch.tensor([[[[10.0]]], [[[-10.0]]]])  # certain: present, absent
    x_0 = torch.tensor([[[[1.0]]], [[[1.0]]]])  # both present
    loss = mask_loss(MaskTarget(2, 1.0), logits, x_0)
    pooled = 1 - (2 * 1 + 1) / (1 + 2 + 1)
    torch.testing.assert_close(loss, torch.tensor([pooled, 10 + pooled]), rtol=0, atol=2e-4)


def test_soft_dice_of_equal_and_of_disjoint_masks() -> None:
    truth = image([1.0, 1.0], [0.0, 0.0])
    assert soft_dice_loss(truth, truth).item() == pytest.approx(0, abs=1e-6)
    assert soft_dice_loss(1 - truth, truth).item() == pytest.approx(1 - 1 / 5)
    assert soft_dice_loss(torch.zeros_like(truth), torch.zeros_like(truth)).item() == pytest.approx(0)


def test_soft_dice_by_hand_and_smallest_at_the_truth() -> None:
    truth = image([0.5, 1.0], [0.0, 0.25])
    # |P| = 1.5, |T| = 1.75, |P - T| = .25 + .5 + 0 + 0
    guess = image([0.75, 0.5], [0.0, 0.25])
    assert soft_dice_loss(guess, truth).item() == pytest.approx(1 - (1.5 + 1.75 - 0.75 + 1) / (1.5 + 1.75 + 1))
    assert soft_dice_loss(truth, truth).item() == pytest.approx(0, abs=1e-6)
    assert soft_dice_loss((truth > 0.3).float(), truth).item() > 0.05


def test_mask_loss_reads_soft_labels_by_their_scale() -> None:
    # probabilities 3/4 1/2, truth 1/2 1 in channel 1
    a = math.log(3)
    logits = torch.tensor([[[[0.0, 0.0]], [[a, 0.0]]]])
    truth = torch.tensor([[[[0.5, 0.0]], [[0.5, 1.0]]]])
    entropy = (-0.5 * (math.log(0.75) + math.log(0.25)) + math.log(2)) / 2
    x_0 = 0.1 * (2 * truth - 1)
    assert mask_loss(MaskTarget(2, 0.1, True, dice_weight=0), logits, x_0).item() == pytest.approx(entropy, rel=1e-5)
    dice = 1 - (1.25 + 1.5 - 0.75 + 1) / (1.25 + 1.5 + 1)
    assert mask_loss(MaskTarget(2, 0.1, True), logits, x_0).item() == pytest.approx(entropy + dice, rel=1e-5)


def test_scale_changes_nothing_for_hard_labels(generator: torch.Generator) -> None:
    labels = torch.randint(0, 4, (2, 3, 3), generator=generator)
    x_0 = 0.1 * (2 * torch.nn.functional.one_hot(labels, 4).movedim(-1, 1).float() - 1)
    logits = torch.randn(2, 4, 3, 3, generator=generator)
    torch.testing.assert_close(
        mask_loss(MaskTarget(4, 0.1), logits, x_0), mask_loss(MaskTarget(4, 1.0), logits, 10 * x_0)
    )


class ConstantLogits(torch.nn.Module):
    """The same trainable logits everywhere: it can only learn the mean mask."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x_t: Tensor, t: Tensor, context: object) -> Tensor:
        return self.logits.expand_as(x_t)


@pytest.mark.parametrize("channels", [1, 3])
def test_cross_entropy_is_minimal_at_the_mean_of_x0(channels: int) -> None:
    # the proper score makes the mask denoiser E[x_0 | what the network knows], the minimiser of the squared error too
    scale = 0.1
    labels = torch.tensor([[[0, 0, 0, 1], [1, 2, 0, 0]]])
    one_hot = F.one_hot(labels, 3).movedim(-1, 1).float() if channels == 3 else (labels == 1)[:, None].float()
    x_0 = scale * (2 * one_hot - 1)
    network = ConstantLogits(channels)
    target = MaskTarget(max(channels, 2), scale, dice_weight=0)
    optimiser = torch.optim.LBFGS(network.parameters(), max_iter=50)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = mask_loss(target, network(x_0, T0, None), x_0).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    predicted = target.denoiser(network)(x_0, T0, None)
    torch.testing.assert_close(predicted, x_0.mean(dim=(2, 3), keepdim=True).expand_as(x_0), rtol=0, atol=1e-4)
