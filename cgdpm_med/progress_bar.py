"""The progress bar of all long work: of training, and of cases on the command line."""

from __future__ import annotations

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
