"""torch.compile: what it gives, and from how many volumes on it repays its first call."""

from __future__ import annotations

import argparse
import math

import torch

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
    common = {"members": arguments.members, "steps": arguments.steps}
    eager, static = (shipped(**common).to(arguments.device) for _ in range(2))
    static.denoiser.compile(dynamic=False)
    y = condition(arguments.slices, arguments.size, 3, arguments.device)
    with torch.inference_mode():
        first = timed(lambda: static.ensemble(y), arguments.device)
        console.print(f"  first call, compiling: {first:.1f} s")
        work = {"eager": lambda: eager.ensemble(y), "compiled": lambda: static.ensemble(y)}
        times = alternate(work, arguments.repeats, arguments.device)
        apart = float((eager.ensemble(y) - static.ensemble(y)).abs().max())
    saved = median(times["eager"]) - median(times["compiled"])
    volumes = (first - median(times["compiled"])) / saved if saved > 0 else math.inf
    claims = [
        ratio("eager / compiled, time of a volume", times["eager"], times["compiled"]),
        Claim("volumes of one size from which compiling repays", volumes),
    ]
    rows = [
        ["eager, seconds a volume", f"{median(times['eager']):.2f}"],
        ["compiled, seconds a volume", f"{median(times['compiled']):.2f}"],
        ["first call, seconds", f"{first:.1f}"],
        ["largest difference of a probability", f"{apart:.3g}"],
    ]
    settings = {name: getattr(arguments, name) for name in ("members", "slices", "size", "steps")}
    return Result(settings, claims, [Table("torch.compile", ["", ""], rows)], {"seconds": times, "first": first})
