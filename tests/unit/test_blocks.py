"""Building blocks against explicit twins: concatenation, softmax attention, plain sums."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F
from small_networks import field
from torch import Tensor, nn

from cgdpm_med.networks.blocks import (
    Attention,
    ConditionBranch,
    ConditionJoin,
    Resample,
    ResBlock,
    add_per_image,
    conv,
    group_norm,
    timestep_embedding,
)

Network = TypeVar("Network", bound=nn.Module)


def randomised(module: Network, seed: int = 0) -> Network:
    """The module with every parameter, zero-initialised ones too, drawn from a normal distribution."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return module


def test_timestep_embedding_by_hand() -> None:
    t = torch.tensor([0, 7, 999])
    embedding = timestep_embedding(t, 6)
    frequencies = [1.0, 10000 ** (-1 / 3), 10000 ** (-2 / 3)]
    for b, value in enumerate(t.tolist()):
        angles = [value * f for f in frequencies]
        expected = [*map(math.cos, angles), *map(math.sin, angles)]
        assert embedding[b].tolist() == pytest.approx(expected, abs=1e-4)
    assert torch.equal(timestep_embedding(t.float(), 6), embedding)
    assert timestep_embedding(t, 5)[:, -1].tolist() == [0, 0, 0]  # an odd width is padded


@pytest.mark.parametrize("channels", [1, 8, 12, 48, 64, 192])
def test_groups_divide_the_channels(channels: int) -> None:
    groups = group_norm(channels).num_groups
    assert channels % groups == 0
    assert groups == max(g for g in range(1, 33) if channels % g == 0 and 32 % g == 0)


