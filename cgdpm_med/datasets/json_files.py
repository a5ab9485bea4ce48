"""JSON files that describe data sets: nnU-Net's and the Decathlon's dataset.json, MONAI's datalists."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cgdpm_med.datasets.dataset import DataSet, Example, by_stem, check_examples, data_files, partner, stem
from cgdpm_med.datasets.label_values import found_classes
from cgdpm_med.files import InputError, read_failure

PART_NAMES = {
    "training": "train",
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
}


def read_json_dataset(path: Path) -> DataSet:
    """A data set that a JSON file describes, by what the file says.

    Raises:
        InputError: for a file that cannot be read or describes no data set.
    """
    content = read_json(path)
    if "channel_names" in content:
        return check_examples(_nnunet(path, content))
    if any(isinstance(content.get(name), list) for name in PART_NAMES):
        return check_examples(_listed(path, content))
    remedy = "Give channel_names, labels and file_ending (nnU-Net), or a list training of images and labels"
    raise InputError("describes no data set", path=path, remedy=remedy)


def read_json(path: Path) -> dict[str, Any]:
    """The table that a JSON file holds.

    Raises:
        InputError: for a file that is missing or holds anything else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise read_failure(path, error) from error
    except ValueError as error:
        raise InputError(f"is no JSON ({error})", path=path, remedy="Correct that place in the file") from error
    if not isinstance(content, dict):
        raise InputError("holds no table of names", path=path, remedy="Write it as nnU-Net or MONAI does")
    return content


_BACKGROUNDS = ("background", "bg", "none", "nothing", "other", "void", "clear label", "outside", "unlabelled")


def class_names(labels: Any, path: Path) -> tuple[str, ...]:
    """Names of the classes 1, 2, … from ``{"background": 0, "tumour": 1}`` or ``{"0": "background", …}``.

    Raises:
        InputError: for regions, an ignored class, numbers that do not count 0, 1, 2, …, two classes of one name, or a
            0 that is no background.
    """
    if not isinstance(labels, Mapping) or not labels:
        raise InputError("names no labels", path=path, remedy='Add "labels": {"background": 0, "tumour": 1}')
    by_number: dict[int, str] = {}
    for name, value in labels.items():
        swapped = str(name).lstrip("-").isdigit() and isinstance(value, str) and not value.isdigit()
        number, word = (int(name), value) if swapped else (value, str(name))
        if isinstance(number, str) and number.isdigit():
            number = int(number)
        if not isinstance(number, int) or isinstance(number, bool):
            what = f"gives the label {word!r} as {number!r}, not as one number: regions are not supported"
            raise InputError(what, path=path, remedy="Give every class one number, 0 for the background")
        if word == "ignore" or number in by_number:
            what = "has an ignored class" if word == "ignore" else f"names the label {number} twice"
            raise InputError(what, path=path, remedy="Name every number once; pixels to ignore are not supported")
        by_number[number] = word
    if sorted(by_number) != list(range(len(by_number))):
        what = f"has the labels {', '.join(map(str, sorted(by_number)))}"
        raise InputError(what, path=path, remedy="Number the classes 0 (background), 1, 2, … without a gap")
    if by_number[0].lower() not in _BACKGROUNDS:
        what = f"gives the class {by_number[0]!r} the number 0, which is the background's and is not segmented"
        raise InputError(what, path=path, remedy='Name 0 "background", and number the classes 1, 2, …')
    names = tuple(by_number[number] for number in range(1, len(by_number)))
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"has two classes named {twice[0]!r}", path=path, remedy="Give every class a name of its own")
    return names


# --- nnU-Net ----------------------------------------------------------------------------------------------------------


def _nnunet(path: Path, content: Mapping[str, Any]) -> DataSet:
    root, channels = path.parent, content["channel_names"]
    if not isinstance(channels, Mapping) or sorted(channels) != sorted(str(n) for n in range(len(channels))):
        remedy = 'Give them as {"0": "T2", "1": "ADC"}'
        raise InputError("has channel_names that are not numbered 0, 1, …", path=path, remedy=remedy)
    names = tuple(str(channels[str(n)]) for n in range(len(channels)))
    ending = content.get("file_ending")
    if not isinstance(ending, str) or not ending.startswith("."):
        raise InputError("does not say the file_ending", path=path, remedy='Add "file_ending": ".nii.gz"')
    examples = [*_nnunet_part(root, "Tr", "", ending, len(names))]
    said = content.get("numTraining")
    if isinstance(said, int) and said != len(examples):
        remedy = "Add the cases that are missing, or correct numTraining"
        raise InputError(f"says numTraining {said}, imagesTr holds {len(examples)} cases", path=path, remedy=remedy)
    if any((root / "imagesTs").glob("[!.]*")):  # often there, and empty
        examples += _nnunet_part(root, "Ts", "test", ending, len(names))
    return DataSet(
        str(content.get("name") or root.name), root, class_names(content.get("labels"), path), names, tuple(examples)
    )


