"""Segmentations without a network: ensembles made from given members, as the segmenter would hand them over."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgdpm_med.inference.segmenter import Segmentation
from cgdpm_med.volumes import Volume


def segmentation_of(members: NDArray[Any], volume: Volume, key: str = "case") -> Segmentation:
    """Votes of the members (K, X, Y, Z) as probabilities; the mask is the majority, the smallest label of equals."""
    votes = np.stack([(members == label).mean(axis=0) for label in range(4)]).astype(np.float32)
    logs = np.log(votes, out=np.zeros_like(votes), where=votes > 0)
    return Segmentation(
        key=key,
        mask=votes.argmax(axis=0).astype(np.uint8),
        probabilities=votes,
        entropy=(-(votes * logs).sum(axis=0) / np.log(4)).astype(np.float32),
        disagreement=1 - votes.max(axis=0),
        members=members.astype(np.uint8),
        volume=volume,
    )


def wobbly(labels: NDArray[np.uint8], members: int = 5) -> NDArray[np.uint8]:
    """Members (K, X, Y, Z): the labels shifted by up to a voxel along the first two axes, the first one not at all."""
    shifts = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
    return np.stack([np.roll(labels, shifts[k % 5], axis=(0, 1)) for k in range(members)])
