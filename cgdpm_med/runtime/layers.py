"""The network's layers, each with the ways around PyTorch's slow kernels, and the call that swaps them in.

A fast layer is a subclass with the same parameters and results; every one gives way to plain torch where that is fast.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cgdpm_med.diffusion.targets import MaskDenoiser
from cgdpm_med.networks.blocks import Attention, Concatenation
from cgdpm_med.networks.normalisation import GroupNorm
from cgdpm_med.networks.unet import ConditionalUNet

from .normalisation import FastGroupNorm

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
    """Of convolutions, those without overlap: the stride is the kernel's size."""
    if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        return True
    return layer.stride == layer.kernel_size and layer.padding == (0, 0)
