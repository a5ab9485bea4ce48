"""Contact sheets: pictures of several methods beside each other, a row for each image and a heading for each method."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

HEADING = 16  # pixels
GAP = 2


def contact_sheet(columns: Mapping[str, Tensor]) -> Tensor:
    """One sheet, (3, H', W') in [-1, 1], on white.

    Args:
        columns: by heading, batches (B, 3, H, W) or (B, 1, H, W) in [-1, 1]. Those smaller than the largest are
            enlarged pixel by pixel.

    Raises:
        ValueError: without pictures, or for batches of different lengths.
    """
    if not columns or len({len(batch) for batch in columns.values()}) != 1 or not len(next(iter(columns.values()))):
        raise ValueError(f"batches of {[len(batch) for batch in columns.values()]} pictures make no sheet")
    height, width = (max(batch.shape[axis] for batch in columns.values()) for axis in (2, 3))
    tiles = [_column(name, batch, (height, width)) for name, batch in columns.items()]
    return torch.cat(tiles, dim=2)[..., : -GAP or None].clamp(-1, 1)


def _column(name: str, batch: Tensor, size: tuple[int, int]) -> Tensor:
    """The heading above the pictures, (3, HEADING + B (H + GAP), W + GAP)."""
    batch = batch.detach().float().cpu().expand(-1, 3, -1, -1)
    if tuple(batch.shape[2:]) != size:
        batch = F.interpolate(batch, size, mode="nearest")
    pictures = F.pad(batch, (0, GAP, 0, GAP), value=1.0)
    return torch.cat([_heading(name, size[1] + GAP), *pictures], dim=1)


def _heading(name: str, width: int) -> Tensor:
    strip = Image.new("L", (width, HEADING), 255)
    ImageDraw.Draw(strip).text((2, 2), name, fill=0)
    return (2 * torch.from_numpy(np.asarray(strip, np.float32)) / 255 - 1).expand(3, -1, -1)
