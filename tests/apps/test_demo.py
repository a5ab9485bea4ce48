"""The demonstration, with a segmenter that knows the truth: its numbers are the phantom's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from segmentations import segmentation_of
from stubs import Oracle, Thresholder

from cgdpm_med import read_volume
from cgdpm_med.apps import demo
from cgdpm_med.apps.demo import run_demo
from cgdpm_med.inference.segmenter import Segmentation, Segmenter
from cgdpm_med.phantom import PhantomSpec, make_phantom, write_phantom_patient

TINY = PhantomSpec.small(seed=5)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(folder: Path, patients: list[int]) -> list[Path]:
        return [write_phantom_patient(folder, number, TINY) for number in patients]

    monkeypatch.setattr(demo, "write_phantom_dataset", write)
    monkeypatch.setattr(Segmenter, "from_bundle", lambda *bundle, **settings: Oracle(members=2))


@pytest.mark.usefixtures("tiny")
def test_the_truth_scores_as_the_truth(tmp_path: Path) -> None:
    said: list[str] = []
    result = run_demo(tmp_path, report=said.append)
    truth = make_phantom(TINY).truth
    assert result["dice"].keys() == {"ED", "ES"}
    left = result["left_ventricle"]
    assert left["EDV"]["true"] == pytest.approx(truth.edv_ml)
    assert left["ESV"]["true"] == pytest.approx(truth.esv_ml)
    assert left["EF"]["true"] == pytest.approx(truth.ef_percent)
    assert left["EDV"]["members"][1] == pytest.approx(truth.edv_ml)
    assert left["EDV"]["members"][0] < truth.edv_ml  # the second member lacks a slice
    assert result["dice"]["ED"]["RV"] > 0.9
    assert json.loads((tmp_path / "demo.json").read_text(encoding="utf-8")) == result
    for path in result["overlays"]:
        assert Path(path).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert path in said[-1]
    for name in ("patient004_frame01", "patient004_frame03"):
        assert (tmp_path / "segmentation" / "patient004" / f"{name}_entropy.nii.gz").is_file()
    assert f"{truth.ef_percent:.1f} %" in said[-1]


def test_members_are_measured_one_by_one(tmp_path: Path) -> None:
    """EF of member k comes from its own two masks: here 50 % and 80 %, whatever the combined masks give."""
    patient = write_phantom_patient(tmp_path, 4, TINY)
    volume = read_volume(patient / "patient004_frame01.nii.gz")
    ml = volume.grid.voxel_volume / 1000
    whole = Thresholder()(volume, "x")

    def members(*counts: int) -> Segmentation:
        labels = 0 * whole.members.repeat(len(counts), axis=0)
        for k, count in enumerate(counts):
            labels[k].reshape(-1)[:count] = 3
        return segmentation_of(labels, volume, "x")

    rows = demo.compare_volumes(members(100, 200), members(50, 40), 100 * ml, 45 * ml)
    assert rows["EDV"]["members"] == pytest.approx([100 * ml, 200 * ml])
    assert rows["ESV"]["members"] == pytest.approx([40 * ml, 50 * ml])
    assert rows["EF"]["members"] == pytest.approx([50.0, 80.0])
    assert rows["EF"]["true"] == pytest.approx(55.0)
    empty = demo.compare_volumes(members(0), members(10), 100 * ml, 45 * ml)
    assert (empty["EF"]["predicted"], empty["EF"]["members"]) == (None, None)
