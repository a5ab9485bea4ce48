"""What to train on a data set: every choice with its reason."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cgdpm_med.datasets.fingerprint import Fingerprint
from cgdpm_med.datasets.memory import training_memory
from cgdpm_med.datasets.plan import Plan, check_plan, most_shift
from cgdpm_med.datasets.volume_choices import (
    LEAST_VOXELS,
    VOXELS,
    check_no_field,
    dimensions,
    in_3d,
    volume_batch,
)
from cgdpm_med.files import InputError

SMALL, LARGE = (32, 64, 96, 128), (64, 96, 160, 192)
LEAST_DIAMETER, QUICK_DIAMETER = 12, 8
"""Working pixels that the median piece of a structure shall span at least."""
USUAL_FIELD, MOST_FIELD = 128, 256
MARGIN = 4
"""Working pixels around the structures."""
CENTRAL, TELLING = 0.9, 10
"""Structures are central that lie within this part of the median image, in so many examples at least."""
TRAINED = 0.7
"""Of the slices, those that a training holds."""
ENOUGH = 1500
"""Steps that repay a network of the usual size; where the hours hold fewer, a smaller one learns more in them."""


def make_plan(
    seen: Fingerprint,
    *,
    iterations: int = 5000,
    given: Mapping[str, Any] | None = None,
    memory: float = 8e9,
    large: bool = False,
    quick: bool = False,
    suggested: Mapping[str, tuple[Any, str]] | None = None,
) -> Plan:
    """Choose; what is ``given`` is taken, and the rest follows it.

    Args:
        iterations: steps in all, unless given.
        given: values by name, see :func:`~cgdpm_med.datasets.plan.parse_settings`.
        memory: bytes that the training may take.
        large: there is a GPU for a network of full size.
        quick: the network shall be a cheap one, since there is time for few steps.
        suggested: values with their reasons, in place of what would be chosen.

    Raises:
        InputError: for given values that cannot be.
    """
    choice = _Choice(given or {}, suggested or {})
    if min(choice.given.get(name, 1) for name in ("spacing", "between", "patch_size")) <= 0:
        raise InputError("this plan cannot be: values must be positive", remedy="Correct --set")
    how: dict[str, Any] = {"iterations": iterations, "large": large, "quick": quick}
    fixed = "batch_size" in choice.given
    plan = _within(memory, _chosen(seen, choice, voxels=VOXELS[large], **how), seen, fixed)
    while plan.memory > memory and (fewer := _fewer_voxels(plan, choice)):
        plan = _within(memory, _chosen(seen, choice, voxels=fewer, **how), seen, fixed)
    return plan


def _fewer_voxels(plan: Plan, choice: _Choice) -> int:
    """Of a 3D plan's patch that may be smaller; else 0."""
    fewer = math.prod(plan.crop) // 2
    return fewer if plan.volumes and "crop" not in choice.given and fewer >= LEAST_VOXELS else 0


