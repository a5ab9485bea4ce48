"""``cgdpm-med export``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from cgdpm_med.apps.commands.options import AsJson, print_json


class Format(str, Enum):
    """What graphs are written as."""

    onnx = "onnx"
    torch = "torch"


def export(
    model: Annotated[str, typer.Argument(help="A model file, or the name of a bundle that has one.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; made if absent.")],
    formats: Annotated[
        list[Format] | None, typer.Option("--format", help="onnx or torch; may be repeated.", show_default="both")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a network as two graphs for other runtimes, ONNX and torch.export, and check them against torch.

    OUT gets condition (once for an image) and denoiser (at every step), as .onnx and .pt2, and model.json, which says
    how they are called. The sampling between them is not in a graph: examples/sample_with_numpy.py has it.
    """
    from cgdpm_med.apps.export import export_model

    names = [one.value for one in formats or Format]
    made = export_model(model, out, names, say=(lambda text: None) if as_json else typer.echo)
    if as_json:
        print_json(made)
