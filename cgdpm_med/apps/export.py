"""From a model file to graphs for other runtimes: made, checked against torch at another size, and then written."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cgdpm_med import __version__
from cgdpm_med.files import InputError, atomic_write, check_place, listed
from cgdpm_med.inference.bundles import bundle_path, list_bundles
from cgdpm_med.models.export import Graph, arguments_of, as_onnx, exported, graphs_of, tensors_of
from cgdpm_med.models.files import Model, load_model

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
TOLERANCE = 1e-3
"""Largest difference from torch, as a fraction of the largest value, with which a graph is written."""
CHECKED_WITH = (3, 3, 2, 2)
"""Rows and sides, others than the graphs are traced with."""
SIGNATURE = "model.json"

Say = Callable[[str], None]
Run = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True, eq=False)
class Made:
    """One graph in one format.

    Attributes:
        content: of the file.
        difference: largest from torch, as a fraction of the largest value; None where nothing could run it.
    """

    file: str
    content: bytes
    difference: float | None


def export_model(
    source: str | Path, out: str | Path, formats: Sequence[str] = tuple(FORMATS), say: Say = lambda text: None
) -> dict[str, Any]:
    """Write ``condition`` and ``denoiser`` of a model in each format, and ``model.json``, which says how to use them.

    Args:
        source: a model file, or the name of a bundle that has one.
        out: a folder, made if absent.
        formats: names of :data:`FORMATS`.
        say: told of each graph.

    Returns:
        What ``model.json`` holds, and ``differences`` by file: None where onnxruntime is not installed.

    Raises:
        InputError: for a file that is no model, a place that cannot be written to, a network that cannot be exported, a
            missing package, or a graph that gives other numbers than torch. Nothing is written then.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise InputError(f"no graph is written as {listed(unknown)}", remedy=f"Choose {' or '.join(FORMATS)}")
    model = load_model(model_file(source))
    check_place(Path(out))
    graphs = graphs_of(model)
    made = [one for graph in graphs for one in make(graph, other_arguments(model, graph), formats)]
    for one in made:
        said = "not compared, onnxruntime is not installed" if one.difference is None else f"{one.difference:.1e}"
        say(f"{one.file}: difference from torch {said}")
    signature = signature_of(model, graphs)
    write(Path(out), made, signature)
    return {**signature, "differences": {one.file: one.difference for one in made}}


def model_file(source: str | Path) -> Path:
    """The model file itself, or that of the bundle of this name."""
    path = Path(source)
    if not path.exists() and str(source) in list_bundles():
        return bundle_path(str(source)) / "models" / "model.pt"
    return path


def other_arguments(model: Model, graph: Graph) -> tuple[Tensor, ...]:
    """Arguments of a graph, of other sizes than it is traced with."""
    rows, *sides = CHECKED_WITH
    y, x_t, t = arguments_of(model, rows, sides, seed=1)
    if graph.name == "condition":
        return (y,)
    denoiser: Any = model.target.denoiser(model.network)
    with torch.no_grad():
        return (x_t, t, *tensors_of(denoiser.encode(y)).values())


def make(graph: Graph, arguments: Sequence[Tensor], formats: Sequence[str]) -> list[Made]:
    """A graph in each format, compared with the module it was made from.

    Raises:
        InputError: where the two differ by more than :data:`TOLERANCE`.
    """
    program = exported(graph)
    made = []
    for name in formats:
        content = torch_bytes(program) if name == "torch" else as_onnx(program, graph)
        run = runner(name, content, graph)
        difference = None if run is None else difference_of(run, graph, arguments)
        if difference is not None and not difference <= TOLERANCE:
            what = f"{graph.name} as {name} differs from torch by {difference:.1e} of the largest value"
            others = [other for other in FORMATS if other != name]
            raise InputError(what, remedy=f"Choose --format {others[0]}, and report it")
        made.append(Made(f"{graph.name}{FORMATS[name]}", content, difference))
    return made


def torch_bytes(program: Any) -> bytes:
    """An exported program as ``torch.export.save`` writes it."""
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def runner(name: str, content: bytes, graph: Graph) -> Run | None:
    """What runs the bytes of a graph; None where onnxruntime is needed and not installed."""
    if name == "torch":
        module: Any = torch.export.load(io.BytesIO(content)).module()
        return lambda arguments: as_list(module(*nested(graph, arguments)))
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(arguments: Sequence[Tensor]) -> list[Tensor]:
        fed = {name: tensor.numpy() for name, tensor in zip(graph.inputs, arguments, strict=True)}
        return [torch.from_numpy(found) for found in session.run(list(graph.outputs), fed)]

    return run


def nested(graph: Graph, arguments: Sequence[Tensor]) -> tuple[Any, ...]:
    """Arguments as the module takes them: the features as one."""
    return tuple(arguments) if graph.name == "condition" else (*arguments[:2], tuple(arguments[2:]))


def as_list(found: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Outputs of a module, one or several."""
    return [found] if isinstance(found, Tensor) else list(found)


@torch.no_grad()
def difference_of(run: Run, graph: Graph, arguments: Sequence[Tensor]) -> float:
    """Largest difference of all outputs, as a fraction of each output's largest value."""
    expected = as_list(graph.module(*nested(graph, arguments)))
    return max(
        float((one - other).abs().max() / one.abs().max().clamp(min=1e-12))
        for one, other in zip(expected, run(arguments), strict=True)
    )


def signature_of(model: Model, graphs: Sequence[Graph]) -> dict[str, Any]:
    """What somebody who has the graphs needs to know: names, sizes, the schedule, and how the input is prepared."""
    description = model.description.as_dict()
    return {
        "package": f"cgdpm_med {__version__}",
        "digest": model.digest,
        "graphs": {graph.name: {"inputs": list(graph.inputs), "outputs": list(graph.outputs)} for graph in graphs},
        "channels": model.target.channels,
        "size_factor": model.target.size_factor,
        "multiple": model.multiple,
        "predicts": model.schedule.prediction_type,
        "alpha_bar": model.schedule.alpha_bar.tolist(),
        **{name: description[name] for name in ("target", "input", "labels", "walk") if name in description},
    }


def write(out: Path, made: Sequence[Made], signature: Mapping[str, Any]) -> None:
    """The graphs, and last what says that they are there."""
    for one in made:
        with atomic_write(out / one.file) as file:
            file.write(one.content)
    with atomic_write(out / SIGNATURE) as file:
        file.write((json.dumps(signature, indent=2) + "\n").encode())
