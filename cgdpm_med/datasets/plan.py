"""What to train on a data set: every choice with its reason, and what a user decides instead."""

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
from cgdpm_med.files import InputError, atomic_write

INTENSITIES = ("percentiles", "fixed", "as it is")
SMALL, LARGE = (32, 64, 96, 128), (64, 96, 160, 192)
LEAST_DIAMETER = 12
"""Working pixels that the median piece of a structure shall span at least."""
USUAL_FIELD, MOST_FIELD = 128, 256
MARGIN = 16
"""Working pixels around the structures."""
BYTES_PER_WIDTH = 160
"""Of memory for each pixel and feature of the finest level in training: an estimate, not measured."""


@dataclass(frozen=True)
class Plan:
    """Everything that the training is told.

    Attributes:
        dimensions: "2D"; slices, or pictures.
        neighbours: slices on each side that the network sees, too.
        spacing: mm in plane, or pixels of a picture, of one working pixel.
        field: working pixels of an image in memory (X, Y).
        crop: of a training example (X, Y).
        widths: features of the levels.
        patch_size: of the stem; 2 works at half the resolution.
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
        reasons: of the choices, by name.
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
    reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def epochs(self) -> int:
        """Of ``epoch`` steps."""
        return math.ceil(self.iterations / self.epoch)

    @property
    def multiple(self) -> int:
        """Sides of what the network sees are multiples of this."""
        return int(self.patch_size * 2 ** (len(self.widths) - 1))

    def memory(self) -> float:
        """Bytes that a training step takes, about."""
        return step_memory(self.batch_size, self.crop, self.patch_size, self.widths)


SETTABLE = tuple(item.name for item in fields(Plan) if item.name not in ("dimensions", "window", "reasons"))


def step_memory(batch: int, crop: Sequence[int], patch_size: int, widths: Sequence[int]) -> float:
    """Bytes of a training step, about."""
    pixels = math.prod(crop) / patch_size**2
    return batch * BYTES_PER_WIDTH * pixels * sum(width / 4**level for level, width in enumerate(widths))


# --- choices ----------------------------------------------------------------------------------------------------------


def make_plan(
    seen: Fingerprint,
    *,
    iterations: int = 5000,
    given: Mapping[str, Any] | None = None,
    memory: float = 8e9,
    large: bool = False,
) -> Plan:
    """Choose; what is ``given`` is taken, and the rest follows it.

    Args:
        iterations: steps in all, unless given.
        given: values by name, see :func:`parse_settings`.
        memory: bytes that a step may take.
        large: there is a GPU for a network of full size.

    Raises:
        InputError: for given values that cannot be.
    """
    choice = _Choice(given or {})
    pick = choice.pick
    spacing = pick("spacing", *_spacing(seen))
    patch = pick("patch_size", *_patch(seen, spacing))
    widths = pick("widths", *_widths(seen, spacing, patch, large))
    multiple = patch * 2 ** (len(widths) - 1)
    whole = [min(_up(n / spacing, multiple), MOST_FIELD // multiple * multiple) for n in seen.extent]
    size = pick("field", tuple(whole), "the median image, or its middle")
    crop = pick("crop", *_crop(seen, spacing, size, multiple))
    batch = pick("batch_size", *_batch(seen, crop, patch, widths, memory, large))
    steps = pick("iterations", iterations, "as asked for")
    intensity, reason = _intensity(seen)
    plan = Plan(
        dimensions="2D",
        neighbours=pick("neighbours", *_neighbours(seen)),
        spacing=spacing,
        field=tuple(max(a, b) for a, b in zip(size, crop, strict=True)),
        crop=crop,
        widths=widths,
        patch_size=patch,
        intensity=pick("intensity", intensity, reason),
        window=seen.foreground,
        scale=pick("scale", 0.1, "a mask is a redundant signal"),
        batch_size=batch,
        iterations=steps,
        epoch=pick("epoch", max(1, min(100, steps // 10)), "a stopped run loses no more"),
        learning_rate=pick("learning_rate", *_learning_rate(steps, large)),
        flip=pick("flip", *_flip(seen)),
        turn=pick("turn", 0.0, "images of a data set stand one way"),
        validation_cases=pick("validation_cases", 32, "enough to tell weights apart"),
        validate_every=pick("validate_every", *_validate_every(steps)),
        reasons=choice.reasons,
    )
    return check_plan(plan)


class _Choice:
    """Values as given or chosen, with the reasons."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given
        self.reasons: dict[str, str] = {}

    def pick(self, name: str, chosen: Any, reason: str) -> Any:
        self.reasons[name] = "given" if name in self.given else reason
        return self.given.get(name, chosen)


def check_plan(plan: Plan) -> Plan:
    """The plan itself.

    Raises:
        InputError: for values that no training can have.
    """
    positive = (plan.spacing, plan.scale, plan.learning_rate, plan.iterations, plan.epoch, plan.batch_size)
    counts = (*plan.field, *plan.crop, *plan.widths, plan.patch_size, plan.validation_cases, plan.validate_every)
    faults = {
        "values must be positive": min(*positive, *counts) <= 0 or plan.neighbours < 0,
        "field and crop have two sides": len(plan.field) != 2 or len(plan.crop) != 2,
        f"sides of the crop are multiples of {plan.multiple}": any(n % plan.multiple for n in plan.crop),
        f"intensity is one of {', '.join(INTENSITIES)}": plan.intensity not in INTENSITIES,
        "patch_size is 1, 2, 4 or 8": plan.patch_size not in (1, 2, 4, 8),
        "widths are multiples of 32": any(width % 32 for width in plan.widths),
        "flip and turn lie within 0 and 1": not (0 <= plan.flip <= 1 and 0 <= plan.turn <= 1),
    }
    if wrong := [text for text, fault in faults.items() if fault]:
        raise InputError(f"this plan cannot be: {wrong[0]}", remedy="Correct --set")
    return plan


