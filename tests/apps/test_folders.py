"""Everything below a folder is segmented, or named once with its reason."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from scans import PLAIN
from segmentations import segmentation_of
from stubs import Stub, Thresholder
from typer.testing import CliRunner

from cgdpm_med import InputError, Volume, find_cases, read_volume, segment_all
from cgdpm_med.apps.cli import app
from cgdpm_med.inference.segmenter import Segmentation
from cgdpm_med.phantom import write_phantom_dataset
from cgdpm_med.studies.cases import CINES, search
from cgdpm_med.studies.folders import LABEL_MAPS, OTHER_VIEWS, PICTURES, RESULTS, FolderWarning, is_label_map, is_volume
from cgdpm_med.studies.mask_pairs import pair_masks
from cgdpm_med.studies.phases import cine_of, phase_pairs

AFFINE = np.diag([-1.5, -1.5, 8.0, 1.0])
IMAGE = np.random.default_rng(0).integers(0, 1000, (8, 6, 4)).astype(np.int16)
LABELS = (IMAGE % 4).astype(np.uint8)


class Bright(Stub):
    """Calls whatever is brighter than 50 left ventricle."""

    def __call__(self, volume: Volume, key: str, progress: object = None) -> Segmentation:
        return segmentation_of(3 * (volume.data > 50).astype(np.uint8)[None], volume, key)


def save(path: Path, data: NDArray[np.generic] = IMAGE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, AFFINE), path)
    return path


def put(path: Path, content: bytes = b"\0\1binary") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def found(folder: Path) -> tuple[list[str], dict[str, list[str]], dict[str, str]]:
    """Keys of the good cases, names left out by reason, and the errors by key."""
    result = search(folder)
    left_out = {why: [p.relative_to(folder).as_posix() for p in paths] for why, paths in result.left_out.items()}
    good = [case.key for case in result.cases if case.error is None]
    return good, left_out, {case.key: case.error.what for case in result.cases if case.error is not None}


# --- what is left out -------------------------------------------------------------------------------------------------

NAMED_LABELS = [
    "a_gt.nii.gz",
    "b_seg.nii.gz",
    "c_label.nii.gz",
    "d-label.nrrd",
    "e_labels.mha",
    "f_mask.nii.gz",
    "g.seg.nrrd",
    "h_Segmentation.nii",
    "label_sa_ED.nii.gz",
    "seg_sa.nii.gz",
    "i_mask1.nii.gz",
    "labelsTr/j.nii.gz",
    "labelsTs/k.nii.gz",
    "x/masks/l.nii.gz",
    "Segmentations/m.nii.gz",
    "n_gt_0000.nii.gz",
    "sub-01_dseg.nii.gz",
    "sub-01_label-LV_probseg.nii.gz",
    "gt_segmentations/o.nii.gz",
]


def test_label_maps_are_known_by_their_names_and_folders(tmp_path: Path) -> None:
    for name in NAMED_LABELS:
        put(tmp_path / name)
    for name in ("imagesTr/j_0000.nii.gz", "masked.nii.gz", "label7.x.nii.gz", "gtx.nii.gz"):
        save(tmp_path / name)
    good, left_out, errors = found(tmp_path)
    assert good == ["gtx", "imagesTr/j", "label7.x", "masked"]
    assert left_out == {LABEL_MAPS: sorted(NAMED_LABELS)}
    assert errors == {}


def test_label_maps_are_known_by_what_they_hold(tmp_path: Path) -> None:
    save(tmp_path / "scan.nii.gz")
    save(tmp_path / "dark.nii.gz", (IMAGE % 200).astype(np.uint8))  # an 8-bit image
    save(tmp_path / "reading2.nii.gz", LABELS)
    sitk.WriteImage(sitk.GetImageFromArray(LABELS.T), str(tmp_path / "reader.nrrd"))
    sitk.WriteImage(sitk.GetImageFromArray(LABELS.T), str(tmp_path / "other.mha"))
    save(tmp_path / "empty.nii.gz", np.zeros_like(LABELS))
    good, left_out, _ = found(tmp_path)
    assert good == ["dark", "empty", "scan"]  # of an empty one reading says so
    assert left_out == {LABEL_MAPS: ["other.mha", "reader.nrrd", "reading2.nii.gz"]}


@pytest.mark.parametrize("kind", [np.int16, np.float32, np.float64])
def test_a_label_map_of_any_type_is_not_segmented(tmp_path: Path, kind: type[np.generic]) -> None:
    save(tmp_path / "in" / "scan.nii.gz", LABELS.astype(kind))
    result = segment_all(Thresholder(), find_cases(tmp_path / "in"), tmp_path / "out", options=PLAIN)
    assert "label map" in result["failed"]["scan"]
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


def test_what_is_a_label_map() -> None:
    assert is_label_map(LABELS)
    assert is_label_map(255 * (LABELS > 2))
    assert not is_label_map(IMAGE)
    assert not is_label_map(LABELS / 2)
    assert not is_label_map(LABELS * 100)


def test_other_views_are_left_out_by_name(tmp_path: Path) -> None:
    views = ["001_LA_ED.nii.gz", "la_2ch.nii.gz", "la_4ch_ED.nii.gz", "x/4ch.nii.gz", "LAX/a.nii.gz", "ao.nii.gz"]
    for name in [*views, "sa.nii.gz", "lab.nii.gz", "sax_4ch.nii.gz"]:
        save(tmp_path / name)
    good, left_out, _ = found(tmp_path)
    assert good == ["lab", "sa", "sax_4ch"]
    assert left_out == {OTHER_VIEWS: sorted(views)}


def test_results_of_an_earlier_run_are_left_out(tmp_path: Path) -> None:
    scan = save(tmp_path / "in" / "scan.nii.gz")
    segment_all(Thresholder(), find_cases(scan), tmp_path / "in" / "earlier")
    save(tmp_path / "in" / "earlier" / "new.nii.gz")
    good, left_out, errors = found(tmp_path / "in")
    assert (good, errors) == (["earlier/new", "scan"], {})
    assert left_out == {
        RESULTS: [f"earlier/scan{end}.nii.gz" for end in ("", "_disagreement", "_entropy")],
    }


def test_maps_of_a_run_that_was_stopped_are_left_out(tmp_path: Path) -> None:
    save(tmp_path / "scan.nii.gz", LABELS)  # a mask, and no JSON
    maps = ["scan_entropy.nii.gz", "scan_disagreement.nii.gz", "scan_frame012_probabilities.nii.gz"]
    for name in [*maps, "other_entropy.nii.gz", "scan_entropy2.nii.gz"]:
        save(tmp_path / name)
    good, left_out, errors = found(tmp_path)
    assert (good, errors) == (["other_entropy", "scan_entropy2"], {})
    assert left_out == {LABEL_MAPS: ["scan.nii.gz"], RESULTS: sorted(maps)}


def test_a_json_of_others_names_no_results(tmp_path: Path) -> None:
    save(tmp_path / "scan.nii.gz")
    for n, text in enumerate(('{"files": ["scan.nii.gz"]}', "[1]", "{", '{"made_with": 1, "files": [1]}')):
        (tmp_path / f"{n}.json").write_text(text)
    assert found(tmp_path)[0] == ["scan"]


def test_pictures_are_left_out_and_nothing_else_is_no_answer(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"holds no \.nii.*1 pictures.*--bundle"):
        find_cases(tmp_path)
    save(tmp_path / "a.nii.gz")
    assert found(tmp_path) == (["a"], {PICTURES: ["a.png"]}, {})


@pytest.mark.parametrize("name", ["photo.JPG", "größe 1.png", "cell.tif"])
def test_a_picture_by_itself_needs_a_run(name: str, tmp_path: Path) -> None:
    put(tmp_path / name)
    with pytest.raises(InputError, match=r"is a picture.*NIfTI.*--bundle.*cgdpm-med train"):
        find_cases(tmp_path / name)


def test_a_warning_names_each_reason_once(tmp_path: Path) -> None:
    save(tmp_path / "scan.nii.gz")
    for n in range(30):
        put(tmp_path / "labelsTr" / f"{n:02d}.nii.gz")
    put(tmp_path / "view.png")
    with pytest.warns(FolderWarning) as caught:
        find_cases(tmp_path)
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == 2
    assert any("30 label maps" in text and "labelsTr" in text and "22 more" in text for text in texts)
    assert any("view.png" in text for text in texts)


# --- what is of no use ------------------------------------------------------------------------------------------------


def test_what_looks_like_an_image_and_is_not_read_is_an_error(tmp_path: Path) -> None:
    save(tmp_path / "scan.nii.gz")
    for name in ("a.mnc", "b.zip", "old.nii.bz2", "IM0001", "x/1.par", "x/2.par", "y/lonely.img", "z/lost.zraw"):
        put(tmp_path / name)
    good, left_out, errors = found(tmp_path)
    assert (good, left_out) == (["scan"], {})
    assert set(errors) == {"a.mnc", "b.zip", "old.nii.bz2", "IM0001", "x", "y/lonely.img", "z/lost.zraw"}
    assert "2 files" in errors["x"]
    assert ".par" in errors["x"]


def test_what_is_packed_is_to_be_unpacked(tmp_path: Path) -> None:
    save(tmp_path / "scan.nii.gz")
    packed = [put(tmp_path / name) for name in ("IM1.dcm.gz", "a/old.nii.bz2", "b/IM2.ima.xz")]
    errors = {case.image: case.error for case in search(tmp_path).cases if case.error is not None}
    assert sorted(errors) == sorted(packed)
    assert all("Unpack it" in str(error) for error in errors.values())
    for path in packed:  # given by itself, too
        with pytest.raises(InputError, match=r"is packed\. Unpack it"):
            search(path)
    assert [case.key for case in search(tmp_path / "scan.nii.gz").cases] == ["scan"]


@pytest.mark.parametrize("name", ["DICOMDIR", "dicomdir"])
def test_a_table_of_contents_leads_to_its_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is the table of contents of DICOM files\. Give its folder"):
        search(put(tmp_path / name, b"\0" * 128 + b"DICM"))


def test_harmless_companions_are_not_mentioned(tmp_path: Path) -> None:
    save(tmp_path / "scan.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(IMAGE.T), str(tmp_path / "b.mhd"), True)
    sitk.WriteImage(sitk.GetImageFromArray(IMAGE.T), str(tmp_path / "c.nhdr"))
    sitk.WriteImage(sitk.GetImageFromArray(IMAGE.T), str(tmp_path / "d.hdr"))
    texts = ("scan.json", "Info.txt", "table.csv", "a.bval", "README", "notes.odd", "labels.ctbl")
    for name in texts:
        put(tmp_path / name, b"words, and more words\n")
    for name in ("DICOMDIR", ".hidden", ".git/x.mnc", "paper.pdf", "Thumbs.db"):
        put(tmp_path / name)
    assert found(tmp_path) == (["b", "c", "d", "scan"], {}, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_cases(tmp_path)


def test_links_to_folders_elsewhere_are_named(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "b.nii.gz")
    save(tmp_path / "in" / "x" / "a.nii.gz")
    (tmp_path / "in" / "away").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "in" / "within").symlink_to(tmp_path / "in" / "x", target_is_directory=True)
    (tmp_path / "in" / "up").symlink_to(tmp_path, target_is_directory=True)
    good, _, errors = found(tmp_path / "in")
    assert good == ["x/a"]
    assert list(errors) == ["away"]


def test_the_command_says_what_it_leaves_out_and_fails_for_what_it_cannot_use(tmp_path: Path) -> None:
    save(tmp_path / "in" / "labelsTr" / "a.nii.gz", LABELS)
    put(tmp_path / "in" / "b.mgz", b"not a scan")
    put(tmp_path / "in" / "c.seq.nrrd", b"NRRD0004\n")
    put(tmp_path / "in" / "d.mnc")
    with pytest.warns(FolderWarning, match="labelsTr"):
        done = CliRunner().invoke(app, ["segment", str(tmp_path / "in"), str(tmp_path / "out"), "--json"])
    assert done.exit_code == 1
    result = json.loads(done.stdout)
    assert set(result["failed"]) == {"b", "c", "d.mnc"}
    assert result["left_out"] == {LABEL_MAPS: [str(tmp_path / "in" / "labelsTr" / "a.nii.gz")]}


# --- ACDC and its neighbours ------------------------------------------------------------------------------------------


def patient(folder: Path, frames: tuple[int, ...] = (1, 12)) -> Path:
    name = folder.name
    for frame in frames:
        save(folder / f"{name}_frame{frame:02d}.nii.gz")
        put(folder / f"{name}_frame{frame:02d}_gt.nii.gz")
    put(folder / f"{name}_4d.nii.gz")
    (folder / "Info.cfg").write_text("ED: 1\nES: 12\n")
    return folder


def test_scans_beside_acdc_count_wherever_they_lie(tmp_path: Path) -> None:
    patient(tmp_path / "patient001", (1, 5, 12))
    save(tmp_path / "volunteer.nii.gz")
    save(tmp_path / "patient001" / "later.nii.gz")
    save(tmp_path / "more" / "a.nii.gz")
    good, left_out, errors = found(tmp_path)
    one = ["patient001_frame01", "patient001_frame12"]
    assert good == [*one, "more/a", "patient001/later", "volunteer"]
    assert errors == {}
    assert {why: len(names) for why, names in left_out.items() if why != LABEL_MAPS} == {
        "cines whose ED and ES frames are segmented": 1,
        "frames that are neither ED nor ES": 1,
    }
    assert len(left_out[LABEL_MAPS]) == 3


def test_patients_elsewhere_keep_their_folders(tmp_path: Path) -> None:
    for place in ("training/patient001", "testing/patient101", "siteB/patient001"):
        patient(tmp_path / place)
    cases = search(tmp_path).cases
    assert [case.error for case in cases] == [None] * 6
    assert {case.study.key: case.folder.as_posix() for case in cases} == {
        "patient001": "patient001",
        "siteB/patient001": "siteB/patient001",
        "testing/patient101": "testing/patient101",
    }
    assert [case.key for case in cases if case.study.key == "siteB/patient001"] == [
        "siteB/patient001_frame01",
        "siteB/patient001_frame12",
    ]


# --- ED and ES by name ------------------------------------------------------------------------------------------------


def test_phases_by_name() -> None:
    keys = [
        "1234/sa_ED",
        "1234/sa_ES",
        "1234/sa",
        "7_SA_ED",
        "7_SA_ES",
        "x/ED",
        "x/ES",
        "es-1",
        "ed-1",
        "ED_ES",
        "y_ED",
    ]
    assert phase_pairs(keys) == {
        "1234/sa": ("1234/sa_ED", "1234/sa_ES"),
        "7_SA": ("7_SA_ED", "7_SA_ES"),
        "x/ED_ES": ("x/ED", "x/ES"),
        "1": ("ed-1", "es-1"),
    }
    assert phase_pairs(["a/s_ED", "b/s_ES", "seed", "sees", "t_ED", "t_ES", "t.ES"]) == {"t": ("t_ED", "t_ES")}
    assert [cine_of(key) for key in ("a/1_SA_CINE", "a/sa", "2_4d")] == ["a/1_SA", "a/sa", "2"]


@pytest.mark.parametrize(
    ("names", "study"),
    [
        (["1234567/sa_ED", "1234567/sa_ES", "1234567/sa"], "1234567/sa"),
        (["001/001_SA_ED", "001/001_SA_ES", "001/001_SA_CINE"], "001/001_SA"),
        (["p_es_0000", "p_ed_0000"], "p"),
    ],
    ids=["UK Biobank", "M&Ms-2", "nnU-Net"],
)
def test_ed_and_es_of_one_name_are_one_heart(tmp_path: Path, names: list[str], study: str) -> None:
    large, small = np.zeros((8, 6, 4)), np.zeros((8, 6, 4))
    large[1:7, 1:5], small[2:5, 1:5] = 100, 100
    for name in names:
        phase = name.lower()
        data = large if "ed" in phase else small if "es" in phase else np.stack([large, small], -1)
        data = data + np.random.default_rng(0).random(data.shape)
        save(tmp_path / "in" / f"{name}.nii.gz", data.astype(np.float32))
    save(tmp_path / "in" / "single.nii.gz", (large + 1).astype(np.float32) + IMAGE % 7)
    result = segment_all(Bright(), search(tmp_path / "in").cases, tmp_path / "out", options=PLAIN)
    assert result["failed"] == {}
    with (tmp_path / "out" / "cohort.csv").open(newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert set(rows) == {study, "single"}
    assert float(rows[study]["lv_ef_percent"]) == pytest.approx(50)
    assert (rows[study]["ed_frame"], rows[study]["es_frame"]) == ("1", "2")
    assert float(rows["single"]["lv_ml"]) == pytest.approx(24 * 4 * 1.5 * 1.5 * 8 / 1000, abs=1e-3)
    assert rows["single"]["lv_ef_percent"] == ""
    assert json.loads((tmp_path / "out" / f"{study}.json").read_text())["study"]["ed_frame"] == 1


def test_series_called_like_phases_are_named_before_any_work(tmp_path: Path) -> None:
    cine = np.stack([IMAGE, IMAGE + 1], axis=-1)
    files = [save(tmp_path / "in" / f"x2_{phase}.nii.gz", cine) for phase in ("ED", "ES")]
    segmenter = Bright()
    result = segment_all(segmenter, find_cases(tmp_path / "in"), tmp_path / "out", options=PLAIN)
    for file, error in zip(files, result["failed"].values(), strict=True):
        assert error.startswith(f"{file}: holds 2 frames")
        assert "Give this file by itself, or rename it without ED and ES" in error
    assert result["cases"] == []
    for file in files:
        assert segment_all(segmenter, find_cases(file), tmp_path / "out", options=PLAIN)["failed"] == {}


def test_a_phase_without_the_other_is_an_image_by_itself(tmp_path: Path) -> None:
    save(tmp_path / "sa_ED.nii.gz")
    save(tmp_path / "sa.nii.gz")
    assert found(tmp_path) == (["sa", "sa_ED"], {}, {})


# --- other formats in a folder ----------------------------------------------------------------------------------------


def test_a_phantom_in_any_format_gives_the_same_mask(tmp_path: Path) -> None:
    (folder,) = write_phantom_dataset(tmp_path / "phantom", patients=1)
    frame = folder / f"{folder.name}_frame01.nii.gz"
    image = read_volume(frame)
    affine = np.diag([-1.0, -1, 1, 1]) @ image.grid.affine
    saved = sitk.GetImageFromArray(np.ascontiguousarray(image.data.T))
    saved.SetSpacing(image.grid.spacing)
    saved.SetOrigin(affine[:3, 3].tolist())
    saved.SetDirection((affine[:3, :3] / image.grid.spacing).ravel().tolist())
    names = ("a.nrrd", "b.nhdr", "c.mha", "d.mhd", "e.hdr", "f.hdr.gz")
    (tmp_path / "in").mkdir()
    for name in names:
        sitk.WriteImage(saved, str(tmp_path / "in" / name), True)
    nib.save(nib.MGHImage(image.data, image.grid.affine.astype(np.float32)), tmp_path / "in" / "g.mgz")
    result = segment_all(Thresholder(), find_cases(tmp_path / "in"), tmp_path / "out", options=PLAIN)
    assert result["failed"] == {}
    segment_all(Thresholder(), find_cases(frame), tmp_path / "plain", options=PLAIN)
    expected = np.asarray(nib.Nifti1Image.from_filename(tmp_path / "plain" / f"{case_name(frame)}.nii.gz").dataobj)
    assert expected.any()
    for name in "abcdefg":
        mask = nib.Nifti1Image.from_filename(tmp_path / "out" / f"{name}.nii.gz")
        assert np.array_equal(np.asarray(mask.dataobj), expected)
        read = read_volume(next(path for path in sorted((tmp_path / "in").glob(f"{name}.*")) if is_volume(path)))
        assert np.array_equal(read.data, image.data)
        np.testing.assert_allclose(mask.affine, image.grid.affine, rtol=0, atol=1e-4)
    series = np.stack([image.data, image.data[::-1], image.data + 1], axis=-1)
    again = read_volume(slicer_sequence(tmp_path / "s.seq.nrrd", series, affine))
    assert np.array_equal(again.data, series)
    np.testing.assert_allclose(again.grid.affine, image.grid.affine, rtol=1e-6)


def case_name(path: Path) -> str:
    return path.name.removesuffix(".nii.gz")


def slicer_sequence(path: Path, data: NDArray[np.float32], affine: NDArray[np.float64]) -> Path:
    """A sequence as 3D Slicer writes it: frames are the first axis."""
    directions = " ".join("({},{},{})".format(*column) for column in affine[:3, :3].T)
    header = [
        "NRRD0005",
        "type: float",
        "dimension: 4",
        "space: left-posterior-superior",
        f"sizes: {data.shape[3]} {data.shape[0]} {data.shape[1]} {data.shape[2]}",
        f"space directions: none {directions}",
        "kinds: list domain domain domain",
        "endian: little",
        "encoding: raw",
        "space origin: ({},{},{})".format(*affine[:3, 3]),
        "measurement frame: (1,0,0) (0,1,0) (0,0,1)",
        "axis 0 index type:=numeric",
        "",
        "",
    ]
    path.write_bytes("\n".join(header).encode() + np.moveaxis(data, 3, 0).astype("<f4").tobytes(order="F"))
    return path


def test_namesakes_of_two_formats_are_an_error(tmp_path: Path) -> None:
    save(tmp_path / "a.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(IMAGE.T), str(tmp_path / "a.nrrd"))
    good, _, errors = found(tmp_path)
    assert good == ["a"]
    assert errors == {"a.nrrd": "has the name of a.nii.gz"}


def test_voxels_kept_apart_count_for_continue(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(IMAGE.T), str(tmp_path / "in" / "a.mhd"))
    again = tmp_path / "in", tmp_path / "out"

    def run() -> dict[str, object]:
        return segment_all(Thresholder(), find_cases(again[0]), again[1], options=PLAIN, resume=True)

    assert run()["skipped"] == []
    assert run()["skipped"] == ["a"]
    voxels = tmp_path / "in" / "a.raw"
    voxels.write_bytes(voxels.read_bytes()[::-1])
    assert run()["skipped"] == []


def test_masks_in_other_formats_pair(tmp_path: Path) -> None:
    for name in ("p/a.nii.gz", "p/b.nrrd", "r/a_gt.mha", "r/b.seg.nrrd", "r/c_gt.hdr", "p/c.nii"):
        put(tmp_path / name)
    put(tmp_path / "r" / "b_gt.nrrd")
    (tmp_path / "r" / "b.seg.nrrd").unlink()
    pairs, lonely = pair_masks(tmp_path / "p", tmp_path / "r")
    assert [(pair.prediction.name, pair.reference.name) for pair in pairs] == [
        ("a.nii.gz", "a_gt.mha"),
        ("b.nrrd", "b_gt.nrrd"),
        ("c.nii", "c_gt.hdr"),
    ]
    assert lonely == {}


# --- names that would meet in the output ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "patient001/patient001.nii.gz",  # the name of the patient's JSON
        "patient001/patient001_ED.nii.gz",  # of a study called so
        "patient001/patient001_frame01.nrrd",  # the frame itself in another format
        "patient001/patient001_frame01.nii",
    ],
)
def test_what_would_have_the_files_of_a_patient_is_an_error(tmp_path: Path, name: str) -> None:
    patient(tmp_path / "patient001")
    for other in {name, name.replace("_ED", "_ES")}:
        sitk.WriteImage(sitk.GetImageFromArray(IMAGE.T), str(tmp_path / other))
    good, _, errors = found(tmp_path)
    assert good == ["patient001_frame01", "patient001_frame12"]
    assert errors
    assert all("same files" in what or "has the name" in what for what in errors.values())


def test_a_patient_twice_under_one_output_is_an_error(tmp_path: Path) -> None:
    patient(tmp_path / "training" / "patient001")
    save(tmp_path / "patient001" / "patient001_frame01.nii.gz")
    good, _, errors = found(tmp_path)
    assert good == ["patient001_frame01", "patient001_frame12"]
    assert "same files" in errors["patient001/patient001_frame01"]


def test_a_study_may_not_bear_the_name_of_the_cohort(tmp_path: Path) -> None:
    for name in ("cohort_ED", "cohort_ES", "scan", "other"):
        save(tmp_path / "in" / f"{name}.nii.gz")
    result = segment_all(Thresholder(), find_cases(tmp_path / "in"), tmp_path / "out")
    assert set(result["failed"]) == {"cohort_ED", "cohort_ES"}
    assert {path.name for path in (tmp_path / "out").glob("cohort*")} == {"cohort.csv", "cohort.html"}


def test_a_scan_called_like_a_pair_is_no_cine(tmp_path: Path) -> None:
    for name in ("a_ED", "a_ES", "a_4d", "b_ED", "b_ES"):
        save(tmp_path / f"{name}.nii.gz")
    save(tmp_path / "b.nii.gz", np.stack([IMAGE] * 3, -1))
    good, left_out, errors = found(tmp_path)
    assert good == ["a_4d", "a_ED", "a_ES", "b_ED", "b_ES"]  # one volume, whatever it is called
    assert left_out == {CINES: ["b.nii.gz"]}
    assert errors == {}
    save(tmp_path / "a.nii.gz")
    assert "same files" in found(tmp_path)[2]["a"]


def test_a_name_that_is_no_text_fails_alone(tmp_path: Path) -> None:
    save(tmp_path / "in" / "scan.nii.gz")
    save(tmp_path / "in" / "other.nii.gz")
    try:
        save(tmp_path / "in" / "odd.nii.gz").rename(tmp_path / "in" / "\udcff\udcfe.nii.gz")
    except (OSError, UnicodeError):
        pytest.skip("this file system has no such names")
    result = segment_all(Thresholder(), find_cases(tmp_path / "in"), tmp_path / "out")
    assert [case["case"] for case in result["cases"]] == ["other", "scan"]
    assert ["UTF-8" in error for error in result["failed"].values()] == [True]
    assert (tmp_path / "out" / "cohort.csv").is_file()


def test_a_link_to_nowhere_is_an_error(tmp_path: Path) -> None:
    save(tmp_path / "scan.nii.gz")
    (tmp_path / "patient5").symlink_to(tmp_path / "unmounted")
    assert found(tmp_path) == (["scan"], {}, {"patient5": "is a link to nowhere"})
