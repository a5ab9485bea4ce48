"""Picture files to RGB tensors and back, with the depth, colour profile and EXIF data they came with.

Pillow decodes and encodes. Its pixels have 8 bits in colour, 16 in grey: colour of 16 bits a channel is refused.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cgdpm_med.files import InputError, PathLike, atomic_write, read_failure

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm")
JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe")
DEEP_SUFFIXES = (".png", ".tif", ".tiff")
BROKEN = (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, struct.error, zlib.error)

# EXIF orientation -> (transpose first, axes of (C, H, W) to flip)
ORIENTATIONS: dict[int, tuple[bool, tuple[int, ...]]] = {
    2: (False, (2,)),
    3: (False, (1, 2)),
    4: (False, (1,)),
    5: (True, ()),
    6: (True, (2,)),
    7: (True, (1, 2)),
    8: (True, (1,)),
}
ORIENTATION, EXIF_IFD, GPS_IFD, WIDTH_IN_EXIF, HEIGHT_IN_EXIF = 0x0112, 0x8769, 0x8825, 0xA002, 0xA003
# what describes the picture; the other tags of a TIFF directory describe how its pixels are stored
DESCRIPTIVE_TAGS = (0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298)


@dataclass(frozen=True)
class Picture:
    """A picture as read.

    Attributes:
        pixels: (3, H, W), float32 in [-1, 1], upright; transparency lies over white.
        bits: per channel in the file, 8 or 16.
        grey: whether the file had no colours.
        icc: colour profile of ``pixels``, or None.
        exif: tags that describe the picture, without its orientation, which is applied.
    """

    pixels: Tensor
    bits: int = 8
    grey: bool = False
    icc: bytes | None = None
    exif: Image.Exif = field(default_factory=Image.Exif)


def read_picture(path: PathLike) -> Picture:
    """Read a picture: grey of 1, 8 or 16 bits, palette, RGB, CMYK, with or without alpha, in any EXIF orientation.

    8 bits map to [-1, 1] by v / 127.5 - 1, 16 bits by v / 32767.5 - 1. CMYK and other colour spaces are converted to
    RGB without their profile. Of an animation the first frame is read.

    Raises:
        InputError: for a file that is missing, damaged, no picture, or has several pages, floating-point pixels or
            colour of 16 bits a channel.
    """
    path = Path(path)
    try:
        # not its name: what Pillow maps into memory by name, it shears where a TIFF is to be turned by 90 degrees
        with path.open("rb") as file, Image.open(file) as image:
            return _decoded(image, path)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(
            f"is too large to be opened safely ({error})", path=path, remedy="Cut it into parts"
        ) from error
    except BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise read_failure(path, error) from error
        remedy = "Export it again as PNG, or a volume as NIfTI"
        raise InputError(f"is not a readable picture ({error})", path=path, remedy=remedy) from error


def _decoded(image: Image.Image, path: Path) -> Picture:
    if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
        pages = getattr(image, "n_frames", 1)
        raise InputError(f"holds {pages} pages", path=path, remedy="Save each page as a file of its own")
    _refuse_deep_colour(image, path)  # before the pixels are decoded: then their form in the file is forgotten
    image.load()  # a PNG may state its orientation behind the pixels; a TIFF becomes upright and loses the tag
    orientation = image.getexif().get(ORIENTATION, 1)
    grey = image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")
    values, bits = _values(image, path)
    pixels = _upright(_over_white(torch.from_numpy(values)), orientation)
    return Picture(pixels.contiguous(), bits, grey, _profile(image, grey), _descriptive(image.getexif()))


def _refuse_deep_colour(image: Image.Image, path: Path) -> None:
    """Raise for colour of 16 bits a channel, of which Pillow would keep 8 without a word."""
    if image.mode.startswith(("I", "F")):
        return
    for tile in getattr(image, "tile", None) or ():
        if _is_deep(tile):
            what = "holds colour of 16 bits a channel, which is not supported"
            raise InputError(what, path=path, remedy="Save it with 8 bits a channel, or in grey")


def _is_deep(tile: Any) -> bool:
    codec, _, _, arguments = tile
    raw_mode, *further = arguments if isinstance(arguments, tuple) else (arguments,)
    if codec in ("ppm", "ppm_plain"):  # behind the mode stands the brightest level
        return bool(further) and further[0] > 255
    return re.search(r";16[BLN]", str(raw_mode)) is not None  # BGR;16 of a BMP has 16 bits a pixel


def _values(image: Image.Image, path: Path) -> tuple[NDArray[np.float32], int]:
    """(C, H, W) in [0, 1], grey, RGB or either with alpha, and the bits per channel."""
    if image.mode == "F":
        what = "holds floating-point pixels, whose range is not known"
        raise InputError(what, path=path, remedy="Save it with 8 or 16 bits a channel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        array = np.asarray(image).astype(np.int64)
        if array.min() < 0 or array.max() > 65535:
            raise InputError("holds values outside 0 … 65535", path=path, remedy="Save it with 8 or 16 bits a channel")
        return array[None].astype(np.float32) / np.float32(65535), 16
    transparent = image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info
    rgb = image.convert("RGBA" if transparent else "RGB")
    return np.moveaxis(np.asarray(rgb), -1, 0).astype(np.float32) / np.float32(255), 8


def _over_white(values: Tensor) -> Tensor:
    """(1 to 4, H, W) in [0, 1] to RGB in [-1, 1]; an even number of channels ends in alpha."""
    if len(values) % 2 == 0:
        colour, alpha = values[:-1], values[-1:]
        values = colour * alpha + 1 - alpha
    return (2 * values - 1).clamp(-1, 1).expand(3, -1, -1)


def _upright(pixels: Tensor, orientation: int) -> Tensor:
    transposed, flips = ORIENTATIONS.get(orientation, (False, ()))
    return (pixels.transpose(1, 2) if transposed else pixels).flip(flips)


def _profile(image: Image.Image, grey: bool) -> bytes | None:
    """The colour profile, unless it is one of a colour space that was left on the way to RGB."""
    profile = image.info.get("icc_profile")
    return _fitting(profile if isinstance(profile, bytes) else None, grey)


def _fitting(profile: bytes | None, grey: bool) -> bytes | None:
    """The profile if it is one of grey, or of RGB; None otherwise."""
    return profile if profile is not None and profile[16:20] == (b"GRAY" if grey else b"RGB ") else None


def _descriptive(exif: Image.Exif) -> Image.Exif:
    kept = Image.Exif()
    for tag in DESCRIPTIVE_TAGS:
        if tag in exif and _can_be_written({tag: exif[tag]}):
            kept[tag] = exif[tag]
    for ifd in (EXIF_IFD, GPS_IFD):
        if entries := {t: value for t, value in exif.get_ifd(ifd).items() if _can_be_written({t: value}, ifd)}:
            kept.get_ifd(ifd).update(entries)
            kept[ifd] = kept.get_ifd(ifd)
    return kept


def _can_be_written(entry: Mapping[int, Any], ifd: int | None = None) -> bool:
    """Whether Pillow can store a tag that it has read: some cameras and programs store tags in types of their own."""
    alone = Image.Exif()
    if ifd is None:
        alone.update(entry)
    else:
        alone.get_ifd(ifd).update(entry)
        alone[ifd] = alone.get_ifd(ifd)
    try:
        alone.tobytes()
    except (struct.error, AttributeError, TypeError, ValueError, ArithmeticError):
        return False
    return True


# --- writing ----------------------------------------------------------------------------------------------------------


def write_picture(pixels: Tensor, path: PathLike, like: Picture | None = None, bits: int | None = None) -> Path:
    """Write a picture, whole or not at all, in the format of the name's suffix.

    Args:
        pixels: (3, H, W) or (1, H, W), in [-1, 1]; values outside are clipped, others rounded to the nearest level.
        like: the picture it was made from: depth, grey, colour profile and EXIF data are kept (of grey pictures the
            channels are averaged). JPEG has 8 bits and quality 95, without colour subsampling.
        bits: 8, or 16 for grey, instead of the depth of ``like``.

    Raises:
        InputError: for a suffix of another format, 16 bits asked of one that has 8 or of colour, or a place that cannot
            be written.
    """
    path = Path(path)
    grey = len(pixels) == 1 or (like is not None and like.grey)
    bits = _depth(path, grey, like, bits)
    array = _levels(pixels.mean(dim=0, keepdim=True) if grey else pixels, bits)
    options: dict[str, Any] = {}
    if like is not None:
        options = {"icc_profile": _fitting(like.icc, grey), "exif": _resized_exif(like.exif, array.shape)}
    with atomic_write(path) as file:
        _save(Image.fromarray(array), file, path.suffix.lower(), options)
    return path


def _depth(path: Path, grey: bool, like: Picture | None, bits: int | None) -> int:
    """Bits per channel of the file to be written."""
    suffix = path.suffix.lower()
    if suffix not in (*JPEG_SUFFIXES, *DEEP_SUFFIXES):
        what = f"pictures are not written as {suffix or 'files without a suffix'}"
        raise InputError(what, path=path, remedy="Use .png")
    if bits is None:
        bits = like.bits if like is not None and suffix in DEEP_SUFFIXES else 8
    if bits not in (8, 16) or (bits == 16 and suffix not in DEEP_SUFFIXES):
        raise InputError(f"{suffix} has no {bits} bits a channel", path=path, remedy="Use .png or .tif for 16 bits")
    if bits == 16 and not grey:
        what = "colour of 16 bits a channel is not supported"
        raise InputError(what, path=path, remedy="Write it with 8 bits a channel, or in grey")
    return bits


def _levels(channels: Tensor, bits: int) -> NDArray[np.unsignedinteger[Any]]:
    """(3, H, W) in [-1, 1] to (H, W, 3) levels of the file, (1, H, W) to (H, W)."""
    # float64: float32 cannot tell all 16-bit levels apart after the scaling
    levels = ((channels.detach().cpu().double().clamp(-1, 1) + 1) / 2 * (2**bits - 1)).round().numpy()
    array = np.ascontiguousarray(np.moveaxis(levels.astype(np.uint8 if bits == 8 else np.uint16), 0, -1))
    return array[..., 0] if array.shape[-1] == 1 else array


def _resized_exif(exif: Image.Exif, shape: tuple[int, ...]) -> Image.Exif:
    copy = Image.Exif()
    copy.load(exif.tobytes())
    if WIDTH_IN_EXIF in copy.get_ifd(EXIF_IFD):
        copy.get_ifd(EXIF_IFD).update({WIDTH_IN_EXIF: shape[1], HEIGHT_IN_EXIF: shape[0]})
    return copy


def _save(image: Image.Image, file: Any, suffix: str, options: dict[str, Any]) -> None:
    options = {name: value for name, value in options.items() if value}  # an empty block of EXIF data is none
    if suffix in JPEG_SUFFIXES:
        image.save(file, "JPEG", quality=95, subsampling=0, **options)
    else:
        image.save(file, "PNG" if suffix == ".png" else "TIFF", **options)
