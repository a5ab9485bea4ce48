"""What the training of a data set is told, what a user decides of it, and its page."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cgdpm_med.datasets.fingerprint import Fingerprint
from cgdpm_med.diffusion.sampling import check_timesteps
from cgdpm_med.files import InputError, atomic_write
from cgdpm_med.networks.levels import Levels, anisotropic_levels

NOISE_LEVELS = 1000
"""Of the templates' schedule."""
INTENSITIES = ("percentiles", "fixed", "as it is")


@dataclass(frozen=True)
class Plan:
    """Everything that the training is told.

    Attributes:
        dimensions: "2D", slices or pictures; or "3D", volumes.
        neighbours: slices on each side that a 2D network sees, too.
        spacing: mm in plane, or pixels of a picture, of one working pixel.
        field: working pixels of an image in memory (X, Y); in 3D of the median volume (X, Y, Z).
        crop: of a training example (X, Y) or (X, Y, Z).
        widths: features of the levels.
        patch_size: of the stem; 2 works at half the resolution, in 3D along the axes that are halved first.
        intensity: "percentiles" (1 and 99 of each image), "fixed" (``window`` for all), "as it is" (pictures).
        window: of each channel, intensities brought to -1 and 1 where ``intensity`` is "fixed".
        scale: of the mask as diffusion target.
        batch_size: examples in one step.
        iterations: steps in all.
        epoch: steps between two checkpoints.
        learning_rate: its peak.
        flip, turn: probabilities of mirror images and quarter turns in training.
        validation_cases: so many are segmented to choose the best weights.
        validate_every: epochs.
        members: of the ensembles that are drawn after the training.
        memory: bytes that the training takes at its peak, about.
        reasons: of the choices, by name.
        between: mm between working slices; 0 in 2D, where slices stay as they are.
        dice_weight: of the Dice term in the loss, which decides what is doubtful; 0 leaves it open, as readers who
            disagree have it.
        timesteps: that sampling visits; () are evenly spaced ones.
        region: working pixels about the centre (X, Y) that a 2D network is shown of an image; () shows it all.
    """

    dimensions: str
    neighbours: int
    spacing: float
    field: tuple[int, ...]
    crop: tuple[int, ...]
    widths: tuple[int, ...]
    patch_size: int
    intensity: str
    window: tuple[tuple[float, ...], ...]
    scale: float
    batch_size: int
    iterations: int
    epoch: int
    learning_rate: float
    flip: float
    turn: float
    validation_cases: int
    validate_every: int
    members: int = 8
    memory: float = 0.0
    reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)
    between: float = 0.0
    dice_weight: float = 1.0
    timesteps: tuple[int, ...] = ()
    region: tuple[int, ...] = ()

    @property
    def volumes(self) -> bool:
        """Whether the network is a 3D one."""
        return self.dimensions == "3D"

    @property
    def levels(self) -> Levels:
        """Of a 3D network: strides and kernels as the spacing has them."""
        stem_steps = self.patch_size.bit_length() - 1
        return anisotropic_levels((self.spacing, self.spacing, self.between), self.crop, stem_steps, len(self.widths))

    @property
    def epochs(self) -> int:
        """Of ``epoch`` steps."""
        return math.ceil(self.iterations / self.epoch)

    @property
    def multiple(self) -> int:
        """Sides of what a 2D network sees are multiples of this."""
        return int(self.patch_size * 2 ** (len(self.widths) - 1))

    @property
    def multiples(self) -> tuple[int, ...]:
        """Sides of what the network sees are multiples of these, axis by axis."""
        return self.levels.divisors if self.volumes else (self.multiple, self.multiple)


SETTABLE = tuple(item.name for item in fields(Plan) if item.name not in ("window", "memory", "reasons"))


