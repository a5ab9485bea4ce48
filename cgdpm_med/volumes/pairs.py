"""NIfTI pairs (.hdr and .img): read as the single file that holds the same header and voxels."""

from __future__ import annotations

import gzip
import struct
from math import prod
from pathlib import Path

import nibabel as nib
from nibabel.spatialimages import HeaderDataError

from cgdpm_med.files import InputError
from cgdpm_med.volumes.formats import PAIR_VOXELS, is_named, pair_header, pair_voxels
from cgdpm_med.volumes.grid import check_size, stored_shape
from cgdpm_med.volumes.raster import AGAIN, open_regular, reading

_KINDS = ((nib.Nifti1Header, b"ni1", b"n+1"), (nib.Nifti2Header, b"ni2", b"n+2"))


def single_file(path: Path) -> bytes:
    """The pair with this header or these voxels as a single-file NIfTI image; its header is checked by who parses that.

    Raises:
        InputError: the header is Analyze's, which does not say which way its axes point, or anything else; or the
            voxels are missing or damaged.
    """
    if is_named(path, PAIR_VOXELS):
        voxels, path = path, pair_header(path)
        if not path.exists():
            what = f"holds the voxels of {path.name}, which is not there"
            raise InputError(what, path=voxels, remedy="Put that file beside it, under this name")
    with reading(path):
        header = _header(_content(path, nib.Nifti2Header.sizeof_hdr), path)
    voxels = pair_voxels(path)
    if not voxels.exists():
        what = f"is the header of {voxels.name}, which is not there"
        raise InputError(what, path=path, remedy="Put that file beside it, under this name")
    shape = stored_shape(header)
    check_size(shape, path=path)
    try:
        size = prod(shape) * header.get_data_dtype().itemsize
    except (KeyError, HeaderDataError):  # an unknown type, which whoever reads the header names
        size = 0
    offset = float(header["vox_offset"])
    skip = int(offset) if 0 <= offset < 2**31 else 0
    with reading(voxels):
        content = _content(voxels, skip + size, whole=True)[skip:]
    if len(content) < size:
        what = f"is truncated: its header promises {size:,} bytes of voxels, there are {len(content):,}"
        raise InputError(what, path=voxels, remedy=AGAIN)
    header["vox_offset"] = header.single_vox_offset
    return bytes(header.binaryblock) + bytes(4) + content


def _header(block: bytes, path: Path) -> nib.Nifti1Header:
    """The header of either kind and byte order, with the mark of a single file."""
    for kind, pair, single in _KINDS:
        for endianness in "<>":
            if block[:4] == struct.pack(f"{endianness}i", kind.sizeof_hdr) and len(block) >= kind.sizeof_hdr:
                header = kind(block[: kind.sizeof_hdr], endianness, check=False)
                magic = bytes(header["magic"])
                if magic[:3] == pair:
                    header["magic"] = single + magic[3:]
                    return header
                if kind is nib.Nifti1Header and not magic.startswith(b"n"):
                    what = "is an Analyze image, which does not say which way its axes point"
                    remedy = "Convert it to NIfTI with a tool that knows, such as 3D Slicer, and check left and right"
                    raise InputError(what, path=path, remedy=remedy)
    raise InputError("is not the header of a NIfTI pair", path=path, remedy=AGAIN)


def _content(path: Path, size: int, *, whole: bool = False) -> bytes:
    """The first ``size`` bytes; a compressed file is read to its checksum if ``whole``."""
    with open_regular(path) as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = gzip.GzipFile(fileobj=file, mode="rb") if compressed else file
        content = stream.read(size)
        while whole and compressed and stream.read(2**20):
            pass
        return content
