"""Fit a calibration to patients of known truth: what ``cgdpm-med calibrate`` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cgdpm_med.console import CaseBar
from cgdpm_med.data.acdc import Section, Split, acdc_datalist, acdc_patient_folders, load_split, section_of
from cgdpm_med.evaluation.calibration_file import (
    CALIBRATION,
    Calibration,
    keep_other_settings,
    plain,
    write_calibration,
)
from cgdpm_med.evaluation.function_scores import FrameTruth, KnownStudy, known_studies, score_function, true_volumes
from cgdpm_med.evaluation.label_hint import confusion
from cgdpm_med.evaluation.reference_labels import (
    Named,
    read_reference,
    require_fitting_labels,
    structures_of_references,
)
from cgdpm_med.evaluation.training_patients import check_unseen
from cgdpm_med.files import InputError, check_place
from cgdpm_med.inference.labels import Labels
from cgdpm_med.inference.segmenter import Segmentation, Segmenter, ensemble_settings, load_segmenter
from cgdpm_med.metrics.calibration import (
    conformal_factor,
    conformal_rank,
    fit_probabilities,
    fit_temperature,
    guaranteed_coverage,
    interval_score,
    negative_log_likelihood,
    temper,
)
from cgdpm_med.metrics.masks import brier, calibration_error, calibration_table, foreground_region
from cgdpm_med.metrics.volumetry import frame_volumes
from cgdpm_med.models.weights import digests_by_name
from cgdpm_med.runtime.engines import Answer, Engine, InProcess, Item, Progress, do_in_order
from cgdpm_med.studies.measures import Measure
from cgdpm_med.studies.task import known_measures, task_among
from cgdpm_med.tables.numbers import format_number
from cgdpm_med.volumes import Spacing, read_volume

LEVEL = 0.9
"""Nominal coverage of the intervals."""

MARGINS: Mapping[str, float] = {"ml": 5.0, "g": 5.0, "%": 2.0}
"""By unit, the doubt that every case has beside its members' spread, before the fitted factor multiplies both.

Members of one network agree by chance on some cases, and share its habits on all; a factor alone would have to be huge.
The values are of the size by which readers differ. They were set beforehand: values chosen on the fitted patients would
void the coverage.
"""


_PLACE = "Name nine or more in the list {} of a JSON file with lists train, validation and test, given as --split"

_SECTIONS: Mapping[str, Section] = {"train": "train", "validation": "validation"}


class KnownVoxels(Protocol):
    """Voxels of known truth: ``probabilities`` (C, N) float32, ``labels`` (N,) uint8."""

    @property
    def probabilities(self) -> NDArray[np.float32]: ...

    @property
    def labels(self) -> NDArray[np.uint8]: ...


@dataclass(frozen=True, eq=False)
class KnownFrame:
    """What the fit needs of one volume: its millilitres, and the voxels around the structures.

    Attributes:
        volumes: measured and known.
        probabilities: (C, N) float32, of the region's voxels.
        labels: (N,) uint8.
    """

    volumes: FrameTruth
    probabilities: NDArray[np.float32]
    labels: NDArray[np.uint8]

    def confusion(self) -> tuple[str, NDArray[np.int64]]:
        """Patient and phase, and :func:`~cgdpm_med.evaluation.label_hint.confusion` of the region's voxels."""
        found = self.probabilities.argmax(axis=0)
        name = f"{self.volumes.patient} {self.volumes.phase}"
        return name, confusion(found, self.labels, len(self.probabilities) - 1)


