"""The order of phases: which of the clocks in the headers can be believed.

A header holds several clocks, and any of them may be meaningless: left at zero, made anew by de-identification, or
counting something else. A clock is believed where all slices agree on it: every image has it, no slice holds a value
twice, and the phases of all slices are spaced alike, begin alike and last about as long, as those of one cine do when
each slice is acquired in a breath-hold of its own. Heart rates differ between breath-holds, so durations may. Clocks
that are believed are then compared with each other, since values may be right as a set and yet shuffled among the
images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgdpm_med.files import listed
from cgdpm_med.volumes.dicom.groups import Slices


@dataclass(frozen=True)
class _Tolerance:
    """How far slices may differ that agree.

    Attributes:
        start: when they begin, in phases.
        duration: how many times longer than the median one slice's phases may last.
        shape: when a phase comes, in phases, once all begin at 0 and last equally long.
    """

    start: float
    duration: float
    shape: float


_MANY = _Tolerance(start=1.0, duration=1.6, shape=0.5)
_FEW = _Tolerance(start=0.4, duration=1.25, shape=0.2)
"""For few slices and phases, where random values would often agree by chance."""

_ENOUGH = 12
"""Differences between slices and phases, from which on chance is out of the question."""

_DAY = 86400.0


@dataclass(frozen=True)
class Clock:
    """One attribute that may order the phases.

    Attributes:
        name: in messages.
        keyword: of the attribute, a key of :attr:`DicomImage.times`.
        source: what it comes from; clocks of one source are one witness.
        relative: whether it begins anew in each heart beat, so that slices must begin alike.
        count: whether it counts images, in even steps, instead of telling a time.
    """

    name: str
    keyword: str
    source: str
    relative: bool = False
    count: bool = False


CLOCKS = (
    Clock("trigger time", "TriggerTime", "trigger", relative=True),
    Clock("temporal position", "TemporalPositionIdentifier", "position", relative=True),
    Clock("trigger delay", "NominalCardiacTriggerDelayTime", "trigger", relative=True),
    Clock("acquisition time", "AcquisitionTime", "time of day"),
    Clock("content time", "ContentTime", "time of day"),
    Clock("instance number", "InstanceNumber", "number", count=True),
)
"""In the order in which they are believed."""


@dataclass(frozen=True)
class PhaseOrder:
    """The phases of a stack in their order.

    Attributes:
        slices: the images of each slice, in the order of time.
        clock: the name of what orders them.
        seconds: from one phase to the next; 0 where no clock tells it.
        notes: what contradicts that order, or is odd about it.
    """

    slices: Slices
    clock: str
    seconds: float
    notes: tuple[str, ...] = ()


class NoOrder(Exception):
    """No clock orders the phases; the text says which were read, and why none is believed."""


def phases_in_order(slices: Slices) -> PhaseOrder:
    """The images of each slice, two or more and equally many, in the order of time.

    Raises:
        NoOrder: no clock is believed, or those that are contradict each other.
    """
    readings = {clock: _readings(clock, slices) for clock in CLOCKS}
    doubts = {clock: doubt(clock, values) for clock, values in readings.items()}
    believed = [clock for clock in CLOCKS if doubts[clock] is None]
    if not believed:
        reasons = listed(f"{clock.name} ({reason})" for clock, reason in doubts.items())
        raise NoOrder(f"holds phases in no order on which its slices agree: {reasons}")
    orders = {clock: np.argsort(_known(readings[clock]), axis=1) for clock in believed}
    chosen, notes = _choose(orders)
    ordered = [[row[i] for i in order] for row, order in zip(slices, orders[chosen], strict=True)]
    seconds, remark = _seconds_between([clock for clock in believed if _alike(orders[chosen], orders[clock])], readings)
    return PhaseOrder(ordered, chosen.name, seconds, (*notes, *remark))


def _readings(clock: Clock, slices: Slices) -> list[list[float | None]]:
    rows = [[image.times.get(clock.keyword) for image in of_slice] for of_slice in slices]
    return [_past_midnight(row) for row in rows] if clock.source == "time of day" else rows


def _past_midnight(row: list[float | None]) -> list[float | None]:
    known = [value for value in row if value is not None]
    if not known or max(known) - min(known) < _DAY / 2:
        return row
    return [value + _DAY if value is not None and value < _DAY / 2 else value for value in row]


def _known(readings: Sequence[Sequence[float | None]]) -> NDArray[np.float64]:
    return np.array(readings, dtype=np.float64)


# --- whether the slices agree on one clock ----------------------------------------------------------------------------


def doubt(clock: Clock, readings: Sequence[Sequence[float | None]]) -> str | None:
    """Why a clock is not believed, or None where it is.

    Args:
        clock: which one.
        readings: [slice][image], equally many for each slice and at least two; None where the image does not say.
    """
    missing = [k for k, row in enumerate(readings, start=1) if None in row]
    if missing:
        everywhere = all(value is None for row in readings for value in row)
        return "absent" if everywhere else f"absent from images of slice {listed(missing)}"
    values = np.sort(_known(readings), axis=1)
    steps = np.diff(values, axis=1)
    if (steps <= 0).any():
        if (values == values[0, 0]).all():
            return "the same everywhere"
        return f"the same for several images of slice {_numbers(np.any(steps <= 0, axis=1))}"
    return _doubt_of_counts(values) if clock.count else _doubt_of_times(values, steps, clock.relative)


def _doubt_of_counts(values: NDArray[np.float64]) -> str | None:
    """A regular lattice: the same step everywhere, from slice to slice or from phase to phase, in any order."""
    steps = np.diff(values, axis=1)
    usual = float(np.median(steps))
    if (steps != usual).any():
        return f"in no regular steps in slice {_numbers(np.any(steps != usual, axis=1))}"
    starts = np.unique(values[:, 0])
    few = values.shape[1] == 2  # any two numbers make a regular step
    if few and len(starts) > 1 and len(np.unique(np.diff(starts))) > 1:
        return "in no regular steps from slice to slice"
    return None


def _doubt_of_times(values: NDArray[np.float64], steps: NDArray[np.float64], relative: bool) -> str | None:
    limit = _MANY if (len(values) - 1) * steps.shape[1] >= _ENOUGH else _FEW
    duration = values[:, -1] - values[:, 0]
    ratio = duration / np.median(duration)
    odd = (ratio > limit.duration) | (ratio < 1 / limit.duration)
    if odd.any():
        return f"{float(ratio[odd][0]):.3g} times as long in slice {_numbers(odd)} as in others"
    step = float(np.median(steps))
    late = values[:, 0] - np.median(values[:, 0])
    if relative and np.ptp(values[:, 0]) > limit.start * step and not _one_after_the_other(values):
        odd = np.abs(late) >= np.abs(late).max()
        return f"begins otherwise in slice {_numbers(odd)} than in others, by {float(late[odd][0]):.4g}"
    place = (values - values[:, :1]) / duration[:, None] * steps.shape[1]
    apart = np.abs(place - np.median(place, axis=0)).max(axis=1)
    if np.ptp(place, axis=0).max() > limit.shape:
        return f"spaced otherwise in slice {_numbers(apart >= apart.max())} than in others"
    return None


def _one_after_the_other(values: NDArray[np.float64]) -> bool:
    """Whether each slice has a stretch of time of its own, so that it counts from the beginning of the scan."""
    order = np.argsort(values[:, 0])
    return bool((values[order[:-1], -1] < values[order[1:], 0]).all())


def _numbers(odd: Any) -> str:
    return listed(int(k) + 1 for k in np.flatnonzero(odd))


# --- whether the clocks agree with each other -------------------------------------------------------------------------

Orders = dict[Clock, NDArray[np.intp]]
"""For each clock (slices, phases): the index of the image that comes first, second, … in each slice."""


def _choose(orders: Orders) -> tuple[Clock, list[str]]:
    """The clock that is followed, and notes on those that contradict it."""
    clocks = list(orders)
    first = clocks[0]
    against = [clock for clock in clocks if not _alike(orders[first], orders[clock])]
    if not against:
        return first, _otherwise_throughout(first, orders)
    if all(_turned(orders[first], orders[clock]) for clock in against):
        return first, [_contradiction(first, against)]
    families = [[other for other in clocks if _alike(orders[clock], orders[other])] for clock in clocks]
    witnesses = [len({clock.source for clock in family}) for family in families]
    best = families[int(np.argmax(witnesses))]
    rivals = [family for family, count in zip(families, witnesses, strict=True) if count == max(witnesses)]
    if any(not _alike(orders[best[0]], orders[family[0]]) for family in rivals):
        if not all(_nearly_alike(orders[first], orders[clock]) for clock in against):
            names = listed(dict.fromkeys(family[0].name for family in rivals))
            raise NoOrder(f"holds phases whose clocks contradict each other from slice to slice: {names}")
        best = families[0]
    return best[0], [_contradiction(best[0], [clock for clock in clocks if clock not in best])]


def _otherwise_throughout(followed: Clock, orders: Orders) -> list[str]:
    """A note where times that align the slices alike put their phases in another order, not only begin elsewhere."""
    start = np.arange(orders[followed].shape[1])
    others = []
    for clock, order in orders.items():
        ranks = _relations(orders[followed], order)[0]
        if not clock.count and ((ranks - ranks[0]) % len(ranks) != start).any():
            others.append(clock.name)
    if not others:
        return []
    return [f"phases follow {followed.name}; {listed(others)} would order those of all slices otherwise"]


def _contradiction(followed: Clock, against: Iterable[Clock]) -> str:
    return f"phases follow {followed.name}; {listed(clock.name for clock in against)} would order some slices otherwise"


def _relations(a: NDArray[np.intp], b: NDArray[np.intp]) -> NDArray[np.intp]:
    """(slices, phases): in the order of clock ``a``, the rank by clock ``b``."""
    return np.take_along_axis(np.argsort(b, axis=1), a, axis=1)


def _alike(a: NDArray[np.intp], b: NDArray[np.intp]) -> bool:
    """Whether two clocks stand in the same relation in all slices, so that both align their phases alike."""
    relations = _relations(a, b)
    return bool((relations == relations[0]).all())


def _turned(a: NDArray[np.intp], b: NDArray[np.intp]) -> bool:
    """Whether two clocks differ by where the heart beat begins alone; three phases are too few to tell."""
    relations = _relations(a, b)
    phases = relations.shape[1]
    shifts = (relations - relations[0]) % phases
    return phases > 3 and bool((shifts == shifts[:, :1]).all())


def _reversed(a: NDArray[np.intp], b: NDArray[np.intp]) -> bool:
    """Whether some slices run the other way, and nothing else differs."""
    relations = _relations(a, b)
    same = (relations == relations[0]).all(axis=1)
    return relations.shape[1] > 3 and bool((same | (relations == relations[0, ::-1]).all(axis=1)).all())


def _nearly_alike(a: NDArray[np.intp], b: NDArray[np.intp]) -> bool:
    return _turned(a, b) or _reversed(a, b)


def _seconds_between(
    clocks: Sequence[Clock], readings: dict[Clock, list[list[float | None]]]
) -> tuple[float, tuple[str, ...]]:
    """Seconds from one phase to the next by the first clock that counts milliseconds from the trigger."""
    for clock in clocks:
        if clock.source == "trigger":
            step = float(np.median(np.diff(np.sort(_known(readings[clock]), axis=1), axis=1)))
            if step < 1:  # no scanner takes a thousand phases a second
                return step, (f"{clock.name} is taken as seconds, since its steps are of {step:.3g}",)
            return step / 1000, ()
    return 0.0, ()
