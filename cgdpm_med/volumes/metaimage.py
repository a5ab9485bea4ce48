"""MetaImage files (.mha, .mhd with its voxels apart), as ITK's MetaIO writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cgdpm_med.files import InputError
from cgdpm_med.volumes.raster import (
    AGAIN,
    LPS_TO_RAS,
    Geometry,
    Piece,
    Raster,
    data_files,
    header_line,
    numbers,
    open_regular,
    reading,
    require_files,
    time_axis,
)

_TYPES = {
    "MET_CHAR": "int8",
    "MET_UCHAR": "uint8",
    "MET_SHORT": "int16",
    "MET_USHORT": "uint16",
    "MET_INT": "int32",
    "MET_UINT": "uint32",
    "MET_LONG_LONG": "int64",
    "MET_ULONG_LONG": "uint64",
    "MET_FLOAT": "float32",
    "MET_DOUBLE": "float64",
}
_MATRIX = ("TransformMatrix", "Rotation", "Orientation")  # synonyms, as are the next
_OFFSET = ("Offset", "Position", "Origin")
_BIG = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
_IN_MM = {"": 1.0, "mm": 1.0, "cm": 10.0, "um": 0.001}


@dataclass(frozen=True)
class _Header:
    fields: Mapping[str, str]
    names: tuple[str, ...]
    end: int


def metaimage_raster(path: Path) -> Raster:
    """How the voxels of a MetaImage are stored and where they lie; a fourth axis is time.

    The spacing is ElementSpacing: ElementSize, which may stand beside it, is the thickness of a slice and not the
    distance to the next.

    Raises:
        InputError: the header cannot be used, its voxels have several channels, or are not there.
    """
    with reading(path):
        return _raster(_read_header(path), path)


def metaimage_files(path: Path) -> list[Path]:
    """The files besides the header that hold the voxels.

    Raises:
        InputError: the header cannot be used.
    """
    with reading(path):
        return [piece.path for piece in _pieces(_read_header(path), path) if piece.path != path]


def _raster(header: _Header, path: Path) -> Raster:
    fields = header.fields
    sizes = tuple(numbers(fields.get("DimSize", ""), "DimSize", path, int))
    if not sizes or [len(sizes)] != numbers(fields.get("NDims", ""), "NDims", path, int):
        raise InputError("has a header that contradicts itself (DimSize and NDims)", path=path, remedy=AGAIN)
    if len(sizes) < 3 or (len(sizes) == 3 and _in_time(fields)):
        remedy = "Give a volume (x, y, z) or a series of volumes (x, y, z, t)"
        raise InputError("has 2 dimensions in space", path=path, remedy=remedy)
    if fields.get("ElementNumberOfChannels", "1") != "1":
        what = f"holds voxels of {fields['ElementNumberOfChannels']} values"
        raise InputError(what, path=path, remedy="Convert it to a single grey-scale channel")
    if fields.get("ElementType") not in _TYPES:
        what = f"holds voxels of a type unknown here ({fields.get('ElementType')})"
        raise InputError(what, path=path, remedy="Convert it to a single grey-scale channel")
    big = any(_true(fields.get(name)) for name in _BIG)
    dtype = np.dtype(_TYPES[fields["ElementType"]]).newbyteorder(">" if big else "<")
    encoding = "zlib" if _true(fields.get("CompressedData")) else "raw"
    encoding = "text" if fields.get("BinaryData", "True").lower() in ("false", "0") else encoding
    pieces = tuple(_pieces(header, path))
    require_files(pieces, path)
    axes = (0, 1, 2, *time_axis(sizes, range(3, len(sizes)), path))
    return Raster(sizes, axes, dtype, encoding, pieces, _geometry(fields, len(sizes), path))


def _in_time(fields: Mapping[str, str]) -> bool:
    """Whether the last axis is that of a sequence of pictures, as PLUS and 3D Slicer record ultrasound."""
    kinds = fields.get("Kinds", "").lower().split()
    return kinds[-1:] in (["list"], ["time"]) or any(name.startswith("Seq_Frame") for name in fields)


def _true(value: str | None) -> bool:
    return (value or "").lower() in ("true", "1")


def _read_header(path: Path) -> _Header:
    with open_regular(path) as file:
        fields: dict[str, str] = {}
        while "ElementDataFile" not in fields:
            line = header_line(file, path)
            name, equals, value = (line or "").partition("=")
            if line is None or not (equals or not line.strip()):
                raise InputError("is not a MetaImage file", path=path, remedy=AGAIN)
            fields[name.strip()] = value.strip()
        if fields.get("ObjectType", "Image") != "Image":
            raise InputError(f"holds a {fields['ObjectType']}, no image", path=path, remedy="Give an image")
        end = file.tell()
        listed = fields["ElementDataFile"].split()[:1] == ["LIST"]
        names = tuple(iter(lambda: header_line(file, path), None)) if listed else ()
        return _Header(fields, tuple(name for name in names if name is not None), end)


def _pieces(header: _Header, path: Path) -> list[Piece]:
    (skip,) = numbers(header.fields.get("HeaderSize", "0"), "HeaderSize", path, int)[:1] or [0]
    if header.fields["ElementDataFile"].upper() == "LOCAL":
        return [Piece(path, header.end)]
    return [Piece(name, skip) for name in data_files(header.fields["ElementDataFile"], header.names, path)]


def _geometry(fields: Mapping[str, str], ndim: int, path: Path) -> Geometry:
    unit = _IN_MM.get(fields.get("DistanceUnits", "").lower().replace("?", ""))
    if unit is None:
        what = f"states lengths in a unit unknown here ({fields['DistanceUnits']})"
        raise InputError(what, path=path, remedy="Save it again in mm")
    stated = numbers(fields.get("ElementSpacing", ""), "ElementSpacing", path)
    spacing = np.abs(stated[:3]) * unit if len(stated) == ndim else None
    matrix = next((fields[name] for name in _MATRIX if name in fields), None)
    if matrix is None or spacing is None:
        return Geometry(spacing, None)
    values = np.array(numbers(matrix, "TransformMatrix", path))
    if values.size != ndim**2:
        raise InputError("has a header that contradicts itself (TransformMatrix and NDims)", path=path, remedy=AGAIN)
    directions = values.reshape(ndim, ndim)  # a row for each axis of the array
    if directions[:3, 3:].any():
        raise InputError("has directions in which space and time are mixed", path=path, remedy=AGAIN)
    affine = np.eye(4)
    affine[:3, :3] = directions[:3, :3].T * np.array(stated[:3]) * unit
    offset = next((numbers(fields[name], name, path) for name in _OFFSET if name in fields), [])
    affine[:3, 3] = np.array(offset[:3]) * unit if len(offset) >= 3 else 0
    return Geometry(spacing, LPS_TO_RAS @ affine)
