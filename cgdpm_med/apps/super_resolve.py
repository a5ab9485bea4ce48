"""From pictures or slices of a volume to finer ones, with the spread of several samples.

Pictures keep their format, depth, colour profile and EXIF data (transparency is laid over white). Volumes are refined
slice by slice, in plane, onto a grid that leaves the anatomy where it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cgdpm_med.console import CaseBar, complain, input_error_behind
from cgdpm_med.data.transforms import case_name
from cgdpm_med.files import InputError
from cgdpm_med.images import PICTURE_SUFFIXES, image_datalist, read_picture, write_picture
from cgdpm_med.inference.bundles import bundle_path
from cgdpm_med.inference.inferers import WindowedDenoiser
from cgdpm_med.inference.predictor import DiffusionPredictor
from cgdpm_med.inference.segmenter import choose_device, unusable
from cgdpm_med.models.adm import load_upsampler
from cgdpm_med.networks.classes import ClassConditioned, append_class
from cgdpm_med.networks.denoiser import Denoiser
from cgdpm_med.networks.unet import ConditionalUNet
from cgdpm_med.studies.cases import Case
from cgdpm_med.studies.folders import is_volume, volume_files
from cgdpm_med.volumes import Spacing, check_spacing, read_volume, write_on_grid
from cgdpm_med.volumes.formats import VOLUME_SUFFIXES
from cgdpm_med.volumes.refine import refined_grid

KEPT_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff")
ADM_WINDOW = 256
_OPTIONS = {
    "class_index": "--class-index",
    "guidance_weights": "--guidance-weights",
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

    Raises:
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
    ) -> None:
        if predictor.target.makes != "picture":
            raise ValueError("super-resolution needs a predictor of pictures: give it an ImageTarget or ResidualTarget")
        self.device = torch.device(device)
        self.predictor = predictor.to(self.device)
        self.window, self.overlap, self.window_batch = window, overlap, window_batch
        self.class_index = class_index
        networks = (m for m in predictor.denoiser.modules() if isinstance(m, ConditionalUNet))
        network = next(networks, None)
        self.channels = 3 if network is None else network.cond_channels
        self.multiple = math.lcm(predictor.size_factor, 1 if network is None else network.divisor)
        if window is not None and (window < 1 or window % self.multiple):
            raise ValueError(f"the window must be a multiple of {self.multiple}, not {window}")

    @property
    def factor(self) -> int:
        """Fine pixels per coarse pixel along each axis."""
        return self.predictor.size_factor

    @classmethod
    def from_bundle(cls, bundle: str | Path, **overrides: Any) -> SuperResolver:
        """Build it from the entry ``resolver`` of a bundle's inference configuration.

        Args:
            bundle: name of a bundle, or its folder.
            overrides: keys of ``configs/inference.yaml``, for example ``weights="model.pt", members=4``.

        Raises:
            InputError: for an unknown bundle or key, or weights that do not fit.
        """
        from monai.bundle import ConfigParser

        root = Path(bundle) if Path(bundle).is_dir() else bundle_path(str(bundle))
        config = root / "configs" / "inference.yaml"
        parser = ConfigParser()
        try:
            parser.read_config(str(config))
        except Exception as error:  # a missing file, or whatever a YAML parser finds
            raise unusable(config, error) from error
        parser["bundle_root"] = str(root)
        if "resolver" not in parser:
            remedy = "Give a super-resolution bundle, such as imagenet_sr_64_256"
            raise InputError("has no resolver", path=config, remedy=remedy)
        if missing := [name for name in overrides if name not in parser]:
            remedy = f"Leave out {_OPTIONS.get(missing[0], missing[0])}, or give a bundle that has it"
            raise InputError(f"the configuration has no key {missing[0]!r}", path=config, remedy=remedy)
        for name, value in overrides.items():
            parser[name] = value
        try:
            return parser.get_parsed_content("resolver")
        except Exception as error:  # MONAI wraps whatever a configuration raises
            raise input_error_behind(error) or unusable(config, error) from error

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
        return cls(predictor, model.input.window, class_index=None if classes is None else class_index, device=device)

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


# --- one input --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refined:
    """What was written for one input, and the mean spread of its samples as a fraction of the full range.

    ``mean_spread`` is None for a single sample.
    """

    files: list[Path]
    mean_spread: float | None


def super_resolve_picture(
    resolver: SuperResolver,
    path: Path,
    folder: Path,
    key: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> Refined:
    """Refine one picture file.

    Writes ``<name><suffix>``, in the input's format (PNG for formats other than PNG, JPEG and TIFF). With several
    members that is their mean, and beside it lie ``<name>_sample<k><suffix>`` and ``<name>_std.png``, 16-bit grey: the
    standard deviation over members at each pixel, 65535 being the full range of intensities.

    Raises:
        InputError: for a file that cannot be read, or that would be overwritten.
    """
    suffix = path.suffix if path.suffix.lower() in KEPT_SUFFIXES else ".png"
    target = _fresh(folder / f"{path.stem}{suffix}", path)
    picture = read_picture(path)
    members = resolver(picture.pixels[None], [key or path.stem], progress)[:, 0]
    if picture.grey:
        members = members.mean(dim=1, keepdim=True)
    files = [write_picture(members.mean(dim=0), target, picture)]
    if len(members) == 1:
        return Refined(files, None)
    for k, member in enumerate(members):
        files.append(write_picture(member, folder / f"{path.stem}_sample{k}{suffix}", picture))
    deviation = spread(members) / 2  # of [-1, 1] to [0, 1]
    files.append(write_picture(2 * deviation[None] - 1, folder / f"{path.stem}_std.png", bits=16))
    return Refined(files, float(deviation.mean()))


def super_resolve_volume(
    resolver: SuperResolver,
    path: Path,
    folder: Path,
    key: str | None = None,
    progress: Callable[[float], None] | None = None,
    spacing: Spacing = "auto",
) -> Refined:
    """Refine the x-y slices of a volume on the grid of :func:`~cgdpm_med.volumes.refine.refined_grid`.

    Intensities are scaled linearly from the volume's minimum and maximum to [-1, 1], and back. Written as float32:
    ``<case>.nii.gz``, the mean over members, and with several members also ``<case>_samples.nii.gz`` (the members along
    the last axis) and ``<case>_std.nii.gz``, in units of the intensities.

    Raises:
        InputError: for a file that cannot be read, is a series of frames, or would be overwritten.
    """
    name = case_name(path)
    target = _fresh(folder / f"{name}.nii.gz", path)
    volume = read_volume(path, spacing=spacing)
    if volume.data.ndim != 3:
        what = f"has {volume.data.ndim} dimensions, a single frame was expected"
        raise InputError(what, path=path, remedy="Save each frame as a 3D file of its own, and give those")
    low, high = float(volume.data.min()), float(volume.data.max())
    slices = torch.from_numpy(np.ascontiguousarray(np.moveaxis(volume.data, 2, 0)))[:, None]
    scaled = 2 * (slices - low) / (high - low) - 1
    keys = [f"{key or name}/{s}" for s in range(len(slices))]
    members = resolver(scaled, keys, progress).mean(dim=2)  # (K, Z, X, Y)
    members = (members.movedim(1, -1) + 1) / 2 * (high - low) + low
    grid = refined_grid(volume.grid, (resolver.factor, resolver.factor, 1))
    outputs = {target: members.mean(dim=0)}
    deviation = None
    if len(members) > 1:
        deviation = members.std(dim=0, correction=0)
        outputs[folder / f"{name}_samples.nii.gz"] = members.movedim(0, -1)
        outputs[folder / f"{name}_std.nii.gz"] = deviation
    for file, array in outputs.items():
        write_on_grid(array.numpy(), grid, file, dtype=np.float32)
    return Refined(list(outputs), None if deviation is None else float(deviation.mean()) / (high - low))


def _fresh(target: Path, source: Path) -> Path:
    if target.resolve() == source.resolve():
        raise InputError("would be overwritten by its result", path=source, remedy="Give another output folder")
    return target


# --- many inputs ------------------------------------------------------------------------------------------------------


def find_images(source: str | Path, *, exclude: str | Path | None = None) -> list[Case]:
    """The pictures and volumes at ``source``: a file, or a folder searched recursively.

    Whatever lies below ``exclude`` is left out; results mirror the folders of the inputs. Of files in one folder that
    differ in their suffix alone, all but the first get an error, as their results would overwrite each other's.

    Raises:
        InputError: when there is none.
    """
    source = Path(source)
    if source.is_file():
        return [Case(source, _name(source))]
    if not source.is_dir():
        raise InputError("there is no such file or folder", path=source, remedy="Check the path")
    try:
        pictures = [Path(item["image"]) for item in image_datalist(source)]
    except InputError:
        pictures = []
    files = sorted([*pictures, *volume_files(source)])
    if exclude is not None:
        files = [path for path in files if not path.resolve().is_relative_to(Path(exclude).resolve())]
    if not files:
        known = ", ".join((*PICTURE_SUFFIXES, *VOLUME_SUFFIXES))
        raise InputError(
            "holds no picture and no volume", path=source, remedy=f"Give pictures or volumes named {known}"
        )
    cases: dict[str, Case] = {}
    namesakes = []
    for path in files:
        folder = path.relative_to(source).parent
        key = (folder / _name(path)).as_posix()
        if key in cases:
            error = InputError(f"has the name of {cases[key].image.name}", path=path, remedy="Rename one of the two")
            namesakes.append(Case(path, path.relative_to(source).as_posix(), folder, error))
        else:
            cases[key] = Case(path, key, folder)
    return [*cases.values(), *namesakes]


def _name(path: Path) -> str:
    return case_name(path) if is_volume(path) else path.stem


def super_resolve(
    resolver: SuperResolver, source: str | Path, output: str | Path, *, spacing: Spacing = "auto"
) -> dict[str, Any]:
    """Refine whatever lies at ``source``: what ``cgdpm-med super-resolve`` does.

    A bad input is reported on standard error, and the others go on.

    Args:
        spacing: of every input, see :func:`~cgdpm_med.read_volume`.

    Returns:
        ``cases`` (``input``, ``files``, ``mean_spread``) and ``failed``, the error of each failed case by key.

    Raises:
        InputError: when there is nothing to refine.
    """
    check_spacing(spacing)
    cases = find_images(source, exclude=output)
    done: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    with CaseBar("super-resolving", [case.key for case in cases]) as bar:
        for case in cases:
            bar.update(case.key, 0.0)
            try:
                refined = _refine(resolver, case, Path(output) / case.folder, bar, spacing)
            except InputError as error:
                failed[case.key] = str(error)
                complain(error, bar)
            else:
                files = [str(file) for file in refined.files]
                done.append({"input": str(case.image), "files": files, "mean_spread": refined.mean_spread})
                bar.note(f"super-resolved {case.key}")
            bar.update(case.key, 1.0)
    return {"cases": done, "failed": failed}


def _refine(resolver: SuperResolver, case: Case, folder: Path, bar: CaseBar, spacing: Spacing) -> Refined:
    if case.error is not None:
        raise case.error
    progress = partial(bar.update, case.key)
    if is_volume(case.image):
        return super_resolve_volume(resolver, case.image, folder, case.key, progress, spacing)
    return super_resolve_picture(resolver, case.image, folder, case.key, progress)


def _of_option(error: ValueError) -> InputError:
    """A number that the network or the sampling cannot take; these say what they can."""
    return error if isinstance(error, InputError) else InputError(str(error), remedy="Correct that option")


def load_resolver(
    weights: str | Path,
    bundle: str | Path | None = None,
    *,
    class_index: int | None = None,
    window: int | None = None,
    device: str = "auto",
    **settings: Any,
) -> SuperResolver:
    """A resolver from a file of weights: a bundle's, or without a bundle an ADM upsampler's.

    Args:
        class_index: of the images, for networks that have classes.
        window: side of the network's field; None is the bundle's own, or 256 for ADM weights.
        device: see :func:`~cgdpm_med.inference.segmenter.choose_device`.
        settings: keys of the bundle's configuration, or of the predictor; None keeps the default.

    Raises:
        InputError: for weights, a class or a device that cannot be used, or guidance without a bundle.
    """
    chosen = choose_device(device)
    if bundle is not None:
        settings["class_index"] = class_index
    changes = {name: value for name, value in {**settings, "window": window}.items() if value is not None}
    if not Path(weights).is_file():
        raise InputError("there are no weights here", path=weights, remedy="Give a file of weights")
    if bundle is None:
        if "guidance_scale" in changes or "guidance_weights" in changes:
            remedy = "Give --bundle, for ADM's weights imagenet_sr_64_256 or imagenet_sr_128_512"
            raise InputError("only a bundle says what its guidance network looks like", remedy=remedy)
        try:
            return SuperResolver.from_adm(weights, class_index, device=chosen, **changes)
        except ValueError as error:
            raise _of_option(error) from error
    return SuperResolver.from_bundle(bundle, weights=str(weights), device=chosen, **changes)
