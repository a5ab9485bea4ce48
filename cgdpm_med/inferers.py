"""MONAI inferers: an ensemble over the slices of a volume, and windows that live inside the reverse step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type
from torch import Tensor

from cgdpm_med.diffusion.sampling import Guided, encode
from cgdpm_med.predictor import DiffusionPredictor
from cgdpm_med.slices import slice_stack


class SliceEnsembleInferer(Inferer):
    """Ensemble of masks for a 3D volume by a 2D predictor, slices and members batched together.

    Args:
        neighbours: neighbouring slices on each side, as condition channels.
        window: side of the network's window; larger slices are denoised jointly (:class:`WindowedDenoiser`).
            None evaluates whole slices.
        overlap: of the windows.
        progress: called with the number of finished slice fields.
    """

    def __init__(
        self,
        neighbours: int = 0,
        window: Sequence[int] | None = None,
        overlap: float = 0.5,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.neighbours, self.window, self.overlap, self.progress = neighbours, window, overlap, progress

    def __call__(self, inputs: Tensor, network: DiffusionPredictor, *args: Any, **kwargs: Any) -> Tensor:
        """inputs: (B, 1, X, Y, Z) -> probabilities of all members, (B, K * C, X, Y, Z), member by member.

        The noise is keyed by the case key in the volume's metadata (else its place in the batch) and the slice.
        """
        volumes = []
        for b, volume in enumerate(inputs):
            case = volume.meta["key"] if isinstance(volume, MetaTensor) and "key" in volume.meta else str(b)
            stack = slice_stack(torch.as_tensor(volume).as_subclass(Tensor), self.neighbours)
            keys = [f"{case}/{s}" for s in range(len(stack))]
            wrap = self._windowed(stack.shape[2:])
            members = network.ensemble(stack, keys=keys, progress=self.progress, wrap=wrap)
            volumes.append(members.movedim(1, -1).flatten(0, 1))
        # MONAI's Invertd passes plain tensors through untouched, with no more than a warning
        return convert_to_dst_type(torch.stack(volumes), inputs)[0]

    def _windowed(self, size: Sequence[int]) -> Callable[[Any], Any] | None:
        if self.window is None or all(n <= w for n, w in zip(size, self.window, strict=True)):
            return None
        window, overlap = tuple(self.window), self.overlap
        return lambda denoiser: WindowedDenoiser(denoiser, window, overlap)


class WindowedDenoiser:
    """A denoiser for fields larger than the network's window.

    Composes with any sampler: at every step the windows' predictions over one global field are blended with Gaussian
    weights, and the sampler then steps the whole field. Windows with noise of their own would leave seams.

    Args:
        denoiser: evaluated on windows.
        window: side lengths, of x_t.
        overlap: fraction of a window shared with the next one.
        window_batch: windows of one field evaluated at once; the result does not depend on it.
        size_factor: size of x_t / size of the condition.
    """

    def __init__(
        self,
        denoiser: Any,
        window: Sequence[int],
        overlap: float = 0.5,
        window_batch: int = 8,
        size_factor: int = 1,
    ) -> None:
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap must be in [0, 1), not {overlap}")
        self.denoiser = denoiser
        self.window, self.overlap = tuple(window), overlap
        self.window_batch, self.size_factor = window_batch, size_factor

    def places(self, size: Sequence[int]) -> list[tuple[slice, ...]]:
        """The windows of a field of ``size``; the last of each axis is moved inwards to end at the border."""
        window = [min(w, n) for w, n in zip(self.window, size, strict=True)]
        step = [max(1, int(w * (1 - self.overlap))) // self.size_factor * self.size_factor or 1 for w in window]
        return list(dense_patch_slices(list(size), window, step))

    def encode_condition(self, y: Tensor) -> list[Any]:
        """Features of every window of the condition, computed once."""
        f = self.size_factor
        places = self.places([n * f for n in y.shape[2:]])
        return [encode(self.denoiser, y[(..., *(slice(s.start // f, s.stop // f) for s in place))]) for place in places]

    def __call__(self, x_t: Tensor, t: Tensor, context: list[Any]) -> Tensor | Guided:
        places = self.places(x_t.shape[2:])
        size = tuple(s.stop - s.start for s in places[0])
        weight = compute_importance_map(size, mode="gaussian", device=x_t.device, dtype=torch.float32)
        output = shift = None
        total = torch.zeros(x_t.shape[2:], device=x_t.device)
        for place, features in zip(places, context, strict=True):
            at = (..., *place)
            result = self.denoiser(x_t[at], t, features)
            part = result if isinstance(result, Guided) else Guided(result, None)
            if output is None:
                output = x_t.new_zeros((x_t.shape[0], part.output.shape[1], *x_t.shape[2:]))
            output[at] += weight * part.output
            total[place] += weight
            if part.shift is not None:
                shift = torch.zeros_like(x_t) if shift is None else shift
                shift[at] += weight * part.shift
        assert output is not None
        return Guided(output / total, None if shift is None else shift / total)
