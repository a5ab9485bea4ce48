"""Charts as SVG inside the page, coloured by its style: volumes against time, ejection fractions of a cohort."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from cgdpm_med.apps.cardiac import Estimate, VolumeCurve

_WIDTH = 1000.0
_PLOT = (52.0, _WIDTH - 64.0)  # left and right end of the plotting area


def volume_chart(curve: VolumeCurve, ed: int | None = None, es: int | None = None) -> str:
    """Left and right ventricle in ml against the frame number, with their intervals; ED and ES marked."""
    top, bottom = 24.0, 250.0
    estimates = [*curve.lv, *curve.rv]
    ticks = _ticks(0.0, max((e.upper if e.upper is not None else e.value) or 0.0 for e in estimates))
    x = _scale(curve.frames[0], curve.frames[-1], *_PLOT)
    y = _scale(0.0, ticks[-1], bottom, top)
    parts = [
        f'<line class="axis" x1="{_PLOT[0]:.1f}" x2="{_PLOT[1]:.1f}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        f'<text x="{_PLOT[0] - 8:.1f}" y="{y(v) + 4:.1f}" text-anchor="end">{v:g}{unit}</text>'
        for v, unit in zip(ticks, [""] * (len(ticks) - 1) + [" ml"], strict=True)
    ]
    parts += [f'<text x="{x(n):.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{n}</text>' for n in _few(curve.frames)]
    for name, frame in (("ED", ed), ("ES", es)):
        if frame is not None:
            parts.append(
                f'<line class="mark" x1="{x(frame):.1f}" x2="{x(frame):.1f}" y1="{top}" y2="{bottom}"/>'
                f'<text x="{x(frame):.1f}" y="{top - 9:.1f}" text-anchor="middle">{name}</text>'
            )
    for kind, series in (("rv", curve.rv), ("lv", curve.lv)):
        points = [(x(n), e) for n, e in zip(curve.frames, series, strict=True) if e.value is not None]
        parts += [_band(kind, points, y), _line(kind, points, y)]
    parts += _end_labels(curve, y)
    parts.append(f'<text x="{_PLOT[1]:.1f}" y="{bottom + 36:.1f}" text-anchor="end">frame</text>')
    return _svg(f"Ventricular volumes over {len(curve.frames)} frames", bottom + 42, parts)


def _band(kind: str, points: Sequence[tuple[float, Estimate]], y: _Scale) -> str:
    known = [(px, e.lower, e.upper) for px, e in points if e.lower is not None and e.upper is not None]
    edge = [f"{px:.1f},{y(upper):.1f}" for px, _, upper in known]
    edge += [f"{px:.1f},{y(lower):.1f}" for px, lower, _ in reversed(known)]
    return f'<polygon class="band {kind}" points="{" ".join(edge)}"/>' if known else ""


def _line(kind: str, points: Sequence[tuple[float, Estimate]], y: _Scale) -> str:
    path = " ".join(f"{px:.1f},{y(e.value or 0.0):.1f}" for px, e in points)
    return f'<polyline class="line {kind}" points="{path}"/>'


def _end_labels(curve: VolumeCurve, y: _Scale) -> list[str]:
    """The names beside the ends of the curves, kept apart."""
    heights = {"LV": y(curve.lv[-1].value or 0.0), "RV": y(curve.rv[-1].value or 0.0)}
    low, high = sorted(heights, key=heights.__getitem__)
    heights[high] = max(heights[high], heights[low] + 15)
    return [f'<text class="name" x="{_PLOT[1] + 8:.1f}" y="{h + 4:.1f}">{name}</text>' for name, h in heights.items()]


def ejection_chart(estimates: Sequence[tuple[str, Estimate]]) -> str:
    """Left-ventricular ejection fraction of each case with its interval, from the lowest to the highest."""
    known = sorted(
        ((name, e, e.value) for name, e in estimates if e.value is not None), key=lambda item: (item[2], item[0])
    )
    if not known:
        return ""
    row, top, left = 22.0, 10.0, 200.0
    low = min(0.0, *(e.lower if e.lower is not None else v for _, e, v in known))
    x = _scale(low, 100.0, left, _WIDTH - 24)
    bottom = top + row * len(known)
    parts = [
        f'<line class="axis" x1="{x(v):.1f}" x2="{x(v):.1f}" y1="{top}" y2="{bottom:.1f}"/>'
        f'<text x="{x(v):.1f}" y="{bottom + 17:.1f}" text-anchor="middle">{v} %</text>'
        for v in range(0, 101, 20)
    ]
    for index, (name, e, value) in enumerate(known):
        y = top + row * (index + 0.5)
        short = name if len(name) <= 26 else f"{name[:25]}…"
        full = "" if short == name else f"<title>{escape(name)}</title>"
        parts.append(
            f'<text class="name" x="{left - 14}" y="{y + 4:.1f}" text-anchor="end">{full}{escape(short)}</text>'
        )
        if e.lower is not None and e.upper is not None:
            ends = f'x1="{x(e.lower):.1f}" x2="{x(e.upper):.1f}" y1="{y:.1f}" y2="{y:.1f}"'
            parts.append(f'<line class="whisker lv" {ends}/>')
        parts.append(f'<circle class="dot lv" cx="{x(value):.1f}" cy="{y:.1f}" r="4"/>')
    return _svg(f"Left-ventricular ejection fraction of {len(known)} studies", bottom + 24, parts)


class _Scale:
    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.start = low, start
        self.slope = (end - start) / ((high - low) or 1.0)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) * self.slope


def _scale(low: float, high: float, start: float, end: float) -> _Scale:
    return _Scale(low, high, start, end)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from ``low`` to the first at or above ``high``."""
    from matplotlib.ticker import MaxNLocator

    return [float(v) for v in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high or 1.0)]


def _few(frames: Sequence[int], most: int = 12) -> Sequence[int]:
    return frames[:: -(-len(frames) // most)]


def _svg(label: str, height: float, parts: Sequence[str]) -> str:
    content = "\n".join(part for part in parts if part)
    head = f'<svg viewBox="0 0 {_WIDTH:g} {height:g}" role="img" aria-label="{escape(label)}">'
    return f'<div class="scroll">{head}\n{content}\n</svg></div>'
