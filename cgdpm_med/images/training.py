"""What training draws from a list of pictures: a part held out for validation, and random augmentation by key."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from cgdpm_med.diffusion.ensemble import key_seed
from cgdpm_med.files import InputError, listed
from cgdpm_med.images.datalists import Item
from cgdpm_med.images.mosaics import mosaic


class HeldOut(NamedTuple):
    """Two parts of a list, both in its order."""

    train: list[Item]
    validation: list[Item]


def hold_out(items: Sequence[Item], count: int, folders: Sequence[str] = ()) -> HeldOut:
    """Put ``count`` items aside, at even distances in the list.

    Args:
        folders: first parts of keys; only pictures of these are put aside. All are, where none is given.

    Raises:
        InputError: when nothing would be left to train on, or a folder holds no picture of the list.
    """
    _check_folders(folders, items)
    candidates = [place for place, item in enumerate(items) if not folders or _folder(item) in folders]
    n = len(candidates)
    if not 0 <= count < n:
        raise InputError(f"{count} of {n} pictures cannot be held out", remedy="Give more pictures, or hold out fewer")
    places = {candidates[(2 * i + 1) * n // (2 * count)] for i in range(count)}
    train = [item for place, item in enumerate(items) if place not in places]
    return HeldOut(train, [items[place] for place in sorted(places)])


def repeated(items: Sequence[Item], times: Mapping[str, int]) -> list[Item]:
    """The items, those of a folder several times: a small set that resembles what is to be refined counts for more.

    Args:
        times: how often, by the first part of the key; once where a folder is not named.

    Raises:
        InputError: for a folder that holds no picture of the list, or a number below 1.
    """
    _check_folders(list(times), items)
    if wrong := [folder for folder, number in times.items() if number < 1]:
        raise InputError(f"pictures of {listed(wrong, 3)} would be left out", remedy="Repeat them once or more often")
    return [item for item in items for _ in range(times.get(_folder(item), 1))]


def _folder(item: Item) -> str:
    return str(item["key"]).split("/")[0]


def _check_folders(folders: Sequence[str], items: Sequence[Item]) -> None:
    known = sorted({_folder(item) for item in items})
    if unknown := [folder for folder in folders if folder not in known]:
        remedy = f"Name folders among {listed(known, 5)}"
        raise InputError(f"no picture lies in {listed(unknown, 3)}", remedy=remedy)


class AugmentedPictures(Dataset):
    """Random augmentation on top of a data set of preprocessed pictures, cached or not.

    What is drawn for picture i in epoch e is a function of (seed, e, i) alone, whatever the number of workers, so that
    a resumed run sees exactly what an uninterrupted one would have seen.

    Args:
        pictures: items by index, for example a MONAI ``Dataset`` or ``CacheDataset``.
        augment: a MONAI transform over an item, or None.
        seed: of the augmentation.
        shrink: range of a random scale below one; the canvas is kept full by other pictures
            (:func:`~cgdpm_med.images.mosaics.mosaic`). None shrinks nothing.
        shrink_prob: probability of shrinking.

    Index it with (epoch, index), as :class:`~cgdpm_med.EpochSampler` does, or with an index alone for epoch 0.
    """

    def __init__(
        self,
        pictures: Sequence[Mapping[str, Any]],
        augment: Callable[[dict[Hashable, Any]], dict[Hashable, Any]] | None = None,
        seed: int = 0,
        shrink: tuple[float, float] | None = None,
        shrink_prob: float = 0.5,
    ) -> None:
        if shrink is not None and not 0 < shrink[0] <= shrink[1] <= 1:
            raise ValueError(f"pictures are shrunk to a range of scales in (0, 1], not {shrink}")
        self.pictures, self.augment, self.seed = pictures, augment, seed
        self.shrink, self.shrink_prob = shrink, shrink_prob

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[Hashable, Any]:
        epoch, i = index if isinstance(index, tuple) else (0, index)
        item = self._shrunk(epoch, i)
        if self.augment is None:
            return item
        if hasattr(self.augment, "set_random_state"):
            self.augment.set_random_state(seed=key_seed(self.seed, "augment", epoch, i) % 2**32)
        return self.augment(item)

    def _shrunk(self, epoch: int, i: int) -> dict[Hashable, Any]:
        item: dict[Hashable, Any] = dict(self.pictures[i].items())
        rng = np.random.default_rng(key_seed(self.seed, "shrink", epoch, i))
        if self.shrink is not None and rng.random() < self.shrink_prob:
            item["image"] = mosaic(self.pictures, i, rng.uniform(*self.shrink), rng)
        return item
