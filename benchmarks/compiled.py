"""torch.compile: what it gives, and from how many volumes on it repays its first call.

On a GPU what the recording of CUDA graphs gives, without compiling and with it.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from typing import Any

import torch

from cgdpm_med import keep_freed_memory

from .contestants import condition, shipped
from .harness import Claim, Result, Table, alternate, console, median, ratio, timed


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--slices", type=int, default=10)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4)


def run(arguments: argparse.Namespace) -> Result:
    if arguments.quick:
        arguments.members, arguments.slices, arguments.size, arguments.steps, arguments.repeats = 1, 1, 32, 1, 1
    keep_freed_memory()  # as the command does
    common = {"members": arguments.members, "steps": arguments.steps}
    if torch.device(arguments.device).type == "cuda":
        predictors = {
            "eager": shipped(**common, cuda_graphs=False),
            "CUDA graphs": shipped(**common),
            "compiled, CUDA graphs": shipped(**common, compile=True),
        }
    else:
        predictors = {"eager": shipped(**common), "compiled": shipped(**common, compile=True)}
    for predictor in predictors.values():
        predictor.to(arguments.device)
    modes = [name for name in predictors if name != "eager"]
    y = condition(arguments.slices, arguments.size, 3, arguments.device)
    work = {name: (lambda predictor=predictor: predictor.ensemble(y)) for name, predictor in predictors.items()}
    first: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as cache, torch.inference_mode():
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # what an earlier run compiled is not there
        for name in modes:
            first[name] = timed(work[name], arguments.device)
            console.print(f"  first call, {name}: {first[name]:.1f} s")
        times = alternate(work, arguments.repeats, arguments.device)
        apart = {name: float((work["eager"]() - work[name]()).abs().max()) for name in modes}
    claims, rows = [], [["eager", f"{median(times['eager']):.3f}", "", ""]]
    for name in modes:
        saved = median(times["eager"]) - median(times[name])
        volumes = (first[name] - median(times[name])) / saved if saved > 0 else math.inf
        claims.append(ratio(f"eager / {name}, time of a volume", times["eager"], times[name]))
        claims.append(Claim(f"volumes of one size from which {name} repays", volumes))
        rows.append([name, f"{median(times[name]):.3f}", f"{first[name]:.1f}", f"{apart[name]:.3g}"])
    columns = ["", "seconds a volume", "first call, seconds", "largest difference of a probability"]
    settings = {name: getattr(arguments, name) for name in ("members", "slices", "size", "steps")}
    raw: dict[str, Any] = {"seconds": times, "first": first}
    return Result(settings, claims, [Table("torch.compile", columns, rows)], raw)
