"""Against what users would pick: the time of nnU-Net's own 2D network for ACDC with mirror images, and of our ensemble.

The network is nnU-Net v2's plan for ACDC in 2D: seven stages, slices of 256 x 224. It is timed alone, with random
weights and without its resampling, slice by slice as nnU-Net predicts; in float32, as nnU-Net does on a CPU, and in
bfloat16 where the CPU has that in hardware. Five folds are five networks that share nothing: five times the time of
one. Ours is timed whole, from the volume to the mask and its maps on the volume's grid: the default, and version 0.1's.
All get a volume of ten slices.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor, nn

from cgdpm_med import Segmenter, keep_freed_memory
from cgdpm_med.files import InputError
from cgdpm_med.phantom import PhantomSpec, make_phantom
from cgdpm_med.runtime.precision import bfloat16_is_fast
from cgdpm_med.volumes import Volume, read_volume

from .contestants import flops, parameters
from .harness import Claim, Result, Table, alternate, console, median, ratio
from .sampling import SETTINGS, VERSION_0_1

PINNED = "dynamic_network_architectures==0.4.1"
STAGES = 7
FEATURES = (32, 64, 128, 256, 512, 512, 512)
STRIDES = ((1, 1), (2, 2), (2, 2), (2, 2), (2, 2), (2, 2), (2, 1))
PATCH = (256, 224)
MIRRORS = ((), (2,), (3,), (2, 3))
"""Axes flipped of each image that a fold sees."""

FOLDS = 5
OURS, OLD = "ours", "version 0.1's setting"
WANTED = {1: 0.5, FOLDS: 0.1}
WANTED_OF_OLD = 0.4


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slices", type=int, default=10)


def run(arguments: argparse.Namespace) -> Result:
    if arguments.quick:
        arguments.slices, arguments.repeats = 2, 1
    keep_freed_memory()
    clock = time.perf_counter if arguments.device.startswith("cuda") else time.process_time
    fold = network()
    size = {"parameters": parameters(fold), "flops of a slice": flops(partial(fold, torch.zeros(1, 1, *PATCH)))}
    console.print(f"  {size['parameters'] / 1e6:.1f} million parameters, {size['flops of a slice'] / 1e9:.1f} GFLOP")
    fold.to(arguments.device)
    for warm_up in contestants(fold, 2, arguments.device).values():
        warm_up()
    work = contestants(fold, arguments.slices, arguments.device)
    times = alternate(work, arguments.repeats, arguments.device, clock, warm_up=False)
    settings = {"slices": arguments.slices, "patch": PATCH, "package": PINNED, "clock": clock.__name__, **size}
    rows = [[name, f"{median(seconds):.2f}"] for name, seconds in times.items()]
    return Result(settings, claims(times), [Table("Seconds a volume", ["what", "seconds"], rows)], {"seconds": times})


def network() -> nn.Module:
    """nnU-Net v2's 2D network for ACDC, with random weights.

    Raises:
        InputError: its package is not installed.
    """
    try:
        architectures = import_module("dynamic_network_architectures.architectures.unet")
    except ImportError as error:
        raise InputError("nnU-Net's networks are not installed", remedy=f"pip install --no-deps {PINNED}") from error
    torch.manual_seed(0)
    made: nn.Module = architectures.PlainConvUNet(
        input_channels=1,
        n_stages=STAGES,
        features_per_stage=FEATURES,
        conv_op=nn.Conv2d,
        kernel_sizes=3,
        strides=STRIDES,
        n_conv_per_stage=2,
        num_classes=4,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=False,
    )
    return made.eval()


def contestants(fold: nn.Module, number: int, device_name: str) -> dict[str, Callable[[], Any]]:
    """Our whole segmentation under both settings, and one fold in every precision, by name, of so many slices."""
    device, volume = torch.device(device_name), phantom(number)
    slices = torch.randn(number, 1, *PATCH, generator=torch.Generator().manual_seed(0)).to(device)
    work: dict[str, Callable[[], Any]] = {
        OURS: partial(Segmenter.from_bundle(device=device), volume),
        OLD: partial(Segmenter.from_bundle(device=device, **SETTINGS[VERSION_0_1]), volume),
        "float32": partial(mirrored, fold, slices, low=False),
    }
    if bfloat16_is_fast(device):
        work["bfloat16"] = partial(mirrored, fold, slices, low=True)
    return work


def phantom(slices: int) -> Volume:
    """End-diastole of a phantom with as many slices, 216 x 256 pixels of 1.5 mm as ACDC has them."""
    spacing = (1.5, 1.5, max(10.0, 100.0 / slices))
    drawn = make_phantom(PhantomSpec(shape=(216, 256, slices), spacing=spacing))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "phantom.nii.gz"
        nib.save(
            nib.Nifti1Image(drawn.images[drawn.ed_frame], np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])), path
        )
        return read_volume(path)


@torch.inference_mode()
def mirrored(fold: nn.Module, slices: Tensor, *, low: bool) -> Tensor:
    """Mean logits over the mirror images, slice by slice, (slices, 4, *PATCH)."""
    with torch.autocast(slices.device.type, torch.bfloat16) if low else nullcontext():
        images = [
            torch.stack([torch.flip(fold(torch.flip(y, axes)), axes) for axes in MIRRORS]).mean(0)
            for y in slices.split(1)
        ]
    return torch.cat(images)


def claims(times: Mapping[str, Sequence[float]]) -> list[Claim]:
    """Our seconds against each of the others, in turn; targets are of float32, as nnU-Net computes on a CPU."""
    found = [ratio(f"ours / {OLD}", times[OURS], times[OLD], WANTED_OF_OLD, at_most=True)]
    for precision in (name for name in times if name not in (OURS, OLD)):
        for folds, wanted in WANTED.items():
            seconds = [folds * second for second in times[precision]]
            name = f"ours / nnU-Net, {folds} fold{'s' if folds > 1 else ''}, {precision}"
            found.append(ratio(name, times[OURS], seconds, wanted if precision == "float32" else None, at_most=True))
    return found
