"""Structures in one piece: the largest connected component of each label, on request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def keep_largest(mask: NDArray[Any]) -> tuple[NDArray[Any], Mapping[int, int]]:
    """Every label reduced to its largest piece, the rest made background.

    Voxels that touch at a face, edge or corner belong together, as in
    :func:`~cgdpm_med.apps.quality.fragment_fraction`; of equal pieces the first in array order stays.

    Args:
        mask: (X, Y, Z) labels, 0 the background.

    Returns:
        The new mask, and by label how many voxels were removed (all labels that occur, zeros too).
    """
    kept = mask.copy()
    removed: dict[int, int] = {}
    for label in (int(value) for value in np.unique(mask) if value):
        pieces, _ = ndimage.label(mask == label, structure=np.ones((3,) * mask.ndim))
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        apart = (pieces > 0) & (pieces != sizes.argmax())
        kept[apart] = 0
        removed[label] = int(apart.sum())
    return kept, removed
