"""Batches, iterations, and a training run that survives being killed, bit for bit."""

from __future__ import annotations

import math
import random
import signal
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPO
from forked import Forked
from ignite.engine import Events
from malicious import write_malicious
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer
from small_networks import small_network
from torch import Tensor, nn
from toy_training import toy_run

from cgdpm_med.data.acdc import load_split
from cgdpm_med.diffusion.losses import DiffusionLoss
from cgdpm_med.diffusion.schedule import NoiseSchedule
from cgdpm_med.diffusion.targets import ImageTarget, MaskTarget
from cgdpm_med.files import InputError
from cgdpm_med.phantom import write_phantom_dataset
from cgdpm_med.runtime.layers import optimise
from cgdpm_med.training.engines import (
    DiffusionUpdate,
    TargetPrepareBatch,
    WarmupCosine,
    random_state,
    set_random_state,
)

# --- batches ----------------------------------------------------------------------------------------------------------


def test_mask_batch_is_target_and_condition(generator: torch.Generator) -> None:
    batch = {
        "image": MetaTensor(torch.rand(2, 3, 4, 4, generator=generator)),
        "label": torch.randint(0, 4, (2, 1, 4, 4), generator=generator, dtype=torch.uint8),
    }
    x_0, y = TargetPrepareBatch(MaskTarget(4, 0.1))(batch, "cpu")
    assert torch.equal(x_0, MaskTarget(4, 0.1).encode(batch["label"]))
    assert torch.equal(y, batch["image"].as_tensor())
    assert type(y) is Tensor

    def mirrored(image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        return image.flip(2), label.flip(2)

    x_0, y = TargetPrepareBatch(MaskTarget(4), augment=mirrored)(batch, "cpu")
    assert torch.equal(x_0, MaskTarget(4).encode(batch["label"].flip(2)))
    assert torch.equal(y, batch["image"].as_tensor().flip(2))


def test_places_are_shown_beside_the_image_and_never_augmented(generator: torch.Generator) -> None:
    image, place = torch.rand(2, 3, 4, 4, generator=generator), torch.tensor([[-1.0, 0.5], [0.25, 0.0]])
    batch = {"image": image, "label": torch.zeros(2, 1, 4, 4, dtype=torch.uint8), "place": place}
    prepare = TargetPrepareBatch(MaskTarget(4), augment=lambda y, truth: (y + 1, truth))
    _, y = prepare(batch, "cpu")
    assert torch.equal(y[:, :3], image + 1)
    assert torch.equal(y[:, 3:], place[:, :, None, None].expand(2, 2, 4, 4))


def test_image_batch_is_target_and_condition() -> None:
    batch = {"image": torch.ones(1, 3, 8, 8), "condition": torch.zeros(1, 3, 2, 2)}
    x_0, y = TargetPrepareBatch(ImageTarget(), "image", "condition")(batch, "cpu")
    assert x_0 is batch["image"]
    assert y is batch["condition"]


# --- one iteration ----------------------------------------------------------------------------------------------------

SCHEDULE = NoiseSchedule(1000, "cosine", "sample")
BINARY = MaskTarget(2, scale=0.5)


def batches(count: int) -> list[dict[str, Tensor]]:
    """Bright squares are class 1: something a small network learns in a few iterations."""
    generator = torch.Generator().manual_seed(0)
    label = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    for b, (top, left) in enumerate(((0, 0), (1, 3), (3, 2), (4, 4))):
        label[b, 0, top : top + 4, left : left + 4] = 1
    image = label.float() + 0.1 * torch.randn(label.shape, generator=generator)
    return [{"image": image, "label": label}] * count


def trainer(
    network: nn.Module, loss: Callable[..., Tensor], *, iterations: int, lr: float = 0.01, **update: Any
) -> SupervisedTrainer:
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=batches(iterations),
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=lr),
        loss_function=loss,
        prepare_batch=TargetPrepareBatch(BINARY),
        iteration_update=DiffusionUpdate(**({"precision": "float32"} | update)),
        decollate=False,
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_loss_falls(precision: str) -> None:
    torch.manual_seed(0)
    network = small_network(in_channels=1)
    engine = trainer(network, DiffusionLoss(SCHEDULE, BINARY), iterations=60, precision=precision)
    losses: list[float] = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(e.state.output["loss"]))
    engine.run()
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:5])
    assert all(p.dtype == torch.float32 for p in network.parameters())


