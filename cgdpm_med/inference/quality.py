"""Which segmentations a person should look at: checks that need no reference, each with its reason in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cgdpm_med.files import InputError
from cgdpm_med.inference.components import largest_component
from cgdpm_med.inference.labels import ACDC, Labels
from cgdpm_med.metrics.masks import error_uncertainty_auroc, pairwise_dice

_MYO, _LV = 2, 3


@dataclass(frozen=True)
class QualityLimits:
    """Beyond which values a case goes to review.

    The anatomical limits leave a margin around what ``scripts/reference_statistics.py`` finds in the 140 reference
    masks of the 70 training patients of the committed ACDC split ("references" below). What goes with volume may be
    half the smallest and one and a half times the largest of them, what goes with length .7 and 1.4 times, in round
    numbers: that admits children from about 10 kg on and dilated ventricles of 550 ml, and no newborn. The two limits
    on the ensemble's own doubt depend on the network and are defaults to be fitted on validation patients.

    Attributes:
        predicted_dice: least predicted Dice of a structure. Default, to be fitted.
        ef_width: longest interval of an ejection fraction's members, in percentage points, before any calibration.
            Default, to be fitted.
        fragments: largest fraction of a structure outside its largest piece. References: at most .039.
        open_cavity: largest fraction of the left ventricle's in-plane border that no myocardium covers. References:
            at most .0038.
        ef: plausible ejection fractions in percent. References: LV 10.5 to 72.9, RV 1.9 (the next 7) to 72.6.
        header_notes: whether a header that contradicts itself is enough for a review. Every ACDC file has one, settled
            by the rule of :func:`~cgdpm_med.read_volume`, so it is only noted unless asked for.
        slices: fewest slices that hold a heart. References: 6; fewer than 4 sample no volume.
        pixel: size of a voxel in plane, mm. References: .70 to 1.88; wider at the top, for real-time cines.
        pixel_ratio: longest side of a pixel by its shortest. References: 1.
        slice_distance: distance of neighbouring slices, mm. References: 5 to 10; volumes resampled to finer slices
            and stacks with gaps pass, a wrong unit does not.
        stack: slices times their distance, mm. References: 50 to 110.
        picture: width and height of the picture, mm. References: 224 to 480; crops around the heart pass.
        alike: largest correlation of neighbouring slices' images, in the median over the stack. ACDC's images: at most
            .86, where slices lie 5 mm apart; neighbouring frames of a cine: .99. Judged from ``alike_distance`` on.
        alike_distance: slice distance in mm below which slices may look alike.
        lv_edv, rv_edv: ventricles at ED, ml. References: LV 49 to 374, RV 47 to 294.
        lv_esv, rv_esv: at ES, ml. References: LV 22 to 334, RV 13 to 248.
        mass: myocardium, g, at either phase. References: 34 to 300.
        lv_width: diameter of the circle as large as the left ventricle's largest slice, mm. References: 25 to 81.
        lv_length: slices with the left ventricle times their distance, mm. References: 50 to 100.
        lv_shape: that length by that width. References: .93 to 2.5; hearts of any size have it, so little is added.
        wall: mean thickness of the myocardium around the cavity, mm. References: 4.4 to 21. Less than a pixel is too
            thin, too.
        rv_to_lv: right by left ventricle at ED. References: .31 to 3.6.
        mass_change: myocardium at ES by that at ED; muscle keeps its volume. References: .88 to 1.47.
        stroke_difference: right and left stroke volume differ by at most so much, ml. References: at most 98.
        ends: the smaller of the left ventricle's first and last slice by its largest. References: at most .83.
        apex_first: how far the heart's centre may lie towards the apex, see
            :func:`~cgdpm_med.heart.checks.lean_to_apex`. References: at most -.016.
    """

    predicted_dice: float = 0.8
    ef_width: float = 15.0
    fragments: float = 0.05
    open_cavity: float = 0.02
    ef: tuple[float, float] = (5.0, 80.0)
    header_notes: bool = False
    slices: int = 4
    pixel: tuple[float, float] = (0.4, 3.0)
    pixel_ratio: float = 1.5
    slice_distance: tuple[float, float] = (0.5, 20.0)
    stack: tuple[float, float] = (35.0, 160.0)
    picture: tuple[float, float] = (80.0, 600.0)
    alike: float = 0.95
    alike_distance: float = 4.0
    lv_edv: tuple[float, float] = (25.0, 550.0)
    lv_esv: tuple[float, float] = (10.0, 500.0)
    rv_edv: tuple[float, float] = (25.0, 450.0)
    rv_esv: tuple[float, float] = (6.0, 375.0)
    mass: tuple[float, float] = (17.0, 450.0)
    lv_width: tuple[float, float] = (17.0, 110.0)
    lv_length: tuple[float, float] = (35.0, 140.0)
    lv_shape: tuple[float, float] = (0.8, 3.0)
    wall: tuple[float, float] = (3.0, 30.0)
    rv_to_lv: tuple[float, float] = (0.15, 5.4)
    mass_change: tuple[float, float] = (0.6, 2.0)
    stroke_difference: float = 150.0
    ends: float = 0.9
    apex_first: float = 0.0


@dataclass(frozen=True)
class Finding:
    """One remark of a check; ``review`` says whether it asks for a person."""

    check: str
    reason: str
    review: bool = True


@dataclass(frozen=True)
class Quality:
    """What the checks said of a case.

    Attributes:
        findings: remarks in the order of the checks.
        predicted_dice: by frame and label; without frames of a single member.
    """

    findings: tuple[Finding, ...] = ()
    predicted_dice: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """Either "pass" or "review"."""
        return "review" if any(finding.review for finding in self.findings) else "pass"

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the case goes to review; empty when it passes."""
        return tuple(finding.reason for finding in self.findings if finding.review)


