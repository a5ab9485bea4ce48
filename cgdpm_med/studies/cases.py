"""Which files are inputs, and where their results go."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from cgdpm_med.data.acdc import AcdcPatient, acdc_patient_folders, read_acdc_patient
from cgdpm_med.data.transforms import case_name
from cgdpm_med.files import InputError
from cgdpm_med.images.pictures import PICTURE_SUFFIXES
from cgdpm_med.studies.folders import (
    PACKED,
    PICTURES,
    Contents,
    FolderWarning,
    is_below,
    is_label_map,
    is_series,
    left_out_lines,
    survey,
    volume_files,
)
from cgdpm_med.studies.map_names import OUTPUTS
from cgdpm_med.studies.phases import cine_of, phase_pairs
from cgdpm_med.volumes import Spacing, Volume, read_volume
from cgdpm_med.volumes.formats import PAIR_VOXELS, READABLE, VOLUME_SUFFIXES, files_of, is_dicom_file, is_named

if TYPE_CHECKING:
    from cgdpm_med.volumes.dicom.stack import DicomStack

CINES = "cines whose ED and ES frames are segmented"
_FOR_PICTURES = "pictures need --bundle with a run that cgdpm-med train made from pictures"

# --- inputs of a segmentation -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """Whose images: what is known of a study besides them.

    Attributes:
        key: of the study.
        ed, es: numbers of the end-diastolic and end-systolic frames, counted from 1, as Info.cfg, files' names or the
            command line state them.
        height, weight: in cm and kg.
    """

    key: str
    ed: int | None = None
    es: int | None = None
    height: float | None = None
    weight: float | None = None

    @property
    def phases(self) -> dict[str, int]:
        """Numbers of the frames that are known, by the name of the phase."""
        known = {"ED": self.ed, "ES": self.es}
        return {phase: number for phase, number in known.items() if number is not None}


@dataclass(frozen=True)
class Case:
    """One input: its key, where below the output folder its results go, and the study it belongs to.

    ``image`` is a volume's file, or the folder of a DICOM ``stack``. ``error`` says what is wrong when the search
    already found out; such a case is counted as failed. ``frame`` is the number of the image within its study, counted
    from 1; a file without a ``subject`` is a study of its own.
    """

    image: Path
    key: str
    folder: Path = Path()
    error: InputError | None = None
    subject: Subject | None = None
    frame: int = 1
    stack: DicomStack | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """What is read: a volume's file and those with its voxels, or the files of a DICOM stack."""
        return files_of(self.image) if self.stack is None else self.stack.files

    def read(self, spacing: Spacing = "auto") -> Volume:
        """The image on its grid; ``spacing`` as in :func:`~cgdpm_med.read_volume`, for DICOM its numbers alone.

        Raises:
            InputError: it cannot be used.
        """
        volume = read_volume(self.image, spacing=spacing) if self.stack is None else self.stack.read(spacing)
        if is_label_map(volume.data):
            what = "is a label map: it holds a few whole numbers alone"
            raise InputError(what, path=self.image, remedy="Give the image itself, or move the labels elsewhere")
        return volume

    @property
    def name(self) -> str:
        """Stem of every file written for this case."""
        return PurePosixPath(self.key).name

    @property
    def stem(self) -> str:
        """Where below the output folder its files go, without their endings."""
        return (self.folder / self.name).as_posix()

    @property
    def record(self) -> str:
        """The same of its study's JSON and page."""
        return (self.folder / PurePosixPath(self.study.key).name).as_posix()

    @property
    def study(self) -> Subject:
        """The subject, or a nameless one under this case's own key."""
        return self.subject or Subject(self.key)


def group_studies(cases: Iterable[Case]) -> dict[str, list[Case]]:
    """Cases by the key of their study, in the order in which the studies first occur."""
    studies: dict[str, list[Case]] = {}
    for case in cases:
        studies.setdefault(case.study.key, []).append(case)
    return studies


