"""How near sampling comes to the rate of the convolutions it is made of, and where the rest goes."""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cgdpm_med import autocast_dtype, keep_freed_memory
from cgdpm_med.runtime.batching import BatchLimit

from .contestants import CLASSES, condition, flops, network_of, shipped
from .harness import Claim, Result, Table, alternate, console, median, timed
from .waiting import waits

TARGETS = {"cpu": 0.7, "cuda": 0.5}
DOMINANT = 0.8  # the shapes that make this share of the convolutions' FLOPs
Shape = tuple[tuple[int, ...], tuple[int, ...], int, int]  # input, weight, stride, padding


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--slices", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument(
        "--compile", action="store_true", help="the network compiled, as inference.yaml's compile has it"
    )


def run(arguments: argparse.Namespace) -> Result:
    if arguments.quick:
        arguments.members, arguments.slices, arguments.size, arguments.steps, arguments.repeats = 1, 2, 64, 2, 1
    keep_freed_memory()  # as the command does
    device = torch.device(arguments.device)
    dtype = autocast_dtype(device)
    common = {"members": arguments.members, "steps": arguments.steps}
    predictor = shipped(**common, compile=arguments.compile).to(device)
    y = condition(arguments.slices, arguments.size, network_of(predictor).cond_channels, arguments.device)
    one_noise = [0] * len(y)  # for all slices, as the bundle has it
    ensemble = partial(predictor.ensemble, y, keys=one_noise)
    # neither compiled nor replayed, which would hide them from the counter
    work = flops(partial(shipped(**common, cuda_graphs=False).to(device).ensemble, y, keys=one_noise))
    batch = min(BatchLimit().of((arguments.size, arguments.size), device), arguments.members * arguments.slices)
    shapes = convolutions(network_of(predictor), batch, arguments.size)
    total = sum(shapes.values())
    dominant, covered = [], 0.0
    for shape, share in sorted(shapes.items(), key=lambda item: -item[1]):
        if covered < DOMINANT * total:
            dominant.append(shape)
            covered += share
    sampling: list[float] = []
    layers: dict[Shape, list[float]] = {shape: [] for shape in dominant}
    with torch.inference_mode():
        for _ in range(2):  # the second records, on a GPU
            ensemble()
        for repeat in range(arguments.repeats):
            sampling.append(timed(ensemble, arguments.device))
            for shape in dominant:
                layers[shape].append(best_time(shape, dtype, device))
            console.print(f"  {repeat + 1}/{arguments.repeats}  {work / sampling[-1] / 1e9:.0f} GFLOP/s")
        profile = profiled(ensemble, device, median(sampling))
        waited = waits(ensemble) if device.type == "cuda" else None
        batches = [] if arguments.compile else by_batch(arguments)
    rates = {shape: one_flops(shape) / median(times) for shape, times in layers.items()}
    weighted = covered / sum(shapes[shape] / rates[shape] for shape in dominant)
    single = max(rates.values())
    achieved = work / median(sampling)
    spread = (work / max(sampling), work / min(sampling))
    target = TARGETS[device.type]
    claims = [
        Claim("achieved / rate of the dominant convolutions", achieved / weighted, target, scaled(spread, weighted)),
        Claim("achieved / fastest single convolution", achieved / single, None, scaled(spread, single)),
    ]
    rows = [
        [
            f"{shape[1][1]} to {shape[1][0]} channels, {shape[1][2]}x{shape[1][3]}, {shape[0][2]}x{shape[0][3]} pixels",
            f"{shapes[shape] / total:.0%}",
            f"{rate / 1e9:.0f}",
        ]
        for shape, rate in rates.items()
    ]
    tables = [
        Table(
            "Rates in GFLOP/s",
            ["", "GFLOP/s"],
            [
                ["sampling, everything included", f"{achieved / 1e9:.0f}"],
                [f"the shapes that make {covered / total:.0%} of the FLOPs", f"{weighted / 1e9:.0f}"],
                ["the fastest of them", f"{single / 1e9:.0f}"],
            ],
        ),
        Table(f"Dominant convolutions, batch {batch}", ["shape", "of the FLOPs", "GFLOP/s"], rows),
        Table("Where the time of sampling goes", ["operation", "share"], profile),
    ]
    if batches:
        tables.insert(1, Table("GFLOP/s by max_batch", ["fields in one evaluation", "GFLOP/s"], batches))
    if waited is not None:
        tables.append(waits_table(*waited))
    settings = {name: getattr(arguments, name) for name in ("members", "slices", "size", "steps")}
    raw = {"sampling": sampling, "flops": work, "layers": {str(k): v for k, v in layers.items()}}
    settings |= {"dtype": str(dtype), "batch": batch, "compile": arguments.compile}
    return Result(settings, claims, tables, raw)


