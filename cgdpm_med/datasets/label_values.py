"""Label maps as files hold them: class numbers, 0 and 255, palettes, colours with a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cgdpm_med.files import InputError, listed, read_failure
from cgdpm_med.images.pictures import BROKEN, JPEG_SUFFIXES
from cgdpm_med.volumes import Grid, read_labels
from cgdpm_med.volumes.formats import volume_suffix

MOST_CLASSES = 64
_NEAR = 40
"""Grey values so near to 0 and to 255 may be what compression left of them."""
_COLOUR = 1 << 24  # above all grey values


def stored_labels(path: Path, like: Grid | None = None) -> NDArray[np.int64]:
    """The values of a label map as stored: (X, Y, Z) of a volume, (H, W) of a picture, colours as :func:`code`.

    A JPEG is lossy: from 128 on it is 255, below 0.

    Args:
        like: the grid of the volume's image.

    Raises:
        InputError: for a file that cannot be read, or is an image and no label map.
    """
    if volume_suffix(path):
        return read_labels(path, allowed=range(65536), like=like).data.astype(np.int64)
    try:
        with path.open("rb") as file, Image.open(file) as image:
            image.load()
            return _picture_values(image, path)
    except InputError:
        raise
    except BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise read_failure(path, error) from error
        raise InputError(f"is not a readable picture ({error})", path=path, remedy="Export it again as PNG") from error


def _picture_values(image: Image.Image, path: Path) -> NDArray[np.int64]:
    if (pages := getattr(image, "n_frames", 1)) > 1:
        raise InputError(f"holds {pages} pages", path=path, remedy="Save each page as a file of its own")
    image = ImageOps.exif_transpose(image)
    _refuse_transparency(image, path)
    if path.suffix.lower() in JPEG_SUFFIXES:
        return _from_jpeg(np.asarray(image.convert("L")), path)
    if image.mode == "P" and not _begins_with_black(image):
        image = image.convert("RGB")  # white may be 0 and black 1, as Pillow's quantize orders them
    if image.mode in ("1", "L", "P") or image.mode.startswith("I"):
        return np.asarray(image).astype(np.int64)
    if image.mode == "F":
        raise InputError("holds floating-point pixels", path=path, remedy="Save the mask with 8 bits")
    red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")).astype(np.int64), -1, 0)
    return code(red, green, blue)


def _begins_with_black(image: Image.Image) -> bool:
    """Whether number 0 of a palette is black, as where numbers are classes and 0 the background."""
    return not any((image.getpalette("RGB") or [])[:3])


def _refuse_transparency(image: Image.Image, path: Path) -> None:
    """Raise where transparency says something that the colours do not: marked pixels hidden, or told by it alone."""
    if image.mode not in ("RGBA", "LA", "PA"):
        return
    pixels = np.asarray(image.convert("RGBA"))
    marked, hidden = pixels[..., :3].any(axis=-1), pixels[..., 3] < 128
    if (marked & hidden).any() or (hidden.any() and not marked.any()):
        remedy = "Save it without transparency: a black background, structures in their values"
        raise InputError("is a mask whose transparency and colours disagree", path=path, remedy=remedy)


def _from_jpeg(grey: NDArray[np.uint8], path: Path) -> NDArray[np.int64]:
    """A mask of 0 and 255 that was compressed with loss."""
    if float(np.mean((grey > 40) & (grey < 215))) > 0.05:
        remedy = "Save masks as PNG; a JPEG can only hold black and white"
        raise InputError("is a JPEG of more than black and white, so its labels are lost", path=path, remedy=remedy)
    if 0 < grey.max() <= _NEAR:
        what = f"is a JPEG whose greatest value is {grey.max()}, so its labels are lost"
        raise InputError(what, path=path, remedy="Save masks as PNG, with 255 or the number of the class")
    return np.where(grey >= 128, 255, 0).astype(np.int64)


def code(red: Any, green: Any, blue: Any) -> NDArray[np.int64]:
    """One number for a colour; a grey one is its value."""
    grey = (red == green) & (green == blue)
    return np.where(grey, red, _COLOUR + (red << 16) + (green << 8) + blue)


def colour_code(text: str, path: Path) -> int:
    """The number of a colour written as ``#rrggbb``.

    Raises:
        InputError: for anything else.
    """
    try:
        value = int(text.lstrip("#"), 16)
    except ValueError:
        value = -1
    if len(text.lstrip("#")) != 6 or value < 0:
        raise InputError(f"{text!r} is no colour", path=path, remedy="Write colours as #ff0000")
    return int(code(np.int64(value >> 16), np.int64(value >> 8 & 255), np.int64(value & 255)))


def found_classes(files: Sequence[Path]) -> tuple[tuple[str, ...], dict[int, int]]:
    """Names of the classes, and their stored values, of label maps that nobody described.

    Two values are background and "foreground"; several grey ones are classes in their order, 0 the background.

    Raises:
        InputError: for maps without any foreground, colours (which need a table), or so many values that they are
            pictures.
    """
    values: dict[int, Path] = {}
    for path in files:
        for value in np.unique(stored_labels(path)).tolist():
            values.setdefault(value, path)
        if len(values) > MOST_CLASSES:
            what = f"and those before it hold more than {MOST_CLASSES} values, so they are no label maps"
            raise InputError(what, path=path, remedy="Give masks with one value for each class, as PNG")
    return _named(values, files)


def _named(values: Mapping[int, Path], files: Sequence[Path]) -> tuple[tuple[str, ...], dict[int, int]]:
    folder = files[0].parent
    remedy = 'Write labels.json beside the folders: {"background": "#000000", "tumour": "#ff0000"}'
    if colours := [path for value, path in values.items() if value >= _COLOUR]:
        raise InputError("is coloured, and nothing says which colour is which class", path=colours[0], remedy=remedy)
    foreground = sorted(value for value in values if value != 0)
    small, large = [v for v in foreground if v <= _NEAR], [v for v in foreground if 255 - _NEAR <= v <= 255]
    if small and large:
        what = f"holds {listed(large, 3)}, and some mask {listed(small, 3)}: classes, pixels to ignore, or compression?"
        say = (
            'Save masks of one structure with 0 and 255 alone, or name every value in labels.json: {"background": 0, …}'
        )
        raise InputError(what, path=values[large[0]], remedy=say)
    if not foreground:
        what = "holds label maps that are all empty"
        raise InputError(what, path=folder, remedy="Give masks in which the structure is marked, by 255 or by 1")
    if 0 not in values:
        what = f"holds label maps without a background: their values are {listed(foreground)}"
        raise InputError(what, path=folder, remedy="Give the background the value 0")
    names = ("foreground",) if len(foreground) == 1 else tuple(f"class {value}" for value in foreground)
    return names, {0: 0, **{value: n for n, value in enumerate(foreground, start=1)}}


def as_classes(stored: NDArray[np.int64], values: Mapping[int, int], classes: int, path: Path) -> NDArray[np.uint8]:
    """Stored values to classes 0 … ``classes`` - 1.

    Raises:
        InputError: for a value that is none of them, naming the file.
    """
    table = values or {n: n for n in range(classes)}
    present = np.unique(stored)
    if unknown := [int(value) for value in present if int(value) not in table]:
        shown = [f"#{value - _COLOUR:06x}" if value >= _COLOUR else str(value) for value in unknown]
        what = f"holds the value {listed(shown)}, which names no class (known are {listed(sorted(table))})"
        raise InputError(what, path=path, remedy="Correct the label map, or name that value among the labels")
    out = np.zeros(stored.shape, np.uint8)
    for value in present:
        out[stored == value] = table[int(value)]
    return out
