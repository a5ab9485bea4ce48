"""Processes leave their group and end."""

from __future__ import annotations

import subprocess
import sys

from conftest import REPO

# one process is enough: gloo works through its collectives on a thread of its own also then
PROGRAM = """
import socket
import torch
import torch.distributed as dist
from cgdpm_med import leave_process_group
torch.set_num_threads(1)
leave_process_group()  # there is none
for round in range(20):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    network = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))
    network(torch.ones(2, 4)).sum().backward()
    leave_process_group()
    assert not dist.is_initialized()
    del network  # with dist.destroy_process_group() instead, most often the first or second of these hangs
print("left")
"""


def test_a_process_that_trained_leaves_its_group_and_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=True, cwd=REPO
    )
    assert done.stdout == "left\n"
