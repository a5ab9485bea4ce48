"""Voxels behind a header in text: how they are stored, and reading them whole or with one error.

NRRD and MetaImage differ in their headers only. Their voxels are decoded here, by numpy, gzip, bz2 and zlib. ITK's own
readers (tried with SimpleITK 2.5) give where that matters a wrong number instead of an error:

- a compressed MetaImage with a changed byte, or another checksum, is read as voxels;
- 1 mm stands in for a spacing that an NRRD or MetaImage lacks, or has as NaN; ElementSize, the thickness of a slice,
  stands in for ElementSpacing;
- ``space units`` of an NRRD are ignored, so centimetres are taken as millimetres;
- frames of an NRRD become components of a voxel, wherever their axis is, as colours do;
- NRRD of bzip2 is not decoded, and what is wrong is printed to standard error by the C library underneath.

To notice all this the header must be parsed here anyway; what ITK could take over is a call of numpy for each encoding.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import os
import re
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from cgdpm_med.files import InputError, read_failure
from cgdpm_med.volumes.grid import Grid, check_size, grid_from_header, mark_millimetres
from cgdpm_med.volumes.spacing import GIVE_SPACING, Spacing

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""World coordinates of ITK, DICOM and MetaImage to those of NIfTI."""

AGAIN = "Copy or export the file again"
_MOST_DEFLATED = 1032  # bytes that one byte of deflate can stand for (zlib's documentation)
_MOST_BZIPPED = 50_000  # of bzip2, about: 900 kB of zeros take 45 bytes
_HEADER_LIMIT = 2**20


