#!/usr/bin/env python3
"""Sampling and training of two checkouts against their peers, at the same time on one core, in CPU seconds.

git worktree add --detach ../old 3d74f76
python scripts/commit_ratios.py ../old .

The sub-benchmarks peer, training and efficiency run in a process for each checkout. Both processes are pinned to
core 0, so that they take turns many times a second and meet the same machine. CPU seconds leave out what others run.
Sizes are small: the ratios of one checkout are to be compared with those of the other, not with benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

OPTIONS = {
    "peer": "--members 2 --slices 2 --size 64 --steps 2 --by-volume --ladder-steps 0 --repeats 5",
    "training": "--batch 2 --size 64 --iterations 2 --repeats 5",
    "efficiency": "--members 2 --slices 2 --size 64 --steps 2 --repeats 5",
}


def run_one(root: Path) -> None:
    """All three in this process, with the package and the benchmarks of one checkout; the last line is JSON."""
    time.perf_counter = time.process_time  # what the harness reads
    sys.path[:0] = [str(root), str(root / "scripts")]  # version 0.1 has its benchmarks there
    import torch

    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name, options in OPTIONS.items():
        module, harness = import_module(f"benchmarks.{name}"), import_module("benchmarks.harness")
        if name == "efficiency":  # what is told for information alone
            module.by_batch, module.profiled = (lambda _: []), (lambda *_: [])  # type: ignore[attr-defined]
        parser = argparse.ArgumentParser()
        module.add_options(parser)
        harness.add_common_options(parser)
        arguments = parser.parse_args([*options.split(), "--output", os.environ["COMMIT_RATIOS_OUTPUT"]])
        result = module.run(arguments)
        found[name] = {
            "claims": {claim.name: [claim.value, claim.spread] for claim in result.claims},
            "seconds": result.raw.get("seconds", {"sampling": result.raw.get("sampling")}),
        }
    print(json.dumps(found))


def start(root: Path, output: Path) -> subprocess.Popen[str]:
    """One checkout's process on core 0."""
    output.mkdir(parents=True, exist_ok=True)
    where = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "COMMIT_RATIOS_OUTPUT": str(output)}
    command = ["taskset", "-c", "0", sys.executable, str(Path(__file__).resolve()), "--one", str(root)]
    return subprocess.Popen(command, env=os.environ | where, cwd=root, stdout=subprocess.PIPE, text=True)


def main() -> None:
    """Print every ratio of both, and the CPU seconds behind them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="+", type=Path, help="two, the older first")
    parser.add_argument("--output", type=Path, default=Path("commit_ratios"), help="folder of what they write")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    roots = [root.resolve() for root in arguments.checkouts]
    if arguments.one:
        run_one(roots[0])
        return
    running = [start(root, arguments.output.resolve() / str(n)) for n, root in enumerate(roots)]
    both = [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]
    for name in OPTIONS:
        for claim in both[0][name]["claims"]:
            told = (one[name]["claims"].get(claim, [float("nan"), None]) for one in both)
            print(f"{name}: {claim}: {', '.join(f'{value:.3g} {spread or str()}' for value, spread in told)}")
        for what in both[0][name]["seconds"]:
            times = [one[name]["seconds"].get(what) for one in both]
            medians = [f"{statistics.median(each):.3f}" if each else "" for each in times]
            print(f"    {what}: {', '.join(medians)} CPU seconds")


if __name__ == "__main__":
    main()
