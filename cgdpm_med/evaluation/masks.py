"""Masks that are there already, from whatever method, scored against references: by name, frame by frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgdpm_med.console import CaseBar, complain
from cgdpm_med.evaluation.case import CaseResult, score_segmentation, summarise_results
from cgdpm_med.evaluation.drawn_slices import few_drawn, labelled_slices
from cgdpm_med.evaluation.files import write_results
from cgdpm_med.evaluation.find_labels import RunLabels, find_labels
from cgdpm_med.evaluation.function_scores import FrameTruth, compare_records, known_studies, true_volumes
from cgdpm_med.evaluation.label_hint import confusion, label_hints
from cgdpm_med.evaluation.label_names import LabelSet, Structures
from cgdpm_med.evaluation.mask_grids import voxels_on_grid
from cgdpm_med.evaluation.picture_masks import read_mask, same_kind
from cgdpm_med.files import InputError, listed
from cgdpm_med.metrics.masks import score_volume
from cgdpm_med.report.records import read_study
from cgdpm_med.runtime.engines import Engine, InProcess, Progress, about, do_in_order
from cgdpm_med.studies.mask_pairs import MaskPair, is_picture_mask, pair_masks
from cgdpm_med.studies.outputs import read_ensemble
from cgdpm_med.volumes import Spacing, Volume


@dataclass(frozen=True)
class Reading:
    """How the files of two sides are read.

    Attributes:
        structures: what their values mean.
        ignore_geometry: pair voxels as they are stored, on the reference's grid, where shapes agree.
        spacing: of the references, see :func:`~cgdpm_med.read_volume`; three numbers in mm hold for both sides.
        ensembles: score the members and probabilities that lie beside a prediction as well.
    """

    structures: Structures = field(default_factory=Structures)
    ignore_geometry: bool = False
    spacing: Spacing = "auto"
    ensembles: bool = True


@dataclass(frozen=True)
class PairScores:
    """What one pair of files gave.

    Attributes:
        results: of each frame that the reference draws; of a 3D pair one.
        undrawn: numbers of the other frames, counted from 1.
        unscored: why the ensemble that lies beside the prediction was not scored, or None.
    """

    results: list[CaseResult]
    undrawn: list[int] = field(default_factory=list)
    unscored: str | None = None


@dataclass(frozen=True)
class FolderScores:
    """What all pairs gave.

    Attributes:
        results: in the order of the pairs.
        failed: the error of each case that could not be used, by key.
        left_out: ``unpaired`` keys, undrawn ``frames`` by key, ``structures`` and ``ensembles`` with their reasons.
    """

    results: list[CaseResult]
    failed: dict[str, str]
    left_out: dict[str, Any]


def evaluate_folders(
    predictions: str | Path,
    references: str | Path,
    output: str | Path | None = None,
    *,
    labels: LabelSet | None = None,
    prediction_labels: LabelSet | None = None,
    reference_labels: LabelSet | None = None,
    ignore_geometry: bool = False,
    spacing: Spacing = "auto",
    run: RunLabels | None = None,
    check: Callable[[Sequence[MaskPair]], None] = lambda pairs: None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Score predicted masks against reference masks, paired by name; write ``cases.csv`` and ``summary.json``.

    A file without a partner, or that cannot be used, is reported, counted under ``failed`` and left out of the means.
    Where ``segment`` wrote members and probabilities beside its masks, the ensembles are scored as well.

    Args:
        predictions, references: two folders or two files; see :func:`~cgdpm_med.studies.mask_pairs.pair_masks`.
        output: folder of the files; None writes nothing.
        labels, prediction_labels, reference_labels: what the values mean, for both sides or for one; None looks for a
            dataset.json and else takes ACDC's, see :func:`~cgdpm_med.evaluation.find_labels.find_labels`.
        ignore_geometry, spacing: see :class:`Reading`.
        run: what the run that made the predictions calls its classes.
        check: called with the pairs, before anything is scored, to refuse them.
        engine: who scores the pairs, by default this process; see :func:`~cgdpm_med.apps.cluster.open_cluster`.

    Returns:
        The summary, see :func:`evaluate_pairs`.

    Raises:
        InputError: when no case could be scored, or the two sides have no structure in common.
    """
    pairs, lonely = pair_masks(predictions, references)
    check(pairs)
    given = {"labels": labels, "prediction_labels": prediction_labels, "reference_labels": reference_labels}
    reading = Reading(find_labels(predictions, references, **given, run=run), ignore_geometry, spacing)
    return evaluate_pairs(pairs, output, errors=lonely, reading=reading, engine=engine)


