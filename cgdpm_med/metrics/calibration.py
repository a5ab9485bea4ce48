"""Calibration: temperature and doubt for class probabilities, and split-conformal factors for intervals.

All are fitted to cases that the network was not trained on, and all leave the answer itself alone: temperature and
doubt keep the order of a voxel's classes, a conformal factor moves the ends of an interval and not the value inside.

A temperature alone has to serve two ends: voxels in which the members differ, and those in which all agree and a few
are wrong nevertheless. Fitted by likelihood it hears the second loudest, and spoils the first. So the doubt is theirs,
a small share of probability that every class of every voxel gets alike, and both are fitted by the Brier score.

Temperature: C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.
Conformal prediction: J. Lei, M. G'Sell, A. Rinaldo, R. J. Tibshirani, L. Wasserman, "Distribution-Free Predictive
Inference for Regression", JASA 113, 2018; the law of the coverage given the fitted cases: V. Vovk, "Conditional
Validity of Inductive Conformal Predictors", ACML 2012.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats
from scipy.special import logsumexp, softmax

from cgdpm_med.files import InputError

SMALLEST_PROBABILITY = 1e-7
"""Smaller probabilities count as this one: what is left of them after a mask channel in [-1, 1] in float32."""

TEMPERATURES = (0.05, 20.0)
"""Where a temperature is looked for."""

USUAL_TEMPERATURES = (0.25, 4.0)
"""Where a temperature is looked for beside a doubt."""

LARGEST_DOUBT = 0.5
"""Where a doubt is looked for: from 0 on."""

_CHUNK = 1 << 18  # voxels at once


# --- probabilities ----------------------------------------------------------------------------------------------------


def temper(probabilities: ArrayLike, temperature: float, doubt: float = 0.0) -> NDArray[np.float32]:
    """Class probabilities p made (1 - d) p^(1 / T) / sum p^(1 / T) + d / C, in the same order.

    They are softer for T > 1 and sharper for T < 1. :func:`untemper` goes back.

    Args:
        probabilities: (C, *S), C two or more, summing to one over C.
        temperature: T.
        doubt: d in [0, 1), the share of every voxel that all classes get alike.

    Raises:
        ValueError: for a temperature that is not positive and finite, or a doubt outside [0, 1).
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"a temperature must be positive, not {temperature}")
    if not 0 <= doubt < 1:
        raise ValueError(f"a doubt must lie in [0, 1), not {doubt}")
    p = np.asarray(probabilities)
    flat = p.reshape(len(p), -1)
    out = np.empty(flat.shape, dtype=np.float32)
    for part in _chunks(flat.shape[1]):
        out[:, part] = (1 - doubt) * softmax(_log(flat[:, part]) / temperature, axis=0) + doubt / len(p)
    return out.reshape(p.shape)


def untemper(probabilities: ArrayLike, temperature: float, doubt: float = 0.0) -> NDArray[np.float32]:
    """What :func:`temper` was given, from what it gave, apart from probabilities below :data:`SMALLEST_PROBABILITY`."""
    p = np.asarray(probabilities)
    sure = np.maximum((p - doubt / len(p)) / (1 - doubt), 0)
    return temper(sure, 1 / temperature)


def negative_log_likelihood(
    probabilities: ArrayLike, labels: ArrayLike, temperature: float = 1.0, doubt: float = 0.0
) -> float:
    """Mean over voxels of -log p[label], in nats, after :func:`temper`.

    Args:
        probabilities: (C, N).
        labels: (N,) with values 0 to C - 1.
    """
    p, truth = _voxels(probabilities, labels)
    return _loss(_log_of_truth(p, truth, temperature), doubt, len(p))


def _log_of_truth(p: NDArray[np.floating], truth: NDArray[np.int64], temperature: float) -> NDArray[np.float64]:
    """Log-probability of each voxel's label after a temperature, (N,)."""
    found = np.empty(truth.size)
    for part in _chunks(truth.size):
        logs = _log(p[:, part]) / temperature
        found[part] = np.take_along_axis(logs, truth[None, part], axis=0)[0] - logsumexp(logs, axis=0)
    return found


def _loss(log_of_truth: NDArray[np.float64], doubt: float, classes: int) -> float:
    if doubt == 0:
        return -float(log_of_truth.mean())
    return -float(np.log((1 - doubt) * np.exp(log_of_truth) + doubt / classes).mean())


