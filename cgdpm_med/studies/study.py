"""One patient's frames together: phases, measures, quality; flat in memory over a cine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cgdpm_med.files import InputError
from cgdpm_med.inference.labels import DEFAULT_LABELS
from cgdpm_med.inference.quality import Finding, Quality, QualityLimits, assess_frame, combine
from cgdpm_med.inference.segmenter import Segmentation
from cgdpm_med.metrics.volumetry import FrameVolumes, frame_volumes
from cgdpm_med.studies.result import StudyResult
from cgdpm_med.studies.task import Task, task_of


class Study:
    """Takes the segmentations of one patient's frames, in the order of their numbers, and keeps only a few of them.

    Which are kept, what is measured of them and which checks there are is up to the task that their labels switch on
    (:func:`~cgdpm_med.studies.task.task_of`). A task with phases judges their frames, one without judges every frame.

    Args:
        key: of the study in tables and reports; choose one that names nobody.
        known: numbers of the frames of phases, by their names, where they are known.
        height, weight: in cm and kg, for indexing.
        level, widening, margin: of the intervals, see :meth:`~cgdpm_med.studies.task.Task.measure`. The checks judge
            the members' own spread whatever these are.
        limits: of the checks; the task's own by default.
    """

    def __init__(
        self,
        key: str,
        *,
        known: Mapping[str, int] | None = None,
        height: float | None = None,
        weight: float | None = None,
        level: float = 0.9,
        widening: float | Mapping[str, float] = 1.0,
        margin: Mapping[str, float] | None = None,
        limits: QualityLimits | None = None,
    ) -> None:
        self.key, self.known = key, dict(known or {})
        self.height, self.weight = height, weight
        self.level, self.widening, self.margin = level, widening, margin
        self._limits = limits
        self._task: Task = task_of(DEFAULT_LABELS)
        self._volumes: dict[int, FrameVolumes] = {}
        self._kept: dict[int, Segmentation] = {}
        self._checked: list[Quality] = []

    @property
    def limits(self) -> QualityLimits:
        """Of the checks."""
        return self._limits or self._task.limits()

    def add(self, frame: int, segmentation: Segmentation) -> None:
        """Count a frame; its segmentation is kept as long as it may be that of a phase.

        Raises:
            InputError: for a frame given twice.
        """
        if frame in self._volumes:
            what = f"frame {frame} of {self.key} was given twice"
            raise InputError(what, path=segmentation.volume.path, remedy="Add each frame once")
        self._volumes[frame] = frame_volumes(
            segmentation.mask,
            segmentation.members,
            segmentation.grid.voxel_volume,
            num_classes=segmentation.probabilities.shape[0],
        )
        self._task = task_of(segmentation.labels)
        if not self._task.phases:
            self._checked.append(self._frame_quality(f"frame {frame}", segmentation))
        self._kept[frame] = segmentation
        wanted = self._task.kept(self._volumes, self.known)
        self._kept = {number: kept for number, kept in self._kept.items() if number in wanted}

    def result(self) -> StudyResult:
        """Measures where there are two frames or more, and the checks of the frames that count.

        Raises:
            InputError: when no frame was given, or a phase's frame is known and was not.
        """
        if not self._volumes:
            raise InputError(f"{self.key} has no frames", remedy="Add its frames first")
        volumes, labels = dict(sorted(self._volumes.items())), self._task.labels
        if not self._task.phases:
            return StudyResult(self.key, volumes, combine(self._checked), labels=labels)
        if len(volumes) == 1:
            return StudyResult(self.key, volumes, self._quality(self.key_frames()), labels=labels)
        try:
            phases = self._task.find_phases(self.key, volumes, self.known)
        except InputError as error:
            if self.known.keys() >= set(self._task.phases):
                raise
            quality = self._quality(self.key_frames(), [Finding(self._task.unmeasured, str(error))])
            return StudyResult(self.key, volumes, quality, labels=labels)
        frames = {phase: volumes[number] for phase, number in phases.items()}
        function = self._task.measure(
            frames,
            height=self.height,
            weight=self.weight,
            level=self.level,
            widening=self.widening,
            margin=self.margin,
        )
        spread = self._task.measure(frames, level=self.level, possible=False)
        findings = (
            *self._task.study_findings(spread, frames, self.limits),
            *self._task.beat_findings(volumes, phases, self.limits),
        )
        quality = self._quality(self.key_frames(), findings)
        return StudyResult(self.key, volumes, quality, phases, function, labels)

    def key_frames(self) -> dict[str, Segmentation]:
        """Segmentations of the phases by their names, or those kept under their numbers."""
        if len(self._kept) < 2 or not self._task.phases:
            return {f"frame {number}": kept for number, kept in self._kept.items()}
        phases = self._task.find_phases(self.key, dict(sorted(self._volumes.items())), self.known)
        return {phase: self._kept[number] for phase, number in phases.items()}

    def _quality(self, frames: Mapping[str, Segmentation], findings: Sequence[Finding] = ()) -> Quality:
        of_images = Quality(tuple(self._task.image_findings(frames, self.limits)))
        assessed = [self._frame_quality(name, stored) for name, stored in frames.items()]
        return combine([of_images, *assessed], findings)

    def _frame_quality(self, name: str, stored: Segmentation) -> Quality:
        seen = stored.in_view()
        shape = assess_frame(
            seen.mask,
            seen.members,
            frame=name,
            header_note=seen.grid.note,
            limits=self.limits,
            slice_numbers=stored.slice_numbers(),
            labels=stored.labels,
            anatomy=self._task.shape_findings(seen.mask, name, self.limits),
            removed_voxels=seen.removed_voxels,
        )
        return combine([shape], self._task.size_findings(seen.mask, seen.grid.spacing, name, self.limits))


def write_cohort(results: Sequence[StudyResult], path: str | Path) -> None:
    """A CSV with a row per study, as the task of the first has it."""
    labels = results[0].labels if results else DEFAULT_LABELS
    task_of(labels).write_cohort(results, Path(path))
