"""Ensembles in batches: as many fields in one evaluation of a network as the memory holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cgdpm_med.diffusion.ensemble import (
    KeyedNoise,
    ensemble_sampling,
    keys_and_members,
    sample_members,
    shared_first_step,
)
from cgdpm_med.diffusion.sampling import DenoiserLike, Sampling
from cgdpm_med.diffusion.schedule import NoiseSchedule
from cgdpm_med.files import InputError
from cgdpm_med.networks.denoiser import features_of

AUTO_PIXELS = {"cpu": 2**18, "cuda": 2**22}
"""Pixels in one evaluation under "auto": 16 fields of 128 x 128 on a CPU, 256 on a GPU.

On an H200, 256 of the segmentation bundle's fields reached 1.6 times the rate of 64 while each kernel was started by
itself; with CUDA graphs the choice was not looked at again.

On a CPU half as many are slower by some percent. Twice as many gain one percent where freed memory is kept, but make
activations of more than 32 MB, which glibc otherwise maps anew each time.
"""


class BatchLimit:
    """The most target fields in one evaluation, halved when they turn out not to fit.

    Members of an ensemble have noise of their own, so how they are batched changes nothing but time and memory.

    Args:
        fields: a number, or "auto": as many as make :data:`AUTO_PIXELS` of the device, at least one.

    Raises:
        ValueError: for anything else.
    """

    def __init__(self, fields: int | str = "auto") -> None:
        if fields != "auto" and (not isinstance(fields, int) or fields < 1):
            raise ValueError(f"max_batch must be at least 1 or 'auto', not {fields!r}")
        self.fields = fields
        self.pixels: int | None = None
        """Half of the pixels that did not fit last, or None while everything did."""

    def of(self, size: Sequence[int], device: torch.device) -> int:
        """Most fields of spatial size ``size`` on ``device``."""
        pixels = math.prod(size)
        auto = AUTO_PIXELS.get(device.type, AUTO_PIXELS["cpu"]) // pixels
        wanted = self.fields if isinstance(self.fields, int) else auto
        return max(1, wanted if self.pixels is None else min(wanted, self.pixels // pixels))

    def halve(self, fields: int, size: Sequence[int]) -> None:
        """Remember that ``fields`` fields of ``size`` did not fit."""
        self.pixels = max(1, fields // 2) * math.prod(size)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that an allocation failed, on a GPU or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        phrase in str(error) for phrase in ("can't allocate memory", "not enough memory", "out of memory")
    )


@contextmanager
def memory_errors(path: Path, remedy: str) -> Iterator[None]:
    """An allocation that fails in the block is the error of one input, so that the others go on.

    Raises:
        InputError: in place of whatever says that the memory is full; other exceptions pass.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise InputError("does not fit into the device's memory", path=path, remedy=remedy) from error


class PinnedNoise(KeyedNoise):
    """Keyed noise that goes to a GPU from pinned memory, so that the CPU goes on while the GPU has work of its own."""

    def move(self, x: Tensor, device: torch.device | str) -> Tensor:
        """On the device."""
        return x.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else x.to(device)


