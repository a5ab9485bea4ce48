"""What a calibration is worth on patients it was not fitted to: each patient is held out once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cgdpm_med.evaluation.calibrate import KnownFrame, fit_intervals, fit_voxels
from cgdpm_med.evaluation.function_scores import known_studies, score_function
from cgdpm_med.metrics.calibration import temper
from cgdpm_med.metrics.masks import brier, calibration_error, calibration_table


def each_held_out(frames: Sequence[KnownFrame]) -> Iterator[tuple[list[KnownFrame], list[KnownFrame]]]:
    """By patient, in the order of their names: its own frames and those of the others."""
    for patient in sorted({frame.volumes.patient for frame in frames}):
        own = [frame for frame in frames if frame.volumes.patient == patient]
        yield own, [frame for frame in frames if frame.volumes.patient != patient]


def held_out_voxels(frames: Sequence[KnownFrame]) -> dict[str, float]:
    """``ece`` and ``brier`` where every patient's temperature and doubt were fitted to the other patients."""
    tables, briers = [], []
    for own, others in each_held_out(frames):
        fitted = fit_voxels(others)
        for frame in own:
            p = temper(frame.probabilities, *fitted)
            tables.append(calibration_table(p, frame.labels))
            briers.append(brier(p, frame.labels))
    return {"ece": calibration_error(np.sum(tables, axis=0)), "brier": float(np.mean(briers))}


def held_out_function(frames: Sequence[KnownFrame]) -> dict[str, Any]:
    """:func:`~cgdpm_med.evaluation.function_scores.score_function` with intervals fitted to the other patients.

    Raises:
        InputError: for too few patients: one less must still support the level.
    """
    studies, found = known_studies(frame.volumes for frame in frames), []
    for study in studies:
        factors, margins = fit_intervals([other for other in studies if other is not study])
        found.append(study.found(factors, margins))
    return score_function([study.truth() for study in studies], found)
