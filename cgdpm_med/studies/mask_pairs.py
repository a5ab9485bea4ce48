"""Which predicted mask belongs to which reference: volumes or pictures, by their names."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cgdpm_med.data.acdc import read_acdc_patient
from cgdpm_med.data.transforms import case_name
from cgdpm_med.files import InputError
from cgdpm_med.images.pictures import PICTURE_SUFFIXES
from cgdpm_med.studies.folders import FolderWarning, in_label_folder, picture_files, volume_files
from cgdpm_med.studies.map_names import is_map
from cgdpm_med.volumes.formats import volume_suffix

_LABEL_WORD = re.compile(
    r"(?<=.)[_\-. ](gt|segs?|segmentations?|labels?|masks?)$|^(gt|seg|label|mask)[_\-](?=.)", re.IGNORECASE
)


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

    Masks are volumes; in a folder without any they are pictures.

    Where the reference folder holds ``_gt`` files or folders of label maps (``labelsTr`` and so on, as
    :mod:`.folders` knows them), these are the references and everything else there is passed over; elsewhere an image
    beside its label map (``_seg``, ``label_``) is. Such words and nnU-Net's channel ending ``_0000`` are no part of a
    name unless names would then repeat, and the uncertainty maps that lie beside a mask are no masks. A name that
    occurs once on either side pairs wherever it lies, with a warning where folders of other names hold the two;
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
        return [_pair(predictions, references, base_name(references))], {}
    predicted = _by_key(_predicted_masks(predictions), predictions)
    reference = _by_key(_reference_masks(references), references)
    names = [Counter(key.rpartition("/")[2] for key in side) for side in (predicted, reference)]
    if all(count == 1 for side in names for count in side.values()):
        predicted = {key.rpartition("/")[2]: path for key, path in predicted.items()}
        reference = {key.rpartition("/")[2]: path for key, path in reference.items()}
    pairs = [_pair(predicted[key], path, key) for key, path in sorted(reference.items()) if key in predicted]
    if (line := _apart(pairs, predictions, references)) is not None:
        warnings.warn(line, FolderWarning, stacklevel=2)
    lonely = {
        key: InputError("has no prediction", path=path, remedy=_add(key, predicted, "predictions"))
        for key, path in reference.items()
        if key not in predicted
    }
    lonely |= {
        key: InputError("has no reference", path=path, remedy=_add(key, reference, "references"))
        for key, path in predicted.items()
        if key not in reference
    }
    return pairs, dict(sorted(lonely.items()))


def _apart(pairs: Sequence[MaskPair], predictions: Path, references: Path) -> str | None:
    """A line about pairs of equal names in folders of other names: two sites may both number from 1."""
    found = []
    for pair in pairs:
        sides = ((pair.prediction, predictions), (pair.reference, references))
        first, second = (_told_by_folders(path, root, pair.key) for path, root in sides)
        if first and second and not first & second:
            found.append(pair)
    if not found:
        return None
    of, to = found[0].prediction.relative_to(predictions), found[0].reference.relative_to(references)
    count = f"{len(found)} masks pair" if len(found) > 1 else "1 mask pairs"
    return f"{count} by name across folders, such as {of} with {to}: check that they are of one patient"


def _told_by_folders(path: Path, root: Path, key: str) -> set[str]:
    """Names of the folders above a mask, but those of label maps, and those that its own name repeats."""
    if in_label_folder(path, root):
        return set()
    return {name for name in path.relative_to(root).parent.parts if not key.startswith(name)}


def _add(key: str, others: Mapping[str, Path], what: str) -> str:
    """The remedy for a file without a partner, which must be called like the others to count."""
    like, other = next(iter(others.items()))
    before, _, after = _mask_name(other).rpartition(like.rpartition("/")[2])
    folder, slash, name = key.rpartition("/")
    called = f"{folder}{slash}{before}{name}{after}{volume_suffix(other) or other.suffix}"
    return f"Add {called} to the {what}, or move this file elsewhere"


def mask_files(place: Path) -> list[Path]:
    """The masks of a place: a file, or those that :func:`pair_masks` takes as references of a folder, if any."""
    if place.is_file():
        return [place]
    return _references_among(_masks_below(place), place) if place.is_dir() else []


def is_picture_mask(path: Path) -> bool:
    """Whether a mask is a picture, not a volume."""
    return path.suffix.lower() in PICTURE_SUFFIXES


def _mask_name(path: Path) -> str:
    return path.stem if is_picture_mask(path) else case_name(path)


def _masks_below(folder: Path) -> list[Path]:
    """Volumes, or pictures where there are none; maps of doubt are no masks."""
    if volumes := volume_files(folder):
        return _without_maps(volumes)
    pictures = picture_files(folder)
    names = {(path.parent, path.stem) for path in pictures}
    doubt = {(folder, f"{name}_doubt") for folder, name in names}
    return [path for path in pictures if (path.parent, path.stem) not in doubt]


def _reference_masks(folder: Path) -> list[Path]:
    return _some(_references_among(_masks_below(folder), folder), folder)


def _references_among(files: list[Path], folder: Path) -> list[Path]:
    alone = [path for path in files if _mask_name(path).endswith("_gt") or in_label_folder(path, folder)]
    return alone or _without_images(files)


def _without_images(files: list[Path]) -> list[Path]:
    """Files but those beside which lies a label map of the same name."""
    labels = {(path.parent, base_name(path)) for path in files if _LABEL_WORD.search(_mask_name(path))}
    return [p for p in files if _LABEL_WORD.search(_mask_name(p)) or (p.parent, base_name(p)) not in labels]


def _predicted_masks(folder: Path) -> list[Path]:
    return _some(_masks_below(folder), folder)


def _without_maps(files: list[Path]) -> list[Path]:
    masks = {(path.parent, case_name(path)) for path in files}
    return [path for path in files if not is_map(path, masks)]


def _some(files: list[Path], folder: Path) -> list[Path]:
    if not files:
        what = "holds no .nii or .nii.gz file, other volume or picture"
        raise InputError(what, path=folder, remedy="Give a folder of masks")
    return files


def base_name(path: Path) -> str:
    """A file's name without its suffix, nnU-Net's channel and the word for a label map: what pairs go by."""
    name = _mask_name(path)
    return _LABEL_WORD.sub("", name.removesuffix("_0000")) or name


def _by_key(files: list[Path], root: Path) -> dict[str, Path]:
    keys = {path: (path.relative_to(root).parent / base_name(path)).as_posix() for path in files}
    if len(set(keys.values())) < len(keys):  # two labellings of one image, say
        keys = {path: (path.relative_to(root).parent / _mask_name(path)).as_posix() for path in files}
    for key, count in Counter(keys.values()).items():
        if count > 1:
            first, second, *_ = sorted(path for path in files if keys[path] == key)
            raise InputError(
                f"and {first.name} have the same name", path=second, remedy="Move one of the two elsewhere"
            )
    return {key: path for path, key in keys.items()}


def _pair(prediction: Path, reference: Path, key: str) -> MaskPair:
    try:
        patient = read_acdc_patient(reference.parent)
    except InputError:
        return MaskPair(prediction, reference, key)
    phase = {patient.key(patient.ed): "ED", patient.key(patient.es): "ES"}.get(base_name(reference), "")
    return MaskPair(prediction, reference, key, phase, patient.group, patient.patient)
