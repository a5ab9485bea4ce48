"""Loaded volumes to what a 3D network sees, and its answers back to where they came from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cgdpm_med.data.patches import patch, within
from cgdpm_med.datasets.loading import Loaded
from cgdpm_med.datasets.prepare import resized, scaled
from cgdpm_med.models.description import PatchInput


def resized_volume(volume: Tensor, size: Sequence[int]) -> Tensor:
    """(C, X, Y, Z) with another X, Y and Z, linear, averaging where it becomes coarser."""
    plane = resized(volume, size[:2])
    if plane.shape[3] == size[2]:
        return plane
    rows = plane.flatten(1, 2)[None]
    sides = (rows.shape[2], size[2])
    deep = F.interpolate(rows, sides, mode="bilinear", align_corners=False, antialias=True)
    return deep[0].unflatten(1, plane.shape[1:3])


def working_shape(loaded: Loaded, spacing: Sequence[float]) -> tuple[int, ...]:
    """Working voxels of a volume."""
    sides = zip(loaded.image.shape[1:], loaded.spacing, spacing, strict=True)
    return tuple(max(1, round(n * own / new)) for n, own, new in sides)


def prepare_volume(loaded: Loaded, seen: PatchInput, classes: int, *, padded: bool = False) -> dict[str, Tensor]:
    """``image`` (C, X', Y', Z') in [-1, 1], and ``label``, soft (classes, X', Y', Z'), where there is one.

    Args:
        padded: sides that are shorter than the patch are brought to it; the border goes on, as in training.
    """
    shape = working_shape(loaded, seen.spacing)
    out = {"image": resized_volume(scaled(loaded.image, seen), shape)}
    if loaded.label is not None:
        one_hot = F.one_hot(torch.from_numpy(loaded.label).long(), classes).movedim(-1, 0).float()
        out["label"] = resized_volume(one_hot, shape)
    return {name: at_least(volume, seen.patch) for name, volume in out.items()} if padded else out


def at_least(volume: Tensor, sides: Sequence[int]) -> Tensor:
    """(C, X, Y, Z) about the middle of what is nowhere shorter than ``sides``."""
    size = [max(n, side) for n, side in zip(volume.shape[1:], sides, strict=True)]
    return patch(volume, _starts(volume.shape[1:], size), size)


def _starts(shape: Sequence[int], size: Sequence[int]) -> list[int]:
    return [within(0, side, n) for n, side in zip(shape, size, strict=True)]


def volume_back(members: Tensor, loaded: Loaded, seen: PatchInput) -> Tensor:
    """(K * channels, X', Y', Z') on padded working voxels to (K * channels, X, Y, Z) on the volume's own."""
    shape = working_shape(loaded, seen.spacing)
    starts = [-start for start in _starts(shape, members.shape[1:])]
    return resized_volume(patch(members, starts, shape), loaded.image.shape[1:]).clamp(0, 1)
