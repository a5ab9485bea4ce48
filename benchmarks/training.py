"""A training step against the same network in MONAI's stock SupervisedTrainer with its DiffusionInferer.

Both start from the same weights and see the same batches, timesteps and noise, so that their loss curves can be laid
over each other. Theirs is float32 on MetaTensors, as MONAI's loaders hand them out; ours is ``DiffusionUpdate`` with
bfloat16 where the device is fast at it, weights channels last, a fused optimiser as the bundles have it, and plain
tensors.
"""

from __future__ import annotations

import argparse
import copy
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cgdpm_med import ConditionalUNet, DiffusionLoss, DiffusionUpdate, NoiseSchedule
from cgdpm_med.files import atomic_write
from cgdpm_med.tables.csv_files import csv_text

from .contestants import CLASSES, shipped_unet
from .harness import Claim, Result, Table, console, median, ratio

TARGETS = {"cpu": 2.0, "cuda": 1.3}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--iterations", type=int, default=10, help="of a timed block; blocks alternate")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--compile", action="store_true", help="ours also compiled, as gpu.yaml has it")


def run(arguments: argparse.Namespace) -> Result:
    if arguments.quick:
        arguments.batch, arguments.size, arguments.iterations, arguments.repeats = 2, 32, 2, 1
    network = fresh_network()
    batches = examples(arguments)
    trainers = {
        "MONAI": monai_trainer(copy.deepcopy(network), batches, arguments),
        "ours": our_trainer(copy.deepcopy(network), batches, arguments, torch.channels_last),
        "ours, ordinary layout": our_trainer(copy.deepcopy(network), batches, arguments, torch.contiguous_format),
    }
    if arguments.compile:
        compiled = copy.deepcopy(network)
        compiled.compile(mode="reduce-overhead")
        trainers["ours, compiled"] = our_trainer(compiled, batches, arguments, torch.channels_last)
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for block in range(arguments.repeats + 1):
        for name, (trainer, _) in trainers.items():
            torch.manual_seed(block)  # the same timesteps and noise for both
            trainer.state.max_epochs = block + 1
            start = time.perf_counter()
            trainer.run()
            seconds = time.perf_counter() - start
            console.print(f"  block {block}  {name}: {seconds / arguments.iterations:.3f} s a step")
            if block:  # the first one warms up
                times[name].append(seconds / arguments.iterations)
    curves = {name: losses for name, (_, losses) in trainers.items()}
    write_curves(curves, (arguments.output / "quick" if arguments.quick else arguments.output) / "training_losses.csv")
    apart = curve_distance(curves["MONAI"], curves["ours"])
    target = TARGETS[torch.device(arguments.device).type]
    held = None if arguments.compile else target
    claims = [
        ratio("MONAI's stock trainer / ours, time of a step", times["MONAI"], times["ours"], held),
        Claim("loss curves: mean relative difference of a step", apart, 0.05, at_most=True),
    ]
    rows = [[name, f"{median(t):.3f}", f"{arguments.batch / median(t):.1f}"] for name, t in times.items()]
    settings = {name: getattr(arguments, name) for name in ("batch", "size", "iterations", "learning_rate")}
    if arguments.compile:
        claims.append(ratio("MONAI's stock trainer / ours, compiled", times["MONAI"], times["ours, compiled"], target))
    tables = [Table("Training", ["trainer", "seconds a step", "examples a second"], rows)]
    return Result(settings, claims, tables, {"seconds": times, "losses": curves})


def fresh_network() -> ConditionalUNet:
    """The shipped architecture with new weights."""
    network = shipped_unet()
    torch.manual_seed(0)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]
    return network.train()


def schedule() -> NoiseSchedule:
    """Eps prediction under the schedule that both packages tabulate alike."""
    return NoiseSchedule(1000, "linear_beta", "epsilon")


