"""The model card, from a result folder written by hand: every number where it belongs, and none from elsewhere."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import load_script

from cgdpm_med import InputError
from cgdpm_med.data.acdc import ACDC_GROUPS, load_split
from cgdpm_med.heart.function import MEASURES

FIRST, SECOND, THIRD = load_split()["test"][:3]
VALIDATION = load_split()["validation"][0]


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return load_script("model_card")


def group_of(patient: str) -> str:
    return ACDC_GROUPS[(int(patient.removeprefix("patient")) - 1) // 20]


def truth() -> np.ndarray:
    """6 x 6 pixels, 7 slices, a right ventricle of four voxels in slices 2 to 7; slice 1 is above the heart."""
    labels = np.zeros((6, 6, 7), np.uint8)
    labels[1:3, 1:3, 1:] = 1
    labels[4, 4, 1:] = 2
    return labels


def write_mask(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(labels, np.diag([-1, -1, 1, 1]))  # unit sform and true pixdim, as ACDC has them
    image.header["pixdim"][1:4] = (2.0, 2.5, 10.0)
    nib.save(image, path)


def write_patient(root: Path, patient: str) -> None:
    (root / patient).mkdir(parents=True)
    (root / patient / "Info.cfg").write_text(f"ED: 1\nES: 9\nGroup: {group_of(patient)}\n", encoding="utf-8")
    for frame in (1, 9):
        write_mask(root / patient / f"{patient}_frame{frame:02d}_gt.nii.gz", truth())
        (root / patient / f"{patient}_frame{frame:02d}.nii.gz").touch()


def means(dice: tuple[float, float, float], volumes: int, hd95: float | None = 5.5) -> dict[str, Any]:
    counts = {"missed": 1, "invented": 2, "both_empty": 3, "distances_missing": 6}
    structures = {
        name: {"dice": d, "dice_std": 0.0123, "hd95": hd95, "assd": 1.25, **counts}
        for name, d in zip(("RV", "Myo", "LV"), dice, strict=True)
    }
    average = {"dice": sum(dice) / 3, "hd95": hd95, "assd": 1.25}
    return {"volumes": volumes, "structures": structures, "average": average}


def measured(coverage: float) -> dict[str, Any]:
    scores = {"n": 2, "undefined": 0, "error_mean": -1.5, "error_sd": 2.25, "error_absolute": 1.75}
    one = {**scores, "correlation": 0.987, "intervals": 2, "coverage": coverage, "width": 8.5}
    return dict.fromkeys(MEASURES, one)


SUMMARY: dict[str, Any] = {
    **means((0.85, 0.80, 0.90), 4),
    "by_phase": {"ED": means((0.9, 0.9, 0.9), 2), "ES": means((0.8, 0.7, 0.9), 2, hd95=None)},
    "by_group": {group_of(FIRST): means((0.85, 0.80, 0.90), 4)},
    "ensemble": {
        "ged": 0.361,
        "pairwise_dice": 0.9,
        "brier": 0.068,
        "auroc": 0.927,
        "ece": 0.0098,
        "brier_calibrated": 0.0671,
        "auroc_calibrated": 0.931,
        "ece_calibrated": 0.0042,
        "predicted_true_dice": {"pearson": 0.85, "spearman": 0.77},
    },
    "function": {"patients": 2, "measures": measured(0.75), "calibrated": measured(0.9)},
    "calibration": {"temperature": 1.234, "doubt": 0.0056, "section": "validation", "patients": 10, "volumes": 20},
    "failed": {},
    "settings": {"members": 8, "steps": 4, "method": "ddim", "seed": 0, "guidance_interval": None, "device": "cpu"},
}
DICE = {  # RV, Myo, LV
    f"{FIRST}_frame01": (0.95, 0.90, 0.97),
    f"{FIRST}_frame09": (0.40, 0.70, 0.85),
    f"{SECOND}_frame01": (0.92, 0.89, 0.96),
    f"{SECOND}_frame09": (0.80, 0.60, 0.91),
}


def write_evaluation(folder: Path, summary: dict[str, Any], dice: Mapping[str, tuple[float, ...]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    columns = [f"{metric}_{name}" for metric in ("dice", "hd95", "assd") for name in ("RV", "Myo", "LV")]
    with (folder / "cases.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "phase", "group", *columns, "ged", "pairwise_dice"])
        for key, values in dice.items():
            phase = "ED" if key.endswith("01") else "ES"
            writer.writerow([key, phase, group_of(key.split("_")[0]), *values, *[""] * 6, 0.3, ""])


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """An evaluation and a data set."""
    for patient in (FIRST, SECOND):
        write_patient(tmp_path / "data", patient)
    write_evaluation(tmp_path / "evaluation", SUMMARY, DICE)
    return tmp_path / "evaluation", tmp_path / "data"


def render(program: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["model_card.py", *map(str, words)])
    program.main()


def test_the_card_says_what_the_files_say(
    program: ModuleType, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation, data = folders
    worst = truth()
    worst[..., 1:3] = 0  # the two basal slices are missed
    worst[0, 0, 0] = 1  # one is invented above them
    worst[1, 1, 6] = 0
    write_mask(evaluation / "masks" / f"{FIRST}_frame09.nii.gz", worst)
    plain = {**SUMMARY, **means((0.8, 0.75, 0.85), 4), "ensemble": {"ece": 0.02, "brier": 0.08, "auroc": 0.9}}
    write_evaluation(tmp_path / "plain", plain, DICE)
    (tmp_path / "shifted").mkdir()
    (tmp_path / "shifted" / "shifted_inputs.md").write_text("| shift | Dice % |\n| --- | --- |\n| none | 85.00 |\n")
    (tmp_path / "model.pt").write_bytes(b"weights")
    card = tmp_path / "docs" / "model_card.md"
    words = ["--evaluation", evaluation, "--dataset-dir", data, "--baseline", tmp_path / "plain", "--worst", 2]
    words += ["--shifted", tmp_path / "shifted", "--weights", tmp_path / "model.pt", "--output", card]
    render(program, monkeypatch, *words)
    text = card.read_text(encoding="utf-8")
    lines = text.splitlines()

    assert lines[0] == "# Model card: acdc_segmentation"
    assert "2 of the 20 test patients, 4 volumes" in text
    # sha256 of the seven bytes "weights"
    assert "Weights: `model.pt`, digest of the tensors 9a129038d9a00aed." in text
    assert "members 8, steps 4, method ddim, seed 0, device cpu." in text
    for line in (
        "| nnU-Net (paper) | 91.20 | 89.30 | 89.09 | 95.20 |",
        "| CG-DPM (paper) | 89.34 | 87.63 | 85.26 | 95.13 |",
        "| plain U-Net (`baseline_unet.yaml`) | 80.00 | 80.00 | 75.00 | 85.00 |",
        "| **this model** | 85.00 | 85.00 | 80.00 | 90.00 |",
        "| Myo | 80.00 ± 1.23 | 5.50 | 1.25 | 1 | 2 | 3 |",
        "| average | 85.00 | 5.50 | 1.25 |  |  |  |",
        "| ES | 2 | 80.00 | 80.00 | 70.00 | 90.00 | – |  |  |",
        "| LV ejection fraction, % | -1.50 ± 2.25 | 1.75 | 0.987 | 75 | 8.5 | 90 | 8.5 |",
        "| expected calibration error | 0.0200 | 0.0098 | 0.0042 |",
        "| Brier score | 0.0800 | 0.0680 | 0.0671 |",
        "| AUROC of the entropy for wrong voxels | 0.900 | 0.927 | 0.931 |",
        "| correlation of predicted and true Dice | – | 0.85 | – |",
        "| none | 85.00 |",
    ):
        assert line in lines, line
    assert "Calibration: temperature 1.234, doubt 0.0056, fitted to 10 validation patients." in lines

    # by group and phase, from the cases: the mean of (.95 + .90 + .97) / 3 and, in one group, (.92 + .89 + .96) / 3
    assert group_of(FIRST) == group_of(SECOND)
    of_group = next(line for line in lines if line.startswith(f"| {group_of(FIRST)} |"))
    assert of_group.endswith("| 5.50 | 93.17 | 71.00 |")

    described = [line for line in lines if line.startswith("- **")]
    assert [line.split("**")[1] for line in described] == [f"{FIRST}_frame09", f"{SECOND}_frame09"]
    assert "average Dice 65.0 % (RV 40.0, Myo 70.0, LV 85.0). RV is the weakest:" in described[0]
    # slices 2 to 7 in thirds: nothing of eight voxels; all eight; seven of eight, 14 / 15
    assert "basal 0.0, middle 100.0, apical 93.3;" in described[0]
    # 1 + 4 + 4 + 4 + 3 and 6 x 4 voxels of 50 mm^3
    assert "0.8 ml against 1.2 ml." in described[0]
    assert "Missed in slice 2, 3 of 7. Invented in slice 1 of 7." in described[0]
    assert described[1].endswith("(RV 80.0, Myo 60.0, LV 91.0). Myo is the weakest.")  # no mask was kept


def test_what_was_not_evaluated_is_not_claimed(
    program: ModuleType, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation, data = folders
    bare = {name: value for name, value in SUMMARY.items() if name not in ("function", "calibration", "settings")}
    bare["ensemble"] = {"ece": 0.0098, "pairwise_dice": None}
    write_evaluation(evaluation, bare, DICE)
    card = tmp_path / "card.md"
    words = ["--evaluation", evaluation, "--dataset-dir", data, "--weights", tmp_path / "absent.pt", "--output", card]
    render(program, monkeypatch, *words)
    text = card.read_text(encoding="utf-8")
    assert "Weights: not stated. Settings: not stated." in text
    assert "Cardiac function was not evaluated." in text
    assert "No calibration was applied." in text
    assert "| expected calibration error | 0.0098 | – |" in text
    assert "## Shifted inputs" not in text
    assert "U-Net's softmax" not in text


def test_a_card_is_of_test_patients(
    program: ModuleType, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation, data = folders
    write_patient(data, VALIDATION)
    words = ["--evaluation", evaluation, "--dataset-dir", data, "--output", data / "card.md"]
    write_evaluation(evaluation, SUMMARY, {**DICE, f"{VALIDATION}_frame01": (0.9, 0.9, 0.9)})
    with pytest.raises(InputError, match=f"holds {VALIDATION}, no test patient"):
        render(program, monkeypatch, *words)
    write_evaluation(evaluation, SUMMARY, {f"{THIRD}_frame01": (0.9, 0.9, 0.9)})
    with pytest.raises(InputError, match=rf"cases\.csv: holds {THIRD}_frame01, which the data set does not"):
        render(program, monkeypatch, *words)
    write_evaluation(evaluation, SUMMARY, DICE)
    (data / FIRST / "Info.cfg").write_text("ED: 1\nES: 9\nGroup: XXX\n", encoding="utf-8")
    with pytest.raises(InputError, match=f"says {group_of(FIRST)} ED of {FIRST}_frame01, its Info.cfg XXX ED"):
        render(program, monkeypatch, *words)
    (evaluation / "summary.json").unlink()
    with pytest.raises(InputError, match=r"summary\.json: is missing"):
        render(program, monkeypatch, *words)
    assert not (data / "card.md").exists()


def test_thirds_by_hand(program: ModuleType) -> None:
    known = np.zeros((1, 2, 9), np.uint8)
    known[..., 1:6] = 3  # five slices of the heart: two, two and one
    predicted = known.copy()
    predicted[0, 0, 1] = 0
    predicted[0, :, 8] = 3  # beyond the heart, in no third
    assert program.dice_by_third(predicted, known, 3) == [pytest.approx(6 / 7), 1.0, 1.0]
    assert program.dice_by_third(predicted, known, 1) == [None, None, None]
    assert program.dice_by_third(predicted, np.zeros_like(known), 3) == [None, None, None]
    assert program.slices_of_one(predicted == 3, known == 3) == [8]
