"""Group normalisation around two slow paths of PyTorch's CPU kernels.

Channels last is the faster layout for convolutions, but group normalisation in it is slow in two places (PyTorch 2.13,
one AVX-512 core): forward in bfloat16 on maps of 16 x 16 it takes five times as long as in float32, conversions
included, and backward on every map ten to forty times as long as in the ordinary layout. The first is therefore done
in float32, the second is written out.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL = 256  # pixels of a map


class GroupNorm(nn.GroupNorm):
    """``nn.GroupNorm`` with the same parameters and results, and an optional modulation of its output."""

    def forward(self, x: Tensor, film: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Normalise (B, C, *S); ``film`` is a further scale and shift of the channels, (C,) each."""
        weight: Tensor = self.weight if film is None else self.weight * film[0]
        bias: Tensor = self.bias if film is None else self.bias * film[0] + film[1]
        if x.device.type != "cpu" or x.ndim != 4 or x.is_contiguous() or torch.compiler.is_compiling():
            return F.group_norm(x, self.num_groups, weight, bias, self.eps)
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            return _ChannelsLast.apply(x, weight, bias, self.num_groups, self.eps)
        return _forward(x, weight, bias, self.num_groups, self.eps)[0]


def _forward(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Output, means and reciprocal standard deviations (B, G)."""
    batch, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    h = x
    if pixels <= SMALL and x.dtype == torch.bfloat16:
        h, weight, bias = x.float(), weight.float(), bias.float()
    h, mean, rstd = torch.native_group_norm(h, weight, bias, batch, channels, pixels, groups, eps)
    return h.to(x.dtype), mean, rstd


class _ChannelsLast(torch.autograd.Function):
    """Group normalisation of (B, C, H, W) in channels last, with its gradient in sums over rows of channels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        h, mean, rstd = _forward(x, weight, bias, groups, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.groups = groups
        return h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        (batch, channels), groups = x.shape[:2], ctx.groups
        precision = torch.promote_types(x.dtype, torch.float32)
        each = channels // groups
        count = each * x.shape[2] * x.shape[3]
        weight, mean, rstd = (z.to(precision) for z in (weight, mean, rstd))

        def by_group(z: Tensor) -> Tensor:
            return (z * weight).view(batch, groups, each).sum(-1)

        def by_channel(z: Tensor) -> Tensor:
            return z.repeat_interleave(each, dim=1)

        dy, rows = _rows(grad).to(precision), _rows(x).to(precision)
        sum_dy, sum_dy_x = dy.sum(1), (dy * rows).sum(1)
        # dx = rstd (g - mean(g) - x_hat mean(g x_hat)), g = weight dy, x_hat = rstd (x - mean): linear in dy and in x
        of_x = (by_group(sum_dy) * mean - by_group(sum_dy_x)) * rstd**3 / count
        of_one = -of_x * mean - by_group(sum_dy) * rstd / count
        dx = torch.addcmul(by_channel(of_one)[:, None], dy, (by_channel(rstd) * weight)[:, None])
        dx = dx.addcmul_(rows, by_channel(of_x)[:, None])
        dweight = ((sum_dy_x - by_channel(mean) * sum_dy) * by_channel(rstd)).sum(0)
        dx = dx.to(x.dtype).view(batch, *x.shape[2:], channels).permute(0, 3, 1, 2)
        return dx, dweight.to(ctx.saved_tensors[1].dtype), sum_dy.sum(0).to(ctx.saved_tensors[1].dtype), None, None


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C); a view of channels last."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1])
