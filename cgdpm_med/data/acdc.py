"""Datalists and patient-level splits.

A datalist is what MONAI's datasets take: a list of dictionaries, one per volume, holding file names. Sections
(training, validation, test) are always made of whole patients, so that no patient is seen on two sides.

The ACDC layout (Bernard et al., "Deep Learning Techniques for Automatic MRI Cardiac Multi-Structures Segmentation and
Diagnosis: Is the Problem Solved?", IEEE TMI 2018) is one folder per patient::

    patient001/Info.cfg                       ED, ES (frame numbers from 1), Group, Height (cm), Weight (kg), NbFrame
    patient001/patient001_frame01.nii.gz      image at one frame; ED and ES are there
    patient001/patient001_frame01_gt.nii.gz   labels 0 background, 1 RV, 2 myocardium, 3 LV
    patient001/patient001_4d.nii.gz           the whole cine series, optional
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from cgdpm_med.files import InputError

Section = Literal["train", "validation", "test", "all"]
Split = Mapping[str, Sequence[str]]

SECTIONS = ("train", "validation", "test")
_LISTS = "train, validation and test"
ACDC_LABELS = {1: "RV", 2: "Myo", 3: "LV"}
ACDC_NAMES = tuple(ACDC_LABELS.values())  # of labels 1, 2, 3
ACDC_GROUPS = ("DCM", "HCM", "MINF", "NOR", "RV")  # in the training release, twenty patients each in this order
ACDC_SPLIT_SEED = 0
SUFFIXES = (".nii.gz", ".nii")


# --- patients ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AcdcPatient:
    """One patient folder in ACDC's layout.

    ``ed`` and ``es`` are frame numbers counted from 1, as in the file names. ``height`` (cm), ``weight`` (kg) and
    ``frames`` (length of the cine series) are None, and ``group`` is ``"unknown"``, where Info.cfg does not state them.
    """

    patient: str
    folder: Path
    ed: int
    es: int
    group: str = "unknown"
    height: float | None = None
    weight: float | None = None
    frames: int | None = None

    def key(self, frame: int) -> str:
        """Name of one frame, ``patient001_frame01``."""
        return f"{self.patient}_frame{frame:02d}"

    def image(self, frame: int) -> Path:
        """File of one frame's image; raises InputError when it is missing."""
        return _existing(self.folder, self.key(frame), "the image named by Info.cfg is missing")

    def label(self, frame: int) -> Path:
        """File of one frame's reference mask; raises InputError when it is missing."""
        return _existing(self.folder, f"{self.key(frame)}_gt", "the reference mask is missing")

    def cine(self) -> Path:
        """File of the 4D series; raises InputError when it is missing."""
        return _existing(self.folder, f"{self.patient}_4d", "the 4D cine series is missing")


def _existing(folder: Path, stem: str, what: str) -> Path:
    for suffix in SUFFIXES:
        if (path := folder / f"{stem}{suffix}").is_file():
            return path
    raise InputError(what, path=folder / f"{stem}{SUFFIXES[0]}", remedy="Add the file, or leave this patient out")


def read_info(path: str | Path) -> dict[str, str]:
    """Read an Info.cfg file: one ``Name: value`` per line; blank lines are skipped.

    Raises InputError when the file is missing, is not text, or holds a line of another form or a name twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read Info.cfg ({error})", path=path, remedy="Restore the file") from error
    info: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        name, colon, value = (part.strip() for part in line.partition(":"))
        if not colon or not name or name in info:
            fault = "names an entry twice" if name in info else "is not of the form 'Name: value'"
            raise InputError(f"line {number} {fault}", path=path, remedy="Correct that line")
        info[name] = value
    return info


def _number(info: Mapping[str, str], name: str, path: Path) -> float | None:
    if name not in info:
        return None
    try:
        value = float(info[name])
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise InputError(f"{name} is {info[name]!r}, not a positive number", path=path, remedy="Correct that line")
    return value


def _whole_number(info: Mapping[str, str], name: str, path: Path) -> int | None:
    value = _number(info, name, path)
    if value is not None and value != int(value):
        raise InputError(f"{name} is {info[name]!r}, not a whole number", path=path, remedy="Correct that line")
    return None if value is None else int(value)


BODY: Mapping[str, tuple[float, float, str]] = {"Height": (30, 260, "cm"), "Weight": (0.5, 500, "kg")}
"""Least and largest of people, from the first day on, with the unit: metres or pounds would be other ones."""


def _measured(info: Mapping[str, str], name: str, path: Path) -> float | None:
    value = _number(info, name, path)
    if value is not None and (complaint := body_complaint(name, value)):
        raise InputError(complaint, path=path, remedy="Correct that line")
    return value


def body_complaint(name: str, value: float) -> str | None:
    """What is wrong with a person's ``Height`` in cm or ``Weight`` in kg, in words; None where nothing is."""
    least, most, unit = BODY[name]
    return None if least <= value <= most else f"{name} is {value:g}, not {least:g} to {most:g} {unit}"


