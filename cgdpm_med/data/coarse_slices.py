"""Slices of volumes and what a coarser scan would have seen of them, for training and validation of refinement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cgdpm_med.data.slices import slice_stack
from cgdpm_med.diffusion.ensemble import key_seed
from cgdpm_med.diffusion.targets import ResidualTarget


def slices_of(volumes: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    """Every slice (C, X, Y) along the last axis of the items' ``image`` (C, X, Y, Z)."""
    stacks = (slice_stack(torch.as_tensor(volume["image"]).as_subclass(Tensor)) for volume in volumes)
    return [image for stack in stacks for image in stack]


class CoarsePatches(Dataset):
    """A random patch of every slice, turned and mirrored, beside its coarse version.

    The whole slice is made coarse, then both are cut: a patch has no borders of its own, and the network sees what a
    window of a larger slice shows it. ``image`` is chosen so that ``target.encode(image, condition)`` is that part of
    the whole slice's residual.

    What is drawn for slice i in epoch e is a function of (seed, e, i) alone.

    Args:
        volumes: items with ``image`` (C, X, Y, Z), the intensities scaled as the network sees them; a slice that is
            smaller than a patch is padded with its least value.
        target: whose degradation makes the coarse slice.
        size: side of a patch in fine pixels, a multiple of the factor.
        seed: of what is drawn.

    Index it with (epoch, index), as :class:`~cgdpm_med.EpochSampler` does, or with an index alone for epoch 0.

    Raises:
        ValueError: for no volumes, or a size that the factor does not divide.
    """

    def __init__(
        self, volumes: Sequence[Mapping[str, Any]], target: ResidualTarget, size: int = 128, seed: int = 0
    ) -> None:
        self.slices = slices_of(volumes)
        self.target, self.size, self.seed = target, size, seed
        if not self.slices:
            raise ValueError("no volumes to take slices from")
        if size % target.factor:
            raise ValueError(f"the size of a patch must be a multiple of {target.factor}, not {size}")

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Tensor]:
        epoch, i = index if isinstance(index, tuple) else (0, index)
        rng = np.random.default_rng(key_seed(self.seed, "patch", epoch, i))
        whole = at_least(_turned(self.slices[i], rng), self.size, self.target.factor)
        corner = [int(rng.integers((n - self.size) // self.target.factor + 1)) for n in whole.shape[1:]]
        image, condition = patch_of(whole, self.target, corner, self.size)
        return {"image": image, "condition": condition}


def patch_of(whole: Tensor, target: ResidualTarget, corner: Sequence[int], size: int) -> tuple[Tensor, Tensor]:
    """A patch whose residual is the whole slice's there, and the coarse slice there.

    Args:
        whole: (C, X, Y), sides that the factor divides.
        corner: first pixel of the patch, in coarse pixels.
        size: of its sides, in fine pixels.

    Returns:
        (C, size, size) and (C, size / factor, size / factor).
    """
    factor, operator = target.factor, target.operator
    y = operator.degrade(whole[None])
    residual = whole[None] - operator.upsample(y)
    y = _cut(y, corner, size // factor)
    residual = _cut(residual, [factor * c for c in corner], size)
    return (operator.upsample(y) + residual)[0], y[0]


def _cut(x: Tensor, corner: Sequence[int], size: int) -> Tensor:
    return x[..., corner[0] : corner[0] + size, corner[1] : corner[1] + size]


def _turned(image: Tensor, rng: np.random.Generator) -> Tensor:
    turned = torch.rot90(image, int(rng.integers(4)), (1, 2))
    return turned.flip(1) if rng.integers(2) else turned


def at_least(image: Tensor, size: int, factor: int) -> Tensor:
    """Pad (C, X, Y) at the end to ``size`` with its least value, then cut what the factor leaves over."""
    pads = [max(0, size - n) for n in image.shape[1:]]
    if any(pads):
        image = torch.nn.functional.pad(image, (0, pads[1], 0, pads[0]), value=float(image.min()))
    return image[:, : image.shape[1] // factor * factor, : image.shape[2] // factor * factor]


class CoarseSlices(Dataset):
    """The middle of slices, and its coarse version: what validation refines.

    Args:
        volumes: as for :class:`CoarsePatches`.
        target: whose degradation makes the coarse slice.
        size: of the middle, in fine pixels, a multiple of the factor.
        every: take every n-th slice.

    Items: ``image``, the coarse slice (C, size / factor, size / factor), and ``label``, the true one (C, size, size).
    """

    def __init__(
        self, volumes: Sequence[Mapping[str, Any]], target: ResidualTarget, size: int = 192, every: int = 1
    ) -> None:
        self.slices = slices_of(volumes)[::every]
        self.target, self.size = target, size

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        whole = at_least(self.slices[index], self.size, 1)
        truth = _cut(whole, [(n - self.size) // 2 for n in whole.shape[1:]], self.size)
        return {"image": self.target.operator.degrade(truth[None])[0], "label": truth}
