"""The locked evaluation protocol, run: score masks against references on their native grid, write the table.

:func:`evaluate_acdc` segments the cases it scores, so it can score the ensembles too; :func:`evaluate_folders` compares
masks that are there already, from whatever method.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cgdpm_med.apps.calibration_file import Calibration, find_calibration, with_temperature
from cgdpm_med.apps.cardiac import MEASURES, frame_volumes
from cgdpm_med.apps.cases import MaskPair, pair_masks
from cgdpm_med.apps.console import CaseBar, complain
from cgdpm_med.apps.function_scores import (
    FrameTruth,
    compare_function,
    compare_records,
    known_studies,
    true_volumes,
)
from cgdpm_med.apps.outputs import read_ensemble
from cgdpm_med.apps.quality import worst_cases_auroc
from cgdpm_med.apps.records import read_study
from cgdpm_med.apps.segment import Segmentation, Segmenter
from cgdpm_med.apps.training_patients import check_unseen, training_record
from cgdpm_med.data import ACDC_LABELS, Section, Split, acdc_datalist
from cgdpm_med.metrics import (
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
from cgdpm_med.predictor import DiffusionPredictor
from cgdpm_med.volumes import InputError, atomic_write, read_labels, read_volume


@dataclass(frozen=True)
class CaseResult:
    """Scores of one case: the mask's, and the ensemble's where there is one.

    Attributes:
        calibration: table of the ensemble's own probabilities, see :func:`~cgdpm_med.calibration_table`.
        calibrated: the same of the calibrated ones, or None.
        volumes: measured and known.
    """

    score: VolumeScore
    ensemble: Mapping[str, float | None] = field(default_factory=dict)
    calibration: NDArray[np.float64] | None = None
    calibrated: NDArray[np.float64] | None = None
    volumes: FrameTruth | None = None


def evaluate_segmentation(
    segmentation: Segmentation, item: Mapping[str, str], calibration: Calibration | None = None
) -> CaseResult:
    """Score one segmentation against its reference mask on the native grid.

    Args:
        segmentation: if it was calibrated before, its own probabilities are reconstructed.
        item: of a datalist, with ``label``, ``key``, ``frame`` (phase), ``group`` and ``patient``.
        calibration: scored too, under names that end in ``_calibrated``.

    Ensemble values: GED (IoU) and mean pairwise Dice of the members, and, inside the reference's bounding box grown
    by 10 voxels, the multi-class Brier score and the AUROC of the entropy for finding wrong voxels.
    """
    reference = read_labels(item["label"], like=segmentation.grid).data
    region = foreground_region(reference)
    own, calibrated = _own_and_calibrated(segmentation, calibration)
    doubt = _doubt_scores(own, reference, region)
    if calibrated is not None:
        scores = _doubt_scores(calibrated, reference, region)
        doubt |= {f"{name}_calibrated": value for name, value in scores.items()}
    size = segmentation.grid.voxel_volume
    return CaseResult(
        score=score_volume(
            segmentation.mask,
            reference,
            segmentation.grid.spacing,
            key=item["key"],
            phase=item.get("frame", ""),
            group=item.get("group", ""),
            path=item["label"],
        ),
        ensemble={
            "ged": generalised_energy_distance(segmentation.members, reference[None]),
            "pairwise_dice": mean_pairwise_dice(segmentation.members) if len(segmentation.members) > 1 else None,
            **doubt,
        },
        calibration=calibration_table(own.probabilities, reference, region=region),
        calibrated=None
        if calibrated is None
        else calibration_table(calibrated.probabilities, reference, region=region),
        volumes=FrameTruth(
            item.get("patient", ""),
            item.get("frame", ""),
            frame_volumes(segmentation.mask, segmentation.members, size, num_classes=len(segmentation.probabilities)),
            true_volumes(reference, size),
        ),
    )


def _own_and_calibrated(
    segmentation: Segmentation, calibration: Calibration | None
) -> tuple[Segmentation, Segmentation | None]:
    if segmentation.temperature is not None:
        return with_temperature(segmentation, 1 / segmentation.temperature), segmentation
    return segmentation, None if calibration is None else calibration.apply(segmentation)


def _doubt_scores(s: Segmentation, reference: NDArray[Any], region: NDArray[np.bool_]) -> dict[str, float | None]:
    return {
        "brier": brier(s.probabilities, reference, region),
        "auroc": error_uncertainty_auroc(s.entropy, s.mask != reference, region),
    }


def evaluate_acdc(
    segmenter: Segmenter,
    root: str | Path,
    section: Section = "test",
    output: str | Path | None = None,
    *,
    split: str | Path | Split | None = None,
) -> dict[str, Any]:
    """:func:`evaluate_segmenter` on one section of a folder in ACDC's layout; see :func:`~cgdpm_med.acdc_datalist`.

    A volume without its reference mask counts as failed.

    Raises:
        InputError: where patients for validation or test trained the network; or no item could be scored.
    """
    errors: list[InputError] = []
    items = acdc_datalist(root, section, split=split, on_error=errors.append)
    note = _seen_in_training(items, segmenter, section)
    return evaluate_segmenter(segmenter, items, output, errors=errors, notes=[] if note is None else [note])


def _seen_in_training(items: Sequence[Mapping[str, str]], segmenter: Segmenter, section: Section) -> str | None:
    """A note; sections train and all may hold training patients, whose scores say nothing of others."""
    patients = {item["patient"] for item in items}
    if section in ("validation", "test"):
        return check_unseen(patients, segmenter.weights, section)
    records = [record for file in segmenter.weights if (record := training_record(file)) is not None]
    seen = patients & {name for record in records for name in record.patients}
    if not seen:
        return None
    return f"{len(seen)} of {len(patients)} patients trained the network, and score better than new ones"


def evaluate_segmenter(
    segmenter: Segmenter,
    datalist: Sequence[Mapping[str, str]],
    output: str | Path | None = None,
    *,
    errors: Sequence[InputError] = (),
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Segment and score every item of a datalist; write ``cases.csv`` and ``summary.json``.

    An item that cannot be used is reported, counted under ``failed`` and left out of the means. Where a calibration of
    these weights and settings lies beside the weights, calibration and coverage are reported with it and without.

    Args:
        datalist: as made by :func:`~cgdpm_med.acdc_datalist`.
        output: folder of the two files; None writes nothing.
        errors: of items that were found bad before, reported and counted like the others.
        notes: lines to report and to keep in the summary.

    Returns:
        The summary: see :func:`summarise`, with the ensemble's values, ``failed`` and the ``settings`` behind it.

    Raises:
        InputError: when no item could be scored.
    """
    results: list[CaseResult] = []
    failed = {str(error.path): str(error) for error in errors}
    made_with = ensemble_settings(segmenter)
    as_fused = {**made_with, "staple": False, "keep_largest": False}
    calibration, ignored = find_calibration(segmenter.weights, as_fused)
    with CaseBar("evaluating", [item["key"] for item in datalist]) as bar:
        for line in (*notes, *([] if ignored is None else [ignored])):
            bar.line(line)
        for error in errors:
            complain(error, bar)
        for item in datalist:
            try:
                results.append(_evaluate_item(segmenter, item, bar, calibration))
            except InputError as error:
                failed[item["key"]] = str(error)
                complain(error, bar)
            else:
                bar.note(f"evaluated {item['key']}: {_dice_line(results[-1].score)}")
    studies = known_studies(result.volumes for result in results if result.volumes is not None)
    intervals: dict[str, Any] = (
        {} if calibration is None else {"widening": calibration.widening, "margin": calibration.margin}
    )
    summary = summarise_results(results) | {
        "function": compare_function(studies, [study.found(**intervals) for study in studies]),
        "failed": failed,
        "notes": list(notes),
        "settings": made_with,
        "calibration": None if calibration is None else {"temperature": calibration.temperature, **calibration.data},
    }
    if output is not None:
        write_results(results, summary, Path(output))
    return summary


