"""The two programs that measure intervals, on phantoms and without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPO, load_script
from monai.bundle import ConfigParser
from segmentations import segmentation_of
from stubs import Oracle, Stub

from cgdpm_med import read_labels, read_volume
from cgdpm_med.evaluation.function_scores import FrameTruth, known_studies
from cgdpm_med.evaluation.statistics_page import statistics_page
from cgdpm_med.inference.segmenter import Segmentation, Segmenter
from cgdpm_med.metrics.volumetry import FrameVolumes
from cgdpm_med.phantom import write_phantom_dataset
from cgdpm_med.volumes import Volume

SMALL: dict[str, Any] = {"shape": (64, 56, 4), "spacing": (2.8, 2.8, 22.0), "num_frames": 6}


class Smaller(Stub):
    """Sees every left ventricle without its last slice, in both members."""

    def __call__(self, volume: Volume, key: str, progress: object = None) -> Segmentation:
        self.seen.append(key)
        truth = read_labels(volume.path.with_name(volume.path.name.replace(".nii", "_gt.nii"))).data
        last = np.flatnonzero((truth == 3).any(axis=(0, 1)))[-1]
        truth[..., last][truth[..., last] == 3] = 0
        return segmentation_of(np.stack([truth] * 2), volume, key)


@pytest.fixture
def segmenter(monkeypatch: pytest.MonkeyPatch) -> Smaller:
    stub = Smaller(members=2)
    monkeypatch.setattr(Segmenter, "from_bundle", lambda *bundle, **settings: stub)
    return stub


def test_a_cohort_is_compared_with_its_truth_and_resumed(
    segmenter: Smaller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_phantom_dataset(tmp_path / "data", patients=[901, 902, 903], **SMALL)  # one in each section
    script = load_script("cohort_acdc")
    monkeypatch.setattr("sys.argv", ["cohort", str(tmp_path / "data"), str(tmp_path / "out"), "--device", "cpu"])
    script.main()
    assert segmenter.seen == ["patient902_frame01", "patient902_frame03"]
    script.main()
    assert len(segmenter.seen) == 2
    result = json.loads((tmp_path / "out" / "statistics.json").read_text())
    counts = {
        frame: read_labels(tmp_path / "data" / "patient902" / f"patient902_frame{frame}_gt.nii.gz")
        for frame in ("01", "03")
    }
    lost = {}
    for frame, labels in counts.items():
        by_slice = np.count_nonzero(labels.data == 3, axis=(0, 1))
        lost[frame] = float(by_slice[np.flatnonzero(by_slice)[-1]] * labels.grid.voxel_volume / 1000)
    assert result["function"]["patients"] == 1
    assert result["function"]["measures"]["lv_edv"]["error_mean"] == pytest.approx(-lost["01"])
    assert result["function"]["measures"]["lv_esv"]["error_mean"] == pytest.approx(-lost["03"])
    assert result["function"]["measures"]["lv_edv"]["coverage"] == 0.0
    assert result["function"]["calibrated"] is None
    assert result["structures"]["RV"]["dice"] == 1.0
    page = (tmp_path / "out" / "statistics.md").read_text()
    assert "- data: 2 volumes of the ACDC section validation" in page
    assert f"| LV end-diastolic volume | {-lost['01']:.1f} ± – ml | – | 0 % | 0.0 |" in page
    assert "| expected calibration error |" in page


def test_phantoms_are_their_numbers_and_seeds() -> None:
    by_seed = load_script("phantom_coverage").numbers_by_seed(120)
    assert {seed: (len(n), n[0]) for seed, n in by_seed.items()} == {1000: (50, 901), 1001: (50, 901), 1002: (20, 901)}


def test_coverage_of_phantoms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Segmenter, "from_bundle", lambda *bundle, **settings: Oracle(members=2))
    script = load_script("phantom_coverage")
    monkeypatch.setattr(script, "SIDE", 56)
    monkeypatch.setattr(script, "PIXEL", 3.0)
    monkeypatch.setattr("sys.argv", ["coverage", str(tmp_path), "--count", "2", "--device", "cpu"])
    script.main()
    result = json.loads((tmp_path / "statistics.json").read_text())
    assert result["function"]["patients"] == 2
    assert result["function"]["measures"]["rv_edv"]["error_absolute"] == 0
    assert result["function"]["measures"]["rv_edv"]["coverage"] == 1
    assert result["halves"] is None


def test_each_half_is_judged_by_the_other() -> None:
    """Cavities seen 1 ml too small in one half and 4 ml in the other: factors of 4 / 5 and 1 / 5 change sides."""

    def volumes(ed: float, members: int = 0) -> FrameVolumes:
        row = np.array([0.0, 100.0, 80.0, ed])
        return FrameVolumes(row, np.tile(row, (members, 1)))

    studies = []
    for i in range(20):
        error = 1.0 if i // 5 % 2 == 0 else 4.0
        frames = [FrameTruth(f"{i}", p, volumes(v - error, 2), volumes(v)) for p, v in (("ED", 120.0), ("ES", 60.0))]
        studies += known_studies(frames)
    found = load_script("phantom_coverage").cross_calibrated(studies)
    assert [f.widening["lv_edv"] for f in found] == pytest.approx([0.8 if i // 5 % 2 == 0 else 0.2 for i in range(20)])
    assert found[0].measures["lv_edv"].width == pytest.approx(8.0)


def test_a_page_of_function_alone() -> None:
    page = statistics_page(
        "Title", {"seed": 3}, {"function": None, "quality": {"studies": 2, "review": 0, "reasons": {}}}
    )
    assert page == "# Title\n\n- seed: 3\n\n## Checks\n\n0 of 2 studies go to review.\n"


def test_a_packed_dataset_trains_on_the_same_pixels(tmp_path: Path) -> None:
    """At the bundle's own spacing nothing is resampled: cropped and in 8 bits the network sees the same, to a 255th."""
    script = load_script("pack_acdc")
    spec: dict[str, Any] = {"shape": (203, 208, 3), "spacing": (1.25, 1.25, 25.0), "num_frames": 6}
    write_phantom_dataset(tmp_path / "data", patients=[2], **spec)
    words = ["--dataset-dir", str(tmp_path / "data"), "--output", str(tmp_path / "pack"), "--sections", "train"]
    options = script.parse_arguments(words)
    items = script.acdc_datalist(options.dataset_dir, "train")
    for item in items:
        script.pack(item, options.dataset_dir, options.output, options.width)
    packed = script.acdc_datalist(options.output, "train")
    assert [item["key"] for item in packed] == [item["key"] for item in items]
    assert "Height" not in (tmp_path / "pack" / "patient002" / "Info.cfg").read_text()
    config = ConfigParser()
    config.read_config([REPO / "bundles/acdc_segmentation/configs/train.yaml"])
    whole = config.get_parsed_content("train#preprocessing")
    config = ConfigParser()
    config.read_config([REPO / "bundles/acdc_segmentation/configs/train.yaml", REPO / "configs/packed.yaml"])
    again = config.get_parsed_content("train#preprocessing")
    for before, after in zip(items, packed, strict=True):
        original, copy = read_volume(before["image"]), read_volume(after["image"])
        assert copy.grid.spatial_shape == (197, 198, 3)
        # the voxel of the crop's corner lies where it lay
        assert np.allclose(copy.grid.affine @ [0, 0, 0, 1], original.grid.affine @ [3, 5, 0, 1])
        a, b = whole(dict(before)), again(dict(after))
        assert np.array_equal(a["label"], b["label"])
        # the percentiles are of the same voxels; half a step of 8 bits is 1/255 of the range of two
        assert np.abs(a["image"] - b["image"]).max() <= 1 / 255 + 1e-6


def test_packing_never_replaces_the_originals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script("pack_acdc")
    with pytest.raises(SystemExit):
        script.parse_arguments(["--dataset-dir", str(tmp_path), "--output", str(tmp_path / "a" / "..")])
    assert "another folder" in capsys.readouterr().err
