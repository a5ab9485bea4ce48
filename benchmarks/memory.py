"""Peak memory of sampling, every point in a fresh process: against members, slices and image size.

Each process loads the shipped network, notes what it holds, samples, and notes its high-water mark. What is left of it
after the condition images, the results and the sampler's fields is the working memory, which the batch of windows
decides. The fields have the size of the image: x_T, x_t, the predictions, the blended sum and what the arithmetic of a
step needs for a moment, ten in all (found with a network that does nothing). The gaps in the heap differ between
processes by a quarter: every point is the median of as many processes as there are repeats. One more process for each
point has the profiler add up what PyTorch's allocator gives out, the tensors without the gaps.

On a GPU, PyTorch's allocator counts its tensors itself, and one process measures every point.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch

from .harness import ROOT, Claim, Result, Table, console, median

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
    processes: dict[str, list[dict[str, float]]] = {}  # of a point; two axes share the one they have in common
    tensors: dict[str, dict[str, float]] = {}
    for (axis, value), point in points.items():
        key = json.dumps(point)
        processes.setdefault(key, []).extend(measured(point, arguments) for _ in range(repeats))
        if torch.device(arguments.device).type == "cpu" and key not in tensors:
            tensors[key] = measured(point, arguments, "tensors")
        console.print(f"  {axis} = {value}: {processes[key][-1]}")
    found: dict[tuple[str, int], dict[str, float]] = {}
    raw_tensors: dict[str, dict[str, float]] = {}
    for (axis, value), point in points.items():
        each = processes[json.dumps(point)]
        found[axis, value] = {part: median([process[part] for process in each]) for part in each[0]}
        if tensors:
            raw_tensors[f"{axis} = {value}"] = tensors[json.dumps(point)]
            found[axis, value]["tensors"] = tensors[json.dumps(point)]["working"]
    claims = []
    parts = {"working": "working memory"}
    if raw_tensors:
        parts["tensors"] = "working memory, tensors alone"
    for part, name in parts.items():
        for axis, chosen in values.items():
            # a point below one full batch needs less: what counts is growth from the first full one on
            full = [
                value
                for value in chosen
                if (value > WINDOW if axis == "size" else value * other(base, axis) >= base["window_batch"])
            ]
            sizes = [found[axis, value][part] for value in full]
            label = f"{name}, {axis} {full[0]} to {full[-1]}"
            claims.append(Claim(label, max(sizes) / sizes[0], TARGET, at_most=True, unit="x"))
    headings = {
        "peak": "peak MB above the idle process",
        "condition": "condition images",
        "results": "results",
        "fields": "fields of the sampler",
        "working": "working memory",
    }
    if raw_tensors:
        headings["tensors"] = "its tensors alone"
    rows = [[axis, value, *(f"{point[part]:.0f}" for part in headings)] for (axis, value), point in found.items()]
    columns = ["varied", "value", *headings.values()]
    raw: dict[str, Any] = {f"{axis} = {value}": processes[json.dumps(point)] for (axis, value), point in points.items()}
    if raw_tensors:
        raw["tensors alone"] = raw_tensors
    return Result({"base": base, "window": WINDOW}, claims, [Table("Peak memory", columns, rows)], raw)


def other(base: dict[str, int], axis: str) -> int:
    """Fields for each unit of ``axis``."""
    return base["slices"] if axis == "members" else base["members"]


def measured(point: dict[str, int], arguments: argparse.Namespace, what: str = "resident") -> dict[str, float]:
    """One point, on a CPU in one process of its own; ``what`` is counted there, "resident" memory or "tensors"."""
    if torch.device(arguments.device).type == "cuda":
        return at_point(point, arguments.device, Allocated(arguments.device))
    code = f"from benchmarks.memory import child; child({json.dumps(point)}, {arguments.threads!r}, {what!r})"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
    )
    return json.loads(done.stdout.splitlines()[-1])


def child(point: dict[str, int], threads: int | None, what: str) -> None:
    """Sample at one point and print the memory it took as JSON."""
    from cgdpm_med import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(threads or torch.get_num_threads())
    print(json.dumps(at_point(point, "cpu", {"resident": Resident, "tensors": Tensors}[what]())))


def at_point(point: dict[str, int], device: str, meter: Meter) -> dict[str, float]:
    """Memory that sampling takes at one point, by what holds it, in MB."""
    from cgdpm_med import SliceEnsembleInferer

    from .contestants import CLASSES, network_of, shipped

    members, size, slices = point["members"], point["size"], point["slices"]
    windowed = size > WINDOW
    predictor = shipped(members=members, steps=point["steps"], max_batch=1 if windowed else point["window_batch"])
    predictor.to(device)
    inferer = SliceEnsembleInferer(1, window=(WINDOW, WINDOW) if windowed else None, window_batch=point["window_batch"])
    volume = torch.randn(1, 1, size, size, slices).to(device)
    with torch.inference_mode():
        x, t, y = torch.zeros(1, CLASSES, 32, 32), torch.zeros(1), torch.zeros(1, 3, 32, 32)
        network_of(predictor)(x.to(device), t.to(device), y.to(device))
        with meter:
            results: Any = inferer(volume, predictor)
    one = 4 * CLASSES * size * size / 2**20
    found = {
        "idle": meter.idle,
        "peak": meter.peak,
        "condition": 4 * network_of(predictor).cond_channels * slices * size * size / 2**20,
        "results": results.nelement() * results.element_size() / 2**20,
        "fields": FIELDS * one * (1 if windowed else min(members * slices, point["window_batch"])),
    }
    found["working"] = found["peak"] - found["condition"] - found["results"] - found["fields"]
    return found


# --- meters: MB before the work (idle) and, above that, at its most (peak) --------------------------------


class Meter(ABC):
    """Measures what is done inside it."""

    idle: float = 0.0
    peak: float = 0.0

    @abstractmethod
    def __enter__(self) -> Meter: ...

    @abstractmethod
    def __exit__(self, *error: object) -> None: ...


class Resident(Meter):
    """The process's resident memory, the heap's gaps included (Linux)."""

    def __enter__(self) -> Resident:
        # what loading has freed goes back to the system: sampling would fill it unseen, here more and there less
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)
        try:  # forget the high-water mark
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self.idle = status("VmRSS")
        except OSError:
            self.idle = high_water()
        return self

    def __exit__(self, *error: object) -> None:
        self.peak = high_water() - self.idle


class Tensors(Meter):
    """What PyTorch's allocator gives out on the CPU and takes back, by the profiler."""

    def __enter__(self) -> Tensors:
        from torch.profiler import ProfilerActivity, profile

        self.profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self.profiler.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.profiler.stop()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            self.profiler.export_chrome_trace(str(path))
            events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
        self.peak = max(e["args"]["Total Allocated"] for e in events if e.get("name") == "[memory]") / 2**20


class Allocated(Meter):
    """The tensors of a GPU, by PyTorch's allocator."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __enter__(self) -> Allocated:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        self.idle = torch.cuda.memory_allocated(self.device) / 2**20
        return self

    def __exit__(self, *error: object) -> None:
        self.peak = torch.cuda.max_memory_allocated(self.device) / 2**20 - self.idle


def high_water() -> float:
    """Highest resident memory so far in MB."""
    return status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def status(name: str) -> float:
    """An entry of /proc/self/status in MB; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:")), 0.0)