def test_one_iteration_is_a_clipped_optimiser_step() -> None:
    network = small_network(in_channels=1)
    twin = optimise(small_network(in_channels=1))  # as the update does, to the last bit
    loss = DiffusionLoss(SCHEDULE, BINARY)
    engine = trainer(network, loss, iterations=1, max_grad_norm=0.01)
    torch.manual_seed(5)
    engine.run()
    torch.manual_seed(5)
    x_0, y = TargetPrepareBatch(BINARY)(batches(1)[0], "cpu")
    expected = loss(twin.train(), x_0, y)
    expected.backward()
    gradients = [p.grad for p in twin.parameters() if p.grad is not None]
    assert len(gradients) == len(list(twin.parameters()))
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
    assert norm > 0.01
    for gradient in gradients:
        gradient *= 0.01 / (norm + 1e-6)
    torch.optim.Adam(twin.parameters(), lr=0.01).step()
    assert engine.state.output["loss"] == expected.item()
    assert torch.equal(engine.state.output["label"], x_0)
    assert torch.equal(engine.state.output["image"], y)
    for a, b in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(value: float) -> None:
    network = small_network(in_channels=1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def broken(network: nn.Module, x_0: Tensor, y: Tensor) -> Tensor:
        return value * network(x_0, torch.zeros(len(x_0), dtype=torch.int64), y).square().sum()

    with pytest.raises(FloatingPointError, match=f"the loss is {value} at iteration 1"):
        trainer(network, broken, iterations=3).run()
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_the_run(value: float) -> None:
    network = small_network(in_channels=1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    next(network.parameters()).register_hook(lambda gradient: torch.full_like(gradient, value))

    def loss(network: nn.Module, x_0: Tensor, y: Tensor) -> Tensor:
        return network(x_0, torch.zeros(len(x_0), dtype=torch.int64), y).square().mean() + 1

    with pytest.raises(FloatingPointError, match=f"a gradient is {value} at iteration 1"):
        trainer(network, loss, iterations=3).run()
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_unknown_precision() -> None:
    with pytest.raises(ValueError, match="precision must be one of auto, float32, bfloat16, not 'fp16'"):
        DiffusionUpdate(precision="fp16")


def test_learning_rate_by_hand() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = WarmupCosine(optimizer, total=8, warmup=4, floor=0.1)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    half = 0.1 + 0.9 * 0.5
    expected = [0.25, 0.5, 0.75, 1.0, 1.0, 0.1 + 0.45 * (1 + 0.5**0.5), half, 0.1 + 0.45 * (1 - 0.5**0.5), 0.1, 0.1]
    np.testing.assert_allclose(rates, 2 * np.array(expected), rtol=1e-12)


# --- random states ----------------------------------------------------------------------------------------------------


def test_random_states_of_every_source_come_back(tmp_path: Path) -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    random.gauss(0, 1), np.random.standard_normal()  # noqa: NPY002  # both keep a second number for later

    def draw() -> tuple[float, ...]:
        return (float(torch.randn(())), float(np.random.standard_normal()), random.gauss(0, 1), random.random())  # noqa: NPY002

    torch.save(random_state(), tmp_path / "state.pt")
    drawn = draw()
    assert draw() != drawn
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == drawn


# --- a killed run -----------------------------------------------------------------------------------------------------

KILL = """
imports: [$import os, $import torch, $import monai, $import ignite, $import cgdpm_med]
third: $ignite.engine.Events.ITERATION_COMPLETED(once=3)
run:
  - "$@train#trainer.add_event_handler(@third, lambda: os.kill(os.getpid(), 9))"
  - $@train#trainer.run()
"""


def bundle_arguments(dataset: Path, output: Path, *more: Path) -> list[str]:
    """The bundle's own training, made tiny: 2 epochs of 2 iterations, validated after each."""
    root = REPO / "bundles" / "acdc_segmentation"
    files = [str(root / "configs" / "train.yaml"), *map(str, more)]
    settings = {
        "config_file": files[0] if not more else str(files),
        "bundle_root": str(root),
        "dataset_dir": str(dataset),
        "output_dir": str(output),
        "device": "$torch.device('cpu')",
        "precision": "float32",
        "epochs": "2",
        "batch_size": "4",
        "val_interval": "1",
        "channels": "[8,16]",
        "network_def#attention_levels": "[false,true]",
        "field": "24",
        "crop": "16",
        "spacing": "3.0",
        "sampler_predictor#steps": "1",
    }
    return ["run", *(part for k, v in settings.items() for part in (f"--{k}", v))]


def flattened(value: Any, name: str = "") -> dict[str, Any]:
    """Every leaf of nested dictionaries and lists, by path."""
    if isinstance(value, Mapping):
        return {k: v for key, item in value.items() for k, v in flattened(item, f"{name}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, item in enumerate(value) for k, v in flattened(item, f"{name}/{i}").items()}
    return {name: value}


@pytest.mark.slow
def test_a_killed_and_resumed_run_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    split = load_split()
    numbers = [int(split[section][0][-3:]) for section in ("train", "validation")]
    dataset = tmp_path / "data"
    write_phantom_dataset(dataset, numbers, shape=(40, 36, 4), spacing=(4.0, 4.0, 22.0), num_frames=6)
    kill = tmp_path / "kill.yaml"
    kill.write_text(KILL)
    start = partial(Forked, "monai.bundle")

    def checkpoint(output: str) -> dict[str, Any]:
        return torch.load(tmp_path / output / "checkpoint.pt", weights_only=True)

    whole = start(bundle_arguments(dataset, tmp_path / "whole"), tmp_path / "whole.log")
    killed = start(bundle_arguments(dataset, tmp_path / "killed", kill), tmp_path / "killed.log")
    assert whole.exit_code() == 0, whole.said()
    assert killed.exit_code() == -signal.SIGKILL, killed.said()
    halfway = checkpoint("killed")
    assert halfway["place"] == {"epoch": 1, "iteration": 2}
    resumed = start(bundle_arguments(dataset, tmp_path / "killed"), tmp_path / "resumed.log")
    assert resumed.exit_code() == 0, resumed.said()

    a, b = flattened(checkpoint("whole")), flattened(checkpoint("killed"))
    assert a["/place/epoch"] == 2
    assert a["/place/iteration"] == 4
    assert a.keys() == b.keys()
    assert {name.split("/")[1] for name in a} >= {"network", "ema", "optimizer", "lr_scheduler", "best", "random"}
    for name, value in a.items():
        assert torch.equal(value, b[name]) if isinstance(value, Tensor) else value == b[name], name
    # the second epoch did change what is compared, and the best metric is a Dice
    assert any(not torch.equal(halfway["network"][name], b[f"/network/{name}"]) for name in halfway["network"])
    assert 0 <= a["/best/best"] <= 1
    for weights in ("model.pt", "model_last.pt"):
        of_whole, of_killed = (
            torch.load(tmp_path / run / weights, weights_only=True)["model"] for run in ("whole", "killed")
        )
        assert all(torch.equal(of_whole[name], of_killed[name]) for name in of_whole)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_runs_continued_after_every_epoch(tmp_path: Path) -> None:
    whole = toy_run(tmp_path / "whole", epochs=3)
    for epochs in (1, 2, 3):
        pieces = toy_run(tmp_path / "pieces", epochs=epochs)
        assert pieces["epoch"] == epochs
    assert flattened(pieces).keys() == flattened(whole).keys()
    assert all(torch.equal(pieces["network"][name], whole["network"][name]) for name in whole["network"])
    assert pieces["lr"] == whole["lr"]
    assert pieces["iteration"] == 9


def test_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    first = toy_run(tmp_path, epochs=2)
    again = toy_run(tmp_path, epochs=2)
    assert all(torch.equal(first["network"][name], again["network"][name]) for name in first["network"])
    assert again["iteration"] == 6


def test_resume_can_be_refused(tmp_path: Path) -> None:
    toy_run(tmp_path, epochs=2)
    assert toy_run(tmp_path, epochs=1, resume=False)["iteration"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: [1, 2], "does not fit this run: it holds no network"),
        (lambda state: {k: v for k, v in state.items() if k != "best"}, "does not fit this run: it holds no best"),
        (
            lambda state: state | {"network": nn.Linear(3, 2).state_dict()},
            r"does not fit this run's network \(.*weight",
        ),
        (lambda state: state | {"optimizer": {"state": {}}}, r"does not fit this run's optimizer \(.*param_groups"),
        (
            lambda state: state | {"place": {"epoch": 1, "iteration": 5}},
            "its epochs have 5 iterations instead of 3",
        ),
    ],
)
def test_a_checkpoint_of_another_run(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    toy_run(tmp_path, epochs=1)
    path = tmp_path / "checkpoint.pt"
    torch.save(change(torch.load(path, weights_only=True)), path)
    with pytest.raises(InputError, match=message) as caught:
        toy_run(tmp_path, epochs=2)
    assert caught.value.path == path


def test_a_damaged_checkpoint(tmp_path: Path) -> None:
    toy_run(tmp_path, epochs=1)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"checkpoint\.pt: is no readable checkpoint .*Move it elsewhere"):
        toy_run(tmp_path, epochs=2)


def test_a_checkpoint_with_a_tensor_overwritten(tmp_path: Path) -> None:
    toy_run(tmp_path, epochs=1)
    path = tmp_path / "checkpoint.pt"
    with zipfile.ZipFile(path) as archive:
        record = next(info for info in archive.infolist() if "/data/" in info.filename and info.file_size)
        stored = archive.read(record)
    content = path.read_bytes()
    start = content.index(stored, record.header_offset)
    path.write_bytes(content[:start] + bytes(byte ^ 1 for byte in stored) + content[start + len(stored) :])
    with pytest.raises(InputError, match=rf"is no readable checkpoint \(is damaged \(checksum of {record.filename}"):
        toy_run(tmp_path, epochs=2)


def test_a_checkpoint_that_would_run_code(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    write_malicious(tmp_path / "checkpoint.pt", marker)
    with pytest.raises(InputError, match="is no readable checkpoint"):
        toy_run(tmp_path, epochs=1)
    assert not marker.exists()
