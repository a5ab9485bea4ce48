"""The precision networks are evaluated in: what a device is fast at, the copy that is evaluated, and the evaluation."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cgdpm_med.networks.denoiser import Denoiser

from .layers import optimise

PRECISIONS = ("auto", "float32", "bfloat16")


def lower_precision(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Matrix products and convolutions in ``dtype``; without effect for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def check_precision(precision: str) -> str:
    """``precision`` itself when it is one of :data:`PRECISIONS`.

    Raises:
        ValueError: for any other.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    return precision


def autocast_dtype(device: torch.device, precision: str = "auto") -> torch.dtype:
    """The precision networks are evaluated in on ``device``.

    Raises:
        ValueError: for an unknown ``precision``.
    """
    check_precision(precision)
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    return torch.bfloat16 if bfloat16_is_fast(device) else torch.float32


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware: NVIDIA from Ampere on, CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        return bool(supported and supported())
    return False


CASTABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


class CastCopy(Denoiser):
    """A copy in evaluation mode, with the weights of convolutions and matrix products in ``dtype`` and channels last.

    Autocast rounds the weights to the same values, but anew at every evaluation in inference mode, and everywhere those
    that require no gradient (PyTorch 2.13). Call it within autocast, which casts what enters the layers. A network that
    leaves autocast somewhere keeps its weights.

    Args:
        network: ``network(x_t, t, context)``.
        compile_options: of torch.compile for the copy; None leaves it uncompiled.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype, compile_options: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.network, self.dtype, self.compile_options = network, dtype, compile_options
        self.copy: Any = None
        self._castable: tuple[type[nn.Module], ...] = CASTABLE
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return CastCopy, (self.network, self.dtype, self.compile_options)  # made anew where it is needed

    def refresh(self) -> None:
        """Take the network's weights as they are now; the copy stays the same object while its structure does."""
        with self._lock, torch.inference_mode(False), torch.no_grad():
            theirs, ours = _tensors(self.network), _tensors(self.copy)
            if self.copy is None or [(x.shape, x.device) for x in theirs] != [(x.shape, x.device) for x in ours]:
                self.copy = self._made()
            elif ours:
                # all of them: what has changed is not to be seen, a fused optimiser leaves a tensor's version as it is
                torch._foreach_copy_(ours, theirs)

    def _made(self) -> nn.Module:
        castable = [m for m in self.network.modules() if isinstance(m, self._castable)]
        # handed to deepcopy as copies it has made already: no second set of weights in full precision
        made: dict[int, Any] = {
            id(weight): nn.Parameter(weight.detach().to(self.dtype, copy=True), requires_grad=False)
            for module in castable
            for weight in module.parameters(recurse=False)
        }
        fresh = copy.deepcopy(self.network, made).eval().requires_grad_(False)
        channels_last(optimise(fresh))
        if self.compile_options is not None:
            fresh.compile(dynamic=False, options=self.compile_options)
        return fresh

    def run(self, function: Callable[..., Any], network: Any, *arguments: Any) -> Any:
        """``function(copy, *arguments)``, with the weights of the last :meth:`refresh`."""
        if self.copy is None:
            self.refresh()
        try:
            return function(self.copy, *arguments)
        except RuntimeError as error:
            if not self._castable or self.dtype == torch.float32 or not _of_precisions(error):
                raise
        self._castable, self.copy = (), None
        self.refresh()
        return function(self.copy, *arguments)


def channels_last(network: nn.Module) -> nn.Module:
    """The network with its weights laid out channels last, in place; one with convolutions in 3D stays as it is."""
    if all(weight.ndim < 5 for weight in _tensors(network)):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def _tensors(network: nn.Module | None) -> list[Tensor]:
    return [] if network is None else [*network.parameters(), *network.buffers()]


def _of_precisions(error: RuntimeError) -> bool:
    """Whether a layer complains that its weights and what enters it differ in precision."""
    return any(name in str(error) for name in ("BFloat16", "Half", "bfloat16", "float16"))
