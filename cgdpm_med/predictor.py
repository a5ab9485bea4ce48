"""DiffusionPredictor: condition image in, prediction out. The module that bundles deploy."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cgdpm_med.cast_copy import CastCopy, channels_last
from cgdpm_med.cuda_graphs import GraphReplay
from cgdpm_med.diffusion.batching import BatchLimit
from cgdpm_med.diffusion.ensemble import sample_ensemble
from cgdpm_med.diffusion.guidance import check_interval, guided
from cgdpm_med.diffusion.sampling import check_prediction, check_start, encode
from cgdpm_med.diffusion.schedule import NoiseSchedule
from cgdpm_med.diffusion.targets import MaskDenoiser, MaskTarget, Target
from cgdpm_med.volumes import InputError

PRECISIONS = ("auto", "float32", "bfloat16")
COMPILER_OPTIONS = {"cpp.simdlen": 256}
"""Of torch.compile: PyTorch 2.13's CPU kernels of 512 bits made attention in bfloat16 NaN on a Xeon."""


class DiffusionPredictor(nn.Module):
    """Samples an ensemble for each condition image and returns its mean.

    Args:
        denoiser: what every sampler calls, as the target's ``denoiser`` makes it of a network.
        guide: the guidance network, or None.
        schedule: of the training; by default linear betas, under which the denoiser predicts what the target wants.
        target: what is made. Members are decoded, and their mean is the prediction.
        out_channels: in place of a target: a mask of so many channels, of the denoiser's scale.
        guidance_scale, guidance_interval: w and [t_lo, t_hi); see :func:`~cgdpm_med.guided`.
        steps, method, eta, start: see :func:`~cgdpm_med.trajectory`.
        members: K.
        seed: base seed of the noise.
        max_batch: most fields in one evaluation of the network, or "auto"; halved where the memory does not hold them.
        precision: "float32", "bfloat16" (inside the network only), or "auto": bfloat16 where the device is fast at it.
        compile: compile the networks with torch.compile, once for every shape of a batch: a minute or more at the first
            volume of each, which only long runs over scans of one size repay. Needs a C++ compiler.
        cuda_graphs: on an NVIDIA GPU, record an evaluation when its shape comes for the second time, and replay it from
            then on; see :class:`~cgdpm_med.cuda_graphs.GraphReplay`.

    Raises:
        ValueError: for a schedule or a denoiser that does not fit the target, an unknown precision, members below one,
            or steps, a start or an interval beyond the schedule.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        guide: nn.Module | None = None,
        schedule: NoiseSchedule | None = None,
        target: Target | None = None,
        *,
        out_channels: int | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[int, int] | None = None,
        steps: int = 10,
        method: str = "ddim",
        eta: float = 0.0,
        start: int | None = None,
        members: int = 8,
        seed: int = 0,
        max_batch: int | str = "auto",
        precision: str = "auto",
        compile: bool = False,
        cuda_graphs: bool = True,
    ) -> None:
        super().__init__()
        check_precision(precision)
        if members < 1:
            raise ValueError(f"an ensemble needs at least one member, not {members}")
        self.denoiser, self.guide = denoiser, guide
        self.target = _target_of(denoiser, target, out_channels)
        predicted = getattr(denoiser, "prediction_type", None)
        self.schedule = schedule or NoiseSchedule(prediction_type=predicted or self.target.predicts)
        check_prediction(predicted, self.schedule)
        if predicted is None:
            self.target.check(self.schedule)
        visitable = self.schedule.T if start is None else check_start(start, self.schedule.T) + 1
        if not 1 <= steps <= visitable:
            raise ValueError(f"steps must be between 1 and {visitable} (the chain's timesteps), not {steps}")
        check_interval(guidance_interval, self.schedule.T)
        self.guidance_scale, self.guidance_interval = guidance_scale, guidance_interval
        self.steps, self.method, self.eta, self.start = steps, method, eta, start
        self.members, self.seed, self.precision = members, seed, precision
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
        parts = (range(k, min(k + at_once, self.members)) for k in range(0, self.members, at_once))
        total: Tensor | int = 0
        for ids in parts:
            total = total + self.ensemble(image, member_ids=ids).sum(dim=0)
        return torch.as_tensor(total / self.members)

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
            shape=(self.out_channels, *self._target_size(image)),
            members=self.members,
            seed=self.seed,
            keys=keys,
            member_ids=member_ids,
            max_batch=self.limit,
            progress=progress,
            steps=self.steps,
            method=self.method,
            eta=self.eta,
            start=self.start,
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

    def _sampling_denoiser(self, device: torch.device, dtype: torch.dtype) -> Any:
        denoiser: Any = self._evaluated("denoiser", device, dtype)
        if self.guide is None:
            return denoiser
        guide = self._evaluated("guide", device, dtype)
        return guided(denoiser, guide, self.schedule, scale=self.guidance_scale, interval=self.guidance_interval)

    def _evaluated(self, name: str, device: torch.device, dtype: torch.dtype) -> Autocast:
        network, key = getattr(self, name), (name, device.type, dtype)
        if key not in self._evaluators or self._evaluators[key].network is not network:
            how = {"compile": self.compiled, "cuda_graphs": self.cuda_graphs}
            self._evaluators[key] = Autocast(network, device, dtype, **how)
        else:
            self._evaluators[key].refresh()
        return self._evaluators[key]


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


class Autocast:
    """Evaluates a network in evaluation mode and lower precision; what enters and leaves the sampler stays float32.

    The weights of 2D convolutions are laid out channels last, which vector units and tensor cores read faster; their
    values stay. In lower precision a copy of the network is evaluated, with the weights it had at the last
    :meth:`refresh`.

    Args:
        compile: evaluate a copy that torch.compile has compiled.
        cuda_graphs: on an NVIDIA GPU, evaluate by a :class:`~cgdpm_med.cuda_graphs.GraphReplay`.
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
        self.network, self.device, self.dtype = network, device, dtype
        self.copy: CastCopy | GraphReplay | None = None  # what is evaluated instead
        options = COMPILER_OPTIONS if compile else None
        if cuda_graphs and device.type == "cuda":
            self.copy = GraphReplay(network, dtype, options)
        elif compile or dtype != torch.float32:
            self.copy = CastCopy(network, dtype, options)
        self.refresh()

    def refresh(self) -> None:
        """Take the network's weights as they are now."""
        if self.copy is None:
            channels_last(self.network.eval())
        else:
            self.copy.refresh()

    def _context(self) -> torch.autocast:
        return lower_precision(self.device, self.dtype)

    def encode_condition(self, y: Tensor) -> Any:
        with self._context():
            return encode(self.copy or self.network, y)

    def __call__(self, x_t: Tensor, t: Tensor, context: Any) -> Tensor:
        with self._context():
            return (self.copy or self.network)(x_t, t, context).to(x_t.dtype)


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
