"""Whether a mask can be a heart: volumes, mass, widths, walls, and which way it tapers along the slices.

A mask of any size passes the checks of its shape in :mod:`cgdpm_med.inference.quality`, and its ejection fraction too,
whatever the header says of the voxels. Labels have the numbers of :mod:`~cgdpm_med.heart.structures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cgdpm_med.heart.function import MEASURES, MYOCARDIAL_DENSITY
from cgdpm_med.heart.limits import HeartLimits
from cgdpm_med.heart.stack_checks import outside
from cgdpm_med.heart.structures import LV, MYO, RV
from cgdpm_med.inference.quality import Finding
from cgdpm_med.metrics.volumetry import FrameVolumes
from cgdpm_med.studies.measures import Measurements

_REMEDY = "check the voxel size in the header, and the contours"


def assess_heart(
    mask: NDArray[Any],
    spacing: Sequence[float],
    *,
    frame: str = "",
    limits: HeartLimits | None = None,
) -> tuple[Finding, ...]:
    """Sizes and a shape that no heart has, each with its number.

    Structures that are absent are left to :func:`~cgdpm_med.inference.quality.assess_frame`.

    Args:
        mask: (X, Y, Z) labels in the short-axis view, slices last, from the base.
        spacing: of its voxels along the same axes, in mm.
        frame: "ED" or "ES", whose limits then hold; of any other frame the phase is not known, and the wider hold.
    """
    limits = limits or HeartLimits()
    where = f"{frame}: " if frame else ""
    sizes = heart_sizes(mask, spacing)
    found = [
        *_volume_findings(sizes, frame, limits),
        *_ventricle_findings(sizes, limits),
        *_wall_findings(sizes, max(spacing[:2]), limits),
        *_taper_findings(sizes, limits),
    ]
    return tuple(Finding(finding.check, where + finding.reason, finding.review) for finding in found)


def compare_phases(ed: FrameVolumes, es: FrameVolumes, limits: HeartLimits | None = None) -> tuple[Finding, ...]:
    """What the volumes at end-diastole and end-systole say of each other, in ml of the combined masks."""
    limits = limits or HeartLimits()
    return (
        *_larger_at_es(ed.combined, es.combined),
        *_ventricles_apart(ed.combined, limits),
        *_muscle_changes(ed.combined, es.combined, limits),
        *_strokes_apart(ed.combined, es.combined, limits),
    )


# --- measurements -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeartSizes:
    """What is measured of a mask; None where the structure is absent, or its slices too few to say.

    Attributes:
        lv, rv: volumes, ml.
        mass: of the myocardium, g.
        width: diameter of the circle as large as the left ventricle's largest slice, mm.
        length: slices with the left ventricle times their distance, mm.
        wall, thickest: mean and largest thickness over the slices with the left ventricle, mm.
        ends: the smaller of the left ventricle's first and last slice by its largest; of three slices or more.
        lean: see :func:`lean_to_apex`; of three slices or more.
    """

    lv: float | None
    rv: float | None
    mass: float | None
    width: float | None = None
    length: float | None = None
    wall: float | None = None
    thickest: float | None = None
    ends: float | None = None
    lean: float | None = None


def heart_sizes(mask: NDArray[Any], spacing: Sequence[float]) -> HeartSizes:
    """Measure a mask (X, Y, Z) of voxels of ``spacing`` mm, slices last, from the base."""
    areas = slice_areas(mask, spacing)
    rv, myo, lv = (float(total) * spacing[2] / 1000 or None for total in areas[1:].sum(axis=1))
    heart, cavity = areas[1:].sum(axis=0), areas[LV][areas[LV] > 0]
    walls = wall_thickness(areas[LV], areas[MYO])
    return HeartSizes(
        lv=lv,
        rv=rv,
        mass=None if myo is None else MYOCARDIAL_DENSITY * myo,
        width=2 * float(np.sqrt(cavity.max() / np.pi)) if lv else None,
        length=cavity.size * float(spacing[2]) if lv else None,
        wall=float(walls.mean()) if lv and myo else None,
        thickest=float(walls.max()) if lv and myo else None,
        ends=float(min(cavity[0], cavity[-1]) / cavity.max()) if cavity.size > 2 else None,
        lean=lean_to_apex(heart) if np.count_nonzero(heart) > 2 else None,
    )


def slice_areas(mask: NDArray[Any], spacing: Sequence[float]) -> NDArray[np.float64]:
    """(4, Z): mm^2 of each label in each slice of a mask (X, Y, Z)."""
    counts = [np.count_nonzero(mask == label, axis=(0, 1)) for label in range(4)]
    return np.array(counts, dtype=np.float64) * spacing[0] * spacing[1]


def wall_thickness(cavity: ArrayLike, myocardium: ArrayLike) -> NDArray[np.float64]:
    """Mean thickness of the wall in each slice that holds the cavity, in mm.

    Args:
        cavity, myocardium: areas of the slices, in mm^2.

    Returns:
        The radius of the circle as large as both, less that of the circle as large as the cavity.
    """
    inner, wall = np.asarray(cavity, dtype=np.float64), np.asarray(myocardium, dtype=np.float64)
    there = inner > 0
    return np.sqrt((inner + wall)[there] / np.pi) - np.sqrt(inner[there] / np.pi)


def lean_to_apex(areas: ArrayLike) -> float:
    """How far the heart's centre lies beyond the middle of its slices, as a fraction of their number, in [-0.5, 0.5].

    A heart tapers: from the base on, its centre lies before the middle, and the value is negative. In all 200 reference
    masks of ACDC it lies between -.23 and -.016.

    Args:
        areas: of the heart in each slice, from the base; not all of them zero.
    """
    area = np.asarray(areas, dtype=np.float64)
    there = np.flatnonzero(area)
    centre = float((area * np.arange(area.size)).sum() / area.sum())
    return (centre - float(there[0] + there[-1]) / 2) / (int(there[-1]) - int(there[0]) + 1)


def open_cavity_fraction(labels: ArrayLike) -> float:
    """Fraction of the left ventricle's in-plane border faces that do not look at myocardium, in [0, 1].

    The border consists of the voxel faces along the first two axes between the left ventricle and anything else; the
    edge of the image counts as anything else. An empty cavity gives 0.
    """
    padded = np.pad(np.asarray(labels), ((1, 1), (1, 1), (0, 0)))
    border = uncovered = 0
    for axis in (0, 1):
        here, there = (padded.take(range(a, padded.shape[axis] + a - 1), axis) for a in (0, 1))
        for inner, outer in ((here, there), (there, here)):
            outside = outer[(inner == LV) & (outer != LV)]
            border += outside.size
            uncovered += int(np.count_nonzero(outside != MYO))
    return uncovered / border if border else 0.0


# --- checks of a frame ------------------------------------------------------------------------------------------------


def assess_borders(mask: NDArray[Any], *, frame: str = "", limits: HeartLimits | None = None) -> tuple[Finding, ...]:
    """Whether the left ventricle of a mask (X, Y, Z) lies inside the myocardium."""
    limits = limits or HeartLimits()
    uncovered = open_cavity_fraction(mask)
    if uncovered <= limits.open_cavity:
        return ()
    where = f"{frame}: " if frame else ""
    reason = f"{where}{100 * uncovered:.1f} % of the LV border is not covered by myocardium"
    return (Finding("LV outside myocardium", reason),)


def _volume_findings(sizes: HeartSizes, frame: str, limits: HeartLimits) -> list[Finding]:
    lv, rv = _volume_limits(frame, limits)
    judged = (
        ("ventricular volume", "the LV holds", sizes.lv, "ml", lv),
        ("ventricular volume", "the RV holds", sizes.rv, "ml", rv),
        ("myocardial mass", "the myocardium weighs", sizes.mass, "g", limits.mass),
    )
    return [
        Finding(check, f"{what} {value:.1f} {unit}, outside {low:g} to {high:g} {unit}: {_REMEDY}")
        for check, what, value, unit, (low, high) in judged
        if value is not None and outside(value, (low, high))
    ]


def _volume_limits(frame: str, limits: HeartLimits) -> tuple[tuple[float, float], tuple[float, float]]:
    if frame == "ED":
        return limits.lv_edv, limits.rv_edv
    if frame == "ES":
        return limits.lv_esv, limits.rv_esv
    return (limits.lv_esv[0], limits.lv_edv[1]), (limits.rv_esv[0], limits.rv_edv[1])


def _ventricle_findings(sizes: HeartSizes, limits: HeartLimits) -> list[Finding]:
    if sizes.width is None or sizes.length is None:
        return []
    width, length, ratio = sizes.width, sizes.length, sizes.length / sizes.width
    shape = f"is {ratio:.2f} times as long ({length:.0f} mm) as wide ({width:.0f} mm)"
    judged = (
        ("LV width", f"is {width:.1f} mm wide", width, limits.lv_width, " mm"),
        ("LV length", f"spans {length:.1f} mm along the slices", length, limits.lv_length, " mm"),
        ("LV shape", shape, ratio, limits.lv_shape, ""),
    )
    return [
        Finding(check, f"the LV {what}, outside {low:g} to {high:g}{unit}: {_REMEDY}")
        for check, what, value, (low, high), unit in judged
        if outside(value, (low, high))
    ]


def _wall_findings(sizes: HeartSizes, pixel: float, limits: HeartLimits) -> list[Finding]:
    if sizes.wall is None or sizes.thickest is None:
        return []
    low, high = limits.wall
    if outside(sizes.wall, limits.wall):
        reason = f"the LV wall is {sizes.wall:.1f} mm thick on average, outside {low:g} to {high:g} mm: {_REMEDY}"
        return [Finding("wall thickness", reason)]
    if sizes.thickest < pixel:
        reason = f"the LV wall is at most {sizes.thickest:.2f} mm thick, less than a pixel of {pixel:.3g} mm"
        return [Finding("wall thickness", reason)]
    return []


def _taper_findings(sizes: HeartSizes, limits: HeartLimits) -> list[Finding]:
    findings = []
    if sizes.ends is not None and sizes.ends > limits.ends:
        what = f"the LV's first and last slice are {sizes.ends:.0%} of its largest or more, above {limits.ends:.0%}"
        findings.append(Finding("LV ends", f"{what}: slices are missing, or are the frames of a cine"))
    if sizes.lean is not None and sizes.lean > limits.apex_first:
        where = f"{sizes.lean:.1%} of its length towards the slices taken as apex, though a heart tapers to its apex"
        what = f"the heart's centre lies {where}: the stack may run from apex to base"
        findings.append(Finding("slice direction", f"{what}; if so, segment it with --flip-slices"))
    return findings


# --- checks of both phases --------------------------------------------------------------------------------------------


def _larger_at_es(ed: NDArray[np.float64], es: NDArray[np.float64]) -> list[Finding]:
    return [
        Finding("phases", f"the {name} is larger at ES ({es[label]:.1f} ml) than at ED ({ed[label]:.1f} ml)")
        for name, label in (("LV", LV), ("RV", RV))
        if es[label] > ed[label]
    ]


def _ventricles_apart(ed: NDArray[np.float64], limits: HeartLimits) -> list[Finding]:
    if not (ed[LV] > 0 and ed[RV] > 0):
        return []
    ratio, (low, high) = float(ed[RV] / ed[LV]), limits.rv_to_lv
    what = f"at ED the RV ({ed[RV]:.1f} ml) is {ratio:.2f} times the LV ({ed[LV]:.1f} ml)"
    reason = f"{what}, outside {low:g} to {high:g}"
    return [Finding("RV and LV", reason)] if outside(ratio, limits.rv_to_lv) else []


def _muscle_changes(ed: NDArray[np.float64], es: NDArray[np.float64], limits: HeartLimits) -> list[Finding]:
    if not (ed[MYO] > 0 and es[MYO] > 0):
        return []
    change, (low, high) = float(es[MYO] / ed[MYO]), limits.mass_change
    grams = f"{MYOCARDIAL_DENSITY * es[MYO]:.1f} g at ES and {MYOCARDIAL_DENSITY * ed[MYO]:.1f} g at ED"
    reason = f"the myocardium weighs {grams}, {change:.2f} times as much, outside {low:g} to {high:g}"
    return [Finding("myocardial mass", reason)] if outside(change, limits.mass_change) else []


def _strokes_apart(ed: NDArray[np.float64], es: NDArray[np.float64], limits: HeartLimits) -> list[Finding]:
    rv, lv = (float(ed[label] - es[label]) for label in (RV, LV))
    if not (ed[LV] > 0 and ed[RV] > 0) or abs(rv - lv) <= limits.stroke_difference:
        return []
    strokes = f"the RV ejects {rv:.1f} ml and the LV {lv:.1f} ml"
    reason = f"{strokes}, {abs(rv - lv):.1f} ml apart, more than {limits.stroke_difference:g} ml"
    return [Finding("stroke volumes", reason)]


def assess_function(function: Measurements, limits: HeartLimits | None = None) -> tuple[Finding, ...]:
    """Ejection fractions that are implausible, undefined or too uncertain."""
    limits = limits or HeartLimits()
    low, high = limits.ef
    findings = []
    for name in ("lv_ef", "rv_ef"):
        ef, title = function.measures[name], MEASURES[name].title
        if ef.value is None:
            findings.append(Finding("ejection fraction", f"{title} is undefined: the ventricle is empty at ED"))
            continue
        if not low <= ef.value <= high:
            reason = f"{title} of {ef.value:.1f} % lies outside {low:g} to {high:g} %"
            findings.append(Finding("ejection fraction", reason))
        if ef.width is not None and ef.width > limits.ef_width:
            reason = f"{title} is uncertain: members differ by {ef.width:.1f} points, more than {limits.ef_width:g}"
            findings.append(Finding("uncertain function", reason))
    return tuple(findings)
