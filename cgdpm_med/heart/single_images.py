"""Columns of a cohort's table for a study of one image: its volumes, whatever phase it shows."""

from __future__ import annotations

from cgdpm_med.heart.function import MYOCARDIAL_DENSITY
from cgdpm_med.heart.structures import LV, MYO, RV
from cgdpm_med.metrics.volumetry import FrameVolumes, interval_estimate

_COLUMNS = {"lv_ml": (LV, 1.0), "rv_ml": (RV, 1.0), "myo_g": (MYO, MYOCARDIAL_DENSITY)}
"""The label of each column, and what a millilitre of it counts."""


def single_image_columns(volumes: FrameVolumes | None, level: float = 0.9) -> dict[str, str]:
    """Volumes in ml and mass in g, each with the ends of its interval (``…_lower``, ``…_upper``), as text.

    Args:
        volumes: of the image; None leaves every column empty, as it is for studies of several frames.
        level: of the intervals, which are the members' own spread: a calibration is of ED and ES.
    """
    columns: dict[str, str] = {}
    for name, (label, factor) in _COLUMNS.items():
        numbers: tuple[float | None, ...] = (None, None, None)
        if volumes is not None and label < len(volumes.combined):
            members = factor * volumes.members[:, label]
            estimate = interval_estimate(factor * float(volumes.combined[label]), members, level=level, floor=0.0)
            numbers = (estimate.value, estimate.lower, estimate.upper)
        for ending, number in zip(("", "_lower", "_upper"), numbers, strict=True):
            columns[name + ending] = "" if number is None else f"{number:.3f}"
    return columns
