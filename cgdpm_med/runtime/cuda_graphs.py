"""Evaluations of a network on an NVIDIA GPU, recorded as CUDA graphs and replayed.

An evaluation of a small network is some hundred kernels, and starting each one takes the CPU longer than running it
takes the GPU. A recorded evaluation is started as a whole.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cgdpm_med.networks.denoiser import Denoiser, evaluate, features_of
from cgdpm_med.runtime.batching import is_out_of_memory

from .precision import CastCopy

RECORDINGS = 8
"""Shapes of one network that are kept recorded; the one that was not used for longest goes first."""


class Graph(Protocol):
    """What was recorded, and can be run again."""

    def replay(self) -> None:
        """Read the inputs where they are and write the outputs in their place."""


class Recording(NamedTuple):
    """A graph, the tensors it reads and those it writes (None where there is none), and how the latter are nested."""

    graph: Graph
    inputs: list[Tensor | None]
    outputs: list[Tensor | None]
    nesting: Any


class Recorder(Protocol):
    """Records ``call(*arguments)``, whose tensors are these inputs, nested so."""

    def __call__(self, call: Callable[..., Any], inputs: list[Tensor | None], nesting: Any) -> Recording:
        """Raises RuntimeError where that cannot be done."""


class CudaRecorder:
    """Records CUDA graphs that share one pool of memory."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, call: Callable[..., Any], inputs: list[Tensor | None], nesting: Any) -> Recording:
        """One call; it must not wait for the GPU."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            result = call(*pytree.tree_unflatten(inputs, nesting))
        outputs, nested = pytree.tree_flatten(result)
        return Recording(graph, inputs, outputs, nested)


class GraphReplay(Denoiser):
    """A network's evaluations: the first of a shape runs as it stands, the second is recorded.

    Weights are those of a :class:`~.precision.CastCopy`. All recordings share one pool of memory, which
    nothing else can use while they are kept: when an evaluation finds no memory, they are given up. A network that
    cannot be recorded, or not within the memory, runs as it stands. Threads take turns; all of them have to use one
    CUDA stream.

    Args:
        network: ``network(x_t, t, context)``, on a GPU.
        dtype: of its convolutions and matrix products.
        compile_options: of torch.compile for the copy; None leaves it uncompiled.
        new_recorder: makes what records, anew when all recordings were given up.
    """

    def __init__(
        self,
        network: nn.Module,
        dtype: torch.dtype,
        compile_options: dict[str, Any] | None = None,
        new_recorder: Callable[[], Recorder] = CudaRecorder,
    ) -> None:
        super().__init__()
        self.network = network
        self.new_recorder = new_recorder
        self.source = CastCopy(network, dtype, compile_options)
        self._recordable = True
        self._lock = threading.RLock()  # threads share the tensors that a recording reads and writes
        self._forget()

    def __reduce__(self) -> tuple[Any, ...]:
        source = self.source
        # graphs belong to one process
        return GraphReplay, (source.network, source.dtype, source.compile_options, self.new_recorder)

    @property
    def recordings(self) -> list[Recording]:
        """Those that are kept, the least used first."""
        return list(self._recordings.values())

    def _forget(self) -> None:
        self._seen: set[Hashable] = set()
        self._recordings: OrderedDict[Hashable, Recording] = OrderedDict()
        self._held: dict[str, tuple[Hashable, Sequence[Any]]] = {}
        self._recorder: Recorder | None = None
        self._recorded_copy = self.source.copy

    def refresh(self) -> None:
        """Take the network's weights as they are now; recordings read them where they are."""
        with self._lock:
            self.source.refresh()

    def forward(self, x_t: Tensor, t: Tensor, features: Any) -> Any:
        """The network's output. Call :meth:`refresh` before the first evaluation."""
        if t.stride(0) != 0:
            return super().forward(x_t, t, features)
        return self.run(_at_one_time, self.network, x_t, t[:1], features)

    def run(self, function: Callable[..., Any], network: Any, *arguments: Any) -> Any:
        """``function(copy, *arguments)``, from its recording where there is one; tensors of the caller's own."""
        if function is features_of and not hasattr(network, "encode"):
            return function(network, *arguments)
        with self._lock:
            return self._run_alone(function, arguments)

    def _run_alone(self, function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        if self.source.copy is not self._recorded_copy:  # recordings would read what the old one has left
            self._forget()
        leaves, nesting = pytree.tree_flatten(arguments)
        if not self._recordable or not _tensors(leaves):
            return self._as_it_stands(function, arguments)
        key = function.__name__, str(nesting), tuple(None if leaf is None else _kind(leaf) for leaf in leaves)
        if key not in self._seen or not (key in self._recordings or self._record(key, function, leaves, nesting)):
            self._seen.add(key)
            return self._as_it_stands(function, arguments)
        self._recordings.move_to_end(key)
        recording = self._recordings[key]
        # the condition's features stay the same, step after step: those of the last call are in place
        before = self._held.get(function.__name__, (None, leaves))
        there = before[1] if before[0] == key else [None] * len(leaves)
        for place, leaf, held in zip(recording.inputs, leaves, there, strict=True):
            if place is not None and leaf is not held:
                place.copy_(leaf)
        self._held[function.__name__] = key, [None, None, *leaves[2:]][: len(leaves)]
        recording.graph.replay()
        copies = [output if output is None else output.clone() for output in recording.outputs]
        return pytree.tree_unflatten(copies, recording.nesting)

    def _as_it_stands(self, function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        try:
            return self.source.run(function, self.network, *arguments)
        except Exception as error:
            if not self._recordings or not is_out_of_memory(error):
                raise
        # outside the handler, where the exception no longer holds the tensors of the failed attempt
        self._forget()
        torch.cuda.empty_cache()
        return self.source.run(function, self.network, *arguments)

    def _record(
        self, key: Hashable, function: Callable[..., Any], leaves: Sequence[Tensor | None], nesting: Any
    ) -> bool:
        """Whether the call could be recorded."""
        self._recorder = self._recorder or self.new_recorder()
        try:
            with torch.inference_mode(False), torch.no_grad():
                inputs = [None if leaf is None else _place(leaf) for leaf in leaves]
                recording = self._recorder(partial(self.source.run, function, self.network), inputs, nesting)
        except RuntimeError as error:
            self._forget()
            self._recordable = False
            if not is_out_of_memory(error):
                reason = str(error).partition("\n")[0]
                warnings.warn(f"cannot be recorded as a CUDA graph and runs without: {reason}", stacklevel=2)
            return False
        if not _tensors(recording.outputs):
            self._recordable = False
            return False
        self._keep(key, recording)
        return True

    def _keep(self, key: Hashable, recording: Recording) -> None:
        self._recordings[key] = recording
        if len(self._recordings) > RECORDINGS:
            self._recordings.popitem(last=False)


def _at_one_time(network: Any, x_t: Tensor, t: Tensor, features: Any) -> Any:
    return evaluate(network, x_t, t.expand(len(x_t)), features)


def _tensors(leaves: Sequence[Any]) -> bool:
    return all(leaf is None or isinstance(leaf, Tensor) for leaf in leaves)


def _kind(leaf: Tensor) -> tuple[Hashable, ...]:
    return leaf.shape, leaf.stride(), leaf.dtype, leaf.device


def _place(leaf: Tensor) -> Tensor:
    return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device).zero_()
