"""NIfTI images: every readable file gives the right voxels and grid, every other one a single InputError.

Other formats go through :mod:`cgdpm_med.volumes.formats`.

Headers are parsed without nibabel's repairs (it replaces a zero ``pixdim`` by 1 and strips signs), so that what is
written equals what was read. The fields meant here are defined in the format's own header file, nifti1.h.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import stat
import struct
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import array_from_file
from numpy.typing import DTypeLike, NDArray

from cgdpm_med.files import InputError, PathLike, atomic_write, listed, read_failure
from cgdpm_med.volumes.formats import PAIR_HEADERS, PAIR_VOXELS, READABLE, is_named, is_other_format, read_other
from cgdpm_med.volumes.grid import (
    Grid,
    check_size,
    grid_from_header,
    stored_shape,
    with_shape,
    without_trailing_ones,
)
from cgdpm_med.volumes.pairs import single_file
from cgdpm_med.volumes.spacing import Spacing


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels and the grid they lie on.

    Attributes:
        data: (X, Y, Z) or (X, Y, Z, T); float32 intensities from :func:`read_volume`, uint8 labels from
            :func:`read_labels`. Trailing axes of length 1 are removed here and kept in ``grid.shape``.
        grid: the file's grid.
        path: the file.
    """

    data: NDArray[Any]
    grid: Grid
    path: Path


def read_volume(path: PathLike, *, spacing: Spacing = "auto") -> Volume:
    """Read an image of three or four dimensions, intensities scaled by scl_slope and scl_inter.

    Formats are NIfTI (.nii, .nii.gz, or a pair .hdr and .img), NRRD (.nrrd, .nhdr, .seq.nrrd), MetaImage (.mha, .mhd)
    and MGH (.mgh, .mgz); the grid of a file that is not NIfTI has a header of NIfTI that states the same place.

    Trailing axes of length 1 do not count as dimensions.

    The rule for ``spacing="auto"``. The affine is the sform, else the qform. Where the column lengths of an sform
    differ from pixdim by more than 1 % along any axis:

    - A full sform is believed: pixdim may hold the thickness of slices that lie further apart, or 1, 0 or NaN.
    - A unit sform (all three columns of length 1) was written by a converter without orientation: pixdim is believed,
      for the lengths alone. So are all files of ACDC. A zero or NaN in pixdim is then an error: nothing says the size.
    - What might be either is an error: an sform with a column of length 1 where pixdim says another length; an sform
      and pixdim in different units (a thousand times); an sform into a template's space (codes 3 to 5), which may
      contain scale, beside another pixdim and no qform.

    Without an sform there is no second opinion: pixdim is the only source, and its sign is ignored. Directions are
    those of the affine, whatever lengths are taken; they are unknown without sform and qform, and for a unit sform
    along the axes beside another voxel size. The qform is taken in place of an sform that cannot be used (singular, not
    finite), that leads into a template's space, or that is unit along the axes where the qform is oblique; otherwise
    the sform is, also where the two point elsewhere.

    A conflict is reported by :class:`HeaderWarning` once per process and kind, and for every file in ``grid.note``.
    Units of metres and micrometres are converted. A sheared affine is accepted with a note: the columns' lengths are
    the spacing, and ``grid.voxel_volume`` allows for the angle between them.

    Args:
        path: the file.
        spacing: "auto"; "pixdim" or "affine" to settle a conflict by hand; or three numbers in mm. All are of lengths
            alone. With "pixdim" or numbers, a file whose affine cannot be used is read without directions.

    Returns:
        float32 data of shape (X, Y, Z) or (X, Y, Z, T), finite and not constant.

    Raises:
        InputError: the file is missing, damaged, not NIfTI, of another dimension (2D, 5D), colour or complex, empty
            or beyond :data:`VOXEL_LIMIT` (both before any voxel is read), constant, not finite, or without geometry.
    """
    path = Path(path)
    array, grid = _read(path, spacing)
    _require_finite(array, path)
    with np.errstate(over="ignore"):
        data = array.astype(np.float32, copy=False)
    if array.dtype.itemsize > 4 and not np.isfinite(data).all():
        raise InputError("holds values beyond the range of float32", path=path, remedy="Scale the voxels down")
    if data.min() == data.max():
        raise InputError(
            f"is constant: every voxel is {float(data.flat[0]):g}",
            path=path,
            remedy="Export the image again, or leave it out",
        )
    return Volume(data, grid, path)