def fit_temperature(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """The temperature of the least :func:`negative_log_likelihood`, within :data:`TEMPERATURES`.

    The likelihood is convex in 1 / T, so its slope has one zero: there the log-probability that the tempered classes
    expect of themselves equals that of the true labels.

    Args:
        probabilities: (C, N), of all voxels of the cases together.
        labels: (N,) with values 0 to C - 1.

    Raises:
        InputError: for no voxels, unequal numbers, or labels without a channel.
    """
    p, truth = _voxels(probabilities, labels)

    def slope(log_temperature: float) -> float:
        inverse, total = math.exp(-log_temperature), 0.0
        for part in _chunks(truth.size):
            logs = _log(p[:, part])
            expected = (softmax(inverse * logs, axis=0) * logs).sum(axis=0)
            total += float((expected - np.take_along_axis(logs, truth[None, part], axis=0)[0]).sum())
        return total / truth.size

    low, high = (math.log(t) for t in TEMPERATURES)
    if slope(high) >= 0:  # even the softest is not soft enough
        return TEMPERATURES[1]
    if slope(low) <= 0:
        return TEMPERATURES[0]
    return math.exp(float(optimize.brentq(slope, low, high, xtol=1e-6)))


def fit_probabilities(probabilities: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """Temperature and doubt of the least Brier score; no doubt where it buys nothing.

    The likelihood has no bound, and listens above all to the few voxels in which every member is wrong. The Brier score
    of a voxel is at most 2. For a temperature it is quadratic in the doubt, which is found in closed form.

    Args:
        probabilities, labels: as for :func:`fit_temperature`.

    Returns:
        The temperature within :data:`USUAL_TEMPERATURES`, and the doubt within [0, :data:`LARGEST_DOUBT`].

    Raises:
        InputError: as :func:`fit_temperature`.
    """
    p, truth = _voxels(probabilities, labels)
    bounds = tuple(math.log(t) for t in USUAL_TEMPERATURES)

    def found(largest_doubt: float) -> tuple[float, float, float]:
        def score(log_temperature: float) -> float:
            return _best_doubt(p, truth, math.exp(log_temperature), largest_doubt)[1]

        best = optimize.minimize_scalar(score, bounds=bounds, method="bounded", options={"xatol": 1e-3})
        temperature = math.exp(float(best.x))
        return temperature, *_best_doubt(p, truth, temperature, largest_doubt)

    plain, doubtful = found(0.0), found(LARGEST_DOUBT)
    return doubtful[:2] if doubtful[2] < plain[2] * (1 - 1e-5) else plain[:2]


def _best_doubt(
    p: NDArray[np.floating], truth: NDArray[np.int64], temperature: float, largest: float
) -> tuple[float, float]:
    """The doubt of the least Brier score after a temperature, up to ``largest``, and that score."""
    even, error, along, length = 1 / len(p), 0.0, 0.0, 0.0
    for part in _chunks(truth.size):
        said = softmax(_log(p[:, part]) / temperature, axis=0)
        off, spare = said - (np.arange(len(p))[:, None] == truth[part]), said - even
        error, along, length = error + (off**2).sum(), along + (off * spare).sum(), length + (spare**2).sum()
    doubt = min(max(along / length, 0.0), largest) if length else 0.0
    return float(doubt), float((error - 2 * doubt * along + doubt**2 * length) / truth.size)


def _voxels(probabilities: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
    p, truth = np.asarray(probabilities), np.asarray(labels, dtype=np.int64)
    if p.ndim != 2 or p.shape[1:] != truth.shape or not truth.size:
        raise InputError(f"probabilities {p.shape} and labels {truth.shape}", remedy="Give (C, N) and (N,), N not 0")
    if truth.min() < 0 or truth.max() >= len(p):
        raise InputError(f"labels outside 0 to {len(p) - 1}", remedy="Check the references")
    return p, truth


def _log(p: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.log(np.maximum(p, SMALLEST_PROBABILITY, dtype=np.float64))


def _chunks(size: int) -> Iterator[slice]:
    return (slice(start, start + _CHUNK) for start in range(0, size, _CHUNK))


# --- intervals --------------------------------------------------------------------------------------------------------


def interval_score(value: float, lower: float, upper: float, truth: float, margin: float) -> float:
    """By which factor an interval must grow to reach the truth, a first guess of its length at hand.

    The ends of the guess lie ``margin`` beyond [lower, upper], which holds ``value``. Both distances from the value
    times the factor q give the interval [value - q (value - lower + margin), value + q (upper - value + margin)].
    Without the margin a case whose members agree by chance would need a factor without bound.

    Raises:
        ValueError: for a margin that is not positive, or a value outside its interval.
    """
    if not (margin > 0 and lower <= value <= upper):
        raise ValueError(f"margin {margin} and interval [{lower}, {upper}] do not fit the value {value}")
    return (value - truth) / (value - lower + margin) if truth < value else (truth - value) / (upper - value + margin)


def conformal_rank(cases: int, level: float) -> int | None:
    """Which of ``cases`` ordered scores is the factor: number ceil(level (cases + 1)), or None beyond the last."""
    rank = math.ceil(level * (cases + 1) - 1e-9)
    return rank if rank <= cases else None


def conformal_factor(scores: ArrayLike, level: float = 0.9) -> float:
    """The factor with which an interval covers a new case with probability ``level`` or more.

    It holds on average over draws of the fitted cases together with the new one, if these are exchangeable, and
    whatever their distribution.

    Args:
        scores: one for each case, as of :func:`interval_score`; infinite where nothing covers.

    Raises:
        ValueError: for a level outside (0, 1).
        InputError: for too few cases (90 % need nine).
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), not {level}")
    rank = conformal_rank(ordered.size, level)
    if rank is None:
        needed = math.ceil(level / (1 - level) - 1e-9)
        what = f"{ordered.size} cases cannot support intervals of {100 * level:g} %"
        raise InputError(what, remedy=f"Give {needed} or more")
    return float(ordered[rank - 1])


def guaranteed_coverage(cases: int, level: float = 0.9, confidence: float = 0.95) -> tuple[float, float]:
    """What :func:`conformal_factor` promises of ``cases`` cases without ties.

    Returns:
        The coverage on average over fits, rank / (cases + 1); and what the coverage of a single fit exceeds with
        probability ``confidence``: it follows a beta distribution of rank and cases + 1 - rank. Both are 1 where the
        cases are too few, and the interval without end.
    """
    rank = conformal_rank(cases, level)
    if rank is None:
        return 1.0, 1.0
    return rank / (cases + 1), float(stats.beta.ppf(1 - confidence, rank, cases + 1 - rank))
