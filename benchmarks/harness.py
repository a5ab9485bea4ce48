"""What every benchmark shares: alternating timings in one process, claims against targets, results as JSON."""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from cgdpm_med.files import atomic_write
from cgdpm_med.runtime.precision import bfloat16_is_fast

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "runs" / "benchmarks"
console = Console(highlight=False, soft_wrap=True)
Times = dict[str, list[float]]


@dataclass
class Claim:
    """A measured number against its target; without a target it is told for information.

    Attributes:
        spread: lowest and highest of the repeats, where there were some.
        at_most: whether smaller is better.
    """

    name: str
    value: float
    target: float | None = None
    spread: tuple[float, float] | None = None
    at_most: bool = False
    unit: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target


@dataclass
class Table:
    """Rows of text and numbers under headings."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass
class Result:
    """What a benchmark found."""

    settings: dict[str, Any]
    claims: list[Claim]
    tables: list[Table] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Options of every benchmark."""
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to see that it runs; writes to --output/quick"
    )
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU; by default PyTorch's own choice")
    parser.add_argument("--repeats", type=int, default=5, help="alternating repeats of each timing")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the JSON files")


def alternate(
    contestants: Mapping[str, Callable[[], Any]],
    repeats: int,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
    *,
    warm_up: bool = True,
) -> Times:
    """Seconds of each contestant, one after the other in every repeat, so that a slow minute hits all of them.

    ``clock`` may be :func:`time.process_time`, for CPU seconds where other work shares the cores.

    A round before warms up, unless that was done already. On a GPU it calls what takes less than a second twice:
    evaluations are recorded when they come for the second time.
    """
    times: Times = {name: [] for name in contestants}
    for repeat in range(-1 if warm_up else 0, repeats):
        for name, contestant in contestants.items():
            seconds = timed(contestant, device, clock)
            if repeat < 0 and device.startswith("cuda") and seconds < 1:
                seconds = timed(contestant, device, clock)
            if repeat >= 0:
                times[name].append(seconds)
            label = "warm-up" if repeat < 0 else f"{repeat + 1}/{repeats}"
            console.print(f"  {label}  {name}: {seconds:.3f} s")
    return times


def timed(work: Callable[[], Any], device: str = "cpu", clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that ``work`` takes, the device's queue emptied on both sides."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = clock()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return clock() - start


def ratio(
    name: str, slow: Sequence[float], fast: Sequence[float], target: float | None = None, at_most: bool = False
) -> Claim:
    """Median of slow / fast over the repeats, with the extremes of the single repeats."""
    ratios = [s / f for s, f in zip(slow, fast, strict=True)]
    return Claim(name, statistics.median(ratios), target, (min(ratios), max(ratios)), at_most, "x")


def median(times: Sequence[float]) -> float:
    """Of the repeats."""
    return statistics.median(times)


def environment(device: str) -> dict[str, Any]:
    """Hardware and versions."""
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "bfloat16 in hardware": bfloat16_is_fast(torch.device(device)),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "monai", "numpy", "cgdpm-med") if installed(name)},
    }


def installed(package: str) -> bool:
    """Whether a distribution of that name is there."""
    try:
        version(package)
    except Exception:
        return False
    return True


def processor() -> str:
    """Name of the CPU, and what of it matters here."""
    name = platform.processor() or platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return name
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in lines.items()}
    extensions = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in facts.get("flags", "")]
    return f"{facts.get('model name', name)} ({', '.join(extensions)})"


def save(name: str, result: Result, arguments: argparse.Namespace, seconds: float) -> Path:
    """Write ``<name>.json``; a quick run's goes into a folder of its own."""
    folder = arguments.output / "quick" if arguments.quick else arguments.output
    document = {
        "name": name,
        "quick": arguments.quick,
        "seconds": round(seconds, 1),
        "repeats": arguments.repeats,
        "device": arguments.device,
        "environment": environment(arguments.device),
        **asdict(result),
    }
    for claim, entry in zip(result.claims, document["claims"], strict=True):
        entry["passed"] = claim.passed
    path = folder / f"{name}.json"
    with atomic_write(path) as file:
        file.write((json.dumps(finite(document), indent=1, default=str) + "\n").encode())
    return path


def finite(thing: Any) -> Any:
    """The same with numbers that JSON has no word for as None, and floats to six digits."""
    if isinstance(thing, Mapping):
        return {key: finite(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [finite(value) for value in thing]
    if isinstance(thing, float):
        return float(f"{thing:.6g}") if math.isfinite(thing) else None
    return thing


class Journal:
    """Numbers of a long run by key, kept in a file as they come, so that the same command goes on where it stopped.

    Args:
        path: of the file.
        settings: of the run; a journal of other settings is begun anew.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, json.loads(json.dumps(settings, default=str))
        self.entries: dict[str, Any] = {}
        if path.exists():
            saved = json.loads(path.read_text(encoding="utf-8"))
            if saved["settings"] == self.settings:
                self.entries = saved["entries"]

    def get(self, key: str, compute: Callable[[], Any]) -> Any:
        """The entry, computed and written when it is not there."""
        if key not in self.entries:
            self.entries[key] = compute()
            with atomic_write(self.path) as file:
                file.write(json.dumps({"settings": self.settings, "entries": self.entries}).encode())
        return self.entries[key]
