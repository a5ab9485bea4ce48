"""Ways to make intervals of volumes and function hold the truth, compared by leaving out one patient at a time.

python scripts/interval_methods.py ACDC_FOLDER OUT [--test]

Segments the validation patients with the bundle's defaults (kept in OUT/validation, not made twice). Each way is
fitted to all patients but one, as ``cgdpm-med calibrate`` fits its own to all, and judged on that one. Writes
OUT/intervals.csv and OUT/intervals.md. ``--test`` also judges the ways, fitted to all validation patients, on the test
patients: for a row that is reported, once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, geometric_mean, median

import numpy as np

from cgdpm_med import Segmenter, acdc_datalist
from cgdpm_med.console import CaseBar
from cgdpm_med.data.acdc import Section
from cgdpm_med.evaluation.calibrate import LEVEL, MARGINS, observe
from cgdpm_med.evaluation.function_scores import known_studies
from cgdpm_med.files import InputError
from cgdpm_med.inference.segmenter import ensemble_settings
from cgdpm_med.metrics.calibration import conformal_factor, interval_score
from cgdpm_med.models.weights import weights_digest
from cgdpm_med.studies.task import known_measures
from cgdpm_med.tables.csv_files import write_csv
from cgdpm_med.tables.markdown import markdown_table
from cgdpm_med.tables.rows import kept_row, write_text


@dataclass(frozen=True)
class Seen:
    """One measure of one patient: as reported, the members' 5 % and 95 % quantiles, and the truth."""

    patient: str
    measure: str
    unit: str
    value: float
    lower: float
    upper: float
    truth: float

    @property
    def score(self) -> float:
        """By which factor the interval with its margin must grow to reach the truth."""
        return interval_score(self.value, self.lower, self.upper, self.truth, MARGINS[self.unit])

    def grown(self, factor: float) -> Interval:
        margin = MARGINS[self.unit]
        return (
            self.value - factor * (self.value - self.lower + margin),
            self.value + factor * (self.upper - self.value + margin),
        )

    def moved(self, by: float) -> Seen:
        """As if another value had been reported, with the members beside it."""
        return replace(self, value=self.value + by, lower=self.lower + by, upper=self.upper + by)


Interval = tuple[float, float]
Fitted = Callable[[Seen], Interval]


# --- ways -------------------------------------------------------------------------------------------------------------


def each(known: Sequence[Seen]) -> Fitted:
    """The factor of each measure by split conformal prediction: what cgdpm-med calibrate does."""
    factors = {name: conformal_factor([seen.score for seen in group], LEVEL) for name, group in by_measure(known)}
    return lambda seen: seen.grown(factors[seen.measure])


def pooled(known: Sequence[Seen]) -> Fitted:
    """One factor for all measures, of all their scores: what cgdpm-med calibrate --together does."""
    factor = conformal_factor([seen.score for seen in known], LEVEL)
    return lambda seen: seen.grown(factor)


def by_kind(known: Sequence[Seen]) -> Fitted:
    """One factor for the measures of a unit: volumes, percentages, mass."""
    units = {seen.measure: seen.unit for seen in known}
    factor = {unit: conformal_factor([s.score for s in known if s.unit == unit], LEVEL) for unit in units.values()}
    return lambda seen: seen.grown(factor[seen.unit])


def by_structure(known: Sequence[Seen]) -> Fitted:
    """One factor for the measures of a structure: LV, RV, myocardium."""
    titles = known_measures()

    def structure(seen: Seen) -> str:
        return titles[seen.measure].title.split()[0]

    names = {structure(seen) for seen in known}
    factor = {name: conformal_factor([s.score for s in known if structure(s) == name], LEVEL) for name in names}
    return lambda seen: seen.grown(factor[structure(seen)])


def without_spread(known: Sequence[Seen]) -> Fitted:
    """Intervals of one length for all patients: the members' spread says nothing."""
    far = {name: conformal_factor([abs(s.value - s.truth) for s in group], LEVEL) for name, group in by_measure(known)}
    return lambda seen: (seen.value - far[seen.measure], seen.value + far[seen.measure])


def shifted(way: Callable[[Sequence[Seen]], Fitted]) -> Callable[[Sequence[Seen]], Fitted]:
    """The bias first: every value moves by the median error of the fitted patients."""

    def fit(known: Sequence[Seen]) -> Fitted:
        bias = {name: median(seen.truth - seen.value for seen in group) for name, group in by_measure(known)}
        fitted = way([seen.moved(bias[seen.measure]) for seen in known])
        return lambda seen: fitted(seen.moved(bias[seen.measure]))

    return fit


WAYS: Mapping[str, Callable[[Sequence[Seen]], Fitted]] = {
    "a factor for each measure (shipped)": each,
    "one factor for all measures (--together)": pooled,
    "one factor for each unit": by_kind,
    "one factor for each structure": by_structure,
    "one length for all patients": without_spread,
    "bias, then a factor for each measure": shifted(each),
    "bias, then one factor for all measures": shifted(pooled),
    "bias, then one factor for each structure": shifted(by_structure),
}


def by_measure(known: Sequence[Seen]) -> Iterable[tuple[str, list[Seen]]]:
    names = dict.fromkeys(seen.measure for seen in known)
    return [(name, [seen for seen in known if seen.measure == name]) for name in names]


# --- patients ---------------------------------------------------------------------------------------------------------