@dataclass(frozen=True)
class Found:
    """What a search found: the cases, and by reason what is left out."""

    cases: list[Case]
    left_out: dict[str, list[Path]]


def find_cases(
    source: str | Path, *, exclude: str | Path | None = None, series: Collection[int] | None = None
) -> list[Case]:
    """The volumes at ``source``: one file, or whatever lies below a folder; see :func:`search`.

    What is left out is told by a :class:`~cgdpm_med.studies.folders.FolderWarning`.

    Raises:
        InputError: when there is nothing to segment.
    """
    found = search(source, exclude=exclude, series=series)
    for line in left_out_lines(Path(source), found.left_out):
        warnings.warn(line, FolderWarning, stacklevel=2)
    return found.cases


def search(source: str | Path, *, exclude: str | Path | None = None, series: Collection[int] | None = None) -> Found:
    """Cases for everything below a folder, or for one file, and what is left out, by the rule of :mod:`.folders`.

    - Patients in ACDC's layout, wherever they lie, are studies of their ED and ES frames; the 4D series and the other
      frames of such a patient are left out, and any other scan in the folder is a case of its own.
    - Two images whose names differ in the word ED or ES alone are a study too (:mod:`.phases`), beside which the cine
      of that name is left out.
    - DICOM series are grouped by :func:`~cgdpm_med.volumes.dicom.finding.find_dicom`; a volume of theirs bears the
      name of its folder, with its series number where the folder holds several.
    - What looks like an image and cannot be used is a case with an error.

    Results mirror the folders of the inputs, and nnU-Net's channel ending ``_0000`` is no part of a name.

    Args:
        source: file or folder.
        exclude: a folder that is left out.
        series: SeriesNumbers of the DICOM series to take, and nothing else; None takes everything.

    Raises:
        InputError: when there is nothing to segment, or no series of such a number.
    """
    source = Path(source)
    if not source.exists():
        raise InputError("there is no such file or folder", path=source, remedy="Check the path")
    if series is not None:
        return Found(_chosen_series(source, exclude, series), {})
    if not source.is_dir():
        if is_dicom_file(source):
            raise InputError("is one DICOM file", path=source, remedy="Give the folder of its series")
        if is_named(source, PICTURE_SUFFIXES):
            what = "is a picture, and this model reads volumes"
            raise InputError(what, path=source, remedy=f"Give {READABLE}; {_FOR_PICTURES}")
        if source.name.lower() == "dicomdir":
            raise InputError("is the table of contents of DICOM files", path=source, remedy="Give its folder")
        if is_named(source, PACKED) and not is_named(source, (*VOLUME_SUFFIXES, *PAIR_VOXELS)):
            raise InputError("is packed", path=source, remedy="Unpack it and give what it holds")
        return Found([Case(source, _without_channel(case_name(source)))], {})
    outside = None if exclude is None else Path(exclude)
    contents = survey(source, outside)
    cases, taken = _acdc_cases(source, contents)
    scans = [
        Case(path, _without_channel(relative_key(path, source)), path.relative_to(source).parent)
        for path in contents.volumes
        if path not in taken
    ]
    cases += _paired_phases(scans, contents)
    cases += _dicom_cases(source, exclude)
    cases += [_unusable_case(error, source) for error in contents.unusable]
    if not cases:
        raise _nothing(source, outside, contents)
    return Found(_without_namesakes(cases), contents.left_out)


def _unusable_case(error: InputError, source: Path) -> Case:
    path = error.path or source
    return Case(path, "." if path == source else path.relative_to(source).as_posix(), error=error)


