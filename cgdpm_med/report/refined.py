"""The page of a refined picture or volume: before, after and doubt, side by side."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgdpm_med.report.rendering import render_page
from cgdpm_med.studies.outputs import Provenance

VIEW_PIXELS = 320
"""Fine pixels along each side of a view, from the middle of the picture: shrunken, detail could not be judged."""

MOST_DOUBT = 0.1
"""The standard deviation that gets the brightest colour, as a fraction of the range of intensities."""

_COLOUR_MAP = "inferno"


@dataclass(frozen=True, eq=False)
class View:
    """A slice or a picture: what came in, what was made of it, and where the samples differ.

    Attributes:
        title: such as "slice 3".
        before: (H, W) or (H, W, 3) in [0, 1], coarse.
        after: (factor H, factor W) or with three colours, in [0, 1].
        doubt: (factor H, factor W), standard deviation as a fraction of the range, or None for a single sample.
        aspect: height / width of a pixel.
    """

    title: str
    before: NDArray[Any]
    after: NDArray[Any]
    doubt: NDArray[Any] | None = None
    aspect: float = 1.0


def refined_report(
    key: str,
    views: Sequence[View],
    facts: Sequence[tuple[str, str]],
    notes: Sequence[str],
    warning: str,
    origin: Provenance,
) -> str:
    """The page of one input; it shows its key and pixels, and nothing of a file's place or header.

    Args:
        facts: names and values, in words.
        notes: what a reader must know of this input.
        warning: what a reader must know of every result.
        origin: how it was made.
    """
    return render_page(
        "refined.html.j2",
        title=f"{key}: super-resolution",
        key=key,
        warning=warning,
        facts=facts,
        notes=notes,
        views=[_tiles(view) for view in views],
        with_doubt=any(view.doubt is not None for view in views),
        doubt_colours=_doubt_colours(),
        most_doubt=f"{100 * MOST_DOUBT:g}",
        origin=origin,
        task_stylesheet="",
    )


def _tiles(view: View) -> dict[str, Any]:
    factor = view.after.shape[0] // view.before.shape[0]
    window = _middle(view.before.shape, factor)
    fine = tuple(slice(factor * part.start, factor * part.stop) for part in window)
    before = view.before[window].repeat(factor, 0).repeat(factor, 1)
    doubt = None if view.doubt is None else _in_colours(view.doubt[fine])
    return {
        "title": view.title,
        "before": _data_address(before, view.aspect),
        "after": _data_address(view.after[fine], view.aspect),
        "doubt": None if doubt is None else _data_address(doubt, view.aspect),
    }


def _middle(shape: Sequence[int], factor: int) -> tuple[slice, slice]:
    """The coarse pixels that are shown."""
    most = max(VIEW_PIXELS // factor, 1)
    first, second = (slice((n - m) // 2, (n - m) // 2 + m) for n in shape[:2] for m in [min(n, most)])
    return first, second


def _in_colours(doubt: NDArray[Any]) -> NDArray[Any]:
    from matplotlib import colormaps

    return np.asarray(colormaps[_COLOUR_MAP](np.clip(doubt / MOST_DOUBT, 0, 1)))[..., :3]


def _doubt_colours(count: int = 9) -> list[str]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps[_COLOUR_MAP](x)) for x in np.linspace(0, 1, count)]


def _data_address(picture: NDArray[Any], aspect: float) -> str:
    """(H, W) or (H, W, 3) in [0, 1] as a PNG of square pixels."""
    from PIL import Image

    image = Image.fromarray(np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8))
    width, height = image.size
    if aspect > 1:
        height = round(height * aspect)
    else:
        width = round(width / aspect)
    stream = io.BytesIO()
    image.resize((max(width, 1), max(height, 1)), Image.Resampling.NEAREST).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
