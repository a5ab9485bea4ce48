"""The model file: tensors, and beside them all that is needed to use them.

A file is ``{"model": state_dict, "description": plain values}``: ignite's and MONAI's loaders take the entry "model",
as do MONAI Label and the clients of MONAI FL, and pass over the other. Files of version 0.1, a state_dict alone, are
read with a description from elsewhere.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cgdpm_med.diffusion.guidance import ScaledGuide, guidance_weighting
from cgdpm_med.diffusion.sampling import Sampling, check_timesteps
from cgdpm_med.diffusion.schedule import NoiseSchedule
from cgdpm_med.diffusion.targets import ImageTarget, MaskTarget, Target
from cgdpm_med.files import InputError, atomic_write
from cgdpm_med.models.description import (
    PRECISIONS,
    Input,
    ModelDescription,
    PatchInput,
    SliceInput,
    TrainingData,
    VolumeInput,
    input_from,
    labels_from,
    read_description,
)
from cgdpm_med.models.rebuild import Allowed, described, rebuilt
from cgdpm_med.models.weights import (
    DESCRIPTION,
    TENSORS,
    Tensors,
    digest_of,
    place_tensors,
    read_content,
    rounded,
    weights_digest,
)


class OldModelWarning(UserWarning):
    """A file of version 0.1 was read, which does not say what it is."""


@dataclass(frozen=True, eq=False)
class Model:
    """What a model file holds, made again.

    Attributes:
        network: with the weights, in evaluation mode, on the CPU.
        target, schedule: of its training.
        description: as the file has it.
        path: of the file.
        allow: classes besides the known ones that its files may name.
    """

    network: nn.Module
    target: Target
    schedule: NoiseSchedule
    description: ModelDescription
    path: Path
    allow: Allowed = ()

    @property
    def input(self) -> Any:
        """A :class:`VolumeInput`, :class:`PictureInput`, :class:`SliceInput` or :class:`PatchInput`."""
        return self.description.input

    @property
    def channel_names(self) -> dict[str, str]:
        """Names of the classes by number."""
        return self.description.channel_names

    @property
    def channel_colours(self) -> dict[str, str]:
        """Colours of the classes that have one, by number, as ``#rrggbb``."""
        return self.description.channel_colours

    @property
    def multiple(self) -> int:
        """Sides of the field are multiples of this: as often as the network halves them."""
        divisor = of_innermost(self.network, "divisor")
        return int(divisor if divisor is not None else math.prod(of_innermost(self.network, "strides") or [1]))

    @cached_property
    def digest(self) -> str:
        """Of the tensors; see :func:`~cgdpm_med.models.weights.digest_of`."""
        return weights_digest(self.path)

    @property
    def walk(self) -> tuple[int, ...]:
        """Timesteps of the only walk that a distilled network knows; () for a denoiser of every t."""
        return self.description.walk

    def denoiser(self, sampling: Sampling) -> nn.Module:
        """The network as a denoiser of x_0, for samples that are drawn so.

        Raises:
            InputError: where the network was distilled for another walk: at other timesteps it is no denoiser.
        """
        if self.walk and _steps_of(sampling) != _steps_of(Sampling(timesteps=self.walk)):
            what = f"was distilled for DDIM at the timesteps {_listed(self.walk)}, and knows no other walk"
            raise InputError(what, path=self.path, remedy="Leave out other steps, or give the weights of its teacher")
        return self.target.denoiser(self.network)

    def guide(self, path: str | Path) -> ScaledGuide:
        """The guidance network of this denoiser from its file.

        Raises:
            InputError: when the file is missing, is no guidance network, that of another denoiser, or was trained on
                samples that are made to agree with their input where these are not, or the reverse.
        """
        remedy = "Train stage 2 on this denoiser, or set guidance_scale to 0"
        try:
            tensors, content = read_content(path)
            if content is not None:
                description = ModelDescription.from_dict(content, path)
                if description.kind != "guidance":
                    raise InputError("is a denoiser, not a guidance network", path=path)
                if not _is_meant(description.denoiser, self.digest, self.description):
                    raise InputError("was trained to guide another denoiser", path=path)
            network = _made(content["network"] if content else self.description.network, path, self.allow)
            place_tensors(network, tensors, path)
        except InputError as error:
            what = f"{error.what} (guidance network for the denoiser {self.path})"
            raise InputError(what, path=path, remedy=remedy) from error
        if content is not None:
            self._check_chains(rebuilt(description.target, path, self.allow), path)
        return ScaledGuide(network.eval(), self.schedule, guidance_weighting(self.schedule))

    def _check_chains(self, trained: Any, path: str | Path) -> None:
        """A guidance network knows the errors of chains that are corrected as those of its training were."""
        before, now = (isinstance(target, ImageTarget) and target.project for target in (trained, self.target))
        if before != now:
            what = f"was trained on samples that {'agree' if before else 'need not agree'} with their input"
            raise InputError(what, path=path, remedy=f"Set project to {'true' if before else 'false'}")


