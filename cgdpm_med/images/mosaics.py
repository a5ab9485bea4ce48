"""Pictures at a smaller scale than they have, on a canvas of their size that other pictures keep full."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cgdpm_med.images.transforms import area_resize


def mosaic(pictures: Sequence[Mapping[str, Any]], i: int, scale: float, rng: np.random.Generator) -> Tensor:
    """Picture i shrunk by area averaging into a random corner, and parts of others, shrunk alike, in what is left.

    A network that has seen faces of one size alone makes malformed ones of another; padding would teach it borders.

    Args:
        pictures: items with ``image``, (C, n, n).
        scale: in (0, 1]. Tiles have round(scale n) pixels on a side: two by two of them down to a scale of one half.

    Returns:
        (C, n, n).
    """
    size = pictures[i]["image"].shape[-1]
    side = max(1, round(scale * size))
    across = math.ceil(size / side)
    corner = [int(place) for place in rng.integers(2, size=2)]  # 0: at the beginning of the axis, 1: at its end
    chosen = rng.integers(len(pictures), size=(across, across))
    chosen[tuple((across - 1) * place for place in corner)] = i
    rows = [torch.cat([_shrunk(pictures[int(k)]["image"], side) for k in row], dim=-1) for row in chosen]
    top, left = ((across * side - size) * place for place in corner)
    return torch.cat(rows, dim=-2)[:, top : top + size, left : left + size]


def _shrunk(image: Any, side: int) -> Tensor:
    return area_resize(torch.as_tensor(image)[None], (side, side))[0]
