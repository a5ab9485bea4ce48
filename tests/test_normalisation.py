"""Group normalisation in channels last against PyTorch's own in the ordinary layout."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from cgdpm_med.networks.normalisation import GroupNorm


def pair(channels: int, groups: int, dtype: torch.dtype) -> tuple[GroupNorm, nn.GroupNorm]:
    torch.manual_seed(0)
    ours, theirs = GroupNorm(groups, channels).to(dtype), nn.GroupNorm(groups, channels).to(dtype)
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def maps(*shape: int, dtype: torch.dtype) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (3 + 2 * x).to(dtype)


@pytest.mark.parametrize("size", [(6, 10), (20, 18)], ids=["small", "large"])
@pytest.mark.parametrize(("channels", "groups"), [(12, 4), (8, 8), (6, 1)])
def test_values_and_gradients(size: tuple[int, int], channels: int, groups: int) -> None:
    ours, theirs = pair(channels, groups, torch.float64)
    x = maps(3, channels, *size, dtype=torch.float64)
    weights = maps(3, channels, *size, dtype=torch.float64).flip(0)
    leaf, other = x.contiguous(memory_format=torch.channels_last).requires_grad_(), x.clone().requires_grad_()
    out, expected = ours(leaf), theirs(other)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, expected)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)


def test_numerical_gradient() -> None:
    norm, _ = pair(4, 2, torch.float64)
    x = maps(2, 4, 3, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    assert torch.autograd.gradcheck(norm, (x,))


@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(16, 16), (20, 18)], ids=["small", "large"])
def test_bfloat16_is_as_good_as_the_other_layout(size: tuple[int, int], parameters: torch.dtype) -> None:
    ours, theirs = pair(64, 32, parameters)
    x = maps(2, 64, *size, dtype=torch.bfloat16)
    exact = copy.deepcopy(theirs).float()(x.float())
    errors = []
    for norm, layout in ((ours, torch.channels_last), (theirs, torch.contiguous_format)):
        out = norm(x.contiguous(memory_format=layout))
        assert out.dtype == torch.bfloat16
        errors.append((out.float() - exact).abs().mean().item())
    assert errors[0] == pytest.approx(errors[1], rel=0.01)


def test_the_gradient_handed_in_is_left_alone() -> None:
    norm, _ = pair(8, 4, torch.float32)
    x = maps(1, 8, 4, 4, dtype=torch.float32).contiguous(memory_format=torch.channels_last).requires_grad_()
    grad = torch.ones(1, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    norm(x).backward(grad)
    assert (grad == 1).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_film_is_a_further_scale_and_shift(layout: torch.memory_format) -> None:
    norm, plain = pair(8, 4, torch.float64)
    x = maps(2, 8, 6, 5, dtype=torch.float64).contiguous(memory_format=layout)
    scale, shift = torch.linspace(-1, 2, 8).double(), torch.linspace(3, -3, 8).double()
    expected = plain(x) * scale[:, None, None] + shift[:, None, None]
    torch.testing.assert_close(norm(x, (scale, shift)), expected)
