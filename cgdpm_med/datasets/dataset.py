"""A data set as a list of examples, whatever layout it was read from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cgdpm_med.files import InputError, listed
from cgdpm_med.images.pictures import PICTURE_SUFFIXES
from cgdpm_med.volumes.formats import volume_stem, volume_suffix

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Example:
    """One image of one or several channel files, with its label map where there is one.

    Attributes:
        key: its name, unique in the data set.
        images: files of the channels in order; one file may hold several.
        label: file of the label map, or None.
        patient: whose it is; images of one patient stay in one part.
        part: "train", "validation" or "test" where the data set says so, else "".
    """

    key: str
    images: tuple[Path, ...]
    label: Path | None = None
    patient: str = ""
    part: str = ""

    @property
    def is_picture(self) -> bool:
        """Whether the image is a picture file, not a volume."""
        return not volume_suffix(self.images[0])


@dataclass(frozen=True)
class DataSet:
    """Examples with the names of their classes and channels.

    Attributes:
        name: of the data set.
        root: folder or file that it was read from.
        labels: names of the classes 1, 2, … in order.
        channels: names of the image's channels; () leaves it to the files.
        examples: sorted by key.
        values: stored value of a label map -> class, the background 0 included; {} where they are the classes.
    """

    name: str
    root: Path
    labels: tuple[str, ...]
    channels: tuple[str, ...]
    examples: tuple[Example, ...]
    values: Mapping[int, int] = field(default_factory=dict)

    @property
    def labelled(self) -> tuple[Example, ...]:
        """The examples with a label map."""
        return tuple(example for example in self.examples if example.label is not None)

    def grouped(self, pattern: str) -> DataSet:
        """The same with patients found in the keys: the first group of ``pattern``, or all that it matches.

        Raises:
            InputError: for a pattern that is no regular expression, a key in which it finds nothing, or a patient in
                two parts.
        """
        try:
            find = re.compile(pattern).search
        except re.error as error:
            raise InputError(f"{pattern!r} is no regular expression ({error})", remedy="Correct --patients") from error
        examples = tuple(_of_patient(example, find(example.key)) for example in self.examples)
        grouped = replace(self, examples=examples)
        _check_parts(grouped)
        return grouped


def _of_patient(example: Example, match: re.Match[str] | None) -> Example:
    if match is None or not patient_in(match):
        remedy = "Give a pattern that every name matches, such as ^([^_]+)"
        raise InputError("no patient is found in its name", path=example.images[0], remedy=remedy)
    return replace(example, patient=patient_in(match))


def patient_in(match: re.Match[str]) -> str:
    """What a pattern found: its first group, or all that it matched."""
    return (match.group(1) or "") if match.groups() else match.group(0)


def stem(path: str | Path) -> str:
    """File name without the suffix of a volume or picture."""
    return volume_stem(path) if volume_suffix(path) else Path(path).stem


def data_files(folder: Path) -> list[Path]:
    """Images directly in a folder, volumes and pictures, sorted by name; hidden files are passed over.

    Raises:
        InputError: the folder is missing, or holds none.
    """
    if not folder.is_dir():
        raise InputError("no such folder", path=folder, remedy="Make it, or check the spelling of its name")
    found = sorted(path for path in folder.iterdir() if path.is_file() and is_data(path))
    if not found:
        inside = any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir())
        remedy = f"Put images right into it: volumes, or pictures as {', '.join(PICTURE_SUFFIXES)}"
        what = "holds no images, only folders" if inside else "holds no images"
        raise InputError(what, path=folder, remedy=remedy)
    return found


def is_data(path: Path) -> bool:
    """Whether a file is named as an image that can be read; hidden files are none."""
    known = volume_suffix(path) or path.suffix.lower() in PICTURE_SUFFIXES
    return bool(known) and not path.name.startswith(".")


def by_stem(files: Sequence[Path]) -> dict[str, Path]:
    """Files by their stem.

    Raises:
        InputError: two files have one stem.
    """
    found: dict[str, Path] = {}
    for path in files:
        if (name := stem(path)) in found:
            remedy = "Keep one of the two, or rename it"
            raise InputError(f"has the same name as {found[name].name}", path=path, remedy=remedy)
        found[name] = path
    return found


def partner(name: str, files: Mapping[str, Path], image: Path, folder: Path) -> Path:
    """The label map called ``name``.

    Raises:
        InputError: there is none, saying so where one differs in upper and lower case alone.
    """
    if name in files:
        return files[name]
    if other := [found for found in files if found.lower() == name.lower()]:
        remedy = f"Rename one of them, so that both are called {name}"
        raise InputError(f"differs from {files[other[0]].name} in upper and lower case", path=image, remedy=remedy)
    raise InputError(
        f"has no label map in {folder.name}", path=image, remedy=f"Add {folder.name}/{name}, or remove the image"
    )


def check_examples(dataset: DataSet) -> DataSet:
    """The data set, once it is sure that it can be used at all.

    Raises:
        InputError: files that are missing, names or images that come twice, pictures beside volumes, no class,
            a patient in two parts, or fewer than three patients with label maps.
    """
    for example in dataset.examples:
        for path in (*example.images, *([example.label] if example.label else [])):
            if not path.is_file():
                remedy = "Add the file, or take this example out of the list"
                raise InputError("is missing", path=path, remedy=remedy)
    keys = [example.key for example in dataset.examples]
    if twice := sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []:
        remedy = "Give every image a name of its own"
        raise InputError(f"names {listed(twice, 3)} more than once", path=dataset.root, remedy=remedy)
    if not dataset.labels:
        raise InputError("names no class but the background", path=dataset.root, remedy="Name the classes to segment")
    _check_images(dataset)
    _check_parts(dataset)
    check_number(dataset)
    return dataset


def _check_images(dataset: DataSet) -> None:
    """Of one kind, and each in one example: one file under two names would be in two parts of the split."""
    shown: dict[Path, str] = {}
    for example in dataset.examples:
        for path in example.images:
            if (other := shown.setdefault(path.resolve(), example.key)) != example.key:
                what = f"is the image of {other} and of {example.key}"
                raise InputError(what, path=path, remedy="Name every image once")
    first = dataset.examples[0]
    if odd := [example for example in dataset.examples if example.is_picture != first.is_picture]:
        this, that = ("volume", "picture") if first.is_picture else ("picture", "volume")
        what = f"is a {this}, and {first.images[0].name} a {that}: nobody would know the size of a pixel"
        raise InputError(what, path=odd[0].images[0], remedy="Keep pictures and volumes in data sets of their own")


def _check_parts(dataset: DataSet) -> None:
    parts: dict[str, str] = {}
    for example in dataset.labelled:
        if parts.setdefault(example.patient, example.part) != example.part:
            what = f"is patient {example.patient}'s, who stands in two parts of the split"
            raise InputError(what, path=example.images[0], remedy="Put all images of a patient into one part")


def check_number(dataset: DataSet) -> None:
    """Raise InputError for fewer than three patients with label maps."""
    patients = {example.patient for example in dataset.labelled}
    if len(patients) < 3:
        what = f"has label maps of {len(patients)} patients; training, validation and test need one each"
        raise InputError(what, path=dataset.root, remedy="Add patients with label maps, ten or more to be useful")
