"""How many fields one evaluation of a network takes: a limit that gives way when the memory does not hold them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

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