def _evaluate_item(
    segmenter: Segmenter, item: Mapping[str, str], bar: CaseBar, calibration: Calibration | None
) -> CaseResult:
    key = item["key"]
    volume = read_volume(item["image"])
    read_labels(item["label"], like=volume.grid)  # a bad reference is found before the long part
    found = segmenter(volume, key, lambda fraction: bar.update(key, fraction))
    return evaluate_segmentation(found, item, calibration)


def evaluate_folders(
    predictions: str | Path, references: str | Path, output: str | Path | None = None
) -> dict[str, Any]:
    """Score predicted masks against reference masks, paired by name; write ``cases.csv`` and ``summary.json``.

    A file without a partner, or that cannot be used, is reported, counted under ``failed`` and left out of the means.
    Where ``segment`` wrote members and probabilities beside its masks, the ensembles are scored as well.

    Args:
        predictions, references: two folders or two files; see :func:`~cgdpm_med.apps.cases.pair_masks`.
        output: folder of the two files; None writes nothing.

    Returns:
        The summary, see :func:`evaluate_pairs`.

    Raises:
        InputError: when no case could be scored.
    """
    pairs, lonely = pair_masks(predictions, references)
    return evaluate_pairs(pairs, output, errors=lonely)


def evaluate_pairs(
    pairs: Sequence[MaskPair], output: str | Path | None = None, *, errors: Mapping[str, InputError] | None = None
) -> dict[str, Any]:
    """Score predicted masks, and what lies beside them; write ``cases.csv`` and ``summary.json``.

    Args:
        output: folder of the two files; None writes nothing.
        errors: of cases that were found bad before, by key, reported and counted like the others.

    Returns:
        The summary: see :func:`summarise`, with ``failed``, and ``function`` and ``quality`` of
        :func:`~cgdpm_med.apps.function_scores.compare_records` where references are in ACDC's layout.

    Raises:
        InputError: when no case could be scored.
    """
    errors = errors or {}
    results: list[CaseResult] = []
    failed = {key: str(error) for key, error in errors.items()}
    with CaseBar("evaluating", [pair.key for pair in pairs]) as bar:
        for error in errors.values():
            complain(error, bar)
        for pair in pairs:
            bar.update(pair.key, 0)
            try:
                results.append(score_pair(pair))
            except InputError as error:
                failed[pair.key] = str(error)
                complain(error, bar)
    studies = known_studies(result.volumes for result in results if result.volumes is not None)
    folders = {pair.patient: pair.prediction.parent for pair in pairs}
    recorded = {s.patient: read_study(folders[s.patient] / f"{s.patient}.json") for s in studies}
    records = {patient: record for patient, record in recorded.items() if record is not None}
    summary = summarise_results(results) | compare_records(studies, records) | {"failed": failed}
    if output is not None:
        write_results(results, summary, Path(output))
    return summary


