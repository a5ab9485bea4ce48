"""Stage 2: a guidance network that starts from nothing, and epochs of replayed examples that depend on their number."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cgdpm_med import (
    ConditionalUNet,
    EpochSampler,
    GuidanceLoss,
    InputError,
    MaskDenoiser,
    MaskTarget,
    NoiseSchedule,
    Replay,
    ReplayLoader,
    examples_prepare_batch,
    guidance_weighting,
    guide_from_denoiser,
)
from cgdpm_med.diffusion.guidance import ScaledGuide, guided
from cgdpm_med.diffusion.samplers import shift_prediction
from cgdpm_med.diffusion.sampling import sample
from cgdpm_med.models import describe, load_model, save_model, save_weights

SCHEDULE = NoiseSchedule(100, "cosine", "sample")


def network(seed: int = 0) -> ConditionalUNet:
    torch.manual_seed(seed)
    net = ConditionalUNet(2, 4, 1, 4, (8, 16), 1, (False, False))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net


class Pairs(torch.utils.data.Dataset):
    """Five images of constant value i with targets of the same value."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int | tuple[int, int]) -> Tensor:
        return torch.full((4, 8, 8), float(index[1] if isinstance(index, tuple) else index))


def pair(batch: Tensor, device: torch.device | str) -> tuple[Tensor, Tensor]:
    return batch.to(device) / 10, batch[:, :1].to(device)


def loader(seed: int = 0) -> ReplayLoader:
    replay = Replay(
        MaskDenoiser(network(), 0.5),
        SCHEDULE,
        generator=torch.Generator(),
        capacity=40,
        chains=1,
        steps=5,
        method="ddim",
    )
    images = torch.utils.data.DataLoader(Pairs(), batch_size=2, sampler=EpochSampler(5, seed=1, batch_size=2))
    return ReplayLoader(replay, images, pair, batch_size=6, batches=7, seed=seed)


def test_a_guide_starts_as_no_guidance() -> None:
    guide: Any = guide_from_denoiser(network(1), SCHEDULE)
    y, x_T = torch.rand(2, 1, 8, 8), torch.randn(2, 4, 8, 8)
    denoiser = MaskDenoiser(network())
    plain = sample(denoiser, x_T, y, SCHEDULE, steps=4)
    with_guide = sample(guided(denoiser, guide, SCHEDULE, scale=1.0), x_T, y, SCHEDULE, steps=4)
    torch.testing.assert_close(with_guide, plain, rtol=0, atol=1e-6)
    assert any(bool(p.abs().sum() > 0) for p in guide.network.encoder.parameters())


def test_an_epoch_depends_on_its_number_alone() -> None:
    first, other = loader(), loader()
    for epoch in (1, 2):
        first.set_epoch(epoch)
        passed = list(first)
    other.set_epoch(2)
    again = list(other)
    assert len(passed) == len(again) == len(first) == 7
    for a, b in zip(passed, again, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    other.set_epoch(3)
    assert not torch.equal(next(iter(other)).x_t, passed[0].x_t)


def test_the_stream_of_images_is_repeated_in_a_new_order_and_examples_cost_one_evaluation() -> None:
    it = loader()
    it.set_epoch(1)
    batches = list(it)
    # 42 examples of 5 a chain: more than the four images of one pass give
    assert sum(len(b.t) for b in batches) == 42
    assert it.replay.image_batches > 2
    # all but one in a stride of the chains' first states are examples
    assert it.replay.evaluations / it.replay.examples < 5 / 4


def test_targets_are_the_residual_of_the_frozen_denoiser() -> None:
    it = loader()
    it.set_epoch(1)
    batch = next(iter(it))
    s_0 = batch.y.expand(-1, 4, -1, -1) / 10
    x_0 = it.replay.denoiser(batch.x_t, batch.t, batch.y)
    ab = SCHEDULE.alpha_bar[batch.t].float()[:, None, None, None]
    torch.testing.assert_close(batch.target, (ab / (1 - ab)).sqrt() * (s_0 - x_0), rtol=1e-3, atol=1e-4)


def test_a_step_of_training_lowers_the_loss_of_its_batch() -> None:
    guide = guide_from_denoiser(network(1), SCHEDULE)
    it = loader()
    it.set_epoch(1)
    batch = examples_prepare_batch(next(iter(it)), "cpu")
    loss_function = GuidanceLoss(SCHEDULE, "bounded")
    optimizer = torch.optim.Adam(guide.parameters(), lr=1e-2)
    before = loss_function(guide, *batch)
    for _ in range(10):
        optimizer.zero_grad()
        loss = loss_function(guide, *batch)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.8 * before.item()


def test_guidance_weights_go_with_their_denoiser(tmp_path: Path) -> None:
    target = MaskTarget(4)
    description = describe(network(), target, SCHEDULE, {"kind": "picture", "window": 8}, ["a", "b", "c"])
    save_model(tmp_path / "model.pt", network(), description)
    model = load_model(tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"guidance.pt.*no weights.*denoiser .*model.pt"):
        model.guide(tmp_path / "guidance.pt")
    save_weights(ConditionalUNet(2, 4, 1, 4, (8, 24), 1, (False, False)), tmp_path / "guidance.pt")
    with pytest.raises(InputError, match=r"cond_encoder.*denoiser .*model.pt.*guidance_scale"):
        model.guide(tmp_path / "guidance.pt")
    save_weights(network(3), tmp_path / "guidance.pt")
    loaded: Any = model.guide(tmp_path / "guidance.pt")
    assert torch.equal(loaded.network.head.weight, network(3).get_parameter("head.weight"))


class Ones(torch.nn.Module):
    def forward(self, x_t: Tensor, t: Tensor, context: None = None) -> Tensor:
        return torch.ones_like(x_t)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_guide_is_scaled_for_what_the_denoiser_predicts(prediction_type: str) -> None:
    """What an output of one adds to the predicted x_0 in pure noise: 1, but more for eps, where x_0 is unknown."""
    schedule = NoiseSchedule(schedule="cosine", prediction_type=prediction_type)
    guide = ScaledGuide(Ones(), schedule, guidance_weighting(schedule))
    x_t = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    _, x0_hat = shift_prediction(schedule, 999, x_t, x_t, x_t, guide(x_t, torch.tensor([999])))
    expected = math.exp(-float(schedule.log_snr[999])) if prediction_type == "epsilon" else 1.0
    torch.testing.assert_close(x0_hat, torch.full_like(x_t, expected))
