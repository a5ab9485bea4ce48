"""Charts as SVG inside the page, coloured by its style: volumes against time, ejection fractions of a cohort."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cgdpm_med.heart.function import VolumeCurve
from cgdpm_med.metrics.volumetry import Estimate
from cgdpm_med.report.rendering import render

TEMPLATES = "cgdpm_med.heart"
"""The package whose folder ``templates`` holds them."""

_WIDTH = 1000
_LEFT, _RIGHT = 52.0, _WIDTH - 64.0  # ends of the plotting area of the curves
_TOP, _BOTTOM = 24.0, 250.0
_NAME_HEIGHT = 15.0
_LONGEST_NAME = 26

Scale = Callable[[float], float]
"""From a quantity to its place in the view box."""


# --- volumes against time ---------------------------------------------------------------------------------------------


def volume_chart(curve: VolumeCurve, phases: Mapping[str, int] | None = None) -> str:
    """Left and right ventricle in ml against the frame number, with their intervals; ED and ES marked.

    Args:
        phases: number of each frame to mark, by what is written there.
    """
    ticks = _ticks(max((e.upper if e.upper is not None else e.value) or 0.0 for e in (*curve.lv, *curve.rv)))
    x = _scale(curve.frames[0], curve.frames[-1], _LEFT, _RIGHT)
    y = _scale(0.0, ticks[-1], _BOTTOM, _TOP)
    labels = [f"{volume:g}" for volume in ticks[:-1]] + [f"{ticks[-1]:g} ml"]
    return render(
        "volume_chart.html.j2",
        TEMPLATES,
        width=_WIDTH,
        height=f"{_BOTTOM + 42:g}",
        count=len(curve.frames),
        left=_LEFT,
        right=_RIGHT,
        top=_TOP,
        bottom=_BOTTOM,
        volumes=[(y(volume), label) for volume, label in zip(ticks, labels, strict=True)],
        frames=[(x(frame), frame) for frame in _few(curve.frames)],
        marks=[(x(frame), name) for name, frame in (phases or {}).items()],
        curves={kind: _curve(curve.frames, of, x, y) for kind, of in (("rv", curve.rv), ("lv", curve.lv))},
        ends=_end_labels(curve, y),
    )


def _curve(frames: Sequence[int], estimates: Sequence[Estimate], x: Scale, y: Scale) -> dict[str, Any]:
    """Points of the line, and of the outline of the band around it."""
    known = [(x(frame), e) for frame, e in zip(frames, estimates, strict=True) if e.value is not None]
    ends = [(px, y(e.lower), y(e.upper)) for px, e in known if e.lower is not None and e.upper is not None]
    band = [(px, upper) for px, _, upper in ends] + [(px, lower) for px, lower, _ in reversed(ends)]
    return {"line": [(px, y(e.value or 0.0)) for px, e in known], "band": band}


def _end_labels(curve: VolumeCurve, y: Scale) -> list[tuple[str, float]]:
    """The names beside the ends of the curves, kept apart."""
    heights = {"LV": y(curve.lv[-1].value or 0.0), "RV": y(curve.rv[-1].value or 0.0)}
    low, high = sorted(heights, key=heights.__getitem__)
    heights[high] = max(heights[high], heights[low] + _NAME_HEIGHT)
    return list(heights.items())


# --- ejection fractions -----------------------------------------------------------------------------------------------


def ejection_chart(estimates: Sequence[tuple[str, Estimate]]) -> str:
    """Left-ventricular ejection fraction of each case with its interval, from the lowest to the highest."""
    known = sorted(
        ((name, e, e.value) for name, e in estimates if e.value is not None), key=lambda item: (item[2], item[0])
    )
    if not known:
        return ""
    row_height, top, left = 22.0, 10.0, 200.0
    low = min(0.0, *(e.lower if e.lower is not None else value for _, e, value in known))
    x = _scale(low, 100.0, left, _WIDTH - 24)
    y = _scale(-0.5, len(known) - 0.5, top, top + row_height * len(known))
    return render(
        "ejection_chart.html.j2",
        TEMPLATES,
        width=_WIDTH,
        height=f"{top + row_height * len(known) + 24:g}",
        left=left,
        top=top,
        bottom=top + row_height * len(known),
        ticks=[(x(percent), percent) for percent in range(0, 101, 20)],
        rows=[_ejection_row(name, e, x(value), y(place), x) for place, (name, e, value) in enumerate(known)],
    )


def _ejection_row(name: str, estimate: Estimate, x: float, y: float, scale: Scale) -> dict[str, Any]:
    lower, upper = estimate.lower, estimate.upper
    return {
        "name": name,
        "short": name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…",
        "x": x,
        "y": y,
        "interval": None if lower is None or upper is None else (scale(lower), scale(upper)),
    }


# --- axes -------------------------------------------------------------------------------------------------------------


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    slope = (end - start) / ((high - low) or 1.0)
    return lambda value: start + (value - low) * slope


def _ticks(high: float) -> list[float]:
    """Round numbers from 0 to the first at or above ``high``."""
    from matplotlib.ticker import MaxNLocator

    return [float(v) for v in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(0.0, high or 1.0)]


def _few(frames: Sequence[int], most: int = 12) -> Sequence[int]:
    return frames[:: -(-len(frames) // most)]
