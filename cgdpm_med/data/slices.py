"""2D slices of 3D volumes, with their neighbours as extra condition channels, for training.

Randomness is keyed: the augmentation of slice i in epoch e is a function of (seed, e, i) alone, whatever the number of
workers, so that a resumed run sees exactly what an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from cgdpm_med.diffusion.ensemble import key_seed


def slice_stack(volume: Tensor, neighbours: int = 0) -> Tensor:
    """Slices along the last axis, each with its neighbours as channels; the outermost slices repeat themselves.

    Args:
        volume: (C, X, Y, Z).
        neighbours: on each side.

    Returns:
        (Z, C * (2 * neighbours + 1), X, Y); channels run from the slice below to the slice above.
    """
    depth = volume.shape[-1]
    centre = torch.arange(depth, device=volume.device)
    offsets = range(-neighbours, neighbours + 1)
    return torch.cat([volume[..., (centre + d).clamp(0, depth - 1)].movedim(-1, 0) for d in offsets], dim=1)


PLACE = "place"
"""Where an item or a batch holds what :func:`slice_places` gives."""

FAR = 50.0  # mm, so that the places of most slices lie within -1 and 1


def slice_places(volume: Tensor) -> Tensor:
    """Where each slice lies in its stack: the network's view of base and apex, and of how far apart its slices are.

    Args:
        volume: (C, X, Y, Z), a MetaTensor whose affine knows the distance of slices; MONAI's own default is 1 mm.

    Returns:
        (Z, 2): from -1 at the first slice to 1 at the last (0 of a single one), and the distance from the middle of the
        stack in units of :data:`FAR`, negative before it.

    Raises:
        ValueError: for a plain tensor, whose millimetres are not known.
    """
    if not isinstance(volume, MetaTensor):
        raise ValueError("the place of slices needs a volume with an affine, a MetaTensor")
    from_middle = torch.arange(volume.shape[-1], dtype=torch.float32) - (volume.shape[-1] - 1) / 2
    gap = float(torch.linalg.vector_norm(volume.affine[:3, 2]))
    places = torch.stack([from_middle / from_middle.max().clamp_min(0.5), from_middle * gap / FAR], dim=1)
    return places.to(volume.device)


def with_places(stack: Tensor, places: Tensor) -> Tensor:
    """(B, C, *S) and (B, P) -> (B, C + P, *S): each number a channel of its own, the same in every pixel."""
    planes = places.to(stack).reshape(*places.shape, *[1] * (stack.ndim - 2))
    return torch.cat([stack, planes.expand(*places.shape, *stack.shape[2:])], dim=1)


class SliceDataset(Dataset):
    """Every slice of a set of preprocessed volumes, held in memory, augmented by key.

    Args:
        volumes: items with ``image`` (1, X, Y, Z) and ``label``, integers (1, X, Y, Z) or the probabilities of soft
            labels (C, X, Y, Z).
        augment: a MONAI transform over ``image`` (Cc, X, Y) and ``label`` (1 or C, X, Y), or None.
        neighbours: see :func:`slice_stack`.
        seed: of the augmentation.
        places: items also have ``place`` (2,), see :func:`slice_places`.

    Index it with (epoch, index), as :class:`EpochSampler` does, or with an index alone for epoch 0.
    """

    def __init__(
        self,
        volumes: Sequence[Mapping[str, Any]],
        augment: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        neighbours: int = 0,
        seed: int = 0,
        places: bool = False,
    ) -> None:
        images, labels, self.places = [], [], []
        for volume in volumes:
            images.append(slice_stack(torch.as_tensor(volume["image"]).as_subclass(Tensor), neighbours))
            labels.append(compact(slice_stack(torch.as_tensor(volume["label"]).as_subclass(Tensor))))
            self.places += list(slice_places(volume["image"])) if places else []
        if not images:
            raise ValueError("no volumes to take slices from")
        self.images = [image for stack in images for image in stack]
        self.labels = [label for stack in labels for label in stack]
        self.augment, self.seed = augment, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        epoch, i = index if isinstance(index, tuple) else (0, index)
        item = {"image": self.images[i], "label": self.labels[i]}
        if self.places:
            item[PLACE] = self.places[i]
        if self.augment is None:
            return item
        if hasattr(self.augment, "set_random_state"):
            self.augment.set_random_state(seed=key_seed(self.seed, "augment", epoch, i) % 2**32)
        return self.augment(item)


def compact(labels: Tensor) -> Tensor:
    """Labels as they are kept in memory: uint8, or float16 for the probabilities of several channels."""
    return labels.to(torch.float16 if labels.is_floating_point() and labels.shape[1] > 1 else torch.uint8)


class EpochSampler(Sampler):
    """Shuffled (epoch, index) pairs; each epoch's order is a function of (seed, epoch).

    Only whole batches are dealt, and with several processes each takes every n-th batch-sized share, so the union over
    processes is the order one process would have seen.

    Args:
        length: of the dataset.
        seed: of the order.
        batch_size: per process; the tail that fills no batch on every process is left out of the epoch.
        rank, world_size: this process among all; by default torch.distributed's, or one process.
        max_batches: an epoch ends after so many batches of each process, for data sets so large that one pass is too
            long to lose; the next epoch draws anew from the whole set.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        batch_size: int = 1,
        rank: int | None = None,
        world_size: int | None = None,
        max_batches: int | None = None,
    ) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = rank if rank is not None else torch.distributed.get_rank() if distributed else 0
        self.world_size = (
            world_size if world_size is not None else torch.distributed.get_world_size() if distributed else 1
        )
        self.length, self.seed, self.batch_size = length, seed, batch_size
        self.epoch = 0
        self.batches = length // (batch_size * self.world_size)
        if not self.batches:
            raise ValueError(f"{length} items fill no batch of {batch_size} on {self.world_size} process(es)")
        if max_batches is not None:
            if max_batches < 1:
                raise ValueError(f"max_batches must be at least 1, not {max_batches}")
            self.batches = min(self.batches, max_batches)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(key_seed(self.seed, "order", self.epoch))
        order = torch.randperm(self.length, generator=generator)[: self.batches * self.batch_size * self.world_size]
        mine = order.reshape(self.batches, self.world_size, self.batch_size)[:, self.rank].flatten()
        return iter([(self.epoch, i) for i in mine.tolist()])
