"""The size of a voxel: what a user may say of it, what is plausible, and when two sizes agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cgdpm_med.files import InputError

Spacing = Literal["auto", "pixdim", "affine"] | Sequence[float]

CONFLICT_TOLERANCE = 0.01
"""Relative difference above which two lengths of one voxel are called in conflict."""

GIVE_SPACING = "Give the voxel size in mm, such as --spacing 1.5,1.5,8 (spacing= in Python)"

_PLAUSIBLE = (1e-4, 200.0)  # mm: finer than microscopy, coarser than any scanner's slice distance


def parse_spacing(text: str | None) -> Spacing:
    """The value of ``--spacing``: "pixdim", "affine", or three numbers in mm such as "1.5,1.5,8"; None is "auto".

    Raises:
        InputError: for anything else.
    """
    if text is None or text == "auto":
        return "auto"
    if text == "pixdim":
        return "pixdim"
    if text == "affine":
        return "affine"
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise _unknown_spacing(text) from error
    check_spacing(numbers)
    return numbers


def check_spacing(spacing: Spacing) -> None:
    """Refuse what is no spacing, before any file is read.

    Raises:
        InputError: for other words, or other than three plausible numbers of mm.
    """
    if isinstance(spacing, str):
        if spacing not in ("auto", "pixdim", "affine"):
            raise _unknown_spacing(spacing)
        return
    try:
        numbers = np.array(spacing, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise _unknown_spacing(spacing) from error
    if numbers.shape != (3,):
        raise InputError(f"spacing {spacing} is not three numbers", remedy="Give x, y and z in mm, such as 1.5,1.5,8")
    if not plausible(numbers):
        what = f"a spacing of {in_mm(numbers)} is implausible"
        raise InputError(what, remedy="Give x, y and z in mm, such as 1.5,1.5,8")


def _unknown_spacing(given: object) -> InputError:
    return InputError(
        f"spacing {given!r} is unknown", remedy="Give three numbers in mm, such as 1.5,1.5,8, or pixdim, or affine"
    )


def agree(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    """Whether all lengths are the same within :data:`CONFLICT_TOLERANCE`."""
    return bool(np.allclose(a, b, rtol=CONFLICT_TOLERANCE, atol=0))


def plausible(spacing: NDArray[np.float64]) -> bool:
    """Whether every length in mm is one that a scanner or microscope may have."""
    low, high = _PLAUSIBLE
    return bool(((spacing >= low) & (spacing <= high)).all())


def in_mm(spacing: Sequence[float] | NDArray[np.float64]) -> str:
    """Such as "1.5 x 1.5 x 8 mm"."""
    return " x ".join(f"{size:.5g}" for size in spacing) + " mm"
