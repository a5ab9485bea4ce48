"""``--spacing`` and ``--flip-slices``: what the user says of an input counts, and is recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from command import run
from directed import SEGMENTER, smooth_noise
from nifti_files import ACDC_SFORM, LABELS, OBLIQUE, nifti, save

from cgdpm_med.inference.segmenter import Segmenter
from cgdpm_med.studies.outputs import read_ensemble
from cgdpm_med.volumes import read_labels

pytestmark = pytest.mark.usefixtures("quiet_headers")

HEART = smooth_noise((24, 20, 5), 0)


@pytest.fixture
def directed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle's transforms around a predictor that knows base from apex."""
    monkeypatch.setattr(Segmenter, "from_bundle", lambda *_, **__: SEGMENTER)


def segment(monkeypatch: pytest.MonkeyPatch, source: Path, out: Path, *options: str) -> dict[str, Any]:
    """What the JSON of the study says, and its mask under "mask"."""
    assert run(monkeypatch, "segment", str(source), str(out), "--no-report", "--device", "cpu", *options) == 0
    record: dict[str, Any] = json.loads((out / "v.json").read_text())
    return record | {"mask": np.asanyarray(nib.load(out / "v.nii.gz").dataobj)}


@pytest.mark.parametrize(
    "header",
    [
        {"sform": ACDC_SFORM, "sform_code": 2, "pixdim": (1.5, 1.5, 9.0)},
        {"pixdim": (1.5, 1.5, 9.0)},
        {"sform": np.diag([-1.5, -1.5, 9, 1]), "pixdim": (1.5, 1.5, 9.0)},
    ],
    ids=["ACDC", "no form", "known"],
)
@pytest.mark.usefixtures("directed")
def test_flipping_gives_the_mask_of_the_stack_stored_the_other_way_round(
    header: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base_first, apex_first = tmp_path / "a" / "v.nii", tmp_path / "b" / "v.nii"
    for path, data in ((base_first, HEART), (apex_first, HEART[..., ::-1])):
        path.parent.mkdir()
        save(path, nifti(data, **header))
    right = segment(monkeypatch, base_first, tmp_path / "right")
    wrong = segment(monkeypatch, apex_first, tmp_path / "wrong")
    flipped = segment(monkeypatch, apex_first, tmp_path / "flipped", "--flip-slices")
    np.testing.assert_array_equal(flipped["mask"], right["mask"][..., ::-1])
    assert (wrong["mask"] != right["mask"][..., ::-1]).any()
    assert "--flip-slices" in flipped["slice_order"]
    assert flipped["made_with"]["settings"]["flip_slices"] is True
    assert flipped["volume_ml"] == right["volume_ml"]


@pytest.mark.usefixtures("threshold")
def test_an_assumed_order_is_a_remark_and_no_reason_for_review(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = segment(monkeypatch, save(tmp_path / "v.nii", nifti()), tmp_path / "out")
    findings = [found for found in record["study"]["quality"]["findings"] if found["check"] == "slice order"]
    assert [found["review"] for found in findings] == [False]
    assert "base to apex" in record["slice_order"]


@pytest.mark.usefixtures("threshold")
def test_a_spacing_by_hand_counts_for_millilitres_and_for_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = save(tmp_path / "v.nii", nifti(sform=OBLIQUE, pixdim=(1.25, 1.4, 6.0))), tmp_path / "out"
    ml = [
        segment(monkeypatch, source, out, *options)["volume_ml"]["3"]
        for options in ((), ("--spacing", "pixdim"), ("--spacing", "1.25,1.4,4"))
    ]
    assert ml[1] == pytest.approx(ml[0] * 6 / 8, abs=2e-3)
    assert ml[2] == pytest.approx(ml[0] * 4 / 8, abs=2e-3)
    capsys.readouterr()
    for options, skipped in ((("--spacing", "1.25,1.4,4"), True), ((), False), ((), True), (("--flip-slices",), False)):
        record = segment(monkeypatch, source, out, "--continue", *options)
        assert ("1 study complete before" in capsys.readouterr().out) == skipped
    assert record["made_with"]["settings"]["spacing"] == "auto"


@pytest.mark.usefixtures("threshold")
def test_the_remedy_of_a_header_without_a_size_leads_to_a_mask_and_its_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    header: dict[str, Any] = {"sform": ACDC_SFORM, "sform_code": 2, "pixdim": (1.5, 1.5, 0.0)}
    source, out = save(tmp_path / "v.nii", nifti(**header)), tmp_path / "out"
    assert run(monkeypatch, "segment", str(source), str(out), "--no-report", "--device", "cpu") == 1
    assert "--spacing 1.5,1.5,8" in capsys.readouterr().err
    options = ("--spacing", "1.5,1.5,8", "--write", "mask,probabilities,members")
    assert segment(monkeypatch, source, out, *options)["spacing_mm"] == [1.5, 1.5, 8.0]
    reference = save(tmp_path / "v_gt.nii", nifti(LABELS, **header))
    words = ("evaluate", str(out / "v.nii.gz"), str(reference))
    assert run(monkeypatch, *words) == 1
    assert run(monkeypatch, *words, "--spacing", "1.5,1.5,8") == 0
    ensemble = read_ensemble(read_labels(out / "v.nii.gz", spacing=(1.5, 1.5, 8)))
    assert ensemble is not None
    assert ensemble.grid.voxel_volume == pytest.approx(1.5 * 1.5 * 8)


@pytest.mark.usefixtures("threshold")
@pytest.mark.parametrize("text", ["1.5,1.5", "thick", "1,1,-8"])
def test_a_spacing_that_is_none_is_one_line_before_any_work(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = save(tmp_path / "v.nii", nifti()), tmp_path / "out"
    assert run(monkeypatch, "segment", str(source), str(out), "--spacing", text) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert not out.exists()
