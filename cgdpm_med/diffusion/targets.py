"""Targets: what the diffusion makes, how it is written as x_0, and how it is learned.

Masks and high-resolution images are diffusion targets conditioned on an image. Everything that trains, samples, shows
or scores takes a :class:`Target` and knows nothing else about what it makes; a new kind is a class like these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cgdpm_med.networks.denoiser import Denoiser, evaluate

from .degradation import AreaDegradation, Degradation, project
from .objectives import hybrid_loss, mask_loss, simple_loss
from .schedule import NoiseSchedule

PALETTE = ((0.0, 0.0, 0.0), (0.26, 0.53, 0.96), (0.30, 0.75, 0.35), (0.93, 0.29, 0.25))
"""Colours in which sample grids show the classes; further ones repeat."""


class Target:
    """What the diffusion makes, given a condition image y (B, Cc, *S / size_factor).

    A subclass says how truth becomes x_0 (``encode``) and x_0 a prediction (``decode``); the rest has defaults that
    suit a field of numbers. Shapes: x_0 (B, channels, *S).

    Attributes:
        channels: of x_0.
        size_factor: size of x_0 / size of y.
        makes: what ``decode`` returns, "probabilities", "picture" or a word of your own.
        predicts: prediction type of a schedule that nobody gave.
    """

    channels: int
    size_factor: int = 1
    makes: str = "field"
    predicts: str = "epsilon"

    def encode(self, truth: Tensor, y: Tensor) -> Tensor:
        """The diffusion target of a true answer."""
        raise NotImplementedError

    def decode(self, x_0: Tensor, y: Tensor) -> Tensor:
        """The prediction that x_0 stands for."""
        raise NotImplementedError

    def denoiser(self, network: nn.Module) -> nn.Module:
        """The denoiser that a network trained with ``objective`` is; here itself."""
        return network

    def correct(self, x_0: Tensor, y: Tensor) -> Tensor:
        """Bring an x_0 predicted in the course of sampling to where a true one can be; here as it is."""
        return x_0

    def objective(
        self, output: Tensor, x_0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule
    ) -> Tensor:
        """Loss of a network's output at x_t, per example (B,); the squared error of what the schedule predicts."""
        return simple_loss(output, x_0, eps, x_t, t, schedule)

    def check(self, schedule: NoiseSchedule) -> None:
        """Raise ValueError for a schedule under which this target cannot be trained or sampled; here none is."""

    def picture(self, prediction: Tensor) -> Tensor:
        """A prediction to look at: (B, channels, H, W) -> (B, 3, H, W) in [0, 1]; here grey from least to most."""
        return grey(prediction[:, :1])

    def condition_picture(self, y: Tensor) -> Tensor:
        """A condition to look at: (B, Cc, H, W) -> (B, 3, H, W) in [0, 1]; here its middle channel."""
        return grey(y[:, y.shape[1] // 2][:, None])


@dataclass(frozen=True)
class MaskTarget(Target):
    """Masks of C classes as one-hot channels in {-scale, +scale}; two classes are one channel, the foreground.

    The network's output is read as class logits and learned by cross-entropy and Dice. Decoded to +-scale channels by
    :class:`MaskDenoiser` they are E[x_0 | x_t, y] where cross-entropy alone is minimal, so that the network stays a
    denoiser. The Dice term pulls the probabilities towards 0 and 1; ``dice_weight=0`` leaves the exact denoiser.

    Args:
        num_classes: C, the background included.
        scale: a mask is a redundant signal: smaller ones leave more timesteps at which it has to be found in the image.
        one_hot: two classes as two channels.
        dice_weight: of the soft Dice term.
        class_weights: factors of each pixel's cross-entropy by its true class, or None.

    Raises:
        ValueError: for fewer than two classes, or a scale that is not positive.
    """

    num_classes: int
    scale: float = 0.1
    one_hot: bool = False
    dice_weight: float = 1.0
    class_weights: Sequence[float] | None = None

    makes = "probabilities"
    predicts = "sample"

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(f"a mask has at least two classes, the background among them, not {self.num_classes}")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"the scale of a mask must be positive, not {self.scale}")

    @property
    def channels(self) -> int:  # type: ignore[override]
        """C, or 1 for two classes."""
        return 1 if self.num_classes == 2 and not self.one_hot else self.num_classes

    def probabilities(self, labels: Tensor) -> Tensor:
        """Label maps (B, 1, *S), or soft labels (B, C, *S), as float32 probabilities (B, channels, *S).

        Raises:
            ValueError: for other channels, or a label map with values between whole numbers.
        """
        if labels.shape[1] == self.num_classes:
            soft = labels.float()
        elif labels.shape[1] == 1:
            soft = F.one_hot(_whole(labels[:, 0]), self.num_classes).movedim(-1, 1).float()
        else:
            raise ValueError(
                f"a mask of {self.num_classes} classes is a label map of one channel or has one channel for each, "
                f"not {labels.shape[1]} channels"
            )
        return soft[:, 1:] if self.channels == 1 else soft

    def encode(self, truth: Tensor, y: Tensor | None = None) -> Tensor:
        """Labels to channels in [-scale, +scale].

        Args:
            truth: (B, 1, *S) with values 0 … C-1, or class probabilities (B, C, *S), such as a label map resampled to a
                coarser grid has: a pixel that is half muscle says so, and the boundary keeps its place.

        Raises:
            ValueError: see :meth:`probabilities`.
        """
        return self.scale * (2 * self.probabilities(truth) - 1)

    def decode(self, x_0: Tensor, y: Tensor | None = None) -> Tensor:
        """Class probabilities, (B, channels, *S): they sum to one, or lie in [0, 1] for a single channel.

        Values between the two ends are read as (x_0 / scale + 1) / 2, the inverse of :class:`MaskDenoiser`. Where every
        channel is at or below -scale all classes are equally likely.
        """
        p = self._unit(x_0)
        if x_0.shape[1] == 1:
            return p
        total = p.sum(dim=1, keepdim=True)
        return torch.where(total > 0, p / total, 1 / p.shape[1])

    def _unit(self, x_0: Tensor) -> Tensor:
        return ((x_0 / self.scale + 1) / 2).clamp(0, 1)

    def denoiser(self, network: nn.Module) -> MaskDenoiser:
        """The network's logits as x_0."""
        return MaskDenoiser(network, self.scale)

    def correct(self, x_0: Tensor, y: Tensor | None = None) -> Tensor:
        """Clipped to [-scale, +scale]."""
        return x_0.clamp(-self.scale, self.scale)

    def objective(
        self, output: Tensor, x_0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule
    ) -> Tensor:
        """output: logits (B, channels, *S). -> (B,)."""
        return mask_loss(output, self._unit(x_0), self.dice_weight, self.class_weights)

    def check(self, schedule: NoiseSchedule) -> None:
        """Raise ValueError unless x_0 itself is predicted: logits stand for neither noise nor velocity."""
        if schedule.prediction_type != "sample":
            raise ValueError(
                f"a mask is predicted as x_0, the schedule says {schedule.prediction_type!r}: "
                "give NoiseSchedule(prediction_type='sample')"
            )

    def picture(self, prediction: Tensor) -> Tensor:
        """Colours of the most probable classes."""
        labels = prediction.argmax(dim=1) if prediction.shape[1] > 1 else (prediction[:, 0] > 0.5).long()
        colours = torch.tensor(PALETTE, device=prediction.device)
        return colours[labels % len(colours)].movedim(-1, 1)


class MaskDenoiser(Denoiser):
    """Adapter: a network with class logits as output becomes a denoiser of mask channels (prediction "sample").

    E[x_0 | x_t, y] of one-hot channels in {-scale, +scale} is scale (2 p - 1) with p the class probabilities.

    Args:
        network: ``network(x_t, t, context) -> logits`` (B, C, *S); softmax over C, or a sigmoid when C = 1.
        scale: magnitude of the encoded mask.
    """

    prediction_type = "sample"

    def __init__(self, network: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.scale = scale

    def forward(self, x_t: Tensor, t: Tensor, features: Any) -> Tensor:
        """-> (B, C, *S) in [-scale, scale]."""
        logits = self.logits(x_t, t, features)
        p = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)
        return self.scale * (2 * p - 1)

    def logits(self, x_t: Tensor, t: Tensor, features: Any) -> Tensor:
        """The network's output, (B, C, *S), float32."""
        logits: Tensor = evaluate(self.network, x_t, t, features).float()
        return logits


@dataclass(frozen=True)
class ImageTarget(Target):
    """The picture itself, in [-1, 1].

    Args:
        channels: of the picture.
        factor: size of the picture / size of its condition.
        learn_sigma: the network also predicts its variance (Nichol & Dhariwal, 2021), and trains with
            :func:`~.objectives.hybrid_loss`.
        project: every predicted x_0, and the decoded picture, is projected onto those whose area average is y (Wang et
            al., 2023). The denoiser's training is not concerned; a guidance network learns the error that is left.
    """

    channels: int = 3
    factor: int = 1
    learn_sigma: bool = False
    project: bool = False

    makes = "picture"

    @property
    def size_factor(self) -> int:  # type: ignore[override]
        """The factor."""
        return self.factor

    def encode(self, truth: Tensor, y: Tensor | None = None) -> Tensor:
        """The picture as it is."""
        return truth

    def decode(self, x_0: Tensor, y: Tensor | None = None) -> Tensor:
        """Clipped to [-1, 1], and with ``project`` in agreement with y."""
        return self.correct(x_0, y).clamp(-1, 1)

    def correct(self, x_0: Tensor, y: Tensor | None = None) -> Tensor:
        """Clipped to [-1, 1]; with ``project`` then brought into agreement with y, which may leave that by a little."""
        x_0 = x_0.clamp(-1, 1)
        if not self.project or y is None:
            return x_0
        return project(x_0, y[:, : self.channels], AreaDegradation(self.factor))

    def objective(
        self, output: Tensor, x_0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor, schedule: NoiseSchedule
    ) -> Tensor:
        """The squared error of what the schedule predicts, and with ``learn_sigma`` the bound on the variance."""
        return (hybrid_loss if self.learn_sigma else simple_loss)(output, x_0, eps, x_t, t, schedule)

    def picture(self, prediction: Tensor) -> Tensor:
        """From [-1, 1] to [0, 1]."""
        return ((prediction.clamp(-1, 1) + 1) / 2).expand(-1, 3, *prediction.shape[2:])

    def condition_picture(self, y: Tensor) -> Tensor:
        """The coarse picture; a class may travel as last channel."""
        return self.picture(y[:, : self.channels])


@dataclass(frozen=True)
class ResidualTarget(Target):
    """What a smooth interpolation of y lacks of the picture: x_0 = scale * (picture - upsample(y)).

    The residual of natural pictures is small where the interpolation is right; ``scale`` brings its deviation to about
    one half. The decoded picture agrees with y: average it, and y comes back (up to clipping to [-1, 1]).

    Args:
        channels: of the picture in [-1, 1].
        factor: size of the picture / size of its condition.
        scale: of the residual.
        degradation: how y came from the picture; area averaging by default.
        project_steps: make every predicted x_0 agree with y, and not the last one alone.
        clip: pictures end at -1 and 1. The intensities of a scan have no such ends, and a result that is not clipped
            agrees with y exactly.

    Raises:
        ValueError: for a scale that is not positive, or a degradation of another factor.
    """

    channels: int = 3
    factor: int = 8
    scale: float = 2.7
    degradation: Degradation | None = None
    project_steps: bool = False
    clip: bool = True

    makes = "picture"
    predicts = "sample"

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ValueError(f"the scale of a residual must be positive, not {self.scale}")
        if self.operator.factor != self.factor:
            raise ValueError(f"a degradation by {self.operator.factor} for a target of factor {self.factor}")

    @property
    def operator(self) -> Degradation:
        """How y comes from the picture."""
        return self.degradation or AreaDegradation(self.factor)

    @property
    def size_factor(self) -> int:  # type: ignore[override]
        """The factor."""
        return self.factor

    def encode(self, truth: Tensor, y: Tensor) -> Tensor:
        """Picture (B, channels, *S) in [-1, 1] to its residual."""
        return self.scale * (truth - self._smooth(y))

    def decode(self, x_0: Tensor, y: Tensor) -> Tensor:
        """The picture in [-1, 1], projected onto those that agree with y."""
        return self._clipped(self.project(self._smooth(y) + x_0 / self.scale, y))

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """x + fill(y - degrade(x)): the picture nearest to x that y can have come from."""
        return project(x, y[:, : self.channels], self.operator)

    def correct(self, x_0: Tensor, y: Tensor) -> Tensor:
        """The residual of a picture clipped to [-1, 1], and with ``project_steps`` in agreement with y."""
        smooth = self._smooth(y)
        picture = self._clipped(smooth + x_0 / self.scale)
        if self.project_steps:
            picture = self.project(picture, y)
        return self.scale * (picture - smooth)

    def _clipped(self, picture: Tensor) -> Tensor:
        return picture.clamp(-1, 1) if self.clip else picture

    def _smooth(self, y: Tensor) -> Tensor:
        return self.operator.upsample(y[:, : self.channels])

    def picture(self, prediction: Tensor) -> Tensor:
        """From [-1, 1] to [0, 1]."""
        return ((prediction.clamp(-1, 1) + 1) / 2).expand(-1, 3, *prediction.shape[2:])

    def condition_picture(self, y: Tensor) -> Tensor:
        """The coarse picture; a class may travel as last channel."""
        return self.picture(y[:, : self.channels])


def _whole(labels: Tensor) -> Tensor:
    """Labels as int64; what lies between two of them is no label."""
    numbers = labels.long()
    if labels.is_floating_point() and not torch.equal(numbers.to(labels.dtype), labels):
        raise ValueError("a label map has values between whole numbers: give one channel of probabilities a class")
    return numbers


def grey(channel: Tensor) -> Tensor:
    """(B, 1, H, W) -> (B, 3, H, W), from 0 at the batch's least value to 1 at its greatest."""
    low, high = channel.amin(), channel.amax()
    return ((channel - low) / (high - low).clamp(min=1e-6)).expand(-1, 3, -1, -1)
