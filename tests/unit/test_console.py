"""What long work says on standard error where no bar is to be seen."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cgdpm_med.console import QUIET, CaseBar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, as the test sets them."""
    now = [0.0]
    monkeypatch.setattr("cgdpm_med.console.time.monotonic", lambda: now[0])
    return now


def test_long_work_tells_how_far_it_is_at_most_every_half_minute(clock: list[float]) -> None:
    written = io.StringIO()
    with CaseBar("refining", ["a", "b"], Console(file=written, width=80)) as bar:
        for second, fraction in ((1.0, 0.1), (QUIET, 0.25), (QUIET + 1, 0.3), (2 * QUIET, 0.5), (3 * QUIET, 1.0)):
            clock[0] = second
            bar.update("a", fraction)
        bar.note("refined a")
        clock[0] = 4 * QUIET - 1
        bar.update("b", 0.5)
    assert written.getvalue().splitlines() == ["refining 1/2 a: 25%", "refining 1/2 a: 50%", "refined a"]


def test_in_a_terminal_the_bar_says_it_all(clock: list[float]) -> None:
    written = io.StringIO()
    with CaseBar("refining", ["a"], Console(file=written, force_terminal=True, width=80)) as bar:
        clock[0] = QUIET
        bar.update("a", 0.25)
    assert "refining 1/1 a: 25%" not in written.getvalue()
