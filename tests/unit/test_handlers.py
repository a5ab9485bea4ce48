"""Sample grids by hand, what reaches TensorBoard, and the progress of a run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from rich.console import Console
from small_networks import small_mask_denoiser
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from cgdpm_med.diffusion.schedule import NoiseSchedule
from cgdpm_med.diffusion.targets import PALETTE, ImageTarget, MaskTarget
from cgdpm_med.inference.predictor import DiffusionPredictor
from cgdpm_med.training.handlers import Progress, SampleGrid, sample_grid

# --- pictures ---------------------------------------------------------------------------------------------------------


COLOURS = torch.tensor(PALETTE)


def one_hot(labels: list[list[int]]) -> Tensor:
    return MaskTarget(4).probabilities(torch.tensor(labels)[None, None])


def test_mask_grid_by_hand() -> None:
    """Two images with three channels, two members: a row for each image, the tiles side by side."""
    image = torch.zeros(2, 3, 1, 2)
    image[:, 1] = torch.tensor([[[-1.0, 0.0]], [[1.0, 3.0]]])  # the slice itself lies between its neighbours
    image[:, 2] = 99
    truth = torch.cat([one_hot([[0, 1]]), one_hot([[2, 3]])])
    members = torch.stack([truth, truth.flip(-1)])
    grid = sample_grid(image, truth, members, MaskTarget(4))
    assert grid.shape == (3, 2, 4 * 2)
    assert torch.equal(grid[:, :, :2], torch.tensor([[0.0, 0.25], [0.5, 1.0]]).expand(3, 2, 2))
    expected = COLOURS[torch.tensor([[0, 1, 0, 1, 1, 0], [2, 3, 2, 3, 3, 2]])].movedim(-1, 0)
    assert torch.equal(grid[:, :, 2:], expected)


def test_grid_of_binary_masks_by_hand() -> None:
    """Two per cent are no foreground."""
    truth = torch.tensor([[[[0.0, 1.0, 1.0, 0.0]]]])
    members = torch.tensor([0.02, 0.49, 0.51, 1.0]).expand(1, 1, 1, 1, 4)
    grid = sample_grid(torch.zeros(1, 1, 1, 4), truth, members, MaskTarget(2))
    assert torch.equal(grid[:, 0, 4:], COLOURS[torch.tensor([0, 1, 1, 0, 0, 0, 1, 1])].T)


def test_volumes_are_shown_by_their_middle_slice() -> None:
    truth = one_hot([[0, 1]])[..., None].repeat(1, 1, 1, 1, 3)
    truth[..., 1] = one_hot([[2, 3]])
    image = torch.rand(1, 1, 1, 2, 3)
    expected = sample_grid(image[..., 1], truth[..., 1], truth[None, ..., 1], MaskTarget(4))
    assert torch.equal(sample_grid(image, truth, truth[None], MaskTarget(4)), expected)


def test_image_grid_by_hand() -> None:
    low = torch.tensor([[[[-1.0]], [[0.0]], [[1.0]]]])
    truth = torch.full((1, 3, 2, 2), 0.5)
    grid = sample_grid(low, truth, torch.full((1, 1, 3, 2, 2), 7.0), ImageTarget())
    assert grid.shape == (3, 2, 6)
    assert grid[:, 0, 0].tolist() == [0, 0.5, 1]
    assert torch.equal(grid[:, :, :2], grid[:, :1, :1].expand(3, 2, 2))
    assert torch.equal(grid[:, :, 2:4], torch.full((3, 2, 2), 0.75))
    assert torch.equal(grid[:, :, 4:], torch.ones(3, 2, 2))


def test_grey_images_become_colour_pictures() -> None:
    grid = sample_grid(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1, 2, 2), ImageTarget(1))
    assert torch.equal(grid, torch.full((3, 2, 6), 0.5))


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def test_grids_reach_tensorboard_every_few_epochs(tmp_path: Path, generator: torch.Generator) -> None:
    image = torch.randn(5, 1, 8, 8, generator=generator)
    truth = MaskTarget(4, 0.5).encode(torch.randint(0, 4, (5, 1, 8, 8), generator=generator))
    schedule = NoiseSchedule(1000, "cosine", "sample")
    predictor = DiffusionPredictor(small_mask_denoiser(), schedule=schedule, steps=1, members=9, precision="float32")
    engine = Engine(lambda engine, batch: {"image": image, "label": truth, "loss": 1.0})
    with SummaryWriter(str(tmp_path)) as writer:
        SampleGrid(writer, predictor, every=2, images=3, members=2).attach(engine)
        engine.run([0], max_epochs=5)
    events = EventAccumulator(str(tmp_path)).Reload().Images("samples")
    assert [event.step for event in events] == [2, 4]
    assert (events[0].height, events[0].width) == (3 * 8, 4 * 8)
    # the same images give the same picture: members are keyed
    assert events[0].encoded_image_string == events[1].encoded_image_string


def test_the_grid_shows_the_members_of_the_predictor(generator: torch.Generator) -> None:
    image = torch.randn(2, 1, 8, 8, generator=generator)
    truth = MaskTarget(4, 0.5).encode(torch.randint(0, 4, (2, 1, 8, 8), generator=generator))
    schedule = NoiseSchedule(1000, "cosine", "sample")
    predictor = DiffusionPredictor(small_mask_denoiser(), schedule=schedule, steps=1, precision="float32")
    shown: list[tuple[str, Tensor, int]] = []

    class Writer:
        def add_image(self, tag: str, picture: Tensor, step: int) -> None:
            shown.append((tag, picture, step))

    engine = Engine(lambda engine, batch: None)
    engine.state.output = [{"image": image, "label": truth}]  # MONAI's engines may hold a list
    engine.state.epoch = 3
    SampleGrid(Writer(), predictor, members=2)(engine)
    ((tag, picture, step),) = shown
    members = predictor.ensemble(image, member_ids=[0, 1])
    assert (tag, step) == ("samples", 3)
    assert torch.equal(picture, sample_grid(image, MaskTarget(4, 0.5).decode(truth), members, MaskTarget(4, 0.5)))


# --- progress ---------------------------------------------------------------------------------------------------------


def run_with(progress: Progress, losses: list[float], epochs: int, fail_at: int | None = None) -> None:
    values = iter(losses * epochs)

    def step(engine: Engine, batch: Any) -> dict[str, float]:
        if engine.state.iteration == fail_at:
            raise FloatingPointError("the loss is nan")
        return {"loss": next(values)}

    engine = Engine(step)
    progress.attach(engine)
    engine.run([0] * len(losses), max_epochs=epochs)


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=80)


def printed(progress: Progress) -> str:
    return progress.console.file.getvalue()  # type: ignore[attr-defined]


def test_lines_without_a_terminal() -> None:
    progress = Progress("stage 1", log_every=2)
    progress.console = console(terminal=False)
    run_with(progress, [1.0, 2.0, 4.5], epochs=4)
    first, last = printed(progress).splitlines()
    assert first.startswith("stage 1: epoch 2/4, loss 2.5000, about ")
    assert first.endswith(" left")
    assert last == "stage 1: epoch 4/4, loss 2.5000"


def test_a_resumed_run_is_judged_by_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten epochs the first seven belong to an earlier process, and the eighth takes a minute."""
    seconds = [0.0]
    monkeypatch.setattr("cgdpm_med.training.handlers.perf_counter", lambda: seconds[0])

    def step(engine: Engine, batch: Any) -> dict[str, float]:
        seconds[0] += 60
        return {"loss": 1.0}

    progress = Progress()
    progress.console = console(terminal=False)
    engine = Engine(step)
    progress.attach(engine)
    restored = {"iteration": 7, "epoch": 7}
    engine.add_event_handler(Events.STARTED, lambda engine: vars(engine.state).update(restored))
    engine.run([0], max_epochs=10)
    assert printed(progress).splitlines()[0] == "training: epoch 8/10, loss 1.0000, about 2 min left"


