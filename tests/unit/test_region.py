"""The region inferer: where it looks, and that what it returns lies where it looked."""

from __future__ import annotations

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from cgdpm_med import DiffusionPredictor, RegionInferer
from cgdpm_med.diffusion.sampling import Sampling
from cgdpm_med.diffusion.targets import MaskTarget


class Threshold(Inferer):
    """Two members of two classes: foreground where the image exceeds one half; remembers the sizes it was given."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, ...]] = []

    def __call__(self, inputs: Tensor, network: Predictor, *args: object, **kwargs: object) -> Tensor:  # type: ignore[override]
        self.sizes.append(tuple(inputs.shape[2:]))
        p = (inputs[:, 0] > 0.5).float()
        return torch.stack([1 - p, p] * network.sampling.members, dim=1)


class Predictor(DiffusionPredictor):
    """As much of a DiffusionPredictor as the inferer touches."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.target, self.sampling = MaskTarget(2, one_hot=True), Sampling(members=2, steps=9)


def image(size: tuple[int, int, int], *boxes: tuple[slice, slice, slice]) -> Tensor:
    out = torch.zeros(1, 1, *size)
    for box in boxes:
        out[(0, 0, *box)] = 1
    return out


def test_members_are_drawn_in_the_region_and_put_back() -> None:
    x = image((64, 48, 3), (slice(20, 26), slice(5, 9), slice(1, 2)))
    inner = Threshold()
    out = RegionInferer(inner, margin=2, smallest=8, multiple=4)(x, Predictor())
    # 6 + 2 * 2 = 10 -> 12 and 4 + 2 * 2 = 8 -> 8
    assert inner.sizes == [(64, 48, 3), (12, 8, 3)]
    assert torch.equal(out, Threshold()(x, Predictor()))


def test_each_axis_may_have_a_least_side_of_its_own() -> None:
    x = image((64, 48, 3), (slice(20, 26), slice(5, 9), slice(1, 2)))
    inner = Threshold()
    RegionInferer(inner, margin=2, smallest=(24, 16), multiple=4)(x, Predictor())
    assert inner.sizes == [(64, 48, 3), (24, 16, 3)]


def test_the_least_side_is_a_multiple_too() -> None:
    x = image((64, 48, 3), (slice(20, 26), slice(5, 9), slice(1, 2)))
    inner = Threshold()
    RegionInferer(inner, margin=2, smallest=(20, 10), multiple=16)(x, Predictor())
    assert inner.sizes == [(64, 48, 3), (32, 16, 3)]


def test_members_of_one_channel_have_nothing_outside_the_region() -> None:
    class Foreground(Threshold):
        def __call__(self, inputs: Tensor, network: Predictor, *args: object, **kwargs: object) -> Tensor:  # type: ignore[override]
            return super().__call__(inputs, network)[:, 1::2]

    predictor, inner = Predictor(), Foreground()
    predictor.target = MaskTarget(2)
    x = image((64, 48, 3), (slice(20, 26), slice(5, 9), slice(1, 2)))
    out = RegionInferer(inner, margin=2, smallest=8, multiple=4)(x, predictor)
    assert inner.sizes == [(64, 48, 3), (12, 8, 3)]
    assert torch.equal(out, Foreground()(x, predictor))


def test_region_by_hand() -> None:
    inferer = RegionInferer(Threshold(), margin=1, smallest=4, multiple=4)
    found = torch.zeros(16, 12, 2, dtype=torch.bool)
    found[15, 0, 0] = found[14, 2, 1] = True
    # rows 14..15 with a margin: 13..16, four wide, ends at the border; columns 0..2: -1..3, five wide -> eight
    assert inferer.region(found) == (slice(12, 16), slice(0, 8))
    assert inferer.region(torch.zeros_like(found)) is None
    found[0, 11, 0] = True
    assert inferer.region(found) == (slice(0, 16), slice(0, 12))


def test_nothing_found_uses_the_whole_field() -> None:
    inner = Threshold()
    x = image((16, 12, 2))
    RegionInferer(inner)(x, Predictor())
    assert inner.sizes == [(16, 12, 2), (16, 12, 2)]


def test_the_scout_is_one_member_of_few_steps_and_the_predictor_stays_as_it_was() -> None:
    seen = []

    class Spy(Threshold):
        def __call__(self, inputs: Tensor, network: Predictor, *args: object, **kwargs: object) -> Tensor:  # type: ignore[override]
            seen.append((network.sampling.members, network.sampling.steps))
            return super().__call__(inputs, network)

    predictor = Predictor()
    RegionInferer(Spy(), smallest=4, multiple=4, margin=0)(
        image((16, 12, 2), (slice(4, 6),) * 2 + (slice(0, 1),)), predictor
    )
    assert seen == [(1, 2), (2, 9)]
    RegionInferer(Spy(), smallest=4, multiple=4, margin=0, scout_timesteps=[70, 50, 3])(image((16, 12, 2)), predictor)
    assert seen[2:] == [(1, 3), (2, 9)]
    assert (predictor.sampling.members, predictor.sampling.steps) == (2, 9)
