#!/usr/bin/env python3
"""Runs the notebooks of docs/tutorials, each in an empty folder, and keeps what they print and draw.

python scripts/notebooks.py docs/tutorials/*.ipynb

A cell is Python, or lines ``!cgdpm-med …``. Nothing of Jupyter is needed; in Jupyter they run as well.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import os
import shlex
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
from typer.testing import CliRunner

from cgdpm_med.apps.cli import app

COMMAND = "!cgdpm-med "


def main() -> None:
    """Run notebooks and write them again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", type=Path, nargs="+")
    for path in parser.parse_args().notebooks:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        with tempfile.TemporaryDirectory() as folder:
            run(notebook, Path(folder))
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(path)


def run(notebook: dict[str, Any], folder: Path) -> None:
    """Run the cells in order, in a folder, and replace their outputs; an error in a cell ends it."""
    matplotlib.use("Agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.chdir(folder) if sys.version_info >= (3, 11) else _inside(folder):
        for count, cell in enumerate((c for c in notebook["cells"] if c["cell_type"] == "code"), start=1):
            cell["execution_count"], cell["outputs"] = count, outputs_of("".join(cell["source"]), names)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def outputs_of(source: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    """What a cell prints, and then what it draws."""
    if source.startswith(COMMAND):
        text = "".join(command_output(line) for line in source.splitlines())
    else:
        stream = io.StringIO()
        with contextlib.redirect_stdout(stream), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(source, "<cell>", "exec"), names)  # noqa: S102  # the repository's own notebooks
        text = stream.getvalue()
    printed = [{"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)}] if text else []
    return [*printed, *figures()]


def command_output(line: str) -> str:
    """What one ``!cgdpm-med …`` prints, run in this process: torch is imported once."""
    done = CliRunner().invoke(app, shlex.split(line.removeprefix(COMMAND)), prog_name="cgdpm-med")
    if done.exit_code:
        raise RuntimeError(f"{line} ended with {done.exit_code}: {done.stderr[-2000:]}") from done.exception
    return done.stdout


def figures() -> list[dict[str, Any]]:
    """The open figures of matplotlib as outputs; closed then."""
    import matplotlib.pyplot as plt

    found = []
    for number in plt.get_fignums():
        stream = io.BytesIO()
        plt.figure(number).savefig(stream, format="png", dpi=72)
        data = {"image/png": base64.b64encode(stream.getvalue()).decode(), "text/plain": ["<Figure>"]}
        found.append({"output_type": "display_data", "metadata": {}, "data": data})
    plt.close("all")
    return found


if __name__ == "__main__":
    main()
