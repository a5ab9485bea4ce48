"""Cardiac function from label maps: volumes, ejection fractions and mass, each with an interval from the ensemble.

Labels have the numbers of :mod:`~cgdpm_med.heart.structures`. Papillary muscles count as the left ventricle's cavity.
Possible values are those of a heart that pumps: it ejects no less than nothing and no more than it held.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgdpm_med.files import InputError, atomic_write
from cgdpm_med.heart.structures import LV, MYO, RV
from cgdpm_med.metrics.volumetry import Estimate, FrameVolumes, interval_estimate
from cgdpm_med.studies.measures import Measure, Measurements
from cgdpm_med.tables.csv_files import csv_text

MYOCARDIAL_DENSITY = 1.05
"""g/ml."""


MEASURES: Mapping[str, Measure] = {
    "lv_edv": Measure("LV end-diastolic volume", "ml", figure="LV end-diastolic", column="LV EDV"),
    "lv_esv": Measure("LV end-systolic volume", "ml", figure="LV end-systolic", column="LV ESV"),
    "lv_sv": Measure("LV stroke volume", "ml"),
    "lv_ef": Measure("LV ejection fraction", "%", ceiling=100.0, indexed=False, figure="LV EF", column="LV EF"),
    "rv_edv": Measure("RV end-diastolic volume", "ml"),
    "rv_esv": Measure("RV end-systolic volume", "ml"),
    "rv_sv": Measure("RV stroke volume", "ml"),
    "rv_ef": Measure("RV ejection fraction", "%", ceiling=100.0, indexed=False, figure="RV EF", column="RV EF"),
    "myo_mass": Measure("Myocardial mass", "g", column="Mass"),
}
"""Every measure by its name, in the order of tables."""


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

    return VolumeCurve(numbers, lv=curve(LV), rv=curve(RV))


# --- function ---------------------------------------------------------------------------------------------------------


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
) -> Measurements:
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
    return Measurements(
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
    for name, label in (("lv", LV), ("rv", RV)):
        edv, esv = ed[..., label], es[..., label]
        stroke = edv - esv
        with np.errstate(divide="ignore", invalid="ignore"):
            fraction = np.where(edv > 0, 100 * stroke / edv, np.nan)
        result |= {f"{name}_edv": edv, f"{name}_esv": esv, f"{name}_sv": stroke, f"{name}_ef": fraction}
    return result | {"myo_mass": MYOCARDIAL_DENSITY * ed[..., MYO]}


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
    functions: Mapping[str, Measurements | None], extra: Mapping[str, Mapping[str, str]] | None = None
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
    functions: Mapping[str, Measurements | None],
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


def _known(function: Measurements) -> list[Any]:
    calibrated = "yes" if function.calibrated else "no"
    return [function.members, str(function.level), calibrated, function.body_surface]


def _fields(function: Measurements | None) -> list[float | None]:
    if function is None:
        return [None] * len(_columns())
    fields: list[float | None] = []
    indexed = function.indexed(MEASURES)
    for name, measure in MEASURES.items():
        estimate = function.measures[name]
        fields += [estimate.value, estimate.lower, estimate.upper]
        fields += [indexed[name].value if name in indexed else None] if measure.indexed else []
    return fields
