"""Masks as other tools write them: other labels, cines, other axes and origins; and what is left out is named."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from command import run
from label_files import AFFINE, heart, renamed, write_labels
from numpy.typing import NDArray

from cgdpm_med import InputError, evaluate_folders, format_summary, parse_labels

Array = NDArray[np.float64]


def moved(affine: Array, x: float) -> Array:
    shifted = affine.copy()
    shifted[0, 3] += x
    return shifted


def folders(tmp_path: Path, prediction: NDArray, reference: NDArray, affine: Array = AFFINE) -> tuple[Path, Path]:
    """One case, the prediction under its own affine."""
    write_labels(tmp_path / "pred" / "a.nii.gz", prediction, affine)
    write_labels(tmp_path / "ref" / "a.nii.gz", reference)
    return tmp_path / "pred", tmp_path / "ref"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- labels -----------------------------------------------------------------------------------------------------------


def test_references_of_another_order_are_matched_by_name(tmp_path: Path) -> None:
    """M&Ms: 1 LV, 2 MYO, 3 RV."""
    where = folders(tmp_path, heart(), renamed(heart(), 0, 3, 2, 1))
    summary = evaluate_folders(*where, reference_labels=parse_labels("1=LV,2=MYO,3=RV"))
    assert {name: s["dice"] for name, s in summary["structures"].items()} == {"RV": 1.0, "MYO": 1.0, "LV": 1.0}
    assert summary["label_hints"] == []


def test_five_classes_with_values_beyond_a_byte(tmp_path: Path) -> None:
    """500 is not 244: one voxel of each of five structures, the last one missed."""
    reference = np.array([205, 420, 500, 550, 600, 0]).reshape(6, 1, 1) * np.ones((1, 3, 3), int)
    prediction = np.where(reference == 600, 0, reference)
    labels = parse_labels("205=Myo,420=LA,500=LV,550=RA,600=RV")
    summary = evaluate_folders(*folders(tmp_path, prediction, reference), tmp_path / "out", labels=labels)
    dice = {name: s["dice"] for name, s in summary["structures"].items()}
    assert dice == {"RV": 0.0, "Myo": 1.0, "LV": 1.0, "LA": 1.0, "RA": 1.0}
    assert rows_of(tmp_path / "out" / "cases.csv")[0]["dice_RA"] == "1.00000"
    assert "RA " in format_summary(summary)


def test_a_binary_mask_has_one_structure(tmp_path: Path) -> None:
    where = folders(tmp_path, np.where(heart() == 1, 255, 0), np.where(heart() == 1, 255, 0))
    with pytest.raises(InputError):  # what 255 is nobody has said
        evaluate_folders(*where)
    summary = evaluate_folders(*where, labels=parse_labels("255=tumour"))
    assert list(summary["structures"]) == ["tumour"]
    assert summary["average"]["dice"] == 1.0


def test_a_value_without_a_name_is_an_error_whose_remedy_works(tmp_path: Path) -> None:
    write_labels(tmp_path / "pred" / "b.nii.gz", heart())
    write_labels(tmp_path / "ref" / "b.nii.gz", heart())
    where = folders(tmp_path, renamed(heart(), 0, 1, 2, 4), heart())
    summary = evaluate_folders(*where)
    assert "label values 4" in summary["failed"]["a"]
    text = summary["failed"]["a"].split("--labels ")[1].split()[0]
    assert text == "1=RV,2=Myo,3=LV,4=NAME"
    assert evaluate_folders(*where, labels=parse_labels(text.replace("NAME", "LV")))["average"]["dice"] == 1.0
    assert evaluate_folders(*where, labels=parse_labels(text.replace("NAME", "background")))["failed"] == {}


@pytest.mark.parametrize(("drawn", "few"), [(1, {"a": [1, 6]}), (2, {"a": [2, 6]}), (3, {}), (6, {})])
def test_a_reference_of_a_few_slices_is_noticed(tmp_path: Path, drawn: int, few: dict[str, list[int]]) -> None:
    """Slices are the second axis here, by their distance."""
    full = np.zeros((8, 6, 5), np.uint8)
    full[2:6, :, 1:4] = 3
    partial = full.copy()
    partial[:, drawn:] = 0
    thick = np.diag([1.5, 8.0, 1.5, 1.0])
    write_labels(tmp_path / "pred" / "a.nii.gz", full, thick)
    write_labels(tmp_path / "ref" / "a.nii.gz", partial, thick)
    summary = evaluate_folders(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["few_drawn"] == few
    assert (f"{drawn} of 6 slices" in format_summary(summary)) == bool(few)


@pytest.mark.parametrize("invented", [False, True])
def test_a_structure_that_no_reference_has_is_named_and_not_averaged(tmp_path: Path, invented: bool) -> None:
    reference = np.where(heart() == 3, 0, heart())
    prediction = np.where(reference == 2, 0, heart() if invented else reference)
    out = tmp_path / "out"
    summary = evaluate_folders(*folders(tmp_path, prediction, reference), out)
    assert {name: s["dice"] for name, s in summary["structures"].items()} == {"RV": 1.0, "Myo": 0.0}
    assert summary["average"]["dice"] == 0.5
    assert summary["absent"] == {"LV": int(invented)}
    assert "LV: no reference holds it" in format_summary(summary)
    assert "dice_LV" not in rows_of(out / "cases.csv")[0]
    (row,) = rows_of(out / "left_out.csv")
    assert (row["what"], row["name"]) == ("structure", "LV")


def test_a_structure_absent_from_one_case_follows_the_locked_protocol(tmp_path: Path) -> None:
    """Both empty: Dice 1, no distance, counted; the structure is in the other case's reference."""
    for name, mask in (("a", np.where(heart() == 1, 0, heart())), ("b", heart())):
        for side in ("pred", "ref"):
            write_labels(tmp_path / side / f"{name}.nii.gz", mask)
    summary = evaluate_folders(tmp_path / "pred", tmp_path / "ref")
    assert summary["structures"]["RV"]["dice"] == 1.0
    assert summary["structures"]["RV"]["both_empty"] == summary["structures"]["RV"]["distances_missing"] == 1
    assert summary["absent"] == {}


