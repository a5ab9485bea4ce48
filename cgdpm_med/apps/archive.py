"""Studies of an archive: found, fetched, segmented, and what came of them stored beside their images.

For each volume or cine there are DICOM segmentations and, stored last, a structured report. A series to which such a
report refers is done. Images lie in a temporary folder while they are segmented; errors name studies by a digest.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from cgdpm_med.apps.dicom_seg import Identity
from cgdpm_med.apps.dicomweb import Series, Wanted, digest
from cgdpm_med.apps.segment_options import Options
from cgdpm_med.apps.structured_report import DESCRIPTION, write_report_object
from cgdpm_med.apps.study_run import Model, StudyWork
from cgdpm_med.console import CaseBar, complain
from cgdpm_med.files import InputError
from cgdpm_med.studies.cases import Case, search

ATTEMPTS = 3
"""How often a watch tries a study that fails."""


class Store(Protocol):
    """What an archive must be able to do; see :class:`~cgdpm_med.apps.dicomweb.Archive`."""

    def search(self, wanted: Wanted) -> list[Series]:
        """Series that fit."""

    def evidence(self, study: str, description: str) -> list[Any]:
        """Headers of structured reports."""

    def fetch(self, series: Series, folder: Path, first: int = 0) -> int:
        """Write images into a folder."""

    def store(self, files: Sequence[Path]) -> None:
        """Store objects."""


@dataclass
class ArchiveOutcome:
    """What became of a run.

    Attributes:
        stored: by the digest of each study how many objects were stored.
        skipped: digests of studies that were done before.
        failed: the error of each study, or of each question, that failed.
    """

    stored: dict[str, int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass
class ArchiveRun:
    """Questions to an archive, answered by segmentations.

    Args:
        store: the archive.
        model: what segments.
        identity: of what is stored, see :func:`~cgdpm_med.apps.dicom_seg.write_dicom_seg`.
        bar: shows progress and errors.
    """

    store: Store
    model: Model
    identity: Identity
    bar: CaseBar
    outcome: ArchiveOutcome = field(default_factory=ArchiveOutcome)
    attempts: Counter[str] = field(default_factory=Counter)
    seen: dict[str, int] = field(default_factory=dict)

    def once(self, questions: Iterable[Wanted], settled: bool = False) -> None:
        """Do what is there and not done.

        Args:
            settled: leave a study for later whose number of images is not what it was when last looked at.
        """
        studies = self._found(questions)
        for study, series in studies.items():
            name = digest(study)
            if self.attempts[name] < ATTEMPTS and (self._has_settled(series) or not settled):
                self._told(name, partial(self._study, name, study, series))

    def watch(
        self, questions: Sequence[Wanted], polls: int, seconds: float, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Look ``polls`` times, ``seconds`` apart, for studies that have all their images."""
        for poll in range(polls):
            if poll:
                sleep(seconds)
            self.once(questions, settled=True)

    def _found(self, questions: Iterable[Wanted]) -> dict[str, list[Series]]:
        """Series by their study; a question that fails is reported, one without an answer too if it names a study."""
        found: dict[str, dict[str, Series]] = defaultdict(dict)
        for question in questions:
            for series in self._told(question.name, partial(self._search, question)) or ():
                found[series.study][series.uid] = series
        return {study: list(by_uid.values()) for study, by_uid in found.items()}

    def _search(self, question: Wanted) -> list[Series]:
        found = self.store.search(question)
        if question.study and not found:
            raise InputError("the archive has no MR series of this study", remedy="Check the UIDs")
        return found

    def _told(self, name: str, work: Callable[[], Any]) -> Any:
        """What ``work`` gives; its error is noted under ``name``, or an earlier one taken back."""
        try:
            answer = work()
        except InputError as error:
            self.attempts[name] += 1
            self.outcome.failed[name] = str(error)
            complain(InputError(f"{name}: {error}"), self.bar)
            return None
        self.outcome.failed.pop(name, None)
        return answer

    def _has_settled(self, series: Sequence[Series]) -> bool:
        before = [self.seen.get(of_study.uid) for of_study in series]
        self.seen.update({of_study.uid: of_study.images for of_study in series})
        return before == [of_study.images for of_study in series]

    def _study(self, name: str, study: str, series: Sequence[Series]) -> None:
        done = self._done(study)
        left = [of_study for of_study in series if of_study.uid not in done]
        if not left:
            if name not in self.outcome.stored and name not in self.outcome.skipped:
                self.outcome.skipped.append(name)
            return
        with tempfile.TemporaryDirectory(prefix="cgdpm-med-") as folder:
            self._segment(name, left, Path(folder))

    def _done(self, study: str) -> set[str]:
        """UIDs of the series to which a report of this identity refers."""
        wanted = self.identity == "deidentified"
        return {
            str(of_series.SeriesInstanceUID)
            for report in self.store.evidence(study, DESCRIPTION)
            if (report.get("PatientIdentityRemoved") == "YES") == wanted
            for of_study in report.get("CurrentRequestedProcedureEvidenceSequence") or ()
            for of_series in of_study.ReferencedSeriesSequence
        }

    def _segment(self, name: str, series: Sequence[Series], folder: Path) -> None:
        """Each volume or cine of these series; one that cannot be segmented keeps none of the others back."""
        source, count = folder / name, 0
        for of_study in series:
            count += self.store.fetch(of_study, source, count)
        errors = []
        for case in _cases(source):
            try:
                objects = self._objects(case, folder / "out")
                self.store.store(objects[:-1])
                self.store.store(objects[-1:])
                self.outcome.stored[name] = self.outcome.stored.get(name, 0) + len(objects)
                self.bar.note(f"stored {len(objects)} objects of {name}")
            except InputError as error:
                errors.append(InputError(error.what, remedy=error.remedy))  # without the temporary folder
        if errors:
            raise errors[0]

    def _objects(self, case: Case, out: Path) -> list[Path]:
        """Files of the segmentations and, last, of the report."""
        options = Options(write=("mask",), pages=False, dicom_seg=self.identity)
        outcome = StudyWork(lambda: self.model, out, options)([case], lambda key, fraction: None)
        for error in outcome.failed.values():
            raise error
        assert outcome.result is not None
        assert case.stack is not None
        files = [Path(file) for described in outcome.described for file in described["files"]]
        report = write_report_object(
            outcome.result, case.stack, out / case.folder / f"{case.name}_sr.dcm", identity=self.identity
        )
        return [*(file for file in files if file.name.endswith("_seg.dcm")), report]


def _cases(folder: Path) -> list[Case]:
    """The volumes and cines among fetched images."""
    try:
        return search(folder).cases
    except InputError as error:
        raise InputError(error.what, remedy=error.remedy) from None


def questions(date: str | None, description: str | None, rows: Sequence[Wanted] = ()) -> list[Wanted]:
    """One for each row, or one in all; date and description hold for each."""
    return [replace(row, date=date, description=description) for row in rows or (Wanted(),)]
