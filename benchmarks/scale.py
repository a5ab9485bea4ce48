"""Cost against members, steps, slices and pixels: a straight line each."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .contestants import condition, network_of, shipped
from .harness import ROOT, Claim, Result, Table, alternate, median

BASE = {"members": 4, "steps": 4, "size": 128}
VALUES = {
    "members": [4, 8, 16, 32],
    "steps": [2, 4, 8, 16],
    "size": [128, 192, 256, 320],
}
QUICK = {"members": [1, 2, 4], "steps": [1, 2, 4], "slices": [1, 2, 4], "size": [32, 64, 96]}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slices", type=int, default=4, help="fewest; a GPU needs 64 to be full, with the 4 members")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "images" / "scaling.png")


def run(arguments: argparse.Namespace) -> Result:
    base = {**BASE, "slices": arguments.slices}
    values = {**VALUES, "slices": [arguments.slices * n for n in (1, 2, 4, 8)]}
    if arguments.quick:
        base, values = {"members": 2, "steps": 1, "slices": 2, "size": 32}, QUICK
        arguments.repeats, arguments.plot = 1, arguments.output / "quick" / "scaling.png"
    points = {(axis, value): {**base, axis: value} for axis in values for value in values[axis]}
    with torch.inference_mode():
        work = {f"{a} = {v}": ensemble(p, arguments.device) for (a, v), p in points.items()}
        times = alternate(work, arguments.repeats, arguments.device)
    claims, curves = [], {}
    for axis in values:
        x = [value**2 if axis == "size" else value for value in values[axis]]
        seconds = [median(times[f"{axis} = {value}"]) for value in values[axis]]
        slope, offset, r2 = fit(x, seconds)
        name = "pixels" if axis == "size" else axis
        curves[name] = (x, seconds, slope, offset)
        claims.append(Claim(f"R2 of time against {name}", r2, 0.99))
    rows = [
        [name, f"{slope:.3g}", f"{offset:.3g}", f"{offset / max(seconds):.1%}"]
        for name, (_, seconds, slope, offset) in curves.items()
    ]
    plot(curves, arguments.plot)
    columns = ["against", "seconds for each", "seconds at zero", "of the largest"]
    return Result(
        {"base": base, "values": values}, claims, [Table("Straight lines", columns, rows)], {"seconds": times}
    )


def ensemble(point: dict[str, int], device: str) -> Any:
    """A run of the predictor at one point."""
    predictor = shipped(members=point["members"], steps=point["steps"]).to(device)
    y = condition(point["slices"], point["size"], network_of(predictor).cond_channels, device)
    return lambda: predictor.ensemble(y)


def fit(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Slope, offset and R2 of the least-squares line."""
    slope, offset = np.polyfit(x, y, 1)
    residual = np.asarray(y) - (slope * np.asarray(x) + offset)
    spread = np.asarray(y) - np.mean(y)
    return float(slope), float(offset), float(1 - (residual**2).sum() / (spread**2).sum())


def plot(curves: Mapping[str, tuple[Sequence[float], Sequence[float], float, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(12, 3), constrained_layout=True)
    for axis, (name, (x, seconds, slope, offset)) in zip(axes, curves.items(), strict=True):
        line = np.array([0, max(x)])
        axis.plot(line, slope * line + offset, color="0.7")
        axis.plot(x, seconds, "o")
        axis.set(xlabel=name, ylabel="seconds", xlim=(0, None), ylim=(0, None))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
