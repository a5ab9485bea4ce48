"""Pictures for people: an image with the outlines of masks, a map of doubt, and several of them with headings."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

TILE = 256
"""Least size in pixels of the longer side of a tile, so that a person sees something."""
HEADING, GAP = 22, 6

Pixels = NDArray[np.uint8]
"""(H, W, 3)."""


def shown(image: ArrayLike) -> Pixels:
    """An image (C, H, W) of any range as grey, or as colours where it has three channels, by percentiles 1 and 99."""
    values = np.asarray(image, np.float32)
    values = values if len(values) == 3 else values[:1].repeat(3, axis=0)
    low, high = np.percentile(values, (1, 99))
    scaled = (values - low) / max(float(high - low), 1e-8)
    return np.moveaxis((255 * scaled.clip(0, 1)).round().astype(np.uint8), 0, -1)


def enlarged(pixels: NDArray[np.uint8], side: int = TILE) -> NDArray[np.uint8]:
    """(H, W, …) by a whole factor, so that its longer side has ``side`` pixels at least, pixels staying square."""
    factor = max(1, -(-side // max(pixels.shape[:2])))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a mask (H, W) with a neighbour outside it; the picture's own edge is no outside."""
    padded = np.pad(mask, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def contoured(image: Pixels, mask: NDArray[np.uint8], colours: Mapping[int, str], side: int = TILE) -> Pixels:
    """An enlarged image with the outline of every class of a mask (H, W) in its colour ``#rrggbb``."""
    picture, large = enlarged(image, side).copy(), enlarged(mask, side)
    for number, colour in colours.items():
        line = outline(large == number)
        thick = line | outline((large == number) & ~line)
        picture[thick] = tuple(bytes.fromhex(colour[1:]))
    return picture


def doubtful(entropy: NDArray[np.float32], side: int = TILE) -> Pixels:
    """An enlarged map of doubt (H, W) in [0, 1], from black to white."""
    grey = (255 * entropy.clip(0, 1)).round().astype(np.uint8)
    return enlarged(grey, side)[..., None].repeat(3, axis=2)


def table_of(
    rows: Sequence[Sequence[Pixels]],
    headings: Sequence[str],
    names: Sequence[str] = (),
    legend: Sequence[tuple[str, str]] = (),
) -> Pixels:
    """Tiles in rows under headings, every row with its name above it, and below all what colours mean.

    Args:
        legend: colour ``#rrggbb`` and name.
    """
    width = max(tile.shape[1] for row in rows for tile in row)
    heights = [max(tile.shape[0] for tile in row) for row in rows]
    lines = HEADING if names else 0
    below = HEADING if legend else 0
    size = (len(headings) * (width + GAP), HEADING + sum(height + lines + GAP for height in heights) + below)
    canvas = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(15)
    for column, heading in enumerate(headings):
        pen.text((column * (width + GAP) + 2, 2), heading, "black", font)
    top = HEADING
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        if names:
            pen.text((2, top + 2), names[number], "black", font)
        for column, tile in enumerate(row):
            canvas.paste(Image.fromarray(tile), (column * (width + GAP), top + lines))
        top += height + lines + GAP
    left = 2.0
    for colour, name in legend:
        pen.rectangle((left, top + 5, left + 12, top + 15), fill=colour)
        pen.text((left + 18, top + 2), name, "black", font)
        left += 36 + pen.textlength(name, font)
    return np.asarray(canvas)


def data_address(pixels: Pixels) -> str:
    """A picture as a PNG inside a page."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")
