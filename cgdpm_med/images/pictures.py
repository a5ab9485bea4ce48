"""Picture files to RGB tensors and back, with the depth, colour profile and EXIF data they came with.

Pillow decodes and encodes, except colour of 16 bits a channel, which its pixels cannot hold: that is put together from
two readings, and written here, as PNG or TIFF.
"""

from __future__ import annotations

import io
import struct
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin
from torch import Tensor

from cgdpm_med.volumes import InputError, atomic_write
from cgdpm_med.volumes.files import PathLike, read_failure

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
    """Read a picture: 1, 8 or 16 bits, grey, palette, RGB, CMYK, with or without alpha, in any EXIF orientation.

    8 bits map to [-1, 1] by v / 127.5 - 1, 16 bits by v / 32767.5 - 1. CMYK and other colour spaces are converted to
    RGB without their profile. Of an animation the first frame is read.

    Raises:
        InputError: for a file that is missing, damaged, no picture, or has several pages or floating-point pixels.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
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
        remedy = "Copy or export the file again"
        raise InputError(f"is not a readable picture ({error})", path=path, remedy=remedy) from error


def _decoded(image: Image.Image, path: Path) -> Picture:
    if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
        pages = getattr(image, "n_frames", 1)
        raise InputError(f"holds {pages} pages", path=path, remedy="Save each page as a file of its own")
    deep = _deep_colour(image)  # before anything that decodes the pixels
    image.load()  # a PNG may state its orientation behind the pixels; a TIFF becomes upright and loses the tag
    orientation = image.getexif().get(ORIENTATION, 1)
    grey = image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")
    values, bits = _read_deep(path, deep) if deep else _values(image, path)
    pixels = _upright(_over_white(torch.from_numpy(values), premultiplied=deep.startswith("RGBa")), orientation)
    return Picture(pixels.contiguous(), bits, grey, _profile(image, grey), _descriptive(image.getexif()))


def _deep_colour(image: Image.Image) -> str:
    """Pillow's name of 16-bit colour as it lies in the file, such as "RGBA;16B"; empty for anything else."""
    tiles: Any = getattr(image, "tile", None)
    name = str(_raw_mode(tiles[0])) if tiles else ""
    return name if ";16" in name and image.mode in ("RGB", "RGBA") else ""


def _raw_mode(tile: Any) -> Any:
    return tile[3][0] if isinstance(tile[3], tuple) else tile[3]


def _read_deep(path: Path, raw: str) -> tuple[NDArray[np.float32], int]:
    """Decode 16-bit colour twice, for the two bytes of each number.

    Pillow's pixels have 8 bits: its unpacker of big-endian numbers keeps the first byte, that of little-endian ones the
    second, whatever the order in the file is.
    """
    name, _, depth = raw.partition(";")
    if name not in ("RGB", "RGBA", "RGBa") or depth not in ("16B", "16L", "16N"):
        what = f"holds 16-bit colour in a form that is not supported ({raw})"
        raise InputError(what, path=path, remedy="Save it as 16-bit RGB without transparency")
    stored = name.replace("RGBa", "RGBA")  # as it lies there: the conversion would act on single bytes
    first, second = (_decoded_as(path, f"{stored};16{order}") for order in "BL")
    big = depth == "16B" or (depth == "16N" and sys.byteorder == "big")
    high, low = (first, second) if big else (second, first)
    array = 256 * high.astype(np.float32) + low
    return np.moveaxis(array, -1, 0) / np.float32(65535), 16


def _decoded_as(path: Path, raw: str) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        tiles: Any = image.tile  # type: ignore[attr-defined]
        image.tile = [_with_raw_mode(tile, raw) for tile in tiles]  # type: ignore[attr-defined]
        return np.asarray(image)


def _with_raw_mode(tile: Any, raw: str) -> Any:
    arguments = (raw, *tile[3][1:]) if isinstance(tile[3], tuple) else raw
    # a plain tuple before Pillow 11.1
    return tile._replace(args=arguments) if hasattr(tile, "_replace") else (*tile[:3], arguments)


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


def _over_white(values: Tensor, premultiplied: bool) -> Tensor:
    """(1 to 4, H, W) in [0, 1] to RGB in [-1, 1]; an even number of channels ends in alpha."""
    if len(values) % 2 == 0:
        colour, alpha = values[:-1], values[-1:]
        values = (colour if premultiplied else colour * alpha) + 1 - alpha
    return (2 * values - 1).clamp(-1, 1).expand(3, -1, -1)


def _upright(pixels: Tensor, orientation: int) -> Tensor:
    transposed, flips = ORIENTATIONS.get(orientation, (False, ()))
    return (pixels.transpose(1, 2) if transposed else pixels).flip(flips)


def _profile(image: Image.Image, grey: bool) -> bytes | None:
    """The colour profile, unless it is one of a colour space that was left on the way to RGB."""
    profile = image.info.get("icc_profile")
    space = b"GRAY" if grey else b"RGB "
    return profile if isinstance(profile, bytes) and profile[16:20] == space else None


