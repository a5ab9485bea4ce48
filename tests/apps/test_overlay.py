"""The overlay: which slices and which part of them are shown, and in which colours."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib import colors, image
from segmentations import segmentation_of

from cgdpm_med import InputError, draw_overlay, read_volume
from cgdpm_med.inference.labels import COLOURS
from cgdpm_med.inference.segmenter import Segmentation
from cgdpm_med.report.overlay import default_slices


@pytest.fixture
def heart(tmp_path: Path) -> Segmentation:
    """A dark volume of unequal axes with a square left ventricle in slices 1 to 5."""
    labels = np.zeros((40, 30, 8), np.uint8)
    labels[20:28, 10:16, 1:6] = 3
    voxels = labels.astype(np.float32)
    voxels[0, 0, 0] = 5
    nib.Nifti1Image(voxels, np.diag([1.0, 2.0, 8.0, 1])).to_filename(tmp_path / "scan.nii.gz")
    return segmentation_of(labels[None], read_volume(tmp_path / "scan.nii.gz"), "scan")


@pytest.mark.parametrize(
    ("filled", "expected"),
    [((2, 3), [2, 3]), ((4,), [4]), ((), [5]), ((0, 1, 2, 3, 4, 5, 6, 7, 8), [2, 4, 6]), ((3, 9), [4, 6, 8])],
)
def test_slices_are_spread_over_the_structures(filled: tuple[int, ...], expected: list[int]) -> None:
    labelled = np.zeros((3, 2, 10), bool)
    labelled[1, 1, list(filled)] = True
    assert default_slices(labelled) == expected


def pixels_of(path: Path, colour: str) -> int:
    wanted = np.array(colors.to_rgb(colour))
    return int((np.abs(image.imread(path)[..., :3] - wanted).max(axis=-1) < 0.02).sum())


def test_contours_have_the_structures_colours(heart: Segmentation, tmp_path: Path) -> None:
    path = draw_overlay(heart, tmp_path / "overlay.png", slices=[3])
    legend = pixels_of(draw_overlay(heart, tmp_path / "empty.png", slices=[7]), COLOURS[3])
    assert pixels_of(path, COLOURS[3]) > legend + 200
    assert pixels_of(path, COLOURS[1]) == pixels_of(tmp_path / "empty.png", COLOURS[1])


def test_the_picture_shows_the_heart_in_true_proportions(heart: Segmentation, tmp_path: Path) -> None:
    """The window is the heart and a margin: 8 + 36 mm wide, 12 + 36 mm high."""
    path = draw_overlay(heart, tmp_path / "overlay.png", slices=[3])
    picture = image.imread(path)[..., :3]
    red = np.argwhere(np.abs(picture - np.array(colors.to_rgb(COLOURS[3]))).max(axis=-1) < 0.02)
    red = red[red[:, 0] < picture.shape[0] * 0.85]  # above the legend
    height, width = np.ptp(red, axis=0)
    assert height / width == pytest.approx(12 / 8, rel=0.05)


def test_what_cannot_be_drawn(heart: Segmentation, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the reference has shape"):
        draw_overlay(heart, tmp_path / "x.png", reference=np.zeros((40, 30, 7), np.uint8))
    with pytest.raises(InputError, match="slices"):
        draw_overlay(heart, tmp_path / "x.png", slices=[8])
    assert not (tmp_path / "x.png").exists()
