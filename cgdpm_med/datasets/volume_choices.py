"""What to train on volumes as such: spacing, patch and network of a 3D plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cgdpm_med.datasets.fingerprint import Fingerprint
from cgdpm_med.files import InputError
from cgdpm_med.networks.levels import halved

MANY_SLICES, THICK = 16, 3
"""Volumes of fewer slices, or of slices so many times as thick as a pixel, have little that a 3D network could see."""
LEAST_DIAMETER, QUICK_DIAMETER = 12, 8
"""Working voxels that the median piece of a structure shall span in a slice at least."""
USUAL_SIDE = {False: 96, True: 160}
"""Working voxels of the longer side in plane, on a CPU and on a GPU, where the structures are large enough."""
VOXELS = {False: 2**17, True: 2**21}
"""Of a patch at most, on a CPU and on a GPU."""
LEAST_VOXELS = 2**12
SMALL_VOLUME, SMALL_PATCH = 2**17, 2**14
"""Voxels of a volume for which 3D plans were found better than 2D ones, with patches of so many on a CPU."""
MARGIN = 4

Pick = Callable[[str, Any, str], Any]


def dimensions(seen: Fingerprint, given: Mapping[str, Any]) -> tuple[str, str]:
    """Whether a plan is "2D" or "3D", and why: 3D where it is asked for, and for small volumes of many thin slices."""
    if "neighbours" in given:
        return "2D", "neighbouring slices are given"
    if "between" in given:
        return "3D", "the spacing between slices is given"
    if seen.pictures or seen.sizes[2][1] < MANY_SLICES:
        return "2D", "pictures" if seen.pictures else f"fewer than {MANY_SLICES} slices"
    if seen.spacing[1][1] >= THICK * seen.spacing[0][1]:
        return "2D", "slices are thick"
    if is_small(seen):
        return "3D", "many thin slices, and small volumes"
    return "2D", "large volumes, for which 3D plans are not proved; --set dimensions=3 makes one"


def is_small(seen: Fingerprint) -> bool:
    """Whether a small patch sees much of the median volume."""
    return math.prod(size[1] for size in seen.sizes) <= SMALL_VOLUME


def check_depth(seen: Fingerprint) -> None:
    """Raise InputError where there is no third dimension."""
    if seen.sizes[2][2] < 2:
        what = "these are pictures" if seen.pictures else "every image is a single slice"
        raise InputError(f"{what}, so no plan can be 3D", remedy="Leave --set dimensions out")


def check_no_field(given: Mapping[str, Any]) -> None:
    """Raise InputError where a field or a region is given: volumes are held and seen whole."""
    if found := [name for name in ("field", "region") if name in given]:
        what = f"a 3D plan holds whole volumes, so it has no {found[0]} to set"
        raise InputError(what, remedy="Give --set crop=64,64,32")


def in_3d(
    seen: Fingerprint,
    pick: Pick,
    widths: Sequence[int],
    *,
    large: bool,
    quick: bool,
    voxels: int,
) -> dict[str, Any]:
    """Fields of a plan that say what the network sees and how large it is.

    Args:
        pick: ``pick(name, value, reason)``: the value, or what was given in its place.
        widths: of as many levels as there may be.
        voxels: of a patch at most.

    Raises:
        InputError: for pictures.
    """
    check_depth(seen)
    if is_small(seen) and not large:
        voxels = min(voxels, SMALL_PATCH)
    spacing = pick("spacing", *_spacing(seen, large, quick))
    between = pick("between", round(max(seen.spacing[1][1], spacing), 3), "half of the volumes are finer")
    patch = pick("patch_size", *_patch(seen, spacing, quick))
    sides = (spacing, spacing, between)
    field = (*(_at_least_one(n / spacing) for n in seen.extent), _at_least_one(_depth(seen) / between))
    near = [min(n, _at_least_one(r / spacing) + 2 * MARGIN) for n, r in zip(field, seen.reach, strict=False)]
    whole, stem = (*near, field[2]), max(0, int(patch).bit_length() - 1)
    possible = steps_of(patch_sides(whole, sides, stem + len(widths) - 1, voxels), sides) - stem
    features = pick("widths", tuple(widths[: max(1, possible + 1)]), "as often as the patch can be halved")
    crop = patch_sides(whole, sides, stem + len(features) - 1, voxels)
    return {
        "neighbours": 0,
        "spacing": spacing,
        "between": between,
        "patch_size": patch,
        "widths": features,
        "field": field,
        "crop": pick("crop", crop, f"the structures and a margin, or {voxels} voxels"),
    }


def _at_least_one(voxels: float) -> int:
    return max(1, round(voxels))


def _depth(seen: Fingerprint) -> float:
    """Of the median volume in mm."""
    return seen.sizes[2][1] * seen.spacing[1][1]


def _spacing(seen: Fingerprint, large: bool, quick: bool) -> tuple[float, str]:
    fine = seen.spacing[0][0]
    typical = seen.diameter / (QUICK_DIAMETER if quick else LEAST_DIAMETER)
    wanted = min(max(seen.extent) / USUAL_SIDE[large], typical)
    if wanted <= fine:
        return round(fine, 3), "a quarter of the images are finer, none much"
    return round(wanted, 3), f"a typical piece still spans {seen.diameter / wanted:.0f} working voxels"


def _patch(seen: Fingerprint, spacing: float, quick: bool) -> tuple[int, str]:
    longest = max(seen.extent) / spacing
    if longest <= 24:
        return 1, "the volume is small"
    if quick and longest >= USUAL_SIDE[False]:
        return 4, "few steps in the time given"
    return 2, "an eighth of the work at the finest level, or a quarter where slices are thick"


def volume_batch(crop: Sequence[int], large: bool) -> tuple[int, str]:
    """Examples in a step: as many as make the voxels of two patches of the greatest size; few on a CPU."""
    if not large:
        return 4 if math.prod(crop) <= SMALL_PATCH else 2, "a CPU learns more from more steps"
    fitting = 2 * VOXELS[large] // math.prod(crop)
    return max(2, min(16, 1 << max(0, fitting.bit_length() - 1))), "small patches come together"


# --- sides of a patch -------------------------------------------------------------------------------------------------


def patch_sides(wanted: Sequence[int], spacing: Sequence[float], steps: int, voxels: int) -> tuple[int, ...]:
    """Sides that can be halved as the spacing has it, no more voxels than allowed; the longest in mm is cut first.

    Args:
        wanted: voxels along each axis, rounded up where nothing has to be cut.
        steps: halvings in all.
    """
    sides, halvings = divisible(wanted, spacing, steps)
    while math.prod(sides) > max(voxels, LEAST_VOXELS):
        can = [n for n, (side, h) in enumerate(zip(sides, halvings, strict=True)) if side > 2**h]
        axis = max(can, key=lambda n: sides[n] * spacing[n])
        less = [side - 2**h if n == axis else side for n, (side, h) in enumerate(zip(sides, halvings, strict=True))]
        sides, halvings = divisible(less, spacing, steps)
    return sides


def steps_of(sides: Sequence[int], spacing: Sequence[float]) -> int:
    """How often a patch can be halved along one axis at least."""
    left, now, count = list(sides), list(spacing), 0
    while max(step := halved(now, left)) == 2:
        left = [n // f for n, f in zip(left, step, strict=True)]
        now = [s * f for s, f in zip(now, step, strict=True)]
        count += 1
    return count


def divisible(wanted: Sequence[int], spacing: Sequence[float], steps: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sides rounded up so that they can be halved, and how often each is."""
    left, now, halvings = list(wanted), list(spacing), [0] * len(wanted)
    for _ in range(steps):
        step = halved(now, [n + n % 2 for n in left])
        left = [math.ceil(n / f) for n, f in zip(left, step, strict=True)]
        now = [s * f for s, f in zip(now, step, strict=True)]
        halvings = [h + (f == 2) for h, f in zip(halvings, step, strict=True)]
    return tuple(n * 2**h for n, h in zip(left, halvings, strict=True)), tuple(halvings)
