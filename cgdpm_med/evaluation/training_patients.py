"""Which patients a network was trained on: written into its model file, and kept out of what judges it.

A run's ``split.json`` is a split as :func:`~cgdpm_med.data.acdc.load_split` reads it, the sections that the training
used, with ``trained_on``, every patient that any of its weights have seen: for the next run, and for weights that do
not say so themselves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgdpm_med.data.acdc import Split, acdc_patient_folders, load_split, section_of
from cgdpm_med.files import InputError, atomic_write
from cgdpm_med.models.description import TrainingData
from cgdpm_med.models.files import training_data_of

SPLIT_FILE = "split.json"
_NAMED = 5  # patients that an error lists


@dataclass(frozen=True)
class TrainingRecord:
    """The patients that weights have seen, the file that says so, and the split that it was, where that is known."""

    patients: frozenset[str]
    path: Path
    split: Path | None = None


def record_split(
    folder: str | Path,
    root: str | Path,
    datalist: Iterable[Mapping[str, str]],
    split: str | Path | Split | None = None,
    started_from: Sequence[str | Path] = (),
) -> Path:
    """Write ``split.json`` into the folder of a run; an earlier one's training patients stay in ``trained_on``.

    Args:
        root: folder in ACDC's layout, whose patients the sections place.
        datalist: what the run trains on, items with ``patient``.
        split: as for :func:`~cgdpm_med.acdc_datalist`.
        started_from: weights that the run goes on from; what is known of their training patients is taken over.
    """
    path = Path(folder) / SPLIT_FILE
    seen = training_data(datalist, split, started_from, folder).patients
    sections = {name: list(members) for name, members in load_split(split).items()}
    named = {name for members in sections.values() for name in members}
    for name, section in section_of((each.resolve().name for each in acdc_patient_folders(root)), split).items():
        if name not in named:
            sections[section].append(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(json.dumps({**sections, "trained_on": sorted(seen)}, indent=2).encode())
    return path


def training_data(
    datalist: Iterable[Mapping[str, str]],
    split: str | Path | Split | None = None,
    started_from: Sequence[str | Path] = (),
    folder: str | Path | None = None,
) -> TrainingData:
    """What a model file says of its training.

    Args:
        datalist, split, started_from: see :func:`record_split`.
        folder: of the run, whose earlier training patients count, too.
    """
    seen = {item["patient"] for item in datalist}
    if folder is not None:
        seen |= set(_read(Path(folder) / SPLIT_FILE).get("trained_on", ()))
    for weights in started_from:
        if (record := training_record(weights)) is not None:
            seen |= record.patients
    return TrainingData(tuple(seen), split_digest(split))


def split_digest(split: str | Path | Split | None = None) -> str:
    """SHA-256 of the sections of a split, whatever order they are written in."""
    sections = {name: sorted(members) for name, members in load_split(split).items()}
    return hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()


def training_record(weights: str | Path) -> TrainingRecord | None:
    """What a weights file says of its training patients, or a record beside it; None where nothing does.

    Weights of version 0.1 do not say it themselves.
    """
    weights = Path(weights)
    record, content = weights.with_name(SPLIT_FILE), _read(weights.with_name(SPLIT_FILE))
    split = record if content else None
    if (known := _stated(weights)) is not None:
        return TrainingRecord(frozenset(known.patients), weights, split)
    return None if not content else TrainingRecord(frozenset(content["trained_on"]), record, split)


def _stated(weights: Path) -> TrainingData | None:
    """What the file itself says; nothing where it is of another kind."""
    try:
        return training_data_of(weights)
    except InputError:
        return None


def _read(path: Path) -> dict[str, Any]:
    """The record, or {} where there is none.

    Raises:
        InputError: for a file that is damaged.
    """
    if not path.is_file():
        return {}
    load_split(path)
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if "trained_on" not in content:  # a split that somebody gave, not a record
        return {}
    if not isinstance(content["trained_on"], list):
        remedy = "Restore the file that the training wrote"
        raise InputError("does not say which patients were trained on", path=path, remedy=remedy)
    return content


def check_unseen(patients: Iterable[str], weights: Sequence[str | Path], section: str) -> str | None:
    """Refuse patients that trained the network; a note where it is not known which ones did.

    Args:
        weights: files of the networks.
        section: of a split, from which patients could be taken instead.

    Raises:
        InputError: naming the patients.
    """
    patients, records = set(patients), [training_record(file) for file in weights]
    for record in records:
        if record is not None and (seen := sorted(patients & record.patients)):
            place = record.split or record.path
            raise InputError(f"{_listed(seen)} trained the network", path=place, remedy=_remedy(record, section))
    if not records or None in records:
        return (
            "it is not known which patients the network was trained on: its file does not say, nor a record beside it"
        )
    return None


def seen_in_training(patients: Iterable[str], weights: Sequence[str | Path]) -> list[str]:
    """Those of the patients that any of the weights were trained on, as far as files say, sorted."""
    records = [record for file in weights if (record := training_record(file)) is not None]
    return sorted(set(patients) & {name for record in records for name in record.patients})


def _remedy(record: TrainingRecord, section: str) -> str:
    if record.split is not None and set(load_split(record.split)[section]) - record.patients:
        return f"Use section {section} of this file: give it as --split (split= in Python)"
    return f"Give patients that trained nothing, as section {section} of a --split of yours (split= in Python)"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
