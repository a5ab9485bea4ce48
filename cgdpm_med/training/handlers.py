"""Handlers for MONAI engines: sample grids in TensorBoard, and a progress bar."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys
from rich.console import Console
from torch import Tensor
from torch.nn.functional import interpolate

from cgdpm_med.console import end, progress_bar
from cgdpm_med.diffusion.targets import Target
from cgdpm_med.inference.predictor import DiffusionPredictor


class SampleGrid:
    """Draws members for a few training images and shows them in TensorBoard: image, truth, K members.

    Args:
        writer: a SummaryWriter.
        predictor: draws the samples; usually around the EMA model.
        every: epochs between grids.
        images: how many images of the current batch.
        members: how many samples of each.
    """

    def __init__(
        self, writer: Any, predictor: DiffusionPredictor, every: int = 5, images: int = 4, members: int = 2
    ) -> None:
        self.writer, self.predictor = writer, predictor
        self.every, self.images, self.members = every, images, members

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.every), self)

    def __call__(self, engine: Any) -> None:
        output = engine.state.output[0] if isinstance(engine.state.output, list) else engine.state.output
        y = torch.as_tensor(output[CommonKeys.IMAGE])[: self.images]
        x_0 = torch.as_tensor(output[CommonKeys.LABEL])[: self.images]
        drawn, target = self.predictor.ensemble(y, member_ids=range(self.members)), self.predictor.target
        grid = sample_grid(y, target.decode(x_0, y), drawn, target)
        self.writer.add_image("samples", grid, engine.state.epoch)


def sample_grid(y: Tensor, truth: Tensor, members: Tensor, target: Target) -> Tensor:
    """One row per image: condition, truth, members. -> (3, B * H, (2 + K) * W) in [0, 1].

    Args:
        y: condition, (B, Cc, H', W').
        truth: the prediction that would be right, (B, C, H, W).
        members: (K, B, C, H, W).

    Volumes, with (H, W, D) for (H, W), are shown by the slice in the middle of D.
    """
    y, truth, members = (x[..., x.shape[-1] // 2] if y.ndim == 5 else x for x in (y, truth, members))
    condition = interpolate(target.condition_picture(y), truth.shape[2:], mode="nearest")
    tiles = [condition, *(target.picture(drawn) for drawn in (truth, *members))]
    return torch.cat([torch.cat(list(tile.cpu()), dim=1) for tile in tiles], dim=2)


class Progress:
    """A progress bar over the iterations of a run, with the loss beside it; quiet where there is no terminal.

    Args:
        label: shown in front.
        log_every: without a terminal, print a line every so many epochs instead (0: never).
    """

    def __init__(self, label: str = "training", log_every: int = 1) -> None:
        self.label, self.log_every = label, log_every
        self.console = Console(stderr=True)
        self.bar: Any = None
        self.total, self.count = 0.0, 0
        self.begin = 0.0
        self.first: int | None = None

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        engine.add_event_handler(Events.COMPLETED, self._stop)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _start(self, engine: Any) -> None:
        self.begin, self.first = perf_counter(), None
        if not self.console.is_terminal:
            return
        self.bar = progress_bar(self.console, counted=True)
        length = engine.state.epoch_length or len(engine.data_loader)
        self.task = self.bar.add_task(self.label, total=length * engine.state.max_epochs, detail="")
        self.bar.start()

    def _advance(self, engine: Any) -> None:
        output = engine.state.output[0] if isinstance(engine.state.output, list) else engine.state.output
        if self.first is None:  # not at the start: what restores a stopped run may come behind this handler
            self.first = engine.state.iteration - 1
        self.total, self.count = self.total + float(output[CommonKeys.LOSS]), self.count + 1
        if self.bar is not None:
            loss = f"loss {self.total / self.count:.4f}"
            self.bar.update(self.task, completed=engine.state.iteration, detail=loss)

    def _epoch(self, engine: Any) -> None:
        if self.bar is None and self.log_every and engine.state.epoch % self.log_every == 0:
            mean = self.total / max(1, self.count)
            place = f"epoch {engine.state.epoch}/{engine.state.max_epochs}"
            self.console.print(f"{self.label}: {place}, loss {mean:.4f}{self._left(engine)}", highlight=False)
        self.total, self.count = 0.0, 0

    def _left(self, engine: Any) -> str:
        """When it will be done, judged by this process's own steps, validation included."""
        length = engine.state.epoch_length or 1
        steps = engine.state.iteration - (self.first or 0)
        left = length * engine.state.max_epochs - engine.state.iteration
        if left <= 0 or steps <= 0:
            return ""
        return f", about {spoken_time((perf_counter() - self.begin) / steps * left)} left"

    def _stop(self, engine: Any) -> None:
        if self.bar is not None:
            end(self.bar)
            self.bar = None

    def _fail(self, engine: Any, error: BaseException) -> None:
        self._stop(engine)
        raise error


def spoken_time(seconds: float) -> str:
    """A time to wait in the unit that a person would use: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
