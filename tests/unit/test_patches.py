"""Patches of volumes: where they lie, how they are changed, and windows that are denoised together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cgdpm_med import DiffusionPredictor, MaskTarget, Sampling
from cgdpm_med.data.augment_patches import PatchAugment, warp_patches
from cgdpm_med.data.patches import PatchDataset, patch
from cgdpm_med.datasets.loading import Loaded, View
from cgdpm_med.datasets.prepare_volumes import prepare_volume, volume_back
from cgdpm_med.inference.patches import PatchEnsembleInferer
from cgdpm_med.models.description import PatchInput, input_from


def item(shape: tuple[int, int, int], at: tuple[int, int, int]) -> dict[str, Tensor]:
    """An image that counts its voxels, with one voxel of class 1."""
    image = torch.arange(float(np.prod(shape))).reshape(1, *shape)
    label = torch.zeros(2, *shape)
    label[1][at] = 1
    label[0] = 1 - label[1]
    return {"image": image, "label": label}


# --- patches ----------------------------------------------------------------------------------------------------------


def test_a_patch_beyond_the_border_repeats_it() -> None:
    volume = torch.arange(4.0).reshape(1, 4, 1, 1)
    assert patch(volume, (-1, 0, 0), (6, 1, 1)).flatten().tolist() == [0, 0, 1, 2, 3, 3]
    assert patch(volume, (1, -1, 0), (2, 3, 1)).tolist() == [[[[1], [1], [1]], [[2], [2], [2]]]]


def test_every_patch_around_a_structure_holds_it() -> None:
    found = PatchDataset([item((20, 16, 9), (19, 0, 4))], (8, 8, 4), 40, foreground=1.0)
    for number in range(40):
        assert found[3, number]["label"][1].sum() == 1
    places = {int(found[epoch, 0]["image"].min()) for epoch in range(20)}
    assert len(places) > 3  # not the same place in every epoch


def test_patches_anywhere_reach_both_ends_and_never_leave() -> None:
    found = PatchDataset([item((6, 4, 4), (0, 0, 0))], (4, 4, 4), 60, foreground=0.0)
    first = [int(found[0, number]["image"][0, 0, 0, 0]) // 16 for number in range(60)]
    assert set(first) == {0, 1, 2}


def test_places_depend_on_seed_epoch_and_number_alone() -> None:
    volumes = [item((20, 16, 9), (3, 3, 3)), item((20, 16, 9), (15, 12, 7))]
    one, other = (PatchDataset(volumes, (8, 8, 4), 10, seed=5) for _ in range(2))
    other[0, 1]
    assert torch.equal(one[2, 7]["image"], other[2, 7]["image"])
    assert not torch.equal(one[2, 7]["image"], PatchDataset(volumes, (8, 8, 4), 10, seed=6)[2, 7]["image"])


def test_a_volume_of_one_slice_fills_a_patch() -> None:
    found = PatchDataset([item((8, 8, 1), (3, 3, 0))], (8, 8, 4), 2)[0, 0]
    assert found["image"].shape == (1, 8, 8, 4)
    assert bool((found["image"] == found["image"][..., :1]).all())


# --- augmentation -----------------------------------------------------------------------------------------------------


def test_a_mirror_image_along_each_axis_by_hand() -> None:
    image, label = torch.randn(1, 1, 4, 5, 6), torch.rand(1, 2, 4, 5, 6)
    for axis in range(3):
        matrix = torch.eye(3)[None].clone()
        matrix[0, axis, axis] = -1
        there, truth = warp_patches(image, label, matrix, torch.zeros(1, 3), (4, 5, 6))
        assert torch.allclose(there, image.flip(axis + 2), atol=1e-5)
        assert torch.allclose(truth, label.flip(axis + 2), atol=1e-5)


def test_a_shift_by_whole_voxels_and_the_middle_of_a_larger_patch() -> None:
    image, label = torch.randn(1, 1, 8, 8, 6), torch.rand(1, 2, 8, 8, 6)
    moved, _ = warp_patches(image, label, torch.eye(3)[None], torch.tensor([[1.0, 0, -1]]), (4, 4, 2))
    assert torch.allclose(moved, image[:, :, 3:7, 2:6, 1:3], atol=1e-5)


def test_slices_stay_slices_and_labels_probabilities() -> None:
    """An image that is constant in each slice stays so: nothing turns across the slices."""
    levels = torch.linspace(-0.5, 0.5, 10).expand(3, 1, 20, 20, 10)
    augment = PatchAugment((12, 12, 6), turn_prob=1.0, flip_prob=0.5, intensity_prob=0.0, noise_prob=0.0, blur_prob=0.0)
    label = torch.rand(3, 2, 20, 20, 10).softmax(dim=1)
    image, truth = augment(levels, label, torch.Generator().manual_seed(0))
    assert image.shape == (3, 1, 12, 12, 6)
    assert float((image - image[:, :, :1, :1]).abs().max()) < 1e-5
    assert float((truth.sum(dim=1) - 1).abs().max()) < 1e-5


# --- there and back ---------------------------------------------------------------------------------------------------


def loaded(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Loaded:
    x, y, z = (np.linspace(-1, 1, n) for n in shape)
    inside = np.hypot(np.hypot(x[:, None, None], y[:, None]), z) < 0.7
    return Loaded(100 * inside[None].astype(np.float32), spacing, View(), None, inside.astype(np.uint8))


@pytest.mark.parametrize(("shape", "patch_size"), [((40, 30, 20), (8, 8, 8)), ((40, 30, 3), (32, 32, 16))])
def test_preparing_and_going_back_keeps_a_mask(shape: tuple[int, int, int], patch_size: tuple[int, int, int]) -> None:
    seen = PatchInput((1.5, 1.5, 2.0), ("MR",), patch_size)
    volume = loaded(shape, (1.0, 1.25, 2.5))
    found = prepare_volume(volume, seen, 2, padded=True)
    assert found["image"].shape[1:] == found["label"].shape[1:]
    assert all(n >= side for n, side in zip(found["image"].shape[1:], patch_size, strict=True))
    again = volume_back(found["label"], volume, seen)
    assert volume.label is not None
    wrong = (again[1] > 0.5).numpy() != volume.label.astype(bool)
    assert again.shape == (2, *shape)
    assert wrong.mean() < 0.03


def test_an_input_survives_its_file() -> None:
    seen = PatchInput((1.0, 1.0, 2.5), ("T2", "ADC"), (48, 48, 24), "fixed", ((0, 1), (0, 2)))
    again = input_from({"kind": "patch", "spacing": [1.0, 1.0, 2.5], "names": ["T2", "ADC"], "patch": [48, 48, 24],
                        "intensity": "fixed", "window": [[0, 1], [0, 2]]})  # fmt: skip
    assert again == seen
    with pytest.raises(ValueError, match="no input"):
        PatchInput((1.0, 1.0, 0.0), ("T2",), (4, 4, 4))


# --- windows ----------------------------------------------------------------------------------------------------------


class Pointwise(nn.Module):
    """A network that looks at one voxel at a time, so that windows cannot matter."""

    def forward(self, x_t: Tensor, t: Tensor, y: Any) -> Tensor:
        return 0.3 * x_t + torch.sin(3 * y)


def predictor() -> DiffusionPredictor:
    target = MaskTarget(2)
    return DiffusionPredictor(Pointwise(), target=target, sampling=Sampling(members=3, steps=3), precision="float32")


def test_windows_of_a_pointwise_network_give_what_one_window_gives() -> None:
    volume = torch.randn(1, 1, 12, 10, 7)
    whole = PatchEnsembleInferer((12, 10, 7))(volume, predictor())
    parts = PatchEnsembleInferer((8, 6, 4))(volume, predictor())
    together = PatchEnsembleInferer((8, 6, 4), window_batch=3)(volume, predictor())
    assert whole.shape == (1, 3, 12, 10, 7)
    assert torch.allclose(whole, parts, atol=1e-5)
    assert torch.allclose(parts, together, atol=1e-5)
    assert float(whole.std(dim=1).max()) > 1e-3  # members differ: the noise arrived
