"""Which patients train, validate and test."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from cgdpm_med.datasets.dataset import PARTS, DataSet, Example
from cgdpm_med.files import InputError, listed

Parts = Mapping[str, tuple[str, ...]]


def make_split(
    dataset: DataSet, *, seed: int = 0, folds: int | None = None, fold: int = 0
) -> dict[str, tuple[str, ...]]:
    """Patients of the labelled examples by part: as the data set says, else drawn.

    Parts that the data set names are kept; where it names no validation part, one is drawn from what is left. Without
    any, 70 % train, 10 % validate and 20 % test. With ``folds`` every patient that is not for testing validates in one
    fold and trains in the others.

    Raises:
        InputError: for a fold that there is not, more folds than patients, or a part that stays empty.
    """
    given = {example.patient: example.part for example in dataset.labelled}
    fixed = {part: sorted(p for p, where in given.items() if where == part) for part in PARTS}
    loose = _shuffled([patient for patient, part in given.items() if not part], seed)
    if folds is not None:
        return _fold(fixed["test"], [*loose, *fixed["train"], *fixed["validation"]], folds, fold)
    if not loose:
        return _whole(fixed, dataset)
    testing = 0 if fixed["test"] else max(1, round(0.2 * len(loose)))
    validating = 0 if fixed["validation"] else max(1, round(0.1 * len(loose)))
    drawn = {
        "test": loose[:testing],
        "validation": loose[testing : testing + validating],
        "train": loose[testing + validating :],
    }
    return _whole({part: [*fixed[part], *drawn[part]] for part in PARTS}, dataset)


def _shuffled(names: Sequence[str], seed: int) -> list[str]:
    rng = random.Random(seed)  # its random() is a sequence that Python promises not to change
    return sorted(sorted(names), key=lambda _: rng.random())


def _fold(test: Sequence[str], rest: Sequence[str], folds: int, fold: int) -> dict[str, tuple[str, ...]]:
    if not (2 <= folds <= len(rest) and 0 <= fold < folds):
        what = f"there is no fold {fold} of {folds} for {len(rest)} patients"
        raise InputError(what, remedy="Give --folds from 2 to the number of patients, and --fold from 0")
    held = list(rest)[fold::folds]
    return {
        "train": tuple(sorted(set(rest) - set(held))),
        "validation": tuple(sorted(held)),
        "test": tuple(sorted(test)),
    }


def _whole(parts: Mapping[str, Sequence[str]], dataset: DataSet) -> dict[str, tuple[str, ...]]:
    if empty := [part for part in ("train", "validation") if not parts[part]]:
        remedy = "Add patients with label maps, or move some to that part"
        raise InputError(f"leaves the part {empty[0]} empty", path=dataset.root, remedy=remedy)
    return {part: tuple(sorted(parts[part])) for part in PARTS}


def of_part(dataset: DataSet, parts: Mapping[str, Sequence[str]], part: str) -> tuple[Example, ...]:
    """The labelled examples of one part.

    Raises:
        InputError: patients of the part are not in the data set, which was another when the split was written.
    """
    wanted = set(parts[part])
    found = tuple(example for example in dataset.labelled if example.patient in wanted)
    if missing := sorted(wanted - {example.patient for example in found}):
        remedy = "Restore them, or train into another folder"
        raise InputError(f"has no more {listed(missing, 3)} of the run's split", path=dataset.root, remedy=remedy)
    return found
