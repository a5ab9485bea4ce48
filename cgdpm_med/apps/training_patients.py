"""Which patients a network was trained on: written beside its weights, and kept out of what judges it.

A run's ``split.json`` is a split as :func:`~cgdpm_med.data.load_split` reads it, the sections that the training used,
with two further entries: ``trained_on``, every patient that any of its weights have seen; and ``weights``, SHA-256 of
the files it speaks of by name, where it does not speak of all that lie beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgdpm_med.apps.info import sha256_of
from cgdpm_med.data import SECTIONS, Split, acdc_patient_folders, load_split, section_of
from cgdpm_med.volumes import InputError, atomic_write

SPLIT_FILE = "split.json"
_NAMED = 5  # patients that an error lists


@dataclass(frozen=True)
class TrainingRecord:
    """The patients that weights have seen, and the file that says so, which is a split, too."""

    patients: frozenset[str]
    path: Path


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
    sections = {name: list(members) for name, members in load_split(split).items()}
    named = {name for members in sections.values() for name in members}
    for name, section in section_of((each.resolve().name for each in acdc_patient_folders(root)), split).items():
        if name not in named:
            sections[section].append(name)
    seen = {item["patient"] for item in datalist}
    seen |= set(_read(path).get("trained_on", ()))
    for weights in started_from:
        if (record := training_record(weights)) is not None:
            seen |= record.patients
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(json.dumps({**sections, "trained_on": sorted(seen)}, indent=2).encode())
    return path


def training_record(weights: str | Path) -> TrainingRecord | None:
    """What lies beside a weights file about its training patients, or None where nothing does, as in version 0.1."""
    weights = Path(weights)
    for folder in (weights.parent, weights.parent.parent):  # a bundle's guidance network lies in a folder of its own
        content = _read(folder / SPLIT_FILE)
        known = content.get("weights")
        if content and (folder == weights.parent if known is None else known.get(weights.name) == sha256_of(weights)):
            return TrainingRecord(frozenset(content["trained_on"]), folder / SPLIT_FILE)
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
    if not isinstance(content["trained_on"], list) or not isinstance(content.get("weights", {}), dict):
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
            raise InputError(f"{_listed(seen)} trained the network", path=record.path, remedy=_remedy(record, section))
    if not records or None in records:
        return "it is not known which patients the network was trained on: there is no record beside the weights"
    return None


def _remedy(record: TrainingRecord, section: str) -> str:
    unseen = {name: set(load_split(record.path)[name]) - record.patients for name in SECTIONS}
    if unseen[section]:
        return f"Use section {section} of this file: give it as --split (split= in Python)"
    return f"Give patients that trained nothing, as section {section} of a --split of yours (split= in Python)"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
