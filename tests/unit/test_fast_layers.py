"""Fast layers are the plain ones: each by itself, and the whole network on every device there is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cgdpm_med import ConditionalUNet, MaskDenoiser
from cgdpm_med.networks.blocks import Attention, GroupNorm, conv, conv_transpose
from cgdpm_med.runtime.layers import FAST, DenseConcatenation, fast_layer, optimise

DEVICES = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]


def network(spatial_dims: int, seed: int = 0) -> ConditionalUNet:
    """Every kind of layer, with no parameter at zero."""
    torch.manual_seed(seed)
    channels: dict[str, Any] = {"channels": (16, 32), "num_res_blocks": 1, "attention_levels": (False, True)}
    made = ConditionalUNet(spatial_dims, 4, 1, 4, patch_size=2, **channels)
    for parameter in made.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return made


def outcome(net: nn.Module, device: torch.device, layout: torch.memory_format, grad: bool, dims: int) -> list[Tensor]:
    """Output, and with ``grad`` the gradients of all parameters, in double precision on the CPU."""
    generator = torch.Generator().manual_seed(1)
    size = (16, 8, 8)[:dims]
    x, y = (torch.randn(3, c, *size, generator=generator).to(device) for c in (4, 1))
    net = net.to(device)
    if dims == 2:
        net = net.to(memory_format=layout)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=layout)
    with torch.set_grad_enabled(grad):
        out: Tensor = net(x, torch.tensor([3, 500, 999], device=device), y)
    found = [out.detach()]
    if grad:
        out.square().mean().backward()
        found += [p.grad for p in net.parameters() if p.grad is not None]
    return [z.detach().cpu().double() for z in found]


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["ordinary", "channels last"])
@pytest.mark.parametrize("grad", [False, True], ids=["sampling", "training"])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_fast_network_is_the_plain_one(
    device: torch.device, layout: torch.memory_format, grad: bool, dims: int
) -> None:
    plain = network(dims)
    fast = optimise(copy.deepcopy(plain))
    expected, found = (outcome(net, device, layout, grad, dims) for net in (plain, fast))
    assert len(expected) == len(found) > 0
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm() + 1e-7


def test_swapping_keeps_parameters_and_names_and_may_be_repeated() -> None:
    plain = network(2)
    names = list(plain.state_dict())
    fast = optimise(optimise(MaskDenoiser(plain)))
    assert [name.removeprefix("network.") for name in fast.state_dict()] == names
    kinds = {type(module) for module in fast.modules()}
    assert set(FAST.values()) <= kinds
    assert GroupNorm not in kinds


def test_networks_from_elsewhere_stay_as_they_are() -> None:
    foreign = nn.Sequential(nn.Conv2d(1, 2, 2, stride=2), nn.ConvTranspose2d(2, 1, 2, stride=2))
    assert [type(module) for module in optimise(foreign)] == [nn.Conv2d, nn.ConvTranspose2d]  # type: ignore[attr-defined]


class OnAnotherDevice(torch.Tensor):
    """Takes the way that tensors of a GPU take."""

    is_cpu = False  # type: ignore[assignment]


@pytest.mark.parametrize("size", [2, 4])
def test_patches_as_matrix_products(size: int, generator: torch.Generator) -> None:
    down = fast_layer(conv(2, 3, 8, size, size).double())
    up = fast_layer(conv_transpose(2, 8, 3, size).double())
    for layer, channels in ((down, 3), (up, 8)):
        x = torch.randn(2, channels, 3 * size, 2 * size, generator=generator, dtype=torch.float64)
        product = layer(x.as_subclass(OnAnotherDevice)).as_subclass(torch.Tensor)
        assert product.stride() != layer(x).stride()  # it was another way
        torch.testing.assert_close(product, layer(x))


def test_patches_that_are_not_square_stay_as_they_are(generator: torch.Generator) -> None:
    x = torch.randn(1, 3, 4, 6, generator=generator)
    for layer in (conv(2, 3, 8, (2, 1), (2, 1)), conv_transpose(2, 3, 8, (2, 1))):
        before = layer(x)
        product = fast_layer(layer)(x.as_subclass(OnAnotherDevice)).as_subclass(torch.Tensor)
        torch.testing.assert_close(product, before)


def test_bias_behind_a_transposed_convolution(generator: torch.Generator) -> None:
    x = torch.randn(2, 6, 5, 3, generator=generator, dtype=torch.float64).requires_grad_()
    ours = fast_layer(conv_transpose(2, 6, 4, 2).double())
    theirs = nn.ConvTranspose2d(6, 4, 2, stride=2).double()
    theirs.load_state_dict(ours.state_dict())
    found = []
    for layer in (ours, theirs):
        out = layer(x)
        found.append([out, *torch.autograd.grad((out**3).sum(), [x, *layer.parameters()])])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("side", [4, 12], ids=["few positions", "many"])
def test_attention_in_training_is_that_of_sampling(side: int, generator: torch.Generator) -> None:
    attention = fast_layer(Attention(32, num_heads=2).double())
    nn.init.normal_(attention.get_parameter("proj.weight"), generator=generator)  # it begins at zero
    x = torch.randn(2, 32, side, side, generator=generator, dtype=torch.float64).requires_grad_()
    with torch.no_grad():
        expected = attention(x)
    torch.testing.assert_close(attention(x), expected)
    assert torch.autograd.gradcheck(attention, (x[:1, :, :2, :2].detach().requires_grad_(),))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_concatenation_gives_dense_gradients(layout: torch.memory_format, generator: torch.Generator) -> None:
    h, skip = (torch.randn(2, c, 4, 6, generator=generator).contiguous(memory_format=layout) for c in (3, 5))
    weights = torch.randn(2, 8, 4, 6, generator=generator).contiguous(memory_format=layout)
    reached: list[Tensor] = []
    leaf = h.requires_grad_()
    inner = leaf * 2
    inner.register_hook(reached.append)
    out = DenseConcatenation()(inner, skip)
    assert torch.equal(out, torch.cat([2 * h, skip], dim=1))
    (out * weights).sum().backward()
    assert torch.equal(reached[0], weights[:, :3])
    assert reached[0].is_contiguous(memory_format=layout)
    torch.testing.assert_close(leaf.grad, 2 * weights[:, :3])
