"""Which files are inputs, where their results go, and which prediction belongs to which reference."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from cgdpm_med.data import acdc_patient_folders, read_acdc_patient
from cgdpm_med.transforms import case_name
from cgdpm_med.volumes import InputError, Volume, read_volume
from cgdpm_med.volumes.dicom import DicomFinding, find_dicom
from cgdpm_med.volumes.dicom_files import is_dicom_file
from cgdpm_med.volumes.dicom_stack import DicomStack

OUTPUTS = ("mask", "probabilities", "entropy", "disagreement", "members")
"""What a segmentation can write; the mask is ``<case>.nii.gz``, everything else ``<case>_<output>.nii.gz``."""

# --- inputs of a segmentation -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """Whose heart: what is known of a study besides its images.

    Attributes:
        key: of the study.
        ed, es: numbers of the end-diastolic and end-systolic frames, counted from 1.
        height, weight: in cm and kg.
    """

    key: str
    ed: int | None = None
    es: int | None = None
    height: float | None = None
    weight: float | None = None


@dataclass(frozen=True)
class Case:
    """One input: its key, where below the output folder its results go, and the study it belongs to.

    ``image`` is a NIfTI file, or the folder of a DICOM ``stack``. ``error`` says what is wrong when the search already
    found out; such a case is counted as failed. ``frame`` is the number of the image within its study, counted from 1;
    a file without a ``subject`` is a study of its own.
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
        """What is read: one NIfTI file, or the files of a DICOM stack."""
        return (self.image,) if self.stack is None else self.stack.files

    def read(self) -> Volume:
        """The image on its grid.

        Raises:
            InputError: it cannot be used.
        """
        return read_volume(self.image) if self.stack is None else self.stack.read()

    @property
    def name(self) -> str:
        """Stem of every file written for this case."""
        return PurePosixPath(self.key).name

    @property
    def study(self) -> Subject:
        """The subject, or a nameless heart under this case's own key."""
        return self.subject or Subject(self.key)


def group_studies(cases: Iterable[Case]) -> dict[str, list[Case]]:
    """Cases by the key of their study, in the order in which the studies first occur."""
    studies: dict[str, list[Case]] = {}
    for case in cases:
        studies.setdefault(case.study.key, []).append(case)
    return studies


def find_cases(
    source: str | Path, *, exclude: str | Path | None = None, series: Collection[int] | None = None
) -> list[Case]:
    """The volumes at ``source``: a NIfTI file, an ACDC-layout folder (ED and ES of each patient), or any folder.

    Folders are searched recursively for .nii and .nii.gz, and for DICOM series, which are grouped by
    :func:`~cgdpm_med.volumes.dicom.find_dicom`; reference masks (``_gt``) and whatever lies below ``exclude`` are left
    out. Results mirror the folders of the inputs, and nnU-Net's channel ending ``_0000`` is no part of a name. A DICOM
    volume bears the name of its folder, with its series number where the folder holds several.

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
        return _chosen_series(source, exclude, series)
    if not source.is_dir():
        if is_dicom_file(source):
            raise InputError("is one DICOM file", path=source, remedy="Give the folder of its series")
        return [Case(source, _without_channel(case_name(source)))]
    if _is_acdc(source):
        return _acdc_cases(source)
    files = [path for path in nifti_files(source) if not case_name(path).endswith("_gt")]
    outside = [path for path in files if exclude is None or not _is_below(path, Path(exclude))]
    cases = [
        Case(path, _without_channel(relative_key(path, source)), path.relative_to(source).parent) for path in outside
    ]
    cases += _dicom_cases(source, find_dicom(source, exclude=exclude))
    if not cases and exclude is not None and (files or _is_below(source, Path(exclude))):
        raise InputError("lies inside the output folder", path=source, remedy="Give another output folder")
    if not cases:
        remedy = "Give a NIfTI file, a DICOM series, or a folder of them"
        raise InputError("holds no .nii or .nii.gz file and no DICOM image", path=source, remedy=remedy)
    return _without_namesakes(cases)


def _chosen_series(source: Path, exclude: str | Path | None, series: Collection[int]) -> list[Case]:
    if not source.is_dir():
        raise InputError("is no folder of DICOM series", path=source, remedy="Leave out --series, or give a folder")
    return _without_namesakes(_dicom_cases(source, find_dicom(source, exclude=exclude, series=series)))


def _dicom_cases(source: Path, findings: list[DicomFinding]) -> list[Case]:
    """A case for each finding, called like its folder; several in one folder are told apart by their series."""
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


def _is_below(path: Path, folder: Path) -> bool:
    return real_path(path).is_relative_to(real_path(folder))


def real_path(path: Path) -> Path:
    """The path without symbolic links, for comparing; one that runs in circles stays as it is."""
    return Path(os.path.realpath(path))


def nifti_files(folder: Path) -> list[Path]:
    """Every .nii and .nii.gz file below a folder, sorted; hidden files are left out.

    Links to nowhere and pipes count as files: whoever reads them says what is wrong, and no input is lost in silence.
    """
    files = (path for path in folder.rglob("*") if path.name.lower().endswith((".nii", ".nii.gz")))
    return sorted(path for path in files if not path.is_dir() and not path.name.startswith("."))


def relative_key(path: Path, root: Path) -> str:
    """Path below ``root`` without the extension, with forward slashes."""
    return (path.relative_to(root).parent / case_name(path)).as_posix()


def _is_acdc(folder: Path) -> bool:
    try:
        return any((patient / "Info.cfg").is_file() for patient in acdc_patient_folders(folder))
    except InputError:
        return False


def _acdc_cases(source: Path) -> list[Case]:
    cases: list[Case] = []
    for folder in acdc_patient_folders(source):
        try:
            patient = read_acdc_patient(folder)
        except InputError as error:
            path = (error.path or folder).resolve()
            cases.append(Case(path, f"{path.parent.name}/{case_name(path)}", error=error))
            continue
        subject = Subject(patient.patient, patient.ed, patient.es, patient.height, patient.weight)
        for frame in (patient.ed, patient.es):
            case = Case(folder, patient.key(frame), Path(patient.patient), subject=subject, frame=frame)
            try:
                cases.append(replace(case, image=patient.image(frame)))
            except InputError as error:
                cases.append(replace(case, image=error.path or folder, error=error))
    return cases


def _without_namesakes(cases: Iterable[Case]) -> list[Case]:
    """The same cases, with an error where results would bear the name of another's.

    So do two files of one name (a.nii and a.nii.gz), and a file that is called like the map of another.
    """
    found: dict[str, Case] = {}
    errors = []
    for case in cases:
        if (first := found.setdefault(case.key, case)) is not case:
            error = InputError(f"has the name of {first.image.name}", path=case.image, remedy="Rename one of the two")
            errors.append(replace(case, key=case.image.name, error=error))
    taken = {f"{key}_{output}": case for key, case in found.items() for output in OUTPUTS[1:]}
    for key in sorted(found.keys() & taken.keys()):
        what = f"has the name of a map of {taken[key].image.name}"
        error = InputError(what, path=found[key].image, remedy="Rename it, or move earlier results elsewhere")
        errors.append(replace(found.pop(key), error=error))
    return [*found.values(), *errors]


# --- predictions and references ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskPair:
    """A predicted mask and its reference; the last three are empty where the reference is not in ACDC's layout."""

    prediction: Path
    reference: Path
    key: str
    phase: str = ""
    group: str = ""
    patient: str = ""


