"""NRRD images (.nrrd, .nhdr with its voxels apart, 3D Slicer's .seq.nrrd), as teem's format.html defines them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cgdpm_med.files import InputError
from cgdpm_med.volumes.raster import (
    AGAIN,
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
    "int8": ("signed char", "int8", "int8_t"),
    "uint8": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "int16": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "uint16": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "int32": ("int", "signed int", "int32", "int32_t"),
    "uint32": ("uint", "unsigned int", "uint32", "uint32_t"),
    "int64": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "uint64": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "float32": ("float",),
    "float64": ("double",),
}
_ENCODINGS = {
    "raw": "raw",
    "gzip": "gzip",
    "gz": "gzip",
    "bzip2": "bzip2",
    "bz2": "bzip2",
    "ascii": "text",
    "text": "text",
    "txt": "text",
    "hex": "hex",
}
_SPACES = {
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
}
_IN_MM = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "µm": 0.001, "μm": 0.001}
_FRAMES = ("time", "list", "none", "???", "", "domain", "space")  # kinds of an axis along which volumes follow
_OF_SPACE = ("domain", "space")


@dataclass(frozen=True)
class _Header:
    """Fields by name (lower case, no spaces), the lines after ``data file: LIST``, and where the header ends."""

    fields: Mapping[str, str]
    names: tuple[str, ...]
    end: int


def nrrd_raster(path: Path) -> Raster:
    """How the voxels of an NRRD file are stored and where they lie.

    Frames may be the first axis (3D Slicer's sequences) or any other whose direction is ``none`` or whose kind is
    ``list`` or ``time``. Lengths are converted to mm by ``space units`` and ``units``.

    Raises:
        InputError: the header cannot be used, its voxels are colour, vectors or complex, or are not there.
    """
    with reading(path):
        return _raster(_read_header(path), path)


def nrrd_files(path: Path) -> list[Path]:
    """The files besides the header that hold the voxels.

    Raises:
        InputError: the header cannot be used.
    """
    with reading(path):
        return [piece.path for piece in _pieces(_read_header(path), path) if piece.path != path]


def _raster(header: _Header, path: Path) -> Raster:
    fields = header.fields
    sizes = tuple(numbers(_field(fields, "sizes", path), "sizes", path, int))
    if not sizes or [len(sizes)] != numbers(_field(fields, "dimension", path), "dimension", path, int):
        raise InputError("has a header that contradicts itself (sizes and dimension)", path=path, remedy=AGAIN)
    kinds = [kind.lower() for kind in fields.get("kinds", "").split()] or [""] * len(sizes)
    vectors = _vectors(fields["spacedirections"], path) if "spacedirections" in fields else None
    for name, values in (("kinds", kinds), ("space directions", vectors)):
        if values is not None and len(values) != len(sizes):
            raise InputError(f"has a header that contradicts itself ({name} and sizes)", path=path, remedy=AGAIN)
    space = _axes_of_space(sizes, kinds, vectors, path)
    others = [axis for axis in range(len(sizes)) if axis not in space]
    for axis in others:
        if kinds[axis] not in _FRAMES and sizes[axis] != 1:
            remedy = "Convert it to a single grey-scale channel"
            raise InputError(f"holds {kinds[axis]} voxels of {sizes[axis]} values", path=path, remedy=remedy)
    geometry = _geometry(fields, space, vectors, path)
    pieces = tuple(_pieces(header, path))
    require_files(pieces, path)
    encoding = _ENCODINGS.get(fields.get("encoding", "").lower())
    if encoding is None:
        what = f"is encoded in a way unknown here ({fields.get('encoding')})"
        raise InputError(what, path=path, remedy="Save it again, raw or gzip")
    dtype = _dtype(fields, encoding, path)
    return Raster(sizes, (*space, *time_axis(sizes, others, path)), dtype, encoding, pieces, geometry)


def _read_header(path: Path) -> _Header:
    with open_regular(path) as file:
        if not (header_line(file, path) or "").startswith("NRRD000"):
            raise InputError("is not an NRRD file", path=path, remedy=AGAIN)
        fields: dict[str, str] = {}
        names: list[str] = []
        listed = False
        while (line := header_line(file, path)) not in (None, ""):
            assert line is not None
            name, colon, value = line.partition(":")
            if listed:
                names.append(line)
            elif colon and not line.startswith("#") and not value.startswith("="):
                name = name.lower().replace(" ", "")
                fields[name] = value.strip()
                listed = name == "datafile" and value.split()[:1] == ["LIST"]
        return _Header(fields, tuple(names), file.tell())


def _field(fields: Mapping[str, str], name: str, path: Path) -> str:
    if name not in fields:
        raise InputError(f"has a header without {name}", path=path, remedy=AGAIN)
    return fields[name]


def _pieces(header: _Header, path: Path) -> list[Piece]:
    fields = header.fields
    (skip,) = numbers(fields.get("byteskip", "0"), "byte skip", path, int)[:1] or [0]
    (lines,) = numbers(fields.get("lineskip", "0"), "line skip", path, int)[:1] or [0]
    if "datafile" not in fields:
        return [Piece(path, header.end + skip if skip >= 0 else -1)]
    return [Piece(name, skip, lines) for name in data_files(fields["datafile"], header.names, path)]


def _dtype(fields: Mapping[str, str], encoding: str, path: Path) -> np.dtype[np.generic]:
    stated = _field(fields, "type", path).lower()
    name = next((name for name, names in _TYPES.items() if stated in names), None)
    if name is None:
        remedy = "Convert it to a single grey-scale channel"
        raise InputError(f"holds voxels of a type unknown here ({stated})", path=path, remedy=remedy)
    dtype = np.dtype(name)
    order = fields.get("endian", "").lower()
    if order not in ("little", "big") and dtype.itemsize > 1 and encoding != "text":
        raise InputError("does not say the order of its bytes (endian)", path=path, remedy="Save it again, with endian")
    return dtype.newbyteorder(">" if order == "big" else "<")


# --- geometry ---------------------------------------------------------------------------------------------------------


def _vectors(text: str, path: Path) -> list[NDArray[np.float64] | None]:
    """A direction for each axis, or None where it has none."""
    return [_vector(word, path) for word in re.findall(r"none|\([^)]*\)", text)]


def _vector(word: str, path: Path) -> NDArray[np.float64] | None:
    if word == "none":
        return None
    vector = np.array(numbers(word.strip("()").replace(",", " "), "space directions", path))
    return None if np.isnan(vector).all() else vector


def _axes_of_space(
    sizes: Sequence[int], kinds: Sequence[str], vectors: Sequence[NDArray[np.float64] | None] | None, path: Path
) -> tuple[int, int, int]:
    if vectors is not None:
        axes = [axis for axis, vector in enumerate(vectors) if vector is not None]
    else:
        axes = [axis for axis, kind in enumerate(kinds) if kind in _OF_SPACE] or list(range(len(sizes)))
    axes = [axis for axis in axes if kinds[axis] != "time"] if len(axes) > 3 else axes
    if len(axes) < 3 or (vectors is None and kinds[axes[2]] == "time"):
        remedy = "Give a volume (x, y, z) or a series of volumes (x, y, z, t)"
        raise InputError(f"has {min(len(axes), 2)} dimensions in space", path=path, remedy=remedy)
    return axes[0], axes[1], axes[2]


def _geometry(
    fields: Mapping[str, str],
    space: tuple[int, int, int],
    vectors: Sequence[NDArray[np.float64] | None] | None,
    path: Path,
) -> Geometry:
    if vectors is None:
        return Geometry(_stated_spacing(fields, space, path), None)
    columns = np.array([vectors[axis] for axis in space])
    if columns.ndim != 2 or columns.shape[1] not in (3, 4) or columns[:, 3:].any():
        raise InputError("has space directions that are not three of space", path=path, remedy=AGAIN)
    signs, note = _signs(fields.get("space", ""))
    affine = np.eye(4)
    affine[:3, :3] = columns[:, :3].T
    origin = _vectors(fields.get("spaceorigin", ""), path)
    if origin and origin[0] is not None and len(origin[0]) >= 3:
        affine[:3, 3] = origin[0][:3]
    affine[:3] *= _unit(fields.get("spaceunits", ""), range(3), path)[:, np.newaxis]
    affine[:3] *= np.array(signs)[:, np.newaxis]
    return Geometry(np.linalg.norm(affine[:3, :3], axis=0), affine, note)


def _signs(space: str) -> tuple[tuple[int, int, int], str | None]:
    """Of the world axes, to make RAS+ of them; a space that says nothing of the patient is taken as ITK takes it."""
    name = space.lower().removesuffix("-time").strip()
    name = name[:-1] if len(name) == 4 and name.endswith("t") else name
    if name in _SPACES:
        return _SPACES[name], None
    stated = f"the space is {space}" if space else "no space is named"
    return _SPACES["lps"], f"{stated}: taken as left-posterior-superior"


def _stated_spacing(fields: Mapping[str, str], space: tuple[int, int, int], path: Path) -> NDArray[np.float64] | None:
    spacings = numbers(fields.get("spacings", "").lower(), "spacings", path)
    if len(spacings) <= max(space):
        return None
    return np.abs([spacings[axis] for axis in space]) * _unit(fields.get("units", ""), space, path)


def _unit(text: str, axes: Sequence[int], path: Path) -> NDArray[np.float64]:
    """Millimetres in the unit of each axis; a unit that is not stated is the millimetre."""
    units = re.findall(r'"([^"]*)"', text)
    chosen = [units[axis].strip() if axis < len(units) else "" for axis in axes]
    names = {
        "": "mm",
        "millimeter": "mm",
        "millimetre": "mm",
        "centimeter": "cm",
        "micrometer": "um",
        "micron": "um",
        "meter": "m",
    }
    factors = [_IN_MM.get(names.get(unit.lower().removesuffix("s"), unit)) for unit in chosen]
    unknown = [unit for unit, factor in zip(chosen, factors, strict=True) if factor is None]
    if unknown:
        what = f"states lengths in a unit unknown here ({unknown[0]})"
        raise InputError(what, path=path, remedy="Save it again in mm")
    return np.array(factors, dtype=np.float64)
