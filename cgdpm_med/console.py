"""What long work shows on standard error: one progress bar, and one line for each bad input."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cgdpm_med.files import InputError

QUIET = 30.0
"""Seconds after which long work says where it is, where no bar is to be seen."""


def progress_bar(console: Console, *, counted: bool = False, transient: bool = False) -> Progress:
    """A bar for one task: its description, how far it is, the time spent and left, and its field ``detail``.

    It is shown in a terminal only.

    Args:
        counted: show the number of steps done and of all steps, instead of a percentage.
        transient: leave nothing on the screen at the end.
    """
    done: ProgressColumn = MofNCompleteColumn() if counted else TaskProgressColumn()
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        done,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        console=console,
        disable=not console.is_terminal,
        transient=transient,
    )


def end(bar: Progress) -> None:
    """Stop a bar; of one that is not shown, rich 13.0 would leave an empty line."""
    if not bar.disable:
        bar.stop()


class CaseBar:
    """A progress bar over several cases, each counted by the fraction of it that is done; a context manager.

    Shown in a terminal. Elsewhere, as in a log file, long work prints a line every half minute, and :meth:`note` does.

    Args:
        what: the work, in front of the bar.
        keys: of the cases, in the order of the work.
    """

    def __init__(self, what: str, keys: Sequence[str], console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.what, self.total = what, len(keys)
        self.fractions: dict[str, float] = {}
        self.bar = progress_bar(self.console, transient=True)
        self.task = self.bar.add_task(what, total=len(keys), detail="")
        self.told = time.monotonic()

    def __enter__(self) -> CaseBar:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        end(self.bar)

    def update(self, key: str, fraction: float) -> None:
        """Show how much of a case is done; several may be in work at once."""
        self.bar.advance(self.task, fraction - self.fractions.get(key, 0.0))
        self.fractions[key] = fraction
        description = f"{self.what} {len(self.fractions)}/{self.total} {key}"
        self.bar.update(self.task, description=description)
        if not self.console.is_terminal and fraction < 1 and time.monotonic() - self.told >= QUIET:
            self.line(f"{description}: {fraction:.0%}")

    def note(self, text: str) -> None:
        """Print one line where no bar is to be seen, as in a log file."""
        if not self.console.is_terminal:
            self.line(text)

    def line(self, text: str) -> None:
        """Print one line, above the bar where there is one."""
        self.told = time.monotonic()
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def complain(error: InputError, bar: CaseBar) -> None:
    """One line for one bad input."""
    bar.line("error: " + " ".join(str(error).splitlines()))


def input_error_behind(error: BaseException | None) -> InputError | None:
    """The InputError that led to ``error``, if one did: MONAI's configurations wrap what they raise."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


def require_success(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """``result`` itself when nothing is listed under ``failed``; the last step of a bundle's run.

    Raises:
        InputError: naming how many inputs failed, so that the run ends with an exit code other than 0.
    """
    failed = result["failed"]
    if failed:
        what = "1 input" if len(failed) == 1 else f"{len(failed)} inputs"
        raise InputError(f"{what} failed: {', '.join(failed)}", remedy="Correct the errors above")
    return result
