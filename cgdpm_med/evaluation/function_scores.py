"""What a task measures, against the truth: errors of the values, coverage and length of the intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgdpm_med.data.structure_names import plain_name
from cgdpm_med.inference.labels import DEFAULT_LABELS, Labels
from cgdpm_med.metrics.masks import interval_coverage
from cgdpm_med.metrics.volumetry import FrameVolumes, frame_volumes
from cgdpm_med.studies.measures import Measurements
from cgdpm_med.studies.result import StudyResult
from cgdpm_med.studies.task import Task, task_among


@dataclass(frozen=True, eq=False)
class FrameTruth:
    """One frame, measured and known.

    Attributes:
        patient: whose frame it is.
        phase: its name.
        found: of the segmentation, with its members where there are some.
        truth: of the reference mask, without members.
        labels: the structures of both.
    """

    patient: str
    phase: str
    found: FrameVolumes
    truth: FrameVolumes
    labels: Labels = DEFAULT_LABELS


def true_volumes(reference: NDArray[Any], voxel_volume: float, num_classes: int = 4) -> FrameVolumes:
    """:func:`~cgdpm_med.metrics.volumetry.frame_volumes` of a mask that has no members."""
    return frame_volumes(reference, np.empty((0, *reference.shape), dtype=np.uint8), voxel_volume, num_classes)


@dataclass(frozen=True, eq=False)
class KnownStudy:
    """The phases of a patient, measured and known."""

    patient: str
    frames: Mapping[str, FrameTruth]
    task: Task

    def found(
        self,
        widening: float | Mapping[str, float] = 1.0,
        margin: Mapping[str, float] | None = None,
        *,
        possible: bool = True,
    ) -> Measurements:
        """As the ensemble measures it; arguments of :meth:`~cgdpm_med.studies.task.Task.measure`."""
        found = {phase: frame.found for phase, frame in self.frames.items()}
        return self.task.measure(found, widening=widening, margin=margin, possible=possible)

    def truth(self) -> dict[str, float | None]:
        """Every measure of the reference masks."""
        truth = {phase: frame.truth for phase, frame in self.frames.items()}
        return {name: e.value for name, e in self.task.measure(truth).measures.items()}


def known_studies(frames: Iterable[FrameTruth]) -> list[KnownStudy]:
    """The patients of whom all phases of their task are there, in the order of their names."""
    by_patient: dict[str, dict[str, FrameTruth]] = {}
    for frame in frames:
        by_patient.setdefault(frame.patient, {})[frame.phase] = frame
    studies = (_known_study(patient, found) for patient, found in sorted(by_patient.items()) if patient)
    return [study for study in studies if study is not None]


def _known_study(patient: str, found: Mapping[str, FrameTruth]) -> KnownStudy | None:
    task = task_among(next(iter(found.values())).labels)
    if not task.phases or not found.keys() >= set(task.phases):
        return None
    return KnownStudy(patient, {phase: found[phase] for phase in task.phases}, task)


def compare_function(studies: Sequence[KnownStudy], reported: Sequence[Measurements]) -> dict[str, Any] | None:
    """Measures against the truth, by :func:`score_function`; None without studies.

    Args:
        reported: function of each study, with the intervals that users see.

    Returns:
        ``patients``, their number; ``measures``, with the members' own spread as intervals; ``calibrated``, with
        calibrated intervals, None where they are not.
    """
    if not studies:
        return None
    truths = [study.truth() for study in studies]
    calibrated = all(function.calibrated for function in reported)
    return {
        "patients": len(studies),
        "measures": score_function(truths, [study.found() for study in studies]),
        "calibrated": score_function(truths, reported) if calibrated else None,
    }


def compare_records(studies: Sequence[KnownStudy], records: Mapping[str, StudyResult]) -> dict[str, Any]:
    """What ``segment`` recorded of its studies against the truth; studies without a record have masks alone.

    A record counts where it describes the very masks that were scored.

    Args:
        records: by patient.

    Returns:
        ``function``, see :func:`compare_function`; ``quality``, how many studies were recorded (``studies``), how many
        of them go to ``review``, and by which check (``reasons``); None without records.
    """
    fitting = {s.patient: r for s in studies if (r := records.get(s.patient)) is not None and _describes(r, s)}
    known, reported = [], []
    for study in studies:
        record = fitting.get(study.patient)
        if record is None or record.function is None:
            known.append(study)
            reported.append(study.found())
        else:
            recorded = {phase: _recorded(record, phase, frame) for phase, frame in study.frames.items()}
            known.append(
                replace(study, frames={phase: frame for phase, frame in recorded.items() if frame is not None})
            )
            reported.append(record.function)
    return {"function": compare_function(known, reported), "quality": _count_reviews(list(fitting.values()))}


def _describes(record: StudyResult, study: KnownStudy) -> bool:
    recorded = ((_recorded(record, phase, frame), frame) for phase, frame in study.frames.items())
    return all(
        own is not None and np.allclose(own.found.combined, frame.found.combined, rtol=1e-6) for own, frame in recorded
    )


def _recorded(record: StudyResult, phase: str, frame: FrameTruth) -> FrameTruth | None:
    """The frame with the volumes of a record, whatever numbers its labels have; None where it lacks some of them."""
    columns = {plain_name(name): label for label, name in record.labels.by_number.items()}
    wanted = [plain_name(name) for name in frame.labels.names]
    if phase not in record.phases or not columns.keys() >= set(wanted):
        return None
    of_frame, order = record.volumes[record.phases[phase]], [0, *(columns[name] for name in wanted)]
    return replace(frame, found=FrameVolumes(of_frame.combined[order], of_frame.members[:, order]))


def _count_reviews(records: Sequence[StudyResult]) -> dict[str, Any] | None:
    if not records:
        return None
    checks = Counter(
        check for r in records for check in {finding.check for finding in r.quality.findings if finding.review}
    )
    reviews = sum(record.quality.status == "review" for record in records)
    return {"studies": len(records), "review": reviews, "reasons": dict(checks.most_common())}


def score_function(truths: Sequence[Mapping[str, float | None]], found: Sequence[Measurements]) -> dict[str, Any]:
    """By measure: how far the values are off, and how often the intervals hold the truth.

    Returns:
        For each measure: ``n`` studies where value and truth are defined and
        ``undefined``, the others; ``error_mean`` and ``error_sd`` (n - 1 in the denominator) of value less truth, and
        ``error_absolute``, the mean of its size; ``correlation`` (Pearson); ``coverage`` and mean ``width`` of the
        intervals, with ``intervals``, how many there are. What cannot be computed is None.
    """
    names = list(truths[0]) if truths else []
    return {name: _score_measure([t[name] for t in truths], [f.measures[name] for f in found]) for name in names}


def _score_measure(truths: Sequence[float | None], found: Sequence[Any]) -> dict[str, Any]:
    pairs = [(t, e) for t, e in zip(truths, found, strict=True) if t is not None and e.value is not None]
    truth, value = np.array([t for t, _ in pairs]), np.array([e.value for _, e in pairs])
    error = value - truth
    ends = [(e.lower, e.upper, t) for t, e in pairs if e.width is not None]
    varied = len(pairs) > 2 and np.ptp(truth) > 0 and np.ptp(value) > 0
    return {
        "n": len(pairs),
        "undefined": len(truths) - len(pairs),
        "error_mean": float(error.mean()) if len(pairs) else None,
        "error_sd": float(error.std(ddof=1)) if len(pairs) > 1 else None,
        "error_absolute": float(np.abs(error).mean()) if len(pairs) else None,
        "correlation": float(np.corrcoef(truth, value)[0, 1]) if varied else None,
        "intervals": len(ends),
        "coverage": interval_coverage(*zip(*ends, strict=True)) if ends else None,
        "width": float(np.mean([upper - lower for lower, upper, _ in ends])) if ends else None,
    }