def check_plan(plan: Plan) -> Plan:
    """The plan itself.

    Raises:
        InputError: for values that no training can have.
    """
    positive = (plan.spacing, plan.scale, plan.learning_rate, plan.iterations, plan.epoch, plan.batch_size)
    counts = (
        *plan.field,
        *plan.crop,
        *plan.widths,
        plan.patch_size,
        plan.validation_cases,
        plan.validate_every,
        plan.members,
    )
    faults = {
        "values must be positive": min(*positive, *counts) <= 0 or plan.neighbours < 0,
        "dice_weight is 0 or more": plan.dice_weight < 0,
        "timesteps are different numbers from 0 to 999": not is_walk(plan.timesteps),
        **(_faults_in_3d(plan) if plan.volumes else _faults_in_2d(plan)),
        f"intensity is one of {', '.join(INTENSITIES)}": plan.intensity not in INTENSITIES,
        "patch_size is 1, 2, 4 or 8": plan.patch_size not in (1, 2, 4, 8),
        "widths are multiples of 32": any(width % 32 for width in plan.widths),
        "flip and turn lie within 0 and 1": not (0 <= plan.flip <= 1 and 0 <= plan.turn <= 1),
    }
    if wrong := [text for text, fault in faults.items() if fault]:
        raise InputError(f"this plan cannot be: {wrong[0]}", remedy="Correct --set")
    return plan


def most_shift(crop: Sequence[int]) -> float:
    """Working pixels by which augmentation moves a crop's centre at most."""
    return min(18.0, min(crop) / 10)


def is_walk(timesteps: Sequence[int]) -> bool:
    """Whether sampling can visit these; none stand for its own choice."""
    try:
        return not timesteps or bool(check_timesteps(timesteps, NOISE_LEVELS))
    except ValueError:
        return False


def _faults_in_2d(plan: Plan) -> dict[str, bool]:
    return {
        "field and crop have two sides": len(plan.field) != 2 or len(plan.crop) != 2,
        f"sides of the crop are multiples of {plan.multiple}": any(n % plan.multiple for n in plan.crop),
        "the region has two sides, no shorter than the crop's and multiples as they are": bool(plan.region)
        and (
            len(plan.region) != 2
            or any(n < side or n % plan.multiple for n, side in zip(plan.region, plan.crop, strict=True))
        ),
        "slices of a 2D plan stay where they are, so it has no spacing between them": plan.between != 0,
    }


def _faults_in_3d(plan: Plan) -> dict[str, bool]:
    stem = plan.patch_size in (1, 2, 4, 8)
    sound = stem and len(plan.crop) == 3 and min(*plan.crop, plan.spacing, plan.between) > 0
    halved = sound and all(max(step) == 2 for step in (*plan.levels.stem_steps, *plan.levels.strides))
    often = plan.patch_size.bit_length() - 2 + len(plan.widths)
    return {
        "field and crop have three sides": len(plan.field) != 3 or len(plan.crop) != 3,
        "the spacing between slices is positive": plan.between <= 0,
        "a 3D network is shown whole volumes, so its plan has no region": bool(plan.region),
        "a 3D network sees no neighbours as channels": plan.neighbours != 0,
        "patch_size is 1, 2, 4 or 8": not stem,
        f"a crop of {_shown(plan.crop)} cannot be halved {often} times, as patch_size and widths want": sound
        and not halved,
    }


# --- what a user sets -------------------------------------------------------------------------------------------------


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """``["spacing=1.25", "widths=32,64,96"]`` as values by name.

    Raises:
        InputError: for an unknown name, with the nearest known one, or a value of another kind.
    """
    found = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise InputError(f"--set {text} is not NAME=VALUE", remedy="Write --set spacing=1.25")
        if name not in SETTABLE:
            near = difflib.get_close_matches(name, SETTABLE, n=1, cutoff=0.4)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise InputError(f"a plan has no {name!r}", remedy=f"{hint}Known are {', '.join(SETTABLE)}")
        found[name] = _value(name, value)
    return found


def _value(name: str, text: str) -> Any:
    kind = {item.name: str(item.type) for item in fields(Plan)}[name]
    if name == "dimensions":
        return _dimensions(text)
    try:
        if kind == "tuple[int, ...]":
            values = tuple(int(word) for word in text.split(","))
            if name == "region" and not any(values):
                return ()
            return values * 2 if len(values) == 1 and name in ("field", "crop", "region") else values
        number = {"int": int, "float": float, "str": str}[kind](text)
    except ValueError as error:
        raise InputError(f"--set {name}={text} is no value of {name}", remedy=f"Give {_KINDS[kind]}") from error
    if isinstance(number, float) and not math.isfinite(number):
        raise InputError(f"--set {name}={text} is not finite", remedy="Give a number")
    return number