def test_empty_references_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no reference holds"):
        evaluate_folders(*folders(tmp_path, heart(), heart() * 0))


# --- cines ------------------------------------------------------------------------------------------------------------


def test_a_cine_is_scored_frame_by_frame_where_it_is_drawn(tmp_path: Path) -> None:
    """Of four frames the second and fourth are drawn; the fourth lacks half of label 1 in the prediction."""
    half = heart()
    half[3:5, 1, 0] = 0
    prediction = np.stack([heart(), heart(), heart(), half], -1)
    reference = np.stack([heart() * 0, heart(), heart() * 0, heart()], -1)
    out = tmp_path / "out"
    summary = evaluate_folders(*folders(tmp_path, prediction, reference), out)
    assert summary["volumes"] == 2
    assert summary["failed"] == {}
    assert summary["structures"]["RV"]["dice"] == pytest.approx((1 + 2 * 2 / (2 + 4)) / 2)
    assert summary["left_out"]["frames"] == {"a": [1, 3]}
    assert [row["case"] for row in rows_of(out / "cases.csv")] == ["a/frame002", "a/frame004"]
    assert [row["name"] for row in rows_of(out / "left_out.csv")] == ["a/frame001", "a/frame003"]
    assert "2 frames" in format_summary(summary)
    assert json.loads((out / "summary.json").read_text(encoding="utf-8")) == summary


def test_a_frame_that_is_drawn_and_not_predicted_counts(tmp_path: Path) -> None:
    prediction = np.stack([heart(), heart() * 0], -1)
    summary = evaluate_folders(*folders(tmp_path, prediction, np.stack([heart()] * 2, -1)))
    assert summary["structures"]["LV"]["dice"] == 0.5
    assert summary["structures"]["LV"]["missed"] == 1


@pytest.mark.parametrize(
    ("frames", "of_reference", "words"),
    [(1, 3, "1 frame.*3 frames.*drawn are frames 2"), (3, 1, "3 frames.*1 frame"), (2, 3, "2 frames.*3 frames")],
)
def test_other_numbers_of_frames_are_an_error(tmp_path: Path, frames: int, of_reference: int, words: str) -> None:
    def cine(count: int) -> NDArray:
        stack = np.stack([heart() * (t == 1) for t in range(count)], -1) if count > 1 else heart()
        return stack.astype(np.uint8)

    write_labels(tmp_path / "pred" / "good.nii.gz", heart())
    write_labels(tmp_path / "ref" / "good.nii.gz", heart())
    summary = evaluate_folders(*folders(tmp_path, cine(frames), cine(of_reference)))
    assert summary["volumes"] == 1
    with pytest.raises(InputError, match=words):
        raise InputError(summary["failed"]["a"])


def test_a_last_axis_of_one_is_no_cine(tmp_path: Path) -> None:
    assert evaluate_folders(*folders(tmp_path, heart()[..., None], heart()))["average"]["dice"] == 1.0


def test_a_cine_without_a_drawn_frame_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no volumes were scored"):
        evaluate_folders(*folders(tmp_path, np.stack([heart()] * 3, -1), np.zeros((8, 6, 2, 3))))


def test_maps_of_a_cines_frames_are_no_predictions(tmp_path: Path) -> None:
    """`segment --write mask,entropy,probabilities,members` of a cine."""
    cine = np.stack([heart()] * 2, -1)
    where = folders(tmp_path, cine, cine)
    for name in ("a_entropy", "a_frame001_probabilities", "a_frame002_members"):
        write_labels(tmp_path / "pred" / f"{name}.nii.gz", heart())
    assert evaluate_folders(*where)["failed"] == {}


