"""What TensorBoard shows besides the loss: Dice of each class, the learning rate, the loss by band of timesteps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from rich.console import Console
from torch import Tensor, nn

from cgdpm_med.diffusion.losses import DiffusionLoss

KEY_METRIC = "val_mean_dice"


class BandedLoss(nn.Module):
    """A loss that remembers, until it is asked, how it was in each band of timesteps.

    Args:
        loss: whose examples are counted.
        bands: of equal width, the first with the least noise.
    """

    def __init__(self, loss: DiffusionLoss, bands: int = 4) -> None:
        super().__init__()
        self.loss, self.bands = loss, bands
        self.edges = [round(n * loss.schedule.T / bands) for n in range(bands + 1)]
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, *arguments: Any, **named: Any) -> Tensor:
        """As the loss itself: the mean over the batch."""
        t, values = self.loss.by_example(*arguments, **named)
        self.seen.append((t.detach(), values.detach()))
        return values.mean()

    def take(self) -> dict[str, float]:
        """Mean loss by band ("t 0 to 249") since the last call, without bands that had no example."""
        if not self.seen:
            return {}
        t, values = (torch.cat(column).cpu() for column in zip(*self.seen, strict=True))
        self.seen = []
        found = {}
        for low, high in zip(self.edges, self.edges[1:], strict=False):
            if (inside := (t >= low) & (t < high)).any():
                found[f"t {low} to {high - 1}"] = float(values[inside].mean())
        return found


class TrainingScalars:
    """Writes the learning rate, and the loss by band of timesteps, after every epoch; attach to the trainer.

    Args:
        writer: a SummaryWriter.
        optimizer: whose learning rate is shown.
        loss: with bands, or None.
    """

    def __init__(self, writer: Any, optimizer: torch.optim.Optimizer, loss: BandedLoss | None = None) -> None:
        self.writer, self.optimizer, self.loss = writer, optimizer, loss

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        epoch = engine.state.epoch
        self.writer.add_scalar("learning_rate", self.optimizer.param_groups[0]["lr"], epoch)
        for band, value in (self.loss.take() if self.loss is not None else {}).items():
            self.writer.add_scalar(f"loss/{band}", value, epoch)


class ClassDice:
    """Writes the Dice of each class after every validation; attach to the evaluator.

    Args:
        writer: a SummaryWriter.
        labels: names of the classes 1, 2, ….
        metric: in ``engine.state.metrics``, the Dice of these classes in order.
    """

    def __init__(self, writer: Any, labels: Sequence[str], metric: str = "val_dice_by_class") -> None:
        self.writer, self.labels, self.metric = writer, tuple(labels), metric

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        values = torch.as_tensor(engine.state.metrics[self.metric]).flatten().tolist()
        for name, value in zip(self.labels, values, strict=True):
            self.writer.add_scalar(f"dice/{name}", value, engine.state.epoch)


def print_validation(engine: Engine) -> None:
    """One line on standard error after a validation: the mean Dice."""
    value = float(engine.state.metrics[KEY_METRIC])
    text = f"validation after epoch {engine.state.epoch}: mean Dice {value:.4f}"
    Console(stderr=True).print(text, highlight=False)


def write_key_metric(engine: Engine, writer: Any) -> None:
    """The mean Dice alone; that of each class is :class:`ClassDice`'s."""
    writer.add_scalar(KEY_METRIC, float(engine.state.metrics[KEY_METRIC]), engine.state.epoch)