def seen_of(root: Path, section: Section, segmenter: Segmenter, folder: Path) -> list[Seen]:
    """What the bundle measures of a section's patients, from ``folder`` where it was done before.

    Raises:
        InputError: where ``folder`` holds what other weights, settings or data gave.
    """
    made_with = {
        "weights": [weights_digest(path) for path in segmenter.weights],
        "settings": ensemble_settings(segmenter),
        "dataset": root.name,
        "section": section,
    }
    row = kept_row(folder, made_with, lambda: {"seen": [asdict(s) for s in measured_of(root, section, segmenter)]})
    return [Seen(**content) for content in row["seen"]]


def measured_of(root: Path, section: Section, segmenter: Segmenter) -> list[Seen]:
    """Segments the patients; a measure that their truth leaves undefined is left out."""
    items = acdc_datalist(root, section)
    frames = []
    with CaseBar("segmenting", [item["key"] for item in items]) as bar:
        for item in items:
            frames.append(observe(segmenter, item).volumes)
            bar.update(item["key"], 1)
    definitions, found = known_measures(), []
    for study in known_studies(frames):
        measured, truths = study.found(possible=False).measures, study.truth()
        for name, truth in truths.items():
            value, lower, upper = (getattr(measured[name], end) for end in ("value", "lower", "upper"))
            if truth is not None:
                found.append(Seen(study.patient, name, definitions[name].unit, value, lower, upper, truth))
    return found


# --- scores -----------------------------------------------------------------------------------------------------------


def left_out(way: Callable[[Sequence[Seen]], Fitted], known: Sequence[Seen]) -> list[tuple[Seen, Interval]]:
    """The interval of each patient by a fit to the others."""
    found = []
    for patient in dict.fromkeys(seen.patient for seen in known):
        fitted = way([seen for seen in known if seen.patient != patient])
        found += [(seen, fitted(seen)) for seen in known if seen.patient == patient]
    return found


def scores(found: Sequence[tuple[Seen, Interval]]) -> dict[str, tuple[float, float]]:
    """By measure: percent that hold the truth, and the mean length within what is possible."""
    by_name: dict[str, list[tuple[float, float]]] = {}
    for seen, (lower, upper) in found:
        low, high = np.clip([lower, upper], 0, 100 if seen.unit == "%" else np.inf)
        by_name.setdefault(seen.measure, []).append((100.0 * (lower <= seen.truth <= upper), float(high - low)))
    return {name: (fmean(c for c, _ in pairs), fmean(n for _, n in pairs)) for name, pairs in by_name.items()}


def winkler(found: Sequence[tuple[Seen, Interval]]) -> dict[str, float]:
    """By measure the mean interval score, the lower the better: length, and 2 / (1 - level) times each miss.

    It is least, in expectation, for the ends of the true quantiles (Winkler, JASA 67, 1972; Gneiting and Raftery, JASA
    102, 2007): short intervals that miss and long ones that never do both pay.
    """
    by_name: dict[str, list[float]] = {}
    for seen, (lower, upper) in found:
        miss = max(0.0, lower - seen.truth, seen.truth - upper)
        by_name.setdefault(seen.measure, []).append(upper - lower + 2 / (1 - LEVEL) * miss)
    return {name: fmean(values) for name, values in by_name.items()}


def compared(found: Mapping[str, Sequence[tuple[Seen, Interval]]]) -> dict[str, float]:
    """Every way's interval score as a part of the first way's, the geometric mean over measures."""
    scored = {way: winkler(pairs) for way, pairs in found.items()}
    first = next(iter(scored.values()))
    return {way: geometric_mean(of[name] / first[name] for name in first) for way, of in scored.items()}


def table(results: Mapping[str, Mapping[str, tuple[float, float]]], relative: Mapping[str, float]) -> str:
    """Markdown: coverage and length of every measure, coverage of all, and the interval score."""
    names = list(next(iter(results.values())))
    titles = [known_measures()[name].title for name in names]
    rows = [
        [
            way,
            *(f"{covered:.0f} %, {length:.1f}" for covered, length in of.values()),
            f"{covers(of):.1f} %",
            f"{relative[way]:.2f}",
        ]
        for way, of in results.items()
    ]
    return markdown_table(["", *titles, "all cover", "interval score"], rows)


def covers(result: Mapping[str, tuple[float, float]]) -> float:
    return fmean(covered for covered, _ in result.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_dir", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--bundle", default="acdc_segmentation")
    parser.add_argument("--test", action="store_true", help="judge on the test patients, too")
    arguments = parser.parse_args()
    try:
        compare(arguments)
    except InputError as error:
        parser.exit(2, f"error: {error}\n")


def compare(arguments: argparse.Namespace) -> None:
    segmenter = Segmenter.from_bundle(arguments.bundle)
    known = seen_of(arguments.dataset_dir, "validation", segmenter, arguments.output / "validation")
    parts = {"validation, one left out": {name: left_out(way, known) for name, way in WAYS.items()}}
    if arguments.test:
        new = seen_of(arguments.dataset_dir, "test", segmenter, arguments.output / "test")
        fitted = {name: way(known) for name, way in WAYS.items()}
        parts["test"] = {name: [(s, fit(s)) for s in new] for name, fit in fitted.items()}
    rows = [
        {"patients": part, "way": way, "measure": name, "coverage": covered, "length": length}
        for part, results in parts.items()
        for way, found in results.items()
        for name, (covered, length) in scores(found).items()
    ]
    write_csv(arguments.output / "intervals.csv", rows)
    tables = {
        part: table({way: scores(found) for way, found in results.items()}, compared(results))
        for part, results in parts.items()
    }
    text = "\n\n".join(f"{part}\n\n{content}" for part, content in tables.items())
    write_text(arguments.output / "intervals.md", text + "\n")
    print(text)


if __name__ == "__main__":
    main()
