"""Where a run's network looks: in the middle first, then around what was found there. The network is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cgdpm_med.apps.segment_slices import FoldSegmenter, SliceSegmenter
from cgdpm_med.datasets.loading import Loaded, View
from cgdpm_med.diffusion.sampling import Sampling
from cgdpm_med.diffusion.schedule import NoiseSchedule
from cgdpm_med.diffusion.targets import MaskTarget
from cgdpm_med.inference.predictor import DiffusionPredictor
from cgdpm_med.models.description import Label, ModelDescription, SliceInput
from cgdpm_med.models.files import Model

SIZE = 96
SEEN = SliceInput(1.0, ("grey",), intensity="as it is", region=(80, 80), patch=(16, 16))


class Bright(nn.Module):
    """What is bright is a structure, more or less by the noise; remembers the fields that it saw."""

    divisor, out_channels, cond_channels = 4, 1, 1

    def __init__(self) -> None:
        super().__init__()
        self.fields: list[tuple[int, ...]] = []

    def forward(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        self.fields.append(tuple(x_t.shape[2:]))
        return 8 * (context - 0.5) + x_t


def segmenter(seen: SliceInput = SEEN) -> tuple[SliceSegmenter, Bright]:
    network, target = Bright(), MaskTarget(2)
    schedule = NoiseSchedule(schedule="cosine", prediction_type="sample")
    description = ModelDescription("denoiser", {}, {}, {}, seen, (Label("spot"),))
    model = Model(network, target, schedule, description, Path("model.pt"))
    how: dict[str, Any] = {"steps": 3, "members": 4, "precision": "float32"}
    predictor = DiffusionPredictor(target.denoiser(network), schedule=schedule, target=target, **how)
    return SliceSegmenter(model, predictor), network


def loaded(*corners: tuple[int, int]) -> tuple[Loaded, NDArray[np.bool_]]:
    """Squares of six pixels, bright on dark ground."""
    bright = np.zeros((SIZE, SIZE, 2), bool)
    for x, y in corners:
        bright[x : x + 6, y : y + 6] = True
    return Loaded((2 * bright - 1).astype(np.float32)[None], (1.0, 1.0, 8.0), View()), bright


def test_members_are_drawn_around_what_is_found_in_the_middle() -> None:
    found, network = segmenter()
    image, bright = loaded((40, 30), (0, 0))
    mask = found(image, "a").mask
    assert list(dict.fromkeys(network.fields)) == [(80, 80), (40, 40)]  # 6 + 2 * 16 in multiples of 4
    bright[:6, :6] = False  # which lies beyond the region
    np.testing.assert_array_equal(mask, bright)


def test_the_whole_region_is_drawn_where_nothing_is_found() -> None:
    found, network = segmenter()
    assert not found(loaded()[0], "a").mask.any()
    assert set(network.fields) == {(80, 80)}


def test_an_image_smaller_than_the_region_is_shown_whole() -> None:
    found, network = segmenter(SliceInput(1.0, ("grey",), intensity="as it is", region=(128, 80), patch=(16, 16)))
    found(loaded()[0], "a")
    assert set(network.fields) == {(96, 80)}


@pytest.mark.parametrize("sides", [{}, {"region": (80, 80)}])
def test_without_the_size_of_its_training_the_network_sees_all_at_once(sides: dict[str, Any]) -> None:
    found, network = segmenter(SliceInput(1.0, ("grey",), intensity="as it is", **sides))
    found(loaded((40, 30))[0], "a")
    assert set(network.fields) == {sides.get("region", (SIZE, SIZE))}


def test_some_of_the_members_are_those_of_the_whole_ensemble() -> None:
    found, image = segmenter()[0], loaded((40, 30))[0]
    whole = found.drawn(image, "a", range(4))
    assert bool((whole[0] - whole[1]).abs().max() > 0)
    assert torch.equal(found.drawn(image, "a", [1, 3]), whole[[1, 3]])
    folds = FoldSegmenter([segmenter()[0], segmenter()[0]], 4)
    np.testing.assert_array_equal(folds(image, "a").mask, found(image, "a").mask)
    assert found.predictor.sampling == Sampling(steps=3, members=4)
