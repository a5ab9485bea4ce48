"""Pieces of a mask: the largest connected component of a structure or of all together, and keeping that alone.

The labelling is scipy's. MONAI's ``get_largest_connected_component_mask`` needs scikit-image, and leaves open which of
two equal pieces it keeps.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage


def largest_component(structure: ArrayLike) -> NDArray[np.bool_]:
    """The largest piece of a boolean structure; of equal pieces the first in array order; nothing of an empty one.

    Voxels that touch at a face, edge or corner belong together: with thick slices a curved structure may meet itself
    in the next slice only at a corner.
    """
    inside = np.asarray(structure, dtype=bool)
    if not inside.any():
        return inside
    box = ndimage.find_objects(inside.astype(np.uint8))[0]  # the rest is empty, and most of a scan
    pieces, number = ndimage.label(inside[box], structure=ndimage.generate_binary_structure(inside.ndim, inside.ndim))
    if number < 2:
        return inside
    largest = np.zeros_like(inside)
    largest[box] = pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()
    return largest


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


def one_body(mask: NDArray[Any]) -> tuple[NDArray[Any], Mapping[int, int]]:
    """All labels together reduced to their largest piece, the rest made background.

    For structures that touch, as those of an organ do: one of them may lie in several pieces where others join these.
    A gap of one voxel along an axis parts nothing, nor does a lone slice that lacks the mask, where both its neighbours
    hold it at one place.

    Args:
        mask: (X, Y, Z) labels, 0 the background.

    Returns:
        The new mask, and by label how many voxels were removed (all labels that occur, zeros too).

    Example:
        >>> one_body(np.array([[[1, 2, 0, 2, 0, 0, 1]]]))
        (array([[[1, 2, 0, 2, 0, 0, 0]]]), {1: 1, 2: 0})
    """
    kept = mask.copy()
    found = ndimage.find_objects((mask > 0).astype(np.uint8))
    if not found:
        return kept, {}
    part = kept[found[0]]  # a view: the rest is empty
    inside = part > 0
    apart = inside & ~largest_component(_bridged(inside))
    removed = {int(label): int(np.count_nonzero(apart & (part == label))) for label in np.unique(part[inside])}
    part[apart] = 0
    return kept, removed


def _bridged(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """With every voxel that lies between two of ``inside`` along an axis."""
    bridged = inside.copy()
    for axis in range(inside.ndim):
        along, source = np.moveaxis(bridged, axis, 0), np.moveaxis(inside, axis, 0)
        along[1:-1] |= source[:-2] & source[2:]
    return bridged


class OneBodyd(MapTransform):
    """Label maps (K, X, Y, Z), each channel reduced to its :func:`one_body`.

    What that removes is counted by label in ``removed_voxels``, the first channel of the first key alone: the combined
    mask, before the members'. Probabilities and what is made of them stay: they still tell of what was removed.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            maps = torch.as_tensor(out[key])
            reduced = [one_body(labels) for labels in maps.cpu().numpy()]
            if key == self.first_key(out):
                out["removed_voxels"] = reduced[0][1]
            # a product keeps the metadata and the type
            out[key] = maps * torch.from_numpy(np.stack([kept > 0 for kept, _ in reduced])).to(maps.device)
        return out
