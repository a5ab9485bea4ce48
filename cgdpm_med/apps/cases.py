"""Which files are inputs, where their results go, and which prediction belongs to which reference."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cgdpm_med.data import acdc_datalist, acdc_patient_folders, read_acdc_patient
from cgdpm_med.transforms import case_name
from cgdpm_med.volumes import InputError

OUTPUTS = ("mask", "probabilities", "entropy", "disagreement", "members")
"""What a segmentation can write; the mask is ``<case>.nii.gz``, everything else ``<case>_<output>.nii.gz``."""

# --- inputs of a segmentation -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One input: its file, its key, and where below the output folder its results go.

    ``error`` says what is wrong when the search already found out; such a case is counted as failed.
    """

    image: Path
    key: str
    folder: Path = Path()
    error: InputError | None = None


def find_cases(source: str | Path, *, exclude: str | Path | None = None) -> list[Case]:
    """The volumes at ``source``: a NIfTI file, an ACDC-layout folder (ED and ES of each patient), or any folder.

    Folders are searched recursively for .nii and .nii.gz; reference masks (``_gt``) and whatever lies below
    ``exclude`` are left out. Results mirror the folders of the inputs.

    Raises:
        InputError: when there is nothing to segment.
    """
    source = Path(source)
    if source.is_file():
        return [Case(source, case_name(source))]
    if not source.is_dir():
        raise InputError("there is no such file or folder", path=source, remedy="Check the path")
    if _is_acdc(source):
        return _acdc_cases(source)
    files = [path for path in nifti_files(source) if not case_name(path).endswith("_gt")]
    if exclude is not None:
        files = [path for path in files if not path.resolve().is_relative_to(Path(exclude).resolve())]
    if not files:
        raise InputError("holds no .nii or .nii.gz file", path=source, remedy="Give a NIfTI file or a folder of them")
    return _without_namesakes(Case(path, relative_key(path, source), path.relative_to(source).parent) for path in files)


def nifti_files(folder: Path) -> list[Path]:
    """Every .nii and .nii.gz file below a folder, sorted; hidden files are left out."""
    files = (path for path in folder.rglob("*.nii*") if path.name.lower().endswith((".nii", ".nii.gz")))
    return sorted(path for path in files if path.is_file() and not path.name.startswith("."))


def relative_key(path: Path, root: Path) -> str:
    """Path below ``root`` without the extension, with forward slashes."""
    return (path.relative_to(root).parent / case_name(path)).as_posix()


def _is_acdc(folder: Path) -> bool:
    try:
        return any((patient / "Info.cfg").is_file() for patient in acdc_patient_folders(folder))
    except InputError:
        return False


def _acdc_cases(source: Path) -> list[Case]:
    bad: list[Case] = []

    def note(error: InputError) -> None:
        path = (error.path or source).resolve()
        bad.append(Case(path, f"{path.parent.name}/{case_name(path)}", error=error))

    items = acdc_datalist(source, "all", labels=False, on_error=note)
    return [Case(Path(item["image"]), item["key"], Path(item["patient"])) for item in items] + bad


def _without_namesakes(cases: Iterable[Case]) -> list[Case]:
    """Two files whose results would bear one name (a.nii and a.nii.gz): the second gets an error."""
    found: dict[str, Case] = {}
    errors = []
    for case in cases:
        if (first := found.setdefault(case.key, case)) is not case:
            error = InputError(f"has the name of {first.image.name}", path=case.image, remedy="Rename one of the two")
            errors.append(Case(case.image, case.image.name, case.folder, error))
    return [*found.values(), *errors]


# --- predictions and references ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskPair:
    """A predicted mask and its reference; phase and group are empty where the reference is not in ACDC's layout."""

    prediction: Path
    reference: Path
    key: str
    phase: str = ""
    group: str = ""


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
    return MaskPair(prediction, reference, key, phase, patient.group)
