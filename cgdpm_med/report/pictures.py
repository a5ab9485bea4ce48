"""Slices as small PNG images inside the page: the image with the contours of the mask, and where the members doubt."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgdpm_med.inference.labels import DEFAULT_LABELS, Labels
from cgdpm_med.inference.segmenter import Segmentation
from cgdpm_med.report.overlay import draw_contours

TILE_PIXELS = 240
MARGIN_MM = 18.0
MOST_ENTROPY = 0.5
"""The entropy that gets the brightest colour."""

_COLOUR_MAP = "inferno"

Window = tuple[slice, slice]


@dataclass(frozen=True)
class Tile:
    """One slice: its index along the last axis, and two images as data addresses."""

    index: int
    contours: str
    doubt: str


def slice_tiles(segmentation: Segmentation, window: Window) -> list[Tile]:
    """Pictures of the slices that :func:`shown_slices` names, cut to ``window``.

    The first array axis runs to the right and the second downwards.
    """
    image = segmentation.volume.data
    grey = tuple(float(q) for q in np.percentile(image[window], (1, 99.5)))
    spacing = segmentation.grid.spacing[:2]
    tiles = []
    for z in shown_slices(segmentation):
        cut = (*window, z)
        plain, mask = image[cut], segmentation.mask[cut]
        tiles.append(
            Tile(
                z,
                _data_address(_draw(plain, grey, spacing, mask=mask, labels=segmentation.labels)),
                _data_address(_draw(plain, grey, spacing, doubt=segmentation.entropy[cut])),
            )
        )
    return tiles


def shown_slices(segmentation: Segmentation) -> list[int]:
    """Slices that any member labels, and one on each side; the middle one where there is none."""
    depth = segmentation.mask.shape[2]
    found = np.flatnonzero((segmentation.mask > 0).any(axis=(0, 1)) | (segmentation.members > 0).any(axis=(0, 1, 2)))
    if not found.size:
        return [depth // 2]
    return list(range(max(int(found[0]) - 1, 0), min(int(found[-1]) + 2, depth)))


def structure_window(segmentations: Iterable[Segmentation]) -> Window:
    """One square of millimetres around every structure in every frame with a margin; all of the plane without any.

    It is cut at the edges of the image, so it may be less than square there.
    """
    segmentations = list(segmentations)
    inside = np.any([(s.mask > 0).any(axis=2) for s in segmentations], axis=0)
    if not inside.any():
        return slice(0, inside.shape[0]), slice(0, inside.shape[1])
    spacing = segmentations[0].grid.spacing[:2]
    ends = [np.flatnonzero(inside.any(axis=1 - axis))[[0, -1]] for axis in (0, 1)]
    half = max((last - first + 1) * d / 2 for (first, last), d in zip(ends, spacing, strict=True)) + MARGIN_MM
    windows = []
    for (first, last), d, size in zip(ends, spacing, inside.shape, strict=True):
        middle = (first + last + 1) / 2
        windows.append(slice(max(round(middle - half / d), 0), min(round(middle + half / d), size)))
    return windows[0], windows[1]


def entropy_colours(count: int = 9) -> list[str]:
    """Colours of entropies from 0 to :data:`MOST_ENTROPY` at equal steps, as ``#rrggbb``."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps[_COLOUR_MAP](x)) for x in np.linspace(0, 1, count)]


def _draw(
    image: NDArray[Any],
    grey: Sequence[float],
    spacing: tuple[float, float],
    *,
    mask: NDArray[Any] | None = None,
    labels: Labels = DEFAULT_LABELS,
    doubt: NDArray[Any] | None = None,
) -> bytes:
    """One slice (X, Y) as a PNG of at most ``TILE_PIXELS`` on each side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = (n * d for n, d in zip(image.shape, spacing, strict=True))
    scale = TILE_PIXELS / max(width, height) / 100
    figure = Figure(figsize=(width * scale, height * scale), dpi=100, facecolor="black")
    FigureCanvasAgg(figure)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    extent = (0.0, width, height, 0.0)
    low, high = grey
    axis.imshow(image.T, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="bilinear", aspect="auto")
    if doubt is not None:
        strength = np.clip(doubt.T / MOST_ENTROPY, 0, 1)
        shade = np.minimum(1.6 * strength, 0.9)
        axis.imshow(strength, cmap=_COLOUR_MAP, vmin=0, vmax=1, alpha=shade, extent=extent, aspect="auto")
    if mask is not None:
        draw_contours(axis, mask, spacing, labels, solid=True)
    axis.set(xlim=(0, width), ylim=(height, 0))
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None}, pil_kwargs={"optimize": True})
    return stream.getvalue()


def _data_address(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
