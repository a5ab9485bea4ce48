"""What the values of a mask mean: names given, or found in a dataset.json, and which structures two sides share."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgdpm_med.data.structure_names import EXAMPLE, number_structures, plain_name
from cgdpm_med.files import InputError, listed
from cgdpm_med.inference.labels import DEFAULT_LABELS, Labels
from cgdpm_med.volumes import Volume

_EXAMPLE = f"as in {EXAMPLE}"
_FOLDERS_ABOVE = 2  # nnU-Net: DatasetX/labelsTr, and trainer/fold_0/validation


@dataclass(frozen=True)
class LabelSet:
    """The meaning of the values in the masks of one side.

    Attributes:
        names: of the structures by value, 0 left out. Several values may bear one name, and then are one structure;
            those called background are background, as 0 is.
        source: where the names come from, for people.
    """

    names: Mapping[int, str]
    source: str = "ACDC's"

    def __str__(self) -> str:
        return ",".join(f"{value}={name}" for value, name in self.names.items())

    @property
    def values(self) -> set[int]:
        """What may occur in a mask."""
        return {0, *self.names}

    def require(self, mask: Volume, option: str = "--labels") -> None:
        """Refuse a mask with other values.

        Args:
            option: of the command, with which they can be named.

        Raises:
            InputError: with those values.
        """
        strange = sorted({int(value) for value in np.unique(mask.data)} - self.values)
        if len(strange) > _MANY:
            raise InputError(
                f"holds {len(strange)} label values that have no name, such as {listed(strange, 3)}",
                path=mask.path,
                remedy=f"Give a mask, not an image; name its values with {option}",
            )
        if strange:
            names = shlex.quote(",".join([str(self), *(f"{value}=NAME" for value in strange)]))
            option = self.source if self.source.startswith("--") else option
            raise InputError(
                f"holds label values {listed(strange)}, which have no name",
                path=mask.path,
                remedy=f"Name every value that occurs, as in {option} {names} ; the name background leaves one out",
            )

    def numbered(self, mask: NDArray[Any], numbers: Mapping[str, int]) -> NDArray[np.uint16]:
        """A mask's values as the numbers of their structures; 0 for one that ``numbers`` lacks."""
        of_values = {value: numbers.get(plain_name(name), 0) for value, name in self.names.items()}
        if max(self.values) >= _MOST_LABEL:  # colours of a picture
            found = np.zeros(mask.shape, np.uint16)
            for value, number in of_values.items():
                found[mask == value] = number
            return found
        table = np.zeros(max(self.values) + 1, np.uint16)
        table[list(of_values)] = list(of_values.values())
        return table[mask]


ACDC = LabelSet(DEFAULT_LABELS.by_number)

_MOST_LABEL = 2**16
_MANY = 30  # unnamed values of a file that is rather an image


# --- where names come from --------------------------------------------------------------------------------------------


def parse_labels(text: str, source: str = "given") -> LabelSet:
    """Labels as on the command line: ``1=liver,2=tumour``, or the other way round, ``liver=1``.

    Raises:
        InputError: for anything else, and for a value that is named twice.
    """
    names: dict[int, str] = {}
    for part in text.split(","):
        left, _, right = (word.strip() for word in part.partition("="))
        value, name = (left, right) if left.isdecimal() else (right, left)
        if not (value.isdecimal() and name):
            raise InputError(f"{part.strip()!r} does not name a label", remedy=f"Write value=name, {_EXAMPLE}")
        if int(value) in names:
            raise InputError(f"label {value} has two names", remedy="Name each value once")
        names[int(value)] = name
    return label_set(names, source)


def label_set(names: Mapping[int, str], source: str = "given") -> LabelSet:
    """Labels by value, in their order; 0 is background whatever it is called.

    Raises:
        InputError: for negative values, or 2^16 and above; and where there is no other value than 0.
    """
    known = {value: str(name) for value, name in sorted(names.items()) if value != 0}
    if not known:
        raise InputError("no label is named", remedy=f"Name the structures by value, {_EXAMPLE}")
    if min(known) < 0 or max(known) >= _MOST_LABEL:
        raise InputError(f"labels {min(known)} to {max(known)} are out of range", remedy="Use values from 0 to 65535")
    return LabelSet(known, source)


def find_dataset_file(place: Path, above: int = _FOLDERS_ABOVE) -> Path | None:
    """The dataset.json of a folder (or of a file's folder) or of the folders above it, or None."""
    folder = (place.parent if place.is_file() else place).resolve()
    files = (candidate / "dataset.json" for candidate in [folder, *folder.parents][: above + 1])
    return next((file for file in files if file.is_file()), None)


