"""A folder of images beside a folder of masks, by equal names; and which layout a path holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgdpm_med.data.acdc import ACDC_NAMES, acdc_datalist, acdc_patient_folders
from cgdpm_med.datasets.dataset import DataSet, Example, by_stem, check_examples, data_files, partner
from cgdpm_med.datasets.json_files import class_names, read_json, read_json_dataset
from cgdpm_med.datasets.label_values import colour_code, found_classes
from cgdpm_med.files import InputError

MASKS = ("masks", "labels")
PART_FOLDERS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
_SUFFIX = re.compile(r"[_-](mask|seg|segmentation|label|gt)$", re.IGNORECASE)


def read_dataset(path: str | Path) -> DataSet:
    """The data set at a path, in any of the layouts that are known.

    Args:
        path: a folder with dataset.json (nnU-Net raw, Decathlon), with ``images`` and ``masks``, or in ACDC's layout;
            or a JSON file (a MONAI datalist).

    Raises:
        InputError: for anything else, or a data set that cannot be used, naming the file.
    """
    path = Path(path)
    remedy = "Give the folder of a data set, or a datalist as JSON"
    if path.is_file():
        if path.suffix.lower() != ".json":
            raise InputError("is no folder and no JSON file", path=path, remedy=remedy)
        return read_json_dataset(path)
    if not path.is_dir():
        raise InputError("no such folder", path=path, remedy=remedy)
    if (path / "dataset.json").is_file():
        return read_json_dataset(path / "dataset.json")
    if (path / "images").is_dir() or any((path / name / "images").is_dir() for name in PART_FOLDERS):
        return check_examples(_image_folder(path))
    if _is_acdc(path):
        return check_examples(_acdc(path))
    remedy = (
        "Give a folder with dataset.json (nnU-Net, Decathlon), with images/ and masks/, in ACDC's layout, or a datalist"
    )
    raise InputError("holds no data set in a layout that is known", path=path, remedy=remedy)


# --- images and masks -------------------------------------------------------------------------------------------------


def _image_folder(root: Path) -> DataSet:
    if (root / "images").is_dir():
        examples = _pairs(root, "")
    else:
        found = {name: part for name, part in PART_FOLDERS.items() if (root / name / "images").is_dir()}
        examples = [example for name, part in found.items() for example in _pairs(root / name, part)]
        if "validation" not in {example.part for example in examples}:
            examples = [_open(example) for example in examples]
    maps = [example.label for example in examples if example.label is not None]
    table = root / "labels.json"
    names, values = labels_from_table(table) if table.is_file() else found_classes(maps)
    return DataSet(root.resolve().name, root, names, (), tuple(sorted(examples, key=lambda e: e.key)), values)


def _open(example: Example) -> Example:
    part = "test" if example.part == "test" else ""
    return Example(example.key, example.images, example.label, example.patient, part)


def _pairs(root: Path, part: str) -> list[Example]:
    images = by_stem(data_files(root / "images"))
    folder = next((root / name for name in MASKS if (root / name).is_dir()), root / MASKS[0])
    masks = by_stem(data_files(folder))
    if not set(masks) & set(images):  # a.png with a_mask.png
        masks = _without_words(masks)
    pairs = [Example(k, (path,), partner(k, masks, path, folder), k, part) for k, path in images.items()]
    if alone := sorted(set(masks) - set(images)):
        remedy = "Add the image, or remove the mask"
        raise InputError("is the mask of no image", path=masks[alone[0]], remedy=remedy)
    return pairs


def _without_words(masks: Mapping[str, Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name, path in masks.items():
        if (other := found.setdefault(_SUFFIX.sub("", name), path)) != path:
            what = f"and {other.name} are masks of one image"
            raise InputError(what, path=path, remedy="Keep the one that is to be learned")
    return found


def labels_from_table(path: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """Names of the classes 1, 2, … of a labels.json, and the class of each stored value.

    It holds names with their numbers, grey values or colours, the background first.

    Raises:
        InputError: for anything else.
    """
    content: Mapping[str, Any] = read_json(path)
    values = [colour_code(v, path) if isinstance(v, str) else v for v in content.values()]
    numbers = [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0]
    if len(set(numbers)) < len(values) or len(values) < 2:
        remedy = 'Write {"background": 0, "tumour": 255}, or colours as "#ff0000"'
        raise InputError("does not give every class a value of its own", path=path, remedy=remedy)
    if next(iter(content)) != "background":
        raise InputError("does not begin with the background", path=path, remedy='Name "background" first')
    names = class_names({name: n for n, name in enumerate(content)}, path)
    return names, {int(value): n for n, value in enumerate(values)}


# --- ACDC -------------------------------------------------------------------------------------------------------------


def _is_acdc(path: Path) -> bool:
    try:
        return bool(acdc_patient_folders(path))
    except InputError:
        return False


def _acdc(root: Path) -> DataSet:
    items = acdc_datalist(root, "all")
    examples = [Example(i["key"], (Path(i["image"]),), Path(i["label"]), i["patient"]) for i in items]
    return DataSet("ACDC", root, ACDC_NAMES, ("MR",), tuple(examples))
