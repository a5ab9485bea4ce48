"""Patches of 3D volumes for training: drawn anew in every epoch, half of them around a structure.

Randomness is keyed as in :mod:`cgdpm_med.data.slices`: the place of patch i in epoch e is a function of (seed, e, i).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cgdpm_med.data.slices import compact
from cgdpm_med.diffusion.ensemble import key_seed

KEPT_PLACES = 4096
"""Voxels of each class in a volume that a patch may be drawn around, evenly spread."""


class PatchDataset(Dataset):
    """Patches of a set of preprocessed volumes, held in memory.

    Args:
        volumes: items with ``image`` (C, X, Y, Z) and ``label``, the probabilities of soft labels (classes, X, Y, Z).
        size: of a patch. Where a volume is thinner its border goes on.
        length: of an epoch's list; item i is of volume i modulo their number.
        foreground: share of the patches that hold a voxel of a class that is drawn first, the rest lie anywhere.
        seed: of the places.

    Index it with (epoch, index), as :class:`~cgdpm_med.data.slices.EpochSampler` does, or with an index alone for
    epoch 0.

    Raises:
        ValueError: without volumes.
    """

    def __init__(
        self,
        volumes: Sequence[Mapping[str, Any]],
        size: Sequence[int],
        length: int,
        foreground: float = 0.5,
        seed: int = 0,
    ) -> None:
        if not volumes:
            raise ValueError("no volumes to take patches from")
        self.images = [torch.as_tensor(volume["image"]).as_subclass(Tensor) for volume in volumes]
        self.labels = [compact(torch.as_tensor(volume["label"]).as_subclass(Tensor)[None])[0] for volume in volumes]
        self.marked = [marked_places(label) for label in self.labels]
        self.size, self.length, self.foreground, self.seed = tuple(size), length, foreground, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Tensor]:
        epoch, i = index if isinstance(index, tuple) else (0, index)
        generator = torch.Generator().manual_seed(key_seed(self.seed, "patch", epoch, i))
        number = i % len(self.images)
        image = self.images[number]
        starts = self._starts(image.shape[1:], self.marked[number], generator)
        return {"image": patch(image, starts, self.size), "label": patch(self.labels[number], starts, self.size)}

    def _starts(self, shape: Sequence[int], marked: Sequence[Tensor], generator: torch.Generator) -> list[int]:
        """Least voxel of the patch along each axis."""
        if marked and float(torch.rand((), generator=generator)) < self.foreground:
            places = marked[_drawn(len(marked), generator)]
            centre = places[_drawn(len(places), generator)].tolist()
            wanted = [c - _drawn(side, generator) for c, side in zip(centre, self.size, strict=True)]
        else:
            wanted = [_drawn(max(1, n - side + 1), generator) for n, side in zip(shape, self.size, strict=True)]
        return [within(start, side, n) for start, side, n in zip(wanted, self.size, shape, strict=True)]


def _drawn(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (), generator=generator))


def within(start: int, side: int, size: int) -> int:
    """The start of a side moved into the size; about the middle where the side is the longer one."""
    return -((side - size) // 2) if side >= size else min(max(start, 0), size - side)


def marked_places(label: Tensor) -> list[Tensor]:
    """Of each class but the background that is most probable anywhere, voxels (N, 3), evenly spread.

    Args:
        label: probabilities (classes, X, Y, Z), the background first.
    """
    found = label.argmax(dim=0)
    places = [(found == number).nonzero() for number in range(1, len(label))]
    return [each[:: -(-len(each) // KEPT_PLACES)] for each in places if len(each)]


def patch(volume: Tensor, starts: Sequence[int], size: Sequence[int]) -> Tensor:
    """(C, X, Y, Z) -> (C, *size) from voxel ``starts`` on; what lies outside repeats the border."""
    for axis, (start, side) in enumerate(zip(starts, size, strict=True), start=1):
        if start >= 0 and start + side <= volume.shape[axis]:
            volume = volume.narrow(axis, start, side)
        else:
            volume = volume.index_select(axis, torch.arange(start, start + side).clamp(0, volume.shape[axis] - 1))
    return volume
