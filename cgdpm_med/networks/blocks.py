"""Building blocks of the diffusion U-Net: timestep embedding, residual block, attention, condition branches.

Everything works in two and three spatial dimensions. The residual block and the attention follow the layout of the
ADM networks (Dhariwal & Nichol, 2021), so that their published weights can be read into them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """``nn.GroupNorm`` with the same parameters, an optional modulation of its output, and SiLU."""

    def forward(self, x: Tensor, film: tuple[Tensor, Tensor] | None = None, *, silu: bool = False) -> Tensor:
        """Normalise (B, C, *S).

        Args:
            film: a further scale and shift of the channels, (C,) or (B, C) each.
            silu: apply SiLU to the result.
        """
        scale, shift = self.scale_and_shift(film)
        if scale.ndim == 1:
            h = F.group_norm(x, self.num_groups, scale, shift, self.eps)
        else:
            h = modulated(F.group_norm(x, self.num_groups, eps=self.eps), scale, shift)
        return F.silu(h) if silu else h

    def scale_and_shift(self, film: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """The parameters with the modulation in them, (C,) or (B, C) each."""
        if film is None:
            return self.weight, self.bias
        return self.weight * film[0], self.bias * film[0] + film[1]


def modulated(h: Tensor, scale: Tensor, shift: Tensor, out: Tensor | None = None) -> Tensor:
    """h (B, C, *S) scaled and shifted by (B, C)."""
    scale, shift = (z.to(h.dtype).reshape(*z.shape, *[1] * (h.ndim - 2)) for z in (scale, shift))
    return torch.addcmul(shift, h, scale, out=out)


Join = tuple[Tensor, Tensor]
"""The part of a residual block that depends on the condition alone: (hidden path, skip path)."""


Sides = int | Sequence[int]
"""Of a kernel or a step: one number for all axes, or one for each."""


def conv(
    spatial_dims: int, in_channels: int, out_channels: int, kernel_size: Sides = 3, stride: Sides = 1
) -> nn.Module:
    """Convolution in 2 or 3 dimensions; odd kernels are padded so that stride 1 keeps the size, even ones are not."""
    kernel, step = _sides(kernel_size, spatial_dims), _sides(stride, spatial_dims)
    padding = tuple(side // 2 if side % 2 else 0 for side in kernel)
    layer: Any = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
    made: nn.Module = layer(in_channels, out_channels, kernel, step, padding)
    return made


def conv_transpose(spatial_dims: int, in_channels: int, out_channels: int, factor: Sides) -> nn.Module:
    """Transposed convolution without overlap: each position becomes a patch with sides ``factor``."""
    sides = _sides(factor, spatial_dims)
    layer: Any = nn.ConvTranspose2d if spatial_dims == 2 else nn.ConvTranspose3d
    made: nn.Module = layer(in_channels, out_channels, sides, stride=sides)
    return made


def _sides(sides: Sides, spatial_dims: int) -> tuple[int, ...]:
    return (sides,) * spatial_dims if isinstance(sides, int) else tuple(sides)


def group_norm(channels: int) -> GroupNorm:
    """Group normalisation with 32 groups, or as many as divide the channels."""
    return GroupNorm(math.gcd(32, channels), channels)


def zeroed(module: nn.Module) -> nn.Module:
    """The module with every parameter set to zero: a residual path that starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal embedding (Vaswani et al., 2017), cosines first.

    Args:
        timesteps: int or float, shape (B,); need not be whole numbers.
        dim: width of the embedding.

    Returns:
        float32, shape (B, dim).
    """
    half = dim // 2
    freqs = torch.exp(-math.log(max_period) / half * torch.arange(half, dtype=torch.float32, device=timesteps.device))
    args = timesteps[:, None].float() * freqs
    return F.pad(torch.cat([args.cos(), args.sin()], dim=-1), (0, dim % 2))


def add_per_image(h: Tensor, term: Tensor) -> Tensor:
    """``h + term`` where ``h`` may hold K members for each image of ``term``.

    Args:
        h: (B * K, …), the members of one image beside each other.
        term: (B, …) or (1, …).

    Raises:
        ValueError: for a term of another size, or of an image count that does not divide the batch.
    """
    if term.shape[1:] != h.shape[1:] or h.shape[0] % term.shape[0]:
        raise ValueError(
            f"condition features {tuple(term.shape)} do not fit {tuple(h.shape)}: the batch must be a multiple of the "
            "images, and x_t of the size the condition was encoded for"
        )
    if term.shape[0] in (1, h.shape[0]):
        return h + term
    return (h.unflatten(0, (term.shape[0], -1)) + term.unsqueeze(1)).flatten(0, 1)


class ResBlock(nn.Module):
    """Residual block: norm, SiLU, convolution, FiLM by the embedding, norm, SiLU, convolution; optional up or down.

    Args:
        emb_channels: width of the timestep embedding, or None for a block that never sees t.
        resample: "up" (nearest) or "down" (average) between the first activation and the first convolution.
        factor: of the resampling.
        kernel_size: of the convolutions.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        emb_channels: int | None,
        *,
        resample: str | None = None,
        dropout: float = 0.0,
        factor: Sides = 2,
        kernel_size: Sides = 3,
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = conv(spatial_dims, in_channels, out_channels, kernel_size)
        self.emb = nn.Linear(emb_channels, 2 * out_channels) if emb_channels else None
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(conv(spatial_dims, out_channels, out_channels, kernel_size))
        self.skip = nn.Identity() if in_channels == out_channels else conv(spatial_dims, in_channels, out_channels, 1)
        self.resample = Resample(spatial_dims, resample, factor) if resample else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor | None = None, joined: Join | None = None) -> Tensor:
        """x: (B, Cin, *S); emb: (B or 1, E); joined: from a ConditionJoin of this block. -> (B, Cout, *S')."""
        h = self.conv1(self.resample(self.norm1(x, silu=True)))
        x = self.skip(self.resample(x))
        if joined is not None:
            h, x = add_per_image(h, joined[0]), add_per_image(x, joined[1])
        h = self.conv2(self.dropout(self._modulated(h, emb)))
        # into the convolution's own output, which no gradient needs: an addition costs what memory it touches
        return h.add_(x) if h.dtype == x.dtype else h + x

    def _modulated(self, h: Tensor, emb: Tensor | None) -> Tensor:
        """Second normalisation, FiLM and SiLU in one: (C,) where the batch shares one embedding, as when sampling."""
        if self.emb is None or emb is None:
            return self.norm2(h, silu=True)
        film = self.emb(F.silu(emb)).to(self.norm2.weight.dtype)
        scale, shift = (film[0] if film.shape[0] == 1 else film).chunk(2, dim=-1)
        return self.norm2(h, (1 + scale, shift), silu=True)


