"""Against the published recipe, 1000 steps of DDPM for every member: time, and Dice on the validation patients.

Several ways to save steps stand for ours. The targets are held against ten steps of DPM-Solver++ and of DDPM itself.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

from . import validation
from .contestants import condition, network_of, shipped
from .harness import Claim, Result, Table, alternate, console, median, ratio
from .scale import fit

LITERAL = 1000
LITERALLY = "DDPM, 1000 steps"
SHORT: dict[str, dict[str, Any]] = {
    "DDPM, 10 steps": {"method": "ddpm", "steps": 10},
    "DPM-Solver++, 10 steps": {"method": "dpmpp_2m", "steps": 10},
    "DDIM, 10 steps": {"method": "ddim", "steps": 10},
    "DDIM, 4 steps": {"method": "ddim", "steps": 4},
    "DDIM, 2 steps": {"method": "ddim", "steps": 2},
}
HELD = ("DPM-Solver++, 10 steps", "DDPM, 10 steps")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slices", type=int, default=8)
    parser.add_argument("--members", type=int, default=2, help="of the timing; Dice takes --dice-members")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--dice-members", type=int, default=1)
    parser.add_argument("--literal-steps", type=int, nargs="+", default=[10, 20, 40], help="timed steps of DDPM")
    validation.add_options(parser, volumes=10)


def run(arguments: argparse.Namespace) -> Result:
    if arguments.quick:
        arguments.slices, arguments.members, arguments.size, arguments.repeats = 1, 1, 64, 1
        arguments.literal_steps, arguments.dataset_dir = [2, 4, 6], None
    device = arguments.device
    short = {name: shipped(members=arguments.members, **keys).to(device) for name, keys in SHORT.items()}
    y = condition(arguments.slices, arguments.size, network_of(short[HELD[0]]).cond_channels, device)
    work = {name: (lambda model=model: model.ensemble(y)) for name, model in short.items()}
    for steps in arguments.literal_steps:
        ddpm = shipped(members=arguments.members, method="ddpm", steps=steps).to(device)
        work[f"DDPM, {steps} steps"] = lambda ddpm=ddpm: ddpm.ensemble(y)
    with torch.inference_mode():
        times = alternate(work, arguments.repeats, device)
    literal, r2s = [], []
    for repeat in range(arguments.repeats):
        seconds = [times[f"DDPM, {steps} steps"][repeat] for steps in arguments.literal_steps]
        slope, offset, r2 = fit(arguments.literal_steps, seconds)
        literal.append(slope * LITERAL + offset)
        r2s.append(r2)
    claims = [
        ratio(f"1000 steps of DDPM / {name}, time", literal, times[name], 80.0 if name in HELD else None)
        for name in SHORT
    ]
    claims.append(Claim("R2 of DDPM's time against its steps", median(r2s), 0.99))
    tables = [Table("Seconds", ["sampler", "seconds"], [[name, f"{median(t):.2f}"] for name, t in times.items()])]
    raw: dict[str, object] = {"seconds": times}
    if arguments.dataset_dir is None:
        console.print("  no --dataset-dir: Dice is left out")
    else:
        common = {"members": arguments.dice_members, "guidance_scale": 0.0, "shared_first_step": False}
        settings = {LITERALLY: {"method": "ddpm", "steps": LITERAL, **common}}
        settings |= {name: {**keys, **common} for name, keys in SHORT.items()}
        found = validation.paired_dice(settings, arguments, "recipe")
        rows = []
        for name, r in found.items():
            lost, error = validation.difference(found[LITERALLY], r)
            dice, duration = (float(np.mean([v[key] for v in r])) for key in ("dice", "seconds"))
            rows.append(
                [
                    name,
                    len(r),
                    f"{dice:.2f}",
                    "" if name == LITERALLY else f"{lost:+.2f} ± {error:.2f}",
                    f"{duration:.1f}",
                ]
            )
            if name in HELD:
                spread = (lost - 2 * error, lost + 2 * error)
                claims.append(Claim(f"Dice points lost by {name}", lost, 0.3, spread, at_most=True))
        columns = ["sampler", "volumes", "Dice %", "lost, with its standard error", "seconds a volume, grids included"]
        tables.append(Table(f"Validation, {arguments.dice_members} member(s)", columns, rows))
        raw["dice"] = found
    settings = {name: getattr(arguments, name) for name in ("slices", "members", "size", "dice_members", "volumes")}
    return Result({**settings, "short": SHORT}, claims, tables, raw)
