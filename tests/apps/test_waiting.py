"""What a GPU waits for, on timelines drawn by hand."""

from __future__ import annotations

import random
import sys

import pytest
from conftest import REPO

sys.path.insert(0, str(REPO))

from benchmarks.waiting import ELSEWHERE, Span, gaps, innermost, waiting


def test_gaps_are_what_no_kernel_covers() -> None:
    whole = Span(10, 100, "all")
    kernels = [Span(40, 50, "b"), Span(0, 20, "a"), Span(45, 60, "c"), Span(90, 130, "d")]
    assert [(gap.start, gap.end) for gap in gaps(whole, kernels)] == [(20, 40), (60, 90)]
    assert [(gap.start, gap.end) for gap in gaps(whole, [])] == [(10, 100)]


def test_the_innermost_operation_is_named() -> None:
    """a [0, 10) holds b [2, 6), which holds c [3, 4); d [12, 14) stands alone."""
    nested = [Span(2, 6, "b"), Span(12, 14, "d"), Span(0, 10, "a"), Span(3, 4, "c")]
    assert innermost(nested) == [
        Span(0, 2, "a"),
        Span(2, 3, "b"),
        Span(3, 4, "c"),
        Span(4, 6, "b"),
        Span(6, 10, "a"),
        Span(12, 14, "d"),
    ]


def test_waiting_is_shared_out() -> None:
    """Kernels [0, 4) and [8, 9) of 10: the CPU draws noise in [3, 6), copies in [6, 7) within a call of [5, 8)."""
    operations = [Span(3, 5, "noise"), Span(5, 8, "call"), Span(6, 7, "copy")]
    found = waiting(Span(0, 10, "all"), [Span(0, 4, "k"), Span(8, 9, "k")], operations)
    assert found == {"noise": 1, "call": 2, "copy": 1, ELSEWHERE: 1}


@pytest.mark.parametrize("seed", range(5))
def test_waiting_equals_a_clock_that_ticks(seed: int) -> None:
    """Every microsecond looked at on its own."""
    rng = random.Random(seed)
    operations: list[Span] = []

    def nest(start: int, end: int, depth: int) -> None:
        while start < end:
            stop = rng.randint(start + 1, end)
            if rng.random() < 0.7:
                operations.append(Span(start, stop, f"{depth}.{len(operations)}"))
                if depth < 3:
                    nest(start, stop, depth + 1)
            start = stop

    nest(0, 60, 0)
    kernels = [Span(start, start + rng.randint(1, 9), "k") for start in rng.choices(range(-5, 60), k=8)]
    expected: dict[str, float] = {}
    for tick in range(60):
        if any(kernel.start <= tick < kernel.end for kernel in kernels):
            continue
        covering = [o for o in operations if o.start <= tick < o.end]
        name = max(covering, key=lambda o: (o.name.split(".")[0], operations.index(o))).name if covering else ELSEWHERE
        expected[name] = expected.get(name, 0) + 1
    assert waiting(Span(0, 60, "all"), kernels, operations) == expected