def _nnunet_part(root: Path, folder: str, part: str, ending: str, channels: int) -> Iterator[Example]:
    images, labels = root / f"images{folder}", root / f"labels{folder}"
    wanted = data_files(images)
    if others := [path for path in wanted if not path.name.endswith(ending)]:
        remedy = "Correct file_ending in dataset.json, or convert the file, or take it away"
        raise InputError(f"does not end in {ending}, the file_ending of dataset.json", path=others[0], remedy=remedy)
    maps = by_stem(data_files(labels)) if labels.is_dir() or folder == "Tr" else {}
    groups: dict[str, dict[int, Path]] = {}
    for path in wanted:
        key, _, number = path.name[: -len(ending)].rpartition("_")
        if len(number) != 4 or not number.isdigit() or not key:
            remedy = f"Call it NAME_0000{ending}: the number is that of its channel"
            raise InputError("does not end in the number of a channel", path=path, remedy=remedy)
        groups.setdefault(key, {})[int(number)] = path
    known = {key.lower() for key in groups}  # a name that differs in case alone is spoken of below
    if alone := sorted(name for name in set(maps) - set(groups) if name.lower() not in known):
        remedy = f"Add {images.name}/{alone[0]}_0000{ending}, or remove the label map"
        raise InputError("is the label map of no image", path=maps[alone[0]], remedy=remedy)
    for key, files in sorted(groups.items()):
        first = files[min(files)]
        one_file = len(files) == 1 and not ending.startswith(".nii")  # a colour picture holds its channels itself
        if sorted(files) != list(range(channels)) and not (one_file and 0 in files):
            what = f"has the channels {', '.join(map(str, sorted(files)))}, dataset.json names {channels}"
            raise InputError(what, path=first, remedy=f"Add {key}_0000{ending} to {key}_{channels - 1:04d}{ending}")
        label = partner(key, maps, first, labels) if maps else None
        yield Example(key, tuple(files[n] for n in sorted(files)), label, key, part)


# --- lists ------------------------------------------------------------------------------------------------------------


def _listed(path: Path, content: Mapping[str, Any]) -> DataSet:
    """The Decathlon's dataset.json, and MONAI's datalists, which may lack names."""
    examples: dict[str, Example] = {}
    for name, part in PART_NAMES.items():
        for item in content.get(name) or ():
            example = _item(item, part, path)
            examples[example.key] = _new(example, examples, path)
    given = {example.part for example in examples.values() if example.label is not None}
    if "validation" not in given:  # lists of training and test data alone leave the validation part to be made
        examples = {key: _without_part(example) for key, example in examples.items()}
    modality = content.get("modality")
    channels = tuple(str(modality[key]) for key in sorted(modality)) if isinstance(modality, Mapping) else ()
    values: dict[int, int] = {}
    if "labels" in content:
        names = class_names(content["labels"], path)
    else:
        names, values = found_classes([e.label for e in examples.values() if e.label is not None])
    title = str(content.get("name") or path.parent.name)
    return DataSet(title, path, names, channels, tuple(examples[key] for key in sorted(examples)), values)


def _without_part(example: Example) -> Example:
    part = "test" if example.part == "test" else ""
    return Example(example.key, example.images, example.label, example.patient, part)


def _new(example: Example, others: Mapping[str, Example], path: Path) -> Example:
    if example.key in others:
        same = example.images == others[example.key].images
        remedy = "Name every image once" if same else "Give each item a key of its own"
        raise InputError(f"names {example.key} twice", path=path, remedy=remedy)
    return example


def _item(item: Any, part: str, path: Path) -> Example:
    content = item if isinstance(item, Mapping) else {"image": item}
    images = content.get("image")
    files = [images] if isinstance(images, str) else images
    label = content.get("label")
    named = isinstance(files, list) and files and all(isinstance(name, str) for name in files)
    if not isinstance(files, list) or not named or not (label is None or isinstance(label, str)):
        remedy = 'Write {"image": "a.nii.gz", "label": "a_mask.nii.gz"}; image may be a list of channels'
        raise InputError(f"has an item that names no files: {str(item)[:60]}", path=path, remedy=remedy)
    if label is None and part != "test":
        raise InputError(f"names no label map of {files[0]}", path=path, remedy='Add "label" to that item')
    found = tuple(path.parent / name for name in files)
    key = str(content.get("key") or stem(found[0]))
    patient = str(content.get("patient") or content.get("subject") or key)
    return Example(key, found, None if label is None else path.parent / label, patient, part)
