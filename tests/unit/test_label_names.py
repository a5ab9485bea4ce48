"""What values mean: as given, as a dataset.json says, and what two sides share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from label_files import heart, write_labels
from scans import PLAIN
from stubs import Thresholder

from cgdpm_med import InputError, find_cases, parse_labels, segment_all
from cgdpm_med.data.structure_names import plain_name
from cgdpm_med.evaluation.find_labels import find_labels
from cgdpm_med.evaluation.label_names import ACDC, match_labels


def dataset_json(folder: Path, labels: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dataset.json"
    path.write_text(json.dumps({"labels": labels}), encoding="utf-8")
    return path


@pytest.mark.parametrize("text", ["1=LV,2=Myo,3=RV", " LV = 1, Myo=2 ,RV=3", "0=background,3=RV,1=LV,2=Myo"])
def test_labels_are_given_in_either_order(text: str) -> None:
    assert parse_labels(text).names == {1: "LV", 2: "Myo", 3: "RV"}
    assert str(parse_labels(text)) == "1=LV,2=Myo,3=RV"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("LV,Myo", "LV"),
        ("1=", "1="),
        ("1=LV,1=RV", "two names"),
        ("0=background", "no label"),
        ("70000=LV", "range"),
        ("-1=LV", "-1"),
    ],
)
def test_what_is_no_label_is_an_error(text: str, word: str) -> None:
    with pytest.raises(InputError, match=word) as caught:
        parse_labels(text)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "plain"),
    [("MYO", "myo"), ("Myocardium", "myo"), ("LV myocardium", "myo"), ("right_ventricle", "rv"), ("LV-cavity", "lv")],
)
def test_words_for_the_same_structure(name: str, plain: str) -> None:
    assert plain_name(name) == plain


@pytest.mark.parametrize(
    "labels",
    [{"background": 0, "LV": 1, "MYO": 2, "RV": 3}, {"0": "background", "1": "LV", "2": "MYO", "3": "RV"}],
    ids=["nnU-Net", "Decathlon"],
)
@pytest.mark.parametrize("place", [".", "labelsTr", "fold_0/validation"])
def test_a_dataset_file_names_the_labels(tmp_path: Path, labels: Any, place: str) -> None:
    """In the folder of the masks, or above it where nnU-Net keeps it; it counts for both sides."""
    dataset_json(tmp_path / "set", labels)
    references = tmp_path / "set" / place
    references.mkdir(parents=True, exist_ok=True)
    (tmp_path / "elsewhere" / "a" / "b").mkdir(parents=True)
    found = find_labels(tmp_path / "elsewhere" / "a" / "b", references)
    assert found.reference.names == found.prediction.names == {1: "LV", 2: "MYO", 3: "RV"}
    assert found.names == {1: "RV", 2: "MYO", 3: "LV"}  # numbers of ACDC, whatever the values


def test_options_come_before_files_and_one_side_does_not_rename_the_other(tmp_path: Path) -> None:
    dataset_json(tmp_path / "ref", {"background": 0, "A": 1, "B": 2})
    (tmp_path / "pred").mkdir()
    given = parse_labels("1=B,2=A")
    found = find_labels(tmp_path / "pred", tmp_path / "ref", reference_labels=given)
    assert found.reference.names == {1: "B", 2: "A"}
    assert found.prediction.names == {1: "A", 2: "B"}
    found = find_labels(tmp_path / "pred", tmp_path / "ref", labels=given)
    assert found.reference.names == found.prediction.names == {1: "B", 2: "A"}


@pytest.mark.parametrize("frames", [(), (2,)])
def test_masks_of_segment_have_its_labels_beside_a_foreign_dataset(tmp_path: Path, frames: tuple[int, ...]) -> None:
    dataset_json(tmp_path, {"background": 0, "LV": 1, "Myo": 2, "RV": 3})
    (tmp_path / "in").mkdir()
    image = np.random.default_rng(0).normal(100, 20, (12, 10, 4, *frames)).astype(np.float32)
    nib.Nifti1Image(image, np.diag([1.5, 1.5, 8, 1])).to_filename(tmp_path / "in" / "a.nii.gz")
    segment_all(Thresholder(), find_cases(tmp_path / "in"), tmp_path / "pred", options=PLAIN)
    write_labels(tmp_path / "ref" / "a.nii.gz", heart())
    for pred in (tmp_path / "pred", tmp_path / "pred" / "a.nii.gz"):
        found = find_labels(pred, tmp_path / "ref")
        assert found.prediction.names == ACDC.names
        assert found.reference.names == {1: "LV", 2: "Myo", 3: "RV"}


@pytest.mark.parametrize(
    ("record", "names"),
    [
        ({"volume_ml": {}, "labels": {"1": "liver", "2": "spleen"}}, {1: "liver", 2: "spleen"}),
        ({"study": {"volumes_ml": {}, "labels": ["liver", "spleen"]}}, {1: "liver", 2: "spleen"}),
        ({"study": {"volumes_ml": {}}}, {1: "RV", 2: "Myo", 3: "LV"}),
        ({"volume_ml": {}}, {1: "RV", 2: "Myo", 3: "LV"}),
    ],
)
def test_a_record_of_segment_names_the_labels_of_its_bundle(tmp_path: Path, record: object, names: object) -> None:
    write_labels(tmp_path / "pred" / "a.nii.gz", heart())
    (tmp_path / "pred" / "a.json").write_text(json.dumps(record), encoding="utf-8")
    (tmp_path / "pred" / "0.json").write_text('{"of": "something else"}', encoding="utf-8")
    found = find_labels(tmp_path / "pred", tmp_path / "ref")
    assert found.prediction.names == found.reference.names == names


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ('{"labels": {"background": 0, "whole": [1, 2], "core": [2]}}', "whole"),
        ('{"labels": {"background": 0, "LV": "one"}}', "LV"),
        ('{"labels": ["LV"]}', "dictionary"),
        ('{"labels": ', "JSON"),
    ],
)
def test_a_dataset_file_that_cannot_serve_names_the_way_out(tmp_path: Path, content: str, word: str) -> None:
    (tmp_path / "dataset.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=word) as caught:
        find_labels(tmp_path, tmp_path)
    assert caught.value.path == (tmp_path / "dataset.json").resolve()
    assert "--labels" in str(caught.value)


def test_the_way_out_is_a_way(tmp_path: Path) -> None:
    dataset_json(tmp_path, {"background": 0, "whole": [1, 2]})
    given = parse_labels("1=LV,2=Myo")
    assert find_labels(tmp_path, tmp_path, labels=given).names == {1: "LV", 2: "Myo"}


def test_a_json_of_something_else_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"title": "scans"}', encoding="utf-8")
    assert find_labels(tmp_path, tmp_path).reference.names == ACDC.names


def test_sides_are_matched_by_name_and_values_may_be_joined() -> None:
    """Infarct and healthy wall are one myocardium; the atrium is nowhere in the reference."""
    reference = parse_labels("1=LV,2=myocardium,3=MYO,4=background")
    prediction = parse_labels("500=LV,205=Myo,420=LA")
    found = match_labels(reference, prediction)
    assert found.names == {1: "LV", 2: "myocardium"}
    assert list(found.left_out) == ["LA"]
    assert found.of_reference(np.array([0, 1, 2, 3, 4])).tolist() == [0, 1, 2, 2, 0]
    assert found.of_prediction(np.array([0, 500, 205, 420])).tolist() == [0, 1, 2, 0]


def test_sides_without_a_common_name_are_an_error() -> None:
    with pytest.raises(InputError, match="liver"):
        match_labels(parse_labels("1=liver"), parse_labels("1=spleen"))