def _steps_of(sampling: Sampling) -> tuple[Any, ...]:
    """All that decides which x_t a network is shown."""
    return sampling.timesteps, sampling.method, sampling.eta, sampling.noise_scale


def describe(
    network: nn.Module,
    target: Target,
    schedule: NoiseSchedule,
    input: Input | Mapping[str, Any],
    labels: Sequence[Any] = (),
    training: TrainingData | None = None,
    guides: str | Path | None = None,
    walk: Sequence[int] = (),
    teacher: str | Path | None = None,
) -> ModelDescription:
    """The description of a network that is about to be trained.

    Args:
        network: whose state_dict the file will hold.
        input: what the network sees, or its fields with a ``kind``, "volume" or "picture".
        labels: of the classes 1, 2, …: names, or tables with name and colour.
        guides: where ``network`` is a guidance network, the file of its denoiser.
        walk, teacher: where it is distilled, the timesteps that it visits and the file of the denoiser it learns from.

    Raises:
        InputError: for parts that do not fit together, a network that its description would not make again, or a
            denoiser that was trained otherwise.
    """
    try:
        made = ModelDescription(
            kind="denoiser" if guides is None else "guidance",
            network=described(network),
            target=described(target),
            schedule=described(schedule),
            input=input_from(input) if isinstance(input, Mapping) else input,
            labels=labels_from(labels),
            training=training,
            denoiser=None if guides is None else weights_digest(guides),
            walk=tuple(walk),
            teacher=None if teacher is None else weights_digest(teacher),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise error if isinstance(error, InputError) else InputError(str(error), remedy="Correct it") from error
    check(made, network, target, schedule)
    _check_rebuilds(made, network)
    for denoiser in (guides, teacher):
        if denoiser is not None and (content := read_content(denoiser)[1]) is not None:
            _check_denoiser(made, ModelDescription.from_dict(content, denoiser), denoiser, [type(target)])
    return made


def _check_rebuilds(description: ModelDescription, network: nn.Module) -> None:
    again = _made(description.network, "", [type(module) for module in network.modules()])
    shapes = [{name: tensor.shape for name, tensor in net.state_dict().items()} for net in (network, again)]
    if shapes[0] != shapes[1]:
        what = f"a {type(network).__name__} was changed after it was made, so that its arguments do not tell all of it"
        raise InputError(what, remedy="Give everything to its constructor")


def _check_denoiser(made: ModelDescription, denoiser: ModelDescription, path: str | Path, allow: Allowed) -> None:
    if denoiser.kind != "denoiser":
        remedy = "Give the denoiser's own file"
        raise InputError("is a guidance network, and guides a denoiser itself", path=path, remedy=remedy)
    if denoiser.walk:
        what = f"was distilled for the timesteps {_listed(denoiser.walk)}, and is no denoiser at others"
        raise InputError(what, path=path, remedy="Give its teacher's file")
    if differing := made.differences(completed(denoiser, path, allow)):
        what = f"was trained with another {' and '.join(differing)} than this configuration has"
        raise InputError(what, path=path, remedy="Use the configuration of the denoiser's training")


def completed(description: ModelDescription, path: str | Path, allow: Allowed = ()) -> ModelDescription:
    """The same with every argument that it leaves to its default, which is how :func:`describe` writes it."""

    def whole(content: Any) -> Any:
        return described(rebuilt(content, path, allow))

    with torch.random.fork_rng(devices=[]):
        return replace(
            description,
            network=whole(description.network),
            target=whole(description.target),
            schedule=whole(description.schedule),
        )


def check(
    description: ModelDescription,
    network: nn.Module,
    target: Target,
    schedule: NoiseSchedule,
    path: str | Path | None = None,
) -> None:
    """Raise InputError unless the parts of a description fit together."""
    remedy = "Use a file as the training wrote it, or correct the configuration"
    channels = of_innermost(network, "out_channels")
    if channels is not None and channels != target.channels:
        what = f"has a target of {target.channels} channels, its network makes {channels}"
        raise InputError(what, path=path, remedy=remedy)
    try:
        target.check(schedule)
    except ValueError as error:
        raise InputError(f"has a schedule that does not fit its target: {error}", path=path, remedy=remedy) from error
    if isinstance(target, MaskTarget) and len(description.labels) != target.num_classes - 1:
        what = f"names {len(description.labels)} labels for {target.num_classes} classes with the background"
        raise InputError(what, path=path, remedy=remedy)
    seen, shown = of_innermost(network, "cond_channels"), description.input
    if isinstance(shown, (VolumeInput, SliceInput, PatchInput)) and seen not in (None, len(shown.channels)):
        what = f"shows {len(shown.channels)} channels of its image, its network sees {seen}"
        raise InputError(what, path=path, remedy=remedy)


def of_innermost(network: Any, name: str) -> Any:
    """An attribute of the first network inside that has it, or None."""
    while not hasattr(network, name) and hasattr(network, "network"):
        network = network.network
    return getattr(network, name, None)


# --- files ------------------------------------------------------------------------------------------------------------


def save_model(
    path: str | Path,
    network: nn.Module | Tensors,
    description: ModelDescription,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model file, whole or not at all.

    Args:
        network: or its state_dict.
        description: what it says of the precision, and of what was rounded, is written as these tensors have it.
        dtype: torch.float16 or torch.bfloat16 rounds floating-point tensors, which halves the file; read, they are
            float32 again. None writes them without loss: in the description's precision, if they have no more digits.

    Raises:
        InputError: for a tensor with values beyond what ``dtype`` holds.
        ValueError: for another dtype.
    """
    tensors = dict(network.state_dict() if isinstance(network, nn.Module) else network)
    if dtype is None:
        dtype, description = _without_loss(description, tensors)
    if dtype is not None:
        before, tensors = tensors, rounded(tensors, dtype, path)
        description = _of_rounded(description, before, tensors, dtype)
    with atomic_write(path) as file:
        torch.save({TENSORS: tensors, DESCRIPTION: description.as_dict()}, file)


def _without_loss(description: ModelDescription, tensors: Tensors) -> tuple[torch.dtype | None, ModelDescription]:
    """The precision to round to that changes nothing, or None; and the description without what no longer holds."""
    floats = [tensor for tensor in tensors.values() if tensor.is_floating_point()]
    if description.precision != "float32":
        held: torch.dtype = getattr(torch, description.precision)
        if all(torch.equal(tensor.to(held).to(tensor.dtype), tensor) for tensor in floats):
            return held, description
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in floats} & set(PRECISIONS)
    precision = kinds.pop() if len(kinds) == 1 else "float32"
    return None, replace(description, precision=precision, rounded_from=None)


def _of_rounded(description: ModelDescription, before: Tensors, after: Tensors, dtype: torch.dtype) -> ModelDescription:
    """Rounding what was rounded so already changes nothing, and its origin stays known."""
    precision = str(dtype).removeprefix("torch.")
    unchanged = all(torch.equal(after[name].to(tensor.dtype), tensor) for name, tensor in before.items())
    again = description.precision == precision and unchanged
    origin = description.rounded_from if again else digest_of(before)
    return replace(description, precision=precision, rounded_from=origin)


def load_model(
    path: str | Path, *, allow: Allowed = (), description: ModelDescription | str | Path | None = None
) -> Model:
    """Read a model file and make its network, target and schedule again.

    Args:
        allow: classes of your own that the file may name, or their dotted paths, which are imported.
        description: for a file of version 0.1, or the JSON file that holds it; not looked at otherwise.

    Raises:
        InputError: for a file that is missing, damaged or a guidance network, or whose parts do not fit together.

    Warns:
        OldModelWarning: where ``description`` was needed.
    """
    path = Path(path)
    tensors, content = read_content(path)
    described = _old(path, description) if content is None else ModelDescription.from_dict(content, path)
    if described.kind != "denoiser":
        remedy = "Give the denoiser's file, and this one as guidance_weights"
        raise InputError("is a guidance network, not a denoiser", path=path, remedy=remedy)
    network = _made(described.network, path, allow)
    target, schedule = rebuilt(described.target, path, allow), rebuilt(described.schedule, path, allow)
    check(described, network, target, schedule, path)
    place_tensors(network, tensors, path)
    return Model(network.eval(), target, schedule, described, path, allow)


def describe_file(path: str | Path) -> dict[str, Any]:
    """What a model file says, and the digest of its tensors, as plain values; nothing is made.

    Raises:
        InputError: for a file of anything else, or of version 0.1.
    """
    tensors, content = read_content(path)
    described = _old(Path(path), None) if content is None else ModelDescription.from_dict(content, path)
    count = sum(tensor.numel() for tensor in tensors.values())
    return {**described.as_dict(), "parameters": count, "digest": digest_of(tensors)}


def training_data_of(path: str | Path) -> TrainingData | None:
    """What a file says of its training; None for files of version 0.1, or where it is not known."""
    content = read_content(path)[1]
    return None if content is None else ModelDescription.from_dict(content, path).training


def check_continues(path: str | Path, description: ModelDescription) -> None:
    """That a training with this description may go on where one has written a model file.

    Arguments that one of the two leaves to their defaults are not compared.

    Raises:
        InputError: for a file of another network, target, schedule, input, walk or teacher.

    Warns:
        OldModelWarning: for one of version 0.1, which cannot be compared.
    """
    content = read_content(path)[1]
    if content is None:
        text = f"{Path(path).name} is of version 0.1 and does not say how it was trained: this configuration goes on"
        warnings.warn(text, OldModelWarning, stacklevel=2)
        return
    said, wanted = ModelDescription.from_dict(content, path).as_dict(), description.as_dict()
    if differing := [
        name
        for name in ("network", "target", "schedule", "input", "walk", "teacher")
        if not _alike(said.get(name), wanted.get(name))
    ]:
        what = f"was trained with another {' and '.join(differing)} than this configuration has"
        raise InputError(what, path=path, remedy="Give the run another output folder")


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return all(_alike(one[name], other[name]) for name in one.keys() & other.keys())
    return bool(one == other)


def guidance_beside(weights: str | Path) -> Path:
    """Where the guidance network of a denoiser lies: ``guidance.pt`` beside its weights, else in a folder ``guidance``.

    MONAI Label offers every ``*.pt`` beside ``model.pt`` as a model of its own, so a bundle has it in the folder.
    """
    beside = Path(weights).with_name("guidance.pt")
    return beside if beside.exists() else beside.parent / "guidance" / beside.name


def weights_for_walk(weights: str | Path, timesteps: Sequence[int] | None = None, *, other: bool = False) -> Path:
    """The file that serves a walk: a distilled network its own, and its teacher, in a folder ``denoiser``, any other.

    A file of any other network serves every walk.

    Args:
        timesteps: those asked for, in any order; None leaves them to the network.
        other: something else is asked for that is no part of a distilled network's walk, such as guidance.

    Raises:
        InputError: where the teacher is needed and is not there, or is another denoiser.
    """
    content = read_content(weights)[1]
    description = None if content is None else ModelDescription.from_dict(content, weights)
    if description is None or not description.walk:
        return Path(weights)
    if not other and (timesteps is None or check_timesteps(timesteps) == description.walk):
        return Path(weights)
    teacher = Path(weights).parent / "denoiser" / "model.pt"
    if not teacher.is_file() or not _is_teacher(teacher, description):
        what = (
            f"was distilled for DDIM at the timesteps {_listed(description.walk)}, and its teacher is not in {teacher}"
        )
        raise InputError(what, path=weights, remedy="Leave out other steps, or give the weights of its teacher")
    return teacher


def _is_teacher(path: Path, distilled: ModelDescription) -> bool:
    content = read_content(path)[1]
    description = None if content is None else ModelDescription.from_dict(content, path)
    return _is_meant(distilled.teacher, weights_digest(path), description)


def _is_meant(named: str | None, digest: str, description: ModelDescription | None) -> bool:
    """Whether the digest that another file names is that of these tensors, or of what they were before rounding."""
    return named is not None and named in (digest, description and description.rounded_from)


def _listed(timesteps: Sequence[int]) -> str:
    return ", ".join(map(str, timesteps))


def _old(path: Path, description: ModelDescription | str | Path | None) -> ModelDescription:
    if description is None:
        remedy = "Give its description, or write it again with scripts/describe_weights.py"
        raise InputError("is of version 0.1 and does not say what it is", path=path, remedy=remedy)
    text = f"{path.name} is of version 0.1 and does not say how it was trained: the bundle's defaults are taken"
    warnings.warn(text, OldModelWarning, stacklevel=3)
    return description if isinstance(description, ModelDescription) else read_description(description)


def _made(content: Mapping[str, Any], path: str | Path, allow: Allowed = ()) -> nn.Module:
    """The network, without touching the global random state."""
    with torch.random.fork_rng(devices=[]):
        network = rebuilt(content, path, allow)
    if not isinstance(network, nn.Module):
        raise InputError("describes a network that is none", path=path, remedy="Use a file as the training wrote it")
    return network
