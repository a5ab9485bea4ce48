"""What a model file says of its tensors: how to make the network again, and what it was trained to see and to say."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cgdpm_med import __version__
from cgdpm_med.files import InputError

KINDS = ("denoiser", "guidance")
PRECISIONS = ("float32", "float16", "bfloat16")
VIEWS = ("short-axis",)
_COLOUR = re.compile(r"#[0-9a-f]{6}")
_REMEDY = "Use a file as the training wrote it"


@dataclass(frozen=True)
class Label:
    """One structure of a mask: its name, and its colour as ``#rrggbb`` ("" leaves it open).

    MONAI's configurations read ``#`` in their own way, so it may be left out.
    """

    name: str
    colour: str = ""

    def __post_init__(self) -> None:
        if len(self.colour) == 6:
            object.__setattr__(self, "colour", f"#{self.colour}")
        if not self.name or (self.colour and not _COLOUR.fullmatch(self.colour)):
            raise ValueError(f"a label has a name and a colour such as #4aa3ff, not {self.name!r} and {self.colour!r}")


@dataclass(frozen=True)
class VolumeInput:
    """How a volume is brought before the network.

    Attributes:
        spacing: mm in plane, between columns and between rows.
        field: pixels around the centre, along both axes.
        neighbours: slices on each side of the one in question, as further channels.
        percentiles: of a volume's intensities, brought to -1 and 1.
        view: of the slices.
        places: the place of the slice in its stack is shown, too: :func:`~cgdpm_med.data.slices.slice_places`.
    """

    spacing: float
    field: int
    neighbours: int = 0
    percentiles: tuple[float, float] = (1, 99)
    view: str = "short-axis"
    places: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "percentiles", tuple(self.percentiles))
        low, high = self.percentiles
        if not (0 < self.spacing < math.inf and self.field > 0 and self.neighbours >= 0 and 0 <= low < high <= 100):
            raise ValueError(f"no input can be so: {asdict(self)}")
        if self.view not in VIEWS:
            raise ValueError(f"the view is one of {', '.join(VIEWS)}, not {self.view!r}")

    @property
    def channels(self) -> tuple[str, ...]:
        """What each channel shows."""
        sides = [[f"{n} {side}" for n in range(1, self.neighbours + 1)] for side in ("before", "after")]
        places = ("place in the stack", "distance from its middle") if self.places else ()
        before, after = ([f"slice {name}" for name in side] for side in sides)
        return (*reversed(before), "slice", *after, *places)


@dataclass(frozen=True)
class PictureInput:
    """How a picture is brought before the network: in fields of ``window`` x ``window`` fine pixels.

    Attributes:
        window: side of the field.
        shows: what every picture of the training showed, in words that follow "trained on", such as "single faces that
            fill the picture"; "" leaves it open.

    Two inputs are equal where their windows are: the words are for those who look at results.
    """

    window: int
    shows: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"a window has at least one pixel, not {self.window}")


@dataclass(frozen=True)
class CoarseSliceInput:
    """How the slices of a coarse scan are brought before a network that refines them.

    Attributes:
        window: side of the network's field, in fine pixels.
        percentiles: of the coarse volume's intensities, brought to -1 and 1; nothing is clipped.
        spacing: least and greatest size of a coarse pixel that training has seen, mm; none where not known.
    """

    window: int
    percentiles: tuple[float, float] = (0.5, 99.5)
    spacing: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "percentiles", tuple(self.percentiles))
        object.__setattr__(self, "spacing", tuple(self.spacing))
        low, high = self.percentiles
        ordered = not self.spacing or (len(self.spacing) == 2 and 0 < self.spacing[0] <= self.spacing[1] < math.inf)
        if self.window < 1 or not 0 <= low < high <= 100 or not ordered:
            raise ValueError(f"no input can be so: {asdict(self)}")


INTENSITIES = ("percentiles", "fixed", "as it is")


@dataclass(frozen=True)
class SliceInput:
    """How an image of any data set is brought before the network: slice by slice, a picture being one slice.

    Attributes:
        spacing: mm in plane, or pixels of a picture, of one working pixel.
        names: of the image's channels.
        neighbours: slices on each side, as further channels.
        intensity: "percentiles" (1 and 99 of each image), "fixed" (``window``) or "as it is", to -1 and 1.
        window: of each channel, where the intensity is fixed.
        region: working pixels about the centre (X, Y) that are shown, where structures are never far from it; () shows
            the whole image.
        patch: sides of what the network was trained on, in working pixels; () where it is not known.
    """

    spacing: float
    names: tuple[str, ...]
    neighbours: int = 0
    intensity: str = "percentiles"
    window: tuple[tuple[float, float], ...] = ()
    region: tuple[int, ...] = ()
    patch: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "window", tuple((low, high) for low, high in self.window))
        for name in ("region", "patch"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        planar = all(not sides or (len(sides) == 2 and min(sides) > 0) for sides in (self.region, self.patch))
        known = self.intensity in INTENSITIES
        if not (0 < self.spacing < math.inf and self.names and self.neighbours >= 0 and known and planar):
            raise ValueError(f"no input can be so: {asdict(self)}")

    @property
    def channels(self) -> tuple[str, ...]:
        """What each channel shows."""
        offsets = range(-self.neighbours, self.neighbours + 1)
        return tuple(f"{name}, slice {offset:+d}" if offset else name for offset in offsets for name in self.names)


@dataclass(frozen=True)
class PatchInput:
    """How a volume of any data set is brought before a 3D network: as a whole, or in patches.

    Attributes:
        spacing: mm of a working voxel along X, Y and between slices.
        names: of the image's channels.
        patch: sides of what the network was trained on, in working voxels. A thinner volume continues its border.
        intensity, window: as of :class:`SliceInput`.
    """

    spacing: tuple[float, float, float]
    names: tuple[str, ...]
    patch: tuple[int, int, int]
    intensity: str = "percentiles"
    window: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        for name in ("spacing", "names", "patch"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "window", tuple((low, high) for low, high in self.window))
        sides = len(self.spacing) == len(self.patch) == 3 and all(0 < s < math.inf for s in self.spacing)
        if not (sides and min(self.patch) > 0 and self.names and self.intensity in INTENSITIES):
            raise ValueError(f"no input can be so: {asdict(self)}")

    @property
    def neighbours(self) -> int:
        """None as channels: the network looks along the slices itself."""
        return 0

    @property
    def channels(self) -> tuple[str, ...]:
        """What each channel shows."""
        return self.names


Input = VolumeInput | PictureInput | SliceInput | CoarseSliceInput | PatchInput
INPUTS: Mapping[str, type[Input]] = {
    "patch": PatchInput,
    "volume": VolumeInput,
    "picture": PictureInput,
    "slice": SliceInput,
    "coarse slice": CoarseSliceInput,
}

_LATER: Mapping[str, Sequence[str]] = {"slice": ("region", "patch"), "volume": ("places",)}
"""Fields that version 0.2 does not know, by the kind of input; written where they say something."""


def input_from(content: Any) -> Input:
    """An input as a file or a configuration writes it: a table of its fields, and its ``kind``.

    Raises:
        ValueError, KeyError: for a kind or a field that there is not, or an input that cannot be.
    """
    kind = content["kind"]
    if kind not in INPUTS:
        raise ValueError(f"the input is one of {', '.join(INPUTS)}, not {kind!r}")
    return INPUTS[kind](**_known(INPUTS[kind], {name: value for name, value in content.items() if name != "kind"}))


@dataclass(frozen=True)
class TrainingData:
    """What the tensors have seen: keys of the training patients, and the digest of the split they came from."""

    patients: tuple[str, ...] = ()
    split: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "patients", tuple(sorted(self.patients)))
        if not all(isinstance(name, str) for name in self.patients):
            raise ValueError("patients are named by words")


def versions() -> dict[str, str]:
    """Of the packages that a network's numbers depend on."""
    found = {"cgdpm_med": __version__}
    for name in ("torch", "monai"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class ModelDescription:
    """All that a model file says beside its tensors, as plain values; :meth:`as_dict` is what is written.

    Attributes:
        kind: "denoiser", or "guidance" for the second network.
        network, target, schedule: as :func:`~cgdpm_med.models.rebuild.described` writes objects.
        input: what the network sees.
        labels: of the classes 1, 2, …; none where no mask is made.
        training: None where it is not known.
        denoiser: of a guidance network, the digest of the tensors it guides.
        walk: of a distilled network, the timesteps of the only walk that it knows; else ().
        teacher: of a distilled network, the digest of the denoiser whose longer walk it has learned.
        precision: of the floating-point tensors in the file; read, they are float32.
        rounded_from: where they were rounded to that precision, the digest of what they were before: a guidance network
            that was trained on those guides these too.
        versions: that the file was written with.
    """

    kind: str
    network: Mapping[str, Any]
    target: Mapping[str, Any]
    schedule: Mapping[str, Any]
    input: Input
    labels: tuple[Label, ...] = ()
    training: TrainingData | None = None
    denoiser: str | None = None
    walk: tuple[int, ...] = ()
    teacher: str | None = None
    precision: str = "float32"
    rounded_from: str | None = None
    versions: Mapping[str, str] = field(default_factory=versions)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"the kind is one of {', '.join(KINDS)}, not {self.kind!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"the precision is one of {', '.join(PRECISIONS)}, not {self.precision!r}")
        if (self.kind == "guidance") != (self.denoiser is not None):
            raise ValueError("a guidance network, and no other, names the denoiser it guides")
        object.__setattr__(self, "walk", tuple(sorted(self.walk, reverse=True)))
        if bool(self.walk) != (self.teacher is not None) or (self.walk and self.kind == "guidance"):
            raise ValueError("a distilled denoiser, and no other network, has a walk and a teacher")

    @property
    def channel_names(self) -> dict[str, str]:
        """Names of the classes by number, the background included; {} without labels."""
        names = {str(number): label.name for number, label in enumerate(self.labels, start=1)}
        return {"0": "background", **names} if names else {}

    @property
    def channel_colours(self) -> dict[str, str]:
        """Colours of the classes that have one, by number."""
        return {str(number): label.colour for number, label in enumerate(self.labels, start=1) if label.colour}

    def differences(self, other: ModelDescription) -> list[str]:
        """Names of what the two say differently of target, schedule, input and labels."""
        names = ("target", "schedule", "input", "labels")
        return [name for name in names if getattr(self, name) != getattr(other, name)]

    def as_dict(self) -> dict[str, Any]:
        """In plain values that JSON and ``torch.load(weights_only=True)`` take."""
        kind = next(name for name, chosen in INPUTS.items() if isinstance(self.input, chosen))
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        if not self.walk:  # version 0.2 knows neither, and shall read what is not distilled
            del content["walk"], content["teacher"]
        later = _LATER.get(kind, ())  # nor these
        content["input"] = {n: v for n, v in content["input"].items() if v or n not in later}
        return {**content, "input": {"kind": kind, **content["input"]}}

    @classmethod
    def from_dict(cls, content: Any, path: str | Path | None = None) -> ModelDescription:
        """The inverse of :meth:`as_dict`.

        Raises:
            InputError: for anything missing, unknown or impossible, naming ``path``.
        """
        try:
            given = _known(cls, content)
            given["input"] = input_from(given["input"])
            given["labels"] = tuple(Label(**_known(Label, label)) for label in given.get("labels", ()))
            if given.get("training") is not None:
                given["training"] = TrainingData(**_known(TrainingData, given["training"]))
            return cls(**given)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
            raise InputError(f"has a description that cannot be used: {reason}", path=path, remedy=_REMEDY) from error


def read_description(path: str | Path) -> ModelDescription:
    """A description in a JSON file, such as stands beside weights of version 0.1 for them.

    Raises:
        InputError: for anything else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"is no description of a model ({error})", path=path, remedy="Give another file") from error
    return ModelDescription.from_dict(content, path)


def as_guidance(description: ModelDescription, denoiser: str) -> ModelDescription:
    """That of the guidance network of a denoiser's architecture."""
    return replace(description, kind="guidance", denoiser=denoiser)


def _known(chosen: Any, content: Any) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise ValueError(f"{chosen.__name__} is no table of names")
    names = [item.name for item in fields(chosen)]
    if unknown := [name for name in content if name not in names]:
        raise ValueError(f"{unknown[0]} is unknown; this version reads {', '.join(names)}")
    return dict(content)


def labels_from(items: Sequence[Any]) -> tuple[Label, ...]:
    """Labels as a configuration writes them: names, or tables with name and colour."""
    return tuple(
        item if isinstance(item, Label) else Label(**item) if isinstance(item, Mapping) else Label(str(item))
        for item in items
    )