# --- grids ------------------------------------------------------------------------------------------------------------


def test_the_same_places_in_another_order_of_axes_are_turned(tmp_path: Path) -> None:
    """A tool that turns every image to another orientation; distances are still those of the reference's axes."""
    prediction = heart()
    prediction[5, 1, 0] = 1  # one voxel too many, 2 mm along x
    image = nib.Nifti1Image(prediction, AFFINE).as_reoriented(nib.orientations.axcodes2ornt("PSL"))
    assert image.shape != heart().shape
    where = folders(tmp_path, np.asarray(image.dataobj), heart(), image.affine)
    rv = evaluate_folders(*where)["structures"]["RV"]
    assert rv["dice"] == pytest.approx(2 * 4 / 9)
    assert rv["assd"] == pytest.approx(2 / 9)


@pytest.mark.parametrize(
    ("affine", "word"),
    [
        (moved(AFFINE, 7), "origin 7 mm"),
        (moved(AFFINE, 700), "origin 700 mm"),
        (np.diag([1.0, 1.0, 1.0, 1.0]), "spacing 1 x 1 x 1 mm instead of 2 x 3 x 8 mm"),
        (np.array([[1.6, -1.8, 0, 0], [1.2, 2.4, 0, 0], [0, 0, 8, 0], [0, 0, 0, 1]]), "37 degrees"),
    ],
    ids=["origin", "far", "spacing", "directions"],
)
def test_what_differs_is_said_and_the_voxels_can_be_paired_as_they_are(
    tmp_path: Path, affine: Array, word: str
) -> None:
    prediction = heart()
    prediction[5, 1, 0] = 1
    where = folders(tmp_path, prediction, heart(), affine)
    write_labels(tmp_path / "pred" / "b.nii.gz", heart())
    write_labels(tmp_path / "ref" / "b.nii.gz", heart())
    error = evaluate_folders(*where)["failed"]["a"]
    assert word in error
    assert "--ignore-geometry" in error
    summary = evaluate_folders(where[0] / "a.nii.gz", where[1] / "a.nii.gz", ignore_geometry=True)
    assert summary["structures"]["RV"]["assd"] == pytest.approx(2 / 9)  # on the reference's grid


def test_resampling_is_not_advised_where_it_would_empty_the_mask(tmp_path: Path) -> None:
    for name in ("near", "far"):
        write_labels(tmp_path / "ref" / f"{name}.nii.gz", heart())
        affine = moved(AFFINE, 700 if name == "far" else 1)
        write_labels(tmp_path / "pred" / f"{name}.nii.gz", heart()[:7], affine)
    write_labels(tmp_path / "ref" / "good.nii.gz", heart())
    write_labels(tmp_path / "pred" / "good.nii.gz", heart())
    failed = evaluate_folders(tmp_path / "pred", tmp_path / "ref")["failed"]
    assert "shape 7 x 6 x 2 instead of 8 x 6 x 2" in failed["near"]
    assert "Resample" in failed["near"]
    assert "Resample" not in failed["far"]


def test_shapes_cannot_be_ignored(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no volumes were scored"):
        evaluate_folders(*folders(tmp_path, heart()[:7], heart()), ignore_geometry=True)


def test_a_spacing_can_be_given(tmp_path: Path) -> None:
    prediction = heart()
    prediction[5, 1, 0] = 1
    summary = evaluate_folders(*folders(tmp_path, prediction, heart()), spacing=(20.0, 3.0, 8.0))
    assert summary["structures"]["RV"]["assd"] == pytest.approx(20 / 9)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_takes_labels_and_says_what_looks_swapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = folders(tmp_path, heart(), renamed(heart(), 0, 3, 2, 1))
    assert run(monkeypatch, "evaluate", *where) == 0
    assert "swapped" in capsys.readouterr().out
    assert run(monkeypatch, "evaluate", *where, "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["label_hints"][0]["cases"] == ["a"]
    assert "swapped" in said.err
    assert run(monkeypatch, "evaluate", *where, "--reference-labels", "LV=1,Myo=2,RV=3") == 0
    assert "average   100.00" in capsys.readouterr().out
    assert run(monkeypatch, "evaluate", *where, "--labels", "LV") == 2
    assert run(monkeypatch, "evaluate", *where, "--spacing", "1,2") == 2


def test_what_was_left_out_goes_when_nothing_is(tmp_path: Path) -> None:
    where = folders(tmp_path, heart(), heart())
    lonely = write_labels(tmp_path / "pred" / "z.nii.gz", heart())
    out = tmp_path / "out"
    summary = evaluate_folders(*where, out)
    assert summary["left_out"]["unpaired"] == ["z"]
    assert [row["name"] for row in rows_of(out / "left_out.csv")] == ["z"]
    lonely.unlink()
    evaluate_folders(*where, out)
    assert not (out / "left_out.csv").exists()
