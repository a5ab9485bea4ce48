"""Speed, memory and scale, as ratios measured in one process on one machine.

python -m benchmarks NAME [--quick] [--threads N] [--repeats N] [--device cpu]
python -m benchmarks render
python -m benchmarks show [RESULT]

peer         the same ensemble in MONAI's DiffusionModelUNet and DiffusionInferer; what each of our means gives
recipe       1000 steps of DDPM for every member; with --dataset-dir Dice too
efficiency   FLOP/s of sampling over those of its convolutions; where the rest goes
guidance     training the guidance network by replay and literally; guided sampling
training     a training step in MONAI's stock trainer
memory       peak memory against members, slices and image size
scale        time against members, steps, slices and pixels
precision    bfloat16 and float32; with --dataset-dir Dice too
compiled     torch.compile
allocator    freed memory kept by the process
distributed  two processes and one
nnunet       nnU-Net's own 2D network with mirror images, one fold and five
sampling     timesteps, shared first step and guidance: quality on validation patients and CPU seconds
cardiac_sr   refined MRI against zero-filling, bicubic and a regression; what its segmentation wins back
face_sr      refined faces: distortion against perception by steps and guidance; whether doubt tells the error

Run it at the top of the checkout. Each writes NAME.json into --output and tells what it finds; ``show`` prints such
files in full, ``render`` fills benchmarks/README.md from those in benchmarks/results, a folder for each machine.
Timings alternate between the contestants. Let nothing else run on the machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from importlib import import_module

import torch

from benchmarks.harness import add_common_options, console, save
from benchmarks.render import add_render_options, add_show_options, digits, render, show, verdict

NAMES = (
    "peer",
    "recipe",
    "efficiency",
    "guidance",
    "training",
    "memory",
    "scale",
    "precision",
    "compiled",
    "allocator",
    "distributed",
    "cardiac_sr",
    "sampling",
    "nnunet",
    "face_sr",
)


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(words)
    if arguments.name == "render":
        render(arguments.results, arguments.page)
        return 0
    if arguments.name == "show":
        console.print(show(arguments.result), markup=False)
        return 0
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    console.print(f"{arguments.name}: {torch.get_num_threads()} thread(s), {arguments.device}")
    start = time.perf_counter()
    result = import_module(f"benchmarks.{arguments.name}").run(arguments)
    path = save(arguments.name, result, arguments, time.perf_counter() - start)
    for claim in result.claims:
        spread = "" if claim.spread is None else f" ({digits(claim.spread[0])} … {digits(claim.spread[1])})"
        console.print(f"{claim.name}: {digits(claim.value)}{claim.unit}{spread} {verdict(claim.passed)}", markup=False)
    console.print(f"wrote {path}", markup=False)
    return 0


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name in NAMES:
        module = import_module(f"benchmarks.{name}")
        command = commands.add_parser(name, description=module.__doc__)
        add_common_options(command)
        module.add_options(command)
    add_render_options(commands.add_parser("render"))
    add_show_options(commands.add_parser("show"))
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