def read_acdc_patient(folder: str | Path) -> AcdcPatient:
    """Read one patient folder; raises InputError when Info.cfg is missing, malformed, or lacks ED or ES."""
    folder = Path(folder)
    path = folder / "Info.cfg"
    info = read_info(path)
    ed, es = (_whole_number(info, name, path) for name in ("ED", "ES"))
    frames = _whole_number(info, "NbFrame", path)
    if ed is None or es is None:
        missing = "ED" if ed is None else "ES"
        raise InputError(f"{missing} is not stated", path=path, remedy=f"Add a line '{missing}: <frame number>'")
    if ed == es:
        raise InputError(f"ED and ES are the same frame, {ed}", path=path, remedy="Correct one of them")
    if frames is not None and max(ed, es) > frames:
        raise InputError(f"frame {max(ed, es)} lies beyond NbFrame, {frames}", path=path, remedy="Correct one of them")
    return AcdcPatient(
        patient=folder.resolve().name,
        folder=folder,
        ed=ed,
        es=es,
        group=info.get("Group") or "unknown",
        height=_measured(info, "Height", path),
        weight=_measured(info, "Weight", path),
        frames=frames,
    )


def acdc_patient_folders(root: str | Path) -> list[Path]:
    """Patient folders below ``root``, sorted by name.

    ``root`` holds patient folders, or a folder ``training`` that does, or is itself one patient's folder. A patient
    folder holds an Info.cfg or is called ``patient...``; anything else is passed over. Reading each with
    :func:`read_acdc_patient` lets a caller skip a broken one and go on.

    Raises InputError when there is no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(
            "no such folder", path=root, remedy="Give the folder that holds patient001, patient002 and so on"
        )
    if (root / "Info.cfg").is_file():
        return [root]
    base = root / "training" if (root / "training").is_dir() else root
    folders = (entry for entry in base.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found = sorted(f for f in folders if f.name.startswith("patient") or (f / "Info.cfg").is_file())
    if not found:
        remedy = "Give the folder that holds patient001, patient002 and so on, each with its Info.cfg"
        raise InputError("no patient folders in ACDC's layout", path=base, remedy=remedy)
    return found


def acdc_patients(root: str | Path) -> list[AcdcPatient]:
    """All patients below ``root``, sorted by name; see :func:`acdc_patient_folders` for what ``root`` may be.

    Raises InputError when there are none or an Info.cfg is bad.
    """
    return [read_acdc_patient(folder) for folder in acdc_patient_folders(root)]


# --- splits -----------------------------------------------------------------------------------------------------------


def draw_acdc_split(seed: int = ACDC_SPLIT_SEED) -> dict[str, object]:
    """Draw the 70/10/20 split of the 100 ACDC training patients, 14/2/4 from each diagnostic group.

    Every group's twenty patients are put in the order of one uniform draw each from ``random.Random(seed)``, a sequence
    that Python promises not to change; the first 14 are for training, the next 2 for validation, the last 4 for test.
    The result is the content of ``splits/acdc_70_10_20.json``, which was drawn once, with seed 0, and stays as it is.
    """
    rng = random.Random(seed)
    members: dict[str, list[str]] = {section: [] for section in SECTIONS}
    for first in range(1, 101, 20):
        order = sorted((f"patient{n:03d}" for n in range(first, first + 20)), key=lambda _: rng.random())
        for section, part in zip(SECTIONS, (order[:14], order[14:16], order[16:]), strict=True):
            members[section] += part
    description = (
        "ACDC training release, 100 patients: 70 for training, 10 for validation, 20 for test, 14/2/4 from each of "
        f"{', '.join(ACDC_GROUPS)}. Drawn once by cgdpm_med.data.acdc.draw_acdc_split with the seed below."
    )
    return {"description": description, "seed": seed, **{section: sorted(members[section]) for section in SECTIONS}}


def load_split(source: str | Path | Split | None = None) -> dict[str, tuple[str, ...]]:
    """Patients of each section: ``{"train": (...), "validation": (...), "test": (...)}``.

    ``source`` is a JSON file or mapping with those three lists of patient names; None is the committed ACDC split.
    Raises InputError when it cannot be read, lacks a section, or places a patient twice.
    """
    path = None if isinstance(source, Mapping) else source
    remedy = f"Give a JSON object with the lists {_LISTS} of patient names"
    if isinstance(source, Mapping):
        content: object = source
    else:
        committed = resources.files("cgdpm_med") / "splits" / "acdc_70_10_20.json"
        try:
            content = json.loads((committed if source is None else Path(source)).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read the split ({error})", path=path, remedy=remedy) from error
    if not isinstance(content, Mapping) or not all(_is_names(content.get(section)) for section in SECTIONS):
        raise InputError("the split lacks a section", path=path, remedy=remedy)
    split = {section: tuple(content[section]) for section in SECTIONS}
    names = [name for section in SECTIONS for name in split[section]]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"the split places {twice[0]} more than once", path=path, remedy="Leave it in one section")
    return split


def _is_names(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def split_by_rank(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Split names 70/10/20 by their place in sorted order: the first are for training, the last for test.

    Three names or more give every section at least one. Of two, the first is for training and the second for test; a
    single one is for test.
    """
    ordered = tuple(sorted(names))
    n = len(ordered)
    test = max(1, round(0.2 * n)) if n else 0
    validation = max(1, round(0.1 * n)) if n >= 3 else 0
    train = n - validation - test
    return {
        "train": ordered[:train],
        "validation": ordered[train : train + validation],
        "test": ordered[train + validation :],
    }


