"""The network's layers, each with the ways around PyTorch's slow kernels, and the call that swaps them in.

A fast layer is a subclass with the same parameters and results; every one gives way to plain torch where that is fast.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cgdpm_med.diffusion.targets import MaskDenoiser
from cgdpm_med.networks.blocks import Attention, Concatenation, GroupNorm, modulated
from cgdpm_med.networks.unet import ConditionalUNet

SMALL = 256  # pixels of a map
CACHED = 2**19  # values whose gradient is computed at once: in float32 they stay in a CPU's cache


class FastGroupNorm(GroupNorm):
    """:class:`~cgdpm_med.networks.blocks.GroupNorm` with the same parameters and results, faster everywhere.

    It goes around slow paths of PyTorch's kernels in channels last, the faster layout for convolutions. On a CPU it is
    slow in two places (PyTorch 2.13, one AVX-512 core): forward in bfloat16 on maps of 16 x 16 it takes five times as
    long as in float32, conversions included, and backward on every map ten to forty times as long as in the ordinary
    layout. The first is therefore done in float32, the second is written out. torch.compile makes kernels for a CPU
    that are slower still (several times at 64 x 64), so it is shown one operation.

    On a GPU PyTorch knows the ordinary layout alone. A kernel of our own serves sampling there (``fused_norm.py``), and
    what torch.compile sees is written in sums that it can join with what stands beside them.
    """

    def forward(self, x: Tensor, film: tuple[Tensor, Tensor] | None = None, *, silu: bool = False) -> Tensor:
        """Normalise (B, C, *S)."""
        scale, shift = self.scale_and_shift(film)
        if torch.compiler.is_compiling():
            if not x.is_cpu:
                return _written_out(x, scale, shift, self.num_groups, self.eps, silu)
            if not torch.is_grad_enabled() and _channels_last(x):
                return _as_one(x, scale, shift, self.num_groups, self.eps, silu)
        if not torch.is_grad_enabled() and _fits_fused(x) and (fused := _fused()):
            return fused(x, scale, shift, self.num_groups, self.eps, silu)
        h = self._normalised(x, scale, shift)
        return F.silu(h, inplace=not h.requires_grad) if silu else h  # in place it would keep a copy for the gradient

    def _normalised(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        if not x.is_cpu or not _channels_last(x) or torch.compiler.is_compiling():
            if scale.ndim == 1:
                return F.group_norm(x, self.num_groups, scale, shift, self.eps)
            return modulated(F.group_norm(x, self.num_groups, eps=self.eps), scale, shift)
        if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
            return _ChannelsLast.apply(x, scale, shift, self.num_groups, self.eps)
        return _forward(x, scale, shift, self.num_groups, self.eps)[0]


def _channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _fits_fused(x: Tensor) -> bool:
    return x.is_cuda and x.dtype != torch.float64 and _channels_last(x)


@cache
def _fused() -> Callable[..., Tensor] | None:
    """The kernel, where Triton is installed: PyTorch's builds for CUDA bring it."""
    try:
        from .fused_norm import group_norm
    except ImportError:
        return None
    return group_norm