def calibrate(
    root: str | Path,
    *,
    section: str = "validation",
    split: str | Path | Split | None = None,
    bundle: str | Path = "acdc_segmentation",
    device: str = "auto",
    output: str | Path | None = None,
    spacing: Spacing = "auto",
    reference_labels: Named = None,
    engine: Engine | None = None,
    together: bool = False,
    **changes: Any,
) -> dict[str, Any]:
    """Segment a section's patients, fit temperature and intervals, and write the calibration beside the weights.

    Args:
        root: folder in ACDC's layout.
        section: "validation", or "train" of patients that the network was not trained on.
        split: as for :func:`~cgdpm_med.acdc_datalist`.
        device: see :func:`~cgdpm_med.inference.segmenter.choose_device`.
        output: file to write; ``calibration.json`` in the folder of the weights by default.
        spacing: of every image and reference, see :func:`~cgdpm_med.read_volume`.
        reference_labels: what the references' values mean, ``1=liver,2=tumour``, where they have other numbers than the
            model's structures; None takes the names of a dataset.json with them, else the model's numbers.
        engine: who segments, by default this process; see :func:`~cgdpm_med.apps.cluster.open_cluster`.
        together: whether all measures have one factor, see :func:`fit_intervals`.
        changes: keys of the bundle's inference configuration; None keeps the bundle's own value.

    Returns:
        The content of the file, and ``file``, its path.

    Raises:
        InputError: for test patients, patients that trained the network, too few of them, or one whose image or
            reference cannot be used; or where the references' labels look exchanged with the model's.
    """
    engine, items = engine or InProcess(), calibration_items(root, section, split)
    changes = {name: value for name, value in changes.items() if value is not None}
    segmenter = engine.once(partial(load_segmenter, bundle, device, changes))
    facts = engine.ask(partial(facts_of, segmenter))
    note = check_unseen((item["patient"] for item in items), facts.weights, "validation")
    path = calibration_path(output, facts.weights)
    settings = {**facts.settings, "staple": False, "keep_largest": False}
    if output is None:
        keep_other_settings(path, settings)
    structures = structures_of_references(items, facts.labels, reference_labels)
    for item in items:  # whatever is wrong is found before the long part
        volume = read_volume(item["image"], spacing=spacing)
        read_reference(item["label"], facts.labels, named=reference_labels, like=volume.grid, spacing=spacing)
    with CaseBar("calibrating", [item["key"] for item in items]) as bar:
        if note is not None:
            bar.line(note)
        frames = observe_all(engine, _Observing(segmenter, spacing, reference_labels), items, itemgetter("key"), bar)
        for line in require_fitting_labels([frame.confusion() for frame in frames], structures):
            bar.line(line)
    calibration = fit_calibration(
        frames,
        weights=digests_by_name(facts.weights),
        settings=settings,
        data={"section": section, "seed": facts.seed, "device": facts.device},
        together=together,
    )
    write_calibration(calibration, path)
    return {
        "file": str(path),
        "temperature": calibration.temperature,
        "doubt": calibration.doubt,
        "level": calibration.level,
        "widening": dict(calibration.widening),
        "margin": dict(calibration.margin),
        "data": dict(calibration.data),
        **calibration.numbers,
    }


@dataclass(frozen=True)
class SegmenterFacts:
    """What a fit needs to know of a segmenter that other processes may hold.

    Attributes:
        settings: that its masks depend on.
    """

    weights: tuple[Path, ...]
    labels: Labels
    settings: dict[str, Any]
    seed: int
    device: str


def facts_of(segmenter: Callable[[], Segmenter]) -> SegmenterFacts:
    """Of the segmenter that ``segmenter`` gives."""
    held = segmenter()
    seed = held.predictor.sampling.seed
    return SegmenterFacts(held.weights, held.labels, ensemble_settings(held), seed, str(held.device))


def calibration_path(output: str | Path | None, weights: Sequence[Path]) -> Path:
    """``output``, or the file beside the weights.

    Raises:
        InputError: it cannot be written.
    """
    path = Path(output) if output is not None else weights[0].with_name(CALIBRATION)
    remedy = "Give a file in a folder of yours as --output"
    if path.is_dir():
        raise InputError("cannot be written: is a directory", path=path, remedy=remedy)
    try:
        check_place(path.parent)
    except InputError as error:
        raise InputError(error.what, path=path, remedy=remedy) from error
    return path


