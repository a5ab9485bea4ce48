"""Data sets in ACDC's layout whose references number the structures in another order than the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from segmentations import segmentation_of
from stubs import Oracle, Stub

from cgdpm_med import InputError, Segmenter, acdc_datalist, evaluate_folders, read_labels, write_phantom_dataset
from cgdpm_med.evaluation.calibrate import calibrate
from cgdpm_med.evaluation.label_names import parse_labels
from cgdpm_med.evaluation.reference_labels import read_reference
from cgdpm_med.evaluation.segmenter import evaluate_acdc, evaluate_segmenter
from cgdpm_med.evaluation.sweep import score_setting
from cgdpm_med.inference.labels import DEFAULT_LABELS, Labels
from cgdpm_med.inference.segmenter import Segmentation
from cgdpm_med.volumes import Volume

PATIENTS = range(901, 910)  # and one for tests
SPLIT = {"train": [], "validation": [f"patient{n}" for n in PATIENTS], "test": ["patient910"]}
OTHER = np.array([0, 3, 2, 1], np.uint8)  # M&Ms: 1 is the left ventricle, 3 the right one
NAMES = "1=LV,2=MYO,3=RV"
REVERSED = Labels(("LV", "Myo", "RV"))


def with_names(folder: Path, labels: Mapping[str, int]) -> Path:
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, **labels}}), encoding="utf-8")
    return folder


def renumbered(folder: Path, target: Path, values: np.ndarray = OTHER) -> Path:
    """A copy of a data set, its references with other values."""
    shutil.copytree(folder, target)
    for file in target.rglob("*_gt.nii.gz"):
        image = nib.load(file)
        nib.Nifti1Image(values[np.asarray(image.dataobj, int)], image.affine, image.header).to_filename(file)
    return target


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantom_dataset(folder, [*PATIENTS, 910], seed=1, shape=(48, 40, 4), spacing=(2.8, 2.8, 20), num_frames=3)
    return folder


@pytest.fixture(scope="module")
def others(phantoms: Path) -> Path:
    return renumbered(phantoms, phantoms.parent / "others")


@pytest.fixture
def named(others: Path, tmp_path: Path) -> Path:
    return with_names(Path(shutil.copytree(others, tmp_path / "named")), {"LV": 1, "MYO": 2, "RV": 3})


class TwoReaders(Stub):
    """Finds what is drawn in the data set as it was made, and once the same moved by a voxel."""

    def __init__(self, truth: Path, weights: Path) -> None:
        super().__init__(members=2)
        self.truth = truth
        weights.write_bytes(b"weights")
        self.weights = (weights,)

    def __call__(self, volume: Volume, key: str, progress: Callable[[float], None] | None = None) -> Segmentation:
        drawn = read_labels(self.truth / key.partition("_")[0] / f"{key}_gt.nii.gz").data
        return segmentation_of(np.stack([drawn, np.roll(drawn, 1, axis=0)]), volume, key)


@pytest.fixture
def reader(phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TwoReaders:
    segmenter = TwoReaders(phantoms, tmp_path / "model.pt")
    monkeypatch.setattr(Segmenter, "from_bundle", lambda *bundle, **settings: segmenter)
    return segmenter


def calibrated(folder: Path, **arguments: Any) -> dict[str, Any]:
    """What a calibration says, but where it stands."""
    result = calibrate(folder, split=SPLIT, device="cpu", **arguments)
    del result["file"]
    return result


def evaluated(folder: Path, **arguments: Any) -> dict[str, Any]:
    """Scores of the one test patient."""
    return evaluate_acdc(Segmenter.from_bundle(), folder, "test", split=SPLIT, **arguments)


# --- by names ---------------------------------------------------------------------------------------------------------


def test_calibration_goes_by_the_names_of_a_dataset_file(reader: TwoReaders, phantoms: Path, named: Path) -> None:
    assert calibrated(named) == calibrated(phantoms)


def test_calibration_goes_by_names_that_are_given(reader: TwoReaders, phantoms: Path, others: Path) -> None:
    assert calibrated(others, reference_labels=NAMES) == calibrated(phantoms)


def test_evaluation_goes_by_names(reader: TwoReaders, phantoms: Path, others: Path, named: Path) -> None:
    expected = evaluated(phantoms)
    assert expected["average"]["dice"] > 0.8
    assert evaluated(named) == expected
    assert evaluated(others, reference_labels=NAMES) == expected
    assert evaluated(others, reference_labels=parse_labels(NAMES)) == expected


def test_a_sweep_goes_by_names(reader: TwoReaders, phantoms: Path, named: Path) -> None:
    scores = [score_setting(reader, acdc_datalist(folder, "test", split=SPLIT)) for folder in (phantoms, named)]
    assert all(one.pop("seconds") >= 0 for one in scores)
    assert scores[0] == scores[1]


# --- without ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [calibrated, evaluated], ids=["calibrate", "evaluate"])
def test_exchanged_labels_that_nothing_names_are_refused(
    run: Callable[..., Any], reader: TwoReaders, others: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="exchanged") as error:
        run(others, output=tmp_path / "written")
    assert not (tmp_path / "written").exists()
    option, labels = str(error.value.remedy).split("--")[1].split()
    assert option == "reference-labels"
    assert parse_labels(labels.strip("'")).names == {1: "LV", 2: "Myo", 3: "RV"}  # as the other tests give it


def test_one_exchanged_case_is_a_note(reader: TwoReaders, phantoms: Path, others: Path, tmp_path: Path) -> None:
    for folder, patient in ((phantoms, "patient901"), (others, "patient902")):
        shutil.copytree(folder / patient, tmp_path / "mixed" / patient)
    summary = evaluate_segmenter(reader, acdc_datalist(tmp_path / "mixed", "all"))
    assert [("patient902_frame01" in note, "patient901" in note) for note in summary["notes"]] == [(True, False)]


def test_a_model_that_numbers_otherwise_is_told_what_to_say(phantoms: Path, named: Path) -> None:
    """Beside references that nothing names: they may be as in ACDC, or as the model's training data were."""
    reference = acdc_datalist(phantoms, "all")[0]["label"]
    with pytest.raises(InputError, match="which value is which"):
        read_reference(reference, REVERSED)
    stored = read_labels(reference).data
    np.testing.assert_array_equal(read_reference(reference, REVERSED, named="1=RV,2=Myo,3=LV"), OTHER[stored])
    np.testing.assert_array_equal(read_reference(reference, REVERSED, named="1=LV,2=Myo,3=RV"), stored)
    in_m_and_ms = acdc_datalist(named, "all")[0]["label"]
    np.testing.assert_array_equal(read_reference(in_m_and_ms, REVERSED), OTHER[stored])
    np.testing.assert_array_equal(read_reference(in_m_and_ms, DEFAULT_LABELS), stored)


