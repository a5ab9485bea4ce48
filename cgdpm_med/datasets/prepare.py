"""Loaded images to what the network sees, and its answers back to where they came from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cgdpm_med.datasets.loading import Loaded
from cgdpm_med.models.description import PatchInput, SliceInput


def scaled(image: NDArray[np.float32], seen: SliceInput | PatchInput) -> Tensor:
    """(C, X, Y, Z) intensities to [-1, 1], by the input's rule."""
    if seen.intensity == "as it is":
        return torch.from_numpy(image)
    ends: Sequence[Sequence[float]] = seen.window
    if seen.intensity == "percentiles":
        ends = [np.percentile(channel, (1, 99)).tolist() for channel in image]
    pairs = torch.tensor([[low, high] for low, high in ends], dtype=torch.float32)
    low, high = (pairs[:, n].reshape(-1, 1, 1, 1) for n in range(2))
    return (2 * (torch.from_numpy(image) - low) / (high - low).clamp(min=1e-8) - 1).clamp(-1, 1)


def resized(volume: Tensor, size: Sequence[int]) -> Tensor:
    """(C, X, Y, Z) with another X and Y, linear, averaging where it becomes coarser."""
    if tuple(volume.shape[1:3]) == tuple(size):
        return volume
    slices = volume.movedim(-1, 0)
    return F.interpolate(slices, tuple(size), mode="bilinear", align_corners=False, antialias=True).movedim(0, -1)


def working_size(loaded: Loaded, spacing: float) -> tuple[int, int]:
    """Working pixels of an image in plane."""
    x, y = (max(1, round(n * s / spacing)) for n, s in zip(loaded.image.shape[1:3], loaded.spacing[:2], strict=True))
    return x, y


def centred(volume: Tensor, size: Sequence[int], values: Sequence[float]) -> Tensor:
    """(C, X, Y, Z) padded with a value for each channel, or cropped, about the centre to X, Y of ``size``."""
    out = torch.tensor(values, dtype=volume.dtype).reshape(-1, 1, 1, 1).repeat(1, *size, volume.shape[-1])
    source, target = zip(*(_overlap(n, m) for n, m in zip(volume.shape[1:3], size, strict=True)), strict=True)
    out[(slice(None), *target)] = volume[(slice(None), *source)]
    return out


def _overlap(here: int, there: int) -> tuple[slice, slice]:
    shared = min(here, there)
    first, second = (here - shared) // 2, (there - shared) // 2
    return slice(first, first + shared), slice(second, second + shared)


def padded_size(size: Sequence[int], multiple: int) -> tuple[int, ...]:
    """The next multiples."""
    return tuple(math.ceil(n / multiple) * multiple for n in size)


def prepare(
    loaded: Loaded, seen: SliceInput, classes: int, *, multiple: int = 1, field: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """``image`` (C, X', Y', Z) in [-1, 1], and ``label``, soft (classes, X', Y', Z), where there is one.

    Args:
        multiple: of the sides, which are padded to it.
        field: sides in place of what the network is shown: the image's own, or the input's region where that is less.
    """
    size = working_size(loaded, seen.spacing)
    sides = _shown(padded_size(size, multiple), seen.region) if field is None else tuple(field)
    image = resized(scaled(loaded.image, seen), size)
    out = {"image": centred(image, sides, [-1.0] * len(image))}
    if loaded.label is not None:
        one_hot = F.one_hot(torch.from_numpy(loaded.label).long(), classes).movedim(-1, 0).float()
        out["label"] = centred(resized(one_hot, size), sides, [1.0] + [0.0] * (classes - 1))
    return out


def _shown(size: Sequence[int], region: Sequence[int]) -> tuple[int, ...]:
    return tuple(map(min, size, region)) if region else tuple(size)


def back(members: Tensor, loaded: Loaded, seen: SliceInput, channels: int) -> Tensor:
    """(K * channels, X', Y', Z) on padded working pixels to (K * channels, X, Y, Z) on the image's own."""
    background = [1.0] + [0.0] * (channels - 1) if channels > 1 else [0.0]
    values = background * (len(members) // channels)
    inside = centred(members, working_size(loaded, seen.spacing), values)
    return resized(inside, loaded.image.shape[1:3]).clamp(0, 1)


def hard_labels(item: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The item with its most probable labels, (1, X, Y, Z)."""
    return {**item, "label": item["label"].argmax(dim=0, keepdim=True)}