def _written_out(x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
    """In sums over the pixels of each channel, which are joined to groups: for torch.compile on a GPU."""
    z = x.to(torch.promote_types(x.dtype, torch.float32))
    axes = tuple(range(2, x.ndim))
    variance, mean = (each.unflatten(1, (groups, -1)) for each in torch.var_mean(z, dim=axes, correction=0))
    of_group = mean.mean(dim=2, keepdim=True)
    rstd = (variance + (mean - of_group) ** 2).mean(dim=2, keepdim=True).add(eps).rsqrt()
    factor = rstd.expand_as(mean).flatten(1) * scale
    term = shift - of_group.expand_as(mean).flatten(1) * factor
    factor, term = (each.reshape(*each.shape, *[1] * len(axes)) for each in (factor, term))
    h = torch.addcmul(term, z, factor)
    return (F.silu(h) if silu else h).to(x.dtype)


def _forward(x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Output, means and reciprocal standard deviations (B, G)."""
    batch, channels, pixels = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    h = x
    if pixels <= SMALL and x.dtype == torch.bfloat16:
        h, scale, shift = x.float(), scale.float(), shift.float()
    # without weights of its own the kernel would round the means to the precision of x
    weight, bias = (scale, shift) if scale.ndim == 1 else (scale.new_ones(channels), shift.new_zeros(channels))
    h, mean, rstd = torch.native_group_norm(h, weight, bias, batch, channels, pixels, groups, eps)
    if scale.ndim == 2:
        modulated(h, scale, shift, out=h)
    return h.to(x.dtype), mean, rstd


@torch.library.custom_op("cgdpm_med::group_norm", mutates_args=())
def _as_one(x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
    """What torch.compile is not to take apart on a CPU."""
    h = _forward(x, scale, shift, groups, eps)[0]
    return F.silu(h, inplace=True) if silu else h


@_as_one.register_fake
def _(x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
    return torch.empty_like(x)


class _ChannelsLast(torch.autograd.Function):
    """Group normalisation of (B, C, H, W) in channels last, with its gradient in sums over rows of channels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float) -> Tensor:
        h, mean, rstd = _forward(x, scale, shift, groups, eps)
        ctx.save_for_backward(x, scale, mean, rstd)
        ctx.groups = groups
        return h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, mean, rstd = ctx.saved_tensors
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        sums = []
        images = max(1, CACHED // x[0].numel())
        for first in range(0, len(x), images):
            part = slice(first, first + images)
            each = scale[part] if scale.ndim == 2 else scale[None]
            rows, *of_part = _gradient(_rows(grad[part]), _rows(x[part]), each, mean[part], rstd[part])
            _rows(dx[part]).copy_(rows)
            sums.append(of_part)
        dscale, dshift = (torch.cat(parts) for parts in zip(*sums, strict=True))
        if scale.ndim == 1:
            dscale, dshift = dscale.sum(0), dshift.sum(0)
        return dx, dscale.to(scale.dtype), dshift.to(scale.dtype), None, None


def _gradient(dy: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, and for each image of scale and shift.

    Args:
        dy, x: gradient of the output, and the input, (B, N, C).
        scale: (B or 1, C).
        mean, rstd: of the groups, (B, G).
    """
    precision = torch.promote_types(x.dtype, torch.float32)
    dy = dy.to(precision, copy=True)  # becomes dx
    x, scale, mean, rstd = (z.to(precision) for z in (x, scale, mean, rstd))
    shape = mean.shape[1], x.shape[2] // mean.shape[1]  # groups, and channels of each
    mean, rstd, scale = mean[..., None], rstd[..., None], scale.unflatten(1, shape)
    sum_dy, sum_dy_x = dy.sum(1).unflatten(1, shape), (dy * x).sum(1).unflatten(1, shape)

    def by_group(z: Tensor) -> Tensor:
        return (z * scale).sum(-1, keepdim=True) / (shape[1] * x.shape[1])

    # dx = rstd (g - mean(g) - x_hat mean(g x_hat)), g = scale dy, x_hat = rstd (x - mean): linear in dy and in x
    of_dy, mean_g = scale * rstd, by_group(sum_dy)
    of_x = (mean_g * mean - by_group(sum_dy_x)) * rstd**3
    of_one = -of_x * mean - mean_g * rstd
    of_one, of_x, of_dy = (z.expand_as(of_dy).flatten(1)[:, None] for z in (of_one, of_x, of_dy))
    dx = torch.addcmul(of_one, dy, of_dy, out=dy).addcmul_(x, of_x)
    return dx, ((sum_dy_x - mean * sum_dy) * rstd).flatten(1), sum_dy.flatten(1)


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C); a view of channels last."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1])


FEW_POSITIONS = 128
"""Up to here the backward pass of a CPU's fused attention takes longer than plain matrix products."""


class PatchConv2d(nn.Conv2d):
    """Convolution whose stride is its kernel's size: on a GPU one matrix product, for which cuDNN has slow kernels."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, Cin, H, W) -> (B, Cout, H / k, W / k), channels last on a GPU."""
        if x.is_cpu:
            return super().forward(x)
        k = self.kernel_size[0]
        patches = x.unflatten(3, (-1, k)).unflatten(2, (-1, k)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class PatchConvTranspose2d(nn.ConvTranspose2d):
    """Transposed convolution whose stride is its kernel's size; see :class:`PatchConv2d`.

    On a CPU the bias is added behind it in training: its gradient takes oneDNN eight times as long as all others.
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, Cin, H, W) -> (B, Cout, H k, W k), channels last on a GPU."""
        if output_size is not None or (x.is_cpu and not torch.is_grad_enabled()):
            return super().forward(x, output_size)
        if x.is_cpu:
            h = F.conv_transpose2d(x, self.weight, stride=self.stride)
            return h if self.bias is None else h.add_(self.bias.to(h.dtype)[:, None, None])
        k, channels = self.kernel_size[0], self.out_channels
        weight = self.weight.permute(2, 3, 1, 0).flatten(0, 2)  # rows are (row, column, channel) of a patch
        bias = None if self.bias is None else self.bias.repeat(k * k)
        patches = F.linear(x.permute(0, 2, 3, 1), weight, bias).unflatten(3, (k, k, channels))
        return patches.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class _DenseGradient(torch.autograd.Function):
    """The identity; its gradient is laid out as the value was."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        last = h.ndim == 4 and h.is_contiguous(memory_format=torch.channels_last)
        ctx.layout = torch.channels_last if last else torch.contiguous_format
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.contiguous(memory_format=ctx.layout)


class DenseConcatenation(Concatenation):
    """The gradient of ``h`` is copied out of that of the whole: convolutions are slow on a part."""

    def forward(self, h: Tensor, skip: Tensor) -> Tensor:
        """(B, C1, *S), (B, C2, *S) -> (B, C1 + C2, *S)."""
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            h = _DenseGradient.apply(h)
        return super().forward(h, skip)


class FastAttention(Attention):
    """Plain matrix products where the backward pass of a CPU's fused attention takes longer."""

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, heads, N, channels of a head) each -> the same."""
        if q.is_cpu and torch.is_grad_enabled() and q.shape[2] <= FEW_POSITIONS and not torch.compiler.is_compiling():
            with sdpa_kernel(SDPBackend.MATH):
                return super().attended(q, k, v)
        return super().attended(q, k, v)


class ContiguousMaskDenoiser(MaskDenoiser):
    """Logits laid out as x_t is: a GPU is slow where layouts meet."""

    def logits(self, x_t: Tensor, t: Tensor, features: Any) -> Tensor:
        """(B, C, *S), float32."""
        logits = super().logits(x_t, t, features)
        return logits if logits.is_cpu else logits.contiguous()


FAST: dict[type[nn.Module], type[nn.Module]] = {
    GroupNorm: FastGroupNorm,
    Attention: FastAttention,
    Concatenation: DenseConcatenation,
    nn.Conv2d: PatchConv2d,
    nn.ConvTranspose2d: PatchConvTranspose2d,
}
"""Layer of the network -> the one that takes its place."""


def optimise(network: nn.Module) -> nn.Module:
    """Swap the fast layers in, in place: before training, or on the copy that is evaluated. Once or more.

    Parameters and their names stay; networks of other kinds than ``ConditionalUNet`` stay as they are.
    """
    for module in network.modules():
        if type(module) is MaskDenoiser:
            module.__class__ = ContiguousMaskDenoiser
        elif isinstance(module, ConditionalUNet):
            for layer in module.modules():
                fast_layer(layer)
    return network


def fast_layer(layer: nn.Module) -> nn.Module:
    """One layer made fast, in place, where :data:`FAST` has a way for it."""
    fast = FAST.get(type(layer))
    if fast is not None and _fits(layer):
        layer.__class__ = fast
    return layer


def _fits(layer: nn.Module) -> bool:
    """Of convolutions, those of square patches without overlap: the stride is the kernel's size."""
    if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        return True
    square = len(set(layer.kernel_size)) == 1
    return square and layer.stride == layer.kernel_size and layer.padding == (0, 0)
