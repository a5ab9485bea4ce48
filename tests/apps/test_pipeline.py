"""Whole runs: cines, studies, options; what a second run does is in test_resume.py."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scans import AFFINE, PLAIN, scan, write_image
from segmentations import segmentation_of
from stubs import Oracle, Thresholder

from cgdpm_med import InputError, Options, find_cases, read_labels, segment_all, staple
from cgdpm_med.apps.pipeline import segment_cases
from cgdpm_med.apps.segment_options import check_options
from cgdpm_med.heart.function import cardiac_function
from cgdpm_med.inference.components import keep_largest
from cgdpm_med.inference.quality import Finding, Quality
from cgdpm_med.inference.segmenter import Segmentation
from cgdpm_med.metrics.volumetry import frame_volumes
from cgdpm_med.phantom import write_phantom_dataset
from cgdpm_med.report.records import read_study_record, study_record
from cgdpm_med.studies.outputs import label_tables
from cgdpm_med.studies.result import StudyResult
from cgdpm_med.volumes import Volume, frames, read_volume

SMALL: dict[str, Any] = {"shape": (64, 56, 4), "spacing": (2.8, 2.8, 22.0), "num_frames": 6}
VOXEL_ML = abs(np.linalg.det(AFFINE[:3, :3])) / 1000


def cine(path: Path, cavities: tuple[int, ...] = (3, 5, 2, 4)) -> Path:
    """Noise of 0 to 1, and in frame t a bright block of ``cavities[t]`` x 2 x 2 voxels."""
    data = np.random.default_rng(0).uniform(0, 1, (8, 6, 4, len(cavities)))
    for t, width in enumerate(cavities):
        data[1 : 1 + width, 2:4, 1:3, t] = 100
    return write_image(path, data)


class Cavity(Thresholder):
    """Calls what is brighter than 50 left ventricle; member k of three lacks its k first columns."""

    def __call__(self, volume: Volume, key: str, progress: object = None) -> Segmentation:
        self.seen.append(key)
        members = np.stack([3 * (volume.data > 50).astype(np.uint8)] * 3)
        members[1, :2] = members[2, :3] = 0
        return segmentation_of(members, volume, key)


# --- cine -------------------------------------------------------------------------------------------------------------


def test_a_cine_becomes_one_mask_on_its_own_grid_and_one_study(tmp_path: Path) -> None:
    image = cine(tmp_path / "cine.nii.gz")
    segmenter = Cavity()
    options = Options(write=("mask", "entropy", "members"), pages=False)
    result = segment_all(segmenter, find_cases(image), tmp_path / "out", options=options)
    assert segmenter.seen == [f"cine/frame{t:03d}" for t in (1, 2, 3, 4)]
    frame_files = [f"cine_frame{t:03d}_members.nii.gz" for t in (1, 2, 3, 4)]
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == sorted(["cine.nii.gz", "cine_entropy.nii.gz", "cine.json", *frame_files])

    source, mask = nib.load(image), nib.load(tmp_path / "out" / "cine.nii.gz")
    assert mask.shape == source.shape
    np.testing.assert_array_equal(mask.affine, source.affine)
    # two of three members leave out the first column: the majority of probabilities does, too
    expected = 3 * (source.get_fdata() > 50)
    expected[:2] = 0
    np.testing.assert_array_equal(mask.get_fdata(), expected)
    members = nib.load(tmp_path / "out" / "cine_frame002_members.nii.gz")
    assert members.shape == (8, 6, 4, 3)
    assert np.count_nonzero(members.get_fdata()[..., 0]) == 5 * 4

    (study,) = result["studies"]
    assert (study["ed_frame"], study["es_frame"]) == (2, 3)
    edv, esv = (study["function"]["measures"][name]["value"] for name in ("lv_edv", "lv_esv"))
    assert edv == pytest.approx((5 - 1) * 4 * VOXEL_ML, rel=1e-6)
    assert esv == pytest.approx((2 - 1) * 4 * VOXEL_ML, rel=1e-6)
    record = json.loads((tmp_path / "out" / "cine.json").read_text())
    assert list(record["frames"]) == ["1", "2", "3", "4"]
    assert record["study"]["quality"]["status"] == "review"  # it has no right ventricle


def test_named_frames_and_body_size_go_into_the_function(tmp_path: Path) -> None:
    image = cine(tmp_path / "cine.nii.gz")
    options = Options(pages=False, ed=1, es=4, height=180, weight=80)
    outcome = segment_cases(Cavity(), find_cases(image), tmp_path / "out", options=options)
    (result,) = outcome.results
    assert result.phases == {"ED": 1, "ES": 4}
    assert result.function is not None
    assert result.function.body_surface == 2.0


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (Options(ed=5), "has 4 frames, so ED cannot be frame 5"),
        (Options(es=9), "has 4 frames, so ES cannot be frame 9"),
    ],
)
def test_frames_that_a_cine_does_not_have(tmp_path: Path, options: Options, complaint: str) -> None:
    segmenter = Cavity()
    outcome = segment_cases(segmenter, find_cases(cine(tmp_path / "c.nii.gz")), tmp_path / "out", options=options)
    assert complaint in outcome.failed["c"]
    assert segmenter.seen == []
    assert not (tmp_path / "out").exists()


def test_a_constant_frame_is_named(tmp_path: Path) -> None:
    data = np.random.default_rng(0).uniform(0, 1, (4, 4, 2, 3))
    data[..., 1] = 0
    outcome = segment_cases(Thresholder(), find_cases(write_image(tmp_path / "c.nii.gz", data)), tmp_path / "out")
    assert "is constant in frame 2" in outcome.failed["c"]
    assert not (tmp_path / "out").exists()


# --- options ----------------------------------------------------------------------------------------------------------


def test_the_largest_piece_of_each_label_stays_and_the_rest_is_counted() -> None:
    mask = np.zeros((6, 5, 2), np.uint8)
    mask[0:2, 0, 0] = 1
    mask[2, 1, 1] = 1  # touches at a corner: the same piece
    mask[5, 4, 0] = 1
    mask[4, 0, 0] = mask[4, 2, 0] = 3  # two equal pieces
    kept, removed = keep_largest(mask)
    assert removed == {1: 1, 3: 1}
    expected = mask.copy()
    expected[5, 4, 0] = expected[4, 2, 0] = 0
    np.testing.assert_array_equal(kept, expected)
    assert keep_largest(np.zeros((2, 2, 2), np.uint8))[1] == {}


def test_keeping_the_largest_piece_is_off_unless_asked_for(tmp_path: Path) -> None:
    data = np.zeros((8, 6, 4))
    data[1:3, 1:3, 1:3] = data[6, 5, 0] = 100
    data[0, 0, 0] = 1
    image = write_image(tmp_path / "a.nii.gz", data)
    for options, voxels, said in ((PLAIN, 5, None), (Options(pages=False, keep_largest=True), 4, {"3": 1})):
        segment_cases(Rows(), find_cases(image), tmp_path / "out", options=options)
        mask = read_labels(tmp_path / "out" / "a.nii.gz").data
        assert np.count_nonzero(mask) == voxels
        assert json.loads((tmp_path / "out" / "a.json").read_text()).get("removed_voxels") == said


def test_both_ways_of_leaving_out_are_counted_together(tmp_path: Path) -> None:
    data = np.zeros((8, 6, 4))
    data[1:3, 1:3, 1:3] = data[6, 5, 0] = 100
    data[0, 0, 0] = 1
    image = write_image(tmp_path / "a.nii.gz", data)
    for options, said in ((PLAIN, {"1": 2, "3": 4}), (Options(pages=False, keep_largest=True), {"1": 2, "3": 5})):
        segment_cases(Reduced(), find_cases(image), tmp_path / "out", options=options)
        assert json.loads((tmp_path / "out" / "a.json").read_text())["removed_voxels"] == said


class Rows(Thresholder):
    """One member, the first of :class:`Cavity`'s with its second slice left out."""

    def __call__(self, volume: Volume, key: str, progress: object = None) -> Segmentation:
        labels = 3 * (volume.data > 50).astype(np.uint8)
        labels[..., 2:] = 0
        return segmentation_of(labels[None], volume, key)


