"""What the page of a study and the page of a cohort have in common: their titles, and the numbers that stand out."""

from __future__ import annotations

from cgdpm_med.inference.labels import Labels

HEADLINES = ("lv_ef", "lv_edv", "lv_esv", "rv_ef", "myo_mass")
"""The measures of cardiac function that a reader looks for first."""


def subject(labels: Labels) -> str:
    """What a page is about, at the beginning of a sentence."""
    return "Cardiac MRI segmentation" if labels.cardiac else "Segmentation"


def page_title(name: str, labels: Labels) -> str:
    """The title of a page in the browser."""
    return f"{name}: {'cardiac segmentation' if labels.cardiac else 'segmentation'}"
