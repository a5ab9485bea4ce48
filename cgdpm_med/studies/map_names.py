"""Names of the files that a segmentation of an image leaves."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from cgdpm_med.volumes.formats import volume_stem

OUTPUTS = ("mask", "probabilities", "entropy", "disagreement", "members")
"""What a segmentation can write; the mask is ``<case>.nii.gz``, everything else ``<case>_<output>.nii.gz``."""


def is_map(path: Path, masks: Collection[tuple[Path, str]]) -> bool:
    """Whether a file is called like a map of one of the masks, or of one frame of a cine's.

    Args:
        masks: folder and name without suffix of each.
    """
    name, _, output = volume_stem(path).rpartition("_")
    cine = re.sub(r"_frame\d{3,}$", "", name) if output in ("probabilities", "members") else name
    return output in OUTPUTS and any((path.parent, mask) in masks for mask in (name, cine))
