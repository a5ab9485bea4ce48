"""Datalists of pictures: nested folders, and ImageNet in the layouts it is unpacked to.

An item is a dictionary with ``image`` (the file) and ``key`` (its place below the root, the key of its noise); of
ImageNet also ``class`` (index) and ``wnid`` (WordNet id).
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from cgdpm_med.files import InputError, PathLike, listed
from cgdpm_med.images.pictures import PICTURE_SUFFIXES, read_picture

Item = dict[str, Any]
ClassMap = Mapping[str, int]

IMAGENET_CLASSES = 1000
WNID = re.compile(r"n\d{8}")
# the development kit's, Kaggle's, Caffe's and TensorFlow's, which differ in what a line says
GROUND_TRUTHS = (
    "ILSVRC2012_validation_ground_truth.txt",
    "LOC_val_solution.csv",
    "val.txt",
    "imagenet_2012_validation_synset_labels.txt",
)
log = logging.getLogger(__name__)


def image_datalist(root: PathLike | Sequence[PathLike]) -> list[Item]:
    """Every picture in a folder and the folders inside it, sorted by name; hidden files and folders are passed over.

    Args:
        root: folder, or several; then a key is the place below the folder that holds all of them.

    Raises:
        InputError: when there is no such folder, or no picture in it, or one folder lies in another.
    """
    if not isinstance(root, (str, os.PathLike)):
        return _of_folders([Path(folder) for folder in root])
    root = Path(root)
    if not root.is_dir():
        raise InputError("no such folder", path=root, remedy="Give a folder that holds pictures")
    items = [{"image": str(path), "key": path.relative_to(root).as_posix()} for path in _pictures(root)]
    if not items:
        raise InputError("holds no pictures", path=root, remedy=f"Give pictures named {', '.join(PICTURE_SUFFIXES)}")
    return items


def _of_folders(folders: Sequence[Path]) -> list[Item]:
    places = [folder.resolve() for folder in folders]
    for place, folder in zip(places, folders, strict=True):
        if sum(place.is_relative_to(other) for other in places) > 1:
            raise InputError("lies in another folder of the list", path=folder, remedy="Give each folder once")
    above = os.path.commonpath([place.parent for place in places])
    return [
        {**item, "key": (place.relative_to(above) / item["key"]).as_posix()}
        for place, folder in zip(places, folders, strict=True)
        for item in image_datalist(folder)
    ]


def _pictures(root: Path) -> list[Path]:
    found = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        if _leads_back(Path(folder), root):
            subfolders.clear()
            continue
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        named = (name for name in files if not name.startswith(".") and name.lower().endswith(PICTURE_SUFFIXES))
        found += [Path(folder, name) for name in named]
    return sorted(found)


def _leads_back(folder: Path, root: Path) -> bool:
    """Whether a folder is a link to one of those above it, so that walking on would never end."""
    if not folder.is_symlink():
        return False
    above = (parent for parent in folder.parents if parent.is_relative_to(root))
    return folder.resolve() in {parent.resolve() for parent in above}


# --- readable or not --------------------------------------------------------------------------------------------------


class Readable(NamedTuple):
    """Items whose pictures can be used, and an error for each of the others."""

    kept: list[Item]
    skipped: list[InputError]


def readable_pictures(
    items: Sequence[Item],
    *,
    key: str = "image",
    min_side: int = 1,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Readable:
    """Decode every picture once and sort out those that are damaged or too small.

    Each is named in a warning of the log, and their number in a last one, so that none goes missing unnoticed.

    Args:
        key: of the file in an item.
        min_side: least pixels of the shorter side.
        workers: threads; by default one for each processor.
        progress: called with the number of pictures just checked.

    Raises:
        InputError: when none is left.
    """

    def fault(item: Item) -> InputError | None:
        try:
            size = read_picture(item[key]).pixels.shape[1:]
        except InputError as error:
            return error
        if min(size) < min_side:
            what = f"{size[1]} x {size[0]} pixels, below {min_side} on a side"
            return InputError(what, path=item[key], remedy="Leave it out, or train on smaller pictures")
        return None

    kept, skipped = [], []
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for item, error in zip(items, pool.map(fault, items), strict=True):
            if error is None:
                kept.append(item)
            else:
                skipped.append(error)
                log.warning("skipped %s", error)
            if progress is not None:
                progress(1)
    if skipped:
        log.warning("%d of %d pictures were skipped", len(skipped), len(items))
    if not kept:
        what = f"none of {len(items)} pictures can be used, the first because: {skipped[0]}"
        raise InputError(what, remedy="Give other pictures")
    return Readable(kept, skipped)


# --- ImageNet ---------------------------------------------------------------------------------------------------------


def imagenet_datalist(
    root: PathLike,
    section: str = "train",
    *,
    classes: ClassMap | PathLike | None = None,
    ground_truth: PathLike | None = None,
) -> list[Item]:
    """Pictures of ImageNet with their classes, sorted by name.

    Args:
        root: folder that holds ``train`` and ``val``.
        section: folder below ``root``. Its pictures lie in folders named by WordNet id, or, as validation pictures do
            when unpacked, side by side; then ``ground_truth`` tells their classes.
        classes: WordNet id -> class index, as a mapping or a file (:func:`read_class_map`). By default a class is
            counted by its place among the sorted folders of ``train``, which must be all 1000.
        ground_truth: file for a flat section, by default one of the usual names in ``root``, in the section or in the
            development kit beside them. A line holds a WordNet id or a number of the development kit (``meta.mat`` must
            lie beside the file) for each picture in sorted order, or a file name and a WordNet id or class index.

    Raises:
        InputError: for a missing folder or file, unknown classes, or a ground truth that does not fit the pictures.
    """
    root = Path(root)
    folder = root / section
    if not folder.is_dir():
        raise InputError(f"has no folder {section!r}", path=root, remedy="Give the folder that holds train and val")
    class_map = _class_map(root, classes)
    wnids = {index: wnid for wnid, index in class_map.items()}
    if any(WNID.fullmatch(entry.name) for entry in folder.iterdir() if entry.is_dir()):
        items = [{**item, "wnid": item["key"].split("/")[0]} for item in image_datalist(folder)]
        for item in items:
            item["class"] = _class_of(item["wnid"], class_map, Path(item["image"]))
        return items
    items = image_datalist(folder)
    truth = Path(ground_truth) if ground_truth is not None else _find_ground_truth(root, section)
    for item, index in zip(items, _read_ground_truth(truth, items, class_map), strict=True):
        item |= {"wnid": wnids[index], "class": index}
    return items


def class_indices(folder: PathLike) -> dict[str, int]:
    """WordNet id -> place among the sorted folders named by WordNet ids, however many there are.

    Raises:
        InputError: when there is none.
    """
    folder = Path(folder)
    entries = folder.iterdir() if folder.is_dir() else iter(())
    names = sorted(entry.name for entry in entries if entry.is_dir() and WNID.fullmatch(entry.name))
    if not names:
        remedy = "Give a folder that holds folders like n01440764"
        raise InputError("holds no folders named by WordNet ids", path=folder, remedy=remedy)
    return {name: index for index, name in enumerate(names)}


def read_class_map(path: PathLike) -> dict[str, int]:
    """WordNet id -> class index from a file.

    Either JSON, an object of the form {"n01440764": 0} or {"0": ["n01440764", "tench"]}, or text, one WordNet id at the
    start of each line in the order of the classes.

    Raises:
        InputError: for a file that cannot be read, has another form, or gives an index or id twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        pairs = _json_classes(json.loads(text)) if text.lstrip().startswith("{") else _text_classes(text)
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        remedy = 'Give JSON such as {"n01440764": 0}, or a text of one WordNet id per line'
        raise InputError(f"cannot be read as a map of classes ({error})", path=path, remedy=remedy) from error
    if not pairs or len(dict(pairs)) != len(pairs) or len({index for _, index in pairs}) != len(pairs):
        raise InputError("gives no class, or an id or index twice", path=path, remedy="Correct the file")
    return dict(pairs)


