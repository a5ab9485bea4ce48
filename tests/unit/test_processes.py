"""Processes leave their group and end."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import REPO

# One process is enough: gloo works through its collectives on a thread of its own also then. With
# dist.destroy_process_group() in place of leave_process_group(), eight of eight runs hung within 60 rounds.
PROGRAM = """
import sys

import pytest
import torch
import torch.distributed as dist
from cgdpm_med import leave_process_group
torch.set_num_threads(1)
sys.setswitchinterval(60)  # gloo's thread goes on waiting for Python's lock: the hang becomes likely
leave_process_group()  # there is none
for _ in range(200):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    network = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))
    network(torch.ones(2, 4)).sum().backward()
    leave_process_group()
    assert not dist.is_initialized()
    del network  # frees the group, where nobody else holds it
print("left")
"""


@pytest.mark.slow
def test_a_process_that_trained_leaves_its_group_and_ends() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, cwd=REPO)
    assert (done.returncode, done.stdout) == (0, "left\n"), done.stderr
