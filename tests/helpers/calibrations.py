"""A calibration, and the settings of the ensembles it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cgdpm_med.evaluation.calibration_file import Calibration
from cgdpm_med.heart.function import MEASURES
from cgdpm_med.models.weights import sha256_of

MADE = {
    "members": 5,
    "steps": 4,
    "method": "ddim",
    "eta": 0.0,
    "start": None,
    "timesteps": None,
    "guidance_scale": 0.0,
    "guidance_interval": None,
    "combine": "mean",
    "one_body": False,
    "noise_scale": 1.0,
    "shared_noise": True,
    "shared_first_step": False,
    "staple": False,
    "keep_largest": False,
}


def example(weights: Path, **changes: Any) -> Calibration:
    ones, tenths = dict.fromkeys(MEASURES, 2.0), dict.fromkeys(MEASURES, 0.5)
    about: dict[str, Any] = {"weights": {"model.pt": sha256_of(weights)}, "settings": MADE, "data": {}, "numbers": {}}
    return Calibration(temperature=1.5, level=0.9, widening=ones, margin=tenths, **{**about, **changes})
