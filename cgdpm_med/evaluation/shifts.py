"""Inputs unlike the training data: an image and its reference mask as another scan or export would have given them.

Each shift is a function ``shift(image, label, rng) -> (image, label)`` of two volumes (X, Y, Z) on one grid, slices
along the last axis. Voxels keep their places in the patient: the grid that a shift returns says where they are, with a
header as right, or as wrong, as that of the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cgdpm_med.volumes import Grid, Volume
from cgdpm_med.volumes.grid import mark_millimetres, with_shape

Pair = tuple[Volume, Volume]
Shift = Callable[[Volume, Volume, np.random.Generator], Pair]


# --- grids ------------------------------------------------------------------------------------------------------------


def moved_grid(grid: Grid, shape: Sequence[int], old_from_new: NDArray[np.float64]) -> Grid:
    """The grid of new voxels whose indices ``old_from_new`` (4, 4) takes to those of ``grid``.

    The true affine and the header's own are taken along alike, so a header that did not know its directions still
    does not.
    """
    affine, stated = grid.affine @ old_from_new, grid.header_affine @ old_from_new
    x, y, z = (float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
    header = with_shape(grid.header, shape)
    mark_millimetres(header)
    if header["qform_code"] > 0:
        header.set_qform(stated, int(header["qform_code"]))
    if header["sform_code"] > 0:
        header.set_sform(stated, int(header["sform_code"]))
    header["pixdim"][1:4] = x, y, z
    size = tuple(int(n) for n in shape)
    return replace(grid, shape=size, spacing=(x, y, z), affine=affine, header=header, header_affine=stated)


def _scaled(scale: Sequence[float], offset: Sequence[float] = (0, 0, 0)) -> NDArray[np.float64]:
    """(4, 4): new index i to old index scale i + offset."""
    matrix = np.diag([*scale, 1.0])
    matrix[:3, 3] = offset
    return matrix


def _moved(volume: Volume, data: NDArray, old_from_new: NDArray[np.float64]) -> Volume:
    data = np.ascontiguousarray(data.astype(volume.data.dtype, copy=False))
    return Volume(data, moved_grid(volume.grid, data.shape, old_from_new), volume.path)


# --- resolution -------------------------------------------------------------------------------------------------------


def half_resolution(image: Volume, label: Volume, rng: np.random.Generator) -> Pair:
    """Pixels of twice the side: the mean of 2 x 2, and the label with the largest share of them.

    The first of equally large shares wins. A last odd row or column is left out.
    """
    place = _scaled((2, 2, 1), (0.5, 0.5, 0))
    shares = np.stack([_block_mean((label.data == value).astype(np.float32)) for value in range(label.data.max() + 1)])
    return _moved(image, _block_mean(image.data), place), _moved(label, shares.argmax(axis=0), place)


def _block_mean(data: NDArray) -> NDArray:
    x, y, z = data.shape[0] // 2, data.shape[1] // 2, data.shape[2]
    return data[: 2 * x, : 2 * y].reshape(x, 2, y, 2, z).mean(axis=(1, 3), dtype=np.float64)


def double_resolution(image: Volume, label: Volume, rng: np.random.Generator) -> Pair:
    """Pixels of half the side: the image interpolated linearly, every labelled pixel cut into four."""
    place = _scaled((0.5, 0.5, 1), (-0.25, -0.25, 0))
    fine = ndimage.zoom(image.data, (2, 2, 1), order=1, mode="nearest", grid_mode=True)
    return _moved(image, fine, place), _moved(label, label.data.repeat(2, axis=0).repeat(2, axis=1), place)


def every_second_slice(image: Volume, label: Volume, rng: np.random.Generator) -> Pair:
    """Slices 1, 3, 5, …: twice the distance from one to the next."""
    place = _scaled((1, 1, 2))
    return _moved(image, image.data[..., ::2], place), _moved(label, label.data[..., ::2], place)


# --- intensities ------------------------------------------------------------------------------------------------------


def rescaled(image: Volume, label: Volume, rng: np.random.Generator, *, gain: float, offset: float) -> Pair:
    """Intensities times ``gain`` plus ``offset``."""
    return Volume(image.data * np.float32(gain) + np.float32(offset), image.grid, image.path), label


def gamma(image: Volume, label: Volume, rng: np.random.Generator, *, exponent: float) -> Pair:
    """Intensities between their least and largest, brought to [0, 1], to the power of ``exponent``."""
    low, high = image.data.min(), image.data.max()
    curved = ((image.data - low) / (high - low)) ** np.float32(exponent) * (high - low) + low
    return Volume(curved.astype(np.float32), image.grid, image.path), label


def rician_noise(image: Volume, label: Volume, rng: np.random.Generator, *, fraction: float) -> Pair:
    """The magnitude of a complex signal with Gaussian noise in both parts, as in magnitude MR images.

    Args:
        fraction: standard deviation of each part / 99th percentile of the image.
    """
    sigma = fraction * float(np.percentile(image.data, 99))
    real, imaginary = sigma * rng.standard_normal((2, *image.data.shape))
    return Volume(np.hypot(image.data + real, imaginary).astype(np.float32), image.grid, image.path), label


# --- orientation and field of view ------------------------------------------------------------------------------------


def quarter_turn(image: Volume, label: Volume, rng: np.random.Generator) -> Pair:
    """The slices turned by 90 degrees in the array, and the affine with them."""
    place = np.array([[0.0, 1, 0, 0], [-1, 0, 0, image.data.shape[1] - 1], [0, 0, 1, 0], [0, 0, 0, 1]])
    return _moved(image, np.rot90(image.data), place), _moved(label, np.rot90(label.data), place)


def half_field(image: Volume, label: Volume, rng: np.random.Generator, *, centred: bool) -> Pair:
    """A window of half the sides.

    Args:
        centred: with the structures in its middle, as far as the image reaches; else with them in a corner, no closer
            than two pixels to the edge if it fits.
    """
    starts = [_start(label.data, axis, centred) for axis in (0, 1)]
    window = tuple(slice(s, s + _half(n)) for s, n in zip(starts, label.data.shape[:2], strict=True))
    place = _scaled((1, 1, 1), (*starts, 0))
    return _moved(image, image.data[window], place), _moved(label, label.data[window], place)


def _half(size: int) -> int:
    return math.ceil(size / 2)


def _start(label: NDArray, axis: int, centred: bool, margin: int = 2) -> int:
    size = label.shape[axis]
    filled = np.flatnonzero((label > 0).any(axis=tuple(a for a in range(3) if a != axis)))
    first, last = (int(filled[0]), int(filled[-1])) if filled.size else (0, size - 1)
    start = (first + last + 1 - _half(size)) // 2 if centred else first - margin
    return min(max(start, 0), size - _half(size))


SHIFTS: Mapping[str, Shift] = {
    "none": lambda image, label, rng: (image, label),
    "half resolution": half_resolution,
    "double resolution": double_resolution,
    "every second slice": every_second_slice,
    "intensity 3x + 200": partial(rescaled, gain=3.0, offset=200.0),
    "gamma 0.5": partial(gamma, exponent=0.5),
    "gamma 2": partial(gamma, exponent=2.0),
    "quarter turn": quarter_turn,
    "half field, centred": partial(half_field, centred=True),
    "half field, in a corner": partial(half_field, centred=False),
    "Rician noise 5 %": partial(rician_noise, fraction=0.05),
    "Rician noise 10 %": partial(rician_noise, fraction=0.10),
}
"""By name, in the order of tables. Noise is given in percent of the image's 99th percentile."""