# --- measurements -----------------------------------------------------------------------------------------------------


def fragment_fraction(structure: ArrayLike) -> float:
    """Fraction of a boolean structure outside its largest piece, in [0, 1); 0 for an empty one."""
    inside = np.asarray(structure, dtype=bool)
    return float(1 - largest_component(inside).sum() / inside.sum()) if inside.any() else 0.0


def missing_slices(structure: ArrayLike) -> list[int]:
    """Indices along the last axis that lack the structure although slices on both sides have it."""
    there = np.flatnonzero(np.asarray(structure, dtype=bool).any(axis=(0, 1)))
    return [] if not there.size else sorted(set(range(int(there[0]), int(there[-1]) + 1)) - set(there.tolist()))


def open_cavity_fraction(labels: ArrayLike) -> float:
    """Fraction of the left ventricle's in-plane border faces that do not look at myocardium, in [0, 1].

    The border consists of the voxel faces along the first two axes between label 3 and anything else; the edge of the
    image counts as anything else. An empty cavity gives 0.
    """
    padded = np.pad(np.asarray(labels), ((1, 1), (1, 1), (0, 0)))
    border = uncovered = 0
    for axis in (0, 1):
        here, there = (padded.take(range(a, padded.shape[axis] + a - 1), axis) for a in (0, 1))
        for inner, outer in ((here, there), (there, here)):
            outside = outer[(inner == _LV) & (outer != _LV)]
            border += outside.size
            uncovered += int(np.count_nonzero(outside != _MYO))
    return uncovered / border if border else 0.0


# --- checks -----------------------------------------------------------------------------------------------------------


def assess_frame(
    mask: NDArray[Any],
    members: NDArray[Any],
    *,
    frame: str = "",
    header_note: str | None = None,
    limits: QualityLimits | None = None,
    slice_numbers: Sequence[int] | None = None,
    labels: Labels = ACDC,
) -> Quality:
    """The checks that one frame allows.

    Args:
        mask: (X, Y, Z) combined labels, slices last.
        members: (K, X, Y, Z); the agreement is predicted Dice where K is two or more.
        frame: its name in the reasons, for example "ED".
        header_note: of the grid.
        slice_numbers: what the slices are called in the reasons; 1, 2, … by default.
        labels: the structures; anatomy is judged of ACDC's alone.
    """
    limits = limits or QualityLimits()
    where = f"{frame}: " if frame else ""
    predicted = pairwise_dice(members, tuple(labels.by_number)) if len(members) > 1 else {}
    findings = [
        Finding("predicted Dice", f"{where}predicted Dice of {labels.by_number[label]} is {dice:.3f}, below {limit:g}")
        for limit in (limits.predicted_dice,)
        for label, dice in predicted.items()
        if dice < limit
    ]
    for label, name in labels.by_number.items():
        findings += _shape_findings(mask == label, where, name, limits, slice_numbers or range(1, mask.shape[2] + 1))
    if labels.cardiac and (uncovered := open_cavity_fraction(mask)) > limits.open_cavity:
        reason = f"{where}{100 * uncovered:.1f} % of the LV border is not covered by myocardium"
        findings.append(Finding("LV outside myocardium", reason))
    if header_note is not None:
        findings.append(Finding("header", f"{where}{header_note}", review=limits.header_notes))
    return Quality(tuple(findings), {frame: predicted} if predicted else {})


def _shape_findings(
    structure: NDArray[np.bool_], where: str, name: str, limits: QualityLimits, slice_numbers: Sequence[int]
) -> list[Finding]:
    if not structure.any():
        return [Finding("empty structure", f"{where}{name} is empty")]
    findings = []
    if gaps := missing_slices(structure):
        listed = ("slice " if len(gaps) == 1 else "slices ") + ", ".join(str(slice_numbers[k]) for k in gaps)
        reason = f"{where}{name} is absent from {listed} between slices that hold it"
        findings.append(Finding("missing slices", reason))
    if (outside := fragment_fraction(structure)) > limits.fragments:
        reason = f"{where}{100 * outside:.1f} % of {name} lies apart from its largest piece"
        findings.append(Finding("fragments", reason))
    return findings


def combine(qualities: Iterable[Quality], findings: Iterable[Finding] = ()) -> Quality:
    """One verdict on a study from its frames and further findings."""
    qualities = tuple(qualities)
    predicted: dict[str, Mapping[int, float]] = {}
    for quality in qualities:
        predicted |= quality.predicted_dice
    return Quality(tuple(f for q in qualities for f in q.findings) + tuple(findings), predicted)


def worst_cases_auroc(predicted_dice: ArrayLike, true_dice: ArrayLike, fraction: float = 0.1) -> float | None:
    """Area under the ROC curve of low predicted Dice for finding the worst ``fraction`` of cases by true Dice.

    One pair per case. The worst are the ceil(fraction n) lowest, with all that equal the last of them; None where
    these are all cases.

    Raises:
        InputError: for no cases or unequal numbers.
    """
    predicted, true = np.asarray(predicted_dice, dtype=np.float64), np.asarray(true_dice, dtype=np.float64)
    if predicted.shape != true.shape or predicted.ndim != 1 or not predicted.size:
        raise InputError(f"{predicted.shape} predicted and {true.shape} true Dice", remedy="Give one pair per case")
    worst = true <= np.sort(true)[int(np.ceil(fraction * true.size)) - 1]
    return error_uncertainty_auroc(-predicted, worst)