def pair_masks(predictions: str | Path, references: str | Path) -> tuple[list[MaskPair], dict[str, InputError]]:
    """Pairs predicted masks with reference masks by name: two files, or two folders searched recursively.

    Where the reference folder holds ``_gt`` files, these are the references and everything else there is passed over.
    The ending ``_gt`` and nnU-Net's channel ending ``_0000`` do not count as part of a name, and the uncertainty maps
    that lie beside a prediction are no predictions. A name that occurs once on either side pairs wherever it lies;
    otherwise the files pair by their path, so that the folders mirror each other.

    Returns:
        The pairs, sorted by key, and by key the error of each file that has no partner.

    Raises:
        InputError: a path does not exist, one is a file and the other a folder, or a folder holds no masks.
    """
    predictions, references = Path(predictions), Path(references)
    for path in (predictions, references):
        if not path.exists():
            raise InputError("there is no such file or folder", path=path, remedy="Check the path")
    if predictions.is_file() != references.is_file():
        raise InputError(
            "is a file, and what it is compared with a folder",
            path=predictions if predictions.is_file() else references,
            remedy="Give two files or two folders",
        )
    if predictions.is_file():
        return [_pair(predictions, references, _base_name(references))], {}
    predicted = _by_key(_predicted_masks(predictions), predictions)
    reference = _by_key(_reference_masks(references), references)
    names = [Counter(key.rpartition("/")[2] for key in side) for side in (predicted, reference)]
    if all(count == 1 for side in names for count in side.values()):
        predicted = {key.rpartition("/")[2]: path for key, path in predicted.items()}
        reference = {key.rpartition("/")[2]: path for key, path in reference.items()}
    pairs = [_pair(predicted[key], path, key) for key, path in sorted(reference.items()) if key in predicted]
    lonely = {
        key: InputError("has no prediction", path=path, remedy=f"Add {key}.nii.gz to {predictions}, or remove it")
        for key, path in reference.items()
        if key not in predicted
    }
    lonely |= {
        key: InputError("has no reference", path=path, remedy=f"Add {key}.nii.gz to {references}, or remove it")
        for key, path in predicted.items()
        if key not in reference
    }
    return pairs, dict(sorted(lonely.items()))


def _reference_masks(folder: Path) -> list[Path]:
    files = nifti_files(folder)
    marked = [path for path in files if case_name(path).endswith("_gt")]
    return _some(marked or files, folder)


def _predicted_masks(folder: Path) -> list[Path]:
    files = nifti_files(folder)
    names = {(path.parent, case_name(path)) for path in files}
    companions = {(parent, f"{name}_{output}") for parent, name in names for output in OUTPUTS}
    return _some([path for path in files if (path.parent, case_name(path)) not in companions], folder)


def _some(files: list[Path], folder: Path) -> list[Path]:
    if not files:
        raise InputError("holds no .nii or .nii.gz file", path=folder, remedy="Give a folder of masks")
    return files


def _base_name(path: Path) -> str:
    return re.sub(r"(_gt|_\d{4})$", "", case_name(path))


def _by_key(files: list[Path], root: Path) -> dict[str, Path]:
    keys = {path: (path.relative_to(root).parent / _base_name(path)).as_posix() for path in files}
    for key, count in Counter(keys.values()).items():
        if count > 1:
            first, second, *_ = sorted(path for path in files if keys[path] == key)
            raise InputError(f"and {first.name} have the same name", path=second, remedy="Remove one of the two")
    return {key: path for path, key in keys.items()}


def _pair(prediction: Path, reference: Path, key: str) -> MaskPair:
    try:
        patient = read_acdc_patient(reference.parent)
    except InputError:
        return MaskPair(prediction, reference, key)
    phase = {patient.key(patient.ed): "ED", patient.key(patient.es): "ES"}.get(_base_name(reference), "")
    return MaskPair(prediction, reference, key, phase, patient.group, patient.patient)
