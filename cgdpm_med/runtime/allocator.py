"""Freed memory stays with the process: the C library's allocator, told not to return it to the system each time.

A network's activations are some megabytes each. By default glibc hands such blocks back as soon as they are free, and
every next layer gets fresh pages, which the system has to clear first; on a CPU that is a tenth of the time of sampling
and more of a training step (``python -m benchmarks allocator``).
"""

from __future__ import annotations

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
CHOSEN_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory(largest: int = 2**26) -> bool:
    """Keep freed blocks of up to ``largest`` bytes in this process for the next allocation, instead of returning them.

    The peak hardly changes; between peaks the process holds on to it. For programs that are alone in their process: the
    command and the bundles' configurations call it, importing the package does not.

    Args:
        largest: in bytes, at most 2 ** 30; larger blocks go back to the system when they are freed. The default holds
            activations, and leaves out whole fields of 2048 x 2048, which would leave gaps.

    Returns:
        Whether it took effect. It does not where the allocator is another one than glibc's (macOS, Windows, musl), nor
        where the environment already tells glibc what to do.

    Raises:
        ValueError: for a size outside 1 … 2 ** 30.
    """
    if not 1 <= largest <= 2**30:
        raise ValueError(f"largest must be between 1 and 2 ** 30 bytes, not {largest}")
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in CHOSEN_BY_USER):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    never_trimmed = mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # the largest C int
    return bool(mallopt(M_MMAP_THRESHOLD, largest) and never_trimmed)