def test_silence_when_asked_for() -> None:
    progress = Progress(log_every=0)
    progress.console = console(terminal=False)
    run_with(progress, [1.0], epochs=3)
    assert printed(progress) == ""


def test_bar_on_a_terminal() -> None:
    progress = Progress("stage 1")
    progress.console = console(terminal=True)
    seen: list[tuple[float, float | None, str]] = []

    def look(engine: Engine) -> None:
        (task,) = progress.bar.tasks
        seen.append((task.completed, task.total, task.fields["detail"]))

    engine = Engine(lambda engine, batch: {"loss": float(engine.state.iteration)})
    progress.attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, look)
    engine.run([0, 0], max_epochs=2)
    assert seen == [(1, 4, "loss 1.0000"), (2, 4, "loss 1.5000"), (3, 4, "loss 3.0000"), (4, 4, "loss 3.5000")]
    assert progress.bar is None
    assert "stage 1" in printed(progress)
    assert "4/4" in printed(progress)


@pytest.mark.parametrize("terminal", [True, False])
def test_an_error_ends_the_bar_and_reaches_the_caller(terminal: bool) -> None:
    progress = Progress()
    progress.console = console(terminal=terminal)
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        run_with(progress, [1.0, 2.0], epochs=1, fail_at=2)
    assert progress.bar is None
