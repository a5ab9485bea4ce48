"""One study from its images to its record: maps, frames counted, the page, and last the JSON.

A study with a JSON is complete, whatever became of the process that made it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cgdpm_med.apps.dicom_seg import check_codes, seg_files, write_dicom_seg
from cgdpm_med.apps.resume import finished
from cgdpm_med.apps.segment_options import Options
from cgdpm_med.diffusion.sampling import Sampling
from cgdpm_med.evaluation.calibration_file import Calibration, find_calibration
from cgdpm_med.files import InputError, reserved, sweep_temporaries
from cgdpm_med.inference.components import keep_largest
from cgdpm_med.inference.labels import DEFAULT_LABELS, Labels
from cgdpm_med.inference.segmenter import Segmentation, Segmenter, ensemble_settings
from cgdpm_med.report.records import COHORT, VIEW, read_record, read_study_record, study_record
from cgdpm_med.runtime.batching import memory_errors
from cgdpm_med.runtime.engines import Progress
from cgdpm_med.runtime.precision import autocast_dtype
from cgdpm_med.studies.cases import Case, Subject
from cgdpm_med.studies.folders import real_path
from cgdpm_med.studies.outputs import (
    SCALAR,
    CineMaps,
    Provenance,
    describe,
    input_hashes,
    map_file,
    provenance,
    save_maps,
    write_json,
)
from cgdpm_med.studies.result import StudyResult
from cgdpm_med.studies.study import Study
from cgdpm_med.volumes import Volume, frames

Segments = Callable[[Volume, str, Callable[[float], None]], Segmentation]
_LESS_MEMORY = "Use another device, fewer --members, or a smaller max_batch in the bundle's configuration"


# --- what segments ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Model:
    """A segmenter with what is recorded of it.

    Attributes:
        origin: recorded beside the results; a study made otherwise is made again by ``--continue``.
        calibration: of its ensembles.
        notes: lines for who runs it: why a calibration beside the weights is not applied, and members that are alike.
        labels: of its structures.
    """

    segmenter: Segments
    origin: Provenance
    calibration: Calibration | None = None
    notes: tuple[str, ...] = ()
    labels: Labels = DEFAULT_LABELS


@dataclass(frozen=True)
class Facts:
    """What a run needs to know of its :class:`Model` where that is held by other processes."""

    labels: Labels
    origin: Provenance
    notes: tuple[str, ...]


def model_of(segmenter: Segmenter, options: Options) -> Model:
    """The segmenter with its settings and its calibration, where one fits."""
    arithmetic = str(autocast_dtype(segmenter.device, segmenter.predictor.precision)).removeprefix("torch.")
    made = {**ensemble_settings(segmenter), "precision": arithmetic}  # "auto" depends on the device
    calibration, ignored = _calibration(segmenter, made, options)
    made["calibration"] = "none" if calibration is None else calibration.digest
    notes = tuple(note for note in (ignored, _alike(segmenter.predictor.sampling)) if note is not None)
    return Model(
        segmenter, options.on_top_of(provenance(made, *segmenter.weights)), calibration, notes, segmenter.labels
    )


def build_model(build: Callable[[], Segmenter], options: Options) -> Model:
    """:func:`model_of` a segmenter that is made here.

    Raises:
        InputError: a DICOM SEG is wanted, and there is no code for its structures.
    """
    segmenter = build()
    if options.dicom_seg is not None:
        check_codes(segmenter.labels)
    return model_of(segmenter, options)


def facts_of(model: Callable[[], Model]) -> Facts:
    """Of the model that ``model`` gives."""
    held = model()
    return Facts(held.labels, held.origin, held.notes)


def _alike(sampling: Sampling) -> str | None:
    """A line for members whose agreement would look like certainty."""
    if sampling.steps > 1 or sampling.members == 1:
        return None
    alike = f"after one step all {sampling.members} members are nearly the same, so their agreement says nothing"
    return f"note: {alike}. Give --steps 2 or more"


def _calibration(
    segmenter: Segmenter, made: Mapping[str, Any], options: Options
) -> tuple[Calibration | None, str | None]:
    """See :func:`~cgdpm_med.evaluation.calibration_file.find_calibration`."""
    if not options.calibrate:
        return None, None
    combining = {"staple": options.staple, "keep_largest": options.keep_largest}
    return find_calibration(segmenter.weights, {**made, **combining}, options.calibration)


# --- one study --------------------------------------------------------------------------------------------------------


@dataclass
class StudyOutcome:
    """What became of a study.

    Attributes:
        described: JSON of each volume segmented now, with its ``files``.
        result: of a complete study, also of one that an earlier run made.
        page: where it has one.
        skipped: whether it was complete already.
        failed: the error of each failed case, by key.
        origin: how it was made.
    """

    described: list[dict[str, Any]] = field(default_factory=list)
    result: StudyResult | None = None
    page: Path | None = None
    skipped: bool = False
    failed: dict[str, InputError] = field(default_factory=dict)
    origin: Provenance | None = None


@dataclass(frozen=True)
class StudyWork:
    """Does one study after the other, in this process or, as it can be sent there, in another.

    Attributes:
        model: gives the model, which the process makes once.
        output: folder for the results.
        resume: whether a study that is complete and was made alike is left out.
    """

    model: Callable[[], Model]
    output: Path
    options: Options
    resume: bool = False

    def __call__(self, cases: Sequence[Case], progress: Progress) -> StudyOutcome:
        """All images of one study; its page and its record only if every one of them went well."""
        run = _StudyRun(self.model(), self.output, self.options, progress)
        run.study(cases, self.resume)
        return run.outcome


def map_files(case: Case, output: Path, options: Options) -> list[Path]:
    """The maps that a case will get."""
    return [map_file(output / case.folder, case.name, name) for name in options.write]


def record_file(study: Subject, folder: Path) -> Path:
    """The JSON of a study, in its folder."""
    return folder / f"{PurePosixPath(study.key).name}.json"


def text_files(case: Case, output: Path, options: Options) -> list[Path]:
    """The JSON files and the page that a case will get, alone or with its study."""
    folder = output / case.folder
    record = record_file(options.subject(case.study), folder)
    pages = [record.with_suffix(".html")] if options.pages else []
    return [record, folder / f"{case.name}.json", *pages]


def _refuse_holes(cine: Volume, path: Path | None) -> None:
    """Raise InputError for a slice that is one value in some frames alone: masks there would move ED or ES."""
    constant = cine.data.min(axis=(0, 1)) == cine.data.max(axis=(0, 1))  # (Z, T)
    holes = constant & ~constant.all(axis=1, keepdims=True) & ~constant.all(axis=0, keepdims=True)
    if holes.any():
        place, frame = (int(n) + 1 for n in np.argwhere(holes)[0])
        more = f" and {holes.sum() - 1} more" if holes.sum() > 1 else ""
        what = f"slice {place} is constant in frame {frame}{more}, and not in others"
        raise InputError(what, path=path, remedy="Export the series again, or leave these frames out")


def longest_file(case: Case, options: Options) -> str:
    """Name of the longest file that a case may get; every image may turn out to be a cine."""
    files = [map_file(Path(), case.name if o in SCALAR else f"{case.name}_frame000", o) for o in options.write]
    if options.dicom_seg is not None and case.stack is not None:
        files += seg_files(case.stack, Path(), case.name)
    return max((path.name for path in files), key=len, default=case.name)


@dataclass
class _StudyRun:
    model: Model
    output: Path
    options: Options
    progress: Progress
    outcome: StudyOutcome = field(default_factory=StudyOutcome)

    def study(self, cases: Sequence[Case], resume: bool) -> None:
        folder = self.output / cases[0].folder
        subject = self.options.subject(cases[0].study)
        record = record_file(subject, folder)
        try:
            with reserved(record):
                self._study(cases, subject, record, resume)
        except InputError as error:  # another run's
            self.outcome.failed |= {case.key: error for case in cases}
            for case in cases:
                self.progress(case.key, 1.0)

    def _study(self, cases: Sequence[Case], subject: Subject, record: Path, resume: bool) -> None:
        folder = record.parent
        about = self._about(subject)
        self.outcome.origin = self.model.origin
        if resume and (past := finished(record, about, cases)) is not None:
            self._skip(record, past, cases)
            return
        study = Study(
            subject.key,
            known=subject.phases,
            height=subject.height,
            weight=subject.weight,
            **({} if self.model.calibration is None else self.model.calibration.intervals()),
        )
        done: list[dict[str, Any]] = []
        for case in cases:
            self.progress(case.key, 0.0)
            try:
                with memory_errors(case.image, _LESS_MEMORY):
                    done.append(self._case(case, folder, record, study))
                    if case is cases[-1] and len(done) == len(cases):
                        self._finish(study, cases, done, record, about)
            except InputError as error:
                self.outcome.failed[case.key] = error
            else:
                written = [*done[-1]["files"], f"{case.name}.json"]
                files = [str(folder / name) for name in written]
                self.outcome.described.append({**done[-1], "input": str(case.image), "files": files})
            self.progress(case.key, 1.0)

    def _about(self, subject: Subject) -> dict[str, Any]:
        """What a record must say for its study to be left out; one device is as good as another."""
        made_with = asdict(self.model.origin)
        made_with["settings"].pop("device", None)
        return {
            "subject": asdict(subject),
            "made_with": made_with,
            "wanted": {
                "write": sorted(self.options.write),
                "pages": self.options.pages,
                "dicom_seg": self.options.dicom_seg,
            },
        }

    def _skip(self, record: Path, done: Mapping[str, Any], cases: Sequence[Case]) -> None:
        self.outcome.skipped = True
        self._keep(read_study_record(done["study"]), record)
        for case in cases:
            self.progress(case.key, 1.0)

    def _keep(self, result: StudyResult, record: Path) -> None:
        self.outcome.result = result
        if (page := record.with_suffix(".html")).is_file() and self.options.pages:
            self.outcome.page = page

    def _case(self, case: Case, folder: Path, record: Path, study: Study) -> dict[str, Any]:
        """One image: its maps are written, its frames counted; returns what its JSON will say."""
        if case.error is not None:
            raise case.error
        if case.folder == Path() and (taken := {COHORT, VIEW} & {case.name, record.stem}):
            what = f"has the name of a file that cgdpm-med {taken.pop()} writes there"
            raise InputError(what, path=case.image, remedy="Rename it")
        volume = self.options.read(case)
        self._clear(case, folder, record)
        series = volume.data.ndim == 4
        described, files = (self._cine if series else self._volume)(case, volume, folder, study)
        described["files"] = [path.name for path in files]
        if case.name != record.stem:
            write_json(described, folder / f"{case.name}.json")
        return described

    def _clear(self, case: Case, folder: Path, record: Path) -> None:
        """No record may stand beside files that are about to change, nor what it says that its run wrote."""
        targets = map_files(case, self.output, self.options)
        said = read_record(record) if record.is_file() else None
        earlier = [folder / Path(name).name for name in (said or {}).get("files", ())]
        inputs = {real_path(path) for path in case.files}
        for path in (record, *earlier):
            if path.is_file() and real_path(path) not in inputs:
                path.unlink()
        objects = [] if case.stack is None else seg_files(case.stack, folder, case.name)
        for path in (*targets, *objects, record, record.with_suffix(".html"), folder / f"{case.name}.json"):
            sweep_temporaries(path)

    def _volume(self, case: Case, volume: Volume, folder: Path, study: Study) -> tuple[dict[str, Any], list[Path]]:
        if case.subject is None and (self.options.ed or self.options.es):
            remedy = "Leave out --ed and --es, or give a 4D file"
            raise InputError("is a single volume and has no frames to name", path=case.image, remedy=remedy)
        if case.subject is None and self.options.height is not None:
            remedy = "Leave out --height and --weight, or give a 4D file"
            raise InputError("is a single volume and has no function to index", path=case.image, remedy=remedy)
        result, said = self._ensemble(volume, case.key, lambda fraction: self.progress(case.key, fraction))
        study.add(case.frame, result)
        files = save_maps(result, folder, case.name, self.options.write)
        return {**describe(result), **said}, [*files, *self._seg(case, folder, 1, result)]

    def _cine(self, case: Case, volume: Volume, folder: Path, study: Study) -> tuple[dict[str, Any], list[Path]]:
        total = volume.data.shape[3]
        if case.subject is not None:
            what = f"holds {total} frames, and stands for frame {case.frame} of {case.subject.key} alone"
            raise InputError(what, path=case.image, remedy="Give this file by itself, or rename it without ED and ES")
        for name, number in study.known.items():
            if not 1 <= number <= total:
                what = f"has {total} frames, so {name} cannot be frame {number}"
                raise InputError(what, path=case.image, remedy=f"Give --{name.lower()} from 1 to {total}")
        _refuse_holes(volume, case.image)
        maps, by_frame = CineMaps(volume, folder, case.name, self.options.write), {}
        objects: list[Path] = []
        for number, frame in enumerate(frames(volume), start=1):
            if frame.data.min() == frame.data.max():
                raise InputError(
                    f"is constant in frame {number}",
                    path=case.image,
                    remedy="Export the series again, or leave that frame out",
                )
            progress = partial(self._part_done, case.key, number - 1, total)
            result, said = self._ensemble(frame, f"{case.key}/frame{number:03d}", progress)
            study.add(number, result)
            maps.add(number, result)
            objects += self._seg(case, folder, number, result)
            by_frame[str(number)] = {**describe(result), **said}
        described = {"case": case.key, "shape": list(volume.data.shape), "frames": by_frame}
        return described, [*maps.save(), *objects]

    def _seg(self, case: Case, folder: Path, frame: int, result: Segmentation) -> list[Path]:
        """The DICOM segmentation of one frame, where it is wanted and there are images to refer to."""
        if self.options.dicom_seg is None or case.stack is None:
            return []
        check_codes(result.labels)
        path = seg_files(case.stack, folder, case.name)[frame - 1]
        identity = self.options.dicom_seg
        return [
            write_dicom_seg(result.mask, case.stack, path, phase=frame - 1, identity=identity, labels=result.labels)
        ]

    def _part_done(self, key: str, before: int, total: int, fraction: float) -> None:
        self.progress(key, (before + fraction) / total)

    def _ensemble(
        self, volume: Volume, key: str, progress: Callable[[float], None]
    ) -> tuple[Segmentation, dict[str, Any]]:
        """The segmentation with its mask combined and cleaned as the options say, and what that did."""
        result = self.model.segmenter(volume, key, progress)
        if self.model.calibration is not None:
            result = self.model.calibration.apply(result)
        changes: dict[str, Any] = {}
        if self.options.staple:
            from cgdpm_med.inference.staple import combine_staple  # SimpleITK

            result, changes["combine"] = combine_staple(result), "staple"
        if self.options.keep_largest:
            mask, removed = keep_largest(result.mask)
            before = result.removed_voxels or {}
            both = {label: before.get(label, 0) + removed.get(label, 0) for label in sorted({*before, *removed})}
            result = replace(result, mask=mask)
            changes["removed_voxels"] = {str(label): count for label, count in both.items()}
        return result, changes

    def _finish(
        self,
        study: Study,
        cases: Sequence[Case],
        done: Sequence[Mapping[str, Any]],
        record: Path,
        about: Mapping[str, Any],
    ) -> None:
        """The page, and last the record; that of a study of one image holds what there is to say of the image too."""
        result = study.result()
        alone = cases[0].name == record.stem
        files = [name for described in done for name in described["files"]]
        files += [] if alone else [f"{case.name}.json" for case in cases]
        if self.options.pages:
            from cgdpm_med.report.case import case_report  # templates and pictures
            from cgdpm_med.report.rendering import write_report

            page = write_report(case_report(result, study.key_frames(), self.model.origin), record.with_suffix(".html"))
            files.append(page.name)
        summary = {
            "study": study_record(result),
            **about,
            "device": self.model.origin.settings.get("device"),
            "inputs": input_hashes(cases),
            "files": files,
        }
        write_json({**(done[0] if alone else {}), **summary}, record)
        self._keep(result, record)
