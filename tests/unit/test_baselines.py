"""Baselines as denoisers: what reaches the network inside."""

from __future__ import annotations

import pytest
import torch
from small_networks import small_network
from torch import Tensor, nn

from cgdpm_med.diffusion.baselines import Mirrored, NoiseLevelConditioned, Regression
from cgdpm_med.diffusion.losses import DiffusionLoss
from cgdpm_med.diffusion.sampling import sample
from cgdpm_med.diffusion.schedule import NoiseSchedule


class Recorder(nn.Module):
    """Twice the condition; remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        self.seen.append((x_t, t))
        return 2 * context


def test_regression_sees_neither_noise_nor_time(generator: torch.Generator) -> None:
    schedule = NoiseSchedule(schedule="cosine", prediction_type="sample")
    network = Recorder()
    x_0, y = torch.randn(2, 3, 1, 4, 4, generator=generator).unbind()
    loss = DiffusionLoss(schedule)(Regression(network), x_0, y, generator=generator)
    torch.testing.assert_close(loss, ((2 * y - x_0) ** 2).mean())
    x_T = torch.randn(3, 1, 4, 4, generator=generator)
    torch.testing.assert_close(sample(Regression(network), x_T, y, schedule, steps=1), 2 * y)
    for x_t, t in network.seen:
        assert not x_t.any()
        assert not t.any()


@pytest.mark.parametrize("channels", [1, 3])
def test_mirror_images_are_averaged_as_probabilities(channels: int, generator: torch.Generator) -> None:
    y = torch.randn(2, channels, 4, 6, generator=generator)
    ramp = torch.linspace(-1, 2, 6)

    class Lopsided(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
            return context * ramp

    logits = Mirrored(Lopsided())(torch.zeros(2, channels, 4, 6), torch.zeros(2), y)

    def probabilities(logits: Tensor) -> Tensor:
        return logits.sigmoid() if channels == 1 else logits.softmax(dim=1)

    expected = (probabilities(y * ramp) + probabilities(y * ramp.flip(0))) / 2
    torch.testing.assert_close(probabilities(logits), expected)


def test_the_noise_level_takes_the_place_of_the_timestep() -> None:
    schedule = NoiseSchedule()
    network = Recorder()
    t = torch.tensor([0, 500, 999])
    NoiseLevelConditioned(network, schedule)(torch.zeros(3, 1, 4, 4), t, torch.zeros(3, 1, 4, 4))
    level = 1.0
    expected = []
    for i in range(1000):
        level *= (1 - (1e-4 + (2e-2 - 1e-4) * i / 999)) ** 0.5
        expected.append(1000 * level)
    torch.testing.assert_close(network.seen[0][1], torch.tensor([expected[int(i)] for i in t]))


def test_the_condition_is_still_encoded_once(generator: torch.Generator) -> None:
    network = small_network(in_channels=1)
    x, y = torch.randn(2, 2, 1, 4, 4, generator=generator).unbind()
    t = torch.tensor([3, 900])
    for adapter in (Regression(network), NoiseLevelConditioned(network, NoiseSchedule())):
        with torch.no_grad():
            torch.testing.assert_close(adapter(x, t, adapter.encode(y)), adapter(x, t, y))
