"""Against MONAI's DiffusionModelUNet and DiffusionInferer on the same work, and what each of our means gives.

The target is held against the faster of two ways a user would write the loop in single precision: slice by slice, as
MONAI's tutorial on segmentation does, or all slices of the volume at once; both member by member.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cgdpm_med import Autocast, autocast_dtype, sample_ensemble
from cgdpm_med.diffusion.targets import MaskDenoiser
from cgdpm_med.networks.unet import ConditionalUNet, ConditionFeatures

from .contestants import (
    CLASSES,
    SCALE,
    condition,
    flops,
    mask_denoiser,
    monai_scheduler,
    monai_unet,
    parameters,
    schedule,
    shipped,
    shipped_unet,
)
from .harness import Claim, Result, Table, alternate, console, median, ratio, timed

TARGETS = {"cpu": 3.0, "cuda": 4.0}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--slices", type=int, default=10)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--ladder-steps", type=int, default=4, help="steps of the ladder of means; 0 leaves it out")
    parser.add_argument("--compile", action="store_true", help="end both tables with torch.compile")
    parser.add_argument(
        "--by-volume", action="store_true", help="without the loop slice by slice, ten times slower on a GPU"
    )


def run(arguments: argparse.Namespace) -> Result:
    if arguments.quick:
        arguments.members, arguments.slices, arguments.size = 2, 2, 64
        arguments.steps, arguments.ladder_steps, arguments.repeats = 2, 1, 1
    size, device = arguments.size, arguments.device
    ours = shipped_unet().to(device)
    theirs = monai_unet(ours.cond_channels).to(device)
    y = condition(arguments.slices, size, ours.cond_channels, device)
    cost = costs(ours, theirs, y[:1])
    predictor = shipped(members=arguments.members, steps=arguments.steps).to(device)
    loops = MonaiLoops(theirs, y, arguments.members, arguments.steps)
    work: dict[str, Callable[[], Any]] = {
        "MONAI, slice by slice": loops.by_slice,
        "MONAI, volume by volume": loops.by_volume,
        "MONAI, everything in batches of 16": loops.batched,
        "the same, bfloat16 where fast, channels last": loops.tuned,
        "ours": lambda: predictor.ensemble(y),
    }
    if arguments.by_volume:
        del work["MONAI, slice by slice"]
    if arguments.compile:
        static = shipped(members=arguments.members, steps=arguments.steps, compile=True).to(device)
        work["ours, compiled"] = lambda: static.ensemble(y)
        console.print(f"  compiling: {timed(work['ours, compiled'], device):.0f} s")
    times = alternate(work, arguments.repeats, device)
    loops_of_users = [name for name in ("MONAI, slice by slice", "MONAI, volume by volume") if name in times]
    faster = min(loops_of_users, key=lambda name: median(times[name]))
    target = TARGETS[torch.device(device).type]
    claims = [
        ratio(f"{faster} / ours", times[faster], times["ours"], target),
        ratio("the best batched MONAI / ours", times["the same, bfloat16 where fast, channels last"], times["ours"]),
        Claim("largest difference of parameters and FLOPs", cost["largest difference"], 0.1, at_most=True),
    ]
    if arguments.compile:
        claims.insert(1, ratio(f"{faster} / ours, compiled", times[faster], times["ours, compiled"]))
    rows = [[name, f"{median(t):.3g}", f"{median(t) / median(times['ours']):.2f}"] for name, t in times.items()]
    tables = [
        Table("Seconds for the ensemble", ["loop", "seconds", "times ours"], rows),
        Table(
            "The two networks",
            ["", "parameters", "GFLOP an evaluation", "GFLOP, condition computed before"],
            [
                ["ours", cost["parameters"][0], f"{cost['flops'][0] / 1e9:.2f}", f"{cost['flops once'] / 1e9:.2f}"],
                ["MONAI", cost["parameters"][1], f"{cost['flops'][1] / 1e9:.2f}", "cannot"],
            ],
        ),
    ]
    raw: dict[str, Any] = {"seconds": times, "cost": cost}
    if arguments.ladder_steps:
        table, raw["ladder"] = ladder(ours, theirs, y, arguments)
        tables.append(table)
    settings = {name: getattr(arguments, name) for name in ("members", "slices", "size", "steps", "ladder_steps")}
    return Result(settings, claims, tables, raw)


def costs(ours: ConditionalUNet, theirs: nn.Module, y: Tensor) -> dict[str, Any]:
    """Parameters and FLOPs of one evaluation of one field; raises when the two networks are not of one size."""
    x, t = torch.zeros(1, CLASSES, *y.shape[2:], device=y.device), torch.zeros(1, device=y.device)
    features = ours.encode(y)
    cost: dict[str, Any] = {
        "parameters": (parameters(ours), parameters(theirs)),
        "flops": (flops(lambda: ours(x, t, y)), flops(lambda: theirs(torch.cat([x, y], dim=1), t))),
        "flops once": flops(lambda: ours(x, t, features)),
    }
    a, b = cost["parameters"]
    differences = [abs(b / a - 1), abs(cost["flops"][1] / cost["flops"][0] - 1)]
    differences.append(abs(cost["flops"][1] / cost["flops once"] - 1))
    if max(differences) > 0.1:
        raise RuntimeError(f"the networks differ by {max(differences):.0%} in size: {cost}")
    return {**cost, "largest difference": max(differences)}


class MonaiLoops:
    """An ensemble with MONAI's parts, as a user would write it, and as well as it can be batched."""

    def __init__(self, network: nn.Module, y: Tensor, members: int, steps: int, mode: str = "concat") -> None:
        from monai.inferers import DiffusionInferer

        self.network, self.y, self.members, self.mode = network, y, members, mode
        self.inferer = DiffusionInferer(monai_scheduler(steps))

    def sample(self, y: Tensor, network: nn.Module | None = None) -> Tensor:
        """One sample for each condition image."""
        noise = torch.randn(len(y), CLASSES, *y.shape[2:], device=y.device)
        model = network or self.network
        return self.inferer.sample(noise, model, conditioning=y, mode=self.mode, verbose=False)  # type: ignore[arg-type]

    def by_slice(self) -> list[Tensor]:
        """Slice by slice and member by member."""
        return [self.sample(self.y[s : s + 1]) for s in range(len(self.y)) for _ in range(self.members)]

    def by_volume(self) -> list[Tensor]:
        """All slices at once, member by member."""
        return [self.sample(self.y) for _ in range(self.members)]

    def batched(self, network: nn.Module | None = None) -> list[Tensor]:
        """Slices and members together."""
        return [self.sample(part, network) for part in self.y.repeat_interleave(self.members, dim=0).split(16)]

    def tuned(self) -> list[Tensor]:
        """Batched, in the precision and memory layout that ours has."""
        device = self.y.device
        dtype = autocast_dtype(device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        try:
            with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                return self.batched()
        finally:
            self.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


class BranchOnce(nn.Module):
    """The condition branch computed once, but its features joined by an ordinary convolution in every evaluation."""

    def __init__(self, network: ConditionalUNet) -> None:
        super().__init__()
        self.network = network

    def encode(self, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        pyramid = self.network.cond_encoder
        assert pyramid is not None
        return y, [branch(y) for branch in pyramid.branches]

    def forward(self, x_t: Tensor, t: Tensor, context: tuple[Tensor, list[Tensor]]) -> Tensor:
        y, features = (self.per_field(part, len(x_t)) for part in (context[0], context[1]))
        pyramid, stem = self.network.cond_encoder, self.network.cond_stem
        assert pyramid is not None
        assert stem is not None
        joins = tuple(join(f) for join, f in zip(pyramid.joins, features, strict=True))
        return self.network(x_t, t, ConditionFeatures(stem(y), joins, None, ()))

    def per_field(self, part: Any, fields: int) -> Any:
        if isinstance(part, list):
            return [self.per_field(each, fields) for each in part]
        return part.repeat_interleave(fields // len(part), dim=0)


class NothingOnce(nn.Module):
    """The network without ``encode``: the condition branch runs in every evaluation of every field."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.network(x_t, t, y)


def ladder(
    ours: ConditionalUNet, theirs: nn.Module, y: Tensor, arguments: argparse.Namespace
) -> tuple[Table, dict[str, list[float]]]:
    """Each means on top of those before it, in few steps: cost is proportional to them."""
    steps, members, device = arguments.ladder_steps, arguments.members, arguments.device
    last, dtype = torch.channels_last, autocast_dtype(torch.device(device))

    def fresh(**layout: Any) -> ConditionalUNet:
        network = shipped_unet().to(device)
        return network.to(**layout) if layout else network

    def draw(denoiser: Any, max_batch: int | str) -> Callable[[], Any]:
        ids = [[k] for k in range(members)] if max_batch == 1 else [list(range(members))]
        limit: int | str = len(y) if max_batch == 1 else max_batch
        as_sampler = {"steps": steps, "clip": (-SCALE, SCALE)}
        return lambda: [
            sample_ensemble(
                denoiser, y, schedule(), shape=(CLASSES, *y.shape[2:]), member_ids=k, max_batch=limit, **as_sampler
            )
            for k in ids
        ]

    network = fresh()
    rungs: dict[str, Callable[[], Any]] = {
        "MONAI's network and inferer, volume by volume": MonaiLoops(theirs, y, members, steps).by_volume,
        "our network in MONAI's inferer": MonaiLoops(network, y, members, steps, "crossattn").by_volume,
        "our sampler": draw(MaskDenoiser(NothingOnce(network), SCALE), 1),
        "+ condition branch computed once": draw(MaskDenoiser(BranchOnce(network), SCALE), 1),
        "+ split first convolution": draw(mask_denoiser(network), 1),
        "+ batches over members and slices": draw(mask_denoiser(network), "auto"),
        "+ channels last": draw(mask_denoiser(fresh(memory_format=last)), "auto"),
        f"+ {str(dtype).removeprefix('torch.')}": draw(
            Autocast(mask_denoiser(fresh()), torch.device(device), dtype), "auto"
        ),
    }
    place, graphs = torch.device(device), torch.device(device).type == "cuda"
    if graphs:
        rungs["+ CUDA graphs"] = draw(Autocast(mask_denoiser(fresh()), place, dtype, cuda_graphs=True), "auto")
    if arguments.compile:
        evaluated = Autocast(mask_denoiser(fresh()), place, dtype, compile=True, cuda_graphs=graphs)
        rungs["+ compile"] = draw(evaluated, "auto")
        console.print(f"  compiling: {timed(rungs['+ compile'], device):.0f} s")
    with torch.inference_mode():
        times = alternate(rungs, max(1, min(3, arguments.repeats)), device)
        heads = alternate(
            {
                f"{n}-channel heads": MonaiLoops(monai_unet(ours.cond_channels, n).to(device), y, 1, steps).by_volume
                for n in (8, 64)
            },
            max(1, min(3, arguments.repeats)),
            device,
        )
    first = median(next(iter(times.values())))
    rows, before = [], first
    for name, seconds in times.items():
        now = median(seconds)
        rows.append([name, f"{now:.3g}", f"{before / now:.2f}", f"{first / now:.2f}"])
        before = now
    small, large = (median(seconds) for seconds in heads.values())
    rows.append(["(MONAI's network: 64-channel attention heads instead of its 8)", "", f"{small / large:.2f}", ""])
    return Table(f"What each gives, {steps} steps", ["", "seconds", "this step", "in all"], rows), {**times, **heads}
