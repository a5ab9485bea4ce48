"""NIfTI volumes and the grid they lie on: read with one clear error or a right result, write on the same grid.

A *grid* is what ties an array index (i, j, k) to a place in the patient: the shape, the voxel spacing in mm and the
affine from indices to world millimetres (RAS+). :class:`Grid` keeps the header as it was read beside the geometry
derived from it, because the two differ in the wild: every ACDC file holds a unit sform while the true spacing is only
in ``pixdim``. Resampling and volumes use the derived geometry, output is written with the header as read.

Headers are parsed without nibabel's repairs (it replaces a zero ``pixdim`` by 1 and strips signs), so that what is
written equals what was read. The NIfTI fields meant here are defined in the format's own header file, nifti1.h.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import secrets
import stat
import struct
import warnings
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling, array_from_file
from numpy.typing import DTypeLike, NDArray

PathLike = str | os.PathLike[str]
Spacing = Literal["auto", "pixdim", "affine"] | Sequence[float]

VOXEL_LIMIT = 2**29
"""Most voxels accepted in one file, 512 x 512 x 2048: 2 GiB once in float32."""

CONFLICT_TOLERANCE = 0.01
"""Relative difference above which pixdim and the lengths of the affine's columns are called in conflict."""

_PLAUSIBLE_SPACING = (1e-4, 200.0)  # mm: finer than microscopy, coarser than any scanner's slice distance
_UNIT_IN_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units & 7: unknown, metre, millimetre, micrometre
_WARNED: set[str] = set()  # kinds of header conflict already reported by this process


