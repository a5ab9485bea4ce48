"""MONAI inferers: an ensemble over the slices of a volume, and windows that live inside the reverse step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import Inferer, SimpleInferer
from monai.utils import convert_to_dst_type
from torch import Tensor, nn

from cgdpm_med.data.slices import slice_places, slice_stack, with_places
from cgdpm_med.diffusion.sampling import Guided
from cgdpm_med.inference.predictor import DiffusionPredictor, Predictor
from cgdpm_med.networks.denoiser import Denoiser, as_denoiser, evaluate

Place = tuple[slice, ...]


class SliceEnsembleInferer(Inferer):
    """Ensemble of masks for a 3D volume by a 2D predictor, slices and members batched together.

    Args:
        neighbours: neighbouring slices on each side, as condition channels.
        places: the place of each slice in its stack as two more, see :func:`~cgdpm_med.data.slices.slice_places`.
        window: sides of the network's window; larger slices are denoised jointly (:class:`WindowedDenoiser`).
            None evaluates whole slices.
        overlap, window_batch: of the windows.
        progress: called with the number of finished slice fields.

    With the predictor's ``sampling.shared_noise`` a member has one noise for all slices of a volume. Each slice's own
    ensemble has the same law as with a noise for each slice; but what a member does in one slice it does in the next,
    so that its doubts add up over the volume and do not average out: they show in volumes and what follows from them.
    """

    def __init__(
        self,
        neighbours: int = 0,
        window: Sequence[int] | None = None,
        overlap: float = 0.5,
        progress: Callable[[int], None] | None = None,
        window_batch: int = 1,
        places: bool = False,
    ) -> None:
        self.places = places
        self.neighbours, self.overlap, self.progress = neighbours, overlap, progress
        self.window_batch = window_batch
        self.window = None if window is None else tuple(window)

    def __call__(
        self,
        inputs: Tensor,
        network: Predictor,
        *args: Any,
        progress: Callable[[int], None] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """inputs: (B, 1, X, Y, Z) -> probabilities of all members, (B, K * C, X, Y, Z), member by member.

        The noise is keyed by the case key in the volume's metadata (else its place in the batch), and by the slice
        where it is not shared.
        ``progress`` takes the place of the inferer's own for this call.
        """
        volumes = []
        for b, volume in enumerate(inputs):
            case = volume.meta["key"] if isinstance(volume, MetaTensor) and "key" in volume.meta else str(b)
            stack = slice_stack(torch.as_tensor(volume).as_subclass(Tensor), self.neighbours)
            if self.places:
                stack = with_places(stack, slice_places(volume))
            volumes.append(self._members(stack, case, network, progress or self.progress))
        # MONAI's Invertd passes plain tensors through untouched, with no more than a warning
        together = volumes[0][None] if len(volumes) == 1 else torch.stack(volumes)
        return convert_to_dst_type(together, inputs)[0]

    def _members(self, stack: Tensor, case: str, network: Predictor, progress: Callable[[int], None] | None) -> Tensor:
        """The members of one volume, (K * C, X, Y, Z), from its slices (Z, Cc, X, Y).

        Drawn for the slices of one batch at a time and put in place: all of them would exist twice otherwise.
        """
        wrap = self._windowed(stack.shape[2:], network.size_factor)

        def drawn(part: range) -> Tensor:
            keys = [case if network.sampling.shared_noise else f"{case}/{s}" for s in part]
            members = network.ensemble(stack[part.start : part.stop], keys=keys, progress=progress, wrap=wrap)
            return members.movedim(1, -1)

        slices, size = len(stack), [network.size_factor * n for n in stack.shape[2:]]
        at_once = max(1, network.limit.of(size, stack.device) // network.sampling.members)
        if slices <= at_once:
            return drawn(range(slices)).flatten(0, 1)
        whole = torch.empty((network.sampling.members, network.out_channels, *size, slices), device=stack.device)
        for first in range(0, slices, at_once):
            part = range(first, min(first + at_once, slices))
            whole[..., part.start : part.stop] = drawn(part)
        return whole.flatten(0, 1)

    def _windowed(self, size: Sequence[int], size_factor: int) -> Callable[[Any], Any] | None:
        if self.window is None or all(size_factor * n <= w for n, w in zip(size, self.window, strict=True)):
            return None
        window, overlap, at_once = self.window, self.overlap, self.window_batch
        return lambda denoiser: WindowedDenoiser(denoiser, window, overlap, at_once, size_factor)


class PredictorInferer(Inferer):
    """Samples with a predictor for an engine that holds the network inside it.

    The engine's network has the names and shapes of the trained one, so MONAI's applications can load weights into it.

    Args:
        predictor: draws the samples.
        inferer: called with the predictor in place of the network; by default the predictor is called itself.
    """

    def __init__(self, predictor: DiffusionPredictor, inferer: Inferer | None = None) -> None:
        self.predictor = predictor
        self.inferer = inferer or SimpleInferer()

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """What the inner inferer gives.

        Raises:
            ValueError: the network is not inside the predictor, whose weights would be sampled instead.
        """
        if not any(module is network for module in self.predictor.modules()):
            raise ValueError("the engine's network is not the predictor's own")
        return self.inferer(inputs, self.predictor, *args, **kwargs)


class RegionInferer(Inferer):
    """Finds the structures with one cheap sample, then runs another inferer on the region around them alone.

    They fill about a third of the field a scan shows; the ensemble need not be drawn in the rest. Where nothing is
    found the whole field is used, so an empty result is never the scout's doing alone.

    Args:
        inferer: run on the region; its predictions have the predictor's ``out_channels`` for each member: the
            background first, or the foreground alone.
        margin: pixels added on each side of what the scout found, in plane.
        smallest: least side of the region, or one for each axis in plane.
        multiple: sides are rounded up to this.
        scout_steps: steps of the scout's single member.
        scout_timesteps: that it visits instead, for a network that knows no others.
    """

    def __init__(
        self,
        inferer: Inferer,
        margin: int = 16,
        smallest: int | Sequence[int] = 96,
        multiple: int = 16,
        scout_steps: int = 2,
        scout_timesteps: Sequence[int] | None = None,
    ) -> None:
        self.inferer, self.scout_steps = inferer, scout_steps
        self.scout_timesteps = None if scout_timesteps is None else tuple(scout_timesteps)
        self.margin, self.multiple = margin, multiple
        self.smallest = (smallest, smallest) if isinstance(smallest, int) else tuple(smallest)

    def __call__(self, inputs: Tensor, network: Predictor, *args: Any, **kwargs: Any) -> Tensor:
        """inputs: (1, 1, X, Y, Z) -> (1, K * C, X, Y, Z), as the inner inferer; background outside the region."""
        if inputs.shape[0] != 1:
            raise ValueError(f"a region belongs to one volume; got a batch of {inputs.shape[0]}")
        scout = copy.copy(network)
        scout.sampling = replace(
            network.sampling, members=1, steps=self.scout_steps, start=None, timesteps=self.scout_timesteps
        )
        first = torch.as_tensor(self.inferer(inputs, scout, *args, **kwargs))[0, 0]
        place = self.region(first > 0.5 if network.out_channels == 1 else first < 0.5)
        if place is None:
            return self.inferer(inputs, network, *args, **kwargs)
        inside = self.inferer(inputs[(slice(None), slice(None), *place, slice(None))], network, *args, **kwargs)
        whole = torch.zeros((*inside.shape[:2], *inputs.shape[2:]), dtype=inside.dtype, device=inside.device)
        if network.out_channels > 1:
            whole[:, :: network.out_channels] = 1
        whole[(slice(None), slice(None), *place, slice(None))] = torch.as_tensor(inside).as_subclass(Tensor)
        return convert_to_dst_type(whole, inputs)[0]

    def region(self, found: Tensor) -> Place | None:
        """The in-plane region (two slices) around ``found`` (X, Y, Z) bool; None when nothing was found."""
        sides = []
        for axis, size in enumerate(found.shape[:2]):
            others = tuple(a for a in range(3) if a != axis)
            hits = found.any(dim=others[1]).any(dim=others[0]).nonzero()[:, 0]
            if not len(hits):
                return None
            low, high = int(hits[0]) - self.margin, int(hits[-1]) + 1 + self.margin
            side = -(-max(self.smallest[axis], high - low) // self.multiple) * self.multiple
            if side >= size:
                sides.append(slice(0, size))
                continue
            start = min(max(0, (low + high - side) // 2), size - side)
            sides.append(slice(start, start + side))
        return tuple(sides)


class WindowFeatures(NamedTuple):
    """Of a condition image: itself, and the features of its first batches of windows."""

    y: Tensor
    kept: list[Any]


class WindowedDenoiser(Denoiser):
    """A denoiser for fields larger than the network's window.

    Composes with any sampler: at every step the windows' predictions over one global field are blended with Gaussian
    weights, and the sampler then steps the whole field. Windows with noise of their own would leave seams.

    Args:
        denoiser: evaluated on windows.
        window: side lengths, of x_t; an axis shorter than the window is taken whole.
        overlap: fraction of a window shared with the next one.
        window_batch: windows evaluated at once, each for the whole batch of x_t; the result does not depend on it.
        size_factor: size of x_t / size of the condition. Windows begin and end at multiples of it.
        kept_windows: the condition features of so many windows are computed once and kept; those of further windows
            anew in every step, so that memory does not grow with the image.

    Raises:
        ValueError: for an overlap outside [0, 1), a window that is no multiple of ``size_factor``, or a
            ``window_batch`` below 1.
    """

    def __init__(
        self,
        denoiser: Any,
        window: Sequence[int],
        overlap: float = 0.5,
        window_batch: int = 1,
        size_factor: int = 1,
        kept_windows: int = 48,
    ) -> None:
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap must be in [0, 1), not {overlap}")
        if any(w < 1 or w % size_factor for w in window):
            raise ValueError(f"window {tuple(window)} must be multiples of the size factor {size_factor}")
        if window_batch < 1:
            raise ValueError(f"window_batch must be at least 1, not {window_batch}")
        super().__init__()
        self.network = as_denoiser(denoiser)
        self.window, self.overlap = tuple(window), overlap
        self.window_batch, self.size_factor, self.kept_windows = window_batch, size_factor, kept_windows

    def places(self, size: Sequence[int]) -> list[tuple[slice, ...]]:
        """The windows of a field of ``size``; the last of each axis is moved inwards to end at the border."""
        f = self.size_factor
        window = [min(w, n) for w, n in zip(self.window, size, strict=True)]
        step = [max(f, int(w * (1 - self.overlap)) // f * f) for w in window]
        return list(dense_patch_slices(list(size), window, step))

    def encode(self, y: Tensor) -> WindowFeatures:
        """What the windows need of the condition: y, and the features of the first ``kept_windows`` windows."""
        f = self.size_factor
        batches = self._batches(self.places([n * f for n in y.shape[2:]]))
        return WindowFeatures(
            y, [self._features(y, some) for some in batches[: self.kept_windows // self.window_batch]]
        )

    def _features(self, y: Tensor, places: Sequence[Place]) -> Any:
        f = self.size_factor
        return self.network.encode(crops(y, [tuple(slice(s.start // f, s.stop // f) for s in p) for p in places]))

    def forward(self, x_t: Tensor, t: Tensor, features: WindowFeatures) -> Tensor | Guided:
        """x_t: (B, C, *S); features: what :meth:`encode` returned -> the blended output, (B, C or 2C, *S)."""
        outputs, shifts = Blend(x_t.shape[2:]), Blend(x_t.shape[2:])
        for index, some in enumerate(self._batches(self.places(x_t.shape[2:]))):
            of_windows = features.kept[index] if index < len(features.kept) else self._features(features.y, some)
            windows = crops(x_t, some)
            times = t.expand(len(x_t)).repeat(len(some))
            result = evaluate(self.network, windows, times, of_windows)
            output, shift = result if isinstance(result, Guided) else (result, None)
            outputs.add(output.chunk(len(some)), some)
            if shift is not None:
                shifts.add(shift.chunk(len(some)), some)
        return outputs.mean() if shifts.empty else Guided(outputs.mean(), shifts.mean())

    def _batches(self, places: list[Place]) -> list[list[Place]]:
        return [places[i : i + self.window_batch] for i in range(0, len(places), self.window_batch)]


def crops(field: Tensor, places: Sequence[Place]) -> Tensor:
    """(B, C, *S) -> (W * B, C, *window), the whole batch of the first place first."""
    return torch.cat([field[(slice(None), slice(None), *place)] for place in places])


class Blend:
    """Mean of overlapping windows, weighted by a Gaussian around each centre, summed as the windows come.

    Args:
        size: of the whole field.
    """

    def __init__(self, size: Sequence[int]) -> None:
        self.size = tuple(size)
        self.alone: Tensor | None = None
        self.total: Tensor | None = None

    @property
    def empty(self) -> bool:
        """Whether no window came."""
        return self.total is None and self.alone is None

    def add(self, windows: Sequence[Tensor], places: Sequence[Place]) -> None:
        """Windows (B, C, *window), each with its place."""
        for window, place in zip(windows, places, strict=True):
            if tuple(window.shape[2:]) == self.size:  # the only one: its mean is itself, to the last bit
                self.alone = window
                return
            if self.total is None:
                shape, device, dtype = window.shape[2:], window.device, window.dtype
                self.weight = compute_importance_map(tuple(shape), mode="gaussian", device=device, dtype=dtype)
                self.total = window.new_zeros((*window.shape[:2], *self.size))
                self.weights = window.new_zeros(self.size)
            self.total[(slice(None), slice(None), *place)] += self.weight * window
            self.weights[place] += self.weight

    def mean(self) -> Tensor:
        """The blended field, (B, C, *size)."""
        if self.alone is not None:
            return self.alone
        if self.total is None:
            raise ValueError("no windows to blend")
        return self.total / self.weights
