"""How long a training step takes here, so that hours can be told in steps: the template's own trainer, on noise."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from ignite.engine import Engine, Events

from cgdpm_med.datasets.plan import Plan
from cgdpm_med.datasets.rehearsal import Rehearsal, rehearsal_parser

FIRST = 2
"""Steps that are not counted: they prepare what later ones find ready."""


@dataclass(frozen=True)
class Pace:
    """Seconds.

    Attributes:
        step: of a training step.
        member: of drawing one member for one slice, as validation does; in 3D for the median volume.
    """

    step: float
    member: float


class Stopwatch:
    """Times steps until there are enough of them; attach to a trainer.

    Args:
        seconds: after which it ends, once some steps are counted.
        least: steps to count.
    """

    def __init__(self, seconds: float, least: int = 3) -> None:
        self.seconds, self.least = seconds, least
        self.begin, self.counted = 0.0, 0

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        now = time.perf_counter()
        if engine.state.iteration <= FIRST:
            self.begin = now
            return
        self.counted, self.elapsed = engine.state.iteration - FIRST, now - self.begin
        if self.counted >= self.least and self.elapsed >= self.seconds:
            engine.terminate()

    @property
    def each(self) -> float:
        """Seconds of a step; their mean, since what else the machine does counts, too."""
        return self.elapsed / self.counted


def rehearse(plan: Plan, channels: Sequence[str], labels: Sequence[str], device: torch.device, seconds: float) -> Pace:
    """Take steps of a plan's training, and draw members with its network, on random numbers.

    Args:
        channels, labels: names, as in the data set.
        seconds: to spend on steps, about; three are taken in any case.
    """
    parser = rehearsal_parser(Rehearsal(plan, channels, labels), device)
    watch = Stopwatch(seconds)
    parser["train#trainer#train_handlers"] = ["@ema"]  # nothing is saved, validated or shown
    parser["epochs"] = 1000
    trainer = parser.get_parsed_content("train#trainer")
    watch.attach(trainer)
    trainer.run()
    return Pace(watch.each, _member_seconds(parser, plan, device))


def _member_seconds(parser: Any, plan: Plan, device: torch.device) -> float:
    predictor = parser.get_parsed_content("sampler_predictor")
    draw = partial(parser.get_parsed_content("validate#inferer"), network=predictor) if plan.volumes else predictor
    size = [max(n, side) for n, side in zip(plan.field, plan.crop, strict=True)]
    image = torch.randn(1, len(parser.get_parsed_content("task").input.channels), *size, device=device)
    with torch.inference_mode():
        draw(image)
        begin = time.perf_counter()
        draw(image).sum().item()  # waits for a GPU
    return time.perf_counter() - begin
