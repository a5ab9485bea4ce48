"""A segmenter that needs a calibration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from segmentations import segmentation_of, wobbly
from stubs import Stub

from cgdpm_med import read_labels
from cgdpm_med.inference.segmenter import Segmentation
from cgdpm_med.volumes import Volume


class Overconfident(Stub):
    """Sees the truth shifted: members by up to a voxel, and all of them by one more for every third case.

    The probabilities are the members' votes with some doubt everywhere, sharpened by squaring.

    Args:
        folder: gets a file of weights.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(members=5, steps=4)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.pt").write_bytes(b"weights")
        self.weights = (folder / "model.pt",)

    def __call__(self, volume: Volume, key: str, progress: Callable[[float], None] | None = None) -> Segmentation:
        truth = read_labels(volume.path.with_name(volume.path.name.replace(".nii", "_gt.nii"))).data
        shift = 2 if int(key[7:10]) % 3 == 0 else 1
        members = wobbly(np.roll(truth, shift, axis=0))
        members[members == 3] = np.where(np.arange(np.count_nonzero(members == 3)) % 9, 3, 2)  # too small a cavity
        found = segmentation_of(members, volume, key)
        doubt = np.random.default_rng(int(key[7:10])).uniform(0.02, 0.04, found.probabilities.shape)
        votes = (found.probabilities + doubt) ** 2
        probabilities = (votes / votes.sum(axis=0)).astype(np.float32)
        entropy = -(probabilities * np.log(probabilities)).sum(axis=0) / np.log(4)
        mask = probabilities.argmax(axis=0).astype(np.uint8)
        return replace(found, mask=mask, probabilities=probabilities, entropy=entropy.astype(np.float32))