def observe_all(
    engine: Engine,
    work: Callable[[Item, Progress], Answer],
    items: Sequence[Item],
    key: Callable[[Item], str],
    bar: CaseBar,
) -> list[Answer]:
    """What is seen of every item, in their order.

    Raises:
        InputError: one of them cannot be used, so there is no fit.
    """

    def ended(item: Item, answer: Answer | InputError) -> None:
        if isinstance(answer, InputError):
            raise answer
        bar.update(key(item), 1)
        bar.note(f"segmented {key(item)}")

    answers = do_in_order(engine, work, items, bar.update, ended)
    return [answer for answer in answers if not isinstance(answer, InputError)]


@dataclass(frozen=True)
class _Observing:
    """:func:`observe` with a segmenter that the process makes once."""

    segmenter: Callable[[], Segmenter]
    spacing: Spacing
    reference_labels: Named

    def __call__(self, item: Mapping[str, str], progress: Progress) -> KnownFrame:
        return observe(self.segmenter(), item, partial(progress, item["key"]), self.spacing, self.reference_labels)


def calibration_items(
    root: str | Path, section: str = "validation", split: str | Path | Split | None = None
) -> list[dict[str, str]]:
    """Datalist of the patients to fit to.

    Raises:
        InputError: where one of them is a test patient, of ``split`` or of the committed split, or they are too few.
    """
    chosen = _SECTIONS.get(section)
    if chosen is None:
        remedy = "Use section validation; test patients must show what a calibration is worth"
        raise InputError(f"a calibration is not fitted to section {section!r}", remedy=remedy)
    items = _items(root, chosen, split)
    patients = {item["patient"] for item in items}
    held_out = {*load_split()["test"], *load_split(split)["test"]}
    if taken := sorted(patients & held_out):
        remedy = "Place it in the list test of the split: test patients must show what a calibration is worth"
        raise InputError(f"{taken[0]} is a test patient", path=Path(root), remedy=remedy)
    if conformal_rank(len(patients), LEVEL) is None:
        remedy = _PLACE.format(chosen)
        raise InputError(f"section {section} has {len(patients)} patients", path=Path(root), remedy=remedy)
    return items


def _items(root: str | Path, section: Section, split: str | Path | Split | None) -> list[dict[str, str]]:
    folders = acdc_patient_folders(root)
    if section not in section_of((folder.resolve().name for folder in folders), split).values():
        remedy = _PLACE.format(section)
        raise InputError(f"no patient here belongs to section {section!r}", path=Path(root), remedy=remedy)
    return acdc_datalist(root, section, split=split)


def observe(
    segmenter: Callable[..., Segmentation],
    item: Mapping[str, str],
    progress: Callable[[float], None] | None = None,
    spacing: Spacing = "auto",
    reference_labels: Named = None,
) -> KnownFrame:
    """Segment one volume of a datalist and keep what the fit needs.

    Voxels are those of :func:`~cgdpm_med.metrics.masks.foreground_region`, in which evaluation measures calibration,
    too: outside, certain background would outnumber the rest, and voxels chosen one by one by their true label would
    mislead.
    """
    volume = read_volume(item["image"], spacing=spacing)
    found = segmenter(volume, item["key"], progress)
    classes, size = len(found.probabilities), volume.grid.voxel_volume
    reference = read_reference(item["label"], found.labels, named=reference_labels, like=volume.grid, spacing=spacing)
    region = foreground_region(reference)
    return KnownFrame(
        FrameTruth(
            item["patient"],
            item["frame"],
            frame_volumes(found.mask, found.members, size, num_classes=classes),
            true_volumes(reference, size, classes),
            found.labels,
        ),
        found.probabilities[:, region],
        reference[region],
    )


