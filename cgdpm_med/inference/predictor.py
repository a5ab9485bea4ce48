"""DiffusionPredictor: condition image in, prediction out. The module that bundles deploy."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cgdpm_med.diffusion.guidance import guided
from cgdpm_med.diffusion.sampling import Sampling, check_prediction
from cgdpm_med.diffusion.schedule import NoiseSchedule
from cgdpm_med.diffusion.targets import MaskDenoiser, MaskTarget, Target
from cgdpm_med.files import InputError
from cgdpm_med.runtime.autocast import Autocast
from cgdpm_med.runtime.batching import BatchLimit, sample_ensemble
from cgdpm_med.runtime.precision import autocast_dtype, check_precision


class Predictor(Protocol):
    """What inferers draw with: a :class:`DiffusionPredictor`, or several as a :class:`~.deep_ensemble.DeepEnsemble`."""

    sampling: Sampling
    limit: BatchLimit
    precision: str

    @property
    def guide(self) -> nn.Module | None:
        """The guidance network, or None."""

    @property
    def out_channels(self) -> int:
        """Channels of a member."""

    @property
    def size_factor(self) -> int:
        """Size of a member / size of the condition."""

    def ensemble(
        self,
        image: Tensor,
        keys: Sequence[Hashable] | None = None,
        member_ids: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
        wrap: Callable[[Any], Any] | None = None,
    ) -> Tensor:
        """Every member, (K, B, C, *S)."""


class DiffusionPredictor(nn.Module):
    """Samples an ensemble for each condition image and returns its mean.

    Args:
        denoiser: what every sampler calls, as the target's ``denoiser`` makes it of a network.
        guide: the guidance network, or None.
        schedule: of the training; by default linear betas, under which the denoiser predicts what the target wants.
        target: what is made. Members are decoded, and their mean is the prediction.
        out_channels: in place of a target: a mask of so many channels, of the denoiser's scale.
        sampling: how members are drawn.
        max_batch: most fields in one evaluation of the network, or "auto"; halved where the memory does not hold them.
        precision: "float32", "bfloat16" (inside the network only), or "auto": bfloat16 where the device is fast at it.
        compile: compile the networks with torch.compile, once for every shape of a batch: a minute or more at the first
            volume of each, which only long runs over scans of one size repay. Needs a C++ compiler.
        cuda_graphs: on an NVIDIA GPU, record an evaluation when its shape comes for the second time, and replay it from
            then on; see :class:`~cgdpm_med.runtime.cuda_graphs.GraphReplay`.
        dials: fields of :class:`~cgdpm_med.Sampling`, in place of those of ``sampling``.

    Raises:
        ValueError: for a schedule or a denoiser that does not fit the target, an unknown precision, or dials
            that do not fit the schedule.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        guide: nn.Module | None = None,
        schedule: NoiseSchedule | None = None,
        target: Target | None = None,
        sampling: Sampling | None = None,
        *,
        out_channels: int | None = None,
        max_batch: int | str = "auto",
        precision: str = "auto",
        compile: bool = False,
        cuda_graphs: bool = True,
        **dials: Any,
    ) -> None:
        super().__init__()
        check_precision(precision)
        self.denoiser, self.guide = denoiser, guide
        self.target = _target_of(denoiser, target, out_channels)
        predicted = getattr(denoiser, "prediction_type", None)
        self.schedule = schedule or NoiseSchedule(prediction_type=predicted or self.target.predicts)
        check_prediction(predicted, self.schedule)
        if predicted is None:
            self.target.check(self.schedule)
        self.sampling = (sampling or Sampling()).with_dials(**dials)
        self.sampling.visited(self.schedule)
        _check_members(self.sampling, self.schedule)
        self.precision = precision
        self.limit = BatchLimit(max_batch)
        self.register_load_state_dict_pre_hook(_place_bare_network)
        self.compiled, self.cuda_graphs = compile, cuda_graphs
        self._evaluators: dict[tuple[str, str, torch.dtype], Autocast] = {}

    @property
    def out_channels(self) -> int:
        """Channels of the target, and of each member."""
        return self.target.channels

    @property
    def size_factor(self) -> int:
        """Size of the target / size of the condition."""
        return self.target.size_factor

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, Cc, *S) -> mean over members, (B, C, *S), for example the probabilities of a mask.

        Memory does not grow with the members: no more of them are held than are evaluated at once.
        """
        at_once = max(1, self.limit.of(self._target_size(image), image.device) // len(image))
        members = self.sampling.members
        parts = (range(k, min(k + at_once, members)) for k in range(0, members, at_once))
        total: Tensor | int = 0
        for ids in parts:
            total = total + self.ensemble(image, member_ids=ids).sum(dim=0)
        return torch.as_tensor(total / members)

    def _target_size(self, image: Tensor) -> list[int]:
        return [self.size_factor * n for n in image.shape[2:]]

    def ensemble(
        self,
        image: Tensor,
        keys: Sequence[Hashable] | None = None,
        member_ids: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
        wrap: Callable[[Any], Any] | None = None,
    ) -> Tensor:
        """Every member: (K, B, C, *S), decoded by the target.

        Args:
            image: condition images, (B, Cc, *S).
            keys: one per image; the noise of a member depends on (seed, key, member) alone.
            member_ids: which members; 0 … K-1 by default.
            progress: called with the number of finished fields.
            wrap: applied to the (guided) denoiser before sampling, for example a windowed one.

        Raises:
            InputError: when the network's predictions are not numbers.
        """
        dtype = autocast_dtype(image.device, self.precision)
        denoiser = self._sampling_denoiser(image.device, dtype)
        x_0 = sample_ensemble(
            wrap(denoiser) if wrap else denoiser,
            image,
            self.schedule,
            self.sampling,
            shape=(self.out_channels, *self._target_size(image)),
            keys=keys,
            member_ids=member_ids,
            max_batch=self.limit,
            progress=progress,
            correct=self.target.correct,
        )
        # in place and in parts: all of them are large, one by one would keep a GPU waiting
        at_once = self.limit.of(x_0.shape[3:], x_0.device)
        parts = x_0.flatten(0, 1).split(at_once)
        if not all(bool(part.sum(dtype=torch.float32).isfinite()) for part in parts):
            # a mask's probabilities would be equal for all classes, and its doubt would look like any other
            remedy = "Try precision float32, and without compile"
            raise InputError("the network's predictions are not finite numbers", remedy=remedy)
        for member in x_0:
            for part, y in zip(member.split(at_once), image.split(at_once), strict=True):
                part.copy_(self.target.decode(part, y))
        return x_0

    def drawing_with(self, denoiser: nn.Module) -> DiffusionPredictor:
        """One that draws in the same way with another denoiser of the same target, and without guidance."""
        how: dict[str, Any] = {"precision": self.precision, "compile": self.compiled, "cuda_graphs": self.cuda_graphs}
        other = DiffusionPredictor(denoiser, None, self.schedule, self.target, self.sampling, **how)
        other.limit = self.limit  # what did not fit for one does not for the other
        return other

    def _sampling_denoiser(self, device: torch.device, dtype: torch.dtype) -> Any:
        denoiser: Any = self._evaluated("denoiser", device, dtype)
        if self.guide is None:
            return denoiser
        guide = self._evaluated("guide", device, dtype)
        scale, interval = self.sampling.guidance_scale, self.sampling.guidance_interval
        return guided(denoiser, guide, self.schedule, scale=scale, interval=interval)

    def _evaluated(self, name: str, device: torch.device, dtype: torch.dtype) -> Autocast:
        network, key = getattr(self, name), (name, device.type, dtype)
        if key not in self._evaluators or self._evaluators[key].network is not network:
            how = {"compile": self.compiled, "cuda_graphs": self.cuda_graphs}
            self._evaluators[key] = Autocast(network, device, dtype, **how)
        else:
            self._evaluators[key].refresh()
        return self._evaluators[key]


def _check_members(sampling: Sampling, schedule: NoiseSchedule) -> None:
    """One answer told several times would look certain."""
    if sampling.members > 1 and sampling.steps == 1 and sampling.shares_first_step(schedule):
        raise ValueError(f"one shared step gives {sampling.members} equal members: take one member, or several steps")


def predictor_settings(predictor: Predictor, device: torch.device) -> dict[str, Any]:
    """What a reported number depends on besides the weights and the data: all of the sampling, precision, device."""
    unguided = {} if predictor.guide is not None else {"guidance_scale": 0.0, "guidance_interval": None}
    return asdict(predictor.sampling) | unguided | {"precision": predictor.precision, "device": str(device)}


def _target_of(denoiser: nn.Module, target: Target | None, out_channels: int | None) -> Target:
    """The target itself, or that of the shorthand, once it is sure that the denoiser speaks its scale."""
    scale = denoiser.scale if isinstance(denoiser, MaskDenoiser) else None
    if target is None:
        channels = 4 if out_channels is None else out_channels
        target = MaskTarget(max(channels, 2), 1.0 if scale is None else scale, one_hot=channels > 1)
    elif not isinstance(target, Target):
        raise ValueError(f"target must be a Target, such as MaskTarget(4) or ImageTarget(), not {target!r}")
    elif out_channels not in (None, target.channels):
        raise ValueError(f"the target has {target.channels} channels, out_channels says {out_channels}")
    if scale is not None and isinstance(target, MaskTarget) and scale != target.scale:
        raise ValueError(f"the denoiser's masks are scaled by {scale}, the target's by {target.scale}")
    return target


def _place_bare_network(predictor: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Weights files hold the network inside the denoiser alone; whoever loads one into the predictor means that.

    A guide keeps the weights it has.
    """
    own = predictor.state_dict()
    if prefix or own.keys() & state_dict.keys():
        return
    for place in ("denoiser.", "denoiser.network."):
        if all(place + name in own for name in state_dict):
            for name in list(state_dict):
                state_dict[place + name] = state_dict.pop(name)
            state_dict.update({name: value for name, value in own.items() if name.startswith("guide.")})
            return
