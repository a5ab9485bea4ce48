"""Peak memory of sampling, every point in a fresh process: against members, slices and image size.

Each process loads the shipped network, notes what it holds, samples, and notes its high-water mark. What is left of it
after the condition images, the results and the sampler's fields is the working memory, which the batch of windows
decides. The fields have the size of the image: x_T, x_t, the predictions, the blended sum and what the arithmetic of a
step needs for a moment, ten in all (found with a network that does nothing). The gaps in the heap differ between
processes by a tenth and more: every point is the median of as many processes as there are repeats.

On a GPU, PyTorch's allocator counts its tensors exactly, and one process measures every point.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from .harness import Claim, Result, Table, console, median

WINDOW = 128
BASE = {"members": 8, "slices": 1, "size": WINDOW}
VALUES = {"members": [1, 8, 16, 64], "slices": [1, 2, 8, 32], "size": [128, 512, 2048]}
QUICK = {"members": [2, 4], "size": [128, 256]}
TARGET = 1.15  # the largest point's working memory against the smallest's
FIELDS = 10  # of the target's size that a sampler step holds


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--window-batch", type=int, default=8, help="fields or windows in one evaluation")


def run(arguments: argparse.Namespace) -> Result:
    values = QUICK if arguments.quick else VALUES
    base = {**BASE, "window_batch": 2 if arguments.quick else arguments.window_batch, "steps": arguments.steps}
    points = {(axis, value): {**base, axis: value} for axis in values for value in values[axis]}
    for (axis, _), point in points.items():
        if axis == "size":  # one member: a large image is long enough
            point["members"] = 1
    repeats = 1 if arguments.quick else arguments.repeats
    processes: dict[tuple[str, int], list[dict[str, float]]] = {}
    found: dict[tuple[str, int], dict[str, float]] = {}
    for (axis, value), point in points.items():
        processes[axis, value] = each = [measured(point, arguments) for _ in range(repeats)]
        found[axis, value] = {part: median([process[part] for process in each]) for part in each[0]}
        console.print(f"  {axis} = {value}: {found[axis, value]}")
    claims = []
    for axis, chosen in values.items():
        working = [found[axis, value]["working"] for value in chosen]
        # a point below one full batch needs less: what counts is growth from the first full one on
        full = [
            w
            for w, v in zip(working, chosen, strict=True)
            if (v > WINDOW if axis == "size" else v * other(base, axis) >= base["window_batch"])
        ]
        growth = max(full) / full[0]
        label = f"working memory, {axis} {chosen[-len(full)]} to {chosen[-1]}"
        claims.append(Claim(label, growth, TARGET, at_most=True, unit="x"))
    rows = [
        [axis, value, *(f"{point[part]:.0f}" for part in ("peak", "condition", "results", "fields", "working"))]
        for (axis, value), point in found.items()
    ]
    columns = [
        "varied",
        "value",
        "peak MB above the idle process",
        "condition images",
        "results",
        "fields of the sampler",
        "working memory",
    ]
    raw = {f"{axis} = {value}": each for (axis, value), each in processes.items()}
    return Result({"base": base, "window": WINDOW}, claims, [Table("Peak memory", columns, rows)], raw)


def other(base: dict[str, int], axis: str) -> int:
    """Fields for each unit of ``axis``."""
    return base["slices"] if axis == "members" else base["members"]


def measured(point: dict[str, int], arguments: argparse.Namespace) -> dict[str, float]:
    """One point, on a CPU in one process of its own."""
    if torch.device(arguments.device).type == "cuda":
        return at_point(point, arguments.device)
    scripts = Path(__file__).resolve().parents[1]
    code = f"from benchmarks.memory import child; child({json.dumps(point)}, {arguments.threads!r})"
    path = os.pathsep.join([str(scripts), str(scripts.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
    )
    return json.loads(done.stdout.splitlines()[-1])


def child(point: dict[str, int], threads: int | None) -> None:
    """Sample at one point and print the memory it took as JSON."""
    from cgdpm_med import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(threads or torch.get_num_threads())
    print(json.dumps(at_point(point, "cpu")))


def at_point(point: dict[str, int], device: str) -> dict[str, float]:
    """Memory that sampling takes at one point, by what holds it, in MB."""
    from cgdpm_med import SliceEnsembleInferer

    from .contestants import CLASSES, shipped

    members, size, slices = point["members"], point["size"], point["slices"]
    windowed = size > WINDOW
    predictor = shipped(members=members, steps=point["steps"], max_batch=1 if windowed else point["window_batch"])
    predictor.to(device)
    inferer = SliceEnsembleInferer(1, window=(WINDOW, WINDOW) if windowed else None, window_batch=point["window_batch"])
    volume = torch.randn(1, 1, size, size, slices).to(device)
    with torch.inference_mode():
        x, t, y = torch.zeros(1, CLASSES, 32, 32), torch.zeros(1), torch.zeros(1, 3, 32, 32)
        predictor.denoiser.network(x.to(device), t.to(device), y.to(device))
        idle = reset_peak(device)
        results: Any = inferer(volume, predictor)
    one = 4 * CLASSES * size * size / 2**20
    found = {
        "idle": idle,
        "peak": peak(device) - idle,
        "condition": 4 * predictor.denoiser.network.cond_channels * slices * size * size / 2**20,
        "results": results.nelement() * results.element_size() / 2**20,
        "fields": FIELDS * one * (1 if windowed else min(members * slices, point["window_batch"])),
    }
    found["working"] = found["peak"] - found["condition"] - found["results"] - found["fields"]
    return found


def reset_peak(device: str) -> float:
    """Forget the high-water mark where the system can (Linux); what the process holds now, in MB."""
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return peak(device)
    return status("VmRSS")


def peak(device: str) -> float:
    """High-water mark in MB: of the resident memory, or of a GPU's tensors."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def status(name: str) -> float:
    """An entry of /proc/self/status in MB; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), 0.0)
