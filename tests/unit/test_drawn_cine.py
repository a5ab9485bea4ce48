"""Masks of a cine compared with drawn outlines, on a scan and outlines that are known."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import load_script
from dicom_scans import Scan
from segmentations import segmentation_of

from cgdpm_med import InputError, Volume


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("drawn_cine")


def bright(volume: Volume, key: str) -> Any:
    """What the scans make bright is the cavity, and the column beside it myocardium."""
    labels = 3 * (volume.data > 1000).astype(np.uint8)
    labels[1][labels[2] == 3] = 2
    return segmentation_of(labels[None], volume, key)


def draw(folder: Path, instance: int, kind: str, corners: list[tuple[float, float]]) -> None:
    folder.mkdir(exist_ok=True)
    np.savetxt(folder / f"IM-0001-{instance:04d}-{kind}contour-manual.txt", np.array(corners), fmt="%.2f")


def test_pixels_whose_centre_lies_inside(script: ModuleType) -> None:
    square = np.array([(0.5, 0.5), (2.5, 0.5), (2.5, 1.5), (0.5, 1.5)])
    assert script.filled(square, (4, 3)).astype(int).tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_every_outline_meets_the_mask_of_its_slice_and_phase(script: ModuleType, tmp_path: Path) -> None:
    """The bright block has columns 2 and 3 in phases 1 and 3 and one more in phase 2, rows 1 to 3, slices 2 and 3."""
    scan = Scan(phases=3)
    drawn = tmp_path / "drawn"
    two = [(1.5, 0.5), (3.5, 0.5), (3.5, 3.5), (1.5, 3.5)]
    draw(drawn, 1 + 1 * 3 + 0, "i", two)  # instance of slice 2, phase 1
    draw(drawn, 1 + 2 * 3 + 1, "i", two)  # slice 3, phase 2: two of three columns
    draw(drawn, 1 + 1 * 3 + 0, "o", [(0.5, 0.5), (3.5, 0.5), (3.5, 3.5), (0.5, 3.5)])
    (drawn / "notes.txt").write_text("of a reader")
    scores = script.compare(scan.write(tmp_path / "scan"), drawn, bright)
    assert scores == {("i", 1): [1.0], ("i", 2): [pytest.approx(2 * 6 / (6 + 9))], ("o", 1): [1.0]}


def test_an_outline_of_another_series_is_refused(script: ModuleType, tmp_path: Path) -> None:
    draw(tmp_path / "drawn", 99, "i", [(1, 1), (2, 1), (2, 2)])
    with pytest.raises(InputError, match="no image of InstanceNumber 99"):
        script.compare(Scan(phases=1).write(tmp_path / "scan"), tmp_path / "drawn", bright)