def _up(pixels: float, multiple: int) -> int:
    return max(multiple, math.ceil(pixels / multiple - 1e-6) * multiple)


def _spacing(seen: Fingerprint) -> tuple[float, str]:
    longest = max(seen.extent)
    if not seen.pictures:
        fine = seen.spacing[0][0]
        coarse = max(fine, longest / MOST_FIELD if longest / fine > 2 * MOST_FIELD else fine)
        return round(coarse, 3), "a quarter of the images are finer, none much"
    wanted = min(longest / USUAL_FIELD, seen.diameter / LEAST_DIAMETER)
    if wanted <= 1:
        return 1.0, "every pixel counts"
    return round(wanted, 3), f"a typical piece still spans {seen.diameter / wanted:.0f} working pixels"


def _patch(seen: Fingerprint, spacing: float) -> tuple[int, str]:
    small = max(seen.extent) / spacing <= 48
    return (1, "the image is small") if small else (2, "a quarter of the work at the finest level")


def _widths(seen: Fingerprint, spacing: float, patch: int, large: bool) -> tuple[tuple[int, ...], str]:
    levels = 4 if min(seen.extent) / spacing / patch >= 48 else 3
    widths = (LARGE if large else SMALL)[:levels]
    return widths, "a GPU carries them" if large else "small, for a CPU"


def _crop(seen: Fingerprint, spacing: float, size: Sequence[int], multiple: int) -> tuple[tuple[int, ...], str]:
    wanted = [_up(n / spacing + 2 * MARGIN, multiple) for n in seen.reach]
    crop = tuple(min(n, side) for n, side in zip(wanted, size, strict=True))
    return crop, "the structures of 95 % of the images and a margin"


def _batch(
    seen: Fingerprint, crop: Sequence[int], patch: int, widths: Sequence[int], memory: float, large: bool
) -> tuple[int, str]:
    batch = 8 if seen.pictures and not large else 16  # a CPU learns more from twice the steps
    while batch > 1 and (batch > seen.slices // 2 or step_memory(batch, crop, patch, widths) > memory):
        batch //= 2
    return batch, f"about {step_memory(batch, crop, patch, widths) / 2**30:.1f} GiB"


def _validate_every(steps: int) -> tuple[int, str]:
    """Epochs between validations: in a run of minutes ten of them would take as long as the training."""
    epochs = math.ceil(steps / max(1, min(100, steps // 10)))
    times, word = (10, "ten times") if steps >= 1000 else (3, "three times, since the run is short")
    return max(1, math.ceil(epochs / times)), word


def _learning_rate(steps: int, large: bool) -> tuple[float, str]:
    if steps < 3000 and not large:
        return 1e-3, "few steps of a small network"
    return 5e-4, "as in the bundle for segmentation"


def _neighbours(seen: Fingerprint) -> tuple[int, str]:
    if seen.sizes[2][1] < 3:
        return 0, "images are single slices"
    thick = seen.spacing[1][1] >= 3 * seen.spacing[0][1]
    reason = "slices are thick" if thick else "3D networks are not trained by this command yet: slices with neighbours"
    return 1, reason


def _intensity(seen: Fingerprint) -> tuple[str, str]:
    if any(name.strip().upper() == "CT" for name in seen.channels):
        return "fixed", "CT has units: percentiles of the structures, the same for all images"
    if not seen.pictures:
        return "percentiles", "MR has no units: each image by its own percentiles 1 and 99"
    if all(high - low > 0.5 for low, _, high in seen.intensities):
        return "as it is", "pictures use their range"
    return "percentiles", "pictures use a small part of their range: each by its own percentiles 1 and 99"


def _flip(seen: Fingerprint) -> tuple[float, str]:
    return (0.5, "pictures") if seen.pictures and len(seen.labels) == 1 else (0.1, "left and right may differ")


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
    try:
        if kind == "tuple[int, ...]":
            values = tuple(int(word) for word in text.split(","))
            return values * 2 if len(values) == 1 and name in ("field", "crop") else values
        number = {"int": int, "float": float, "str": str}[kind](text)
    except ValueError as error:
        raise InputError(f"--set {name}={text} is no value of {name}", remedy=f"Give {_KINDS[kind]}") from error
    if isinstance(number, float) and not math.isfinite(number):
        raise InputError(f"--set {name}={text} is not finite", remedy="Give a number")
    return number


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
        "| choice | value | why |",
        "| --- | --- | --- |",
        *(f"| {key} | {_shown(getattr(plan, key))} | {plan.reasons.get(key, '')} |" for key in SETTABLE),
        "",
        "Each can be set: --set spacing=1.25",
    ]
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    return (
        " x ".join(map(str, value))
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
