"""The cardiac task: what masks of both ventricles and the myocardium, whatever their numbers, are good for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from cgdpm_med.files import InputError, listed
from cgdpm_med.heart import page
from cgdpm_med.heart.beat_checks import check_beat, check_phases
from cgdpm_med.heart.checks import assess_borders, assess_function, assess_heart, compare_phases
from cgdpm_med.heart.function import MEASURES, cardiac_function, find_ed_es, write_cohort_csv
from cgdpm_med.heart.limits import HeartLimits
from cgdpm_med.heart.single_images import single_image_columns
from cgdpm_med.heart.stack_checks import assess_stack, compare_grids
from cgdpm_med.heart.structures import find_heart
from cgdpm_med.inference.labels import Labels
from cgdpm_med.inference.quality import Finding, QualityLimits
from cgdpm_med.inference.segmenter import Segmentation
from cgdpm_med.metrics.volumetry import FrameVolumes
from cgdpm_med.studies.measures import Measurements
from cgdpm_med.studies.result import StudyResult
from cgdpm_med.studies.sections import Chart, Section, verdict, volume_section
from cgdpm_med.studies.task import Task
from cgdpm_med.volumes import slice_order


class CardiacTask(Task):
    """Function at end-diastole and end-systole, cardiac checks, the cardiac page."""

    subject = "cardiac MRI segmentation"
    title = "cardiac segmentation"
    one_body = True
    phases = ("ED", "ES")
    measures = MEASURES
    unmeasured = "ejection fraction"
    content_label = "CARDIAC_SEG"
    series_description = "Short-axis segmentation, for research"
    limits = HeartLimits

    def __init__(self, labels: Labels) -> None:
        super().__init__(labels)
        heart = find_heart(labels)
        if heart is None:
            raise ValueError(f"there is no heart among {', '.join(labels.names)}")
        self.heart = heart

    @classmethod
    def is_among(cls, labels: Labels) -> bool:
        """Whether RV, myocardium and LV are there once each."""
        return find_heart(labels) is not None

    @classmethod
    def fits(cls, labels: Labels) -> bool:
        """Whether they are all there is."""
        return len(labels.names) == 3 and cls.is_among(labels)

    # --- frames and numbers ---

    def kept(self, volumes: Mapping[int, FrameVolumes], known: Mapping[str, int]) -> set[int]:
        """Those known, else the largest and the smallest left ventricle so far."""
        lv = {number: of_frame.combined[self.heart.lv] for number, of_frame in volumes.items()}
        return {
            known.get("ED", max(lv, key=lv.__getitem__)),
            known.get("ES", min(lv, key=lv.__getitem__)),
        }

    def find_phases(self, key: str, volumes: Mapping[int, FrameVolumes], known: Mapping[str, int]) -> Mapping[str, int]:
        """End-diastole and end-systole, see :func:`~cgdpm_med.heart.function.find_ed_es`."""
        numbers = list(volumes)
        for name, frame in known.items():
            if frame not in numbers:
                what = f"{name} is frame {frame}, which {key} does not have"
                raise InputError(what, remedy=f"Choose among {listed(numbers)}")
        ed, es = find_ed_es(
            [float(of_frame.combined[self.heart.lv]) for of_frame in volumes.values()],
            **{name.lower(): numbers.index(frame) for name, frame in known.items()},
        )
        return {"ED": numbers[ed], "ES": numbers[es]}

    def measure(self, frames: Mapping[str, FrameVolumes], **of_intervals: Any) -> Measurements:
        """See :func:`~cgdpm_med.heart.function.cardiac_function`."""
        ed, es = (self.heart.volumes(frames[phase]) for phase in self.phases)
        return cardiac_function(ed, es, **of_intervals)

    # --- checks ---

    def shape_findings(self, mask: NDArray[Any], frame: str, limits: QualityLimits) -> Sequence[Finding]:
        """The left ventricle lies inside the myocardium."""
        return assess_borders(self.heart.in_order(mask), frame=frame, limits=_of_heart(limits))

    def size_findings(
        self, mask: NDArray[Any], spacing: Sequence[float], frame: str, limits: QualityLimits
    ) -> Sequence[Finding]:
        """See :func:`~cgdpm_med.heart.checks.assess_heart`."""
        return assess_heart(self.heart.in_order(mask), spacing, frame=frame, limits=_of_heart(limits))

    def image_findings(self, frames: Mapping[str, Segmentation], limits: QualityLimits) -> Sequence[Finding]:
        """Short-axis stacks of one voxel size; each remark once."""
        stacks = [found for stored in frames.values() for found in _stack_findings(stored, _of_heart(limits))]
        grids = compare_grids({name: stored.grid.spacing for name, stored in frames.items()})
        return tuple(dict.fromkeys(stacks)) + grids

    def study_findings(
        self, spread: Measurements, frames: Mapping[str, FrameVolumes], limits: QualityLimits
    ) -> Sequence[Finding]:
        """Ejection fractions, and both ventricles at both phases."""
        ed, es = (self.heart.volumes(frames[phase]) for phase in self.phases)
        return (*assess_function(spread, _of_heart(limits)), *compare_phases(ed, es, _of_heart(limits)))

    def beat_findings(
        self, volumes: Mapping[int, FrameVolumes], phases: Mapping[str, int], limits: QualityLimits
    ) -> Sequence[Finding]:
        """Phases that the volumes contradict, and frames that fit no beat."""
        lv = {number: float(of_frame.combined[self.heart.lv]) for number, of_frame in volumes.items()}
        return (*check_phases(lv, phases, _of_heart(limits)), *check_beat(lv, _of_heart(limits)))

    # --- tables, pages, files ---

    def write_cohort(self, results: Sequence[StudyResult], path: Path) -> None:
        """Function with intervals, frames, verdict, reasons; of a single image its volumes."""
        further = {result.key: self._further_columns(result) for result in results}
        write_cohort_csv(path, {result.key: result.function for result in results}, further)

    def _further_columns(self, result: StudyResult) -> dict[str, str]:
        frames = {f"{phase.lower()}_frame": str(result.phases.get(phase, "")) for phase in self.phases}
        alone = next(iter(result.volumes.values())) if len(result.volumes) == 1 else None
        return frames | verdict(result) | single_image_columns(None if alone is None else self.heart.volumes(alone))

    def headlines(self, result: StudyResult) -> list[tuple[str, str, str]]:
        """What a reader looks for first."""
        return [] if result.function is None else page.headlines(result.function)

    def curve(self, result: StudyResult) -> Chart | None:
        """Ventricular volumes over the beat, of three frames or more."""
        if len(result.volumes) < 3:
            return None
        volumes = {number: self.heart.volumes(of_frame) for number, of_frame in result.volumes.items()}
        return page.beat(volumes, result.phases, 0.9 if result.function is None else result.function.level)

    def sections(self, result: StudyResult) -> list[Section]:
        """Cardiac function; volumes of a single image; nothing of a beat whose phases were not found."""
        if result.function is not None:
            return [page.function_section(result.function, result.phases)]
        return [] if len(result.volumes) > 1 else [volume_section(result)]

    def cohort_headlines(self, results: Sequence[StudyResult]) -> list[tuple[str, str, str]]:
        """The median ejection fraction."""
        return [page.median_ef(_functions(results).values())]

    def cohort_chart(self, results: Sequence[StudyResult]) -> Chart | None:
        """Ejection fractions with their intervals."""
        return page.ejection_fractions(_functions(results))

    def cohort_columns(self) -> list[str]:
        """What a reader looks for first."""
        return page.columns()

    def cohort_values(self, result: StudyResult) -> list[tuple[str, str]]:
        """Of the same."""
        return page.values(result.function)

    def stylesheet(self) -> str:
        """Of the charts."""
        return page.stylesheet(self.heart, self.labels)

    def codes(self) -> Mapping[int, str]:
        """SNOMED CT's keywords."""
        keywords = ("RightVentricle", "LeftVentricleMyocardium", "LeftVentricle")
        return dict(sorted(zip(self.heart.numbers, keywords, strict=True)))


TASK = CardiacTask


def _of_heart(limits: QualityLimits) -> HeartLimits:
    """These, with the defaults of the heart where they have none."""
    return limits if isinstance(limits, HeartLimits) else HeartLimits(**vars(limits))


def _stack_findings(stored: Segmentation, limits: HeartLimits) -> tuple[Finding, ...]:
    seen = stored.in_view().volume
    order = slice_order(stored.grid)
    note = () if order is None else (Finding("slice order", order, review=False),)
    return (*note, *assess_stack(seen.data, seen.grid.spacing, limits=limits))


def _functions(results: Sequence[StudyResult]) -> dict[str, Measurements]:
    return {result.key: result.function for result in results if result.function is not None}