@dataclass(frozen=True)
class Piece:
    """A file with voxels, and how many bytes lie before them; -1 where they are the last bytes of the file."""

    path: Path
    skip: int = 0
    lines: int = 0


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where the voxels of a file lie, as far as it says so.

    Attributes:
        spacing: mm along x, y, z; None where the file is silent.
        affine: (4, 4) voxel indices to RAS+ world mm; None where the file states no directions.
        note: what was assumed.
    """

    spacing: NDArray[np.float64] | None
    affine: NDArray[np.float64] | None
    note: str | None = None


@dataclass(frozen=True, eq=False)
class Raster:
    """How voxels are stored.

    Attributes:
        sizes: of all axes, the fastest first.
        axes: the three axes of space, and after them that of time where there is one.
        dtype: with its byte order.
        encoding: raw, gzip, bzip2, zlib, text or hex.
        pieces: files of equal shares, in order.
        geometry: of the axes of space.
    """

    sizes: tuple[int, ...]
    axes: tuple[int, ...]
    dtype: np.dtype[Any]
    encoding: str
    pieces: tuple[Piece, ...]
    geometry: Geometry


def read_raster(raster: Raster, path: Path, spacing: Spacing) -> tuple[NDArray[Any], Grid]:
    """The voxels as (X, Y, Z) or (X, Y, Z, T) in their stored type, and their grid.

    Raises:
        InputError: voxels that are missing, damaged or too many, and geometry that cannot be used.
    """
    check_size(raster.sizes, path=path)
    grid = made_grid([raster.sizes[axis] for axis in raster.axes], raster.geometry, path, spacing)
    share, rest = divmod(prod(raster.sizes), len(raster.pieces))
    if rest:
        what = f"has {prod(raster.sizes):,} voxels in {len(raster.pieces)} files, which cannot be equal shares"
        raise InputError(what, path=path, remedy=AGAIN)
    parts = [_read_piece(piece, raster, share) for piece in raster.pieces]
    whole = (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(raster.sizes, order="F")
    others = [axis for axis in range(whole.ndim) if axis not in raster.axes]  # of length one
    return whole.transpose([*raster.axes, *others]).reshape(grid.shape), grid


def made_grid(shape: Sequence[int], geometry: Geometry, path: Path, spacing: Spacing) -> Grid:
    """A grid under a NIfTI header that states this geometry in sform and qform; in pixdim alone without directions.

    Raises:
        InputError: as :func:`~cgdpm_med.volumes.grid.grid_from_header`, and where nothing states the spacing.
    """
    stated = geometry.spacing
    if stated is not None and not (np.isfinite(stated).all() and (stated > 0).all()):
        stated = None
    if stated is None and isinstance(spacing, str):
        raise InputError("states no voxel spacing", path=path, remedy=GIVE_SPACING)
    kind = nib.Nifti1Header if max(shape) < 2**15 else nib.Nifti2Header
    header = kind()
    header.set_data_shape(tuple(shape))
    mark_millimetres(header)
    affine = geometry.affine
    if affine is not None and stated is not None and np.isfinite(affine).all():
        header.set_sform(affine, 1)
        if _rectangular(affine):  # a quaternion knows no shear
            header.set_qform(affine, 1)
    header["pixdim"][1:4] = 1 if stated is None else stated  # last, since a qform writes lengths of its own there
    grid = grid_from_header(header, spacing, path)
    notes = [note for note in (geometry.note, grid.note) if note]
    return replace(grid, note="; ".join(notes) or None)


def _rectangular(affine: NDArray[np.float64]) -> bool:
    columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.allclose(columns.T @ columns, np.eye(3), rtol=0, atol=1e-4))


# --- voxels -----------------------------------------------------------------------------------------------------------


def _read_piece(piece: Piece, raster: Raster, voxels: int) -> NDArray[Any]:
    """One file's share of the voxels, (voxels,) of the raster's type."""
    size = voxels * raster.dtype.itemsize
    with reading(piece.path), open_regular(piece.path) as file:
        _skip(file, piece, size)
        left = os.fstat(file.fileno()).st_size - file.tell()
        most = {"gzip": _MOST_DEFLATED, "zlib": _MOST_DEFLATED, "bzip2": _MOST_BZIPPED, "text": 8}
        if size > left * most.get(raster.encoding, 1):  # before memory for it is asked for
            raise _truncated(piece.path, size, left)
        content = _DECODERS[raster.encoding](file, size, raster.dtype)
    if len(content) < size:
        raise _truncated(piece.path, size, len(content))
    return np.frombuffer(content, raster.dtype, count=voxels)


def _skip(file: IO[bytes], piece: Piece, size: int) -> None:
    for _ in range(piece.lines):
        file.readline()
    if piece.skip < 0:
        file.seek(max(os.fstat(file.fileno()).st_size - size, file.tell()))
    else:
        file.seek(piece.skip, os.SEEK_CUR)


def _truncated(path: Path, promised: int, there: int) -> InputError:
    what = f"is truncated: the header promises {promised:,} bytes of voxels, there are {there:,}"
    return InputError(what, path=path, remedy=AGAIN)


def _unzipped(stream: Any, size: int) -> bytes:
    content = stream.read(size)
    while stream.read(2**20):  # to the end: only there the checksum is compared
        pass
    return content


def _inflated(file: IO[bytes], size: int, dtype: np.dtype[Any]) -> bytes:
    inflater = zlib.decompressobj(47)  # 32 + 15: zlib or gzip, whichever it is
    content = inflater.decompress(file.read(), size)
    if not inflater.eof:
        inflater.decompress(inflater.unconsumed_tail, 1)  # the checksum, which follows the last byte
    if not inflater.eof and len(content) == size:
        raise zlib.error("more voxels than the header says, or no end")
    return content


def _from_text(file: IO[bytes], size: int, dtype: np.dtype[Any]) -> bytes:
    words = file.read().replace(b",", b" ").split()[: size // dtype.itemsize]
    numbers = np.array(words).astype(np.float64 if dtype.kind == "f" else np.int64)
    return numbers.astype(dtype).tobytes()


_DECODERS: Mapping[str, Any] = {
    "raw": lambda file, size, dtype: file.read(size),
    "gzip": lambda file, size, dtype: _unzipped(gzip.GzipFile(fileobj=file, mode="rb"), size),
    "bzip2": lambda file, size, dtype: _unzipped(bz2.BZ2File(file), size),
    "zlib": _inflated,
    "text": _from_text,
    "hex": lambda file, size, dtype: bytes.fromhex(file.read().decode("ascii"))[:size],
}


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what reading a damaged file raises into an InputError.

    Raises:
        InputError: in place of an OSError, EOFError, zlib.error or ValueError.
    """
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        if error.errno is not None:
            raise read_failure(path, error) from error
        raise InputError(f"is truncated or damaged ({error})", path=path, remedy=AGAIN) from error  # raised by gzip
    except (EOFError, zlib.error, ValueError, OverflowError) as error:
        raise InputError(f"is truncated or damaged ({error})", path=path, remedy=AGAIN) from error


