"""From a folder of scans to masks, function, checks and reports: every study finished for good before the next begins.

A study is one image, the end-diastolic and end-systolic image of one patient, or one cine. Its JSON is written after
everything else, so a study with a JSON is complete, whatever became of the process that made it.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from cgdpm_med.apps.dicom_seg import Identity, check_codes, check_dicom_seg, seg_files, write_dicom_seg
from cgdpm_med.apps.resume import Shard, finished, input_hashes
from cgdpm_med.console import CaseBar, complain
from cgdpm_med.evaluation.calibration_file import Calibration, find_calibration
from cgdpm_med.files import InputError, sweep_temporaries
from cgdpm_med.inference.components import keep_largest
from cgdpm_med.inference.segmenter import Segmentation, Segmenter, choose_device, ensemble_settings
from cgdpm_med.report.records import COHORT, read_study_record, save_cohort, study_record
from cgdpm_med.runtime.precision import autocast_dtype
from cgdpm_med.studies.cases import Case, Subject, group_studies, search
from cgdpm_med.studies.folders import FolderWarning, left_out_lines, real_path
from cgdpm_med.studies.outputs import (
    WRITTEN,
    CineMaps,
    Provenance,
    check_outputs,
    describe,
    map_file,
    provenance,
    save_maps,
    write_json,
    write_label_tables,
)
from cgdpm_med.studies.result import StudyResult
from cgdpm_med.studies.study import Study
from cgdpm_med.volumes import Spacing, Volume, check_spacing, frames

Progress = Callable[[str, float], None]
Segments = Callable[[Volume, str, Callable[[float], None]], Segmentation]


@dataclass(frozen=True)
class Options:
    """What is done with the ensembles.

    Attributes:
        write: names of :data:`~cgdpm_med.studies.map_names.OUTPUTS`, or one of them.
        staple: whether STAPLE combines the members' masks, in place of what the bundle says.
        keep_largest: whether every structure of the combined mask is reduced to its largest piece.
        ed, es: frame numbers of a cine, from 1; by default the largest and the smallest left ventricle.
        height, weight: in cm and kg, of a single patient.
        pages: whether each study gets an HTML page.
        dicom_seg: whether DICOM inputs get DICOM segmentations, "deidentified" or "identified"; None writes none.
        calibrate: whether the calibration beside the weights is applied, where there is one that fits.
        calibration: a file to use in its place.
        spacing: of every input, see :func:`~cgdpm_med.read_volume`.
        flip_slices: whether the slices of every input run the other way than its header says, or, where it says
            nothing, from apex to base.
    """

    write: str | Sequence[str] = WRITTEN
    staple: bool = False
    keep_largest: bool = False
    ed: int | None = None
    es: int | None = None
    height: float | None = None
    weight: float | None = None
    pages: bool = True
    dicom_seg: Identity | None = None
    calibrate: bool = True
    calibration: Path | None = None
    spacing: Spacing = "auto"
    flip_slices: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.write, str):
            object.__setattr__(self, "write", (self.write,))

    def on_top_of(self, origin: Provenance | None) -> Provenance:
        """How a mask was made, given how its ensemble was."""
        origin = origin or Provenance({}, {}, {})
        combining = {"staple": self.staple, "keep_largest": self.keep_largest}
        return replace(origin, settings={**origin.settings, **combining, **self.geometry()})

    def geometry(self) -> dict[str, Any]:
        """What the user said of where voxels lie, in plain JSON."""
        spacing = self.spacing if isinstance(self.spacing, str) else [float(size) for size in self.spacing]
        return {"spacing": spacing, "flip_slices": self.flip_slices}

    def read(self, case: Case) -> Volume:
        """The image of a case with the geometry the user gave."""
        volume = case.read(self.spacing)
        return replace(volume, grid=replace(volume.grid, flip_slices=self.flip_slices))

    def subject(self, known: Subject) -> Subject:
        """``known`` with what these options say of it."""
        given = {name: getattr(self, name) for name in ("ed", "es", "height", "weight")}
        return replace(known, **{name: value for name, value in given.items() if value is not None})


@dataclass
class Outcome:
    """What became of a run.

    Attributes:
        described: JSON of each volume segmented now, with its ``files``.
        results: of every complete study, those of an earlier run included.
        pages: of the studies that have one, by key.
        skipped: keys of the studies that were complete already.
        failed: the error of each failed case, by key.
    """

    described: list[dict[str, Any]] = field(default_factory=list)
    results: list[StudyResult] = field(default_factory=list)
    pages: dict[str, Path] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


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
        changes: keys of the bundle's inference configuration; None keeps the bundle's own value.

    Returns:
        See :func:`segment_all`; and ``left_out``, by reason the files that were not segmented.

    Raises:
        InputError: when nothing can be segmented at all.
    """
    options = options or Options()
    check_outputs(options.write)
    chosen = choose_device(device)
    found = search(source, exclude=output, series=series)
    for line in left_out_lines(Path(source), found.left_out):
        warnings.warn(line, FolderWarning, stacklevel=2)
    check_options(options, found.cases)
    changes = {name: value for name, value in changes.items() if value is not None}
    segmenter = Segmenter.from_bundle(bundle, device=chosen, **changes)
    if options.dicom_seg is not None:
        check_codes(segmenter.labels)
    check_folder(Path(output))
    result = segment_all(segmenter, found.cases, output, options=options, resume=resume, shard=shard)
    result["left_out"] = {reason: [str(path) for path in paths] for reason, paths in found.left_out.items()}
    if label_table:
        result["label_tables"] = [str(path) for path in write_label_tables(Path(output), segmenter.labels)]
    return result


