"""Against the published recipe, 1000 steps of DDPM for every member: time, and Dice on the validation patients."""

from __future__ import annotations

import argparse

import numpy as np
import torch

from . import validation
from .contestants import condition, shipped
from .harness import Claim, Result, Table, alternate, console, median
from .scale import fit

LITERAL = 1000
OURS = {"method": "dpmpp_2m", "steps": 10}


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
    ours = shipped(members=arguments.members, **OURS).to(device)
    y = condition(arguments.slices, arguments.size, ours.denoiser.network.cond_channels, device)
    work = {"ours": lambda: ours.ensemble(y)}
    for steps in arguments.literal_steps:
        ddpm = shipped(members=arguments.members, method="ddpm", steps=steps).to(device)
        work[f"DDPM, {steps} steps"] = lambda ddpm=ddpm: ddpm.ensemble(y)
    with torch.inference_mode():
        times = alternate(work, arguments.repeats, device)
    ratios, r2s = [], []
    for repeat in range(arguments.repeats):
        seconds = [times[f"DDPM, {steps} steps"][repeat] for steps in arguments.literal_steps]
        slope, offset, r2 = fit(arguments.literal_steps, seconds)
        ratios.append((slope * LITERAL + offset) / times["ours"][repeat])
        r2s.append(r2)
    claims = [
        Claim("1000 steps of DDPM / ours, time", median(ratios), 80.0, (min(ratios), max(ratios)), unit="x"),
        Claim("R2 of DDPM's time against its steps", median(r2s), 0.99),
    ]
    tables = [Table("Seconds", ["sampler", "seconds"], [[name, f"{median(t):.2f}"] for name, t in times.items()])]
    raw: dict[str, object] = {"seconds": times}
    if arguments.dataset_dir is None:
        console.print("  no --dataset-dir: Dice is left out")
    else:
        common = {"members": arguments.dice_members, "guidance_scale": 0.0}
        settings = {"ours": {**OURS, **common}, "DDPM": {"method": "ddpm", "steps": LITERAL, **common}}
        found = validation.paired_dice(settings, arguments, "recipe")
        lost, error = validation.difference(found["DDPM"], found["ours"])
        claims.append(Claim("Dice points lost", lost, 0.3, (lost - 2 * error, lost + 2 * error), at_most=True))
        rows = [
            [name, len(r), f"{np.mean([v['dice'] for v in r]):.2f}", f"{np.mean([v['seconds'] for v in r]):.1f}"]
            for name, r in found.items()
        ]
        columns = ["sampler", "volumes", "Dice %", "seconds a volume, with reading and writing grids"]
        tables.append(Table(f"Validation, {arguments.dice_members} member(s)", columns, rows))
        raw["dice"] = found
    settings = {name: getattr(arguments, name) for name in ("slices", "members", "size", "dice_members", "volumes")}
    return Result({**settings, "ours": OURS}, claims, tables, raw)
