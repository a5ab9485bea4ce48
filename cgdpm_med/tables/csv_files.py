"""Tables as CSV: commas, one line feed for each row, UTF-8."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cgdpm_med.files import atomic_write


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]], number_format: str = ".5f") -> str:
    """A table as text: None is an empty field, numbers other than whole ones follow ``number_format``.

    Text that a spreadsheet would take for a formula has an apostrophe in front of it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_field(name, number_format) for name in columns])
    writer.writerows([_field(value, number_format) for value in row] for row in rows)
    return text.getvalue()


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]], number_format: str = ".5f") -> None:
    """Write :func:`csv_text` of rows with equal keys, a column for each key; whole or not at all."""
    columns = list(rows[0])
    text = csv_text(columns, ([row[name] for name in columns] for row in rows), number_format)
    with atomic_write(path) as file:
        file.write(text.encode())


def _field(value: Any, number_format: str) -> Any:
    if isinstance(value, (float, np.floating)):
        return format(value, number_format)
    if not isinstance(value, str):
        return value
    text = value.replace("\r", " ")  # where rows end in line feeds, Python's writer would leave it bare
    return f"'{text}" if _is_formula(value) else text


def _is_formula(text: str) -> bool:
    """Whether a spreadsheet would calculate a text, as a file's or a label's name may be, instead of showing it."""
    if text.startswith(("+", "-")):
        return not _is_number(text)
    return text.startswith(("=", "@", "\t", "\r"))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