def _calibration(
    segmenter: Segmenter, made: Mapping[str, Any], options: Options
) -> tuple[Calibration | None, str | None]:
    """See :func:`~cgdpm_med.evaluation.calibration_file.find_calibration`."""
    if not options.calibrate:
        return None, None
    combining = {"staple": options.staple, "keep_largest": options.keep_largest}
    return find_calibration(segmenter.weights, {**made, **combining}, options.calibration)


def check_options(options: Options, cases: Sequence[Case]) -> None:
    """Raises InputError for options that do not fit together, or not to these cases."""
    check_spacing(options.spacing)
    if options.dicom_seg is not None:
        check_dicom_seg(options.dicom_seg)
        if all(case.stack is None and case.error is None for case in cases):
            raise InputError("there is no DICOM series to make a DICOM SEG of", remedy="Leave out --dicom-seg")
    studies = group_studies(cases)
    for name, number in (("--ed", options.ed), ("--es", options.es)):
        if number is not None and any(case.subject is not None for case in cases):
            what = (
                f"{name} names a frame of a cine, but here Info.cfg says which frames are which, or the files' names do"
            )
            raise InputError(what, remedy=f"Leave out {name}, or give the 4D file alone")
    if options.ed is not None and options.ed == options.es:
        raise InputError(
            f"ED and ES are the same frame, {options.ed}",
            remedy="Give two different frames, or leave out --ed and --es",
        )
    if (options.height is None) != (options.weight is None):
        raise InputError("body surface needs both height and weight", remedy="Give --height and --weight")
    if options.height is not None and len(studies) > 1:
        remedy = "Segment one patient at a time, or use ACDC's layout, where Info.cfg states them"
        raise InputError(f"one height and weight cannot be those of {len(studies)} studies", remedy=remedy)


