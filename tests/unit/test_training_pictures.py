"""Pictures for training: held-out parts, augmentation by key, and saving under the item's name."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandFlipd
from PIL import Image
from torch.utils.data import DataLoader

from cgdpm_med.data.slices import EpochSampler
from cgdpm_med.files import InputError
from cgdpm_med.images import AugmentedPictures, SavePictured, hold_out


def numbered(n: int) -> list[dict]:
    return [{"key": str(i)} for i in range(n)]


def test_held_out_pictures_lie_at_even_distances() -> None:
    parts = hold_out(numbered(10), 3)
    assert [item["key"] for item in parts.validation] == ["1", "5", "8"]  # (2 i + 1) 10 / 6, rounded down
    assert [item["key"] for item in parts.train] == ["0", "2", "3", "4", "6", "7", "9"]
    assert hold_out(numbered(4), 0) == (numbered(4), [])
    assert [item["key"] for item in hold_out(numbered(3), 2).train] == ["1"]


@pytest.mark.parametrize("count", [-1, 4, 5])
def test_something_must_be_left_to_train_on(count: int) -> None:
    with pytest.raises(InputError, match=f"{count} of 4 pictures cannot be held out"):
        hold_out(numbered(4), count)


def flips(workers: int, epoch: int, seed: int = 0) -> dict[float, bool]:
    """Which of eight pictures come out mirrored."""
    items = [{"image": torch.tensor([[[float(i), -1.0]]])} for i in range(8)]
    pictures = AugmentedPictures(items, Compose([RandFlipd("image", prob=0.5, spatial_axis=1)]), seed)
    order = EpochSampler(8, seed=0, batch_size=2)
    order.set_epoch(epoch)
    found = {}
    for batch in DataLoader(pictures, batch_size=2, sampler=order, num_workers=workers):
        for row in batch["image"].as_subclass(torch.Tensor)[:, 0, 0].tolist():
            found[max(row)] = row[0] == -1
    return found


def test_augmentation_depends_on_seed_epoch_and_picture_alone() -> None:
    first = flips(0, epoch=1)
    assert len(first) == 8
    assert flips(0, epoch=1) == first
    assert flips(2, epoch=1) == first
    assert flips(0, epoch=2) != first
    assert flips(0, epoch=1, seed=1) != first
    assert 0 < sum(first.values()) < 8


def test_an_index_alone_is_epoch_zero() -> None:
    items = [{"image": torch.arange(2.0).reshape(1, 1, 2)}]
    augment = Compose([RandFlipd("image", prob=0.5, spatial_axis=1)])
    one, other = (AugmentedPictures(items, augment)[i]["image"] for i in (0, (0, 0)))
    assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    assert AugmentedPictures(items)[(3, 0)]["image"] is items[0]["image"]


def test_an_epoch_may_end_early() -> None:
    whole, short = EpochSampler(11, batch_size=2), EpochSampler(11, batch_size=2, max_batches=3)
    assert len(whole) == 10
    assert list(short) == list(whole)[:6]
    shares = [list(EpochSampler(11, batch_size=2, max_batches=2, rank=r, world_size=2)) for r in (0, 1)]
    assert shares[0][:2] + shares[1][:2] + shares[0][2:] + shares[1][2:] == list(whole)[:8]
    with pytest.raises(ValueError, match="max_batches must be at least 1"):
        EpochSampler(11, max_batches=0)


@pytest.mark.parametrize("key", ["deeper/a", "deeper/a.JPG"])
def test_pictures_are_saved_under_their_key(key: str, tmp_path: Path) -> None:
    item: dict[Hashable, Any] = {
        "key": key,
        "pred": torch.tensor([-1.0, 0.2, 1.0]).reshape(3, 1, 1),
        "other": -torch.ones(1, 1, 2),
    }
    assert SavePictured(["pred", "other"], tmp_path)(item) == item
    assert np.array_equal(np.asarray(Image.open(tmp_path / "deeper" / "a.png")), [[[0, 153, 255]]])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "deeper" / "a_other.png")), [[0, 0]])