def by_batch(arguments: argparse.Namespace) -> list[list[Any]]:
    """Rates of sampling by the number of fields in one evaluation, in both precisions."""
    size, device = arguments.size, arguments.device
    work: dict[str, Callable[[], Any]] = {}
    counted = {}
    choices = (2, 4) if arguments.quick else (2, 4, 8, 16, 32) if device == "cpu" else (16, 64, 256, 512)
    y = condition(max(1, choices[-1] // arguments.members), size, 3, device)
    for precision in ("bfloat16", "float32"):
        for fields in choices:
            common = {"members": arguments.members, "steps": 1, "precision": precision, "max_batch": fields}
            name = f"{fields}, {precision}"
            work[name] = partial(shipped(**common).to(device).ensemble, y, keys=[0] * len(y))
            counted[name] = flops(
                partial(shipped(**common, cuda_graphs=False).to(device).ensemble, y, keys=[0] * len(y))
            )
    times = alternate(work, arguments.repeats, device)
    return [[name, f"{counted[name] / median(seconds) / 1e9:.0f}"] for name, seconds in times.items()]


def scaled(spread: tuple[float, float], by: float) -> tuple[float, float]:
    return spread[0] / by, spread[1] / by


def convolutions(network: nn.Module, batch: int, size: int) -> dict[Shape, int]:
    """FLOPs of one evaluation by shape of convolution, the condition computed before."""
    device = next(network.parameters()).device
    found: dict[Shape, int] = defaultdict(int)

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        shape = (tuple(inputs[0].shape), tuple(layer.weight.shape), layer.stride[0], int(layer.padding[0]))
        found[shape] += one_flops(shape)

    features = network.encode(condition(1, size, network.cond_channels, str(device)))  # type: ignore[operator, arg-type]
    hooks = [m.register_forward_hook(note) for m in network.modules() if isinstance(m, nn.Conv2d)]  # type: ignore[arg-type]
    with torch.no_grad():
        network(torch.zeros(batch, CLASSES, size, size, device=device), torch.zeros(1, device=device), features)
    for hook in hooks:
        hook.remove()
    return dict(found)


def one_flops(shape: Shape) -> int:
    """Of one convolution: two for each product."""
    (batch, _, *size), weight, stride, padding = shape
    sides = [(n + 2 * padding - k) // stride + 1 for n, k in zip(size, weight[2:], strict=True)]
    return 2 * batch * math.prod(sides) * math.prod(weight)


def best_time(shape: Shape, dtype: torch.dtype, device: torch.device) -> float:
    """Seconds of one convolution in the faster of the two memory layouts."""
    size, weight_size, stride, padding = shape
    x, weight = torch.randn(size, device=device).to(dtype), torch.randn(weight_size, device=device).to(dtype)
    times = []
    for layout in (torch.contiguous_format, torch.channels_last):
        a, w = x.contiguous(memory_format=layout), weight.contiguous(memory_format=layout)

        def convolve(a: Tensor = a, w: Tensor = w) -> Tensor:
            return F.conv2d(a, w, None, stride, padding)

        calls = 1 if device.type == "cpu" else 20  # a GPU's queue is to be full, or the time is that of starting it

        def several(convolve: Callable[[], Tensor] = convolve, calls: int = calls) -> None:
            for _ in range(calls):
                convolve()

        several()
        times.append(min(timed(several, str(device)) for _ in range(5)) / calls)
    return min(times)


def profiled(work: Callable[[], Any], device: torch.device, seconds: float) -> list[list[str]]:
    """Operations by their own share of the time of one ensemble, which takes ``seconds`` without the profiler."""
    from torch.profiler import ProfilerActivity, profile

    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as prof:
        work()
    own = {
        event.key: event.self_device_time_total if cuda else event.self_cpu_time_total for event in prof.key_averages()
    }
    if cuda:  # kernels of one stream follow each other: what they leave of the time, none of them runs in
        own["(the GPU waits)"] = max(0.0, 1e6 * seconds - sum(own.values()))
    total = sum(own.values())
    largest = sorted(own.items(), key=lambda item: -item[1])[:10]
    rest = total - sum(value for _, value in largest)
    return [[name[:70], f"{value / total:.1%}"] for name, value in [*largest, ("everything else", rest)]]


def waits_table(whole: float, found: Mapping[str, float]) -> Table:
    """Shares of the profiled time in which no kernel ran, by what the CPU was doing."""
    largest = sorted(found.items(), key=lambda item: -item[1])[:12]
    rest = sum(found.values()) - sum(time for _, time in largest)
    rows = [[name[:70], f"{time / whole:.1%}"] for name, time in [*largest, ("everything else", rest)]]
    rows.append(["all of it", f"{sum(found.values()) / whole:.1%}"])
    return Table(
        f"While no kernel runs, the CPU is in (of {whole / 1e3:.0f} ms under the profiler)", ["", "share"], rows
    )
