"""Bundles of other structures than ACDC's: every label is written, named and coloured; nothing is called a heart."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import REPO
from scans import upright

from cgdpm_med import (
    ConditionalUNet,
    InputError,
    MaskTarget,
    NoiseSchedule,
    Options,
    Segmenter,
    VolumeInput,
    describe,
    evaluate_folders,
    read_volume,
    save_model,
    segment,
)
from cgdpm_med.apps.dicom_seg import check_codes
from cgdpm_med.heart.plugin import CardiacTask
from cgdpm_med.inference.labels import DEFAULT_LABELS, channel_names, colour_of, labels_of
from cgdpm_med.report.records import collect_cohort
from cgdpm_med.studies.outputs import label_tables
from cgdpm_med.studies.task import are_one_body, task_of

FIVE = {"0": "background", "1": "liver", "2": "left kidney", "3": "right kidney", "4": "spleen & <co>"}
THREE = {"0": "background", "1": "lung", "2": "tumour"}
SHAPE = (40, 36, 4)


def bundle_of(folder: Path, channels: int, names: dict[str, str] | None, num_classes: int | None = None) -> Path:
    """The shipped configuration beside the file of a small network of so many classes, with random weights."""
    (folder / "configs").mkdir(parents=True)
    shipped = (REPO / "bundles" / "acdc_segmentation" / "configs" / "inference.yaml").read_text(encoding="utf-8")
    for name, value in {"members": 2, "steps": 1}.items():
        shipped = re.sub(rf"(?m)^{name}: \S.*$", f"{name}: {value}", shipped)
    (folder / "configs" / "inference.yaml").write_text(shipped, encoding="utf-8")
    torch.manual_seed(0)
    levels = {"channels": (8, 8, 16, 16), "num_res_blocks": 1, "attention_levels": (False, False, False, True)}
    network = ConditionalUNet(2, channels, 3, channels, fusion="encoder", patch_size=2, **levels)  # type: ignore[arg-type]
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.5)
    classes = num_classes or max(channels, 2)
    described = describe(
        network,
        MaskTarget(classes, one_hot=classes == channels == 2),
        NoiseSchedule(schedule="cosine", prediction_type="sample"),
        VolumeInput(spacing=1.25, field=64, neighbours=1),
        labels_of(names or {}, classes).names,
    )
    save_model(folder / "models" / "model.pt", network, described)
    return folder


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_of(tmp_path_factory.mktemp("five") / "bundle", 5, FIVE)


def segmented(bundle: Path, source: Path, out: Path, **settings: Any) -> dict[str, Any]:
    result = segment(source, out, bundle=bundle, device="cpu", precision="float32", **settings)
    assert not result["failed"]
    return result


def test_every_label_of_five_classes_is_named(five: Path, tmp_path: Path) -> None:
    result = segmented(five, upright(tmp_path / "scan.nii.gz", SHAPE), tmp_path / "out", label_table=True)
    described = json.loads((tmp_path / "out" / "scan.json").read_text())
    mask = nib.load(tmp_path / "out" / "scan.nii.gz").get_fdata()
    assert described["labels"] == {"1": "liver", "2": "left kidney", "3": "right kidney", "4": "spleen & <co>"}
    for label in range(1, 5):
        assert described["volume_ml"][str(label)] == pytest.approx((mask == label).sum() * 0.024, abs=1e-3)
        assert len(described["member_volume_ml"][str(label)]) == 2
    page = (tmp_path / "out" / "scan.html").read_text()
    assert all(page.count(name) > 1 for name in ("liver", "left kidney", "right kidney", "spleen &amp; &lt;co&gt;"))
    assert all(colour_of(label) in page for label in range(1, 5))
    assert "<co>" not in page
    written = re.sub(r"<style>.*?</style>|base64,[^\"]*", "", page, flags=re.DOTALL)
    assert not re.search(r"cardiac|ventric|myocard|ejection|\bLV\b", written, re.IGNORECASE)
    assert result["studies"][0]["function"] is None
    slicer = Path(result["label_tables"][0]).read_text().splitlines()
    assert [line.split()[1] for line in slicer[3:]] == ["liver", "left_kidney", "right_kidney", "spleen_&_<co>"]


def test_a_series_and_a_cohort_of_five_classes(five: Path, tmp_path: Path) -> None:
    upright(tmp_path / "in" / "a.nii.gz", SHAPE)
    upright(tmp_path / "in" / "b.nii.gz", (40, 36, 4, 3), seed=1)
    result = segmented(five, tmp_path / "in", tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "cohort.csv").open()))
    assert [row["case"] for row in rows] == ["a", "b"]
    described = json.loads((tmp_path / "out" / "a.json").read_text())
    assert float(rows[0]["left kidney_ml"]) == pytest.approx(described["volume_ml"]["2"], abs=1e-3)
    assert not any("_ef_" in column or "edv" in column for column in rows[0])
    assert "spleen" in (tmp_path / "out" / "cohort.html").read_text()
    page = (tmp_path / "out" / "b.html").read_text()
    assert all(f"Frame {number}" in page for number in (1, 2, 3))
    assert all(study["function"] is None and "ed_frame" not in study for study in result["studies"])
    before = (tmp_path / "out" / "cohort.html").read_text()
    assert collect_cohort(tmp_path / "out")["studies"] == ["a", "b"]
    assert (tmp_path / "out" / "cohort.html").read_text() == before


def test_masks_of_five_classes_are_scored_by_their_own_names(five: Path, tmp_path: Path) -> None:
    write = ("mask", "probabilities", "members")
    image = upright(tmp_path / "scan.nii.gz", SHAPE)
    segmented(five, image, tmp_path / "out", options=Options(write=write, pages=False))
    mask = nib.load(tmp_path / "out" / "scan.nii.gz")
    half = np.asanyarray(mask.dataobj) * (np.arange(40) % 2 == 0)[:, None, None]
    (tmp_path / "ref").mkdir()
    nib.Nifti1Image(half.astype(np.uint8), mask.affine).to_filename(tmp_path / "ref" / "scan_seg.nii.gz")
    found = evaluate_folders(tmp_path / "out", tmp_path / "ref")
    assert set(found["structures"]) == set(FIVE.values()) - {"background"}
    assert found["left_out"]["ensembles"] == {}
    assert found["ensemble"]["ged"] >= 0
    again = evaluate_folders(tmp_path / "out", tmp_path / "out")  # another run of segment as the reference
    assert (again["average"]["dice"], again["failed"]) == (1.0, {})


@pytest.mark.parametrize(
    ("channels", "names", "expected"),
    [
        (3, THREE, ["lung", "tumour"]),
        (3, None, ["label 1", "label 2"]),
        (2, {"0": "background", "1": "vessel"}, ["vessel"]),
        (6, {"0": "background", "1": "a"}, ["a", "label 2", "label 3", "label 4", "label 5"]),
        (1, {"0": "vessel"}, ["vessel"]),
        (4, {"0": "background", "1": "LV", "2": "myocardium", "3": "RV"}, ["LV", "myocardium", "RV"]),
    ],
)
def test_other_numbers_of_classes(
    channels: int, names: dict[str, str] | None, expected: list[str], tmp_path: Path
) -> None:
    bundle = bundle_of(tmp_path / "bundle", channels, names)
    upright(tmp_path / "in" / "a.nii.gz", SHAPE)
    result = segmented(bundle, tmp_path / "in", tmp_path / "out", options=Options(write=("mask", "probabilities")))
    described = json.loads((tmp_path / "out" / "a.json").read_text())
    assert list(described["labels"].values()) == expected
    assert list(described["volume_ml"]) == [str(label) for label in range(1, len(expected) + 1)]
    assert nib.load(tmp_path / "out" / "a_probabilities.nii.gz").shape[-1] == len(expected) + 1
    assert result["studies"][0]["function"] is None
    assert all(name in (tmp_path / "out" / "a.html").read_text() for name in expected)


def test_a_network_of_one_channel_with_two_classes(tmp_path: Path) -> None:
    """Its members are read one by one, and inside and outside the region around what the scout found."""
    bundle = bundle_of(tmp_path / "bundle", 1, {"0": "vessel"})
    segmenter = Segmenter.from_bundle(bundle, device="cpu", precision="float32", members=3)
    result = segmenter(read_volume(upright(tmp_path / "a.nii.gz", SHAPE)))
    assert result.members.shape == (3, 40, 36, 4)
    assert result.probabilities.shape == (2, 40, 36, 4)
    np.testing.assert_allclose(result.probabilities.sum(axis=0), 1, atol=1e-6)
    np.testing.assert_array_equal(result.mask, result.probabilities[1] > 0.5)


def test_dicom_seg_of_structures_without_codes_is_refused() -> None:
    check_codes(DEFAULT_LABELS)
    with pytest.raises(InputError, match="lung"):
        check_codes(labels_of(THREE, 3))


def test_labels_by_hand() -> None:
    assert labels_of(None, 4) == DEFAULT_LABELS
    assert labels_of({}, 4).names == ("label 1", "label 2", "label 3")
    shipped = channel_names(REPO / "bundles" / "acdc_segmentation")
    assert labels_of(shipped, 4) == DEFAULT_LABELS
    assert not isinstance(task_of(labels_of(shipped, 5)), CardiacTask)
    assert labels_of({"1": "LV", "2": "Myo", "3": "RV"}, 4).names == ("LV", "Myo", "RV")
    assert labels_of({"1": "RV cavity", "2": "LV myocardium", "3": "LV cavity"}, 4) == DEFAULT_LABELS
    assert channel_names("nowhere") == {}
    colours = [colour_of(label) for label in range(1, 60)]
    assert len(set(colours)) == len(colours)
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours)


def test_names_in_label_tables_stay_in_their_columns() -> None:
    tables = label_tables(labels_of({"1": 'the "big" one'}, 2))
    assert tables["labels.ctbl"].splitlines()[-1].split()[1] == 'the_"big"_one'
    assert tables["labels.label"].splitlines()[-1].count('"') == 2


@pytest.mark.parametrize(
    ("names", "one"),
    [
        ({"0": "background", "1": "RV", "2": "Myo", "3": "LV"}, True),
        ({"0": "background", "1": "LV", "2": "Myo", "3": "RV"}, True),
        (FIVE, False),
        (THREE, False),
        ({"0": "background", "1": "RV", "2": "Myo", "3": "LV", "4": "scar"}, False),
        ({}, False),
    ],
)
def test_only_what_hangs_together_in_every_patient_is_one_body(names: dict[str, str], one: bool) -> None:
    assert are_one_body(names) is one


def test_the_shipped_configuration_keeps_every_piece_of_other_structures(tmp_path: Path) -> None:
    assert not Segmenter.from_bundle(bundle_of(tmp_path / "other", 5, FIVE), device="cpu").one_body
    assert Segmenter.from_bundle("acdc_segmentation", device="cpu").one_body