def _dimensions(text: str) -> str:
    if text.upper().removesuffix("D") not in ("2", "3"):
        raise InputError(f"--set dimensions={text} is no value of dimensions", remedy="Give 2 or 3")
    return text.upper().removesuffix("D") + "D"


_KINDS = {"tuple[int, ...]": "whole numbers, such as 32,64,96", "int": "a whole number", "float": "a number", "str": ""}


# --- files and pages --------------------------------------------------------------------------------------------------


def write_plan(plan: Plan, path: Path) -> None:
    """As JSON."""
    with atomic_write(path) as file:
        file.write(json.dumps(asdict(plan), indent=2).encode())


def read_plan(path: str | Path) -> Plan:
    """The inverse of :func:`write_plan`.

    Raises:
        InputError: for a file that is missing or no plan.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        lists = {name: tuple(content[name]) for name in ("field", "crop", "widths")}
        lists |= {name: tuple(content.get(name, ())) for name in ("timesteps", "region")}
        window = tuple(tuple(pair) for pair in content["window"])
        return check_plan(Plan(**{**content, **lists, "window": window}))
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError) as error:
        remedy = "Restore the file, or train into another folder"
        raise InputError(f"is no plan ({error})", path=path, remedy=remedy) from error


def plan_page(seen: Fingerprint, plan: Plan, parts: Mapping[str, Sequence[str]], name: str) -> str:
    """What was found and chosen, for a person."""
    unit = "pixels" if seen.pictures else "mm"
    what = "pictures" if seen.pictures else "volumes"
    shares = zip(seen.labels, seen.fractions, seen.present, strict=True)
    labelled = seen.examples - seen.unlabelled
    lines = [
        f"# {name}",
        "",
        f"{labelled} {what} of {seen.patients} patients with label maps, {seen.unlabelled} without.",
        f"Channels: {', '.join(seen.channels)}.",
        "Sizes (least, median, greatest): " + "; ".join(", ".join(map(str, size)) for size in seen.sizes) + ".",
        f"Spacing, median: {seen.spacing[0][1]:.3g} in plane, {seen.spacing[1][1]:.3g} between slices ({unit}).",
        f"A piece in a slice is like a disc of {seen.diameter:.3g} {unit}; {seen.pieces:.1f} pieces a slice.",
        "",
        "| class | share of all voxels | in examples |",
        "| --- | --- | --- |",
        *(f"| {label} | {100 * share:.2f} % | {present} of {labelled} |" for label, share, present in shares),
        "",
        "Split by patient: " + ", ".join(f"{len(members)} {part}" for part, members in parts.items()) + ".",
        "",
        f"## Plan: {plan.dimensions}",
        "",
        *([f"{plan.dimensions}: {why}.", ""] if (why := plan.reasons.get("dimensions")) else []),
        "| choice | value | why |",
        "| --- | --- | --- |",
        *(f"| {key} | {_value_shown(plan, key)} | {plan.reasons.get(key, '')} |" for key in _shown_names(plan)),
        *_levels_shown(plan),
        "",
        f"The training takes about {plan.memory / 2**30:.1f} GiB of memory.",
        "Each choice can be set: --set spacing=1.25",
    ]
    return "\n".join(lines) + "\n"


def _shown_names(plan: Plan) -> list[str]:
    others = {"dimensions", *(("neighbours", "region") if plan.volumes else ("between",))}
    return [name for name in SETTABLE if name not in others]


def _value_shown(plan: Plan, name: str) -> str:
    value = getattr(plan, name)
    return ", ".join(map(str, value)) or "-" if name == "timesteps" else _shown(value) or "-"


def _levels_shown(plan: Plan) -> list[str]:
    if not plan.volumes:
        return []
    rows = {"stem": [plan.levels.stem], "strides": plan.levels.strides, "kernels": plan.levels.kernels}
    why = "an axis is halved and looked along once its voxels are shorter than twice the shortest"
    return [f"| ({name}) | {', '.join(_shown(axes) for axes in sides)} | {why} |" for name, sides in rows.items()]


def _shown(value: Any) -> str:
    return (
        " x ".join(map(str, value))
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
