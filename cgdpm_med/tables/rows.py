"""Tables whose rows take long to make: every finished row is kept, and a stopped run goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cgdpm_med.files import InputError, atomic_write

Row = dict[str, Any]


def kept_row(folder: Path, made_with: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]) -> Row:
    """The row that lies in ``folder``, made now if it does not.

    What it is made with is written down before the work begins, so a folder can hold unfinished work and still not
    serve another purpose.

    Args:
        folder: of this row alone, with ``made_with.json`` and, at the end, ``result.json``.
        made_with: everything the row depends on; plain JSON.
        make: what makes it; plain JSON.

    Raises:
        InputError: when the folder holds a row, finished or not, that was made with something else.
    """
    file = folder / "made_with.json"
    wanted = json.loads(json.dumps(made_with))
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
        if found != wanted:
            differing = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
            raise InputError(
                f"was made with other settings ({', '.join(differing)})",
                path=folder,
                remedy="Give another output folder, or move this one elsewhere",
            )
    else:
        write_text(file, json.dumps(wanted, indent=2))
    result = folder / "result.json"
    if not result.exists():
        write_text(result, json.dumps(make(), indent=2))
    row: Row = json.loads(result.read_text(encoding="utf-8"))
    return row


def write_text(path: Path, text: str) -> None:
    """Write a text, whole or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode())


def counted(number: int, what: str) -> str:
    """As "1 patient", "2 patients"."""
    return f"{number} {what}{'' if number == 1 else 's'}"
