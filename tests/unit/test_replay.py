"""The replay of reverse chains against a plain-loop twin of the paper's algorithm, and its bookkeeping."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from oracles import Gaussian
from torch import Tensor, nn

from cgdpm_med.diffusion.guidance import Replay, ShuffleBuffer, strided_timesteps
from cgdpm_med.diffusion.losses import GuidanceLoss
from cgdpm_med.diffusion.sampling import trajectory
from cgdpm_med.diffusion.schedule import NoiseSchedule
from cgdpm_med.diffusion.targets import MaskDenoiser, Target

M, S = 0.7, 0.5
BETAS = torch.linspace(0.02, 0.6, 12)
SHORT = NoiseSchedule(schedule=BETAS)
short_eps = Gaussian(SHORT, M, S)


def gaussian_pairs(seed: int = 0, batches: int = 1, images: int = 16) -> Iterator[tuple[Tensor, Tensor]]:
    """A stream of (s_0, y), s_0 ~ N(M, S^2), with an empty condition."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(batches):
        yield M + S * torch.randn(images, 1, generator=generator), torch.empty(images, 0)


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

    exact = Gaussian(other, M, S)

    def with_variance(x_t: Tensor, t: Tensor, context: Any) -> Tensor:
        output = exact(x_t, t)
        return torch.cat([output, torch.full_like(output, 9.0)], dim=1)  # v, which nobody asks for here

    settings: dict[str, Any] = {"capacity": 64, "steps": 12, "method": "ddim", "coupling": coupling, "chains": 1}
    replays = [
        Replay(denoiser, schedule, generator=torch.Generator().manual_seed(0), **settings)
        for denoiser, schedule in ((short_eps, SHORT), (with_variance, other))
    ]
    for replay in replays:
        replay.fill(*next(gaussian_pairs(images=4)))
    want, got = (replay.draw(48) for replay in replays)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def test_mask_denoiser_is_a_denoiser_of_the_replay() -> None:
    """Certain logits: x0_theta is +-1, so the target is sqrt(SNR) (s_0 - x0_theta), zero where the mask is right."""

    class Certain(nn.Module):
        def encode(self, y: Tensor, size: Any = None) -> tuple[Tensor]:
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
        Gaussian(schedule, M, S),
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


@pytest.mark.parametrize("coupling", ["forward", "mixed"])
def test_an_interval_keeps_the_halves_of_a_mixture_alike(coupling: str) -> None:
    replay = make_replay(coupling=coupling, interval=(4, 9), chains=2, capacity=44)
    replay.fill(*next(gaussian_pairs(images=2)))
    contents = replay.buffer.contents()
    assert contents is not None
    assert len(contents.t) == {"forward": 20, "mixed": 40}[coupling]  # 5 timesteps of 4 rows, once or twice
    assert bool(((contents.t >= 4) & (contents.t < 9)).all())
    with pytest.raises(ValueError, match="raise capacity"):
        make_replay(coupling=coupling, interval=(4, 9), chains=2, capacity=19).fill(*next(gaussian_pairs(images=2)))


@pytest.mark.parametrize("coupling", ["reverse", "forward", "mixed"])
def test_targets_are_of_the_corrected_prediction(coupling: str) -> None:
    """Guidance is added to a corrected x_0 in later use, so it is the corrected one that its target is of."""

    class Bounded(Target):
        channels = 1

        def correct(self, x_0: Tensor, y: Tensor) -> Tensor:
            return x_0.clamp(y - 0.1, y + 0.1)

    replay = make_replay(coupling=coupling, target=Bounded(), chains=2)
    s_0, y = torch.tensor([[0.4], [0.9]]), torch.tensor([[0.0], [2.0]])
    replay.fill(s_0, y)
    contents = replay.buffer.contents()
    assert contents is not None
    truth = torch.where(contents.y == 0.0, 0.4, 0.9)
    eps = contents.target + SHORT.eps_from_x0(truth, contents.x_t, contents.t)
    x_0 = SHORT.to_x0(eps, contents.x_t, contents.t)
    assert bool(((x_0 - contents.y).abs() <= 0.1 + 1e-4).all())


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