def read_labels(
    path: PathLike,
    *,
    allowed: Collection[int] = frozenset({0, 1, 2, 3}),
    like: Grid | None = None,
    spacing: Spacing = "auto",
) -> Volume:
    """Read a label map as uint8, or uint16 where ``allowed`` goes beyond 255.

    Args:
        path: a file as of :func:`read_volume`.
        allowed: the labels that may occur, each within 0 … 65535; an empty (all-background) map is accepted.
        like: the grid the labels must lie on, normally their image's; see :meth:`Grid.difference`.
        spacing: as in :func:`read_volume`.

    Raises:
        InputError: as :func:`read_volume` (except for constant maps), and for values that are not integers or not
            allowed, which are listed, and for a grid that differs from ``like``.
    """
    path = Path(path)
    array, grid = _read(path, spacing)
    _require_finite(array, path)
    labels = np.rint(array) if array.dtype.kind == "f" else array
    # 1e-4 forgives the rounding of a float32 scl_slope, and nothing that interpolation left behind
    if labels is not array and (broken := np.abs(labels - array) > 1e-4).any():
        values = listed(f"{value:g}" for value in np.unique(array[broken]))
        raise InputError(
            f"holds {int(broken.sum())} values that are not whole numbers ({values}), so it is not a label map",
            path=path,
            remedy="Give the mask, not the image or probabilities, and resample labels with nearest neighbour",
        )
    wrong = sorted({int(value) for value in np.unique(labels)} - set(allowed))
    if wrong:
        raise InputError(
            f"holds label values {listed(wrong)}, allowed are {listed(sorted(allowed))}",
            path=path,
            remedy=f"Map the labels to {listed(sorted(allowed))}",
        )
    if like is not None and (difference := like.difference(grid)) is not None:
        raise InputError(f"is not on its image's grid: {difference}", path=path, remedy=_grid_remedy(like, grid))
    return Volume(labels.astype(np.min_scalar_type(max(allowed))), grid, path)


def _grid_remedy(image: Grid, labels: Grid) -> str:
    """Resampling would empty or shift the masks of a file whose header alone is wrong."""
    if image.spatial_shape == labels.spatial_shape:
        return "Write the labels with the header of their image, or if they lie elsewhere resample them"
    return "Resample the labels to the image, with nearest neighbour"


def frames(volume: Volume) -> Iterator[Volume]:
    """The time frames of a volume, each (X, Y, Z) on its own three-dimensional grid; one for a 3D volume."""
    if volume.data.ndim == 3:
        yield Volume(volume.data, volume.grid.frame(), volume.path)
        return
    for t in range(volume.data.shape[3]):
        yield Volume(volume.data[..., t], volume.grid.frame(), volume.path)


def write_on_grid(
    array: NDArray[Any], grid: Grid, path: PathLike, *, dtype: DTypeLike = np.uint8, remark: str = ""
) -> None:
    """Write an array as NIfTI under the header its grid was read from.

    Affine, qform, sform, their codes, pixdim, units and byte order stay as read. Changed are: shape, data type,
    scaling (1, 0), the display range (cal_min, cal_max: the values' own, so labels do not look black) and descrip.
    Cleared are the intent and the other free texts (aux_file, intent_name, db_name, data_type, unused_str) and the
    extensions, where converters leave what can name a patient.

    The file appears under its name complete or not at all. The bytes are a function of the arguments alone.

    Args:
        array: (x, y, z), or (x, y, z, n) with any last axis (time, classes); trailing axes of 1 that the grid has are
            written, so a mask has its image's shape. bool, integer or float.
        grid: the grid of the input.
        path: ends in .nii or .nii.gz; missing parent folders are made.
        dtype: stored type; integer types must hold the values exactly, floats must be finite.
        remark: for descrip, behind the name of this package; the field holds 79 bytes.

    Raises:
        ValueError: the array does not lie on the grid or does not fit ``dtype``.
        InputError: the place cannot be written to (read-only, full, a folder of that name), or the ending is another.
    """
    path = Path(path)
    array = np.asarray(array)
    if array.ndim not in (3, 4) or array.shape[:3] != grid.spatial_shape:
        raise ValueError(f"array of shape {array.shape} does not lie on a grid of shape {grid.shape}")
    if array.shape == without_trailing_ones(grid.shape):
        array = array.reshape(grid.shape)
    compressed = _is_compressed_name(path, "Name it .nii.gz")
    header = _output_header(array, grid, np.dtype(dtype), remark)
    stored = _stored(array, header.get_data_dtype())
    header["cal_min"], header["cal_max"] = float(stored.min()), float(stored.max())
    with atomic_write(path) as file:
        if compressed:  # no name and no time in the gzip header: equal arrays give equal files
            with gzip.GzipFile(filename="", mode="wb", compresslevel=4, fileobj=file, mtime=0) as stream:
                _write_nifti(stream, header, stored)
        else:
            _write_nifti(file, header, stored)


