"""Augmentation of whole batches of 3D patches on their device.

The plane is turned, stretched and sheared as slices are; slices are moved and mirrored, and stay slices: their voxels
may be of another size, so that no turn leads across them. Intensities change as in slices, alike in all of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cgdpm_med.data.augment import AugmentParameters, SliceAugment, change_intensity

BORDER = 1.25
"""Sides of what a patch is taken from, by the patch: turned and stretched it reaches beyond itself."""


def enlarged(size: Sequence[int]) -> tuple[int, ...]:
    """Sides that a patch of ``size`` is best cut out with before its augmentation."""
    return tuple(math.ceil(BORDER * side) for side in size)


class PatchAugment:
    """Random geometry and intensity for (image, label) batches of patches; images are expected in [-1, 1].

    Args:
        size: of the output (X, Y, Z).
        flip_prob: probability of a mirror image along each axis.
        turn_prob: probability of a random quarter turn in plane.
        scale: largest relative change of size along the slices.
        shift: largest shift along each axis, by the side of the patch.
        of_slices: further settings of :class:`~cgdpm_med.SliceAugment`.
    """

    def __init__(
        self,
        size: Sequence[int],
        *,
        flip_prob: float = 0.1,
        turn_prob: float = 0.0,
        scale: float = 0.1,
        shift: float = 0.1,
        **of_slices: float,
    ) -> None:
        self.size, self.flip_prob, self.scale, self.shift = tuple(size), flip_prob, scale, shift
        self.plane = SliceAugment(size[:2], flip_prob=flip_prob, turn_prob=turn_prob, **of_slices)

    def __call__(self, image: Tensor, label: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """image: (B, C, X, Y, Z) float; label: (B, classes, X, Y, Z) probabilities -> both of ``size``."""
        parameters = self.plane.draw(len(image), generator)
        matrix = self.matrix(parameters, generator).to(image.device)
        moved = (2 * torch.rand((len(image), 3), generator=generator) - 1) * self.shift * torch.tensor(self.size)
        image, label = warp_patches(image, label, matrix, moved.to(image.device), self.size)
        where = image.device if generator is None else generator.device
        noise = torch.randn(image.shape, generator=generator, device=where).to(image.device)
        parameters = AugmentParameters(*(p.to(image.device) for p in parameters))
        return change_patches(image, parameters, noise), label

    def matrix(self, parameters: AugmentParameters, generator: torch.Generator | None = None) -> Tensor:
        """(B, 3, 3), output voxel offsets from the centre to input voxel offsets."""
        batch = len(parameters.matrix)
        mirrored = torch.rand((batch, 2), generator=generator) < self.flip_prob
        depth = 1 + self.scale * (2 * torch.rand(batch, generator=generator) - 1)
        whole = torch.zeros(batch, 3, 3)
        whole[:, :2, :2] = parameters.matrix
        whole[:, :2, 1] *= torch.where(mirrored[:, :1], -1.0, 1.0)
        whole[:, 2, 2] = torch.where(mirrored[:, 1], -depth, depth)
        return whole


def warp_patches(
    image: Tensor, label: Tensor, matrix: Tensor, shift: Tensor, size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Resample both linearly about the centre: input offset = matrix @ output offset + shift, in voxels.

    Borders go on.
    """
    axes = [torch.arange(n, device=image.device, dtype=torch.float32) - (n - 1) / 2 for n in size]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    places = torch.einsum("bij,xyzj->bxyzi", matrix, offsets) + shift[:, None, None, None]
    half = torch.tensor([n / 2 for n in image.shape[2:]], device=image.device)
    grid = (places / half).flip(-1)  # grid_sample wants the last axis first
    how = {"mode": "bilinear", "padding_mode": "border", "align_corners": False}
    return F.grid_sample(image, grid, **how), F.grid_sample(label.float(), grid, **how)  # type: ignore[arg-type]


def change_patches(image: Tensor, parameters: AugmentParameters, noise: Tensor) -> Tensor:
    """As :func:`~cgdpm_med.data.augment.change_intensity`, alike in all slices of (B, C, X, Y, Z)."""
    channels, depth = image.shape[1], image.shape[-1]
    slices, of_slices = (each.movedim(-1, 2).flatten(1, 2) for each in (image, noise))
    changed = change_intensity(slices, parameters, of_slices)
    return changed.unflatten(1, (channels, depth)).movedim(2, -1).contiguous()