class Concatenation(nn.Module):
    """Channels of both."""

    def forward(self, h: Tensor, skip: Tensor) -> Tensor:
        """(B, C1, *S), (B, C2, *S) -> (B, C1 + C2, *S)."""
        return torch.cat([h, skip], dim=1)


class ConditionJoin(nn.Module):
    """Concatenates condition features to the input of a residual block, at the cost of a sum.

    A convolution of a concatenation is the sum of two convolutions. Normalising the two parts apart, the half that
    sees only the condition does not depend on t or x_t and is computed once per image. The block then adds it after
    its first convolution and its skip convolution.
    """

    def __init__(self, spatial_dims: int, cond_channels: int, out_channels: int, kernel_size: Sides = 3) -> None:
        super().__init__()
        self.norm = group_norm(cond_channels)
        self.conv = conv(spatial_dims, cond_channels, out_channels, kernel_size)
        self.skip = conv(spatial_dims, cond_channels, out_channels, 1)

    def forward(self, features: Tensor) -> Join:
        """features: (B, Cc, *S) -> two tensors (B, Cout, *S)."""
        return self.conv(self.norm(features, silu=True)), self.skip(features)


class Resample(nn.Module):
    """Resampling by a factor without parameters: average pooling down, nearest neighbour up."""

    def __init__(self, spatial_dims: int, direction: str, factor: Sides = 2) -> None:
        super().__init__()
        if direction not in ("up", "down"):
            raise ValueError(f"resample must be 'up' or 'down', not {direction!r}")
        self.direction, self.factor = direction, _sides(factor, spatial_dims)
        self.pool = F.avg_pool2d if spatial_dims == 2 else F.avg_pool3d

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, *S) -> (B, C, *S / factor or *S * factor)."""
        if self.direction == "down":
            return self.pool(x, self.factor)
        return F.interpolate(x, scale_factor=tuple(float(side) for side in self.factor), mode="nearest")


class Attention(nn.Module):
    """Self-attention over all positions through torch's scaled-dot-product kernel, with a residual connection.

    Args:
        num_head_channels: channels per head (64 fits the fast kernels); ``num_heads`` overrides it.
    """

    def __init__(self, channels: int, *, num_head_channels: int = 64, num_heads: int | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads or max(1, channels // num_head_channels)
        if channels % self.num_heads:
            raise ValueError(f"{channels} channels cannot be shared by {self.num_heads} attention heads")
        self.norm = group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, *S) -> the same shape."""
        h = self.qkv(self.norm(x).flatten(2))
        # heads first, then q, k, v: the order of the published ADM weights. Contiguous, because the fast kernels
        # refuse tensors whose last dimension is strided and fall back to one four times slower
        q, k, v = h.unflatten(1, (self.num_heads, -1)).transpose(-1, -2).contiguous().chunk(3, dim=-1)
        h = self.attended(q, k, v).transpose(-1, -2).flatten(1, 2)
        return x + self.proj(h).unflatten(2, x.shape[2:])

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, heads, N, channels of a head) each -> the same."""
        return F.scaled_dot_product_attention(q, k, v)


class ConditionBranch(nn.Module):
    """Stacked up- or down-sampling layers that carry the condition image to one level's resolution (paper, fig. 2b).

    Args:
        in_channels: channels of the condition image.
        widths: channels after each layer; the first keeps the resolution, each further one halves or doubles it.
        direction: "up" or "down".
        layers: kernel and stride of each layer on the way down, where they differ between axes.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        widths: Sequence[int],
        direction: str,
        layers: Sequence[tuple[Sides, Sides]] | None = None,
    ) -> None:
        super().__init__()
        stride = 2 if direction == "down" else 1
        how = layers if layers is not None else [(3, stride if i else 1) for i in range(len(widths))]
        pairs = zip([in_channels, *widths[:-1]], widths, how, strict=True)
        self.layers = nn.ModuleList(conv(spatial_dims, c_in, c_out, *sides) for c_in, c_out, sides in pairs)
        self.up = direction == "up"

    def forward(self, y: Tensor) -> Tensor:
        """y: (B, Cc, *S) -> (B, widths[-1], *S scaled by 2 ** ±(len(widths) - 1))."""
        h = self.layers[0](y)
        for layer in self.layers[1:]:
            h = F.silu(h)
            h = layer(F.interpolate(h, scale_factor=2.0, mode="nearest") if self.up else h)
        return h
