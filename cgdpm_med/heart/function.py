"""Cardiac function from label maps: volumes, ejection fractions and mass, each with an interval from the ensemble.

Everything starts from millilitres by label, of the combined mask and of every member (:class:`FrameVolumes`); voxels
are not needed after that, so a cine of any length costs a few numbers a frame. Labels are ACDC's: 1 right ventricle,
2 myocardium, 3 left ventricle, whose papillary muscles count as cavity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cgdpm_med.files import InputError, atomic_write
from cgdpm_med.tables.csv_files import csv_text

MYOCARDIAL_DENSITY = 1.05
"""g/ml."""

_RV, _MYO, _LV = 1, 2, 3


@dataclass(frozen=True)
class Measure:
    """A number of the report: its name, unit, possible range, and whether dividing by body surface makes sense.

    The range is that of a heart that pumps: it ejects no less than nothing and no more than it held.
    """

    title: str
    unit: str
    floor: float = 0.0
    ceiling: float = math.inf
    indexed: bool = True


MEASURES: Mapping[str, Measure] = {
    "lv_edv": Measure("LV end-diastolic volume", "ml"),
    "lv_esv": Measure("LV end-systolic volume", "ml"),
    "lv_sv": Measure("LV stroke volume", "ml"),
    "lv_ef": Measure("LV ejection fraction", "%", ceiling=100.0, indexed=False),
    "rv_edv": Measure("RV end-diastolic volume", "ml"),
    "rv_esv": Measure("RV end-systolic volume", "ml"),
    "rv_sv": Measure("RV stroke volume", "ml"),
    "rv_ef": Measure("RV ejection fraction", "%", ceiling=100.0, indexed=False),
    "myo_mass": Measure("Myocardial mass", "g"),
}
"""Every measure by its name, in the order of tables."""


# --- one frame --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FrameVolumes:
    """Millilitres by label of one frame.

    Attributes:
        combined: (C,), of the combined mask.
        members: (K, C), of each member.
    """

    combined: NDArray[np.float64]
    members: NDArray[np.float64]


def frame_volumes(mask: ArrayLike, members: ArrayLike, voxel_volume: float, num_classes: int = 4) -> FrameVolumes:
    """Count the voxels of each label.

    Args:
        mask: integer labels (*S).
        members: integer labels (K, *S); K may be 0.
        voxel_volume: of one voxel, in mm^3.
        num_classes: C; labels are 0 to C - 1.

    Raises:
        InputError: for members of another shape, labels out of range, or a voxel volume that is not positive.
    """
    combined, each = np.asarray(mask), np.asarray(members)
    if each.shape[1:] != combined.shape:
        raise InputError(
            f"members of shape {each.shape} do not fit a mask of shape {combined.shape}",
            remedy="Give members as (K, X, Y, Z)",
        )
    if not 0 < voxel_volume < math.inf:
        raise InputError(f"a voxel volume of {voxel_volume} mm^3 is impossible", remedy="Correct the voxel size")
    millilitres = voxel_volume / 1000
    return FrameVolumes(
        _counts(combined, num_classes) * millilitres,
        np.array([_counts(m, num_classes) for m in each]).reshape(len(each), num_classes) * millilitres,
    )


def _counts(labels: NDArray[Any], num_classes: int) -> NDArray[np.float64]:
    if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
        raise InputError(
            f"labels run from {labels.min()} to {labels.max()}", remedy=f"Use labels from 0 to {num_classes - 1}"
        )
    return np.bincount(labels.ravel().astype(np.int64), minlength=num_classes).astype(np.float64)


# --- numbers with an interval -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A number of the combined mask and the ends of its interval; None where undefined.

    The value is what was measured, even where it is impossible (an ejection fraction below 0, of a mask that is larger
    at ES than at ED). The ends are possible values, so such a value lies outside its interval.
    """

    value: float | None
    lower: float | None = None
    upper: float | None = None

    @property
    def width(self) -> float | None:
        """Length of the interval."""
        return None if self.lower is None or self.upper is None else self.upper - self.lower

    def divided_by(self, divisor: float) -> Estimate:
        """The same estimate in units of ``divisor``."""
        return Estimate(*(None if x is None else x / divisor for x in (self.value, self.lower, self.upper)))


