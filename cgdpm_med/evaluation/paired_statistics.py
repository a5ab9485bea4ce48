"""Paired differences between two methods: bootstrap intervals and signed-rank tests with patients as the unit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95
RESAMPLES = 9999
_DECIMALS = 12  # differences that rounding alone makes unequal are ties


@dataclass(frozen=True)
class PairedDifference:
    """Two methods on the same patients; differences are the second's value less the first's.

    Attributes:
        patients: how many.
        means: of either method over the patients.
        difference: mean over the patients.
        interval: of the difference, BCa at :data:`LEVEL`; None below two patients.
        p: two-sided, of Wilcoxon's signed-rank test; None below two patients.
    """

    patients: int
    means: tuple[float, float]
    difference: float
    interval: tuple[float, float] | None
    p: float | None


def paired_difference(first: Sequence[float], second: Sequence[float], seed: int = 0) -> PairedDifference:
    """Compare the values of two methods.

    Args:
        first, second: one value of each patient, in the same order; at least one.
        seed: of the bootstrap.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    d = np.round(b - a, _DECIMALS)
    return PairedDifference(
        patients=len(d),
        means=(float(a.mean()), float(b.mean())),
        difference=float(d.mean()),
        interval=bootstrap_interval(d, seed),
        p=signed_rank_p(d),
    )


def bootstrap_interval(values: NDArray[np.float64], seed: int = 0) -> tuple[float, float] | None:
    """BCa bootstrap interval of the mean (Efron 1987) by scipy, :data:`RESAMPLES` resamples; None below two values.

    With one value a patient, resampling values is resampling patients with all their volumes. Equal values give an
    interval of no length.
    """
    if len(values) < 2:
        return None
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=LEVEL,
        n_resamples=RESAMPLES,
        method="BCa",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def signed_rank_p(differences: NDArray[np.float64]) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test by scipy, zeros left out; 1 where all are zero, None below two values.

    Exact where scipy has the distribution; beyond, and with ties among many patients, the normal approximation.
    """
    if len(differences) < 2:
        return None
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences[differences != 0]).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): the family-wise error over all p-values given stays below any level.

    The k-th smallest of m (k from 1) is multiplied by m - k + 1; none becomes smaller than one before it, or above 1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(value) for value in adjusted[np.argsort(order, kind="stable")]]


def smallest_p(patients: int, tests: int = 1) -> float:
    """The smallest p the signed-rank test can give, however clear the difference, after Holm over so many tests."""
    return min(1.0, tests * math.ldexp(2.0, -patients))


def patient_means(values: Mapping[str, float], patient_of: Mapping[str, str]) -> dict[str, float]:
    """Mean over the cases of each patient, in the order of the patients' names.

    Args:
        values: by key of the case.
        patient_of: each case's patient, by key.
    """
    by_patient: dict[str, list[float]] = {}
    for key, value in values.items():
        by_patient.setdefault(patient_of[key], []).append(value)
    return {patient: float(np.mean(by_patient[patient])) for patient in sorted(by_patient)}