def _nothing(source: Path, exclude: Path | None, contents: Contents) -> InputError:
    inside = exclude is not None and (is_below(source, exclude) or bool(volume_files(source)))
    if inside and not contents.left_out:
        return InputError("lies inside the output folder", path=source, remedy="Give another output folder")
    what = "holds no .nii or .nii.gz file, no other volume and no DICOM image"
    if contents.left_out:
        left = "; ".join(f"{len(paths)} {reason}" for reason, paths in contents.left_out.items())
        what = f"holds no .nii or .nii.gz file or other volume to segment, only {left}"
    pictures = f"; {_FOR_PICTURES}" if PICTURES in contents.left_out else ""
    return InputError(what, path=source, remedy=f"Give {READABLE}, a DICOM series, or a folder of them{pictures}")


def _paired_phases(scans: list[Case], contents: Contents) -> list[Case]:
    """The same cases, ED and ES as one study where their names say so, and without the cine they come from."""
    keys = Counter(case.key for case in scans)
    pairs = phase_pairs(key for key, count in keys.items() if count == 1)
    subjects = {key: Subject(study, ed=1, es=2) for study, pair in pairs.items() for key in pair}
    frame = {key: number for pair in pairs.values() for number, key in enumerate(pair, start=1)}
    cases = []
    for case in scans:
        if case.key in subjects:
            cases.append(replace(case, subject=subjects[case.key], frame=frame[case.key]))
        elif cine_of(case.key) in pairs and is_series(case.image):
            contents.leave_out(CINES, case.image)
        else:
            cases.append(case)
    return cases


def _chosen_series(source: Path, exclude: str | Path | None, series: Collection[int]) -> list[Case]:
    if not source.is_dir():
        raise InputError("is no folder of DICOM series", path=source, remedy="Leave out --series, or give a folder")
    return _without_namesakes(_dicom_cases(source, exclude, series))


def _dicom_cases(source: Path, exclude: str | Path | None, series: Collection[int] | None = None) -> list[Case]:
    """A case for each finding, called like its folder; several in one folder are told apart by their series."""
    from cgdpm_med.volumes.dicom.finding import find_dicom  # pydicom, which other inputs do not need

    findings = find_dicom(source, exclude=exclude, series=series)
    crowd = Counter(found.folder for found in findings)
    taken: Counter[str] = Counter()
    cases = []
    for found in findings:
        below = found.folder.relative_to(source)
        key = source.resolve().name if below == Path() else below.as_posix()
        if crowd[found.folder] > 1:
            key += f"_series{found.series[0]:03d}" if found.series else "_series"
        taken[key] += 1
        key += f"_{taken[key]}" if taken[key] > 1 else ""
        folder = Path() if below == Path() else below.parent
        cases.append(Case(found.folder, key, folder, found.error, stack=found.stack))
    return cases


def _without_channel(key: str) -> str:
    shorter = key.removesuffix("_0000")
    return key if shorter in ("", key) or shorter.endswith("/") else shorter


def relative_key(path: Path, root: Path) -> str:
    """Path below ``root`` without the extension, with forward slashes."""
    return (path.relative_to(root).parent / case_name(path)).as_posix()


def _acdc_folders(source: Path, contents: Contents) -> list[Path]:
    """Folders with an Info.cfg; beside those right below the source also those that are called patient without one."""
    try:
        expected = acdc_patient_folders(source)
    except InputError:
        expected = []
    if not any((patient / "Info.cfg").is_file() for patient in expected):
        expected = []
    return [*expected, *(folder for folder in contents.patients if folder not in expected)]


def _acdc_cases(source: Path, contents: Contents) -> tuple[list[Case], set[Path]]:
    """ED and ES of each patient in ACDC's layout, and the volumes that are theirs, segmented or left out."""
    cases: list[Case] = []
    taken: set[Path] = set()
    for folder in _acdc_folders(source, contents):
        # right below the folder given, or its training part, patients go by their own name; elsewhere folders count
        near = folder == source or folder.parent in (source, source / "training")
        above = Path() if near else folder.parent.relative_to(source)
        inside = [path for path in contents.volumes if path.parent == folder]
        try:
            patient = read_acdc_patient(folder)
        except InputError as error:
            path = (error.path or folder).resolve()
            cases.append(Case(path, (above / path.parent.name / case_name(path)).as_posix(), error=error))
            taken.update(inside)
            continue
        frames = _frames_of(patient, above)
        cases += frames
        taken |= _parts_of(patient, inside, contents, {case.image for case in frames})
    return cases, taken