class Reduced(Rows):
    """Says of itself that it took something out."""

    def __call__(self, volume: Volume, key: str, progress: object = None) -> Segmentation:
        return replace(super().__call__(volume, key, progress), removed_voxels={1: 2, 3: 4})


def test_staple_combines_where_it_was_asked_for(tmp_path: Path) -> None:
    image = cine(tmp_path / "a.nii.gz", (5, 4))
    segment_cases(Cavity(), find_cases(image), tmp_path / "out", options=Options(pages=False, staple=True))
    segmenter = Cavity()
    expected = [staple(segmenter(frame, "k").members).mask for frame in frames(read_volume(image))]
    mask = read_labels(tmp_path / "out" / "a.nii.gz").data
    np.testing.assert_array_equal(mask, np.stack(expected, axis=-1))
    assert json.loads((tmp_path / "out" / "a.json").read_text())["frames"]["1"]["combine"] == "staple"


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    for name in ("a", "b"):
        scan(tmp_path / "two" / f"{name}.nii.gz")
    write_phantom_dataset(tmp_path / "acdc", patients=[901], **SMALL)
    two, acdc = find_cases(tmp_path / "two"), find_cases(tmp_path / "acdc")
    for options, cases, complaint in [
        (Options(ed=1), acdc, "Info.cfg says which"),
        (Options(ed=2, es=2), two, "the same frame"),
        (Options(height=170), two[:1], "both height and weight"),
        (Options(height=170, weight=70), two, "cannot be those of 2 studies"),
    ]:
        with pytest.raises(InputError, match=complaint) as error:
            check_options(options, cases)
        assert error.value.remedy is not None
    check_options(Options(height=170, weight=70), acdc)
    outcome = segment_cases(Thresholder(), two, tmp_path / "out", options=Options(ed=1))
    assert "has no frames to name" in outcome.failed["a"]


