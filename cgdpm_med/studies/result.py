"""What is known of a study, without its voxels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cgdpm_med.inference.labels import DEFAULT_LABELS, Labels
from cgdpm_med.inference.quality import Quality
from cgdpm_med.metrics.volumetry import FrameVolumes
from cgdpm_med.studies.measures import Measurements


@dataclass(frozen=True)
class StudyResult:
    """What is known of a study.

    Attributes:
        key: of the study.
        volumes: of every frame, by its number.
        quality: the checks.
        phases: number of the frame of each phase; {} where the task has none, or they cannot be told apart.
        function: what the task measures of the phases; None in the same cases.
        labels: the structures, which say what the task is (:func:`~cgdpm_med.studies.task.task_of`).
    """

    key: str
    volumes: Mapping[int, FrameVolumes]
    quality: Quality
    phases: Mapping[str, int] = field(default_factory=dict)
    function: Measurements | None = None
    labels: Labels = DEFAULT_LABELS
