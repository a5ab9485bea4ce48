"""The end of a run of several processes."""

from __future__ import annotations

import atexit

import torch.distributed as dist

_LEFT: list[dist.ProcessGroup] = []
# While Python still runs: its end stops threads that wait for its lock, as gloo's may, and the process would abort.
atexit.register(_LEFT.clear)


def leave_process_group() -> None:
    """Destroy the default process group without hanging; nothing where there is none.

    ``DistributedDataParallel`` holds the group too. When it frees the group last, gloo's destructor waits for gloo's
    threads and keeps Python's lock meanwhile, which one of those threads may be waiting for (pytorch/pytorch#56297):
    some runs of several processes never end. Here the last reference is Python's own, whose destruction
    gives the lock away.
    """
    if not dist.is_initialized():
        return
    group = dist.group.WORLD
    if group is not None:
        _LEFT.append(group)
    dist.destroy_process_group()