def interval_estimate(
    value: float,
    members: ArrayLike,
    *,
    level: float = 0.9,
    widening: float = 1.0,
    margin: float = 0.0,
    floor: float = -math.inf,
    ceiling: float = math.inf,
) -> Estimate:
    """A number with the central ``level`` interval of its members.

    The ends are the members' quantiles at (1 - level) / 2 and (1 + level) / 2, linear between order statistics; where
    the value lies outside them, the interval reaches to the value. ``widening`` multiplies the distance of both ends
    from the value, and ``margin`` is added to it: fitted by conformal prediction
    (:mod:`cgdpm_med.evaluation.calibrate`) they make the coverage hold on exchangeable cases,
    1 and 0 leave the ensemble's own spread.

    Both ends are then moved into [``floor``, ``ceiling``], each to the nearest possible value. The value is not: it
    stays as found and may lie outside; the possible value nearest to it lies inside. No possible truth that the
    interval held is lost by this, so coverage is the same.

    Members that are not finite (an ejection fraction where nothing was found) are left out; with fewer than two
    others there is no interval, and a value that is not finite gives no estimate.

    Raises:
        ValueError: for a level outside (0, 1), or a negative factor or margin.
    """
    if not 0 < level < 1 or not 0 <= widening < math.inf:
        raise ValueError(f"level must lie in (0, 1) and widening be at least 0, not {level} and {widening}")
    if not 0 <= margin < math.inf:
        raise ValueError(f"a margin must be at least 0, not {margin}")
    if not math.isfinite(value):
        return Estimate(None)
    finite = np.asarray(members, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if finite.size < 2:
        return Estimate(float(value))
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    lower = value - widening * max(value - float(low), 0.0) - margin
    upper = value + widening * max(float(high) - value, 0.0) + margin
    return Estimate(float(value), min(max(lower, floor), ceiling), max(min(upper, ceiling), floor))


# --- end-diastole and end-systole -------------------------------------------------------------------------------------


def find_ed_es(lv_ml: Sequence[float], *, ed: int | None = None, es: int | None = None) -> tuple[int, int]:
    """Indices of end-diastole and end-systole: those given, else the largest and the smallest left ventricle.

    The first of equal frames is taken.

    Args:
        lv_ml: left-ventricular volume of each frame.
        ed, es: known indices into it.

    Raises:
        InputError: for an index outside the series, or where the two are the same frame.
    """
    for name, index in (("ED", ed), ("ES", es)):
        if index is not None and not 0 <= index < len(lv_ml):
            raise InputError(
                f"{name} is frame {index + 1} of {len(lv_ml)}", remedy=f"Choose a frame from 1 to {len(lv_ml)}"
            )
    if not len(lv_ml):
        raise InputError("there are no frames to choose ED and ES from", remedy="Give one volume for each frame")
    ed = int(np.argmax(lv_ml)) if ed is None else ed
    es = int(np.argmin(lv_ml)) if es is None else es
    if ed == es:
        raise InputError(
            f"ED and ES are the same frame, {ed + 1} of {len(lv_ml)}",
            remedy="Give two different frames, or frames whose volumes differ",
        )
    return ed, es


@dataclass(frozen=True)
class VolumeCurve:
    """Ventricular volumes in ml against the frame number."""

    frames: tuple[int, ...]
    lv: tuple[Estimate, ...]
    rv: tuple[Estimate, ...]


def volume_curve(frames: Mapping[int, FrameVolumes], *, level: float = 0.9, widening: float = 1.0) -> VolumeCurve:
    """Volumes of both ventricles over the frames of a cine, in the order of their numbers."""
    numbers = tuple(sorted(frames))

    def curve(label: int) -> tuple[Estimate, ...]:
        return tuple(
            interval_estimate(
                frames[n].combined[label], frames[n].members[:, label], level=level, widening=widening, floor=0.0
            )
            for n in numbers
        )

    return VolumeCurve(numbers, lv=curve(_LV), rv=curve(_RV))


# --- function ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CardiacFunction:
    """The measures of one study.

    Attributes:
        measures: an estimate for every name of :data:`MEASURES`.
        members: how many members the intervals come from.
        level: nominal coverage of the intervals.
        widening, margin: the factor of each measure's interval, and what was added at each end, in its unit.
        body_surface: in m^2, or None.
    """

    measures: Mapping[str, Estimate]
    members: int
    level: float
    widening: Mapping[str, float]
    body_surface: float | None = None
    margin: Mapping[str, float] = field(default_factory=dict)

    @property
    def calibrated(self) -> bool:
        """Whether any interval is more than the members' own spread."""
        return any(factor != 1 for factor in self.widening.values()) or any(self.margin.values())

    def indexed(self) -> dict[str, Estimate]:
        """Volumes and mass per m^2 of body surface; empty where that is unknown."""
        if self.body_surface is None:
            return {}
        names = (name for name, measure in MEASURES.items() if measure.indexed)
        return {name: self.measures[name].divided_by(self.body_surface) for name in names}


def cardiac_function(
    ed: FrameVolumes,
    es: FrameVolumes,
    *,
    height: float | None = None,
    weight: float | None = None,
    level: float = 0.9,
    widening: float | Mapping[str, float] = 1.0,
    margin: Mapping[str, float] | None = None,
    possible: bool = True,
) -> CardiacFunction:
    """Function from the volumes at end-diastole and end-systole.

    Each member is a heart of its own: member k at ED goes with member k at ES, every measure is computed from that
    pair, and the interval is that of the K results (:func:`interval_estimate`). The two frames of a member are drawn
    independently, so doubts that both frames share are not in the interval unless ``widening`` puts them there.

    Args:
        height, weight: in cm and kg; both are needed for indexing.
        level: nominal coverage of the intervals.
        widening: one factor, or one by the name of a measure (1 where not named).
        margin: added at each end, by the name of a measure (0 where not named).
        possible: keep the ends of intervals within the range of their measure, for readers. Without, they show the
            members' whole spread, for what judges it or fits a calibration to it.

    Raises:
        InputError: for unequal numbers of members, or a height or weight that is not positive.
    """
    if ed.members.shape != es.members.shape:
        raise InputError(
            f"ED has {len(ed.members)} members and ES {len(es.members)}", remedy="Segment both with equal settings"
        )
    values, members = _measures(ed.combined, es.combined), _measures(ed.members, es.members)
    given = widening if isinstance(widening, Mapping) else dict.fromkeys(MEASURES, widening)
    margin = margin or {}
    if unknown := {*given, *margin} - set(MEASURES):
        raise InputError(f"there is no measure {min(unknown)!r}", remedy=f"Choose among {', '.join(MEASURES)}")
    factors = {name: given.get(name, 1.0) for name in MEASURES}
    margins = {name: margin.get(name, 0.0) for name in MEASURES}
    return CardiacFunction(
        measures={
            name: interval_estimate(
                float(values[name]),
                members[name],
                level=level,
                widening=factors[name],
                margin=margins[name],
                floor=measure.floor if possible else -math.inf,
                ceiling=measure.ceiling if possible else math.inf,
            )
            for name, measure in MEASURES.items()
        },
        members=len(ed.members),
        level=level,
        widening=factors,
        margin=margins,
        body_surface=None if height is None or weight is None else body_surface_area(height, weight),
    )


def _measures(ed: NDArray[np.float64], es: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Every measure from millilitres by label, (…, C) -> (…); NaN for an ejection fraction of an absent ventricle."""
    result: dict[str, NDArray[np.float64]] = {}
    for name, label in (("lv", _LV), ("rv", _RV)):
        edv, esv = ed[..., label], es[..., label]
        stroke = edv - esv
        with np.errstate(divide="ignore", invalid="ignore"):
            fraction = np.where(edv > 0, 100 * stroke / edv, np.nan)
        result |= {f"{name}_edv": edv, f"{name}_esv": esv, f"{name}_sv": stroke, f"{name}_ef": fraction}
    return result | {"myo_mass": MYOCARDIAL_DENSITY * ed[..., _MYO]}


def body_surface_area(height: float, weight: float) -> float:
    """Body surface in m^2, sqrt(height weight / 3600) with cm and kg.

    R. D. Mosteller, "Simplified calculation of body-surface area", N Engl J Med 317:1098, 1987.

    Raises:
        InputError: for a height or weight that is not positive and finite.
    """
    for name, value, unit in (("height", height, "cm"), ("weight", weight, "kg")):
        if not 0 < value < math.inf:
            raise InputError(f"a {name} of {value} {unit} is impossible", remedy=f"Give the {name} in {unit}")
    return math.sqrt(height * weight / 3600)


# --- tables -----------------------------------------------------------------------------------------------------------


def cohort_csv(
    functions: Mapping[str, CardiacFunction | None], extra: Mapping[str, Mapping[str, str]] | None = None
) -> str:
    """A table with a row per study: each measure, its interval (``…_lower``, ``…_upper``) and its indexed value.

    Columns carry their unit, as in ``lv_edv_ml`` and ``lv_edv_ml_per_m2``; what is unknown is an empty field.

    Args:
        functions: by study; None leaves the numbers empty.
        extra: further columns of some studies.
    """
    extra = extra or {}
    further = list(dict.fromkeys(column for row in extra.values() for column in row))
    columns = ["case", "members", "level", "calibrated", "body_surface_m2", *_columns(), *further]
    rows = []
    for key, function in functions.items():
        known = [""] * 4 if function is None else _known(function)
        more = [extra.get(key, {}).get(column) for column in further]
        rows.append([key, *known, *_fields(function), *more])
    return csv_text(columns, rows, number_format=".3f")


def write_cohort_csv(
    path: str | Path,
    functions: Mapping[str, CardiacFunction | None],
    extra: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Write :func:`cohort_csv` to ``path``, whole or not at all."""
    with atomic_write(path) as file:
        file.write(cohort_csv(functions, extra).encode())


def _columns() -> list[str]:
    columns = []
    for name, measure in MEASURES.items():
        column = f"{name}_{'percent' if measure.unit == '%' else measure.unit}"
        columns += [column, f"{column}_lower", f"{column}_upper"]
        columns += [f"{column}_per_m2"] if measure.indexed else []
    return columns


def _known(function: CardiacFunction) -> list[Any]:
    calibrated = "yes" if function.calibrated else "no"
    return [function.members, str(function.level), calibrated, function.body_surface]


def _fields(function: CardiacFunction | None) -> list[float | None]:
    if function is None:
        return [None] * len(_columns())
    fields: list[float | None] = []
    indexed = function.indexed()
    for name, measure in MEASURES.items():
        estimate = function.measures[name]
        fields += [estimate.value, estimate.lower, estimate.upper]
        fields += [indexed[name].value if name in indexed else None] if measure.indexed else []
    return fields