def _frames_of(patient: AcdcPatient, above: Path) -> list[Case]:
    key = (above / patient.patient).as_posix()
    subject = Subject(key, patient.ed, patient.es, patient.height, patient.weight)
    cases = []
    for frame in (patient.ed, patient.es):
        name = (above / patient.key(frame)).as_posix()
        case = Case(patient.folder, name, above / patient.patient, subject=subject, frame=frame)
        try:
            cases.append(replace(case, image=patient.image(frame)))
        except InputError as error:
            cases.append(replace(case, image=error.path or patient.folder, error=error))
    return cases


def _parts_of(
    patient: AcdcPatient, inside: Iterable[Path], contents: Contents, segmented: Collection[Path]
) -> set[Path]:
    """Which volumes in a patient's folder are the patient's by name; those that are not segmented are left out."""
    mine = set()
    for path in inside:
        part = case_name(path).removeprefix(f"{patient.patient}_")
        if part == "4d":
            contents.leave_out(CINES, path)
        elif re.fullmatch(r"frame\d+", part) is None:
            continue
        elif case_name(path) not in (patient.key(patient.ed), patient.key(patient.es)):
            contents.leave_out("frames that are neither ED nor ES", path)
        elif path not in segmented:
            continue  # the same frame in another file
        mine.add(path)
    return mine


def _without_namesakes(cases: Iterable[Case]) -> list[Case]:
    """The same cases, with an error where results would bear the name of another's, or a name that is no text.

    So do two files of one name (a.nii and a.nii.gz), and a file that is called like the map or the study of another.
    """
    found: dict[str, Case] = {}
    errors = []
    for case in cases:
        first = found.setdefault(case.key, case)
        if first is not case:
            errors.append(_renamed(case, f"has the name of {first.image.name}", key=case.image.name))
    taken = {f"{key}_{output}": case for key, case in found.items() for output in OUTPUTS[1:]}
    for key in sorted(found.keys() & taken.keys()):
        what = f"has the name of a map of {taken[key].image.name}"
        errors.append(_renamed(found.pop(key), what, remedy="Rename it, or move earlier results elsewhere"))
    errors += _like_a_study(found) + _unwritable(found)
    return [*found.values(), *errors]


def _renamed(case: Case, what: str, key: str | None = None, remedy: str = "Rename one of the two") -> Case:
    return replace(case, key=key or case.key, error=InputError(what, path=case.image, remedy=remedy))


def _like_a_study(found: dict[str, Case]) -> list[Case]:
    """Takes out the cases whose files would be those of a study of several images, or of one of its images."""
    owners: dict[str, Case] = {}
    for case in found.values():
        if case.subject is not None:
            owners.setdefault(case.record, case)
            owners.setdefault(case.stem, case)
    errors = []
    for key, case in list(found.items()):
        others = [owners[name] for name in (case.stem, case.record) if name in owners]
        if case.error is None and (other := next((o for o in others if o.study != case.study), None)) is not None:
            what = f"would have the same files as {other.image.name} or its study, {PurePosixPath(other.record).name}"
            errors.append(_renamed(found.pop(key), what))
    return errors


def _unwritable(found: dict[str, Case]) -> list[Case]:
    """Takes out the cases whose names are bytes that are no text: no table or page could name them."""
    odd = [key for key in found if any("\ud800" <= letter <= "\udfff" for letter in key)]
    return [_renamed(found.pop(key), "has a name that is no UTF-8", remedy="Rename it") for key in odd]
