"""Places of slices along the normal: whether they are evenly spaced, and which of them make one stack."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from cgdpm_med.volumes.dicom.headers import DicomImage

EVEN = 0.05
"""Largest difference between gaps of slices, relative to the smallest."""

SIDEWAYS = 0.1
"""Largest distance of an image from its place in the stack within its own plane, in pixels."""


def lattices(along: NDArray[np.float64], *, shifted: bool = False) -> list[list[int]]:
    """Indices of places, in order, apart into evenly spaced stacks; all together where that explains nothing.

    Args:
        along: (n,) places along the normal in mm, in order.
        shifted: whether every other place is known to be of another stack.
    """
    everything = list(range(len(along)))
    if shifted:
        return [everything[::2], everything[1::2]]
    if len(along) < 4 or _is_even(along):
        return [everything]
    best: list[list[int]] = [everything]
    for gap in sorted({round(float(b - a), 6) for n, a in enumerate(along) for b in along[n + 1 :]}):
        parts = _cosets(along, gap)
        if _explains(along, parts, gap) and (len(best) == 1 or len(parts) < len(best)):
            best = parts
    return best


def _is_even(along: NDArray[np.float64]) -> bool:
    gaps = np.diff(along)
    return bool((np.abs(gaps - gaps.min()) <= EVEN * gaps.min()).all())


def _cosets(along: NDArray[np.float64], gap: float) -> list[list[int]]:
    """Places that lie whole numbers of gaps apart."""
    parts: list[list[int]] = []
    for k, place in enumerate(along):
        for part in parts:
            steps = (place - along[part[-1]]) / gap
            if abs(steps - np.rint(steps)) <= EVEN:
                part.append(k)
                break
        else:
            parts.append([k])
    return parts


def _explains(along: NDArray[np.float64], parts: Sequence[Sequence[int]], gap: float) -> bool:
    """Whether the parts are stacks without missing slices, and few places are left alone."""
    if any((np.abs(np.diff(along[part]) - gap) > EVEN * gap).any() for part in map(list, parts)):
        return False
    stacked = sum(len(part) for part in parts if len(part) > 2)
    return 2 * stacked > len(along)


def in_blocks(first: Sequence[Hashable], second: Sequence[Hashable]) -> bool:
    """Whether all numbers of one kind come before all of the other; False where they are equal or unknown."""
    a = [number for number in first if isinstance(number, (int, float))]
    b = [number for number in second if isinstance(number, (int, float))]
    if len(a) < len(first) or len(b) < len(second):
        return False
    return max(a) < min(b) or max(b) < min(a)


def numbered_again(first: Sequence[Hashable], second: Sequence[Hashable]) -> bool:
    """Whether two kinds bear the same numbers, each once, as two series or stacks that were counted alike do."""
    a = {number for number in first if number is not None}
    b = {number for number in second if number is not None}
    return len(a) == len(first) > 1 and len(b) == len(second) > 1 and 2 * len(a & b) >= min(len(a), len(b))


def overlapping(slices: Sequence[Sequence[DicomImage]], gap: float) -> bool:
    """Whether slices lie so close that two stacks must have been shifted into each other.

    They do where the gap is smaller than a slice is thick, or half of what SpacingBetweenSlices says.
    """
    images = [image for of_slice in slices for image in of_slice]
    thick = [image.thickness for image in images if image.thickness is not None]
    stated = [image.between for image in images if image.between is not None]
    too_thick = bool(thick) and gap < 0.9 * float(np.median(thick))
    return too_thick or (bool(stated) and abs(float(np.median(stated)) - 2 * gap) < 0.1 * gap)
