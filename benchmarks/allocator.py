"""Freed memory kept by the process (``keep_freed_memory``) against the C library's default: sampling and training.

What the allocator does depends on what the process did before, so every timing is of a fresh process, the two taking
turns.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch

from .harness import ROOT, Claim, Result, Table, console, median, ratio, timed

WAYS = ("default", "kept")
WORK = ("sampling", "training")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16, help="examples of a training step")


def run(arguments: argparse.Namespace) -> Result:
    if arguments.quick:
        arguments.members, arguments.slices, arguments.size, arguments.steps = 2, 1, 32, 1
        arguments.batch, arguments.repeats = 2, 1
    point = {name: getattr(arguments, name) for name in ("members", "slices", "size", "steps", "batch")}
    found: dict[tuple[str, str], list[dict[str, float]]] = {(work, way): [] for work in WORK for way in WAYS}
    for repeat in range(arguments.repeats):
        for (work, way), measured in found.items():
            measured.append(in_fresh_process(work, way, point, arguments.threads))
            console.print(f"  {repeat + 1}/{arguments.repeats}  {work}, {way}: {measured[-1]}")
    claims = []
    for work in WORK:
        default, kept = ([one["seconds"] for one in found[work, way]] for way in WAYS)
        claims.append(ratio(f"{work}: default / memory kept, time", default, kept))
        default, kept = ([one["peak"] for one in found[work, way]] for way in WAYS)
        claims.append(Claim(f"{work}: memory kept / default, peak", median(kept) / median(default), 1.1, at_most=True))
    rows = [
        [f"{work}, {way}", *(f"{median([one[part] for one in measured]):.{places}f}" for part, places in PARTS.items())]
        for (work, way), measured in found.items()
    ]
    columns = ["", "seconds", "pages asked of the system, thousands", "peak MB"]
    return Result(point, claims, [Table("Allocator", columns, rows)], {", ".join(key): found[key] for key in found})


PARTS = {"seconds": 2, "faults": 0, "peak": 0}


def in_fresh_process(work: str, way: str, point: dict[str, int], threads: int | None) -> dict[str, float]:
    """Seconds, thousands of page faults and peak memory in MB of one ensemble or one training step."""
    code = f"from benchmarks.allocator import child; child({work!r}, {way!r}, {json.dumps(point)}, {threads!r})"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def child(work: str, way: str, point: dict[str, int], threads: int | None) -> None:
    """Do the work twice, measure the second time, print it as JSON."""
    from cgdpm_med import keep_freed_memory

    torch.set_num_threads(threads or torch.get_num_threads())
    if way == "kept" and not keep_freed_memory():
        raise RuntimeError("keep_freed_memory has no effect here: it needs glibc")
    step = {"sampling": sampling, "training": training}[work](point)
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    seconds = timed(step)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"seconds": seconds, "faults": (used.ru_minflt - before) / 1e3, "peak": used.ru_maxrss / 1024}))


def sampling(point: dict[str, int]) -> Callable[[], Any]:
    """An ensemble of the shipped network."""
    from .contestants import condition, shipped

    predictor = shipped(members=point["members"], steps=point["steps"])
    y = condition(point["slices"], point["size"], 3)
    return torch.inference_mode()(lambda: predictor.ensemble(y))


def training(point: dict[str, int]) -> Callable[[], Any]:
    """One step of the trainer of ``training``, on the same batch again and again."""
    from .training import examples, fresh_network, our_trainer

    settings = argparse.Namespace(**point, iterations=1, learning_rate=2e-4, device="cpu")
    trainer, _ = our_trainer(fresh_network(), examples(settings), settings, torch.channels_last)

    def step() -> None:
        trainer.state.max_epochs = trainer.state.epoch + 1
        trainer.run()

    return step
