"""Series of one slice each as stacks: which of them lie on one lattice, and which are odd.

A series is odd where it lies off the lattice, or has another number of phases, or lies shifted, in a place that another
series holds. One that would be a slice of the stack and cannot be used is not odd: without it the stack would be short.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cgdpm_med.files import InputError, listed
from cgdpm_med.volumes.dicom.contrast import by_contrast, differing
from cgdpm_med.volumes.dicom.groups import (
    SAME_PLACE,
    ImageGroup,
    classes_of,
    directions_of,
    joined,
    normal_of,
    position_of,
    same_orientation,
    same_raster,
    spacing_of,
)
from cgdpm_med.volumes.dicom.lattice import SIDEWAYS, in_blocks, lattices, numbered_again, overlapping
from cgdpm_med.volumes.dicom.series import SeriesKey


@dataclass(frozen=True)
class Level:
    """A series that shows one slice."""

    key: SeriesKey
    group: ImageGroup

    @property
    def phases(self) -> int:
        """Number of images."""
        return len(self.group.images)


@dataclass(frozen=True)
class Judged:
    """Series that shall make one stack and what is odd about it, or the error why they do not."""

    group: ImageGroup
    error: InputError | None = None
    note: str = ""


SHIFTED = "its slices lie between those of another stack, numbered apart from them: they are taken as two stacks"
"""Note on stacks that were told apart and might be one."""


def join_levels(levels: Sequence[Level]) -> list[Judged]:
    """Series of one slice each, put together where examination, raster, orientation and contrast agree."""
    judged: list[Judged] = []
    for alike in classes_of(levels, _could_join):
        parts = by_contrast(alike, lambda level: level.group.images[0].contrast, own_names=True)
        largest = max(parts, key=len)
        for part in parts:
            if len(part) == 1 and len(largest) > 1:
                judged.append(_odd_contrast(part[0], largest))
                continue
            for same in _apart(part):
                judged += _judged(same)
    return judged


def _could_join(a: Level, b: Level) -> bool:
    """Whether two series may belong to one stack; a still image and a cine do not."""
    first, second = a.group.images[0], b.group.images[0]
    return (
        a.key.patient == b.key.patient
        and (a.phases > 1) == (b.phases > 1)
        and same_raster(first, second)
        and same_orientation(first, second)
    )


def _odd_contrast(level: Level, usual: Sequence[Level]) -> Judged:
    names = listed(differing([one.group.images[0].contrast for one in (level, *usual)]))
    what = f"differs from the stack beside it in its {names}, and is left out"
    return Judged(level.group, level.group.error(what, _CHOOSE))


_STACK = "Give a short-axis stack: choose its series with --series, or move these images elsewhere"
_CHOOSE = "Choose the series of the stack with --series, or move the others elsewhere"

# --- what UIDs and folders still tell ---------------------------------------------------------------------------------


def _apart(levels: Sequence[Level]) -> list[list[Level]]:
    """Series apart by study, frame of reference and folder, as far as these tell more than one series from another."""
    parts = _by_mark(levels, lambda level: level.key.study, alone=False)
    parts = [part for members in parts for part in _by_folder(members)]
    return [part for members in parts for part in _by_mark(members, _frame_of_reference, alone=True)]


def _by_mark(levels: Sequence[Level], mark: Callable[[Level], Hashable], *, alone: bool) -> list[list[Level]]:
    """By a mark, unless each series has its own; with ``alone``, unless some series is the only one with its mark."""
    marked: dict[Hashable, list[Level]] = defaultdict(list)
    for level in levels:
        marked[mark(level)].append(level)
    sizes = [len(members) for members in marked.values()]
    says_nothing = max(sizes) == 1 or (alone and min(sizes) == 1)
    return [list(levels)] if says_nothing else list(marked.values())


def _frame_of_reference(level: Level) -> Hashable:
    uids = {image.frame_of_reference for image in level.group.images}
    return uids.pop() if len(uids) == 1 else ""


def _by_folder(levels: Sequence[Level]) -> list[list[Level]]:
    """By folder where no study tells examinations apart, or where folders hold the same places or series numbers."""
    homes = Counter(level.group.folder for level in levels)
    by_home: dict[Path, list[Level]] = defaultdict(list)
    for level in levels:  # folders of one slice each are siblings
        folder = level.group.folder
        by_home[folder if homes[folder] > 1 else folder.parent].append(level)
    parts = list(by_home.values())
    several = [_places(part) for part in parts if len(_places(part)) > 1]
    unnamed = not any(level.key.study for level in levels)
    repeated = len(several) == len(parts) and any(
        np.abs(a[:, None] - b).min() < SAME_PLACE for n, a in enumerate(several) for b in several[:n]
    )
    return parts if unnamed or repeated or _counted_again(parts) else [list(levels)]


def _counted_again(parts: Sequence[Sequence[Level]]) -> bool:
    """Whether folders hold other series of the same numbers, as two examinations do."""
    numbers = [[_number(level) for level in part] for part in parts]
    return any(numbered_again(a, b) for n, a in enumerate(numbers) for b in numbers[:n])


# --- places ---------------------------------------------------------------------------------------------------------


def _place(level: Level, normal: NDArray[np.float64]) -> float:
    return float(position_of(level.group.images[0]) @ normal)


def _at_places(levels: Sequence[Level]) -> list[list[Level]]:
    """Series by place, in the order of their places along the normal."""
    normal = normal_of(levels[0].group.images[0])
    places: list[list[Level]] = []
    for level in sorted(levels, key=lambda level: _place(level, normal)):
        if not places or _place(level, normal) - _place(places[-1][0], normal) > SAME_PLACE:
            places.append([])
        places[-1].append(level)
    return places


def _places(levels: Sequence[Level]) -> NDArray[np.float64]:
    normal = normal_of(levels[0].group.images[0])
    return np.array([_place(at[0], normal) for at in _at_places(levels)])


def _judged(levels: Sequence[Level]) -> list[Judged]:
    """Series of one examination, orientation and contrast as stacks."""
    places = _at_places(levels)
    if len(levels) == 1:
        return [_single(levels[0])]
    if len(places) == 1:
        group = joined(level.group for level in levels)
        return [Judged(group, group.error("show the same slice", _STACK))]
    shifted = _is_shifted(places)
    parts = lattices(_places(levels), shifted=shifted)
    found: list[Judged] = []
    for part in parts:
        members = [places[k] for k in part]
        if len(members) == 1 and len(parts) > 1:
            found += [_off_lattice(level) for level in members[0]]
        else:
            found += _stack_of(members)
    return [replace(judged, note=SHIFTED) for judged in found] if shifted else found


def _single(level: Level) -> Judged:
    what = "shows a single slice"
    return Judged(level.group, level.group.error(what, _STACK))


def _off_lattice(level: Level) -> Judged:
    what = "lies between or beside the slices of the stack beside it, and is left out"
    return Judged(level.group, level.group.error(what, _CHOOSE))


def _is_shifted(places: Sequence[Sequence[Level]]) -> bool:
    """Whether every other place is of another stack, shifted by half a gap."""
    if len(places) < 4:
        return False
    levels = [level for at in places for level in at]
    along = _places(levels)
    odd = [at[0] for at in places[1::2]]
    even = [at[0] for at in places[::2]]
    gap = float(np.median(np.diff(along)))
    slices = [level.group.images for level in levels]
    if overlapping(slices, gap) or ({a.phases for a in odd}.isdisjoint({b.phases for b in even})):
        return True
    numbers = [_number(level) for level in even], [_number(level) for level in odd]
    if numbered_again(*numbers):
        return True
    if len(places) < _ENOUGH or any(image.thickness is not None for images in slices for image in images):
        return False
    return in_blocks(*numbers)


_ENOUGH = 6
"""Places from which on it is no chance that all series of one half are numbered before those of the other."""


def _number(level: Level) -> float | None:
    return level.group.images[0].series


# --- one stack --------------------------------------------------------------------------------------------------------


def _stack_of(places: Sequence[Sequence[Level]]) -> list[Judged]:
    """The stack of series on one lattice, without those that are odd beside another in the same place."""
    usual = _usual_phases(places)
    odd = _of_other_phases(places, usual)
    kept = [[level for level in at if level not in odd] for at in places]
    aside = _sideways(kept)
    kept = [[level for level in at if level not in aside] for at in kept]
    group = joined(level.group for at in kept for level in at)
    phases: dict[int, list[int]] = defaultdict(list)
    for level in (level for at in kept for level in at):
        phases[level.phases] += level.group.series
    error = None
    if len(phases) > 1:
        counts = "; ".join(f"{count} in series {listed(sorted(these))}" for count, these in sorted(phases.items()))
        what = f"have different numbers of phases: {counts}"
        error = group.error(what, "Export them completely, or choose the series of the stack with --series")
    return [
        Judged(group, error),
        *_of_odd_phases(odd, len(places)),
        *(_left_out(level, "lies shifted sideways from the series in the same place") for level in aside),
    ]


def _of_odd_phases(levels: Sequence[Level], places: int) -> list[Judged]:
    """Series beside others in the same places: a stack of their own where they fill most places, else left out."""
    found: list[Judged] = []
    for alike in classes_of(levels, lambda a, b: a.phases == b.phases):
        if 2 * len(_places(alike)) > max(places, 4):
            found += _stack_of(_at_places(alike))
        else:
            what = "has another number of phases than the series in the same place"
            found += [_left_out(level, what) for level in alike]
    return found


def _left_out(level: Level, what: str) -> Judged:
    return Judged(level.group, level.group.error(f"{what}, and is left out", _CHOOSE))


def _usual_phases(places: Sequence[Sequence[Level]]) -> int:
    counts = Counter(phases for at in places for phases in {level.phases for level in at})
    return min(counts, key=lambda count: (-counts[count], count))


def _of_other_phases(places: Sequence[Sequence[Level]], usual: int) -> list[Level]:
    return [
        level for at in places if any(other.phases == usual for other in at) for level in at if level.phases != usual
    ]


def _sideways(places: Sequence[Sequence[Level]]) -> list[Level]:
    """Series off the line through the slices that one series alone shows, where another series lies on it."""
    sure = [(k, at[0]) for k, at in enumerate(places) if len(at) == 1]
    if len(sure) < 2 or len(sure) == len(places):
        return []
    first = sure[0][1].group.images[0]
    directions = directions_of(first)
    steps = np.array([k for k, _ in sure], dtype=np.float64)
    offsets = np.array([directions @ position_of(level.group.images[0]) for _, level in sure])
    slope, start = np.polyfit(steps, offsets, 1)
    limit = SIDEWAYS * min(spacing_of(first))
    odd: list[Level] = []
    for k, at in enumerate(places):
        off = [
            level
            for level in at
            if np.abs(directions @ position_of(level.group.images[0]) - start - k * slope).max() > limit
        ]
        odd += off if 0 < len(off) < len(at) else []
    return odd