def read_dataset_labels(path: Path) -> LabelSet | None:
    """Labels of a dataset.json of nnU-Net, ``{"liver": 1}``, or of the Medical Segmentation Decathlon (the other way).

    None where the file has no labels. nnU-Net's ``ignore`` is no structure: a mask that holds its value is refused.

    Raises:
        InputError: the file cannot be read, or its labels are regions or not numbers.
    """
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))["labels"]
        if not isinstance(labels, dict):
            raise InputError("has labels that are no dictionary", path=path, remedy=f"Give --labels, {_EXAMPLE}")
        pairs = [_value_and_name(key, value) for key, value in labels.items()]
    except (KeyError, TypeError):
        return None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(
            "is no JSON that can be read", path=path, remedy=f"Correct it, or give --labels, {_EXAMPLE}"
        ) from error
    except InputError as error:
        raise InputError(error.what, path=path, remedy=f"Give --labels, {_EXAMPLE}") from error
    return label_set({value: name for value, name in pairs if name != "ignore"}, str(path.name))


def _value_and_name(key: str, value: Any) -> tuple[int, str]:
    for number, name in ((value, key), (key, value)):
        if isinstance(name, str) and not isinstance(number, (list, dict, bool)) and str(number).isdecimal():
            return int(number), name
    raise InputError(f"has no single number for the label {key!r}")


def require_usual_numbers(references: Path, predicted: LabelSet) -> None:
    """Refuse to guess what references mean that nothing names: what is predicted, or the same structures as in ACDC.

    Raises:
        InputError: the two differ in a structure's number.
    """
    usual = {plain_name(name): value for value, name in ACDC.names.items()}
    if all(usual.get(plain_name(name), value) == value for value, name in predicted.names.items()):
        return
    option = "--reference-labels"
    raise InputError(
        f"nothing says which value is which structure: {ACDC} as in ACDC, or {predicted} as it was predicted",
        path=references,
        remedy=f"Name the values with {option}, as in {option} {shlex.quote(str(ACDC))} , or in a dataset.json",
    )


# --- two sides --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Structures:
    """The structures that two sides share, numbered anew.

    Attributes:
        names: by number, as the references call them; numbered by
            :func:`~cgdpm_med.data.structure_names.number_structures`, whatever their values in the files.
        left_out: why a structure that only one side has is not scored, by name.
    """

    names: Mapping[int, str] = field(default_factory=lambda: dict(DEFAULT_LABELS.by_number))
    reference: LabelSet = ACDC
    prediction: LabelSet = ACDC
    left_out: Mapping[str, str] = field(default_factory=dict)

    def numbers(self) -> dict[str, int]:
        """Number of each structure by its plain name."""
        return {plain_name(name): number for number, name in self.names.items()}

    def of_reference(self, mask: NDArray[Any]) -> NDArray[np.uint16]:
        """A reference's values as numbers of structures."""
        return self.reference.numbered(mask, self.numbers())

    def of_prediction(self, mask: NDArray[Any]) -> NDArray[np.uint16]:
        """A prediction's values as numbers of structures."""
        return self.prediction.numbered(mask, self.numbers())

    @property
    def labels(self) -> Labels:
        """The structures as labels of one mask, which say what the task is."""
        return Labels(tuple(self.names.values()))

    @property
    def as_segmented(self) -> bool:
        """Whether the predictions' values are the numbers, and all of them: those of an ensemble of ``segment``."""
        return len(self.names) == len(self.prediction.names) and all(
            plain_name(self.prediction.names.get(number, "")) == plain_name(name) for number, name in self.names.items()
        )


def match_labels(reference: LabelSet, prediction: LabelSet) -> Structures:
    """The structures that have one name on both sides, see :func:`~cgdpm_med.data.structure_names.plain_name`.

    Raises:
        InputError: when there is none.
    """
    known = _first_names(reference.names.values())
    predicted = _first_names(prediction.names.values())
    shared = [plain for plain in known if plain in predicted]
    if not shared:
        raise InputError(
            f"the references have {', '.join(known.values())}, the predictions {', '.join(predicted.values())}: "
            "no structure of one name",
            remedy=f"Name the values of both with --reference-labels and --prediction-labels, {_EXAMPLE}",
        )
    left_out = {name: "the predictions' labels have no such structure" for p, name in known.items() if p not in shared}
    left_out |= {n: "the references' labels have no such structure" for p, n in predicted.items() if p not in shared}
    names = {number: known[plain] for plain, number in number_structures(shared).items()}
    return Structures(dict(sorted(names.items())), reference, prediction, left_out)


def _first_names(names: Iterable[str]) -> dict[str, str]:
    """The names by their plain form, each as it is written first."""
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(plain_name(name), name)
    found.pop("background", None)
    return found
