"""NIfTI files written byte by byte, for tests."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pytest

from cgdpm_med import InputError

RAMP = np.arange(4 * 5 * 3, dtype=np.int16).reshape(4, 5, 3)
LABELS = (RAMP % 4).astype(np.uint8)
ACDC_SFORM = np.diag([-1.0, -1.0, 1.0, 1.0])
# a rotation by 30 degrees about x, thick slices, written out by hand
OBLIQUE = np.array(
    [
        [-1.25, 0.0, 0.0, 80.0],
        [0.0, -1.4 * 0.8660254, -8.0 * 0.5, 30.0],
        [0.0, -1.4 * 0.5, 8.0 * 0.8660254, -12.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
# what write_on_grid may change in a header; "dim" only where the array has another last axis
CHANGED = {"datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter", "cal_min", "cal_max", "descrip"}


def at(value: float, *index: int | slice, shape: tuple[int, ...] = (4, 5, 3)) -> np.ndarray:
    data = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    data[index] = value
    return data


def nifti(
    data: np.ndarray = RAMP,
    *,
    sform: np.ndarray | None = None,
    sform_code: int = 1,
    pixdim: tuple[float, ...] = (1.25, 1.4, 8.0),
    endian: Literal["<", ">"] = "<",
    kind: type[nib.Nifti1Header] = nib.Nifti1Header,
    dim: tuple[int, ...] | None = None,
    **fields: Any,
) -> bytes:
    """A NIfTI file byte for byte, with header fields no library would write."""
    header = kind(endianness=endian)
    header.set_data_dtype(data.dtype.newbyteorder("="))
    dim = data.shape if dim is None else dim
    header["dim"] = [len(dim), *dim] + [1] * (7 - len(dim))
    header["pixdim"][1 : 1 + len(pixdim)] = pixdim
    header["vox_offset"] = kind.single_vox_offset
    header["scl_slope"], header["scl_inter"] = 1, 0
    if sform is not None:
        header["sform_code"] = sform_code
        header["srow_x"], header["srow_y"], header["srow_z"] = sform[:3]
    for name, value in fields.items():
        header[name] = value
    voxels = data.astype(data.dtype.newbyteorder(endian)).tobytes(order="F")
    return header.binaryblock + bytes(4) + voxels


def save(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content, 1) if path.name.endswith(".gz") else content)
    return path


def raw_header(path: Path) -> nib.Nifti1Header:
    """The header of a file, without nibabel's repairs."""
    content = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
    second = 540 in (int.from_bytes(content[:4], order) for order in ("little", "big"))
    kind = nib.Nifti2Header if second else nib.Nifti1Header
    return kind(content[: kind.sizeof_hdr], check=False)


def fields_that_differ(a: Path, b: Path) -> set[str]:
    first, second = raw_header(a), raw_header(b)
    assert first.endianness == second.endianness
    return {name for name in first if first[name].tobytes() != second[name].tobytes()}


def only_error(call: Callable[[], object], path: Path) -> str:
    """The text of the single InputError of ``call``: one line that opens with the path and ends with a remedy."""
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert caught.value.path == path
    assert text.startswith(f"{path}: ")
    assert caught.value.remedy is not None
    assert text.endswith(f". {caught.value.remedy}")
    assert "\n" not in text
    return text