def test_terms_of_an_image_reach_all_its_members() -> None:
    h, term = field(6, 2, 3, 3), field(2, 2, 3, 3, seed=1)
    expected = torch.stack([h[i] + term[i // 3] for i in range(6)])
    assert torch.equal(add_per_image(h, term), expected)
    assert torch.equal(add_per_image(h, term[:1]), h + term[0])
    assert torch.equal(add_per_image(h, h), h + h)


@pytest.mark.parametrize("shape", [(4, 2, 3, 3), (2, 2, 3, 4), (2, 1, 3, 3)])
def test_terms_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        add_per_image(field(6, 2, 3, 3), field(*shape))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_condition_join_is_a_concatenation_with_norms_apart(spatial_dims: int) -> None:
    size = (5, 4, 3)[:spatial_dims]
    block: Any = randomised(ResBlock(spatial_dims, 8, 16, 32))
    join: Any = randomised(ConditionJoin(spatial_dims, 12, 16), seed=1)
    x, features, emb = field(2, 8, *size), field(2, 12, *size, seed=1), field(2, 32, seed=2)
    convolve = {2: F.conv2d, 3: F.conv3d}[spatial_dims]

    hidden = torch.cat([F.silu(block.norm1(x)), F.silu(join.norm(features))], dim=1)
    weight = torch.cat([block.conv1.weight, join.conv.weight], dim=1)
    hidden = convolve(hidden, weight, block.conv1.bias + join.conv.bias, padding=1)
    scale, shift = block.emb(F.silu(emb)).reshape(2, 32, *[1] * spatial_dims).chunk(2, dim=1)
    hidden = convolve(
        F.silu(block.norm2(hidden) * (1 + scale) + shift), block.conv2.weight, block.conv2.bias, padding=1
    )
    skip_weight = torch.cat([block.skip.weight, join.skip.weight], dim=1)
    skip = convolve(torch.cat([x, features], dim=1), skip_weight, block.skip.bias + join.skip.bias)
    torch.testing.assert_close(block(x, emb, join(features)), hidden + skip, rtol=1e-4, atol=1e-4)


def test_residual_block_starts_as_its_skip_path() -> None:
    x, emb = field(2, 8, 4, 4), field(1, 32)
    assert torch.equal(ResBlock(2, 8, 8, 32)(x, emb), x)
    wider = ResBlock(2, 8, 16, 32)
    assert torch.equal(wider(x, emb), wider.skip(x))
    assert torch.equal(ResBlock(2, 8, 8, 32, resample="down")(x, emb), F.avg_pool2d(x, 2))


def test_one_embedding_serves_the_whole_batch() -> None:
    block, x, emb = randomised(ResBlock(2, 8, 8, 32)), field(3, 8, 4, 4), field(1, 32)
    torch.testing.assert_close(block(x, emb), block(x, emb.expand(3, -1)))
    assert not torch.allclose(block(x, emb), block(x, -emb))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_resampling_averages_down_and_repeats_up(spatial_dims: int) -> None:
    size = (4, 6, 2)[:spatial_dims]
    x = field(2, 3, *size)
    up = Resample(spatial_dims, "up")(x)
    expected = x
    for axis in range(2, 2 + spatial_dims):
        expected = expected.repeat_interleave(2, dim=axis)
    assert torch.equal(up, expected)
    torch.testing.assert_close(Resample(spatial_dims, "down")(up), x)
    mean = Resample(spatial_dims, "down")(x)[0, 0][(0,) * spatial_dims]
    torch.testing.assert_close(mean, x[0, 0][(slice(2),) * spatial_dims].mean())
    with pytest.raises(ValueError, match="'up' or 'down'"):
        Resample(spatial_dims, "sideways")


def softmax_attention(block: Attention, x: Tensor) -> Tensor:
    """Every head and every query in a plain loop."""
    B, C = x.shape[:2]
    qkv = F.conv1d(block.norm(x).flatten(2), block.qkv.weight, block.qkv.bias)
    width = C // block.num_heads
    out = torch.zeros(B, C, qkv.shape[2])
    for b in range(B):
        for head in range(block.num_heads):
            q, k, v = qkv[b, 3 * width * head : 3 * width * (head + 1)].split(width)
            for i in range(q.shape[1]):
                weights = torch.softmax(q[:, i] @ k / math.sqrt(width), dim=0)
                out[b, width * head : width * (head + 1), i] = v @ weights
    return x + F.conv1d(out, block.get_parameter("proj.weight"), block.get_parameter("proj.bias")).reshape(x.shape)


@pytest.mark.parametrize("size", [(3, 5), (2, 3, 2)])
@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_attention_equals_explicit_softmax(size: tuple[int, ...], num_heads: int) -> None:
    block = randomised(Attention(16, num_heads=num_heads))
    x = field(2, 16, *size)
    torch.testing.assert_close(block(x), softmax_attention(block, x), rtol=1e-4, atol=1e-4)


def test_attention_heads() -> None:
    assert Attention(128).num_heads == 2
    assert Attention(32).num_heads == 1  # narrower than one head
    assert Attention(32, num_head_channels=8).num_heads == 4
    assert Attention(32, num_head_channels=8, num_heads=2).num_heads == 2
    x = field(1, 16, 3, 3)
    assert torch.equal(Attention(16)(x), x)  # starts as the identity
    with pytest.raises(ValueError, match="cannot be shared by 3"):
        Attention(16, num_heads=3)


def test_attention_gives_the_fast_kernels_what_they_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    # a strided last dimension sends torch to a kernel several times slower
    strides: list[int] = []
    attend = F.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        strides.extend(tensor.stride(-1) for tensor in (q, k, v))
        return attend(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    Attention(16, num_heads=2)(field(2, 16, 3, 5))
    assert strides == [1, 1, 1]


def identity_convolutions(branch: ConditionBranch) -> ConditionBranch:
    """Every layer copies channel 0 of its input to all its channels."""
    for layer in branch.layers:
        nn.init.zeros_(layer.get_parameter("bias"))
        weight = nn.init.zeros_(layer.get_parameter("weight"))
        centre: tuple[Any, ...] = (slice(None), 0, *[1] * (weight.ndim - 2))
        weight.data[centre] = 1
    return branch


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_branches_resample_the_condition(spatial_dims: int) -> None:
    y = field(2, 1, *(8, 4, 4)[:spatial_dims])
    everywhere = (slice(None), slice(None))
    down = identity_convolutions(ConditionBranch(spatial_dims, 1, (4, 6, 5), "down"))(y)
    torch.testing.assert_close(
        down,
        F.silu(F.silu(y))[(*everywhere, *[slice(None, None, 4)] * spatial_dims)].expand(-1, 5, *[-1] * spatial_dims),
    )
    up = identity_convolutions(ConditionBranch(spatial_dims, 1, (4, 6), "up"))(y)
    expected = F.silu(y)
    for axis in range(2, 2 + spatial_dims):
        expected = expected.repeat_interleave(2, dim=axis)
    torch.testing.assert_close(up, expected.expand(-1, 6, *[-1] * spatial_dims))


def test_odd_kernels_keep_the_size_and_patches_do_not_overlap() -> None:
    x = field(1, 1, 6, 6)
    assert conv(2, 1, 2)(x).shape[2:] == (6, 6)
    assert conv(2, 1, 2, 1)(x).shape[2:] == (6, 6)
    patches = conv(2, 1, 1, 2, stride=2)
    nn.init.constant_(patches.get_parameter("weight"), 0.25)
    nn.init.zeros_(patches.get_parameter("bias"))
    torch.testing.assert_close(patches(x), F.avg_pool2d(x, 2))
