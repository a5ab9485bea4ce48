"""The page of a folder of segmented images: a table of all, pictures of those of most doubt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cgdpm_med.apps.segment_slices import Mask
from cgdpm_med.datasets.loading import Loaded
from cgdpm_med.images.case_pictures import contoured, data_address, doubtful, shown
from cgdpm_med.inference.labels import Labels
from cgdpm_med.report.rendering import render_page, write_report
from cgdpm_med.studies.outputs import provenance

MOST_PICTURES = 24


class Shown(NamedTuple):
    """One image on the page: its doubt, its name, the slice (from 1), and two pictures as data addresses."""

    doubt: float
    key: str
    slice: int
    contours: str
    uncertainty: str


class SlicePage:
    """Takes images in turn, and keeps pictures of the :data:`MOST_PICTURES` of most doubt."""

    def __init__(self, labels: Labels) -> None:
        self.labels, self.pictures = labels, list[Shown]()

    def add(self, key: str, doubt: float, loaded: Loaded, mask: Mask) -> None:
        """One image; of a volume the slice with the most marked pixels is shown."""
        if len(self.pictures) == MOST_PICTURES and doubt <= self.pictures[-1].doubt:
            return
        view = loaded.view.apply
        marked = view(mask.mask)
        z = int(np.argmax((marked > 0).sum(axis=(0, 1)))) if marked.any() else marked.shape[2] // 2
        turn = loaded.grid is not None  # a volume's first axis runs to the right, its second upwards

        def plane(array: Any) -> Any:
            flat = array[..., z]
            return np.flip(np.swapaxes(flat, -1, -2), -2) if turn else flat

        drawn = contoured(shown(plane(loaded.image)), plane(marked), dict(enumerate(self.labels.colours, start=1)))
        picture = Shown(doubt, key, z + 1, data_address(drawn), data_address(doubtful(plane(view(mask.entropy)))))
        self.pictures = sorted([*self.pictures, picture], key=lambda each: -each.doubt)[:MOST_PICTURES]

    def write(self, record: Mapping[str, Any], path: Path) -> Path:
        """The page, from what ``segment`` records."""
        origin = replace(provenance(record["settings"]), weights=record["weights"])
        html = render_page(
            "slices.html.j2",
            title="Segmentation",
            task_stylesheet="",
            cases=len(record["cases"]),
            failed=record["failed"],
            calibrated=record["temperature"] is not None,
            structures=list(zip(self.labels.colours, self.labels.names, strict=True)),
            head=_head(record),
            rows=[_row(case) for case in sorted(record["cases"], key=lambda case: -case["doubt"])],
            pictures=self.pictures,
            origin=origin,
        )
        return write_report(html, path)


def _head(record: Mapping[str, Any]) -> list[str]:
    first = record["cases"][0]
    unit, names = ("ml", first["volume_ml"]) if "volume_ml" in first else ("pixels", first["pixels"])
    return ["Image", "Doubt", *(f"{name}, {unit}" for name in names), *(f"{n}, expected Dice" for n in names)]


def _row(case: Mapping[str, Any]) -> list[str]:
    sizes = case.get("volume_ml") or case.get("pixels") or {}
    expected = [f"{case['expected_dice'][n]:.3f}" if n in case["expected_dice"] else "" for n in sizes]
    return [case["case"], f"{case['doubt']:.3f}", *(f"{value:g}" for value in sizes.values()), *expected]
