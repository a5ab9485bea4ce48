"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def markdown_table(heading: Sequence[str], rows: Sequence[Sequence[Any]], *, numbers: bool = False) -> str:
    """Lines of a Markdown table, the last without a line break.

    Args:
        numbers: align all columns but the first to the right.
    """
    alignment = ["---:" if numbers and column else "---" for column in range(len(heading))]
    lines = [_cells(heading), alignment, *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(row: Sequence[Any]) -> list[str]:
    return [str(cell).replace("|", "\\|") for cell in row]
