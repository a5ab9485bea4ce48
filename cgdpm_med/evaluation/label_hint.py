"""Labels that look exchanged: where other names for the values would make two sides agree far better, say so."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from cgdpm_med.data.structure_names import plain_name
from cgdpm_med.evaluation.label_names import LabelSet, Structures
from cgdpm_med.files import listed

FAR_BETTER = 0.3
"""Gain in the mean Dice of the structures exchanged that is worth a word; it must also reach :data:`PLAUSIBLE`."""

PLAUSIBLE = 0.5
_MOST = 5  # keys named


@dataclass(frozen=True)
class Exchange:
    """Structures of the prediction that fit other structures of the reference.

    Attributes:
        fits: number of the prediction's structure -> number of the reference's that it looks like; those that fit
            themselves are left out.
        dice: mean Dice of the structures concerned, as the labels are given.
        exchanged: the same with the labels exchanged.
    """

    fits: Mapping[int, int]
    dice: float
    exchanged: float


def confusion(prediction: NDArray[Any], reference: NDArray[Any], structures: int) -> NDArray[np.int64]:
    """(n + 1, n + 1) counts of voxels by number of structure in the prediction (rows) and the reference (columns)."""
    size = structures + 1
    pairs = prediction.astype(np.int64).ravel() * size + reference.ravel()
    return np.bincount(pairs, minlength=size * size).reshape(size, size)


def find_exchange(counts: NDArray[np.int64]) -> Exchange | None:
    """The exchange of labels that would score far better, from a table of :func:`confusion`; None without one.

    The best assignment of structures to structures is found; of its cycles those count that gain :data:`FAR_BETTER`.
    """
    dice = overlaps(counts)
    identity = np.eye(len(dice)) * 1e-9  # of equals, the labels as they are
    _, best = linear_sum_assignment(np.nan_to_num(dice) + identity, maximize=True)
    gaining = [cycle for cycle in _cycles(best) if _gains(dice, cycle, best)]
    moved = [place for cycle in gaining for place in cycle]
    if not moved:
        return None
    fits = {place + 1: int(best[place]) + 1 for place in sorted(moved)}
    return Exchange(fits, _mean(dice[moved, moved]), _mean(dice[moved, best[moved]]))


def overlaps(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n, n) Dice of every structure of the prediction with every one of the reference; NaN where both are empty."""
    both, total = counts[1:, 1:], counts.sum(axis=1)[1:, None] + counts.sum(axis=0)[None, 1:]
    return np.divide(2 * both, total, out=np.full(both.shape, np.nan), where=total > 0)


def _cycles(permutation: NDArray[np.int64]) -> list[list[int]]:
    """Cycles of two and more places."""
    left, cycles = set(range(len(permutation))), []
    while left:
        cycle = [min(left)]
        while (following := int(permutation[cycle[-1]])) != cycle[0]:
            cycle.append(following)
        left -= set(cycle)
        cycles.append(cycle)
    return [cycle for cycle in cycles if len(cycle) > 1]


def _gains(dice: NDArray[np.float64], cycle: list[int], best: NDArray[np.int64]) -> bool:
    before, after = _mean(dice[cycle, cycle]), _mean(dice[cycle, best[cycle]])
    return after >= max(PLAUSIBLE, before + FAR_BETTER)


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else 0.0


# --- what is said -----------------------------------------------------------------------------------------------------


def label_hints(counts: Sequence[tuple[str, NDArray[np.int64]]], structures: Structures) -> list[dict[str, Any]]:
    """A hint for each exchange that fits some cases.

    Args:
        counts: key and :func:`confusion` of each case.

    Returns:
        Each hint with ``message``, ``cases`` (their keys), ``dice`` and ``exchanged`` (see :class:`Exchange`, over
        those cases together), and the labels that would put it right on either side, as ``--reference-labels`` and
        ``--prediction-labels`` take them.
    """
    by_fits: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for place, (_, table) in enumerate(counts):
        if (found := find_exchange(table)) is not None:
            by_fits.setdefault(tuple(found.fits.items()), []).append(place)
    return [_hint(dict(fits), [counts[p] for p in places], len(counts), structures) for fits, places in by_fits.items()]


def _hint(
    fits: Mapping[int, int], cases: Sequence[tuple[str, NDArray[np.int64]]], total: int, structures: Structures
) -> dict[str, Any]:
    dice = overlaps(np.sum([table for _, table in cases], axis=0))
    before, after = (_mean(dice[[p - 1 for p in fits], [r - 1 for r in to]]) for to in (fits, fits.values()))
    reference = _renamed(structures.reference, {r: p for p, r in fits.items()}, structures)
    prediction = _renamed(structures.prediction, fits, structures)
    keys = [key for key, _ in cases]
    where = "" if len(keys) == total else f" in {len(keys)} of {total} cases ({listed(keys, _MOST)})"
    message = (
        f"{_exchanged(fits, structures)}{where}: Dice {100 * before:.1f} % as labelled, {100 * after:.1f} % exchanged. "
    )
    if len(keys) == total:
        message += f"If the references are named wrongly, give --reference-labels {shlex.quote(str(reference))} ; "
        message += f"if the predictions are, --prediction-labels {shlex.quote(str(prediction))}"
    else:
        message += "Look at these files; evaluate them apart from the others"
    labels = {"reference_labels": str(reference), "prediction_labels": str(prediction)}
    return {"message": message, "cases": keys, "dice": before, "exchanged": after, **labels}


def _exchanged(fits: Mapping[int, int], structures: Structures) -> str:
    """As "labels 1 and 3 (liver and spleen) look swapped", or what each looks like where more than two are involved."""
    values = {number: _values(structures.prediction, structures.names[number]) for number in fits}
    if len(fits) == 2:
        names = " and ".join(structures.names[number] for number in fits)
        return f"labels {' and '.join(values.values())} ({names}) look swapped between predictions and references"
    pairs = (f"{structures.names[p]} is the references' {structures.names[r]}" for p, r in fits.items())
    return f"labels {', '.join(values.values())} look swapped: the predictions' {', '.join(pairs)}"


def _values(labels: LabelSet, name: str) -> str:
    return "+".join(str(v) for v, n in labels.names.items() if plain_name(n) == plain_name(name))


def _renamed(labels: LabelSet, fits: Mapping[int, int], structures: Structures) -> LabelSet:
    """The labels with each structure called what it fits."""
    numbers = structures.numbers()

    def fitting(name: str) -> str:
        number = numbers.get(plain_name(name), 0)
        return structures.names[fits[number]] if number in fits else name

    return LabelSet({value: fitting(name) for value, name in labels.names.items()}, labels.source)
