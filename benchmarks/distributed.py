"""Several processes give what one gives: gloo training with DDP, and inference in shards."""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn

from cgdpm_med import (
    ConditionalUNet,
    DiffusionUpdate,
    GuidanceLoss,
    NoiseSchedule,
    examples_prepare_batch,
    leave_process_group,
)
from cgdpm_med.apps.resume import Shard

from .harness import Claim, Result, Table

PROCESSES = 2


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8, help="of all processes together")


def run(arguments: argparse.Namespace) -> Result:
    if arguments.quick:
        arguments.iterations, arguments.batch = 2, 4
    alone, together = both(arguments.iterations, arguments.batch)
    moved = difference(fresh().state_dict(), alone)
    apart = difference(alone, together)
    shards = inference_difference()
    claims = [
        # stochastic gradient descent: Adam makes a whole step of a gradient that is nothing but rounding
        Claim(
            "largest difference of a weight / largest move of one, 2 processes and 1", apart / moved, 1e-3, at_most=True
        ),
        Claim("files that differ between 2 shards and one run", shards[0], 0, at_most=True),
    ]
    rows: list[list[Any]] = [
        ["weights: largest move in training", f"{moved:.3g}"],
        ["weights: largest difference of 2 processes to 1", f"{apart:.3g}"],
        ["inference: masks compared", shards[1]],
    ]
    settings = {"iterations": arguments.iterations, "batch": arguments.batch, "processes": PROCESSES}
    return Result(settings, claims, [Table("Two processes and one", ["", ""], rows)])


def both(iterations: int, batch: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights after training alone, and after training in two processes on halves of the same batches."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        train(0, 1, iterations, batch, str(Path(folder) / "alone.pt"), port)
        spawn(train, (PROCESSES, iterations, batch, str(Path(folder) / "together.pt"), port), PROCESSES)
        paths = (Path(folder) / name for name in ("alone.pt", "together.pt"))
        alone, together = (torch.load(path, weights_only=True) for path in paths)
    return alone, together


def fresh() -> ConditionalUNet:
    """A small network whose zeroed layers are alive, the same in every process."""
    torch.manual_seed(0)
    network = ConditionalUNet(channels=(8, 16), num_res_blocks=1, attention_levels=(False, False))
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return network


def train(rank: int, world: int, iterations: int, batch: int, path: str, port: int) -> None:
    """``iterations`` steps of MONAI's trainer on this process's share of every batch; the first one saves."""
    import torch.distributed as dist
    from monai.engines import SupervisedTrainer

    torch.set_num_threads(1)
    schedule = NoiseSchedule()
    network: torch.nn.Module = fresh()
    if world > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        dist.init_process_group("gloo", rank=rank, world_size=world)
        network = torch.nn.parallel.DistributedDataParallel(network)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[[part[rank::world] for part in each] for each in batches(iterations, batch)],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9),
        loss_function=GuidanceLoss(schedule),
        prepare_batch=examples_prepare_batch,
        iteration_update=DiffusionUpdate("float32"),
        decollate=False,
    )
    trainer.run()
    if rank == 0:
        bare = network.module if world > 1 else network
        torch.save(bare.state_dict(), path)  # type: ignore[union-attr]
    if world > 1:
        leave_process_group()


def batches(iterations: int, batch: int) -> list[Sequence[torch.Tensor]]:
    """Batches with everything drawn beforehand: x_t, t, target, y."""
    generator = torch.Generator().manual_seed(1)

    def noise(channels: int) -> torch.Tensor:
        return torch.randn(batch, channels, 16, 16, generator=generator)

    return [
        (noise(4), torch.randint(1000, (batch,), generator=generator), noise(4), noise(1)) for _ in range(iterations)
    ]


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest over all weights."""
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def inference_difference() -> tuple[int, int]:
    """Masks of phantom patients by the shipped bundle, in one run and in two shards: how many differ, of how many."""
    from cgdpm_med import Segmenter, find_cases, segment_all, write_phantom_dataset
    from cgdpm_med.apps.segment_options import Options

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_phantom_dataset(folder / "in", 3, shape=(64, 56, 4), spacing=(2.8, 2.8, 22.0), num_frames=6)
        segmenter = Segmenter.from_bundle("acdc_segmentation", members=2, steps=1)
        cases, options = find_cases(folder / "in"), Options(pages=False)
        segment_all(segmenter, cases, folder / "whole", options=options)
        for index in (1, 2):
            segment_all(segmenter, cases, folder / "parts", options=options, shard=Shard(index, 2))
        whole = sorted(path.relative_to(folder / "whole") for path in (folder / "whole").rglob("*.nii.gz"))
        differing = [
            path
            for path in whole
            if not (folder / "parts" / path).is_file()
            or (folder / "whole" / path).read_bytes() != (folder / "parts" / path).read_bytes()
        ]
    return len(differing), len(whole)
