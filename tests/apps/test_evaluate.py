"""The protocol on folders of masks: scores by hand, one error per bad file, the two result files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cgdpm_med import InputError, evaluate_folders, format_summary

SPACING = (2.0, 3.0, 8.0)


def write_mask(path: Path, mask: np.ndarray, spacing: tuple[float, ...] = SPACING) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(mask.astype(np.uint8), np.diag([*spacing, 1])).to_filename(path)
    return path


@pytest.fixture
def reference() -> np.ndarray:
    """One row of two voxels for each of the labels 1 and 2, and one of four for label 3."""
    mask = np.zeros((8, 6, 2), np.uint8)
    mask[1:3, 1, 0], mask[1:3, 3, 0], mask[1:5, 5, 1] = 1, 2, 3
    return mask


@pytest.fixture
def prediction(reference: np.ndarray) -> np.ndarray:
    """RV one voxel too long, the myocardium missed, the LV right."""
    mask = reference.copy()
    mask[3, 1, 0] = 1
    mask[mask == 2] = 0
    return mask


def test_scores_of_a_pair_by_hand(tmp_path: Path, reference: np.ndarray, prediction: np.ndarray) -> None:
    write_mask(tmp_path / "ref" / "a_gt.nii.gz", reference)
    write_mask(tmp_path / "pred" / "a.nii.gz", prediction)
    summary = evaluate_folders(tmp_path / "pred", tmp_path / "ref", tmp_path / "scores")
    assert summary["failed"] == {}
    assert {name: s["dice"] for name, s in summary["structures"].items()} == {"RV": 0.8, "Myo": 0.0, "LV": 1.0}
    assert summary["average"]["dice"] == pytest.approx(0.6)
    assert summary["structures"]["Myo"]["missed"] == 1
    assert summary["structures"]["RV"]["assd"] == pytest.approx(2.0 / 5)  # one of 3 + 2 surface voxels is 2 mm away
    with (tmp_path / "scores" / "cases.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["case"] == "a"
    assert (row["dice_RV"], row["dice_Myo"], row["dice_LV"]) == ("0.80000", "0.00000", "1.00000")
    assert (row["hd95_Myo"], row["assd_RV"]) == ("", "0.40000")
    assert json.loads((tmp_path / "scores" / "summary.json").read_text(encoding="utf-8")) == summary
    table = format_summary(summary)
    assert "RV         80.00     1.80     0.40       0         0" in table
    assert "volumes 1, failed 0" in table


def test_bad_files_are_named_once_and_the_rest_is_scored(
    tmp_path: Path, reference: np.ndarray, prediction: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("good", "grid", "labels", "torn", "unpredicted"):
        write_mask(tmp_path / "ref" / f"{name}.nii.gz", reference)
    write_mask(tmp_path / "pred" / "good.nii.gz", prediction)
    write_mask(tmp_path / "pred" / "grid.nii.gz", prediction, spacing=(2.0, 2.0, 8.0))
    write_mask(tmp_path / "pred" / "labels.nii.gz", np.where(prediction == 3, 7, prediction))
    torn = write_mask(tmp_path / "pred" / "torn.nii.gz", prediction)
    torn.write_bytes(torn.read_bytes()[:-12])
    write_mask(tmp_path / "pred" / "unreferenced.nii.gz", prediction)
    summary = evaluate_folders(tmp_path / "pred", tmp_path / "ref")
    assert summary["volumes"] == 1
    assert sorted(summary["failed"]) == ["grid", "labels", "torn", "unpredicted", "unreferenced"]
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 5
    for name in summary["failed"]:
        assert any(f"{name}.nii.gz" in line and line.startswith("error: ") for line in errors)
    assert "label values 7" in summary["failed"]["labels"]


def test_nothing_to_score_is_an_error(tmp_path: Path, reference: np.ndarray) -> None:
    write_mask(tmp_path / "ref" / "a.nii.gz", reference)
    write_mask(tmp_path / "pred" / "b.nii.gz", reference)
    with pytest.raises(InputError, match="no volumes were scored"):
        evaluate_folders(tmp_path / "pred", tmp_path / "ref", tmp_path / "scores")
    assert not (tmp_path / "scores").exists()
