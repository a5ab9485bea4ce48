"""Scores of one case, mask and ensemble, and their means over cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgdpm_med.evaluation.calibration_file import Calibration, uncalibrated
from cgdpm_med.evaluation.function_scores import FrameTruth, true_volumes
from cgdpm_med.evaluation.label_hint import confusion
from cgdpm_med.evaluation.label_names import Structures
from cgdpm_med.evaluation.reference_labels import Named, read_reference, require_fitting_labels
from cgdpm_med.files import InputError
from cgdpm_med.inference.labels import DEFAULT_LABELS
from cgdpm_med.inference.quality import worst_cases_auroc
from cgdpm_med.inference.segmenter import Segmentation
from cgdpm_med.metrics.masks import (
    VolumeScore,
    brier,
    calibration_error,
    calibration_table,
    error_uncertainty_auroc,
    foreground_region,
    generalised_energy_distance,
    mean_pairwise_dice,
    predicted_true_dice_correlation,
    score_volume,
    summarise,
)
from cgdpm_med.metrics.volumetry import frame_volumes


@dataclass(frozen=True)
class CaseResult:
    """Scores of one case: the mask's, and the ensemble's where there is one.

    Attributes:
        calibration: table of the ensemble's own probabilities, see :func:`~cgdpm_med.metrics.masks.calibration_table`.
        calibrated: the same of the calibrated ones, or None.
        volumes: measured and known.
        confusion: of the labels, see :func:`~cgdpm_med.evaluation.label_hint.confusion`, or None.
        slices: how many hold a label in the reference and in the prediction, or None.
    """

    score: VolumeScore
    ensemble: Mapping[str, float | None] = field(default_factory=dict)
    calibration: NDArray[np.float64] | None = None
    calibrated: NDArray[np.float64] | None = None
    volumes: FrameTruth | None = None
    confusion: NDArray[np.int64] | None = None
    slices: tuple[int, int] | None = None


def evaluate_segmentation(
    segmentation: Segmentation,
    item: Mapping[str, str],
    calibration: Calibration | None = None,
    reference_labels: Named = None,
) -> CaseResult:
    """Score one segmentation against its reference mask on the native grid.

    Args:
        segmentation: if it was calibrated before, its own probabilities are reconstructed.
        item: of a datalist, with ``label``, ``key``, ``frame`` (phase), ``group`` and ``patient``.
        calibration: scored too, under names that end in ``_calibrated``.
        reference_labels: what the reference's values mean, see
            :func:`~cgdpm_med.evaluation.reference_labels.read_reference`.

    Ensemble values: GED (IoU) and mean pairwise Dice of the members, and, inside the reference's bounding box grown
    by 10 voxels, the multi-class Brier score and the AUROC of the entropy for finding wrong voxels.
    """
    reference = read_reference(item["label"], segmentation.labels, named=reference_labels, like=segmentation.grid)
    return score_segmentation(segmentation, reference, item, calibration)


def score_segmentation(
    segmentation: Segmentation,
    reference: NDArray[Any],
    item: Mapping[str, str],
    calibration: Calibration | None = None,
) -> CaseResult:
    """:func:`evaluate_segmentation` against a reference in memory, (X, Y, Z) with the same labels."""
    region = foreground_region(reference)
    own, calibrated = _own_and_calibrated(segmentation, calibration)
    doubt = _doubt_scores(own, reference, region)
    if calibrated is not None:
        scores = _doubt_scores(calibrated, reference, region)
        doubt |= {f"{name}_calibrated": value for name, value in scores.items()}
    size, classes = segmentation.grid.voxel_volume, len(segmentation.probabilities)
    labels = tuple(segmentation.labels.by_number)
    return CaseResult(
        score=score_volume(
            segmentation.mask,
            reference,
            segmentation.grid.spacing,
            labels=labels,
            key=item["key"],
            phase=item.get("frame", ""),
            group=item.get("group", ""),
            path=item["label"],
        ),
        ensemble={
            "ged": generalised_energy_distance(segmentation.members, reference[None], labels),
            "pairwise_dice": mean_pairwise_dice(segmentation.members, labels)
            if len(segmentation.members) > 1
            else None,
            **doubt,
        },
        calibration=calibration_table(own.probabilities, reference, region=region),
        calibrated=None
        if calibrated is None
        else calibration_table(calibrated.probabilities, reference, region=region),
        volumes=FrameTruth(
            item.get("patient", ""),
            item.get("frame", ""),
            frame_volumes(segmentation.mask, segmentation.members, size, num_classes=classes),
            true_volumes(reference, size, classes),
            segmentation.labels,
        ),
        confusion=confusion(segmentation.mask, reference, classes - 1),
    )


def notes_on_labels(results: Sequence[CaseResult], structures: Structures) -> list[str]:
    """:func:`~cgdpm_med.evaluation.reference_labels.require_fitting_labels` of results."""
    tables = [(result.score.key, result.confusion) for result in results if result.confusion is not None]
    return require_fitting_labels(tables, structures)


def _own_and_calibrated(
    segmentation: Segmentation, calibration: Calibration | None
) -> tuple[Segmentation, Segmentation | None]:
    if segmentation.temperature is not None:
        return uncalibrated(segmentation), segmentation
    return segmentation, None if calibration is None else calibration.apply(segmentation)


def _doubt_scores(s: Segmentation, reference: NDArray[Any], region: NDArray[np.bool_]) -> dict[str, float | None]:
    return {
        "brier": brier(s.probabilities, reference, region),
        "auroc": error_uncertainty_auroc(s.entropy, s.mask != reference, region),
    }


def summarise_results(
    results: Sequence[CaseResult], names: Mapping[int, str] = DEFAULT_LABELS.by_number
) -> dict[str, Any]:
    """Means over cases; calibration pooled over all voxels of the regions.

    Args:
        names: of the structures scored, by number.

    Raises:
        InputError: when there are no results, or no reference holds any of the structures.
    """
    summary: dict[str, Any] = dict(summarise([r.score for r in results], names))
    if not summary["structures"]:
        what = f"no reference holds {', '.join(names.values())}"
        raise InputError(what, remedy="Give references that are drawn, or name their labels with --reference-labels")
    of_ensembles = ensemble_names(results)
    values = {name: [v for r in results if (v := r.ensemble.get(name)) is not None] for name in of_ensembles}
    ensemble: dict[str, Any] = {name: float(np.mean(v)) if v else None for name, v in values.items()}
    for name, tables in (
        ("ece", [r.calibration for r in results if r.calibration is not None]),
        ("ece_calibrated", [r.calibrated for r in results if r.calibrated is not None]),
    ):
        if tables:
            ensemble[name] = calibration_error(np.sum(tables, axis=0))
    agreement = values.get("pairwise_dice", [])
    if len(agreement) == len(results) > 2:
        true = [float(np.mean(list(r.score.dice.values()))) for r in results]
        ensemble["predicted_true_dice"] = predicted_true_dice_correlation(agreement, true)
        ensemble["worst_decile_auroc"] = worst_cases_auroc(agreement, true)
    return summary | {"ensemble": ensemble}


def ensemble_names(results: Sequence[CaseResult]) -> list[str]:
    """What was measured of ensembles, in the order in which it first occurs."""
    return list(dict.fromkeys(name for result in results for name in result.ensemble))
