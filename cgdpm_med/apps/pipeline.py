"""From a folder of scans to masks, function, checks and reports: every study finished for good before the next begins.

A study is one image, the end-diastolic and end-systolic image of one patient, or one cine. Its JSON is written after
everything else, so a study with a JSON is complete, whatever became of the process that made it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from cgdpm_med.apps.resume import Shard
from cgdpm_med.apps.segment_options import Options, check_options
from cgdpm_med.apps.study_run import (
    Model,
    Segments,
    StudyOutcome,
    StudyWork,
    build_model,
    facts_of,
    longest_file,
    map_files,
    model_of,
    text_files,
)
from cgdpm_med.console import CaseBar, complain
from cgdpm_med.evaluation.calibration_file import Calibration
from cgdpm_med.files import InputError, check_place, listed
from cgdpm_med.inference.segmenter import Segmenter, choose_device, load_segmenter
from cgdpm_med.report.records import is_anothers, save_cohort, study_record
from cgdpm_med.runtime.engines import Engine, InProcess, Progress, about
from cgdpm_med.studies.cases import Case, group_studies, search
from cgdpm_med.studies.folders import FolderWarning, left_out_lines, real_path
from cgdpm_med.studies.outputs import Provenance, check_outputs, write_label_tables
from cgdpm_med.studies.result import StudyResult

Report = Callable[[str, InputError | None], None]
MOST_BYTES = 255
"""In the name of a file, on the usual file systems."""


@dataclass
class Outcome:
    """What became of a run.

    Attributes:
        described: JSON of each volume segmented now, with its ``files``.
        results: of every complete study, those of an earlier run included.
        pages: of the studies that have one, by key.
        skipped: keys of the studies that were complete already.
        failed: the error of each failed case, by key.
        origins: how the studies were made, each way once.
    """

    described: list[dict[str, Any]] = field(default_factory=list)
    results: list[StudyResult] = field(default_factory=list)
    pages: dict[str, Path] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    origins: list[Provenance] = field(default_factory=list)

    def add(self, study: StudyOutcome) -> None:
        """Count one study more."""
        self.described += study.described
        self.origins += [study.origin] if study.origin is not None and study.origin not in self.origins else []
        self.failed.update({key: str(error) for key, error in study.failed.items()})
        if study.result is not None:
            self.results.append(study.result)
            self.skipped += [study.result.key] if study.skipped else []
            if study.page is not None:
                self.pages[study.result.key] = study.page


def segment(
    source: str | Path,
    output: str | Path,
    *,
    bundle: str | Path = "acdc_segmentation",
    device: str = "auto",
    options: Options | None = None,
    resume: bool = False,
    shard: Shard | None = None,
    label_table: bool = False,
    series: Collection[int] | None = None,
    engine: Engine | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Segment whatever lies at ``source`` with a bundle: what ``cgdpm-med segment`` does.

    Args:
        source: see :func:`~cgdpm_med.find_cases`.
        output: folder for the results.
        device: see :func:`~cgdpm_med.inference.segmenter.choose_device`.
        resume: leave out the studies that are complete, made with the same settings, weights and inputs.
        shard: segment this part only; the cohort's files are then left to ``cgdpm-med cohort``.
        label_table: write names and colours of the labels for 3D Slicer and ITK-SNAP.
        series: SeriesNumbers of the DICOM series to segment, and nothing else.
        engine: who does the studies, by default this process; see :func:`~cgdpm_med.apps.cluster.open_cluster`.
        changes: keys of the bundle's inference configuration; None keeps the bundle's own value.

    Returns:
        See :func:`segment_all`; and ``left_out``, by reason the files that were not segmented.

    Raises:
        InputError: when nothing can be segmented at all.
    """
    options, engine = options or Options(), engine or InProcess()
    check_outputs(options.write)
    if isinstance(engine, InProcess):
        choose_device(device)  # one that is not there is told before a large folder is searched
    found = search(source, exclude=output, series=series)
    for line in left_out_lines(Path(source), found.left_out):
        warnings.warn(line, FolderWarning, stacklevel=2)
    check_options(options, found.cases)
    changes = {name: value for name, value in changes.items() if value is not None}
    model = engine.once(partial(build_model, partial(load_segmenter, bundle, device, changes), options))
    labels = engine.ask(partial(facts_of, model)).labels
    check_place(Path(output))
    work = StudyWork(model, Path(output), options, resume)
    result = segment_with(engine, work, found.cases, shard)
    result["left_out"] = {reason: [str(path) for path in paths] for reason, paths in found.left_out.items()}
    if label_table:
        result["label_tables"] = [str(path) for path in write_label_tables(Path(output), labels)]
    return result


def segment_all(
    segmenter: Segmenter,
    cases: Sequence[Case],
    output: str | Path,
    *,
    options: Options | None = None,
    resume: bool = False,
    shard: Shard | None = None,
    **shorthand: Any,
) -> dict[str, Any]:
    """:func:`segment_cases` with a progress bar, one line on standard error for each bad input, and a cohort's files.

    ``cohort.csv`` and ``cohort.html`` are written for two studies or more, unless this is one shard of several.

    Args:
        shorthand: fields of :class:`Options`, in place of those of ``options``.

    Returns:
        ``cases``: of each volume segmented now what its JSON says, its ``input`` and its ``files``; ``studies``: of
        each complete study its function and quality; ``skipped``, keys of studies that were complete; ``cohort``, its
        files; ``failed``, the error of each failed case by key.
    """
    options, engine = replace(options or Options(), **shorthand), InProcess()
    check_outputs(options.write)
    model = engine.once(partial(model_of, segmenter, options))
    return segment_with(engine, StudyWork(model, Path(output), options, resume), cases, shard)