def fit_calibration(
    frames: Sequence[KnownFrame],
    *,
    weights: Mapping[str, str],
    settings: Mapping[str, Any],
    data: Mapping[str, Any],
    together: bool = False,
) -> Calibration:
    """Temperature and doubt of all voxels, see :func:`fit_voxels`; intervals as :func:`fit_intervals`.

    Raises:
        InputError: for too few patients with all phases, or a measure that the ensemble leaves undefined too often.
    """
    studies = known_studies(frame.volumes for frame in frames)
    task = task_among(frames[0].volumes.labels)
    if task.phases and not studies:
        raise InputError(f"no patient has {' and '.join(task.phases)}", remedy="Give every frame of each patient")
    temperature, doubt = fit_voxels(frames)
    factors, margins = fit_intervals(studies, together)
    truths = [study.truth() for study in studies]
    scores = sum(truth is not None for known in truths for truth in known.values())
    patients = len(studies) or len({frame.volumes.patient for frame in frames})
    return Calibration(
        temperature=temperature,
        doubt=doubt,
        level=LEVEL,
        widening=factors,
        margin=margins,
        weights=dict(weights),
        settings=plain(settings),
        data={**data, "patients": patients, "volumes": len(frames)},
        numbers={
            "before": {
                **voxel_scores(frames),
                "function": score_function(truths, [study.found() for study in studies]),
            },
            "after": {
                **voxel_scores(frames, temperature, doubt),
                "function": score_function(truths, [study.found(factors, margins) for study in studies]),
            },
            **({"guarantee": _guarantee(len(studies), scores, together)} if studies else {}),
        },
    )


def _guarantee(patients: int, scores: int, together: bool) -> dict[str, Any]:
    """How often the intervals will hold the truth.

    Of measures that share a factor it is the average over them. With the new patient's there are as many scores more
    as a patient has; those up to the rank are covered, since leaving out a patient can only raise the factor.
    """
    if together:
        rank = conformal_rank(scores, LEVEL) or 0
        return {
            "of": "all measures together",
            "coverage_on_average_over_fits": rank / scores * patients / (patients + 1),
        }
    on_average, of_one_fit = guaranteed_coverage(patients, LEVEL)
    return {
        "of": "each measure",
        "coverage_on_average_over_fits": on_average,
        "coverage_of_this_fit_exceeds": of_one_fit,
        "with_probability": 0.95,
    }


def fit_intervals(studies: Sequence[KnownStudy], together: bool = False) -> tuple[dict[str, float], dict[str, float]]:
    """``widening`` and ``margin`` of every measure by conformal scores; see
    :meth:`~cgdpm_med.studies.task.Task.measure`.

    Args:
        together: one factor of all measures' scores, not one of each measure's. Where patients are few, each measure's
            own is its worst patient; a common one is shorter, and its promise is one over all measures.

    Raises:
        InputError: for too few studies, or a measure that the ensemble leaves undefined too often.
    """
    # a little more than the score: its own patient lies at the very end of the interval, whatever the rounding
    measures = studies[0].task.measures if studies else {}
    scores = {name: _scores(studies, name, measure) for name, measure in measures.items()}
    factors = {name: _factor(scores[name], measure) for name, measure in measures.items()}
    if together:
        factors = dict.fromkeys(factors, conformal_factor(np.concatenate(list(scores.values())), LEVEL))
    factors = {name: factor * (1 + 1e-9) for name, factor in factors.items()}
    return factors, {name: factors[name] * MARGINS[measure.unit] for name, measure in measures.items()}


def _scores(studies: Sequence[KnownStudy], name: str, measure: Measure) -> list[float]:
    """Of the patients whose truth there is; infinite where the ensemble leaves the measure undefined."""
    margin = MARGINS[measure.unit]
    scores = []
    for study in studies:
        # a score compares distances from the value, which may be impossible where the ends are not allowed to be
        estimate, truth = study.found(possible=False).measures[name], study.truth()[name]
        if truth is None:
            continue  # there is nothing to cover
        if estimate.value is None or estimate.lower is None or estimate.upper is None:
            scores.append(np.inf)
        else:
            scores.append(interval_score(estimate.value, estimate.lower, estimate.upper, truth, margin))
    return scores


def _factor(scores: Sequence[float], measure: Measure) -> float:
    factor = conformal_factor(scores, LEVEL)
    if not np.isfinite(factor):
        undefined = int(np.isinf(scores).sum())
        what = f"{measure.title} has no interval in {undefined} of {len(scores)} patients"
        raise InputError(what, remedy="Use two members or more, and weights that find the structures")
    return factor


