"""Group normalisation in channels last, with a modulation, against PyTorch's own in the ordinary layout."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from cgdpm_med.runtime import layers
from cgdpm_med.runtime.layers import FastGroupNorm as GroupNorm


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


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("silu", [False, True])
def test_written_out_for_compiling(silu: bool, per_image: bool) -> None:
    _, theirs = pair(12, 4, torch.float64)
    x = maps(3, 12, 6, 10, dtype=torch.float64)
    scale, shift = film_of(*(3, 12) if per_image else (12,))
    expected = torch.nn.functional.group_norm(x, 4)
    expected = expected * scale.reshape(-1, 12, 1, 1) + shift.reshape(-1, 12, 1, 1)
    expected = torch.nn.functional.silu(expected) if silu else expected
    torch.testing.assert_close(layers._written_out(x, scale, shift, 4, theirs.eps, silu), expected)
    rounded = layers._written_out(x.bfloat16(), scale.float(), shift.float(), 4, theirs.eps, silu)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.double() - expected).norm() < 4e-3 * expected.norm()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_silu_follows(layout: torch.memory_format) -> None:
    norm, _ = pair(12, 4, torch.float64)
    x, film = maps(3, 12, 6, 10, dtype=torch.float64).contiguous(memory_format=layout), film_of(3, 12)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(norm(x, film, silu=True), torch.nn.functional.silu(norm(x, film)))


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


def film_of(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    scale = torch.linspace(-1, 2, shape[-1], dtype=dtype).expand(shape).clone()
    shift = torch.linspace(3, -3, shape[-1], dtype=dtype).expand(shape).clone()
    if len(shape) == 2:  # another modulation for each image
        scale, shift = (z * torch.arange(1, shape[0] + 1, dtype=dtype)[:, None] for z in (scale, shift))
    return scale, shift


@pytest.mark.parametrize("images", [(), (3,)], ids=["shared", "per image"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_film_is_a_further_scale_and_shift(layout: torch.memory_format, images: tuple[int, ...]) -> None:
    """Values and the gradients of all that enters."""
    ours, plain = pair(8, 4, torch.float64)
    x = maps(3, 8, 20, 18, dtype=torch.float64)
    weights = x.flip(0)
    leaf, other = (z.detach().requires_grad_() for z in (x.clone(memory_format=layout), x.clone()))
    film = tuple(z.requires_grad_() for z in film_of(*images, 8))
    scale, shift = (z.detach().clone().requires_grad_() for z in film)
    out = ours(leaf, film)
    expected = plain(other) * scale[..., None, None] + shift[..., None, None]
    torch.testing.assert_close(out, expected)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    for found, wanted in (
        (leaf, other), (film[0], scale), (film[1], shift), (ours.weight, plain.weight), (ours.bias, plain.bias)
    ):  # fmt: skip
        torch.testing.assert_close(found.grad, wanted.grad)


def test_numerical_gradient_of_a_modulation_per_image() -> None:
    norm, _ = pair(4, 2, torch.float64)
    x = maps(2, 4, 3, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    scale, shift = (z.requires_grad_() for z in film_of(2, 4))
    assert torch.autograd.gradcheck(lambda x, *film: norm(x, film), (x, scale, shift))


@pytest.mark.parametrize("images", [(), (5,)], ids=["shared", "per image"])
def test_gradients_in_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch, images: tuple[int, ...]) -> None:
    norm, _ = pair(8, 4, torch.float64)
    x = maps(5, 8, 6, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    gradients = []
    for cached in (10**6, 2 * x[0].numel(), 1):  # all five, two, two and one, and one by one
        monkeypatch.setattr(layers, "CACHED", cached)
        leaves = [z.clone().requires_grad_() for z in (x, *film_of(*images, 8))]
        out = norm(leaves[0], (leaves[1], leaves[2]))
        gradients.append(torch.autograd.grad((out * x.flip(0)).sum(), [*leaves, *norm.parameters()]))
    for parts in gradients[1:]:
        for found, whole in zip(parts, gradients[0], strict=True):
            torch.testing.assert_close(found, whole)


def test_the_gradient_of_one_part_does_not_reach_another_image() -> None:
    norm, _ = pair(8, 4, torch.float64)
    x = maps(3, 8, 6, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    scale, shift = (z.requires_grad_() for z in film_of(3, 8))
    norm(x, (scale, shift))[1].square().sum().backward()
    for leaf in (x, scale, shift):
        assert leaf.grad is not None
        assert not leaf.grad[[0, 2]].any()
        assert leaf.grad[1].any()


@pytest.mark.parametrize("size", [(16, 16), (20, 18)], ids=["small", "large"])
def test_bfloat16_with_a_modulation_per_image_is_no_worse_than_in_steps(size: tuple[int, int]) -> None:
    ours, theirs = pair(64, 32, torch.float32)
    x = maps(2, 64, *size, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    scale, shift = film_of(2, 64, dtype=torch.float32)
    with torch.no_grad():
        exact = theirs(x.float()) * scale[..., None, None] + shift[..., None, None]
        steps = ours(x) * scale[..., None, None].bfloat16() + shift[..., None, None].bfloat16()
        out = ours(x, (scale, shift))
    assert out.dtype == torch.bfloat16
    assert (out - exact).abs().mean() <= (steps - exact).abs().mean()


@torch.no_grad()
@pytest.mark.parametrize("film", [False, True])
def test_torch_compile_sees_one_operation_on_a_cpu(film: bool) -> None:
    norm, _ = pair(12, 4, torch.float32)
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op.startswith("call"))
        return graph

    x = maps(3, 12, 20, 18, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    modulation = (torch.linspace(0.5, 2, 12), torch.linspace(-1, 1, 12)) if film else None
    out = torch.compile(norm, backend=backend, dynamic=False)(x, modulation, silu=True)
    assert torch.equal(out, norm(x, modulation, silu=True))
    assert out.stride() == x.stride()
    assert sum("cgdpm_med.group_norm" in name for name in seen) == 1
    assert not any("native" in name or "silu" in name for name in seen)


def test_the_one_operation_is_well_formed() -> None:
    x = maps(2, 8, 4, 6, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    arguments = (x, torch.rand(8), torch.rand(8), 4, 1e-5, True)
    torch.library.opcheck(torch.ops.cgdpm_med.group_norm.default, arguments)
