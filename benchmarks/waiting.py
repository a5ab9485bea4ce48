"""What a GPU waits for: the gaps between its kernels, by what the CPU was doing in them."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from torch.profiler import ProfilerActivity, profile, record_function

WHOLE = "the work that is profiled"
ELSEWHERE = "no PyTorch operation: Python, NumPy"


class Span(NamedTuple):
    """Something that ran from ``start`` to ``end``, in microseconds."""

    start: float
    end: float
    name: str


def waits(work: Callable[[], Any]) -> tuple[float, dict[str, float]]:
    """Profile ``work`` on CPU and GPU: its microseconds, and those in which no kernel ran by what the CPU did.

    The profiler slows the CPU down, so the gaps between short kernels are longer than without it.
    """
    import torch

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as prof, record_function(WHOLE):
        work()
        torch.cuda.synchronize()
    events = list(prof.events() or [])
    cuda = torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]  # torch's stub does not export it
    own = [event for event in events if event.device_type != cuda]
    whole = next(event for event in own if event.name == WHOLE)
    inside = [event for event in own if event.thread == whole.thread and event.name != WHOLE]
    kernels = [event for event in events if event.device_type == cuda and event.name != WHOLE]
    return whole.time_range.elapsed_us(), waiting(
        Span(whole.time_range.start, whole.time_range.end, WHOLE), spans(kernels), spans(inside)
    )


def spans(events: Iterable[Any]) -> list[Span]:
    return [Span(event.time_range.start, event.time_range.end, event.name) for event in events]


def waiting(whole: Span, kernels: Sequence[Span], operations: Sequence[Span]) -> dict[str, float]:
    """Microseconds of ``whole`` without a kernel, by the innermost operation that the CPU was in."""
    found: dict[str, float] = defaultdict(float)
    pieces, first = innermost(operations), 0
    for gap in gaps(whole, kernels):
        left = gap.end - gap.start
        while first < len(pieces) and pieces[first].end <= gap.start:
            first += 1
        for piece in itertools.islice(pieces, first, None):
            if piece.start >= gap.end:
                break
            shared = min(gap.end, piece.end) - max(gap.start, piece.start)
            found[piece.name] += shared
            left -= shared
        found[ELSEWHERE] += left
    return {name: time for name, time in found.items() if time > 0}


def gaps(whole: Span, kernels: Sequence[Span]) -> list[Span]:
    """The parts of ``whole`` that no kernel covers."""
    found, reached = [], whole.start
    for kernel in sorted(kernels):
        if kernel.start > reached:
            found.append(Span(reached, min(kernel.start, whole.end), "gap"))
        reached = max(reached, kernel.end)
        if reached >= whole.end:
            return found
    return [*found, Span(reached, whole.end, "gap")]


def innermost(operations: Sequence[Span]) -> list[Span]:
    """Nested operations of one thread cut into pieces that do not overlap, each named after the innermost one."""
    pieces: list[Span] = []
    open_ones: list[Span] = []
    reached = float("-inf")

    def until(time: float) -> None:
        nonlocal reached
        while open_ones and reached < time:
            end = min(open_ones[-1].end, time)
            if end > reached:
                pieces.append(Span(reached, end, open_ones[-1].name))
                reached = end
            if open_ones[-1].end > time:
                return
            open_ones.pop()
        reached = max(reached, time)

    for operation in sorted(operations, key=lambda span: (span.start, -span.end)):
        until(operation.start)
        open_ones.append(operation)
    until(float("inf"))
    return pieces