def fit_voxels(frames: Sequence[KnownVoxels]) -> tuple[float, float]:
    """Temperature and doubt of all voxels together.

    Fitted by Brier score, by likelihood (a temperature alone), or 1 and 0, whichever leaves the least calibration
    error: no fit may calibrate the voxels worse than they are.
    """
    p = np.concatenate([frame.probabilities for frame in frames], axis=1)
    labels = np.concatenate([frame.labels for frame in frames])
    candidates = [(1.0, 0.0), fit_probabilities(p, labels), (fit_temperature(p, labels), 0.0)]
    errors = [calibration_error(calibration_table(temper(p, *candidate), labels)) for candidate in candidates[1:]]
    errors.insert(0, calibration_error(calibration_table(p, labels)))
    return candidates[int(np.argmin(errors))]


def voxel_scores(frames: Sequence[KnownVoxels], temperature: float = 1.0, doubt: float = 0.0) -> dict[str, float]:
    """``nll`` and ``ece`` over all voxels together, ``brier`` as the mean over volumes, after temperature and doubt."""
    tables, briers, nll, voxels = [], [], 0.0, 0
    for frame in frames:
        own = temperature == 1 and doubt == 0
        p = frame.probabilities if own else temper(frame.probabilities, temperature, doubt)
        tables.append(calibration_table(p, frame.labels))
        briers.append(brier(p, frame.labels))
        nll += frame.labels.size * negative_log_likelihood(frame.probabilities, frame.labels, temperature, doubt)
        voxels += frame.labels.size
    return {
        "ece": calibration_error(np.sum(tables, axis=0)),
        "brier": float(np.mean(briers)),
        "nll": nll / voxels,
    }


def format_calibration(result: Mapping[str, Any]) -> str:
    """What the command prints: before and after, and what is promised elsewhere."""
    before, after, data = result["before"], result["after"], result["data"]
    lines = [
        f"fitted to {data['patients']} {data['section']} patients, {data['volumes']} volumes",
        f"temperature {result['temperature']:.3f}, doubt {result['doubt']:.4f}",
        f"{'':28}{'before':>9}{'after':>9}",
    ]
    for name, label in (("ece", "calibration error (ECE)"), ("brier", "Brier score"), ("nll", "log-likelihood loss")):
        lines.append(f"{label:28}{before[name]:>9.4f}{after[name]:>9.4f}")
    return "\n".join(lines + _interval_lines(result) if before["function"] else lines)


def _interval_lines(result: Mapping[str, Any]) -> list[str]:
    before, after, guarantee = result["before"], result["after"], result["guarantee"]
    patients = result["data"]["patients"]
    lines = ["", f"{'':28}{'coverage':>18}{'interval length':>20}{'factor':>9}{'margin':>9}"]
    definitions = known_measures()
    for name in before["function"]:
        measure = definitions[name]
        scores = before["function"][name], after["function"][name]
        covered = [format_number(score["coverage"], 0, 100, "%") for score in scores]
        lengths = [format_number(score["width"], 1) for score in scores]
        lines.append(
            f"{f'{measure.title}, {measure.unit}':34}{covered[0]:>5} ->{covered[1]:>5}"
            f"{lengths[0]:>10} ->{lengths[1]:>7}"
            f"{result['widening'][name]:>9.2f}{result['margin'][name]:>9.1f}"
        )
    on_average = f"{guarantee['coverage_on_average_over_fits']:.1%} on average over fits to {patients} patients"
    return [
        *lines,
        "",
        "Coverage after is that of the fitted patients themselves. New ones like them are covered with probability",
        f"{on_average} and over all measures, or more."
        if guarantee["of"] == "all measures together"
        else f"{on_average}; by this one fit with more than {guarantee['coverage_of_this_fit_exceeds']:.0%}, at "
        f"{guarantee['with_probability']:.0%} confidence.",
    ]