def _json_classes(content: Any) -> list[tuple[str, int]]:
    pairs = [
        (value[0], int(name)) if isinstance(value, list) else (name, int(value)) for name, value in content.items()
    ]
    return [(_wnid(name), index) for name, index in pairs]


def _text_classes(text: str) -> list[tuple[str, int]]:
    lines = [line.split() for line in text.splitlines() if line.strip()]
    return [(_wnid(words[0]), index) for index, words in enumerate(lines)]


def _wnid(name: str) -> str:
    if not WNID.fullmatch(name):
        raise ValueError(f"{name!r} is not a WordNet id")
    return name


def _class_map(root: Path, classes: ClassMap | PathLike | None) -> dict[str, int]:
    if isinstance(classes, Mapping):
        return dict(classes)
    if classes is not None:
        return read_class_map(classes)
    found = class_indices(root / "train")
    if len(found) != IMAGENET_CLASSES:
        what = f"holds {len(found)} class folders: indices can be counted only where all {IMAGENET_CLASSES} are present"
        remedy = "Pass classes, a map from WordNet ids to indices"
        raise InputError(what, path=root / "train", remedy=remedy)
    return found


def _class_of(wnid: str, class_map: ClassMap, path: Path) -> int:
    if wnid not in class_map:
        raise InputError(f"the class {wnid} is not in the map of classes", path=path, remedy="Add it, or move the file")
    return class_map[wnid]