def _read(path: Path, spacing: Spacing) -> tuple[NDArray[Any], Grid]:
    """Scaled voxels in their natural type, without trailing axes of 1, and the grid; every failure an InputError."""
    if is_other_format(path):
        return read_other(path, spacing)
    # what a damaged number leads to is found by looking at the result, so numpy need not warn on the way
    with _opened(path) as (stream, size, compressed), np.errstate(all="ignore"):
        header = _read_header(stream, path)
        grid = grid_from_header(header, spacing, path)
        _check_length(header, size, compressed, path)
        return _read_voxels(stream, header, path), grid


@contextmanager
def _opened(path: Path) -> Iterator[tuple[io.BufferedIOBase, int, bool]]:
    """The bytes of a single-file image, the file's size and whether it is compressed; whatever fails, an InputError."""
    try:
        if is_named(path, (*PAIR_HEADERS, *PAIR_VOXELS)):
            content = single_file(path)
            yield io.BytesIO(content), len(content), False
            return
        compressed = _is_compressed_name(path, f"Give {READABLE}")
        with _open_regular(path) as raw:
            _check_magic(raw, compressed, path)
            size = os.fstat(raw.fileno()).st_size
            yield gzip.GzipFile(fileobj=raw, mode="rb") if compressed else raw, size, compressed
    except (EOFError, zlib.error) as error:
        _damaged(path, f"is truncated or damaged ({error})", error)
    except OSError as error:
        if error.errno is None:  # raised by gzip and nibabel for what they found in the file
            _damaged(path, f"is truncated or damaged ({error})", error)
        raise read_failure(path, error) from error
    except HeaderDataError as error:
        _damaged(path, f"has a header that cannot be used ({error})", error)


def _is_compressed_name(path: Path, remedy: str) -> bool:
    name = path.name.lower()
    if not name.endswith((".nii", ".nii.gz")):
        raise InputError("is not named .nii or .nii.gz", path=path, remedy=remedy)
    return name.endswith(".gz")


def _open_regular(path: Path) -> io.BufferedReader:
    mode = os.stat(path).st_mode  # before opening: a named pipe would wait for ever
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise InputError("is not a regular file", path=path, remedy="Give a .nii or .nii.gz file")
    return open(path, "rb")


def _check_magic(raw: io.BufferedReader, compressed: bool, path: Path) -> None:
    start = raw.read(2)
    raw.seek(0)
    if not start:
        _damaged(path, "is an empty file")
    if compressed and start != b"\x1f\x8b":
        raise InputError(
            "is named .gz but is not gzip data", path=path, remedy="Rename it to .nii if it is a plain NIfTI file"
        )
    if not compressed and start == b"\x1f\x8b":
        raise InputError("is gzip data but not named .gz", path=path, remedy="Rename it to .nii.gz")


def _read_header(stream: io.BufferedIOBase, path: Path) -> nib.Nifti1Header:
    """NIfTI-1 or -2 header of either byte order, unrepaired, of a single-file 3D or 4D image that can be held."""
    block = stream.read(nib.Nifti2Header.sizeof_hdr)
    header: nib.Nifti1Header | None = None
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        for endianness in "<>":
            if block[:4] == struct.pack(f"{endianness}i", kind.sizeof_hdr) and len(block) >= kind.sizeof_hdr:
                header = kind(block[: kind.sizeof_hdr], endianness, check=False)
    if header is None or bytes(header["magic"])[:3] not in (b"n+1", b"n+2"):
        if header is not None and bytes(header["magic"])[:3] in (b"ni1", b"ni2"):
            remedy = "Rename it to .hdr, and put the .img of that name beside it"
            raise InputError("is the header of a NIfTI pair", path=path, remedy=remedy)
        what = "is truncated inside its header" if len(block) < 348 else "is not a single-file NIfTI image"
        _damaged(path, what)
    ndim = int(header["dim"][0])
    shape = stored_shape(header)
    if not 3 <= ndim <= 7 or any(size > 1 for size in shape[4:]):
        remedy = "Give a volume (x, y, z) or a series of volumes (x, y, z, t)"
        raise InputError(f"has {ndim} dimensions", path=path, remedy=remedy)
    check_size(shape, path=path)
    try:
        dtype = header.get_data_dtype()
    except (KeyError, HeaderDataError) as error:
        _damaged(path, f"has an unknown data type (code {int(header['datatype'])})", error)
    if dtype.kind not in "iuf":
        kind_name = "colour (RGB)" if dtype.names else "complex" if dtype.kind == "c" else str(dtype)
        raise InputError(f"holds {kind_name} voxels", path=path, remedy="Convert it to a single grey-scale channel")
    return header


