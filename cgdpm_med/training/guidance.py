"""Stage 2 under a MONAI trainer: replayed examples as a data loader, and a guidance network to start from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from cgdpm_med.diffusion.ensemble import key_seed
from cgdpm_med.diffusion.guidance import Examples, Replay, ScaledGuide, guidance_weighting
from cgdpm_med.diffusion.schedule import NoiseSchedule
from cgdpm_med.networks.classes import ClassConditioned
from cgdpm_med.networks.unet import ConditionalUNet


def guide_from_denoiser(network: ConditionalUNet | ClassConditioned, schedule: NoiseSchedule) -> ScaledGuide:
    """A guidance network of the denoiser's architecture that starts from its weights and from f = 0.

    Training then begins at the unguided sampler, with features that already know the anatomy.

    Args:
        network: holds the denoiser's weights; its output layer is set to zero here.
    """
    unet: Any = network.network if isinstance(network, ClassConditioned) else network
    for parameter in unet.head.parameters():
        torch.nn.init.zeros_(parameter)
    return ScaledGuide(network, schedule, guidance_weighting(schedule))


class ReplayLoader:
    """Batches of guidance examples from a :class:`~cgdpm_med.Replay`, for a MONAI trainer.

    Each epoch starts with an empty buffer and a generator seeded from (seed, epoch), so that a place between epochs is
    all a resumed run has to know. What is left in the buffer at the end of an epoch is dropped; ``replay.evaluations``
    and ``replay.examples`` count everything.

    Args:
        replay: the frozen chain.
        images: batches of images; with a ``sampler`` that has ``set_epoch``, which is told the epoch.
        prepare_batch: batch to (s_0, y), for example :class:`~cgdpm_med.TargetPrepareBatch`.
        batch_size: examples per training step.
        batches: training steps per epoch; the stream of images is repeated as often as they need.
        device: of the training.
    """

    def __init__(
        self,
        replay: Replay,
        images: Iterable[Any],
        prepare_batch: Callable[..., tuple[Tensor, Tensor]],
        batch_size: int,
        batches: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.replay, self.images, self.prepare_batch = replay, images, prepare_batch
        self.batch_size, self.batches, self.seed, self.device = batch_size, batches, seed, device
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Examples]:
        self.replay.restart(key_seed(self.seed, "replay", self.epoch))
        stream = self.replay.batches(self._stream(), self.batch_size)
        for _ in range(self.batches):
            yield next(stream)

    def _stream(self) -> Iterator[tuple[Tensor, Tensor]]:
        sampler = getattr(self.images, "sampler", None)
        round_number = self.epoch
        while True:
            if sampler is not None and hasattr(sampler, "set_epoch"):
                sampler.set_epoch(round_number)
            for batch in self.images:
                yield self.prepare_batch(batch, self.device)
            # a second pass within the epoch needs an order that no other epoch has
            round_number += 1_000_003


def examples_prepare_batch(
    batchdata: Sequence[Tensor], device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, ...]:
    """Examples to the arguments of :class:`~cgdpm_med.GuidanceLoss` on the device: x_t, t, target, y."""
    return tuple(column.to(device, non_blocking=non_blocking) for column in batchdata)
