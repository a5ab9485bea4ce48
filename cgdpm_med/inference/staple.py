"""STAPLE: the members of an ensemble as raters, each weighted by how well it agrees with the estimated truth.

The algorithm is ITK's multi-label form of Warfield, Zou and Wells, "Simultaneous truth and performance level
estimation (STAPLE): an algorithm for the validation of image segmentation" (IEEE TMI 2004), as described by Rohlfing,
Russakoff and Maurer, "Performance-based classifier combination in atlas-based image segmentation using
expectation-maximization parameter estimation" (IEEE TMI 2004), run through SimpleITK.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cgdpm_med.files import InputError
from cgdpm_med.inference.components import one_body
from cgdpm_med.inference.segmenter import Segmentation

MAX_ITERATIONS = 200
"""Ensembles of one volume settle within some tens; masks without anything in common may take hours without a limit."""

_UNDECIDED = 255


@dataclass(frozen=True, eq=False)
class StapleResult:
    """What STAPLE found.

    Attributes:
        mask: (*S) uint8.
        confusion: (K, C, C); row d, column t is the chance that member k says d where the truth is t. Columns of
            labels that the estimated truth does not hold are zero.
        undecided: how many voxels had several equally likely labels; they took the label of most members, the
            smallest of equals.
    """

    mask: NDArray[np.uint8]
    confusion: NDArray[np.float64]
    undecided: int


def staple(members: ArrayLike, *, max_iterations: int = MAX_ITERATIONS) -> StapleResult:
    """Combine label maps by multi-label STAPLE, priors estimated from the members.

    The priors, and so the result, depend on how much background surrounds the structures; all of the given array
    counts.

    Args:
        members: (K, X, Y) or (K, X, Y, Z), labels 0 to 254.
        max_iterations: of expectation maximisation.

    Raises:
        InputError: for no members, another number of axes, or labels out of range.
    """
    import SimpleITK as sitk

    array = np.asarray(members)
    if array.ndim not in (3, 4) or not array.size:
        raise InputError(f"members of shape {array.shape} cannot be combined", remedy="Give (K, X, Y, Z) with K >= 1")
    if array.min() < 0 or array.max() >= _UNDECIDED:
        raise InputError(f"labels run from {array.min()} to {array.max()}", remedy="Use labels from 0 to 254")
    array = np.ascontiguousarray(array, dtype=np.uint8)
    em = sitk.MultiLabelSTAPLEImageFilter()
    em.SetLabelForUndecidedPixels(_UNDECIDED)
    em.SetMaximumNumberOfIterations(max_iterations)
    mask = sitk.GetArrayFromImage(em.Execute([sitk.GetImageFromArray(member) for member in array]))
    classes = int(array.max()) + 1
    # ITK appends a row for a label that no member may use
    confusion = np.array([em.GetConfusionMatrix(k) for k in range(len(array))]).reshape(-1, classes + 1, classes)
    undecided = mask == _UNDECIDED
    mask[undecided] = _majority(array[:, undecided], classes)
    return StapleResult(mask, confusion[:, :classes], int(undecided.sum()))


def _majority(votes: NDArray[Any], classes: int) -> NDArray[np.uint8]:
    """(K, N) -> (N,): the most frequent label, the smallest of equals."""
    counts = np.stack([(votes == label).sum(axis=0) for label in range(classes)])
    return counts.argmax(axis=0).astype(np.uint8)


def combine_staple(segmentation: Segmentation) -> Segmentation:
    """The same segmentation with the mask that STAPLE makes of its members.

    Probabilities, entropy and disagreement still describe the members themselves. Where the members were reduced to one
    body, so is the mask, and what was left out before is still told.
    """
    mask = staple(segmentation.members).mask
    if segmentation.removed_voxels is None:
        return replace(segmentation, mask=mask)
    mask, removed = one_body(mask)
    before = segmentation.removed_voxels  # of the members, which are reduced already, STAPLE sees nothing of it
    told = {label: max(before.get(label, 0), removed.get(label, 0)) for label in sorted({*before, *removed})}
    return replace(segmentation, mask=mask, removed_voxels=told)