def score_pair(pair: MaskPair) -> CaseResult:
    """Score one predicted mask, and its ensemble where that was written.

    Raises:
        InputError: when a file is bad, or the two masks lie on different grids.
    """
    reference = read_labels(pair.reference)
    prediction = read_labels(pair.prediction, like=reference.grid)
    ensemble = read_ensemble(prediction)
    if ensemble is not None:
        about = {"key": pair.key, "frame": pair.phase, "group": pair.group, "patient": pair.patient}
        return evaluate_segmentation(ensemble, {"label": str(pair.reference), **about})
    score = score_volume(
        prediction.data,
        reference.data,
        reference.grid.spacing,
        key=pair.key,
        phase=pair.phase,
        group=pair.group,
        path=pair.prediction,
    )
    size = reference.grid.voxel_volume
    volumes = (true_volumes(mask.data, size) for mask in (prediction, reference))
    return CaseResult(score, volumes=FrameTruth(pair.patient, pair.phase, *volumes))


def _dice_line(score: VolumeScore) -> str:
    return ", ".join(f"{name} {score.dice[label]:.3f}" for label, name in ACDC_LABELS.items())


def summarise_results(results: Sequence[CaseResult]) -> dict[str, Any]:
    """Means over cases; calibration pooled over all voxels of the regions.

    Raises:
        InputError: when there are no results.
    """
    summary: dict[str, Any] = dict(summarise([r.score for r in results]))
    names = _ensemble_names(results)
    values = {name: [v for r in results if (v := r.ensemble.get(name)) is not None] for name in names}
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


def _ensemble_names(results: Sequence[CaseResult]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result.ensemble))


