"""References drawn in a few slices of a stack: whatever a prediction has in the others counts against it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgdpm_med.files import listed
from cgdpm_med.volumes import Grid, view_of

FEW = 0.5
"""Drawn slices by predicted ones, below which a word is due; experts who stop a slice early at both ends are above."""


def labelled_slices(mask: NDArray[Any], grid: Grid) -> int:
    """Number of slices that hold a label in a mask (X, Y, Z) on this grid."""
    return int(np.count_nonzero(view_of(grid).apply(mask).any(axis=(0, 1))))


def few_drawn(slices: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """The cases whose reference is drawn in few of the slices that the prediction fills.

    Args:
        slices: drawn and predicted, by key of the case.
    """
    return {key: (drawn, predicted) for key, (drawn, predicted) in slices.items() if 0 < drawn < FEW * predicted}


def few_drawn_lines(few: Mapping[str, tuple[int, int]]) -> list[str]:
    """A note on them, if there are any."""
    if not few:
        return []
    keys = listed((f"{key}: {drawn} of {predicted} slices" for key, (drawn, predicted) in few.items()), most=5)
    what = "a reference is drawn in fewer than half of the slices in which its prediction has labels"
    return [f"note: {what} ({keys}): labels in the other slices count as wrong. If they were not to be drawn, cut both"]
