"""Methods compared on the same cases: paired by case, with patients as the unit of every statement."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from cgdpm_med.data.structure_names import EXAMPLE, plain_name
from cgdpm_med.evaluation.compare_files import write_comparison
from cgdpm_med.evaluation.find_labels import find_labels
from cgdpm_med.evaluation.label_names import LabelSet, Structures
from cgdpm_med.evaluation.masks import (
    FolderScores,
    Reading,
    described,
    distance_unit,
    hints,
    partly_drawn,
    score_pairs,
)
from cgdpm_med.evaluation.paired_statistics import LEVEL, RESAMPLES, holm, paired_difference, patient_means
from cgdpm_med.files import InputError
from cgdpm_med.metrics.masks import VolumeScore
from cgdpm_med.studies.mask_pairs import MaskPair, pair_masks
from cgdpm_med.volumes import Spacing

METRICS = ("dice", "hd95", "assd")
AVERAGE = "average"
_FRAME = re.compile(r"([_/-](sa|la|sax|lax))?[_/-](ed|es|4d|cine|(frame|phase)_?\d+)$", re.IGNORECASE)


@dataclass(frozen=True)
class MethodScores:
    """What one method's masks gave, by key of the case.

    Attributes:
        numbers: of the structures by plain name, see :func:`~cgdpm_med.data.structure_names.plain_name`.
    """

    structures: Structures
    scores: Mapping[str, VolumeScore]
    folder: FolderScores

    def value(self, key: str, plain: str, metric: str) -> float | None:
        """One score; None where it is undefined."""
        value: float | None = getattr(self.scores[key], metric)[self.structures.numbers()[plain]]
        return value


def compare_methods(
    references: str | Path,
    methods: Mapping[str, str | Path],
    output: str | Path | None = None,
    *,
    labels: LabelSet | None = None,
    reference_labels: LabelSet | None = None,
    prediction_labels: Mapping[str, LabelSet | None] | None = None,
    patient_pattern: str | None = None,
    ignore_geometry: bool = False,
    spacing: Spacing = "auto",
    seed: int = 0,
) -> dict[str, Any]:
    """Compare two or more methods on the cases that all of them have, every two with one another.

    A patient counts once, with the mean over the volumes. The patient of a case is the first group of
    ``patient_pattern`` in its key; else the folder's in ACDC's layout; else the key without its frame or phase.

    Args:
        references: folder of reference masks.
        methods: folder of predicted masks by name of the method; of every two, the first is the baseline.
        output: folder of ``comparison.csv``, ``.md``, ``.tex`` and ``.json``, ``cases.csv`` and ``left_out.csv``; None
            writes nothing.
        labels, reference_labels, ignore_geometry, spacing: as in :func:`~cgdpm_med.evaluate_folders`.
        prediction_labels: by method, the same.
        seed: of the bootstrap.

    Returns:
        What :func:`compare_scores` returns, with the ``unit`` of the distances ("px" or "mm"), ``settings``, ``labels``
        and ``label_hints`` by method, ``few_drawn`` (see :func:`~cgdpm_med.evaluation.drawn_slices.few_drawn`), and
        ``failed`` by "method: case".

    Raises:
        InputError: no case has a score of every method, the methods share no structure, or the pattern does not fit.
    """
    if len(methods) < 2:
        raise InputError("two methods at least are compared", remedy="Give another method, as in B=FOLDER")
    found = {name: pair_masks(folder, references) for name, folder in methods.items()}
    keys = case_keys([pair for pairs, _ in found.values() for pair in pairs], Path(references))
    patients: dict[str, str] = {}
    scored: dict[str, MethodScores] = {}
    for name, (pairs, lonely) in found.items():
        own = (prediction_labels or {}).get(name)
        given: dict[str, Any] = {"labels": labels, "reference_labels": reference_labels, "prediction_labels": own}
        reading = Reading(find_labels(methods[name], references, **given), ignore_geometry, spacing, ensembles=False)
        named = [replace(pair, key=keys[pair.reference]) for pair in pairs]
        folder = score_pairs(named, lonely, reading)
        scored[name] = MethodScores(reading.structures, {r.score.key: r.score for r in folder.results}, folder)
        of_pair = {pair.key: pair.patient for pair in named}
        patients |= {key: patient_of(key, of_pair, patient_pattern) for key in scored[name].scores}
    comparison = compare_scores(scored, patients, seed) | {
        "unit": distance_unit(next(iter(found.values()))[0], spacing),
        "settings": {"seed": seed, "resamples": RESAMPLES, "level": LEVEL, "patients": _patients_from(patient_pattern)},
        "labels": {name: described(m.structures) for name, m in scored.items()},
        "label_hints": {name: hints(m.folder.results, m.structures) for name, m in scored.items()},
        "few_drawn": partly_drawn([result for m in scored.values() for result in m.folder.results]),
        "failed": {f"{name}: {key}": reason for name, m in scored.items() for key, reason in m.folder.failed.items()},
    }
    if output is not None:
        write_comparison(comparison, _case_rows(scored, patients), Path(output))
    return comparison


# --- cases and patients -----------------------------------------------------------------------------------------------


def case_keys(pairs: Iterable[MaskPair], references: Path) -> dict[Path, str]:
    """A key for every reference that is the same for all methods: its name, or its path where names repeat."""
    names = {pair.reference: pair.key.rpartition("/")[2] for pair in pairs}
    if len(set(names.values())) == len(names) or references.is_file():
        return names
    return {path: (path.relative_to(references).parent / name).as_posix() for path, name in names.items()}


def patient_of(key: str, in_acdc: Mapping[str, str], pattern: str | None = None) -> str:
    """Whose case it is, see :func:`compare_methods`.

    Args:
        in_acdc: the patient by key of a file, "" where the reference is not in ACDC's layout.

    Raises:
        InputError: the pattern is no regular expression, or is not found in the key.
    """
    if pattern is None:
        return in_acdc.get(key) or in_acdc.get(key.rpartition("/")[0]) or without_frame(key)
    try:
        match = re.search(pattern, key)
    except re.error as error:
        remedy = "Correct --patient-pattern, as in '^([^_]+)'"
        raise InputError(f"{pattern!r} is no regular expression ({error})", remedy=remedy) from error
    if match is None or not (patient := match[1 if match.re.groups else 0]):
        what = f"the pattern {pattern!r} finds no patient in {key!r}"
        raise InputError(what, remedy="Give a --patient-pattern that fits every case")
    return patient


def without_frame(key: str) -> str:
    """A key up to what names its frame or phase: ``001_SA_ED`` and ``001_SA_ES`` are of ``001``."""
    shorter = _FRAME.sub("", key)
    return key if shorter in ("", key) else without_frame(shorter)


def _patients_from(pattern: str | None) -> str:
    return "ACDC's folders, else names up to frame or phase" if pattern is None else f"pattern {pattern}"


# --- the table --------------------------------------------------------------------------------------------------------


def compare_scores(methods: Mapping[str, MethodScores], patient_of: Mapping[str, str], seed: int = 0) -> dict[str, Any]:
    """The table of :func:`compare_methods`, from scores that are there.

    Returns:
        ``rows``, one for every two methods, structure (and the average of the structures) and metric: ``structure``,
        ``metric``, ``first``, ``second``, their means (``mean_first``, ``mean_second``), ``difference`` (second less
        first), ``low`` and ``high`` of its interval, ``p``, ``p_holm`` over all rows, ``patients``, ``volumes`` and
        ``undefined``, the volumes where one of the two has no distance. Values are None where there are none. Beside
        them ``methods``, their names; ``cases``, ``patients`` and ``tests``, numbers; ``left_out``: the ``cases`` that
        a method lacks, undrawn ``frames`` and ``structures``, each with its reason.

    Raises:
        InputError: no case has a score of every method, or the methods share no structure that is drawn.
    """
    keys = [key for key in sorted(set().union(*(m.scores for m in methods.values()))) if key in patient_of]
    shared = [key for key in keys if all(key in m.scores for m in methods.values())]
    if not shared:
        raise InputError("no case has a score of every method", remedy="Correct the errors above; files pair by name")
    names, left_out = _shared_structures(methods, shared)
    paired = _Paired(methods, shared, patient_of, names, seed)
    rows = [
        paired.row(structure, metric, first, second)
        for first, second in combinations(methods, 2)
        for structure in ([*names, AVERAGE] if len(names) > 1 else names)
        for metric in METRICS
    ]
    tested = [row for row in rows if row["p"] is not None]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = p
    return {
        "methods": list(methods),
        "cases": len(shared),
        "patients": len({patient_of[key] for key in shared}),
        "tests": len(tested),
        "rows": rows,
        "left_out": {
            "cases": {key: _lacking(key, methods) for key in keys if key not in shared},
            "frames": next(iter(methods.values())).folder.left_out["frames"],
            "structures": left_out,
        },
    }


def _lacking(key: str, methods: Mapping[str, MethodScores]) -> str:
    return f"no score of {', '.join(name for name, m in methods.items() if key not in m.scores)}"


def _shared_structures(
    methods: Mapping[str, MethodScores], keys: Sequence[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Names, by plain name, of the structures that all methods have and some reference holds; why others are not."""
    first = next(iter(methods.values()))
    names = {plain_name(name): name for name in first.structures.names.values()}
    left_out = {f"{name} ({m})": why for m, s in methods.items() for name, why in s.structures.left_out.items()}
    for name, method in methods.items():
        lacking = [plain for plain in names if plain not in method.structures.numbers()]
        left_out |= {names.pop(plain): f"{name} has no such structure" for plain in lacking}
    if not names:
        remedy = f"Name the labels of each method, as in --prediction-labels {next(iter(methods))}:{EXAMPLE}"
        raise InputError("the methods have no structure in common", remedy=remedy)
    for plain in [plain for plain in names if not _drawn(first, keys, plain)]:
        left_out[names.pop(plain)] = "no reference holds it"
    if not names:
        raise InputError(
            "no reference holds any of the structures",
            remedy="Give references that are drawn, or name their labels with --reference-labels",
        )
    return names, left_out