def evaluate_pairs(
    pairs: Sequence[MaskPair],
    output: str | Path | None = None,
    *,
    errors: Mapping[str, InputError] | None = None,
    reading: Reading | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Score predicted masks, and what lies beside them; write ``cases.csv``, ``summary.json`` and ``left_out.csv``.

    Args:
        output: folder of the files; None writes nothing.
        errors: of cases that were found bad before, by key, reported and counted like the others.
        reading: None takes ACDC's labels.
        engine: who scores the pairs, by default this process.

    Returns:
        The summary: see :func:`summarise`, with ``failed``, ``left_out`` (see :class:`FolderScores`), ``labels`` of
        both sides, ``unit`` of the distances ("px" of pictures without a
        spacing, else "mm"), ``label_hints`` where values look exchanged (see
        :func:`~cgdpm_med.evaluation.label_hint.label_hints`), ``few_drawn`` (see
        :func:`~cgdpm_med.evaluation.drawn_slices.few_drawn`), and ``function`` and ``quality`` of
        :func:`~cgdpm_med.evaluation.function_scores.compare_records` where references are in ACDC's layout. A frame
        of a 4D pair is a case ``<key>/frame<number>``.

    Raises:
        InputError: when no case could be scored.
    """
    reading = reading or Reading()
    scores = score_pairs(pairs, errors or {}, reading, engine)
    names = reading.structures.names
    summary = summarise_results(scores.results, names) | _function_of(pairs, scores.results)
    summary |= {
        "unit": distance_unit(pairs, reading.spacing),
        "failed": scores.failed,
        "left_out": scores.left_out,
        "labels": described(reading.structures),
        "label_hints": hints(scores.results, reading.structures),
        "few_drawn": partly_drawn(scores.results),
    }
    if output is not None:
        write_results(scores.results, summary, Path(output), names)
    return summary


def distance_unit(pairs: Sequence[MaskPair], spacing: Spacing) -> str:
    """Of the distances between masks: "px" for pictures without a spacing, else "mm"."""
    return "px" if pairs and is_picture_mask(pairs[0].reference) and isinstance(spacing, str) else "mm"


def score_pairs(
    pairs: Sequence[MaskPair],
    errors: Mapping[str, InputError],
    reading: Reading,
    engine: Engine | None = None,
) -> FolderScores:
    """Score every pair that can be used; each error is printed in one line.

    Args:
        errors: of cases without a partner, by key.
    """
    results: list[CaseResult] = []
    failed = {key: str(error) for key, error in errors.items()}
    frames: dict[str, list[int]] = {}
    unscored: dict[str, str] = {}
    with CaseBar("evaluating", [pair.key for pair in pairs]) as bar:
        for error in errors.values():
            complain(error, bar)
        answers = do_in_order(engine or InProcess(), _Scoring(reading), pairs, bar.update, partial(_show, bar))
    for pair, scored in zip(pairs, answers, strict=True):
        if isinstance(scored, InputError):
            failed[pair.key] = str(about(scored, pair.prediction))
            continue
        results += scored.results
        frames |= {pair.key: scored.undrawn} if scored.undrawn else {}
        unscored |= {pair.key: scored.unscored} if scored.unscored else {}
    left_out = {
        "unpaired": list(errors),
        "frames": frames,
        "structures": dict(reading.structures.left_out),
        "ensembles": unscored,
    }
    return FolderScores(results, failed, left_out)


@dataclass(frozen=True)
class _Scoring:
    """Scores one pair after the other, in this process or another."""

    reading: Reading

    def __call__(self, pair: MaskPair, progress: Progress) -> PairScores:
        progress(pair.key, 0)
        return score_pair(pair, self.reading)


def _show(bar: CaseBar, pair: MaskPair, scored: PairScores | InputError) -> None:
    if isinstance(scored, InputError):
        complain(about(scored, pair.prediction), bar)
    bar.update(pair.key, 1)


def _function_of(pairs: Sequence[MaskPair], results: Sequence[CaseResult]) -> dict[str, Any]:
    studies = known_studies(result.volumes for result in results if result.volumes is not None)
    folders = {pair.patient: pair.prediction.parent for pair in pairs}
    recorded = {s.patient: read_study(folders[s.patient] / f"{s.patient}.json") for s in studies}
    return compare_records(studies, {patient: record for patient, record in recorded.items() if record is not None})


def described(structures: Structures) -> dict[str, str]:
    """The labels of both sides, and where they come from, for people."""
    sides = {"references": structures.reference, "predictions": structures.prediction}
    return {side: f"{labels} ({labels.source})" for side, labels in sides.items()}


def hints(results: Sequence[CaseResult], structures: Structures) -> list[dict[str, Any]]:
    """:func:`~cgdpm_med.evaluation.label_hint.label_hints` of the results."""
    return label_hints([(r.score.key, r.confusion) for r in results if r.confusion is not None], structures)


def partly_drawn(results: Sequence[CaseResult]) -> dict[str, tuple[int, int]]:
    """:func:`~cgdpm_med.evaluation.drawn_slices.few_drawn` of the results."""
    return few_drawn({r.score.key: r.slices for r in results if r.slices is not None})


# --- one pair ---------------------------------------------------------------------------------------------------------


def score_pair(pair: MaskPair, reading: Reading | None = None) -> PairScores:
    """Score one predicted mask frame by frame, and its ensemble where that was written.

    Raises:
        InputError: a file is bad, holds values without a name, or the two masks lie on different grids or have not the
            same number of frames; of a 4D reference no frame is drawn.
    """
    reading = reading or Reading()
    aligned = _align(pair, reading)
    if aligned.truth.ndim == 4:
        return _score_cine(aligned)
    return _score_volume_and_ensemble(aligned) if reading.ensembles else PairScores([_score_masks(aligned)])


@dataclass(frozen=True, eq=False)
class _Aligned:
    """A pair voxel by voxel: both masks (X, Y, Z) or (X, Y, Z, T) as numbers of structures."""

    pair: MaskPair
    prediction: Volume
    reference: Volume
    predicted: NDArray[np.uint16]
    truth: NDArray[np.uint16]
    structures: Structures

    def frame(self, number: int) -> _Aligned:
        """One frame, counted from 1, as a case of its own."""
        pair = replace(self.pair, key=f"{self.pair.key}/frame{number:03d}")
        predicted, truth = (mask[..., number - 1] for mask in (self.predicted, self.truth))
        return replace(self, pair=pair, predicted=predicted, truth=truth)


def _align(pair: MaskPair, reading: Reading) -> _Aligned:
    structures = reading.structures
    same_kind(pair.prediction, pair.reference)
    reference = read_mask(pair.reference, reading.spacing)
    # a header that shall not count need not be usable
    spacing = reference.grid.spacing if reading.ignore_geometry else reading.spacing
    prediction = read_mask(pair.prediction, spacing)
    structures.reference.require(reference)
    structures.prediction.require(prediction)
    _require_frames(prediction, reference)
    voxels = voxels_on_grid(prediction, reference, ignore_geometry=reading.ignore_geometry)
    predicted, truth = structures.of_prediction(voxels), structures.of_reference(reference.data)
    return _Aligned(pair, prediction, reference, predicted, truth, structures)


def _require_frames(prediction: Volume, reference: Volume) -> None:
    found, wanted = (mask.data.shape[3] if mask.data.ndim == 4 else 1 for mask in (prediction, reference))
    if found == wanted:
        return
    if found == 1:
        drawn = listed(drawn_frames(reference))
        remedy = f"Cut the frame it shows out of the reference, as a 3D file of its name (drawn are frames {drawn})"
    elif wanted == 1:
        remedy = "Cut the frame that the reference shows out of the prediction, as a 3D file of its name"
    else:
        remedy = "Predict the image that the reference was drawn on"
    raise InputError(f"has {_frames(found)}, its reference {_frames(wanted)}", path=prediction.path, remedy=remedy)


def _frames(count: int) -> str:
    return f"{count} frame{'' if count == 1 else 's'}"


def drawn_frames(reference: Volume) -> list[int]:
    """Numbers of the frames of a 4D label map that hold a label, counted from 1."""
    return [int(t) + 1 for t in np.flatnonzero(reference.data.any(axis=(0, 1, 2)))]


def _score_cine(cine: _Aligned) -> PairScores:
    drawn, frames = drawn_frames(cine.reference), cine.truth.shape[3]
    if not drawn:
        what = f"holds no label in any of its {frames} frames"
        raise InputError(what, path=cine.pair.reference, remedy="Give a reference in which frames are drawn")
    undrawn = [number for number in range(1, frames + 1) if number not in drawn]
    return PairScores([_score_masks(cine.frame(number)) for number in drawn], undrawn)


def _score_volume_and_ensemble(aligned: _Aligned) -> PairScores:
    ensemble = None if is_picture_mask(aligned.pair.prediction) else read_ensemble(aligned.prediction)
    if ensemble is None:
        return PairScores([_score_masks(aligned)])
    same_grid = aligned.reference.grid.difference(aligned.prediction.grid) is None
    same_labels = aligned.structures.as_segmented and len(ensemble.probabilities) == len(aligned.structures.names) + 1
    if not (same_labels and same_grid):
        unscored = "its labels or its grid are not those of the references"
        return PairScores([_score_masks(aligned)], unscored=unscored)
    pair = aligned.pair
    about = {"key": pair.key, "frame": pair.phase, "group": pair.group, "patient": pair.patient}
    result = score_segmentation(ensemble, aligned.truth, {"label": str(pair.reference), **about})
    return PairScores([replace(result, slices=_slices(aligned))])


def _score_masks(aligned: _Aligned) -> CaseResult:
    pair = aligned.pair
    score = score_volume(
        aligned.predicted,
        aligned.truth,
        aligned.reference.grid.spacing,
        labels=tuple(aligned.structures.names),
        key=pair.key,
        phase=pair.phase,
        group=pair.group,
        path=pair.prediction,
    )
    return CaseResult(score, volumes=_known_volumes(aligned), confusion=_confusion(aligned), slices=_slices(aligned))


def _known_volumes(aligned: _Aligned) -> FrameTruth:
    labels, size = aligned.structures.labels, aligned.reference.grid.voxel_volume
    found, truth = (true_volumes(mask, size, len(labels.names) + 1) for mask in (aligned.predicted, aligned.truth))
    return FrameTruth(aligned.pair.patient, aligned.pair.phase, found, truth, labels)


def _confusion(aligned: _Aligned) -> NDArray[np.int64]:
    return confusion(aligned.predicted, aligned.truth, len(aligned.structures.names))


def _slices(aligned: _Aligned) -> tuple[int, int]:
    grid = aligned.reference.grid
    return labelled_slices(aligned.truth, grid), labelled_slices(aligned.predicted, grid)
