"""Pieces of a structure: its largest connected component, and keeping that alone on request.

The labelling is scipy's. MONAI's ``get_largest_connected_component_mask`` needs scikit-image, and leaves open which of
two equal pieces it keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage


def largest_component(structure: ArrayLike) -> NDArray[np.bool_]:
    """The largest piece of a boolean structure; of equal pieces the first in array order; nothing of an empty one.

    Voxels that touch at a face, edge or corner belong together: with thick slices a curved structure may meet itself
    in the next slice only at a corner.
    """
    inside = np.asarray(structure, dtype=bool)
    pieces, number = ndimage.label(inside, structure=ndimage.generate_binary_structure(inside.ndim, inside.ndim))
    if number < 2:
        return inside
    return pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()


def keep_largest(mask: NDArray[Any]) -> tuple[NDArray[Any], Mapping[int, int]]:
    """Every label reduced to its :func:`largest_component`, the rest made background.

    Args:
        mask: (X, Y, Z) labels, 0 the background.

    Returns:
        The new mask, and by label how many voxels were removed (all labels that occur, zeros too).
    """
    kept = mask.copy()
    removed: dict[int, int] = {}
    for label in (int(value) for value in np.unique(mask) if value):
        structure = mask == label
        apart = structure & ~largest_component(structure)
        kept[apart] = 0
        removed[label] = int(apart.sum())
    return kept, removed
