"""Which segmentations a person should look at: checks that need no reference, each with its reason in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cgdpm_med.files import InputError
from cgdpm_med.inference.components import largest_component
from cgdpm_med.inference.labels import DEFAULT_LABELS, Labels
from cgdpm_med.metrics.masks import error_uncertainty_auroc, pairwise_dice


@dataclass(frozen=True)
class QualityLimits:
    """Beyond which values a case goes to review; a task adds its own.

    Attributes:
        predicted_dice: least predicted Dice of a structure. It depends on the network: a default to be fitted on
            validation patients.
        fragments: largest fraction of a structure outside its largest piece, and of what was taken out of it because it
            lay apart. In the references of ACDC at most .039, and nothing apart.
        header_notes: whether a header that contradicts itself is enough for a review. Every ACDC file has one, settled
            by the rule of :func:`~cgdpm_med.read_volume`, so it is only noted unless asked for.
    """

    predicted_dice: float = 0.8
    fragments: float = 0.05
    header_notes: bool = False


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


# --- checks -----------------------------------------------------------------------------------------------------------


def assess_frame(
    mask: NDArray[Any],
    members: NDArray[Any],
    *,
    frame: str = "",
    header_note: str | None = None,
    limits: QualityLimits | None = None,
    slice_numbers: Sequence[int] | None = None,
    labels: Labels = DEFAULT_LABELS,
    anatomy: Sequence[Finding] = (),
    removed_voxels: Mapping[int, int] | None = None,
) -> Quality:
    """The checks that one frame allows.

    Args:
        mask: (X, Y, Z) combined labels, slices last.
        members: (K, X, Y, Z); the agreement is predicted Dice where K is two or more.
        frame: its name in the reasons.
        header_note: of the grid.
        slice_numbers: what the slices are called in the reasons; 1, 2, … by default.
        labels: the structures.
        anatomy: what a task says of how they lie, which is told after their shapes.
        removed_voxels: by label, what was taken out of the mask because it lay apart.
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
        findings += _removed_findings(mask == label, (removed_voxels or {}).get(label, 0), where, name, limits)
    findings += anatomy
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


def _removed_findings(
    structure: NDArray[np.bool_], removed: int, where: str, name: str, limits: QualityLimits
) -> list[Finding]:
    if not removed:
        return []
    share = removed / (removed + int(np.count_nonzero(structure)))
    reason = f"{where}{100 * share:.1f} % of {name} lay apart from the other structures and was left out"
    return [Finding("left out", reason, review=share > limits.fragments)]


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
