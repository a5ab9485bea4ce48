"""bfloat16 against float32: Dice on the validation patients, and time; when precision="auto" chooses which."""

from __future__ import annotations

import argparse

import numpy as np
import torch

from cgdpm_med import autocast_dtype

from . import validation
from .contestants import condition, shipped
from .harness import Claim, Result, Table, alternate, console, median, ratio


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    validation.add_options(parser, volumes=20)


def run(arguments: argparse.Namespace) -> Result:
    size = 128
    if arguments.quick:
        arguments.members, arguments.steps, arguments.repeats, size = 2, 1, 1, 64
        arguments.dataset_dir = None
    common = {"members": arguments.members, "steps": arguments.steps}
    y = condition(4, size, 3, arguments.device)
    models = {p: shipped(precision=p, **common).to(arguments.device) for p in ("float32", "bfloat16")}
    work = {p: (lambda model=model: model.ensemble(y)) for p, model in models.items()}
    with torch.inference_mode():
        times = alternate(work, arguments.repeats, arguments.device)
        apart = (models["float32"].ensemble(y) - models["bfloat16"].ensemble(y)).abs()
    chosen = str(autocast_dtype(torch.device(arguments.device))).removeprefix("torch.")
    faster = median(times["float32"]) > median(times["bfloat16"])
    claims = [
        ratio("float32 / bfloat16, time", times["float32"], times["bfloat16"]),
        Claim("auto chooses the faster one (1: yes)", float((chosen == "bfloat16") == faster), 1.0),
    ]
    rows = [["probabilities of random images: mean difference", f"{apart.mean():.4f}"], ["auto chooses", chosen]]
    tables = [Table("Precision", ["", ""], rows)]
    raw: dict[str, object] = {"seconds": times}
    if arguments.dataset_dir is None:
        console.print("  no --dataset-dir: Dice is left out")
    else:
        found = validation.paired_dice({p: {"precision": p, **common} for p in models}, arguments, "precision")
        change, error = validation.difference(found["bfloat16"], found["float32"])
        spread = (abs(change) - 2 * error, abs(change) + 2 * error)
        claims.append(Claim("Dice points between bfloat16 and float32", abs(change), 0.1, spread, at_most=True))
        rows = [[p, str(len(r)), f"{np.mean([v['dice'] for v in r]):.3f}"] for p, r in found.items()]
        tables.append(Table("Validation", ["precision", "volumes", "Dice %"], rows))
        raw["dice"] = found
    return Result({**common, "volumes": arguments.volumes}, claims, tables, raw)