def examples(arguments: argparse.Namespace) -> list[dict[str, Tensor]]:
    """Batches of discs on a noisy ground: image (B, 3, H, W), label (B, 1, H, W)."""
    generator = np.random.default_rng(0)
    size, batches = arguments.size, []
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"))
    for _ in range(arguments.iterations):
        centre = generator.uniform(0.3, 0.7, (arguments.batch, 2, 1, 1)) * size
        radius = generator.uniform(0.1, 0.3, (arguments.batch, 1, 1)) * size
        label = np.clip(3 - np.floor(3 * np.linalg.norm(grid - centre, axis=1) / radius), 0, CLASSES - 1)
        image = label[:, None] / 3 + generator.normal(0, 0.2, (arguments.batch, 3, size, size))
        batches.append(
            {
                "image": torch.tensor(image, dtype=torch.float32),
                "label": torch.tensor(label[:, None], dtype=torch.uint8),
            }
        )
    return batches


def one_hot(label: Tensor) -> Tensor:
    """Channels of -1 and +1."""
    from monai.networks import one_hot as to_channels

    return 2 * to_channels(label, CLASSES).float() - 1


def monai_trainer(network: nn.Module, batches: list[dict[str, Tensor]], arguments: argparse.Namespace) -> Any:
    """The stock trainer with a prepare-batch that diffuses the mask, and the list its losses go to."""
    from monai.data import MetaTensor
    from monai.engines import SupervisedTrainer
    from monai.inferers import DiffusionInferer
    from monai.networks.schedulers import DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=1000)
    ours = schedule().alpha_bar.float()
    if not torch.allclose(scheduler.alphas_cumprod, ours, rtol=1e-4):
        raise RuntimeError("the two packages' schedules differ: the loss curves could not overlap")
    data = [{key: MetaTensor(value) for key, value in batch.items()} for batch in batches]

    def prepare(batch: dict[str, Tensor], device: Any, non_blocking: bool, **kwargs: Any) -> Any:
        x_0, y = one_hot(batch["label"].to(device)), batch["image"].to(device)
        t = torch.randint(1000, (len(x_0),)).to(device)
        eps = torch.randn(x_0.shape).to(device)
        return x_0, eps, (), {"noise": eps, "timesteps": t, "condition": y}

    trainer = SupervisedTrainer(
        device=torch.device(arguments.device),
        max_epochs=1,
        train_data_loader=data,
        network=network.to(arguments.device),
        optimizer=torch.optim.AdamW(network.parameters(), lr=arguments.learning_rate),
        loss_function=nn.MSELoss(),
        inferer=DiffusionInferer(scheduler),
        prepare_batch=prepare,
        decollate=False,
    )
    return trainer, recorded(trainer)


def our_trainer(
    network: nn.Module,
    batches: list[dict[str, Tensor]],
    arguments: argparse.Namespace,
    layout: torch.memory_format,
) -> Any:
    """The same trainer with our iteration, and the list its losses go to."""
    from monai.engines import SupervisedTrainer

    def prepare(batch: dict[str, Tensor], device: Any, non_blocking: bool, **kwargs: Any) -> Any:
        return one_hot(batch["label"].to(device)), batch["image"].to(device)

    network = network.to(arguments.device).to(memory_format=layout)  # type: ignore[call-overload]
    trainer = SupervisedTrainer(
        device=torch.device(arguments.device),
        max_epochs=1,
        train_data_loader=batches,
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=arguments.learning_rate, fused=True),
        # timesteps and noise from the CPU's generator, as on the other side, also where the network is on a GPU
        loss_function=partial(DiffusionLoss(schedule()), generator=torch.default_generator),
        prepare_batch=prepare,
        # MONAI's trainer does not clip gradients; the norm is computed all the same, and never reached
        iteration_update=DiffusionUpdate(max_grad_norm=1e9),
        decollate=False,
    )
    return trainer, recorded(trainer)


def recorded(trainer: Any) -> list[float]:
    """A list that grows by the loss of every iteration."""
    from ignite.engine import Events

    losses: list[float] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(float(e.state.output["loss"])))
    return losses


def curve_distance(a: list[float], b: list[float]) -> float:
    """Mean over the steps of |a - b| / a."""
    return float(np.mean(np.abs(np.subtract(a, b)) / np.asarray(a)))


def write_curves(curves: dict[str, list[float]], path: Path) -> None:
    rows = ((step, *row) for step, row in enumerate(zip(*curves.values(), strict=True), start=1))
    with atomic_write(path) as file:
        file.write(csv_text(["step", *curves], rows).encode())