def test_label_tables_hold_every_label_once() -> None:
    tables = label_tables()
    slicer = [line.split() for line in tables["labels.ctbl"].splitlines() if not line.startswith("#")]
    assert [(row[0], row[1]) for row in slicer] == [("0", "background"), ("1", "RV"), ("2", "Myo"), ("3", "LV")]
    assert slicer[3] == ["3", "LV", "255", "90", "79", "255"]
    snap = [line.split(maxsplit=7) for line in tables["labels.label"].splitlines() if not line.startswith("#")]
    assert [row[0] for row in snap] == ["0", "1", "2", "3"]
    assert snap[3] == ["3", "255", "90", "79", "1", "1", "1", '"LV"']


# --- studies and cohorts ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def acdc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("acdc")
    write_phantom_dataset(root, patients=[901, 902], **SMALL)
    return root


def test_a_patient_is_one_study_with_page_record_and_a_row_in_the_cohort(acdc: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = segment_all(Oracle(), find_cases(acdc), out)
    key = "patient901"
    record = json.loads((out / key / f"{key}.json").read_text())
    images = sorted((acdc / key).glob("*_frame??.nii.gz"))
    names = [path.name.removesuffix(".nii.gz") for path in images]
    assert len(names) == 2
    assert sorted(path.name for path in (out / key).iterdir()) == sorted(
        [f"{key}.json", f"{key}.html"]
        + [f"{n}{end}" for n in names for end in (".nii.gz", "_entropy.nii.gz", "_disagreement.nii.gz", ".json")]
    )
    assert sorted(record["inputs"]) == [path.name for path in images]
    # the function is that of the true masks, whose members the oracle makes
    with (out / "cohort.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["patient901", "patient902"]
    masks = [read_labels(out / key / f"{n}.nii.gz") for n in names]
    volumes = [frame_volumes(m.data, m.data[None], m.grid.voxel_volume) for m in masks]
    assert float(rows[key]["lv_ef_percent"]) == pytest.approx(
        cardiac_function(*volumes).measures["lv_ef"].value, abs=6e-4
    )
    page = (out / "cohort.html").read_text()
    assert f'href="{key}/{key}.html"' in page
    assert [study["key"] for study in result["studies"]] == ["patient901", "patient902"]


def test_a_study_with_a_bad_image_is_not_finished(acdc: Path, tmp_path: Path) -> None:
    shutil.copytree(acdc / "patient901", tmp_path / "in" / "patient901")
    first, second = sorted((tmp_path / "in" / "patient901").glob("*_frame??.nii.gz"))
    second.write_bytes(b"")
    outcome = segment_cases(Thresholder(), find_cases(tmp_path / "in"), tmp_path / "out", options=PLAIN)
    bad, good = (path.name.removesuffix(".nii.gz") for path in (second, first))
    assert list(outcome.failed) == [bad]
    assert outcome.results == []
    assert (tmp_path / "out" / "patient901" / f"{good}.json").is_file()
    assert not (tmp_path / "out" / "patient901" / "patient901.json").exists()


def example_result() -> StudyResult:
    rng = np.random.default_rng(0)
    volumes = {n: frame_volumes(rng.integers(0, 4, (3, 4)), rng.integers(0, 4, (5, 3, 4)), 7.3) for n in (1, 4)}
    function = cardiac_function(
        volumes[1], volumes[4], height=171, weight=66, widening={"lv_ef": 1.7}, margin={"rv_ef": 2}
    )
    quality = Quality((Finding("a", "b", review=False), Finding("c", "d")), {"ED": {1: 0.9, 3: 1.0}})
    return StudyResult("x/y", volumes, quality, {"ED": 1, "ES": 4}, function)


def test_a_record_gives_back_the_result_it_was_made_of() -> None:
    result = example_result()
    again = read_study_record(json.loads(json.dumps(study_record(result))))
    for frame, volumes in result.volumes.items():
        np.testing.assert_array_equal(again.volumes[frame].combined, volumes.combined)
        np.testing.assert_array_equal(again.volumes[frame].members, volumes.members)
    assert (again.key, again.quality, again.phases, again.function) == (
        "x/y",
        result.quality,
        {"ED": 1, "ES": 4},
        result.function,
    )


def test_options_that_do_not_exist_are_refused_beside_those_that_do(tmp_path: Path) -> None:
    nobody: Any = None  # refused before anything is asked of it
    with pytest.raises(TypeError, match="nonsense"):
        segment_all(nobody, [], tmp_path, options=Options(), nonsense=3)
    with pytest.raises(InputError, match="sketch"):
        segment_all(nobody, [], tmp_path, options=Options(), write=("mask", "sketch"))
