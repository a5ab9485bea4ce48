"""What a mask is good for, by its labels: a task measures, checks and shows what its structures allow.

:class:`Task` knows no anatomy: it gives the volume of every label. A plug-in is a module with a subclass of its own,
called ``TASK``, that stands in :data:`PLUGINS`; labels that fit it switch it on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from cgdpm_med.inference.labels import Labels, labels_of
from cgdpm_med.inference.quality import Finding, QualityLimits
from cgdpm_med.inference.segmenter import Segmentation
from cgdpm_med.metrics.volumetry import FrameVolumes
from cgdpm_med.studies.measures import Measure, Measurements
from cgdpm_med.studies.result import StudyResult
from cgdpm_med.studies.sections import Chart, Section, volume_columns, volume_row, volume_section, volume_values
from cgdpm_med.tables.csv_files import write_csv

PLUGINS = ["cgdpm_med.heart.plugin"]
"""Modules, by name: they stand above this one and are imported when labels are first looked up."""


class Task:
    """Volumes of every label, and nothing that needs anatomy.

    Attributes:
        subject, title: what pages are about: within a sentence, and in the browser's title.
        phases: names of the frames that are measured together; () where each frame stands for itself.
        one_body: whether the structures touch in every patient, so that what lies apart from the rest is a mistake.
        measures: what is measured of the phases, by name, in the order of tables.
        unmeasured: the check that complains where the phases cannot be told apart.
        content_label, series_description: of a DICOM segmentation.
        limits: class of the limits of the checks.

    Args:
        labels: of the masks; each task finds its structures among them by name.
    """

    subject: ClassVar[str] = "segmentation"
    title: ClassVar[str] = "segmentation"
    phases: ClassVar[tuple[str, ...]] = ()
    one_body: ClassVar[bool] = False
    measures: ClassVar[Mapping[str, Measure]] = {}
    unmeasured: ClassVar[str] = "measures"
    content_label: ClassVar[str] = "SEGMENTATION"
    series_description: ClassVar[str] = "Segmentation, for research"
    limits: ClassVar[type[QualityLimits]] = QualityLimits

    def __init__(self, labels: Labels) -> None:
        self.labels = labels

    @classmethod
    def is_among(cls, labels: Labels) -> bool:
        """Whether the task's structures are there, perhaps with others."""
        return True

    @classmethod
    def fits(cls, labels: Labels) -> bool:
        """Whether the labels are the task's structures and no others."""
        return cls.is_among(labels)

    # --- frames and numbers ---

    def kept(self, volumes: Mapping[int, FrameVolumes], known: Mapping[str, int]) -> set[int]:
        """Numbers of the frames worth keeping of those seen so far: the ``known`` ones, else the first."""
        return set(known.values()) or {min(volumes)}

    def find_phases(self, key: str, volumes: Mapping[int, FrameVolumes], known: Mapping[str, int]) -> Mapping[str, int]:
        """Number of the frame of each phase.

        Args:
            key: of the study, for errors.
            known: those that are given.

        Raises:
            InputError: where they cannot be told apart, or a known one is not there.
        """
        return {}

    def measure(
        self,
        frames: Mapping[str, FrameVolumes],
        *,
        height: float | None = None,
        weight: float | None = None,
        level: float = 0.9,
        widening: float | Mapping[str, float] = 1.0,
        margin: Mapping[str, float] | None = None,
        possible: bool = True,
    ) -> Measurements:
        """The measures, from the volumes of each phase; None of them here.

        Args:
            height, weight: in cm and kg; both are needed for indexing.
            level: nominal coverage of the intervals.
            widening: one factor of the intervals, or one by the name of a measure (1 where not named).
            margin: added at each end, by the name of a measure (0 where not named).
            possible: whether intervals keep to possible values.
        """
        members = min((len(volumes.members) for volumes in frames.values()), default=0)
        return Measurements({}, members, level, {})

    # --- checks ---

    def shape_findings(self, mask: NDArray[Any], frame: str, limits: QualityLimits) -> Sequence[Finding]:
        """What is wrong with how the structures of a mask (X, Y, Z) lie to one another."""
        return ()

    def size_findings(
        self, mask: NDArray[Any], spacing: Sequence[float], frame: str, limits: QualityLimits
    ) -> Sequence[Finding]:
        """Sizes that the structures of a mask (X, Y, Z), of voxels of ``spacing`` mm, cannot have."""
        return ()

    def image_findings(self, frames: Mapping[str, Segmentation], limits: QualityLimits) -> Sequence[Finding]:
        """What is wrong with the images of the frames themselves, and between their grids."""
        return ()

    def study_findings(
        self, spread: Measurements, frames: Mapping[str, FrameVolumes], limits: QualityLimits
    ) -> Sequence[Finding]:
        """What the measures say, with the members' own spread as intervals, and the phases of each other."""
        return ()

    def beat_findings(
        self, volumes: Mapping[int, FrameVolumes], phases: Mapping[str, int], limits: QualityLimits
    ) -> Sequence[Finding]:
        """What all frames, by their numbers, say of one another and of the ``phases`` among them."""
        return ()

    # --- tables, pages, files ---

    def write_cohort(self, results: Sequence[StudyResult], path: Path) -> None:
        """A CSV with a row per study: here the volumes in the first frame, verdict and reasons."""
        write_csv(path, [volume_row(result) for result in results])

    def headlines(self, result: StudyResult) -> list[tuple[str, str, str]]:
        """Name, value and interval of the numbers that stand out on a study's page."""
        return []

    def curve(self, result: StudyResult) -> Chart | None:
        """A chart of a study's frames."""
        return None

    def sections(self, result: StudyResult) -> list[Section]:
        """Tables of a study's page."""
        return [volume_section(result)]

    def cohort_headlines(self, results: Sequence[StudyResult]) -> list[tuple[str, str, str]]:
        """As :meth:`headlines`, of a cohort, after the counts."""
        return []

    def cohort_chart(self, results: Sequence[StudyResult]) -> Chart | None:
        """A chart of a cohort."""
        return None

    def cohort_columns(self) -> list[str]:
        """Headings of a cohort's table."""
        return volume_columns(self.labels)

    def cohort_values(self, result: StudyResult) -> list[tuple[str, str]]:
        """A study's values and intervals below them."""
        return volume_values(result)

    def stylesheet(self) -> str:
        """Of the charts."""
        return ""

    def codes(self) -> Mapping[int, str]:
        """Keyword of each label in SNOMED CT, as pydicom spells them; {} where they are not known."""
        return {}


def tasks() -> list[type[Task]]:
    """Those of :data:`PLUGINS`, and last the one that takes any labels."""
    return [*(import_module(name).TASK for name in PLUGINS), Task]


def task_of(labels: Labels) -> Task:
    """The task that labels switch on."""
    return next(task for task in tasks() if task.fits(labels))(labels)


def task_among(labels: Labels) -> Task:
    """The task whose structures are among the labels, whatever others there are."""
    return next(task for task in tasks() if task.is_among(labels))(labels)


def are_one_body(channel_names: Mapping[str, str]) -> bool:
    """Whether the structures of a network are :attr:`Task.one_body`; not where nothing names them.

    Args:
        channel_names: of its classes by number, the background included.
    """
    return bool(channel_names) and task_of(labels_of(channel_names, len(channel_names))).one_body


def known_measures() -> dict[str, Measure]:
    """The measures of every task."""
    return {name: measure for task in tasks() for name, measure in task.measures.items()}


def are_measures(names: Collection[str]) -> bool:
    """Whether these are all measures of one of the tasks."""
    return any(set(names) == set(task.measures) for task in tasks())
