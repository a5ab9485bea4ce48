"""A model as graphs that run without this package: ONNX and torch.export, with rows and sizes left open.

Two graphs, as sampling calls them: ``condition`` once for an image, ``denoiser`` at every step. The walk from noise to
x_0 between them is a few lines in any language, and is not part of a graph; ``examples/sample_with_numpy.py`` has it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from cgdpm_med.files import InputError
from cgdpm_med.models.files import Model, of_innermost
from cgdpm_med.networks.classes import append_class

SIDES = ("depth", "height", "width")
EXPORTED_WITH = (2, 2, 3, 4)
"""Rows and sides of the traced example, sides in units of the model's ``multiple``; any others do afterwards."""
NEEDED_FOR_ONNX = ("onnx", "onnxscript")


class ConditionGraph(nn.Module):
    """y (B, Cc, *S / size_factor) -> the tensors of its features, in the order of :func:`tensors_of`."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser: Any = denoiser

    def forward(self, y: Tensor) -> tuple[Tensor, ...]:
        """Each feature has B rows."""
        return tuple(tensors_of(self.denoiser.encode(y)).values())


class DenoiserGraph(nn.Module):
    """x_t (B, C, *S), t int64 (1,) and the features of B conditions -> what the schedule says is predicted.

    Args:
        denoiser: as the target makes it of the network: a mask's is in [-scale, scale].
        like: features whose structure those of ``forward`` have.
    """

    def __init__(self, denoiser: nn.Module, like: Any) -> None:
        super().__init__()
        self.denoiser: Any = denoiser
        self.like = like

    def forward(self, x_t: Tensor, t: Tensor, features: Sequence[Tensor]) -> Tensor:
        """-> (B, C, *S), or (B, 2C, *S) of a network that predicts its variance."""
        return self.denoiser(x_t, t.expand(x_t.shape[0]), filled(self.like, iter(features)))


@dataclass(frozen=True, eq=False)
class Graph:
    """A module about to be exported.

    Attributes:
        name: "condition" or "denoiser".
        example: arguments of the size that is traced.
        inputs, outputs: names of the tensors.
        sizes: which sizes of each argument are open, as ``torch.export.export`` takes them.
    """

    name: str
    module: nn.Module
    example: tuple[Any, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sizes: tuple[Any, ...]


def tensors_of(features: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors of features by their places in them, such as ``encoder.0.1``; ``features`` for a bare one."""
    if features is None:
        return {}
    if isinstance(features, Tensor):
        return {name or "features": features}
    places = getattr(features, "_fields", range(len(features)))
    prefix = f"{name}." if name else ""
    return {
        found: tensor
        for place, part in zip(places, features, strict=True)
        for found, tensor in tensors_of(part, f"{prefix}{place}").items()
    }


def filled(like: Any, tensors: Iterator[Tensor]) -> Any:
    """The inverse of :func:`tensors_of`: features of the structure of ``like`` with these tensors."""
    if like is None:
        return None
    if isinstance(like, Tensor):
        return next(tensors)
    parts = [filled(part, tensors) for part in like]
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)


def arguments_of(model: Model, rows: int, sides: Sequence[int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random y, x_t and a timestep that the model's graphs take.

    Args:
        sides: of x_t, in units of ``model.multiple``; further ones than the network has dimensions are not looked at.
    """
    size = [model.multiple * side for side in sides[: int(of_innermost(model.network, "spatial_dims") or 2)]]
    small = [side // model.target.size_factor for side in size]
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(rows, int(of_innermost(model.network, "cond_channels") or 1), *small, generator=generator)
    if of_innermost(model.network, "num_classes"):
        y = append_class(y, torch.zeros(rows))
    x_t = torch.randn(rows, model.target.channels, *size, generator=generator)
    return y, x_t, torch.tensor([model.schedule.T // 2])


def graphs_of(model: Model) -> tuple[Graph, Graph]:
    """``condition`` and ``denoiser`` of a model.

    Raises:
        InputError: for a network that cannot encode its condition.
    """
    denoiser: Any = model.target.denoiser(model.network).eval()
    if not hasattr(denoiser, "encode"):
        what = f"has a {type(model.network).__name__}, which is no Denoiser, so there is no condition branch to export"
        raise InputError(what, path=model.path, remedy="Wrap the network in a Denoiser before training")
    rows, *sides = EXPORTED_WITH
    y, x_t, t = arguments_of(model, rows, sides)
    with torch.no_grad():
        features = denoiser.encode(y)
    named = tensors_of(features)
    open_sizes = _OpenSizes(model.multiple, x_t.shape[2:])
    condition = Graph("condition", ConditionGraph(denoiser), (y,), ("y",), tuple(named), (open_sizes(y),))
    values = tuple(named.values())
    walked = Graph(
        "denoiser",
        DenoiserGraph(denoiser, features),
        (x_t, t, values),
        ("x_t", "t", *named),
        ("output",),
        (open_sizes(x_t), {}, tuple(open_sizes(value) for value in values)),
    )
    return condition, walked


class _OpenSizes:
    """Which sizes of a tensor are open, and how they hang together: sides are so many times the coarsest level's."""

    def __init__(self, multiple: int, sides: Sequence[int]) -> None:
        self.rows = torch.export.Dim("rows")
        self.coarsest = [torch.export.Dim(name) for name in SIDES[-len(sides) :]]
        self.counts = [side // multiple for side in sides]

    def __call__(self, tensor: Tensor) -> dict[int, Any]:
        sides: dict[int, Any] = {}
        for place, size in enumerate(tensor.shape[2:]):
            times = size // self.counts[place]
            sides[place + 2] = self.coarsest[place] if times == 1 else times * self.coarsest[place]
        return {0: self.rows, **sides}


# --- torch and ONNX ---------------------------------------------------------------------------------------------------


def exported(graph: Graph) -> Any:
    """A graph as ``torch.export.ExportedProgram``.

    Raises:
        InputError: for a network that cannot be traced with open sizes.
    """
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(graph.module, graph.example, dynamic_shapes=graph.sizes, strict=False)
    except Exception as error:  # whatever a network from elsewhere does that cannot be traced
        reason = " ".join(str(error).split())[:200]
        remedy = "Use a ConditionalUNet, or a network that torch.export takes"
        raise InputError(f"the network cannot be exported ({graph.name}): {reason}", remedy=remedy) from error


def as_onnx(program: Any, graph: Graph) -> bytes:
    """An exported graph in the bytes of an ONNX file, its weights inside.

    Raises:
        InputError: where the packages are missing, or an operation that ONNX does not have.
    """
    if missing := [name for name in NEEDED_FOR_ONNX if find_spec(name) is None]:
        remedy = "Choose --format torch, or pip install 'cgdpm-med[export]'"
        raise InputError(f"writing ONNX needs {' and '.join(missing)}", remedy=remedy)
    inputs, outputs = list(graph.inputs), list(graph.outputs)
    try:
        with _quiet():
            made = torch.onnx.export(program, input_names=inputs, output_names=outputs, dynamo=True, verbose=False)
    except Exception as error:  # torch's exporter has classes of its own
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"ONNX cannot say the network: {reason}", remedy="Choose --format torch") from error
    assert made is not None
    return made.model_proto.SerializeToString()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch tells its developers while it exports."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
