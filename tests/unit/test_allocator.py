"""Freed memory is kept when asked for, and only where and when it may be."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys

import pytest
from conftest import REPO

from cgdpm_med import keep_freed_memory
from cgdpm_med.runtime.allocator import CHOSEN_BY_USER

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")

# two blocks, of 32 and 16 MB, filled and freed again and again, as the activations of a network are
PROGRAM = """
import resource, sys
import torch
from cgdpm_med import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def layers():
    for _ in range(50):
        a = torch.full((2 ** 23,), 1, dtype=torch.int32)
        b = torch.full((2 ** 22,), 1, dtype=torch.int32)
        del a, b
layers()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
layers()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in CHOSEN_BY_USER}


def page_faults(way: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, way],
        capture_output=True,
        text=True,
        check=True,
        env={**environment(), "PYTHONPATH": str(REPO)},
    )
    return int(done.stdout)


@pytest.mark.slow
@needs_glibc
def test_kept_blocks_are_not_asked_of_the_system_again() -> None:
    kept, default = page_faults("keep"), page_faults("default")
    assert kept < 100
    assert default > 10 * max(kept, 10)


@needs_glibc
@pytest.mark.parametrize("name", CHOSEN_BY_USER)
def test_what_the_user_chose_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[object] = []
    monkeypatch.setattr(ctypes, "CDLL", called.append)
    monkeypatch.setenv(name, "1")
    assert keep_freed_memory() is False
    assert called == []


def test_other_allocators_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[object] = []
    monkeypatch.setattr(ctypes, "CDLL", called.append)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False
    assert called == []


def test_what_is_asked_of_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[int, int] = {}

    class Library:
        def mallopt(self, parameter: int, value: int) -> int:
            asked[parameter] = value
            return 1

    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    for name in CHOSEN_BY_USER:
        monkeypatch.delenv(name, raising=False)
    assert keep_freed_memory(2**25) is True
    assert asked == {-1: 2**31 - 1, -3: 2**25}  # M_TRIM_THRESHOLD: never; M_MMAP_THRESHOLD: beyond the largest


@pytest.mark.parametrize("largest", [0, 2**30 + 1])
def test_a_size_that_is_none(largest: int) -> None:
    with pytest.raises(ValueError, match=r"between 1 and 2 \*\* 30"):
        keep_freed_memory(largest)