@torch.no_grad()
def sample_ensemble(
    denoiser: DenoiserLike,
    context: Tensor,
    schedule: NoiseSchedule,
    sampling: Sampling | None = None,
    *,
    shape: Sequence[int],
    keys: Sequence[Hashable] | None = None,
    member_ids: Sequence[int] | None = None,
    max_batch: int | str | BatchLimit = "auto",
    progress: Callable[[int], None] | None = None,
    correct: Callable[..., Tensor] | None = None,
    clip: tuple[float, float] | None = None,
    **dials: Any,
) -> Tensor:
    """K samples for each condition image, batched over members and images together.

    Args:
        context: condition images, (B, Cc, *S).
        sampling: how; sixteen members of twenty steps by default.
        shape: (C, *S) of one target.
        keys: one key per image, by default its index; a member's noise depends on (seed, key, member) alone, so
            images of one key share it.
        member_ids: which members to draw, by default 0 … K-1; overrides ``sampling.members``.
        max_batch: most target fields evaluated at once: a number, "auto", or a :class:`BatchLimit` that several calls
            share. A batch that does not fit into the memory is drawn again in halves.
        progress: called with the number of finished fields after each batch.
        correct: ``correct(x_0, y)`` of every predicted x_0, see :meth:`~cgdpm_med.Target.correct`.
        clip: bounds on every predicted x_0, in place of ``correct``.
        dials: fields of :class:`~cgdpm_med.Sampling`, in place of those of ``sampling``.

    Returns:
        (K, B, C, *S), float32, on the context's device.

    Raises:
        ValueError: without members, with another number of keys than images, or max_batch below 1.
    """
    sampling = ensemble_sampling(sampling, **dials)
    keys, ids = keys_and_members(len(context), sampling, keys, member_ids)
    limit = max_batch if isinstance(max_batch, BatchLimit) else BatchLimit(max_batch)
    fixed: dict[str, Any] = {"shape": shape, "correct": correct, "clip": clip, "noise": PinnedNoise}

    def prepare(rows: range) -> dict[str, Any]:
        images, named = context[rows.start : rows.stop], keys[rows.start : rows.stop]
        features = features_of(denoiser, images)
        first = shared_first_step(denoiser, images, schedule, sampling, keys=named, features=features, **fixed)
        return {"keys": named, "features": features, "first": first}

    prepared = _LastPrepared(prepare)

    def draw(rows: range, columns: range) -> Tensor:
        images, members = context[rows.start : rows.stop], ids[columns.start : columns.stop]
        of_images = prepared.of(rows)
        return sample_members(denoiser, images, schedule, sampling, member_ids=members, **of_images, **fixed)

    out = torch.empty((len(ids), len(context), *shape), dtype=torch.float32, device=context.device)
    todo = [(range(len(context)), range(len(ids)))]
    while todo:
        rows, columns = todo.pop()
        fields, most = len(rows) * len(columns), limit.of(shape[1:], context.device)
        if fields > most:
            todo += reversed(_parts(rows, columns, most))
            continue
        x_0 = draw(rows, columns) if fields == 1 else _if_it_fits(partial(draw, rows, columns))
        if x_0 is None:
            prepared.forget()
            _release(context.device)
            limit.halve(fields, shape[1:])
            todo.append((rows, columns))
            continue
        out[columns.start : columns.stop, rows.start : rows.stop] = x_0
        if progress is not None:
            progress(fields)
    return out


class _LastPrepared:
    """What was prepared of the images asked for last, which one batch of their members after another uses."""

    def __init__(self, prepare: Callable[[range], dict[str, Any]]) -> None:
        self.prepare = prepare
        self.rows = range(0)
        self.prepared: dict[str, Any] = {}

    def of(self, rows: range) -> dict[str, Any]:
        if self.rows != rows:
            self.forget()  # what was prepared before need not be held beside the new
            self.rows, self.prepared = rows, self.prepare(rows)
        return self.prepared

    def forget(self) -> None:
        self.rows, self.prepared = range(0), {}


def _if_it_fits(draw: Callable[[], Tensor]) -> Tensor | None:
    """What ``draw`` gives, or None where the memory does not hold it.

    Once this has returned, the exception no longer holds the tensors of the failed attempt.
    """
    try:
        return draw()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    return None


def _release(device: torch.device) -> None:
    """Give back what the allocator keeps."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _parts(rows: range, columns: range, fields: int) -> list[tuple[range, range]]:
    """A block of images x members in blocks of at most ``fields``: whole images first, then parts of the members."""
    images, per_image = max(1, fields // len(columns)), min(len(columns), fields)
    return [
        (range(b, min(b + images, rows.stop)), range(k, min(k + per_image, columns.stop)))
        for b in range(rows.start, rows.stop, images)
        for k in range(columns.start, columns.stop, per_image)
    ]