def check_folder(folder: Path) -> None:
    """Raises InputError when results could not be written, before hours of work go into them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        what = "is a file" if folder.is_file() else f"cannot be written: {(error.strerror or str(error)).lower()}"
        raise InputError(what, path=folder, remedy="Choose a folder that can be written to") from error


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
        shorthand: fields of :class:`Options`, in place of ``options``.

    Returns:
        ``cases``: of each volume segmented now what its JSON says, its ``input`` and its ``files``; ``studies``: of
        each complete study its function and quality; ``skipped``, keys of studies that were complete; ``cohort``, its
        files; ``failed``, the error of each failed case by key.
    """
    options = options or Options(**shorthand)
    output = Path(output)
    arithmetic = str(autocast_dtype(segmenter.device, segmenter.predictor.precision)).removeprefix("torch.")
    made = {**ensemble_settings(segmenter), "precision": arithmetic}  # "auto" depends on the device
    calibration, ignored = _calibration(segmenter, made, options)
    made["calibration"] = "none" if calibration is None else calibration.digest
    origin = provenance(made, *segmenter.weights)
    mine = [case for case in cases if shard is None or shard.takes(case.study.key)]
    with CaseBar("segmenting", [case.key for case in mine]) as bar:
        if shard is not None:
            bar.line(f"part {shard}: {len(group_studies(mine))} of {len(group_studies(cases))} studies")
        if ignored is not None:
            bar.line(ignored)
        outcome = segment_cases(
            segmenter,
            mine,
            output,
            options=options,
            origin=origin,
            calibration=calibration,
            resume=resume,
            report=lambda key, error: complain(error, bar) if error else bar.note(f"segmented {key}"),
            progress=bar.update,
        )
    whole = shard is None and len(outcome.results) > 1
    cohort = save_cohort(outcome.results, output, options.on_top_of(origin), outcome.pages) if whole else []
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
    report: Callable[[str, InputError | None], None] = lambda key, error: None,
    progress: Progress = lambda key, fraction: None,
) -> Outcome:
    """Segment every case, study by study; a bad input is reported and the others go on.

    Args:
        origin: recorded beside the results; with ``resume`` a study made otherwise is made again.
        calibration: of these ensembles.
        report: called after each case with its key and its error, if any.
        progress: called with the key of the case in work and the fraction of it that is done.

    Raises:
        InputError: for an unknown output, before any work.
    """
    options = options or Options()
    check_outputs(options.write)
    run = _Run(segmenter, Path(output), options, options.on_top_of(origin), report, progress, calibration)
    run.inputs = {real_path(path) for case in cases for path in case.files}
    for of_study in group_studies(cases).values():
        run.study(of_study, resume)
    return run.outcome