def segment_with(engine: Engine, work: StudyWork, cases: Sequence[Case], shard: Shard | None = None) -> dict[str, Any]:
    """:func:`segment_all` by an engine, whose ``once`` made the model of ``work``.

    Raises:
        InputError: the engine cannot go on, or its processes work unlike.
    """
    facts = engine.ask(partial(facts_of, work.model))
    mine = [case for case in cases if shard is None or shard.takes(case.study.key)]
    with CaseBar("segmenting", [case.key for case in mine]) as bar:
        if shard is not None:
            bar.line(f"part {shard}: {len(group_studies(mine))} of {len(group_studies(cases))} studies")
        for note in facts.notes:
            bar.line(note)

        def report(key: str, error: InputError | None) -> None:
            complain(error, bar) if error else bar.note(f"segmented {key}")

        outcome = do_studies(engine, work, mine, report, bar.update)
    whole = shard is None and len(outcome.results) > 1
    cohort = _save_cohort(outcome, work.output, facts.origin) if whole else []
    return {
        "cases": outcome.described,
        "studies": [
            {name: value for name, value in study_record(result).items() if name != "volumes_ml"}
            for result in outcome.results
        ],
        "skipped": outcome.skipped,
        "cohort": [str(path) for path in cohort],
        "failed": outcome.failed,
    }


def segment_cases(
    segmenter: Segments,
    cases: Sequence[Case],
    output: str | Path,
    *,
    options: Options | None = None,
    origin: Provenance | None = None,
    calibration: Calibration | None = None,
    resume: bool = False,
    report: Report = lambda key, error: None,
    progress: Progress = lambda key, fraction: None,
) -> Outcome:
    """Segment every case, study by study; a bad input is reported and the others go on.

    Args:
        origin: recorded beside the results; with ``resume`` a study made otherwise is made again.
        calibration: of these ensembles.
        report: called after each study with the key of each case and its error, if any.
        progress: called with the key of the case in work and the fraction of it that is done.

    Raises:
        InputError: for an unknown output, before any work.
    """
    options, engine = options or Options(), InProcess()
    check_outputs(options.write)
    model = engine.once(partial(Model, segmenter, options.on_top_of(origin), calibration))
    return do_studies(engine, StudyWork(model, Path(output), options, resume), cases, report, progress)


def do_studies(engine: Engine, work: StudyWork, cases: Sequence[Case], report: Report, progress: Progress) -> Outcome:
    """Every study done by an engine, whose order does not show in the outcome."""
    studies = group_studies(_without_unwritable(cases, work))
    done: dict[str, StudyOutcome] = {}
    progress = _each_end_once(progress)  # workers elsewhere tell of none, this process of all
    for key, answer in engine.do(work, studies, progress):
        done[key] = answer if isinstance(answer, StudyOutcome) else _given_up(studies[key], answer)
        for case in studies[key]:
            if not done[key].skipped:
                report(case.key, done[key].failed.get(case.key))
            progress(case.key, 1.0)
    outcome = Outcome()
    for key in studies:
        outcome.add(done[key])
    return outcome


def _each_end_once(progress: Progress) -> Progress:
    ended: set[str] = set()

    def told(key: str, fraction: float) -> None:
        if key not in ended:
            progress(key, fraction)
        if fraction >= 1:
            ended.add(key)

    return told


def _without_unwritable(cases: Sequence[Case], work: StudyWork) -> list[Case]:
    """The same cases, with an error where results would replace an input or anybody's file, or have too long a name."""
    inputs = {real_path(path) for case in cases for path in case.files}
    return [replace(case, error=case.error or _unwritable(case, work, inputs)) for case in cases]


def _unwritable(case: Case, work: StudyWork, inputs: Collection[Path]) -> InputError | None:
    if (length := len(os.fsencode(longest_file(case, work.options)))) > MOST_BYTES:
        what = f"has a name so long that one of its results' would have {length} bytes, of {MOST_BYTES} that can be"
        return InputError(what, path=case.image, remedy="Rename it")
    if any(real_path(path) in inputs for path in map_files(case, work.output, work.options)):
        return InputError("would be overwritten by its mask", path=case.image, remedy="Give another output folder")
    if (file := next(filter(is_anothers, text_files(case, work.output, work.options)), None)) is not None:
        what = "stands where a result would be written, and no run wrote it"
        return InputError(what, path=file, remedy="Give another output folder")
    return None


def _given_up(cases: Sequence[Case], error: InputError) -> StudyOutcome:
    """A study that no process could do."""
    failed = {case.key: about(error, case.image) for case in cases}
    return StudyOutcome(failed=failed)


def _save_cohort(outcome: Outcome, folder: Path, origin: Provenance) -> list[Path]:
    return save_cohort(outcome.results, folder, _settings_of_all(outcome, origin), outcome.pages)


def _settings_of_all(outcome: Outcome, known: Provenance) -> Provenance:
    """How every study was made.

    Raises:
        InputError: some were made otherwise, as happens where ``--precision auto`` meets unlike devices.
    """
    expected = _without_device(known)
    other = next((origin for origin in outcome.origins if _without_device(origin) != expected), None)
    if other is None:
        return known
    ours, theirs = _without_device(known), _without_device(other)
    differing = [name for name in ours if ours[name] != theirs.get(name)]
    what = f"the processes that did the studies differ in {listed(differing)}, so no cohort's files are written"
    raise InputError(what, remedy="Give --precision, install one version everywhere, and use --continue")


def _without_device(origin: Provenance) -> dict[str, Any]:
    made = {**origin.versions, **origin.weights, **origin.settings}
    made.pop("device", None)
    return made