class InputError(ValueError):
    """A file or argument that cannot be used; ``str()`` is one line: "path: what. remedy".

    Args:
        what: what is wrong, with the place (slice, axis, number) where there is one.
        path: the file or folder concerned.
        remedy: what the user can do about it.
    """

    def __init__(self, what: str, *, path: PathLike | None = None, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.path = None if path is None else Path(path)
        self.remedy = remedy

    def __str__(self) -> str:
        text = self.what if self.path is None else f"{self.path}: {self.what}"
        if self.remedy:
            text = f"{text.rstrip('.')}. {self.remedy}"
        # a file name may hold line breaks, or bytes that are not UTF-8 (surrogates): neither may break a log line
        return text.replace("\r", " ").replace("\n", " ").encode("utf-8", "backslashreplace").decode()


class HeaderWarning(UserWarning):
    """A header that contradicts itself; the text names the rule that was applied."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of one file lie.

    Attributes:
        shape: (x, y, z) or (x, y, z, t) exactly as stored, so also (x, y, z, 1).
        spacing: true voxel size in mm along x, y, z, after the rule of :func:`read_volume`.
        affine: (4, 4) float64, voxel indices to world mm: the directions and the origin of the header's affine with
            columns of length ``spacing``.
        header: the header as read (extensions left out), the basis of every file written on this grid.
        header_affine: (4, 4) float64, the affine the header states (sform, else qform, else pixdim alone), in mm.
        note: what is odd about the header and which rule was applied, or None.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, float, float]
    affine: NDArray[np.float64]
    header: nib.Nifti1Header
    header_affine: NDArray[np.float64]
    note: str | None = None

    @property
    def spatial_shape(self) -> tuple[int, int, int]:
        """(x, y, z)."""
        x, y, z = self.shape[:3]
        return x, y, z

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel in mm^3: the product of ``spacing`` unless the affine is sheared."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def frame(self) -> Grid:
        """The three-dimensional grid of a single time frame of this grid."""
        header = self.header.copy()
        header.set_data_shape(self.spatial_shape)
        return Grid(self.spatial_shape, self.spacing, self.affine, header, self.header_affine, self.note)

    def difference(self, other: Grid) -> str | None:
        """One line saying how ``other`` differs in place from this grid, or None where they agree.

        Trailing axes of length 1 are ignored. The affines agree when no corner of the volume moves by more than a
        tenth of the smallest spacing: the quaternions of a qform round by far less, a shift by a voxel is seen.
        """
        if _without_trailing_ones(self.shape) != _without_trailing_ones(other.shape):
            return f"shape {_by(other.shape)} instead of {_by(self.shape)}"
        corners = np.array(list(product(*((0, size - 1) for size in self.spatial_shape), [1])))
        moved = float(np.linalg.norm(corners @ (self.affine - other.affine).T, axis=1).max())
        if moved > 0.1 * min(self.spacing):
            return f"its voxels lie up to {moved:.3g} mm elsewhere (spacing {_mm(other.spacing)})"
        return None


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels and the grid they lie on.

    Attributes:
        data: (X, Y, Z) or (X, Y, Z, T); float32 intensities from :func:`read_volume`, uint8 labels from
            :func:`read_labels`. A last axis of length 1 is removed here and kept in ``grid.shape``.
        grid: the file's grid.
        path: the file.
    """

    data: NDArray[Any]
    grid: Grid
    path: Path


def read_volume(path: PathLike, *, spacing: Spacing = "auto") -> Volume:
    """Read a .nii or .nii.gz image of three or four dimensions, intensities scaled by scl_slope and scl_inter.

    The rule for ``spacing="auto"``, where pixdim and the column lengths of the sform differ by more than 1 %:

    - pixdim is taken. Files converted without their orientation carry a unit sform (all of ACDC), and an sform into a
      template space (codes 3 to 5) may contain scale, while pixdim stays the size of a voxel on the scanner.
    - The affine is taken where pixdim holds a zero, NaN or infinity; and where pixdim is all ones or has a negative
      value while the affine is not unit: such a pixdim was never filled in, or not by a writer that knows the format.
    - Otherwise the sign of pixdim is ignored. Without an sform there is no second opinion: pixdim is the only source.

    A conflict is reported by :class:`HeaderWarning` once per process and kind, and for every file in ``grid.note``.
    Units of metres and micrometres are converted. A sheared affine is accepted with a note: the columns' lengths are
    the spacing, and ``grid.voxel_volume`` allows for the angle between them.

    Args:
        path: the file.
        spacing: "auto"; "pixdim" or "affine" to settle a conflict by hand; or three numbers in mm.

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
        raise InputError("holds values beyond the range of float32", path=path, remedy="Rescale the image")
    if data.min() == data.max():
        raise InputError(
            f"is constant: every voxel is {float(data.flat[0]):g}", path=path, remedy="Export the image again"
        )
    return Volume(data, grid, path)


def read_labels(
    path: PathLike,
    *,
    allowed: Collection[int] = frozenset({0, 1, 2, 3}),
    like: Grid | None = None,
    spacing: Spacing = "auto",
) -> Volume:
    """Read a label map as uint8.

    Args:
        path: a .nii or .nii.gz file of three or four dimensions.
        allowed: the labels that may occur, each within 0 … 255; an empty (all-background) map is accepted.
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
        values = _listed(f"{value:g}" for value in np.unique(array[broken]))
        raise InputError(
            f"holds {int(broken.sum())} values that are not whole numbers ({values}), so it is not a label map",
            path=path,
            remedy="Give the mask, not the image or probabilities, and resample labels with nearest neighbour",
        )
    wrong = sorted({int(value) for value in np.unique(labels)} - set(allowed))
    if wrong:
        raise InputError(
            f"holds label values {_listed(map(str, wrong))}, allowed are {_listed(map(str, sorted(allowed)))}",
            path=path,
            remedy="Map the labels to the expected ones",
        )
    if like is not None and (difference := like.difference(grid)) is not None:
        raise InputError(
            f"is not on its image's grid: {difference}", path=path, remedy="Resample the labels to the image"
        )
    return Volume(labels.astype(np.uint8), grid, path)


def frames(volume: Volume) -> Iterator[Volume]:
    """The time frames of a volume, each (X, Y, Z) on its own three-dimensional grid; one for a 3D volume."""
    if volume.data.ndim == 3:
        yield Volume(volume.data, volume.grid.frame(), volume.path)
        return
    for t in range(volume.data.shape[3]):
        yield Volume(volume.data[..., t], volume.grid.frame(), volume.path)


def write_on_grid(array: NDArray[Any], grid: Grid, path: PathLike, *, dtype: DTypeLike = np.uint8) -> None:
    """Write an array as NIfTI under the header its grid was read from.

    Affine, qform, sform, their codes, pixdim, units and byte order stay as read. Changed are: shape, data type,
    scaling (1, 0), the display range (cal_min, cal_max: the values' own, so labels do not look black) and descrip.
    Cleared are the other free texts (aux_file, db_name, data_type) and the extensions, where converters leave what
    can name a patient.

    The file appears under its name complete or not at all. The bytes are a function of the arguments alone.

    Args:
        array: (x, y, z), or (x, y, z, n) with any last axis (time, classes); on a grid of shape (x, y, z, 1) a 3D array
            is written with that last axis, so a mask has its image's shape. bool, integer or float.
        grid: the grid of the input.
        path: ends in .nii or .nii.gz; missing parent folders are made.
        dtype: stored type; integer types must hold the values exactly.

    Raises:
        ValueError: the array does not lie on the grid or does not fit ``dtype``.
        InputError: the place cannot be written to (read-only, full, a folder of that name), or the ending is another.
    """
    path = Path(path)
    array = np.asarray(array)
    if array.ndim not in (3, 4) or array.shape[:3] != grid.spatial_shape:
        raise ValueError(f"array of shape {array.shape} does not lie on a grid of shape {grid.shape}")
    if array.ndim == 3 and grid.shape[3:] == (1,):
        array = array[..., np.newaxis]
    check_size(array.shape, path=path)
    compressed = _is_compressed_name(path)
    header = _output_header(array, grid, np.dtype(dtype))
    stored = _stored(array, header.get_data_dtype())
    with atomic_write(path) as file:
        if compressed:  # no name and no time in the gzip header: equal arrays give equal files
            with gzip.GzipFile(filename="", mode="wb", compresslevel=4, fileobj=file, mtime=0) as stream:
                _write_nifti(stream, header, stored)
        else:
            _write_nifti(file, header, stored)


@contextmanager
def atomic_write(path: PathLike) -> Iterator[BinaryIO]:
    """A binary file that appears under ``path`` when the block ends well, and leaves nothing behind when it does not.

    The bytes go to a hidden temporary name in the same folder, reach the disk, and are renamed (also over an existing
    file). Missing parent folders are made.

    Raises:
        InputError: the place cannot be written to: read-only, no permission, full, or a folder of that name.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            _discard(temporary)
            raise
    except OSError as error:
        raise InputError(f"cannot be written: {_reason(error)}", path=path, remedy=_write_remedy(error)) from error


def check_size(shape: Sequence[int], *, path: PathLike | None = None) -> None:
    """Refuse shapes that are empty or too large to hold, before anything of that size is allocated.

    Raises:
        InputError: a dimension below 1, or more than :data:`VOXEL_LIMIT` voxels; with the number.
    """
    sizes = [int(size) for size in shape]
    for axis, size in enumerate(sizes):
        if size < 1:
            raise InputError(
                f"has size {size} along axis {axis} (shape {_by(sizes)})", path=path, remedy="Export the image again"
            )
    if prod(sizes) > VOXEL_LIMIT:
        raise InputError(
            f"has {prod(sizes):,} voxels (shape {_by(sizes)}), more than the limit of {VOXEL_LIMIT:,}",
            path=path,
            remedy="Crop or split the image; if the file is smaller than that, its header is damaged",
        )


# --- reading ---------------------------------------------------------------------------------------------------------


def _read(path: Path, spacing: Spacing) -> tuple[NDArray[Any], Grid]:
    """Scaled voxels in their natural type, without a last axis of 1, and the grid; every failure an InputError."""
    compressed = _is_compressed_name(path)
    try:
        with _open_regular(path) as raw:
            _check_magic(raw, compressed, path)
            size = os.fstat(raw.fileno()).st_size
            stream: io.BufferedIOBase = gzip.GzipFile(fileobj=raw, mode="rb") if compressed else raw
            header = _read_header(stream, path)
            grid = _grid(header, spacing, path)
            _check_length(header, size, compressed, path)
            return _read_voxels(stream, header, path), grid
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        _damaged(path, f"is truncated or damaged ({error})", error)
    except OSError as error:
        raise InputError(f"cannot be read: {_reason(error)}", path=path, remedy=_read_remedy(error)) from error
    except HeaderDataError as error:
        _damaged(path, f"has a header that cannot be used ({error})", error)


def _is_compressed_name(path: Path) -> bool:
    name = path.name.lower()
    if not name.endswith((".nii", ".nii.gz")):
        raise InputError("is not named .nii or .nii.gz", path=path, remedy="Convert it to NIfTI")
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
        what = "is truncated inside its header" if len(block) < 348 else "is not a single-file NIfTI image"
        _damaged(path, what)
    ndim = int(header["dim"][0])
    if ndim not in (3, 4):
        raise InputError(
            f"has {ndim} dimensions", path=path, remedy="Give a volume (x, y, z) or a series of volumes (x, y, z, t)"
        )
    shape = tuple(int(size) for size in header["dim"][1 : ndim + 1])
    check_size(shape, path=path)
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        kind_name = "colour (RGB)" if dtype.names else "complex" if dtype.kind == "c" else str(dtype)
        raise InputError(f"holds {kind_name} voxels", path=path, remedy="Convert it to a single grey-scale channel")
    return header


def _check_length(header: nib.Nifti1Header, size: int, compressed: bool, path: Path) -> None:
    """Compare the voxels a header promises with the file's length, before memory for them is asked for."""
    promised = prod(_stored_shape(header)) * header.get_data_dtype().itemsize
    # deflate shrinks by 1032 at most (zlib's documentation)
    if promised > (size * 1032 if compressed else size - _data_offset(header)):
        _damaged(path, f"is truncated: the header promises {promised:,} bytes of voxels, the file has {size:,} in all")


def _read_voxels(stream: io.BufferedIOBase, header: nib.Nifti1Header, path: Path) -> NDArray[Any]:
    shape = _stored_shape(header)
    slope, inter = header.get_slope_inter()  # None for 0 and NaN, which mean "not scaled"
    array = array_from_file(shape, header.get_data_dtype(), stream, _data_offset(header), mmap=False)
    if slope is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            array = apply_read_scaling(array, np.float32(slope), np.float32(inter))
    while stream.read(2**20):  # to the end: only there gzip compares its checksum
        pass
    return array[..., 0] if shape[3:] == (1,) else array


def _data_offset(header: nib.Nifti1Header) -> int:
    offset = float(header["vox_offset"])
    if not 0 <= offset < 2**31:
        raise HeaderDataError(f"vox_offset {offset:g}")
    return max(int(offset), header.single_vox_offset)  # nifti1.h: less than that is to be read as that


def _stored_shape(header: nib.Nifti1Header) -> tuple[int, ...]:
    return tuple(int(size) for size in header["dim"][1 : int(header["dim"][0]) + 1])


def _require_finite(array: NDArray[Any], path: Path) -> None:
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    bad = ~np.isfinite(array)
    nans = int(np.isnan(array).sum())
    slices = np.unique(np.argwhere(bad)[:, 2])
    raise InputError(
        f"holds {nans} NaN and {int(bad.sum()) - nans} infinite voxels in slices {_listed(map(str, slices))}"
        + (f" of frames {_listed(map(str, np.unique(np.argwhere(bad)[:, 3])))}" if array.ndim == 4 else ""),
        path=path,
        remedy="Export the image again, or replace them by the background value",
    )


# --- geometry --------------------------------------------------------------------------------------------------------


def _grid(header: nib.Nifti1Header, spacing: Spacing, path: Path) -> Grid:
    unit = _UNIT_IN_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    header_affine = _header_affine(header)
    header_affine[:3] *= unit
    if not np.isfinite(header_affine).all():
        raise InputError("has an affine that is not finite", path=path, remedy="Repair sform or qform in the header")
    columns = header_affine[:3, :3]
    lengths = np.linalg.norm(columns, axis=0)
    if not (lengths > 0).all() or abs(np.linalg.det(columns / lengths)) < 1e-3:
        raise InputError("has a singular affine", path=path, remedy="Repair sform or qform in the header")
    pixdim = header["pixdim"][1:4].astype(np.float64) * unit
    true, note = _true_spacing(pixdim, lengths, bool(header["sform_code"] != 0), spacing, path)
    cosines = (columns / lengths).T @ (columns / lengths)
    skew = float(np.degrees(np.arcsin(min(1.0, np.abs(cosines - np.eye(3)).max()))))
    if skew > 0.5:
        sheared = f"the affine is sheared by {skew:.1f} degrees"
        note = sheared if note is None else f"{note}; {sheared}"
    affine = header_affine.copy()
    if not np.allclose(true, lengths, rtol=1e-4, atol=0):
        affine[:3, :3] = columns / lengths * true
    for array in (affine, header_affine):
        array.setflags(write=False)
    x, y, z = (float(size) for size in true)
    return Grid(_stored_shape(header), (x, y, z), affine, header, header_affine, note)


def _header_affine(header: nib.Nifti1Header) -> NDArray[np.float64]:
    """The affine as nibabel chooses it (sform, qform, pixdim alone), where pixdim may hold signs, zeros and no qfac."""
    repaired = header.copy()
    pixdim = np.abs(repaired["pixdim"][1:4])
    repaired["pixdim"][1:4] = np.where(np.isfinite(pixdim) & (pixdim > 0), pixdim, 1)
    if repaired["pixdim"][0] not in (-1, 1):
        repaired["pixdim"][0] = 1  # nifti1.h: 0 means 1
    return np.array(repaired.get_best_affine(), dtype=np.float64)


def _true_spacing(
    pixdim: NDArray[np.float64], lengths: NDArray[np.float64], has_sform: bool, spacing: Spacing, path: Path
) -> tuple[NDArray[np.float64], str | None]:
    """The rule stated in :func:`read_volume`: spacing in mm and a note where the header contradicts itself."""
    usable = bool(np.isfinite(pixdim).all() and (pixdim != 0).all())
    size = np.abs(pixdim)
    note: str | None = None
    if not isinstance(spacing, str):
        true = np.array(spacing, dtype=np.float64)
        if true.shape != (3,):
            raise InputError(f"spacing {spacing} is not three numbers", remedy="Give x, y and z spacing in mm")
    elif spacing == "affine":
        true = lengths if has_sform else size
    elif not usable and (spacing == "pixdim" or not has_sform):
        raise InputError(
            f"has no voxel spacing: pixdim is {_mm(pixdim)}", path=path, remedy="Give the spacing in mm explicitly"
        )
    elif spacing == "pixdim":
        true = size
    elif spacing != "auto":
        raise InputError(f"spacing {spacing!r} is unknown", remedy="Use auto, pixdim, affine or three numbers in mm")
    elif usable and (not has_sform or np.allclose(size, lengths, rtol=CONFLICT_TOLERANCE, atol=0)):
        true = size
    else:
        unit_affine = np.allclose(lengths, 1, rtol=CONFLICT_TOLERANCE)
        never_filled = np.allclose(size, 1, rtol=CONFLICT_TOLERANCE) or bool((pixdim < 0).any())
        trust_affine = not usable or (never_filled and not unit_affine)
        true, taken = (lengths, "affine") if trust_affine else (size, "pixdim")
        note = f"pixdim says {_mm(pixdim)}, the affine {_mm(lengths)}: the {taken} is taken"
        _warn_once(taken, f"{note} (override with spacing=; first seen in {path}, later files are not reported)")
    low, high = _PLAUSIBLE_SPACING
    if not ((true >= low) & (true <= high)).all():
        raise InputError(
            f"has an implausible voxel spacing of {_mm(true)}", path=path, remedy="Give the spacing in mm explicitly"
        )
    return true, note


def _warn_once(kind: str, text: str) -> None:
    if kind not in _WARNED:
        _WARNED.add(kind)
        warnings.warn(text, HeaderWarning, stacklevel=6)


# --- writing ---------------------------------------------------------------------------------------------------------


def _output_header(array: NDArray[Any], grid: Grid, dtype: np.dtype[Any]) -> nib.Nifti1Header:
    from cgdpm_med import __version__

    header = grid.header.copy()
    pixdim = header["pixdim"].copy()
    header.set_data_shape(array.shape)
    header["pixdim"] = pixdim  # set_data_shape resets the entries of axes it thinks unused
    header.set_data_dtype(dtype)
    header["vox_offset"] = header.single_vox_offset
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["cal_min"], header["cal_max"] = float(array.min()), float(array.max())
    header["descrip"] = f"cgdpm_med {__version__}".encode()
    header["aux_file"] = b""
    for name in ("db_name", "data_type"):  # NIfTI-1 only
        if name in header:
            header[name] = b""
    return header


def _stored(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    with np.errstate(invalid="ignore", over="ignore"):
        stored = array.astype(dtype)
    if dtype.kind != "f" and not np.array_equal(stored, array):
        raise ValueError(f"values between {array.min()} and {array.max()} do not fit {dtype} exactly")
    return stored


def _write_nifti(stream: Any, header: nib.Nifti1Header, stored: NDArray[Any]) -> None:
    header.write_to(stream)
    for k in range(stored.shape[-1]):  # Fortran order, one slab of the last axis at a time to keep memory flat
        stream.write(stored[..., k].tobytes(order="F"))


def _discard(path: Path) -> None:
    with suppress(OSError):  # the disk went read-only or away: the error that brought us here is the one to report
        path.unlink(missing_ok=True)


# --- words -----------------------------------------------------------------------------------------------------------


def _damaged(path: Path, what: str, cause: BaseException | None = None) -> NoReturn:
    raise InputError(what, path=path, remedy="Copy or export the file again") from cause


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _read_remedy(error: OSError) -> str:
    remedies = {
        errno.ENOENT: "Check the name",
        errno.EISDIR: "Give a file inside this folder",
        errno.ELOOP: "Remove the loop of symbolic links",
        errno.EACCES: "Ask for permission to read it",
    }
    return remedies.get(error.errno or 0, "Copy or export the file again")


def _write_remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Free space there, or choose another output folder"
    return "Choose an output folder that can be written to"


def _listed(items: Any, most: int = 8) -> str:
    """The first few items, separated by commas, and how many more there are."""
    texts = list(items)
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape)


def _mm(spacing: Sequence[float] | NDArray[np.float64]) -> str:
    return " x ".join(f"{size:.5g}" for size in spacing) + " mm"


def _without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:3] if all(size == 1 for size in shape[3:]) else shape