def _chosen(seen: Fingerprint, choice: _Choice, *, iterations: int, large: bool, quick: bool, voxels: int) -> Plan:
    """Every choice but what the memory demands; ``voxels`` of a 3D training example at most."""
    pick = choice.pick
    kind = pick("dimensions", *dimensions(seen, choice.given))
    if kind == "2D":
        geometry = _in_2d(seen, choice, large, quick)
    else:
        check_no_field(choice.given)
        widths = LARGE if large else SMALL
        geometry = in_3d(seen, pick, widths, large=large, quick=quick, voxels=voxels)
    steps = pick("iterations", iterations, "as asked for")
    epoch = pick("epoch", max(1, min(100, steps // 10)), "a stopped run loses no more")
    intensity, reason = _intensity(seen)
    batch = _batch(seen, large) if kind == "2D" else volume_batch(geometry["crop"], large)
    plan = Plan(
        dimensions=kind,
        **geometry,
        intensity=pick("intensity", intensity, reason),
        window=seen.foreground,
        scale=pick("scale", 0.1, "a mask is a redundant signal"),
        dice_weight=pick("dice_weight", 1.0, "few steps make sharp masks; 0 for readers who disagree"),
        batch_size=pick("batch_size", *batch),
        iterations=steps,
        epoch=epoch,
        learning_rate=pick("learning_rate", *_learning_rate(steps, large)),
        flip=pick("flip", *_flip(seen)),
        turn=pick("turn", 0.0, "images of a data set stand one way"),
        validation_cases=pick("validation_cases", 32 if kind == "2D" else 8, "enough to tell weights apart"),
        validate_every=pick("validate_every", *_validate_every(steps, epoch)),
        members=pick("members", 8, "enough to show the doubt"),
        timesteps=pick("timesteps", (), "four, evenly spaced"),
        reasons=choice.reasons,
    )
    return check_plan(plan)


def _check_sides(given: Mapping[str, Any]) -> None:
    if any(len(given.get(name, (1, 1))) != 2 for name in ("field", "crop")):
        raise InputError("this plan cannot be: field and crop have two sides", remedy="Correct --set")


def _in_2d(seen: Fingerprint, choice: _Choice, large: bool, quick: bool) -> dict[str, Any]:
    """Fields of a plan that say what the network sees and how large it is."""
    _check_sides(choice.given)
    pick = choice.pick
    sized = {"crop", "field"} & choice.given.keys()  # whoever says how much is shown says how fine it may be
    spacing = pick("spacing", *_spacing(seen, quick, 0.0 if sized else _least_spacing(seen)))
    patch = pick("patch_size", *_patch(seen, spacing, quick))
    widths = pick("widths", *_widths(seen, spacing, patch, large, quick))
    multiple = patch * 2 ** (len(widths) - 1)
    whole = [min(_up(n / spacing, multiple), MOST_FIELD // multiple * multiple) for n in seen.extent]
    size = pick("field", tuple(whole), "the median image, or its middle")
    crop = pick("crop", *_crop(seen, spacing, size, multiple))
    return {
        "neighbours": pick("neighbours", *_neighbours(seen)),
        "spacing": spacing,
        "field": tuple(max(a, b) for a, b in zip(size, crop, strict=True)),
        "crop": crop,
        "region": pick("region", *_region(seen, spacing, crop, multiple)),
        "widths": widths,
        "patch_size": patch,
    }


def _within(memory: float, plan: Plan, seen: Fingerprint, fixed: bool) -> Plan:
    """The plan with its memory, and a batch for which that is enough, unless it is fixed."""
    held = seen.examples - seen.unlabelled if plan.volumes else seen.slices
    needs = training_memory(plan, seen.channels, seen.labels, round(TRAINED * held))
    batch = plan.batch_size
    while batch > 1 and needs.peak(batch) > memory and not fixed:
        batch //= 2
    reasons = dict(plan.reasons)
    if batch < plan.batch_size:
        reasons["batch_size"] = f"more do not fit into {memory / 2**30:.1f} GiB of memory"
    return replace(plan, batch_size=batch, memory=needs.peak(batch), reasons=reasons)


class _Choice:
    """Values as given or chosen, with the reasons."""

    def __init__(self, given: Mapping[str, Any], suggested: Mapping[str, tuple[Any, str]]) -> None:
        self.given, self.suggested = given, suggested
        self.reasons: dict[str, str] = {}

    def pick(self, name: str, chosen: Any, reason: str) -> Any:
        chosen, reason = self.suggested.get(name, (chosen, reason))
        self.reasons[name] = "given" if name in self.given else reason
        return self.given.get(name, chosen)


def _up(pixels: float, multiple: int) -> int:
    return max(multiple, math.ceil(pixels / multiple - 1e-6) * multiple)


def _spacing(seen: Fingerprint, quick: bool, least: float) -> tuple[float, str]:
    longest = max(seen.extent)
    if not seen.pictures:
        fine = seen.spacing[0][0]
        coarse = max(fine, longest / MOST_FIELD if longest / fine > 2 * MOST_FIELD else fine)
        if coarse < least:
            return least, _far(seen, least)
        return round(coarse, 3), "a quarter of the images are finer, none much"
    wanted = min(longest / USUAL_FIELD, seen.diameter / (QUICK_DIAMETER if quick else LEAST_DIAMETER))
    if max(wanted, 1) < least:
        return least, _far(seen, least)
    if wanted <= 1:
        return 1.0, "every pixel counts"
    return round(wanted, 3), f"a typical piece still spans {seen.diameter / wanted:.0f} working pixels"


def _least_spacing(seen: Fingerprint) -> float:
    """At which the largest crop, which training draws about the middle, holds the structures of the median image."""
    farthest = max(min(pair) for pair in zip(seen.reach, seen.extent, strict=True))
    return math.ceil(1000 * farthest / MOST_FIELD) / 1000


def _far(seen: Fingerprint, spacing: float) -> str:
    spans = f"a typical piece spans {seen.diameter / spacing:.2g} working pixels"
    return f"so coarse that a crop holds structures far from the middle; {spans}"


def _patch(seen: Fingerprint, spacing: float, quick: bool) -> tuple[int, str]:
    longest = max(seen.extent) / spacing
    if longest <= 48:
        return 1, "the image is small"
    if quick and longest >= 96:
        return 4, "few steps in the time given: a sixteenth of the work at the finest level"
    return 2, "a quarter of the work at the finest level"


def _widths(seen: Fingerprint, spacing: float, patch: int, large: bool, quick: bool) -> tuple[tuple[int, ...], str]:
    levels = 4 if min(seen.extent) / spacing / patch >= 48 else 3
    widths = (LARGE if large else SMALL)[:levels]
    if quick:
        return widths[:3], "few steps in the time given"
    return widths, "a GPU carries them" if large else "small, for a CPU"


def _crop(seen: Fingerprint, spacing: float, size: Sequence[int], multiple: int) -> tuple[tuple[int, ...], str]:
    wanted = [_up(n / spacing + 2 * MARGIN, multiple) for n in seen.reach]
    crop = tuple(min(n, side) for n, side in zip(wanted, size, strict=True))
    if any(n / spacing > side for n, side in zip(seen.reach, crop, strict=True)):
        return crop, "the middle, as much as the field has; structures beyond it are not learned"
    return crop, "the structures of 95 % of the images and a margin"


def _region(seen: Fingerprint, spacing: float, crop: Sequence[int], multiple: int) -> tuple[tuple[int, ...], str]:
    """Where structures have been seen and crops have been drawn; a network has learned nothing of what lies beyond."""
    drawn = [n + 2 * most_shift(crop) for n in crop]
    held = [n / spacing + 2 * MARGIN for n in seen.farthest]
    region = tuple(_up(max(pair), multiple) for pair in zip(drawn, held, strict=True))
    central = all(n <= CENTRAL * side / spacing for n, side in zip(region, seen.extent, strict=True))
    if central and seen.examples - seen.unlabelled >= TELLING:
        return region, "the structures of all images lie within, and training saw no more"
    return (), "structures may lie anywhere"


def _batch(seen: Fingerprint, large: bool) -> tuple[int, str]:
    batch = 8 if seen.pictures and not large else 16  # a CPU learns more from twice the steps
    while batch > 1 and batch > seen.slices // 2:
        batch //= 2
    return batch, "half as many where the slices are few"


def _validate_every(steps: int, epoch: int) -> tuple[int, str]:
    """Epochs between validations: in a run of minutes ten of them would take as long as the training."""
    epochs = math.ceil(steps / max(1, epoch))
    times, word = (10, "ten times") if steps >= 1000 else (3, "three times, since the run is short")
    if epochs < times:
        return 1, "after every epoch, since they are long"
    return max(1, math.ceil(epochs / times)), word


def _learning_rate(steps: int, large: bool) -> tuple[float, str]:
    if steps < 3000 and not large:
        return 1e-3, "few steps of a small network"
    return 5e-4, "as in the bundle for segmentation"


def _neighbours(seen: Fingerprint) -> tuple[int, str]:
    if seen.sizes[2][1] < 3:
        return 0, "images are single slices"
    return 1, "what a slice shows goes on in the next"


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