@dataclass
class _Run:
    segmenter: Segments
    output: Path
    options: Options
    origin: Provenance
    report: Callable[[str, InputError | None], None]
    progress: Progress
    calibration: Calibration | None = None
    inputs: set[Path] = field(default_factory=set)
    outcome: Outcome = field(default_factory=Outcome)

    def study(self, cases: Sequence[Case], resume: bool) -> None:
        """All images of one study; its page and its record only if every one of them went well."""
        folder = self.output / cases[0].folder
        subject = self.options.subject(cases[0].study)
        record = folder / f"{PurePosixPath(subject.key).name}.json"
        about = self._about(subject)
        if resume and (past := finished(record, about, cases)) is not None:
            self._skip(record, past, cases)
            return
        study = Study(
            subject.key,
            known=subject.phases,
            height=subject.height,
            weight=subject.weight,
            **({} if self.calibration is None else self.calibration.intervals()),
        )
        done: list[dict[str, Any]] = []
        for case in cases:
            self.progress(case.key, 0.0)
            try:
                done.append(self._case(case, folder, record, study))
                if case is cases[-1] and len(done) == len(cases):
                    self._finish(study, cases, done, record, about)
            except InputError as error:
                self.outcome.failed[case.key] = str(error)
                self.report(case.key, error)
            else:
                written = [*done[-1]["files"], f"{case.name}.json"]
                files = [str(folder / name) for name in written]
                self.outcome.described.append({**done[-1], "input": str(case.image), "files": files})
                self.report(case.key, None)
            self.progress(case.key, 1.0)

    def _about(self, subject: Subject) -> dict[str, Any]:
        """What a record must say for its study to be left out; one device is as good as another."""
        made_with = asdict(self.origin)
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
        result = read_study_record(done["study"])
        self.outcome.skipped.append(result.key)
        self._keep(result, record)
        for case in cases:
            self.progress(case.key, 1.0)

    def _keep(self, result: StudyResult, record: Path) -> None:
        self.outcome.results.append(result)
        if (page := record.with_suffix(".html")).is_file() and self.options.pages:
            self.outcome.pages[result.key] = page

    def _case(self, case: Case, folder: Path, record: Path, study: Study) -> dict[str, Any]:
        """One image: its maps are written, its frames counted; returns what its JSON will say."""
        if case.error is not None:
            raise case.error
        if case.folder == Path() and COHORT in (case.name, record.stem):
            raise InputError("has the name of the cohort's files", path=case.image, remedy="Rename it")
        self._clear(case, folder, record)
        volume = self.options.read(case)
        series = volume.data.ndim == 4
        described, files = (self._cine if series else self._volume)(case, volume, folder, study)
        described["files"] = [path.name for path in files]
        if case.name != record.stem:
            write_json(described, folder / f"{case.name}.json")
        return described

    def _clear(self, case: Case, folder: Path, record: Path) -> None:
        """No record may stand beside files that are about to change, and no leftovers of a killed run stay."""
        targets = [map_file(folder, case.name, output) for output in self.options.write]
        if any(real_path(path) in self.inputs for path in targets):
            raise InputError("would be overwritten by its mask", path=case.image, remedy="Give another output folder")
        if record.is_file():
            record.unlink()
        objects = [] if case.stack is None else seg_files(case.stack, folder, case.name)
        for path in (*targets, *objects, record, record.with_suffix(".html"), folder / f"{case.name}.json"):
            sweep_temporaries(path)

    def _volume(self, case: Case, volume: Volume, folder: Path, study: Study) -> tuple[dict[str, Any], list[Path]]:
        if case.subject is None and (self.options.ed or self.options.es):
            remedy = "Leave out --ed and --es, or give a 4D file"
            raise InputError("is a single volume and has no frames to name", path=case.image, remedy=remedy)
        result, said = self._ensemble(volume, case.key, lambda fraction: self.progress(case.key, fraction))
        study.add(case.frame, result)
        files = save_maps(result, folder, case.name, self.options.write)
        return {**describe(result), **said}, [*files, *self._seg(case, folder, 1, result)]

    def _cine(self, case: Case, volume: Volume, folder: Path, study: Study) -> tuple[dict[str, Any], list[Path]]:
        total = volume.data.shape[3]
        for name, number in study.known.items():
            if not 1 <= number <= total:
                what = f"has {total} frames, so {name} cannot be frame {number}"
                raise InputError(what, path=case.image, remedy=f"Give --{name.lower()} from 1 to {total}")
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
        try:
            result = self.segmenter(volume, key, progress)
        except (torch.OutOfMemoryError, MemoryError) as error:
            remedy = "Use another device, or a smaller max_batch in the bundle's configuration"
            raise InputError("does not fit into the device's memory", path=volume.path, remedy=remedy) from error
        if self.calibration is not None:
            result = self.calibration.apply(result)
        changes: dict[str, Any] = {}
        if self.options.staple:
            from cgdpm_med.inference.staple import combine_staple  # SimpleITK

            result, changes["combine"] = combine_staple(result), "staple"
        if self.options.keep_largest:
            mask, removed = keep_largest(result.mask)
            result = replace(result, mask=mask)
            changes["removed_voxels"] = {str(label): count for label, count in removed.items()}
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

            page = write_report(case_report(result, study.key_frames(), self.origin), record.with_suffix(".html"))
            files.append(page.name)
        summary = {
            "study": study_record(result),
            **about,
            "device": self.origin.settings.get("device"),
            "inputs": input_hashes(cases),
            "files": files,
        }
        write_json({**(done[0] if alone else {}), **summary}, record)
        self._keep(result, record)
