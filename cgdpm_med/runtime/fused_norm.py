"""Group normalisation, modulation and SiLU in one kernel for NVIDIA GPUs, channels last, without gradients.

PyTorch's own kernel wants the ordinary layout and, under autocast, float32: around each convolution in channels last
that makes two copies between layouts and two between precisions, which took most of the time in which an H200 was
busy with an ensemble. Here x is read twice and written once.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

# of the fastest among nine kernels tried on an H200
TILE = 2048  # values a program holds at once
STAGES = 4  # of them on their way
WARPS = 4
ALIGNED = 16  # channels that are read in one piece
WIDE = 64  # channels of a program, where the groups allow it


def group_norm(x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
    """Normalise, scale and shift, optionally SiLU; statistics and arithmetic in float32, the output as x.

    Args:
        x: (B, C, H, W), channels last.
        scale, shift: (C,), or (B, C).
    """
    batch, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    out = torch.empty_like(x)
    scale, shift = scale.contiguous(), shift.contiguous()
    width = block_width(channels, channels // groups)
    block = triton.next_power_of_2(width)
    rows = min(TILE // block, triton.next_power_of_2(pixels))
    _kernel[(batch, channels // width)](
        x,
        scale,
        shift,
        out,
        pixels,
        channels,
        channels // groups,
        width,
        channels if scale.ndim == 2 else 0,
        eps,
        SILU=silu,
        BLOCK=block,
        ROWS=max(rows, 1),
        STAGES=STAGES,
        num_warps=min(WARPS, max(1, rows * block // 512)),
    )
    return out


def block_width(channels: int, per_group: int) -> int:
    """Channels of one program: whole groups and aligned pieces, near :data:`WIDE`; all channels where that fails."""
    smallest = math.lcm(per_group, ALIGNED)
    fitting = [width for width in range(smallest, channels + 1, smallest) if channels % width == 0]
    if not fitting:
        return channels
    return max((width for width in fitting if width <= WIDE), default=fitting[0])


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    x,
    scale,
    shift,
    out,
    pixels,
    channels,
    per_group,
    width,
    scale_stride,
    eps,
    SILU: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One image and ``width`` of its channels."""
    image = tl.program_id(0)
    place = tl.arange(0, BLOCK)
    inside = place < width
    c = tl.program_id(1) * width + place
    offset = image.to(tl.int64) * pixels * channels
    row = tl.arange(0, ROWS)

    # about the first pixel, so that a mean far from zero costs no digits of the variance
    first = tl.load(x + offset + c, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    squares = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in tl.range(0, pixels, ROWS, num_stages=STAGES):
        mask = (start + row < pixels)[:, None] & inside[None, :]
        value = tl.load(x + offset + (start + row)[:, None] * channels + c[None, :], mask=mask, other=0.0)
        value = tl.where(mask, value.to(tl.float32) - first[None, :], 0.0)
        total += value
        squares += value * value
    mean = tl.sum(total, axis=0) / pixels
    variance = tl.sum(squares, axis=0) / pixels - mean * mean
    mean += first

    group = place // per_group
    same = (group[:, None] == group[None, :]) & inside[None, :]
    of_group = tl.sum(tl.where(same, mean[None, :], 0.0), axis=1) / per_group
    apart = mean - of_group
    variance = tl.sum(tl.where(same, (variance + apart * apart)[None, :], 0.0), axis=1) / per_group
    factor = tl.load(scale + image * scale_stride + c, mask=inside, other=0.0).to(tl.float32)
    factor = factor / tl.sqrt(variance + eps)
    term = tl.load(shift + image * scale_stride + c, mask=inside, other=0.0).to(tl.float32) - of_group * factor

    for start in tl.range(0, pixels, ROWS, num_stages=STAGES):
        mask = (start + row < pixels)[:, None] & inside[None, :]
        places = offset + (start + row)[:, None] * channels + c[None, :]
        value = tl.load(x + places, mask=mask, other=0.0).to(tl.float32)
        value = value * factor[None, :] + term[None, :]
        if SILU:
            value = value / (1.0 + tl.exp(-value))
        tl.store(out + places, value.to(out.dtype.element_ty), mask=mask)
