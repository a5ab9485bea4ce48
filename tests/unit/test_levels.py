"""Networks whose levels are halved by axis: sizes by hand, and the same numbers where no axis differs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cgdpm_med import ConditionalUNet
from cgdpm_med.networks.levels import anisotropic_levels, levels_of


def test_thick_slices_are_left_whole_until_the_plane_has_caught_up() -> None:
    found = anisotropic_levels((1, 1, 3), (64, 64, 16), stem_steps=0, count=4)
    # 1, 1, 3 -> 2, 2, 3 -> 4, 4, 6 -> 8, 8, 12
    assert found.kernels == ((3, 3, 1), (3, 3, 3), (3, 3, 3), (3, 3, 3))
    assert found.strides == ((2, 2, 1), (2, 2, 2), (2, 2, 2))
    assert found.divisors == (8, 8, 4)


def test_few_or_odd_voxels_are_not_halved() -> None:
    found = anisotropic_levels((1, 1, 1), (32, 24, 10), stem_steps=1, count=3)
    assert found.stem == (2, 2, 2)
    assert found.strides == ((2, 2, 1), (2, 1, 1))  # 5 is odd, and 6 would leave 3


def test_the_stem_takes_the_first_steps() -> None:
    found = anisotropic_levels((1, 1, 2.5), (48, 48, 24), stem_steps=2, count=2)
    assert (found.stem, found.strides) == ((4, 4, 2), ((2, 2, 2),))
    assert found.stem_steps == ((2, 2, 1), (2, 2, 2))
    assert [stride for _, stride in found.way_down(3)] == [(1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2)]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"strides": [(2, 2)]}, "levels"),
        ({"strides": [(2, 2, 2), (2, 2)]}, "sides"),
        ({"kernels": [(3, 3, 5), (3, 3, 3), (3, 3, 3)]}, "kernels"),
        ({"patch_size": (2, 2, 3)}, "power of two"),
    ],
)
def test_levels_that_cannot_be(arguments: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        levels_of(3, 3, **arguments)  # type: ignore[arg-type]


def network(fusion: str = "encoder", updown: bool = False) -> ConditionalUNet:
    return ConditionalUNet(
        3, 2, 1, 2, (8, 16, 16), 1, (False, False, True), fusion,
        num_head_channels=8, patch_size=(2, 2, 1), resblock_updown=updown,
        strides=[(2, 2, 1), (2, 2, 2)], kernels=[(3, 3, 1), (3, 3, 3), (3, 3, 3)],
    )  # fmt: skip


@pytest.mark.parametrize("fusion", ["input", "bottleneck", "dual_encoder", "encoder_decoder", "encoder"])
@pytest.mark.parametrize("updown", [False, True])
def test_every_fusion_meets_at_every_level(fusion: str, updown: bool) -> None:
    net = network(fusion, updown)
    assert net.divisors == (8, 8, 2)
    x, y = torch.randn(2, 2, 16, 8, 6), torch.randn(1, 1, 16, 8, 6)
    assert net(x, torch.tensor([5]), net.encode(y)).shape == x.shape
    with pytest.raises(ValueError, match="divisible"):
        net(x[..., :5], torch.tensor([5]), y[..., :5])


def test_no_layer_above_the_meeting_of_the_axes_looks_along_the_slices() -> None:
    """What enters one slice leaves by that slice alone, where kernels and strides along it are 1 at every level."""
    flat = [(3, 3, 1)] * 2
    net = ConditionalUNet(3, 1, 1, 1, (8, 8), 1, (False, False), strides=[(2, 2, 1)], kernels=flat, num_head_channels=8)
    nn.init.normal_(next(net.head.parameters()))
    for module in net.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = lambda x, film=None, silu=False: x  # type: ignore[assignment,method-assign,misc]
    x, y = torch.randn(1, 1, 8, 8, 4), torch.randn(1, 1, 8, 8, 4)
    x2, y2 = x.clone(), y.clone()
    x2[..., 2] += 1
    y2[..., 2] += 1
    change = (net(x2, torch.tensor([1]), y2) - net(x, torch.tensor([1]), y)).abs().amax(dim=(0, 1, 2, 3))
    assert change[2] > 0
    assert change[[0, 1, 3]].max() == 0


def test_sides_given_as_they_are_anyway_change_nothing() -> None:
    torch.manual_seed(0)
    plain = ConditionalUNet(2, 1, 1, 1, (8, 16), 1, (False, False), patch_size=2)
    torch.manual_seed(0)
    said = ConditionalUNet(
        2, 1, 1, 1, (8, 16), 1, (False, False), patch_size=(2, 2), strides=[(2, 2)], kernels=[(3, 3), (3, 3)]
    )
    ours, theirs = plain.state_dict(), said.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (plain.divisor, plain.divisors) == (4, (4, 4))
