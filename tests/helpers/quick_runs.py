"""Runs of ``cgdpm-med train`` that are done in seconds, and what they are trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from data_sets import picture

from cgdpm_med.apps.train import Wishes

SETTINGS = ("batch_size=2", "epoch=1", "widths=32,32", "validate_every=2")
WISHES = Wishes(iterations=10, settings=(*SETTINGS, "epoch=5"), patients="^([^_]+)", guidance=True)
"""Of a run with all stages."""


def blobs(folder: Path, patients: int = 6, name: str = "spot") -> Path:
    """Two pictures of every patient, ``a0_0.png``; a bright square is class 1, drawn as 255."""
    rng = np.random.default_rng(0)
    for n in range(2 * patients):
        mask = np.zeros((16, 16))
        x, y = rng.integers(2, 8, 2)
        mask[x : x + 6, y : y + 6] = 255
        key = f"a{n // 2}_{n % 2}.png"
        picture(folder / "images" / key, (60 + mask / 2 + rng.normal(0, 8, mask.shape)).clip(0, 255))
        picture(folder / "masks" / key, mask)
    (folder / "labels.json").write_text(json.dumps({"background": 0, name: 255}))
    return folder