def test_masks_of_such_a_model_are_not_scored_by_guess(phantoms: Path, others: Path, tmp_path: Path) -> None:
    predictions = with_names(write_masks(others / "patient901", tmp_path / "pred"), {"LV": 1, "Myo": 2, "RV": 3})
    references = Path(shutil.copytree(phantoms / "patient901", tmp_path / "ref" / "patient901")).parent
    with pytest.raises(InputError, match="which value is which"):
        evaluate_folders(predictions, references)
    for text, dice in (("1=RV,2=Myo,3=LV", 1.0), ("1=LV,2=Myo,3=RV", 0.0)):
        found = evaluate_folders(predictions, references, reference_labels=parse_labels(text))
        assert (found["failed"], found["structures"]["LV"]["dice"]) == ({}, dice)


def write_masks(patient: Path, target: Path) -> Path:
    """The references of a patient as somebody's predictions."""
    for file in patient.glob("*_gt.nii.gz"):
        place = target / patient.name / file.name.replace("_gt", "")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    return target


# --- structures of one side -------------------------------------------------------------------------------------------


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    file = tmp_path / "data" / "a" / "a_gt.nii.gz"
    file.parent.mkdir(parents=True)
    nib.Nifti1Image(np.array([0, 1, 2, 5, 700], np.int16).reshape(5, 1, 1), np.eye(4)).to_filename(file)
    return file


def test_what_the_model_does_not_know_is_background(reference: Path) -> None:
    found = read_reference(reference, Labels(("liver", "tumour")), named="1=spleen,2=Liver,5=tumour,700=kidney")
    assert (found.ravel().tolist(), found.dtype) == ([0, 0, 1, 2, 0], np.dtype(np.uint8))


def test_a_value_without_a_name_is_named(reference: Path) -> None:
    with pytest.raises(InputError, match="700") as error:
        read_reference(reference, Labels(("liver", "tumour")), named="1=liver,2=tumour,5=tumour")
    assert "700=NAME" in str(error.value.remedy)
    with pytest.raises(InputError, match="5, 700"):
        read_reference(reference, Labels(("liver", "tumour")))


def test_a_structure_that_the_references_lack_is_named(reference: Path) -> None:
    with_names(reference.parents[1], {"liver": 1, "spleen": 2, "kidney": 5, "bone": 700})
    with pytest.raises(InputError, match="tumour"):
        read_reference(reference, Labels(("liver", "tumour")))


def test_a_perfect_reader_of_the_usual_numbers_needs_no_names(phantoms: Path) -> None:
    summary = evaluate_segmenter(Oracle(), acdc_datalist(phantoms, "test", split=SPLIT))
    assert (summary["average"]["dice"] > 0.5, summary["notes"]) == (True, [])
