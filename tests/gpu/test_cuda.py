"""On a GPU: the numbers of the CPU, batches that give way to the memory, lower precision, training, compiling.

Where there is no GPU, most of them run on the CPU alone: that finds what they call and read in the package gone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPO
from monai.engines import SupervisedTrainer
from small_networks import small_mask_denoiser, small_network
from torch import Tensor, nn

from cgdpm_med import (
    DiffusionLoss,
    DiffusionPredictor,
    GuidanceLoss,
    NoiseSchedule,
    Replay,
    Segmenter,
    autocast_dtype,
    guide_from_denoiser,
    read_volume,
    sample_ensemble,
)
from cgdpm_med.diffusion.targets import ImageTarget
from cgdpm_med.networks.blocks import conv, conv_transpose
from cgdpm_med.phantom import write_phantom_dataset
from cgdpm_med.runtime.batching import BatchLimit
from cgdpm_med.runtime.layers import FastGroupNorm as GroupNorm
from cgdpm_med.runtime.layers import fast_layer
from cgdpm_med.training.engines import DiffusionUpdate

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="there is no GPU")
SCHEDULE = NoiseSchedule(1000, "cosine", "sample")


@pytest.fixture(autouse=True)
def _single_precision_is_exact() -> Iterator[None]:
    """Tensor cores round float32 products to ten bits unless they are told not to."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def predictor(**settings: Any) -> DiffusionPredictor:
    """A guided one: denoiser and guide differ."""
    common: dict[str, Any] = {"steps": 4, "members": 5, "precision": "float32"}
    guide = guide_from_denoiser(small_network(1), SCHEDULE)
    return DiffusionPredictor(small_mask_denoiser(0), guide, SCHEDULE, **{**common, **settings})


@pytest.mark.parametrize("method", ["ddim", "ddpm", "dpmpp_2m"])
def test_an_ensemble_is_that_of_the_cpu(images: Tensor, method: str) -> None:
    model = predictor(method=method)
    expected = model.ensemble(images)
    drawn = model.to(DEVICE).ensemble(images.to(DEVICE))
    assert drawn.device.type == DEVICE.type
    torch.testing.assert_close(drawn.cpu(), expected, atol=1e-4, rtol=0)


def test_batching_changes_no_member(images: Tensor) -> None:
    model = predictor().to(DEVICE)
    whole = model.ensemble(images.to(DEVICE))
    for max_batch in (1, 4):
        model.limit = BatchLimit(max_batch)
        torch.testing.assert_close(model.ensemble(images.to(DEVICE)), whole, atol=1e-5, rtol=0)