def open_regular(path: Path) -> IO[bytes]:
    """The file, opened.

    Raises:
        OSError: as ``open`` does.
        InputError: a pipe, which would wait for ever, or a device.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise InputError("is not a regular file", path=path, remedy="Give the file itself")
    return open(path, "rb")


# --- headers in text --------------------------------------------------------------------------------------------------


def header_line(file: IO[bytes], path: Path) -> str | None:
    """The next line of a header without its end; None at the end of the file.

    Raises:
        InputError: the header is longer than any header is.
    """
    line = file.readline(_HEADER_LIMIT)
    if len(line) == _HEADER_LIMIT or file.tell() > 16 * _HEADER_LIMIT:
        raise InputError("has no header that ends", path=path, remedy=AGAIN)
    return line.decode("utf-8", "surrogateescape").rstrip("\r\n") if line else None


def data_files(value: str, lines: Sequence[str], path: Path) -> list[Path]:
    """The files that a header names: one name, a pattern with first, last and step, or LIST and a name a line.

    Raises:
        InputError: names outside the header's folder, or none.
    """
    words = value.split()
    if words[:1] == ["LIST"]:
        names = [line.strip() for line in lines if line.strip()]
    elif len(words) > 2 and re.search(r"%\d*d", words[0]) and all(w.lstrip("-").isdigit() for w in words[1:4]):
        first, last, step = (int(word) for word in [*words[1:4], "1"][:3])
        step = step or 1
        names = [words[0] % n for n in range(first, last + (1 if step > 0 else -1), step)][:100_000]
    else:
        names = [value]
    if not names:
        raise InputError("names no file with its voxels", path=path, remedy=AGAIN)
    for name in names:
        inside = Path(name)
        if inside.is_absolute() or ".." in inside.parts or not inside.name:
            what = "says that its voxels are in another folder"
            raise InputError(what, path=path, remedy="Move that file beside the header, and write its bare name there")
    return [path.parent / name for name in names]


def require_files(pieces: Sequence[Piece], path: Path) -> None:
    """Raises InputError where a file with voxels is not there."""
    for piece in pieces:
        if not piece.path.exists():
            what = f"is the header of {piece.path.name}, which is not there"
            raise InputError(what, path=path, remedy="Put that file beside it, under this name")


def time_axis(sizes: Sequence[int], others: Sequence[int], path: Path) -> tuple[int, ...]:
    """The axis of time among those that are not of space: the one that is longer than one, if any.

    Raises:
        InputError: there are several.
    """
    long = [axis for axis in others if sizes[axis] != 1]
    if len(long) > 1:
        remedy = "Give a volume (x, y, z) or a series of volumes (x, y, z, t)"
        raise InputError(f"has {3 + len(long)} dimensions", path=path, remedy=remedy)
    return tuple(long)


def numbers(text: str, field: str, path: Path, kind: type = float) -> list[Any]:
    """The numbers of a header's field.

    Raises:
        InputError: it holds anything else.
    """
    try:
        return [kind(word) for word in text.split()]
    except ValueError as error:
        raise InputError(f"has a header that cannot be used ({field}: {text[:60]})", path=path, remedy=AGAIN) from error
