"""Handlers for MONAI engines: sample grids in TensorBoard, and a progress bar."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys
from torch import Tensor

from cgdpm_med.predictor import DiffusionPredictor

# background, RV, myocardium, LV in ACDC's order; further classes repeat
COLOURS = torch.tensor([[0.0, 0.0, 0.0], [0.26, 0.53, 0.96], [0.30, 0.75, 0.35], [0.93, 0.29, 0.25]])


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
        image = torch.as_tensor(output[CommonKeys.IMAGE])[: self.images]
        truth = torch.as_tensor(output[CommonKeys.LABEL])[: self.images]
        drawn = self.predictor.ensemble(image, member_ids=range(self.members))
        grid = sample_grid(image, truth, drawn, mask=self.predictor.target == "mask")
        self.writer.add_image("samples", grid, engine.state.epoch)


def sample_grid(image: Tensor, truth: Tensor, members: Tensor, mask: bool) -> Tensor:
    """One row per image: condition, truth, members. -> (3, B * H, (2 + K) * W) in [0, 1].

    Args:
        image: condition, (B, Cc, H', W'); the middle channel is shown, or all three of a colour image.
        truth: target, (B, C, H, W).
        members: (K, B, C, H, W); of masks the probabilities.
        mask: colour the classes, instead of reading images in [-1, 1].

    Volumes, with (H, W, D) for (H, W), are shown by the slice in the middle of D.
    """
    image, truth, members = (x[..., x.shape[-1] // 2] if image.ndim == 5 else x for x in (image, truth, members))
    if mask:
        middle = image[:, image.shape[1] // 2][:, None]
        low, high = middle.amin(), middle.amax()
        condition = ((middle - low) / (high - low).clamp(min=1e-6)).expand(-1, 3, -1, -1)
        tiles = [condition, colour(truth), *(colour(member, threshold=0.5) for member in members)]
    else:
        size = truth.shape[2:]
        colours = image[:, : truth.shape[1]]  # a class may travel as last channel
        low_resolution = torch.nn.functional.interpolate(colours, size, mode="nearest")
        tiles = [(t.clamp(-1, 1) + 1) / 2 for t in (low_resolution, truth, *members)]
        tiles = [t.expand(-1, 3, -1, -1) for t in tiles]
    return torch.cat([torch.cat(list(tile.cpu()), dim=1) for tile in tiles], dim=2)


def colour(channels: Tensor, threshold: float = 0.0) -> Tensor:
    """(B, C, H, W) probabilities or target channels -> (B, 3, H, W) colours of the classes.

    A single channel is foreground above ``threshold``: 0 for a target, 0.5 for probabilities.
    """
    labels = channels.argmax(dim=1) if channels.shape[1] > 1 else (channels[:, 0] > threshold).long()
    return COLOURS.to(labels.device)[labels % len(COLOURS)].movedim(-1, 1)


class Progress:
    """A progress bar over the iterations of a run, with the loss beside it; quiet where there is no terminal.

    Args:
        label: shown in front.
        log_every: without a terminal, print a line every so many epochs instead (0: never).
    """

    def __init__(self, label: str = "training", log_every: int = 1) -> None:
        from rich.console import Console

        self.label, self.log_every = label, log_every
        self.console = Console(stderr=True)
        self.bar: Any = None
        self.total, self.count = 0.0, 0

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        engine.add_event_handler(Events.COMPLETED, self._stop)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _start(self, engine: Any) -> None:
        if not self.console.is_terminal:
            return
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
        self.bar = Bar(*columns, TimeRemainingColumn(), console=self.console)
        length = engine.state.epoch_length or len(engine.data_loader)
        self.task = self.bar.add_task(self.label, total=length * engine.state.max_epochs, loss="")
        self.bar.start()

    def _advance(self, engine: Any) -> None:
        output = engine.state.output[0] if isinstance(engine.state.output, list) else engine.state.output
        self.total, self.count = self.total + float(output[CommonKeys.LOSS]), self.count + 1
        if self.bar is not None:
            loss = f"loss {self.total / self.count:.4f}"
            self.bar.update(self.task, completed=engine.state.iteration, loss=loss)

    def _epoch(self, engine: Any) -> None:
        if self.bar is None and self.log_every and engine.state.epoch % self.log_every == 0:
            mean = self.total / max(1, self.count)
            self.console.print(f"{self.label}: epoch {engine.state.epoch}/{engine.state.max_epochs}, loss {mean:.4f}")
        self.total, self.count = 0.0, 0

    def _stop(self, engine: Any) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _fail(self, engine: Any, error: BaseException) -> None:
        self._stop(engine)
        raise error
