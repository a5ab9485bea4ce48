"""SuperResolver: images of any size to finer ones, what bundles, evaluation and the command line share."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cgdpm_med.diffusion.degradation import AreaDegradation, Degradation, project
from cgdpm_med.diffusion.targets import ImageTarget, ResidualTarget
from cgdpm_med.files import InputError
from cgdpm_med.inference.bundles import built_from_bundle
from cgdpm_med.inference.inferers import WindowedDenoiser
from cgdpm_med.inference.predictor import DiffusionPredictor
from cgdpm_med.models.adm import load_upsampler
from cgdpm_med.models.description import CoarseSliceInput, PictureInput
from cgdpm_med.networks.classes import ClassConditioned, append_class
from cgdpm_med.networks.denoiser import Denoiser
from cgdpm_med.networks.unet import ConditionalUNet

ADM_WINDOW = 256
_OPTIONS = {
    "class_index": "--class-index",
    "factor": "--factor",
    "guidance_weights": "--guidance-weights",
    "noise_scale": "--noise-scale",
    "project": "--project",
}


class SuperResolver:
    """Images of any size to finer ones: what bundles and the command line share.

    Args:
        predictor: whose target is a picture; its ``size_factor`` is the refinement.
        window: side of the field the network sees, in fine pixels; larger images are denoised jointly in overlapping
            windows. None evaluates whole images.
        overlap, window_batch: see :class:`~cgdpm_med.inference.inferers.WindowedDenoiser`.
        class_index: class of every image, for a network inside ``ClassConditioned``.
        device: where the network runs.
        weights: file of the network, for the record.
        input: what the network was trained on, where the model file says it.
        factor: of refinement that is expected; None takes that of the predictor.

    Raises:
        InputError: for a predictor of another factor than the expected one.
        ValueError: for a predictor of masks, or a window the network cannot halve as often as it has levels.
    """

    def __init__(
        self,
        predictor: DiffusionPredictor,
        window: int | None = None,
        overlap: float = 0.5,
        window_batch: int = 8,
        class_index: int | None = None,
        device: torch.device | str = "cpu",
        weights: str | Path | None = None,
        input: PictureInput | CoarseSliceInput | None = None,
        factor: int | None = None,
    ) -> None:
        if predictor.target.makes != "picture":
            raise ValueError("super-resolution needs a predictor of pictures: give it an ImageTarget or ResidualTarget")
        self.device = torch.device(device)
        self.predictor = predictor.to(self.device)
        self.window, self.overlap, self.window_batch = window, overlap, window_batch
        self.class_index = class_index
        self.weights, self.input = weights and Path(weights), input
        networks = (m for m in predictor.denoiser.modules() if isinstance(m, ConditionalUNet))
        network = next(networks, None)
        self.channels = 3 if network is None else network.cond_channels
        self.require_factor(factor)
        self.multiple = math.lcm(predictor.size_factor, 1 if network is None else network.divisor)
        if window is not None and (window < 1 or window % self.multiple):
            raise ValueError(f"the window must be a multiple of {self.multiple}, not {window}")

    def require_factor(self, factor: int | None) -> None:
        """Nothing where it refines so many times, or None is given.

        Raises:
            InputError: for another factor.
        """
        if factor not in (None, self.factor):
            what = f"refines {self.factor} times, not {factor!r}"
            raise InputError(what, path=self.weights, remedy="Leave out --factor, or give weights of that factor")

    @property
    def factor(self) -> int:
        """Fine pixels per coarse pixel along each axis."""
        return self.predictor.size_factor

    @property
    def operator(self) -> Degradation:
        """How a coarse image comes from a fine one."""
        target = self.predictor.target
        return target.operator if isinstance(target, ResidualTarget) else AreaDegradation(self.factor)

    @property
    def projects(self) -> bool:
        """Whether results are made to agree with their input."""
        target = self.predictor.target
        return isinstance(target, ResidualTarget) or (isinstance(target, ImageTarget) and target.project)

    @classmethod
    def from_bundle(cls, bundle: str | Path, **overrides: Any) -> SuperResolver:
        """Build it from the entry ``resolver`` of a bundle's inference configuration.

        Args:
            bundle: name of a bundle, or its folder.
            overrides: keys of ``configs/inference.yaml``, for example ``weights="model.pt", members=4``.

        Raises:
            InputError: for an unknown bundle or key, or weights that do not fit.
        """
        resolver: SuperResolver = built_from_bundle(
            bundle,
            "resolver",
            overrides,
            example="cardiac_sr",
            unknown=lambda name, _: f"Leave out {_OPTIONS.get(name, name)}, or give a bundle that has it",
            inputs=(PictureInput, CoarseSliceInput),
        )
        return resolver

    @classmethod
    def from_adm(
        cls,
        weights: str | Path,
        class_index: int | None = None,
        *,
        window: int = ADM_WINDOW,
        device: torch.device | str = "cpu",
        project: bool = False,
        num_heads: int | None = None,
        num_head_channels: int | None = None,
        **settings: Any,
    ) -> SuperResolver:
        """Build it from an ADM upsampler, sampling as ADM does: DDPM with 250 steps unless ``settings`` say otherwise.

        Args:
            class_index: class of the images, where the network has classes (0 … 999 of ImageNet).
            window: 256 for ``64_256_upsampler.pt``, 512 for ``128_512_upsampler.pt``.
            project: samples are made to agree with their image; ADM itself leaves out this last step.
            num_heads, num_head_channels: see :func:`~cgdpm_med.load_adm_upsampler`.
            settings: of :class:`~cgdpm_med.DiffusionPredictor`.

        Raises:
            InputError: for weights that are no ADM upsampler, or a class that is missing or does not exist.
        """
        model = load_upsampler(
            weights, window=window, project=project, num_heads=num_heads, num_head_channels=num_head_channels
        )
        classes = _classes_of(model.network)
        if classes is not None and (class_index is None or not 0 <= class_index < classes):
            what = "needs the class of the images" if class_index is None else f"has no class {class_index}"
            raise InputError(
                what, path=weights, remedy=f"Give --class-index from 0 to {classes - 1} (class_index= in Python)"
            )
        predictor = DiffusionPredictor(
            model.network,
            schedule=model.schedule,
            target=model.target,
            **{"method": "ddpm", "steps": 250, "members": 1, **settings},
        )
        return cls(
            predictor,
            model.input.window,
            class_index=None if classes is None else class_index,
            device=device,
            weights=weights,
            input=model.input,
        )

    @torch.inference_mode()
    def __call__(
        self,
        images: Tensor,
        keys: Sequence[Hashable] | None = None,
        progress: Callable[[float], None] | None = None,
        classes: Sequence[int] | None = None,
    ) -> Tensor:
        """Refine a batch of images of one size.

        Args:
            images: (B, C, H, W) in [-1, 1]; C is 3, or 1 for grey. What the network lacks in channels is repeated, or
                averaged.
            keys: of the noise, one for each image.
            progress: called with the fraction of the sampling that is done.
            classes: one for each image, instead of ``class_index``.

        Returns:
            All members, (K, B, C', factor H, factor W), on the CPU, in [-1, 1]; C' is the network's.

        Raises:
            InputError: when the network needs classes and has none.
        """
        height, width = (self.factor * n for n in images.shape[2:])
        condition = self._padded(_with_channels(images, self.channels))
        if classes is None and self.class_index is not None:
            classes = [self.class_index] * len(images)
        if classes is not None:
            condition = append_class(condition, torch.as_tensor(classes))
        elif any(isinstance(m, ClassConditioned) for m in self.predictor.denoiser.modules()):
            raise InputError(
                "the network needs the class of the images",
                remedy="Give --class-index, such as 207 (class_index= in Python)",
            )
        members = self.predictor.ensemble(
            condition.to(self.device), keys=keys, wrap=self._wrapped(len(images), progress)
        )
        return members[..., :height, :width].cpu()

    def agreeing(self, members: Tensor, images: Tensor) -> Tensor:
        """Members that their images can have come from, exactly and whatever was padded or clipped on the way.

        They may leave [-1, 1] by a little. As they are for a target that does not project.

        Args:
            members: (K, B, C', factor H, factor W), as a call returns them.
            images: (B, C, H, W), as they were given to it.
        """
        if not self.projects:
            return members
        y = _with_channels(images, members.shape[2])
        return torch.stack([project(member, y, self.operator) for member in members])

    def disagreement(self, members: Tensor, images: Tensor) -> Tensor:
        """|degraded members - images| as a fraction of the range [-1, 1]; arguments as :meth:`agreeing`."""
        y = _with_channels(images, members.shape[2])
        return torch.stack([(self.operator.degrade(member) - y).abs() / 2 for member in members])

    def _padded(self, images: Tensor) -> Tensor:
        """Repeat the last row and column where the network needs more; a windowed axis has a fitting size already."""
        pads = []
        for n in reversed(images.shape[2:]):
            fine = self.factor * n
            fits = self.window is not None and fine >= self.window
            pads += [0, 0 if fits else (-fine % self.multiple) // self.factor]
        return F.pad(images, pads, mode="replicate")

    def _wrapped(self, images: int, progress: Callable[[float], None] | None) -> Callable[[Any], Any]:
        """What stands between the sampler and the network: windows, where there are any, and a counter of steps."""

        def wrap(denoiser: Any) -> Any:
            if self.window is not None:
                side, factor = (self.window, self.window), self.factor
                denoiser = WindowedDenoiser(denoiser, side, self.overlap, self.window_batch, factor)
            if progress is None:
                return denoiser
            return _Counted(
                denoiser, progress, self.predictor.sampling.members * images * self.predictor.sampling.steps
            )

        return wrap


def _classes_of(network: torch.nn.Module) -> int | None:
    """How many classes a network takes, or None."""
    return next((m.num_classes for m in network.modules() if isinstance(m, ConditionalUNet)), None)


class _Counted(Denoiser):
    """A denoiser that tells the fraction of all evaluations, counted per field, that are done."""

    def __init__(self, network: Any, progress: Callable[[float], None], total: int) -> None:
        super().__init__()
        self.network, self.progress, self.total = network, progress, total
        self.done = 0

    def forward(self, x_t: Tensor, t: Tensor, features: Any) -> Any:
        output = super().forward(x_t, t, features)
        self.done += len(x_t)
        self.progress(min(self.done / self.total, 1.0))
        return output


def _with_channels(images: Tensor, channels: int) -> Tensor:
    if images.shape[1] == channels:
        return images
    if channels == 1:
        return images.mean(dim=1, keepdim=True)
    if images.shape[1] == 1:
        return images.expand(-1, channels, -1, -1)
    what = f"the network takes {channels} channels, the image has {images.shape[1]}"
    raise InputError(what, remedy=f"Give images of {channels} channels, or grey ones")


def spread(members: Tensor) -> Tensor:
    """Standard deviation over members (n in the denominator), root mean square over channels.

    (K, …, C, H, W) -> (…, H, W).
    """
    return members.var(dim=0, correction=0).mean(dim=-3).sqrt()
