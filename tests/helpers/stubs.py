"""Stand-ins for the network: segmenters that answer at once and whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from segmentations import segmentation_of

from cgdpm_med import Sampling, Volume, read_labels
from cgdpm_med.inference.labels import DEFAULT_LABELS
from cgdpm_med.inference.segmenter import Segmentation

if TYPE_CHECKING:
    Standing: TypeAlias = Any  # taken wherever a Segmenter is asked for
else:
    Standing = object


class Stub(Standing):
    """What a run records of a segmenter: its settings, its device, and the calls of its keys.

    Args:
        settings: of the sampling, for the record.
    """

    channel_names = DEFAULT_LABELS.names

    def __init__(self, **settings: object) -> None:
        how = {name: settings.pop(name) for name in ("precision", "guide") if name in settings}
        sampling = replace(Sampling(members=1, steps=1), **settings)  # type: ignore[arg-type]
        self.predictor: Any = SimpleNamespace(**({"sampling": sampling, "precision": "float32", "guide": None} | how))
        self.device = torch.device("cpu")
        self.weights: tuple[Path, ...] = ()
        self.labels = DEFAULT_LABELS
        self.combine, self.one_body = "mean", False
        self.seen: list[str] = []


class Thresholder(Stub):
    """Calls the brighter half of a volume left ventricle."""

    def __call__(self, volume: Volume, key: str, progress: Callable[[float], None] | None = None) -> Segmentation:
        self.seen.append(key)
        if progress is not None:
            progress(0.5)
        labels = 3 * (volume.data > np.median(volume.data)).astype(np.uint8)
        return segmentation_of(labels[None], volume, key)


class Oracle(Stub):
    """Reads the reference beside the image; member k lacks the k last slices with a left ventricle."""

    def __init__(self, members: int = 3) -> None:
        super().__init__(members=members)
        self.members = members

    def __call__(self, volume: Volume, key: str, progress: Callable[[float], None] | None = None) -> Segmentation:
        truth = read_labels(volume.path.with_name(volume.path.name.replace(".nii", "_gt.nii"))).data
        filled = np.flatnonzero((truth == 3).any(axis=(0, 1)))
        members = np.stack([truth] * self.members)
        for k in range(1, self.members):
            members[k][..., filled[-k:]] = 0
        return segmentation_of(members, volume, key)