def section_of(names: Iterable[str], split: str | Path | Split | None = None) -> dict[str, str]:
    """Section of each patient name.

    A name found in the split is placed by the split and by nothing else, whatever folder it comes from, so an ACDC test
    patient cannot reach training. The other names (phantoms, one's own patients) are placed among themselves by
    :func:`split_by_rank`.
    """
    fixed = {name: section for section, members in load_split(split).items() for name in members}
    names = list(names)
    ranked = split_by_rank(name for name in names if name not in fixed)
    placed = {name: section for section, members in ranked.items() for name in members}
    return {name: fixed.get(name) or placed[name] for name in names}


# --- datalists --------------------------------------------------------------------------------------------------------


def acdc_datalist(
    root: str | Path,
    section: Section = "train",
    *,
    split: str | Path | Split | None = None,
    labels: bool = True,
    on_error: Callable[[InputError], None] | None = None,
) -> list[dict[str, str]]:
    """One dictionary per ED and ES volume of a section's patients, sorted by patient, ED first.

    Keys: ``image`` and, with ``labels``, ``label`` (file names); ``patient``; ``frame`` ("ED" or "ES"); ``key``
    ("patient001_frame01", the case key of the keyed noise); ``group``.

    Args:
        root: folder in ACDC's layout, see :func:`acdc_patient_folders`.
        section: "train", "validation", "test" or "all".
        split: JSON file or mapping, see :func:`load_split`; None is the committed one. Patients not named there are
            placed by :func:`split_by_rank`.
        labels: whether reference masks are needed; False leaves ``label`` out even where one exists.
        on_error: called with the error of each bad patient or volume, which is then left out; without it the first
            is raised.

    Raises InputError when the folder or a file is missing, an Info.cfg is bad, or the section has no patients.
    """
    if section not in (*SECTIONS, "all"):
        raise InputError(f"unknown section {section!r}", remedy=f"Choose one of {', '.join(SECTIONS)} or all")
    folders = acdc_patient_folders(root)
    if section != "all":
        places = section_of((folder.resolve().name for folder in folders), split)
        folders = [folder for folder in folders if places[folder.resolve().name] == section]
        if not folders:
            remedy = f"Choose another section, or name some in the list {section} of a split: JSON with lists {_LISTS}"
            raise InputError(f"no patient here belongs to section {section!r}", path=Path(root), remedy=remedy)
    items = []
    for folder in folders:
        with _passed_on(on_error):
            patient = read_acdc_patient(folder)
            for phase, frame in (("ED", patient.ed), ("ES", patient.es)):
                with _passed_on(on_error):
                    items.append(_item(patient, phase, frame, labels))
    return items


@contextmanager
def _passed_on(on_error: Callable[[InputError], None] | None) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        if on_error is None:
            raise
        on_error(error)


def _item(patient: AcdcPatient, phase: str, frame: int, label: bool) -> dict[str, str]:
    item = {"image": str(patient.image(frame))}
    if label:
        item["label"] = str(patient.label(frame))
    return item | {"patient": patient.patient, "frame": phase, "key": patient.key(frame), "group": patient.group}
