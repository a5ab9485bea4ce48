"""How much memory a device has free."""

from __future__ import annotations

import os

import torch

UNKNOWN = 8e9
"""Bytes, where the system does not tell."""


def free_memory(device: torch.device) -> float:
    """Bytes that a device has free, about; of a CPU what the system can give without writing to disk."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return _available() or _unused() or UNKNOWN


def _available() -> float:
    """Linux's own estimate, in which the cache of files counts as free; 0 where there is none."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            sizes = dict(line.split(":") for line in lines)
        return 1024.0 * int(sizes["MemAvailable"].split()[0])
    except (OSError, ValueError, KeyError):
        return 0.0


def _unused() -> float:
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return 0.0
