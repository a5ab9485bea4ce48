"""FreeSurfer's volumes (.mgh, .mgz): nibabel reads the header."""

from __future__ import annotations

import gzip
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from nibabel.freesurfer.mghformat import DATA_OFFSET, MGHHeader
from numpy.typing import NDArray

from cgdpm_med.files import InputError
from cgdpm_med.volumes.grid import Grid, check_size
from cgdpm_med.volumes.raster import AGAIN, Geometry, made_grid, open_regular, reading
from cgdpm_med.volumes.spacing import Spacing

_GEOMETRY_FLAG = slice(28, 30)  # goodRASFlag, which nibabel sets where it was not


def read_mgh(path: Path, spacing: Spacing) -> tuple[NDArray[Any], Grid]:
    """The voxels as (X, Y, Z) or (X, Y, Z, T) in their stored type, and their grid.

    Raises:
        InputError: the file is damaged, no MGH, too large, or states no geometry.
    """
    with reading(path), open_regular(path) as file:
        stream: Any = gzip.GzipFile(fileobj=file, mode="rb") if path.name.lower().endswith(".mgz") else file
        start = stream.read(DATA_OFFSET)
        header = MGHHeader(start, check=False) if len(start) == DATA_OFFSET else None
        if header is None or int(header["version"]) != 1 or int(header["type"]) not in (0, 1, 3, 4, 10):
            raise InputError("is not an MGH file", path=path, remedy=AGAIN)
        shape = [int(size) for size in header["dims"]]
        check_size(shape, path=path)
        shape = shape[:3] if shape[3] == 1 else shape
        known = start[_GEOMETRY_FLAG] != bytes(2)
        geometry = Geometry(np.array(header["delta"], np.float64), header.get_affine()) if known else _NOWHERE
        grid = made_grid(shape, geometry, path, spacing)
        stored = header.get_data_dtype().newbyteorder(">")
        return np.frombuffer(_exactly(stream, prod(shape) * stored.itemsize), stored).reshape(shape, order="F"), grid


_NOWHERE = Geometry(None, None)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError(f"{len(content):,} bytes of voxels instead of {size:,}")
    while stream.read(2**20):  # to the end: only there gzip compares its checksum
        pass
    return content