def _descriptive(exif: Image.Exif) -> Image.Exif:
    kept = Image.Exif()
    for tag in DESCRIPTIVE_TAGS:
        if tag in exif:
            kept[tag] = exif[tag]
    for ifd in (EXIF_IFD, GPS_IFD):
        if entries := exif.get_ifd(ifd):
            kept.get_ifd(ifd).update(entries)
            kept[ifd] = kept.get_ifd(ifd)
    return kept


# --- writing ----------------------------------------------------------------------------------------------------------


def write_picture(pixels: Tensor, path: PathLike, like: Picture | None = None, bits: int | None = None) -> Path:
    """Write a picture, whole or not at all, in the format of the name's suffix.

    Args:
        pixels: (3, H, W) or (1, H, W), in [-1, 1]; values outside are clipped, others rounded to the nearest level.
        like: the picture it was made from: depth, grey, colour profile and EXIF data are kept (of grey pictures the
            channels are averaged). JPEG has 8 bits and quality 95, without colour subsampling.
        bits: 8 or 16, instead of the depth of ``like``.

    Raises:
        InputError: for a suffix of another format, 16 bits asked of one that has 8, or a place that cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (*JPEG_SUFFIXES, *DEEP_SUFFIXES):
        raise InputError(
            f"pictures are not written as {suffix or 'files without a suffix'}", path=path, remedy="Use .png"
        )
    if bits is None:
        bits = like.bits if like is not None and suffix in DEEP_SUFFIXES else 8
    if bits not in (8, 16) or (bits == 16 and suffix not in DEEP_SUFFIXES):
        raise InputError(f"{suffix} has no {bits} bits a channel", path=path, remedy="Use .png or .tif for 16 bits")
    grey = len(pixels) == 1 or (like is not None and like.grey)
    channels = pixels.mean(dim=0, keepdim=True) if grey else pixels
    top = 2**bits - 1
    # float64: float32 cannot tell all 16-bit levels apart after the scaling
    levels = ((channels.detach().cpu().double().clamp(-1, 1) + 1) / 2 * top).round().numpy()
    array = np.ascontiguousarray(np.moveaxis(levels.astype(np.uint8 if bits == 8 else np.uint16), 0, -1))
    exif = _resized_exif(like.exif if like is not None else Image.Exif(), array.shape)
    icc = like.icc if like is not None else None
    with atomic_write(path) as file:
        if bits == 8:
            _write_shallow(array, file, suffix, icc, exif)
        else:
            file.write((_png16 if suffix == ".png" else _tiff16)(array, icc, exif))
    return path


def _resized_exif(exif: Image.Exif, shape: tuple[int, ...]) -> Image.Exif:
    copy = Image.Exif()
    copy.load(exif.tobytes())
    if WIDTH_IN_EXIF in copy.get_ifd(EXIF_IFD):
        copy.get_ifd(EXIF_IFD).update({WIDTH_IN_EXIF: shape[1], HEIGHT_IN_EXIF: shape[0]})
    return copy


def _write_shallow(array: NDArray[np.uint8], file: Any, suffix: str, icc: bytes | None, exif: Image.Exif) -> None:
    image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    options: dict[str, Any] = {"icc_profile": icc}
    if len(exif):
        options["exif"] = exif
    if suffix in JPEG_SUFFIXES:
        image.save(file, "JPEG", quality=95, subsampling=0, **options)
    elif suffix == ".png":
        image.save(file, "PNG", **options)
    else:
        image.save(file, "TIFF", **options)


def _png16(array: NDArray[np.uint16], icc: bytes | None, exif: Image.Exif) -> bytes:
    """PNG of 16 bits a channel (ISO/IEC 15948): every row filtered by its left neighbour."""
    height, width, channels = array.shape
    rows = array.astype(">u2").view(np.uint8).reshape(height, -1)
    filtered = np.ones((height, rows.shape[1] + 1), np.uint8)  # filter type 1 in front of each row
    filtered[:, 1:] = rows
    filtered[:, 1 + 2 * channels :] -= rows[:, : -2 * channels]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0 if channels == 1 else 2, 0, 0, 0))]
    if icc:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)))
    if len(exif):
        chunks.append((b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    chunks += [(b"IDAT", zlib.compress(filtered.tobytes())), (b"IEND", b"")]
    body = (struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def _tiff16(array: NDArray[np.uint16], icc: bytes | None, exif: Image.Exif) -> bytes:
    """Baseline TIFF 6.0 of 16 bits a channel, one strip, not compressed."""
    height, width, channels = array.shape
    data = array.astype("<u2").tobytes()
    directory = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
    for tag, value in exif.items():
        directory[tag] = exif.get_ifd(tag) if tag in (EXIF_IFD, GPS_IFD) else value
    strip = {273: 0, 277: channels, 278: height, 279: len(data)}  # Pillow moves the offset behind the directory
    directory_entries = {
        256: width,
        257: height,
        258: (16,) * channels,
        259: 1,
        262: 1 if channels == 1 else 2,
        **strip,
    }
    for tag, value in directory_entries.items():
        directory[tag] = value
    if icc:
        directory.tagtype[34675] = 7
        directory[34675] = icc
    file = io.BytesIO()
    file.write(b"II*\0" + struct.pack("<I", 8) + directory.tobytes(8) + data)
    return file.getvalue()
