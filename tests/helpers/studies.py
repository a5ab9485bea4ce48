"""Patients whose volumes are given: what a network found beside the truth."""

from __future__ import annotations

import numpy as np

from cgdpm_med.evaluation.function_scores import FrameTruth, KnownStudy, known_studies
from cgdpm_med.metrics.volumetry import FrameVolumes


def volumes(lv: float, members: tuple[float, ...] = (), rv: float = 100.0) -> FrameVolumes:
    rows = [[0.0, rv, 80.0, m] for m in members]
    return FrameVolumes(np.array([0.0, rv, 80.0, lv]), np.array(rows).reshape(len(rows), 4))


def study(name: str, ed: float, es: float, true_ed: float, true_es: float) -> KnownStudy:
    frames = [
        FrameTruth(name, "ED", volumes(ed, (ed - 10, ed + 10)), volumes(true_ed)),
        FrameTruth(name, "ES", volumes(es, (es, es)), volumes(true_es)),
    ]
    (found,) = known_studies(frames)
    return found
