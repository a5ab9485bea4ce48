"""A real cine as published: read in the order of its trigger times, whatever form it comes in, and segmented well.

Skipped where the development data are absent.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import load_script, shared_path
from dicom_scans import as_multi_frame, save
from pydicom import dcmread

from cgdpm_med import Segmenter, Volume
from cgdpm_med.volumes.dicom.finding import DicomWarning, find_dicom, read_dicom
from cgdpm_med.volumes.dicom.stack import DicomStack


@pytest.fixture(scope="module")
def series() -> Path:
    return shared_path("data", "dicom_cine", "series")


@pytest.fixture(scope="module")
def stack(series: Path) -> DicomStack:
    (found,) = find_dicom(series)
    assert found.stack is not None
    return found.stack


@pytest.fixture(scope="module")
def volume(stack: DicomStack) -> Volume:
    return stack.read()


def assert_same(folder: Path, volume: Volume) -> None:
    """The one stack below a folder has the same voxels and grid, bit for bit."""
    other = read_dicom(folder)
    np.testing.assert_array_equal(other.data, volume.data)
    np.testing.assert_array_equal(other.grid.affine, volume.grid.affine)
    assert other.grid.header["pixdim"][4] == volume.grid.header["pixdim"][4]


def test_one_cine_in_the_order_of_its_trigger_times(stack: DicomStack) -> None:
    assert stack.shape == (256, 256, 10, 20)
    for of_slice in stack.images:
        triggers = [float(dcmread(image.path, stop_before_pixels=True).TriggerTime) for image in of_slice]
        assert triggers == sorted(triggers)
        assert len(set(triggers)) == 20
    assert stack.seconds == pytest.approx(0.046, abs=0.001)
    assert stack.notes == ()


@pytest.mark.slow
def test_the_masks_agree_with_the_experts(series: Path) -> None:
    segmenter = Segmenter.from_bundle("acdc_segmentation", device="cpu", members=1)
    scores = load_script("drawn_cine").compare(series, shared_path("data", "dicom_cine", "contours"), segmenter)
    assert {place: len(values) for place, values in scores.items()} == {("i", 7): 10, ("i", 20): 10, ("o", 20): 10}
    assert np.mean([*scores["i", 7], *scores["i", 20]]) >= 0.92
    assert np.mean(scores["o", 20]) >= 0.94


def test_file_names_do_not_matter(series: Path, volume: Volume, tmp_path: Path) -> None:
    files = sorted(series.iterdir())
    for n, k in enumerate(np.random.default_rng(0).permutation(len(files))):
        shutil.copy(files[k], tmp_path / (f"{n} scan.v1" if n % 2 else f"x{n}"))
    assert_same(tmp_path, volume)


@pytest.mark.parametrize(
    "tags",
    [
        {"EchoTime": 3.9, "ProtocolName": "tagging"},
        {"SeriesDescription": "again", "FlipAngle": 12},
        {"ScanningSequence": "SE"},
    ],
    ids=["echo", "flip", "sequence"],
)
def test_an_odd_series_is_left_out(series: Path, volume: Volume, tmp_path: Path, tags: dict[str, Any]) -> None:
    shutil.copytree(series, tmp_path, dirs_exist_ok=True)
    for n, path in enumerate(sorted(series.iterdir())[:20]):
        odd = dcmread(path)
        odd.SeriesInstanceUID, odd.SeriesNumber, odd.SOPInstanceUID = "1.2.3", 40, f"1.2.3.{n + 1}"
        for keyword, value in tags.items():
            setattr(odd, keyword, value)
        save(odd, tmp_path / "odd" / f"{n}.dcm")
    with pytest.warns(DicomWarning, match="series 40"):
        assert_same(tmp_path, volume)


@pytest.mark.parametrize("files", [1, 10], ids=["one file", "a file a slice"])
def test_the_same_as_multi_frame(stack: DicomStack, volume: Volume, tmp_path: Path, files: int) -> None:
    images = [[dcmread(image.path) for image in of_slice] for of_slice in stack.images]
    order = np.random.default_rng(1).permutation(20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the dates of this series are none
        for n in range(files):
            those = [images[k][t] for k in range(n, 10, files) for t in order]
            save(as_multi_frame(those, instance=n + 1), tmp_path / f"{n}.dcm")
    assert_same(tmp_path, volume)