class Hungry(nn.Module):
    """A denoiser that needs a quarter of a gigabyte for every field."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        self.batches.append(len(x_t))
        need = torch.ones(len(x_t), 2**26, device=x_t.device)
        return 0.5 * x_t + context * need[:, :1, None, None]


@needs_gpu
def test_what_does_not_fit_is_drawn_in_halves(images: Tensor) -> None:
    hungry, context = Hungry(), images.to(DEVICE)
    how: dict[str, Any] = {"shape": (1, 16, 16), "members": 8, "steps": 2}
    limit = BatchLimit(64)
    torch.cuda.empty_cache()
    # room for seven fields at once, 1.75 GB, and not for eight
    room = torch.cuda.memory_allocated() + 15 * 2**27
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(DEVICE).total_memory)
    try:
        drawn = sample_ensemble(hungry, context, SCHEDULE, max_batch=limit, **how)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert max(hungry.batches) == 24
    assert hungry.batches[-1] <= 7
    assert limit.pixels is not None
    unlimited = sample_ensemble(lambda x_t, t, c: 0.5 * x_t + c, images, SCHEDULE, **how)
    torch.testing.assert_close(drawn.cpu(), unlimited, atol=1e-5, rtol=0)


@needs_gpu
def test_bfloat16_where_it_is_fast(images: Tensor) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bfloat16")
    assert autocast_dtype(DEVICE) == torch.bfloat16
    exact, rounded = (predictor(precision=p).to(DEVICE).ensemble(images.to(DEVICE)) for p in ("float32", "auto"))
    assert rounded.dtype == torch.float32
    difference = (rounded - exact).abs()
    assert 1e-6 < difference.mean() < 5e-3


@pytest.mark.parametrize("film", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_group_normalisation_is_that_of_the_cpu(film: bool, layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    norm, x = GroupNorm(4, 16), 3 + torch.randn(2, 16, 6, 10, generator=generator)
    given = tuple(torch.randn(2, 16, generator=generator) for _ in range(2)) if film else None
    found = []
    for device in (torch.device("cpu"), DEVICE):
        own = copy.deepcopy(norm).to(device)
        leaf = x.to(device, copy=True, memory_format=layout).requires_grad_()
        out = own(leaf, None if given is None else tuple(z.to(device) for z in given))
        (out**3).sum().backward()
        assert own.weight.grad is not None
        assert leaf.grad is not None
        with torch.no_grad():  # a way of its own
            again = own(leaf, None if given is None else tuple(z.to(device) for z in given))
        found.append([z.detach().cpu() for z in (out, again, leaf.grad, own.weight.grad)])
    for ours, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@needs_gpu
@pytest.mark.parametrize("shape", [(2, 64, 40, 36), (3, 96, 32, 32), (2, 160, 16, 16), (2, 352, 4, 6), (5, 12, 3, 3)])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalisation_in_one_kernel(shape: tuple[int, ...], silu: bool, per_image: bool, dtype: torch.dtype) -> None:
    from cgdpm_med.runtime.fused_norm import group_norm

    generator = torch.Generator().manual_seed(0)
    channels, groups = shape[1], math.gcd(32, shape[1])
    x = (30 + 2 * torch.randn(shape, generator=generator)).to(dtype)
    affine = (shape[0], channels) if per_image else (channels,)
    scale, shift = (torch.randn(affine, generator=generator) for _ in range(2))
    exact = nn.functional.group_norm(x.double(), groups) * scale.double().reshape(-1, channels, 1, 1)
    exact = exact + shift.double().reshape(-1, channels, 1, 1)
    exact = nn.functional.silu(exact) if silu else exact
    last = x.to(DEVICE).contiguous(memory_format=torch.channels_last)
    found = group_norm(last, scale.to(DEVICE), shift.to(DEVICE), groups, 1e-5, silu)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    error = (found.cpu().double() - exact).norm() / exact.norm()
    assert error < (1e-5 if dtype == torch.float32 else 3e-3)


@pytest.mark.parametrize("grad", [False, True])
def test_patches_are_those_of_the_cpu(grad: bool) -> None:
    for layer, shape in ((conv(2, 4, 8, 2, 2), (3, 4, 12, 8)), (conv_transpose(2, 8, 5, 2), (3, 8, 6, 4))):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        found = []
        for device in (torch.device("cpu"), DEVICE):
            own, leaf = fast_layer(copy.deepcopy(layer)).to(device), x.to(device, copy=True).requires_grad_(grad)
            with torch.set_grad_enabled(grad):
                out = own(leaf)
            if grad:
                (out**2).sum().backward()
                assert leaf.grad is not None
            found.append([z.detach().cpu() for z in (out, *([leaf.grad, own.weight.grad] if grad else []))])
        for ours, expected in zip(found[1], found[0], strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[torch.cuda.CUDAGraph]:
    """The graphs that are replayed, in order."""
    graphs, replay = [], torch.cuda.CUDAGraph.replay

    def noted(graph: torch.cuda.CUDAGraph) -> None:
        graphs.append(graph)
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", noted)
    return graphs


def test_replayed_evaluations_are_the_networks_own(images: Tensor, replayed: list[torch.cuda.CUDAGraph]) -> None:
    graphs, eager = (predictor(precision="auto", cuda_graphs=each).to(DEVICE) for each in (True, False))
    for seed in range(3):
        graphs.sampling = eager.sampling = replace(eager.sampling, seed=seed)
        assert torch.equal(graphs.ensemble(images.to(DEVICE)), eager.ensemble(images.to(DEVICE)))
    # of the denoiser and of the guide: the condition's features, an evaluation
    assert len(set(map(id, replayed))) == (4 if DEVICE.type == "cuda" else 0)
    other = predictor(precision="auto", cuda_graphs=False).to(DEVICE)
    for model in (graphs, other):  # weights that were loaded later count
        model.denoiser.load_state_dict(small_mask_denoiser(5).state_dict())
    again = graphs.ensemble(images.to(DEVICE))
    other.sampling = graphs.sampling
    assert torch.equal(again, other.ensemble(images.to(DEVICE)))


class Peeking(nn.Module):
    """A denoiser that looks at a number on the CPU, which a recording cannot contain."""

    def forward(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return 0.5 * x_t + float(context.sum())


@needs_gpu
def test_what_cannot_be_recorded_runs_without(images: Tensor) -> None:
    model = DiffusionPredictor(Peeking(), None, SCHEDULE, ImageTarget(1), steps=4, members=2).to(DEVICE)
    with pytest.warns(UserWarning, match="cannot be recorded"):
        drawn = model.ensemble(images.to(DEVICE))
    expected = DiffusionPredictor(Peeking(), None, SCHEDULE, ImageTarget(1), steps=4, members=2)
    torch.testing.assert_close(drawn.cpu(), expected.ensemble(images), atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(model.ensemble(images.to(DEVICE)), drawn)


def test_a_training_step_is_that_of_the_cpu(images: Tensor) -> None:
    target = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    weights = []
    for device in (torch.device("cpu"), DEVICE):
        network = small_network(3).train().to(device)
        # timesteps and noise from the CPU's generator for both
        loss = partial(DiffusionLoss(SCHEDULE), generator=torch.Generator().manual_seed(2))
        trainer = SupervisedTrainer(
            device=device,
            max_epochs=1,
            train_data_loader=[{"image": images, "target": target}],
            network=network,
            optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
            loss_function=loss,
            prepare_batch=lambda batch, device, *_, **__: (batch["target"].to(device), batch["image"].to(device)),
            iteration_update=DiffusionUpdate(precision="float32"),
            decollate=False,
        )
        trainer.run()
        weights.append(torch.cat([p.detach().cpu().flatten() for p in network.parameters()]))
    before = torch.cat([p.flatten() for p in small_network(3).parameters()])
    assert (weights[0] - before).abs().max() > 1e-3
    torch.testing.assert_close(weights[1], weights[0], atol=1e-5, rtol=0)


def test_replayed_examples_are_those_of_the_cpu(images: Tensor) -> None:
    s_0 = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(1)).sign() / 2
    found = []
    for device in (torch.device("cpu"), DEVICE):
        denoiser = small_mask_denoiser(0).to(device)
        replay = Replay(denoiser, SCHEDULE, generator=torch.Generator().manual_seed(4), capacity=12, chains=1, steps=4)
        replay.fill(s_0.to(device), images.to(device))
        examples = replay.draw(6)
        guide = guide_from_denoiser(small_network(1), SCHEDULE).to(device)
        loss = GuidanceLoss(SCHEDULE, "sample")(guide, *examples)
        found.append([z.detach().cpu() for z in (*examples, loss)])
    for ours, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@needs_gpu
def test_compiled_is_eager(images: Tensor) -> None:
    eager, compiled = (predictor(compile=each).to(DEVICE) for each in (False, True))
    torch.testing.assert_close(
        compiled.ensemble(images.to(DEVICE)), eager.ensemble(images.to(DEVICE)), atol=1e-4, rtol=0
    )


@needs_gpu
def test_the_shipped_model_gives_the_masks_of_the_cpu(tmp_path: Path) -> None:
    (patient,) = write_phantom_dataset(tmp_path, 1)
    scans = sorted(patient.glob("*frame01.nii.gz"))
    masks = []
    for device in ("cpu", "cuda"):
        segmenter = Segmenter.from_bundle(
            REPO / "bundles" / "acdc_segmentation", device=device, members=2, precision="float32"
        )
        masks.append(segmenter(read_volume(scans[0])).mask)
    assert (masks[0] > 0).sum() > 100
    assert np.mean(masks[0] != masks[1]) < 1e-3
