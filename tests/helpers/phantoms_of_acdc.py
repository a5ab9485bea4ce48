"""Tiny phantoms that take the places of ACDC patients in the committed split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cgdpm_med import write_phantom_dataset

TRAIN, VALIDATION, TEST = 2, 1, 11  # phantoms that bear the number of an ACDC patient take its place in the split
TINY: dict[str, Any] = {"shape": (64, 56, 4), "spacing": (2.8, 2.8, 22.0), "num_frames": 6}


def write_phantoms(folder: Path) -> Path:
    """One patient of each section."""
    write_phantom_dataset(folder, patients=[TRAIN, VALIDATION, TEST], seed=1, **TINY)
    return folder