def _drawn(method: MethodScores, keys: Iterable[str], plain: str) -> bool:
    number = method.structures.numbers()[plain]
    return any(method.scores[key].present[number] in ("both", "reference") for key in keys)


@dataclass(frozen=True)
class _Paired:
    """Methods on the cases that all of them have."""

    methods: Mapping[str, MethodScores]
    keys: Sequence[str]
    patient_of: Mapping[str, str]
    names: Mapping[str, str]
    seed: int

    def row(self, structure: str, metric: str, first: str, second: str) -> dict[str, Any]:
        """One row of the table; the structure by its plain name."""
        a, b = (self.values(name, structure, metric) for name in (first, second))
        defined = [key for key in self.keys if key in a and key in b]
        about = {
            "structure": self.names.get(structure, structure),
            "metric": metric,
            "first": first,
            "second": second,
            "volumes": len(defined),
            "undefined": len(self.keys) - len(defined),
        }
        return about | self.difference([a[key] for key in defined], [b[key] for key in defined], defined)

    def values(self, name: str, structure: str, metric: str) -> dict[str, float]:
        """A method's values by case; of the average, where all structures are defined."""
        structures = list(self.names) if structure == AVERAGE else [structure]
        found = {}
        for key in self.keys:
            values = [v for s in structures if (v := self.methods[name].value(key, s, metric)) is not None]
            if len(values) == len(structures):
                found[key] = float(np.mean(values))
        return found

    def difference(self, first: Sequence[float], second: Sequence[float], keys: Sequence[str]) -> dict[str, Any]:
        """Means, difference and test over the patients of these cases."""
        if not keys:
            nothing: dict[str, Any] = dict.fromkeys(("mean_first", "mean_second", "difference", "low", "high", "p"))
            return nothing | {"p_holm": None, "patients": 0}
        a, b = (patient_means(dict(zip(keys, side, strict=True)), self.patient_of) for side in (first, second))
        found = paired_difference(list(a.values()), list(b.values()), self.seed)
        low, high = found.interval or (None, None)
        return {
            "mean_first": found.means[0],
            "mean_second": found.means[1],
            "difference": found.difference,
            "low": low,
            "high": high,
            "p": found.p,
            "p_holm": None,
            "patients": found.patients,
        }


def _case_rows(methods: Mapping[str, MethodScores], patient_of: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"case": key, "patient": patient_of[key], "method": name, "structure": structure}
        | {metric: getattr(score, metric)[number] for metric in METRICS}
        | {"present": score.present[number]}
        for name, method in methods.items()
        for key, score in sorted(method.scores.items())
        for number, structure in method.structures.names.items()
    ]
