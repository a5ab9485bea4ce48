"""A training run of twelve steps that takes no time and saves its state after every epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from torch import nn

from cgdpm_med.data.slices import EpochSampler
from cgdpm_med.training.engines import BestWeights, TrainingState, WarmupCosine


def toy_run(folder: Path, epochs: int, *, lr: float = 0.1, resume: bool = True) -> dict[str, Any]:
    """Noisy gradient steps on four numbers; batches of 2 out of 6 keyed items."""
    torch.manual_seed(0)
    network = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    sampler = EpochSampler(6, seed=1, batch_size=2)
    best = BestWeights(network, folder / "model.pt", "score")

    def step(engine: Engine, batch: Any) -> float:
        x = torch.tensor([[float(i), float(epoch)] for epoch, i in zip(*batch, strict=True)])
        loss = (network(x + torch.randn(x.shape)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    engine = Engine(step)
    objects = {"network": network, "optimizer": optimizer, "best": best}
    scheduler = WarmupCosine(optimizer, total=12, warmup=2)
    state = TrainingState(folder / "checkpoint.pt", objects, sampler, scheduler, resume=resume)
    state.attach(engine)
    state.attach_saving(engine)
    loader = torch.utils.data.DataLoader(Identity(), batch_size=2, sampler=sampler)
    engine.run(loader, max_epochs=epochs, epoch_length=3)
    return {
        "network": {name: tensor.clone() for name, tensor in network.state_dict().items()},
        "epoch": engine.state.epoch,
        "iteration": engine.state.iteration,
        "lr": optimizer.param_groups[0]["lr"],
    }


class Identity(torch.utils.data.Dataset):
    """Hands back what it is indexed with."""

    def __getitem__(self, index: tuple[int, int]) -> tuple[int, int]:
        return index

    def __len__(self) -> int:
        return 6