def _check_length(header: nib.Nifti1Header, size: int, compressed: bool, path: Path) -> None:
    """Compare the voxels a header promises with the file's length, before memory for them is asked for."""
    promised = prod(stored_shape(header)) * header.get_data_dtype().itemsize
    # deflate shrinks by 1032 at most (zlib's documentation)
    if promised > (size * 1032 if compressed else size - _data_offset(header)):
        _damaged(path, f"is truncated: the header promises {promised:,} bytes of voxels, the file has {size:,} in all")


def _read_voxels(stream: io.BufferedIOBase, header: nib.Nifti1Header, path: Path) -> NDArray[Any]:
    shape = stored_shape(header)
    slope, inter = header.get_slope_inter()  # None for 0 and NaN, which mean "not scaled"
    array = array_from_file(shape, header.get_data_dtype(), stream, _data_offset(header), mmap=False)
    if slope is not None and (slope, inter) != (1, 0):
        # in place, and in float32 unless the stored type is wider; an overflow is found among the voxels afterwards
        array = array.astype(np.result_type(array.dtype, np.float32))
        array *= slope
        array += inter
    while stream.read(2**20):  # to the end: only there gzip compares its checksum
        pass
    return array.reshape(without_trailing_ones(shape), order="F")


def _data_offset(header: nib.Nifti1Header) -> int:
    offset = float(header["vox_offset"])
    if not 0 <= offset < 2**31:
        raise HeaderDataError(f"vox_offset {offset:g}")
    return max(int(offset), header.single_vox_offset)  # header and extension flag end there; less was never filled in


def _require_finite(array: NDArray[Any], path: Path) -> None:
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    bad = ~np.isfinite(array)
    nans = int(np.isnan(array).sum())
    places = np.argwhere(bad) + 1  # counted from 1, as frames are wherever they are named
    raise InputError(
        f"holds {nans} NaN and {int(bad.sum()) - nans} infinite voxels in slices {listed(np.unique(places[:, 2]))}"
        + (f" of frames {listed(np.unique(places[:, 3]))}" if array.ndim == 4 else ""),
        path=path,
        remedy="Export the image again, or replace them by the background value",
    )


def _damaged(path: Path, what: str, cause: BaseException | None = None) -> NoReturn:
    raise InputError(what, path=path, remedy="Copy or export the file again") from cause


def _output_header(array: NDArray[Any], grid: Grid, dtype: np.dtype[Any], remark: str) -> nib.Nifti1Header:
    from cgdpm_med import __version__

    header = with_shape(grid.header, array.shape)
    header.set_data_dtype(dtype)
    header["vox_offset"] = header.single_vox_offset
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["descrip"] = f"cgdpm_med {__version__}{remark and f': {remark}'}".encode()[:79]
    header["intent_code"] = 0  # what the image's voxels mean, the output's do not
    for number in (1, 2, 3):
        header[f"intent_p{number}"] = 0
    for name in ("aux_file", "intent_name", "db_name", "data_type", "unused_str"):  # each version has some
        if name in header:
            header[name] = b""
    return header


def _stored(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    with np.errstate(invalid="ignore", over="ignore"):
        stored = array.astype(dtype)
    fits = np.isfinite(stored).all() if dtype.kind == "f" else np.array_equal(stored, array)
    if not fits:
        raise ValueError(f"values between {array.min()} and {array.max()} do not fit {dtype}")
    return stored


def _write_nifti(stream: Any, header: nib.Nifti1Header, stored: NDArray[Any]) -> None:
    header.write_to(stream)
    for k in range(stored.shape[-1]):  # Fortran order, one slab of the last axis at a time to keep memory flat
        stream.write(stored[..., k].tobytes(order="F"))
