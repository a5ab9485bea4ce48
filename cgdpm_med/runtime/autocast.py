"""A network evaluated in lower precision, by whatever runs it fastest on its device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cgdpm_med.networks.denoiser import Denoiser

from .layers import optimise
from .precision import CastCopy, channels_last, lower_precision

if TYPE_CHECKING:
    from .cuda_graphs import GraphReplay

COMPILER_OPTIONS = {"cpp.simdlen": 256}
"""Of torch.compile: PyTorch 2.13's CPU kernels of 512 bits made attention in bfloat16 NaN on a Xeon."""


class Autocast(Denoiser):
    """Evaluates a network in evaluation mode and lower precision; what enters and leaves the sampler stays float32.

    The weights of 2D convolutions are laid out channels last, which vector units and tensor cores read faster; their
    values stay. In lower precision a copy of the network is evaluated, with the weights it had at the last
    :meth:`refresh`.

    Args:
        compile: evaluate a copy that torch.compile has compiled.
        cuda_graphs: on an NVIDIA GPU, evaluate by a :class:`~.cuda_graphs.GraphReplay`.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        *,
        compile: bool = False,
        cuda_graphs: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.device, self.dtype = network, device, dtype
        self.copy: CastCopy | GraphReplay | None = None  # what is evaluated instead
        options = COMPILER_OPTIONS if compile else None
        if cuda_graphs and device.type == "cuda":
            from .cuda_graphs import GraphReplay

            self.copy = GraphReplay(network, dtype, options)
        elif compile or dtype != torch.float32:
            self.copy = CastCopy(network, dtype, options)
        self.refresh()

    def refresh(self) -> None:
        """Take the network's weights as they are now."""
        if self.copy is None:
            channels_last(optimise(self.network.eval()))
        else:
            self.copy.refresh()

    def run(self, function: Callable[..., Any], network: Any, *arguments: Any) -> Any:
        """In lower precision, on the copy where there is one."""
        with lower_precision(self.device, self.dtype):
            return function(network if self.copy is None else self.copy, *arguments)

    def forward(self, x_t: Tensor, t: Tensor, features: Any) -> Tensor:
        """The network's output, in the precision of x_t."""
        return super().forward(x_t, t, features).to(x_t.dtype)
