"""Augmentation of whole batches of slices on their device: draw parameters, then do.

One resampling covers rotation, scale, shear, shift, quarter turns, flips and the crop; the intensity changes are
vectorised over the batch. MONAI's per-item transforms give the same kinds of change (``SliceDataset`` takes them), but
cost more than a third of a training step on a CPU and cannot keep a GPU busy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class AugmentParameters(NamedTuple):
    """What one batch of B slices undergoes."""

    matrix: Tensor  # (B, 2, 2), output pixel offsets from the centre to input pixel offsets
    shift: Tensor  # (B, 2), pixels of the input
    gamma: Tensor  # (B, 1, 1, 1)
    gain: Tensor  # (B, 1, 1, 1)
    offset: Tensor  # (B, 1, 1, 1)
    blur: Tensor  # (B, 1, 1, 1), weight of the blurred image, 0 … 1
    noise: Tensor  # (B, 1, 1, 1), standard deviation
    bias: Tensor  # (B, 1, 4, 4), logarithm of the bias field on a coarse grid


class SliceAugment:
    """Random geometry and intensity for (image, label) batches; images are expected in [-1, 1].

    Args:
        size: of the output crop in pixels.
        rotate: largest angle in radians.
        scale: largest relative change of size.
        shear: largest shear.
        shift: largest shift of the crop's centre in pixels.
        turn_prob: probability of a random quarter turn (scanners and exports differ in orientation).
        flip_prob: probability of a mirror image.
        gamma: largest factor (and its inverse) of the exponent.
        gain, offset: largest relative change of contrast, largest change of brightness.
        blur_prob, noise_prob: probability of a blur (as from a coarser scan), of Gaussian noise up to ``noise``.
        bias: standard deviation of the log bias field.
        intensity_prob: probability of each of gamma, gain, offset and bias.
    """

    def __init__(
        self,
        size: Sequence[int] = (128, 128),
        *,
        rotate: float = 0.35,
        scale: float = 0.18,
        shear: float = 0.08,
        shift: float = 18.0,
        turn_prob: float = 0.2,
        flip_prob: float = 0.1,
        gamma: float = 1.6,
        gain: float = 0.2,
        offset: float = 0.15,
        blur_prob: float = 0.15,
        noise_prob: float = 0.15,
        noise: float = 0.08,
        bias: float = 0.15,
        intensity_prob: float = 0.4,
    ) -> None:
        self.size = tuple(size)
        self.rotate, self.scale, self.shear, self.shift = rotate, scale, shear, shift
        self.turn_prob, self.flip_prob = turn_prob, flip_prob
        self.gamma, self.gain, self.offset = gamma, gain, offset
        self.blur_prob, self.noise_prob, self.noise = blur_prob, noise_prob, noise
        self.bias, self.intensity_prob = bias, intensity_prob

    def __call__(self, image: Tensor, label: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """image: (B, C, H, W) float; label: (B, 1, H, W) integers or (B, C, H, W) floats -> both of ``size``."""
        parameters = self.draw(image.shape[0], generator)
        parameters = AugmentParameters(*(p.to(image.device) for p in parameters))
        image, label = warp(image, label, parameters.matrix, parameters.shift, self.size)
        # a CPU would keep a GPU waiting for as many numbers as there are pixels
        where = image.device if generator is None else generator.device
        noise = torch.randn(image.shape, generator=generator, device=where).to(image.device)
        return change_intensity(image, parameters, noise), label

    def draw(self, batch: int, generator: torch.Generator | None = None) -> AugmentParameters:
        """Parameters for a batch, from a CPU generator (the global one by default)."""

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand((batch, *shape), generator=generator)

        def happens(prob: float, *shape: int) -> Tensor:
            return torch.rand((batch, *shape), generator=generator) < prob

        turns = torch.randint(1, 4, (batch,), generator=generator) * happens(self.turn_prob)
        angle = uniform(-self.rotate, self.rotate) + turns * (math.pi / 2)
        cos, sin = angle.cos(), angle.sin()
        rotation = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
        stretch = torch.zeros(batch, 2, 2)
        stretch[:, 0, 0], stretch[:, 1, 1] = (1 + uniform(-self.scale, self.scale, 2)).unbind(-1)
        stretch[:, 0, 1], stretch[:, 1, 0] = uniform(-self.shear, self.shear, 2).unbind(-1)
        mirror = torch.eye(2).repeat(batch, 1, 1)
        mirror[:, 0, 0] = torch.where(happens(self.flip_prob), -1.0, 1.0)
        each, image = self.intensity_prob, (1, 1, 1)
        log_gamma = math.log(self.gamma)
        return AugmentParameters(
            matrix=rotation @ stretch @ mirror,
            shift=uniform(-self.shift, self.shift, 2),
            gamma=(uniform(-log_gamma, log_gamma, *image) * happens(each, *image)).exp(),
            gain=1 + uniform(-self.gain, self.gain, *image) * happens(each, *image),
            offset=uniform(-self.offset, self.offset, *image) * happens(each, *image),
            blur=uniform(0.3, 1.0, *image) * happens(self.blur_prob, *image),
            noise=uniform(0.0, self.noise, *image) * happens(self.noise_prob, *image),
            bias=self.bias * torch.randn((batch, 1, 4, 4), generator=generator) * happens(each, *image),
        )


def warp(image: Tensor, label: Tensor, matrix: Tensor, shift: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Resample both about the centre: input offset = matrix @ output offset + shift, in pixels (row, column).

    The image is interpolated linearly and continues at its border; labels take their nearest neighbour and are
    background outside. Floating labels are class probabilities, background first, and are interpolated linearly.
    """
    rows, cols = torch.meshgrid(
        *(torch.arange(n, device=image.device, dtype=torch.float32) - (n - 1) / 2 for n in size), indexing="ij"
    )
    offsets = torch.stack([rows, cols], dim=-1)
    places = torch.einsum("bij,hwj->bhwi", matrix, offsets) + shift[:, None, None]
    half = torch.tensor([n / 2 for n in image.shape[2:]], device=image.device)
    grid = (places / half).flip(-1)  # grid_sample wants (x, y) = (column, row)
    warped = F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if label.is_floating_point():
        labels = F.grid_sample(label.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return warped, torch.cat([1 - labels[:, 1:].sum(dim=1, keepdim=True), labels[:, 1:]], dim=1)
    labels = F.grid_sample(label.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return warped, labels.to(label.dtype)


def change_intensity(image: Tensor, parameters: AugmentParameters, noise: Tensor) -> Tensor:
    """Gamma, gain, offset and bias field on [0, 1], then blur and noise; (B, C, H, W) in about [-1, 1]."""
    field = F.interpolate(parameters.bias, image.shape[2:], mode="bicubic", align_corners=True).exp()
    u = ((image + 1) / 2).clamp(0, 1) ** parameters.gamma
    u = (u - 0.5) * parameters.gain + 0.5 + parameters.offset
    x = 2 * u * field - 1
    blurred = F.avg_pool2d(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), 3, 1, 1, count_include_pad=False)
    return x + parameters.blur * (blurred - x) + parameters.noise * noise