def _find_ground_truth(root: Path, section: str) -> Path:
    folders = (root, root / section, root / "ILSVRC2012_devkit_t12" / "data")
    for folder in folders:
        for name in GROUND_TRUTHS:
            if (folder / name).is_file():
                return folder / name
    remedy = f"Pass ground_truth, or put {GROUND_TRUTHS[0]} there"
    raise InputError(
        "its pictures lie side by side, and no file tells their classes", path=root / section, remedy=remedy
    )


def _read_ground_truth(path: Path, items: Sequence[Item], class_map: ClassMap) -> list[int]:
    """Class index of each item."""
    try:
        lines = [
            re.split(r"[,\s]+", line.strip()) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", path=path, remedy="Restore the ground truth file") from error
    if lines and lines[0][0] == "ImageId":
        del lines[0]
    if lines and len(lines[0]) >= 2:
        classes = {Path(words[0]).stem: words[1] for words in lines if len(words) >= 2}
        if unknown := [item["key"] for item in items if Path(item["key"]).stem not in classes]:
            raise InputError(f"says nothing of {listed(unknown, 3)}", path=path, remedy="Restore the ground truth file")
        named = [classes[Path(item["key"]).stem] for item in items]
        return [_index(word, class_map, path) for word in named]
    if len(lines) != len(items):
        what = f"holds {len(lines)} lines for {len(items)} pictures"
        raise InputError(what, path=path, remedy="Put all pictures of the section into the folder, and no others")
    words = [line[0] for line in lines]
    if words and words[0].isdecimal():
        kit = _devkit_wnids(path.with_name("meta.mat"))
        words = [kit.get(word, word) for word in words]
        if unknown := [word for word in words if word.isdecimal()]:
            raise InputError(f"{listed(unknown, 3)} are no classes of meta.mat", path=path, remedy="Restore the files")
    return [_index(word, class_map, path) for word in words]


def _index(word: str, class_map: ClassMap, path: Path) -> int:
    """Class index from a WordNet id, or a number that is one already."""
    if word.isdecimal() and int(word) in class_map.values():
        return int(word)
    return _class_of(word, class_map, path)


def _devkit_wnids(path: Path) -> dict[str, str]:
    """Number in the development kit -> WordNet id. The numbers follow no order of ids, so meta.mat is needed."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(path, squeeze_me=True)["synsets"]
        return {str(int(s["ILSVRC2012_ID"])): str(s["WNID"]) for s in synsets}
    except (OSError, ValueError, TypeError, LookupError) as error:
        what = f"the numbers of the ground truth need meta.mat of the development kit, which cannot be read ({error})"
        raise InputError(what, path=path, remedy="Put it there, or use a ground truth of WordNet ids") from error