def settings(p: DiffusionPredictor, device: torch.device) -> dict[str, Any]:
    """What a reported number depends on besides the weights and the data."""
    return {
        "members": p.members,
        "steps": p.steps,
        "method": p.method,
        "start": p.start,
        "seed": p.seed,
        "precision": p.precision,
        "guidance_scale": p.guidance_scale if p.guide is not None else 0.0,
        "guidance_interval": p.guidance_interval if p.guide is not None else None,
        "device": str(device),
    }


def ensemble_settings(segmenter: Segmenter) -> dict[str, Any]:
    """:func:`settings` of a segmenter's predictor, and what the segmenter itself adds."""
    own = {"fusion": segmenter.fusion, "shared_noise": segmenter.shared_noise}
    return settings(segmenter.predictor, segmenter.device) | own


def write_results(results: Sequence[CaseResult], summary: Mapping[str, Any], folder: Path) -> None:
    """``cases.csv``, a row per case with an empty field for a missing value, and ``summary.json``."""
    text = io.StringIO()
    writer = csv.writer(text)
    metrics = ("dice", "hd95", "assd")
    columns = [f"{metric}_{name}" for metric in metrics for name in ACDC_LABELS.values()]
    names = _ensemble_names(results)
    writer.writerow(["case", "phase", "group", *columns, *names])
    for r in results:
        values = [getattr(r.score, metric)[label] for metric in metrics for label in ACDC_LABELS]
        values += [r.ensemble.get(name) for name in names]
        numbers = ["" if v is None else f"{v:.5f}" for v in values]
        writer.writerow([r.score.key, r.score.phase, r.score.group, *numbers])
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "cases.csv") as file:
        file.write(text.getvalue().encode())
    with atomic_write(folder / "summary.json") as file:
        file.write(json.dumps(summary, indent=2).encode())


def format_summary(summary: Mapping[str, Any]) -> str:
    """The table as text: structures in rows, then what was missed or failed, the ensemble's values and the settings."""
    lines = [f"{'':8}{'Dice %':>8}{'HD95 mm':>9}{'ASSD mm':>9}{'missed':>8}{'invented':>10}"]
    for name, s in summary["structures"].items():
        lines.append(_distance_row(name, s) + f"{s['missed']:>8}{s['invented']:>10}")
    lines.append(_distance_row("average", summary["average"]))
    lines.append(f"volumes {summary['volumes']}, failed {len(summary['failed'])}")
    lines += [f"{phase}: average Dice {_number(part['average']['dice'], 100)}" for phase, part in _parts(summary)]
    ensemble = {name: value for name, value in summary["ensemble"].items() if isinstance(value, float)}
    lines.append(", ".join(f"{name} {value:.4f}" for name, value in ensemble.items()))
    lines += format_function(summary.get("function"))
    lines.append(", ".join(f"{name} {value}" for name, value in summary.get("settings", {}).items()))
    return "\n".join(line for line in lines if line)


def format_function(function: Mapping[str, Any] | None) -> list[str]:
    """Lines of text: for each measure the error, and the coverage of its intervals, calibrated where they are."""
    if function is None:
        return []
    lines = [
        f"function of {function['patients']} patients, error: mean, standard deviation, correlation; 90 % intervals"
    ]
    for name, measure in MEASURES.items():
        s = function["measures"][name]
        line = f"{f'{measure.title}, {measure.unit}':34}{_number(s['error_mean']):>8}{_number(s['error_sd']):>8}"
        line += f"{_number(s['correlation']):>7}"
        for kind, scores in (("", s), ("calibrated ", (function["calibrated"] or {}).get(name))):
            if scores is not None and scores["coverage"] is not None:
                line += f"   {kind}cover {100 * scores['coverage']:.0f} %, length {scores['width']:.1f}"
        lines.append(line)
    return lines


def _parts(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [*summary["by_phase"].items(), *summary["by_group"].items()]


def _distance_row(name: str, values: Mapping[str, float | None]) -> str:
    return f"{name:8}{_number(values['dice'], 100):>8}{_number(values['hd95']):>9}{_number(values['assd']):>9}"


def _number(value: float | None, factor: float = 1.0) -> str:
    return "-" if value is None else f"{factor * value:.2f}"
