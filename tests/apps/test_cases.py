"""Which files are inputs, and which prediction belongs to which reference."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from cgdpm_med import InputError, find_cases
from cgdpm_med.studies.cases import Subject, group_studies
from cgdpm_med.studies.folders import FolderWarning
from cgdpm_med.studies.mask_pairs import pair_masks


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def acdc_patient(
    root: Path, name: str, info: str = "ED: 1\nES: 12\nGroup: NOR\n", frames: tuple[int, ...] = (1, 12)
) -> Path:
    folder = root / name
    touch(folder, *(f"{name}_frame{f:02d}{end}.nii.gz" for f in frames for end in ("", "_gt")), f"{name}_4d.nii.gz")
    (folder / "Info.cfg").write_text(info, encoding="utf-8")
    return folder


# --- inputs -----------------------------------------------------------------------------------------------------------


def test_one_file(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "b.nii.gz")
    (case,) = find_cases(tmp_path / "b.nii.gz")
    assert (case.image, case.key, case.folder) == (tmp_path / "b.nii.gz", "b", Path())


def test_a_folder_is_mirrored_and_leaves_out_references_results_and_hidden_files(tmp_path: Path) -> None:
    touch(
        tmp_path, "x/scan.nii.gz", "y/scan.nii", "scan_gt.nii.gz", "notes.txt", "out/x/scan.nii.gz", "x/._scan.nii.gz"
    )
    cases = find_cases(tmp_path, exclude=tmp_path / "out")
    assert [(c.key, c.folder, c.error) for c in cases] == [("x/scan", Path("x"), None), ("y/scan", Path("y"), None)]


def test_two_files_of_one_name_are_one_case_and_one_error(tmp_path: Path) -> None:
    touch(tmp_path, "scan.nii", "scan.nii.gz")
    first, second = find_cases(tmp_path)
    assert (first.image.name, first.error) == ("scan.nii", None)
    assert second.image.name == "scan.nii.gz"
    assert "has the name of scan.nii" in str(second.error)


def test_acdc_gives_both_phases_of_each_patient_and_no_cine(tmp_path: Path) -> None:
    acdc_patient(tmp_path / "training", "patient007")
    cases = find_cases(tmp_path)
    assert [c.key for c in cases] == ["patient007_frame01", "patient007_frame12"]
    assert {c.folder for c in cases} == {Path("patient007")}


def test_broken_patients_of_acdc_are_cases_with_an_error(tmp_path: Path) -> None:
    acdc_patient(tmp_path, "patient001", info="ED: 1\n")
    acdc_patient(tmp_path, "patient002", frames=(1,))
    acdc_patient(tmp_path, "patient003")
    cases = find_cases(tmp_path)
    good = ["patient002_frame01", "patient003_frame01", "patient003_frame12"]
    assert [c.key for c in cases if c.error is None] == good
    errors = {c.key: str(c.error) for c in cases if c.error is not None}
    assert list(errors) == ["patient001/Info.cfg", "patient002_frame12"]
    assert {c.study.key for c in cases if c.error is not None} == {"patient001/Info.cfg", "patient002"}
    assert "ES is not stated" in errors["patient001/Info.cfg"]


def test_the_frames_of_a_patient_are_one_study_with_what_info_says(tmp_path: Path) -> None:
    acdc_patient(tmp_path, "patient007", info="ED: 1\nES: 12\nHeight: 180\nWeight: 80.5\n")
    acdc_patient(tmp_path, "patient008")
    studies = group_studies(find_cases(tmp_path))
    assert {key: [c.frame for c in cases] for key, cases in studies.items()} == {
        "patient007": [1, 12],
        "patient008": [1, 12],
    }
    assert studies["patient007"][0].study == Subject("patient007", 1, 12, 180.0, 80.5)
    assert studies["patient008"][1].study == Subject("patient008", 1, 12)


def test_the_channel_ending_of_nnunet_is_no_part_of_a_name(tmp_path: Path) -> None:
    touch(tmp_path, "heart_001_0000.nii.gz", "heart_002_0000.nii.gz", "b/_0000.nii.gz", "scan_2000.nii.gz")
    assert [(c.key, c.name) for c in find_cases(tmp_path)] == [
        ("b/_0000", "_0000"),
        ("heart_001", "heart_001"),
        ("heart_002", "heart_002"),
        ("scan_2000", "scan_2000"),
    ]
    (single,) = find_cases(tmp_path / "heart_001_0000.nii.gz")
    assert single.key == "heart_001"
    touch(tmp_path, "heart_001.nii.gz")
    errors = [(c.image.name, c.error.what) for c in find_cases(tmp_path) if c.error is not None]
    assert errors == [("heart_001_0000.nii.gz", "has the name of heart_001.nii.gz")]


def test_a_file_called_like_the_map_of_another_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "scan.nii.gz", "scan_entropy.nii.gz", "other_entropy.nii.gz")
    cases = find_cases(tmp_path)
    assert [c.key for c in cases if c.error is None] == ["other_entropy", "scan"]
    (error,) = [c.error for c in cases if c.error is not None]
    assert error.what == "has the name of a map of scan.nii.gz"


def test_links_to_nowhere_are_not_lost(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz")
    (tmp_path / "gone.nii.gz").symlink_to(tmp_path / "absent.nii.gz")
    (tmp_path / "loop.nii.gz").symlink_to(tmp_path / "loop.nii.gz")
    (tmp_path / "circle").symlink_to(tmp_path, target_is_directory=True)
    assert [c.key for c in find_cases(tmp_path)] == ["a", "gone", "loop"]


def test_folders_called_patient_need_no_info(tmp_path: Path) -> None:
    touch(tmp_path, "patient1/scan.nii.gz", "patient2/scan.nii.gz")
    assert [c.key for c in find_cases(tmp_path)] == ["patient1/scan", "patient2/scan"]


def test_nothing_to_segment_is_an_error_that_says_where(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file") as absent:
        find_cases(tmp_path / "absent")
    assert absent.value.path == tmp_path / "absent"
    touch(tmp_path, "only_gt.nii.gz", "readme.md")
    with pytest.raises(InputError, match=r"holds no \.nii"):
        find_cases(tmp_path)


# --- pairs ------------------------------------------------------------------------------------------------------------


def pairs(predictions: Path, references: Path) -> list[tuple[str, str, str]]:
    found, lonely = pair_masks(predictions, references)
    assert lonely == {}
    return [
        (p.key, p.prediction.relative_to(predictions).as_posix(), p.reference.relative_to(references).as_posix())
        for p in found
    ]


def test_pairs_of_acdc_wherever_the_files_lie(tmp_path: Path) -> None:
    acdc_patient(tmp_path / "acdc" / "training", "patient007")
    predictions = touch(
        tmp_path / "out",
        *(f"patient007/patient007_frame{f}{end}" for f in ("01", "12") for end in (".nii.gz", ".json")),
    )
    names = [f"patient007_frame{f}" for f in ("01", "12")]
    expected = [(n, f"patient007/{n}.nii.gz", f"training/patient007/{n}_gt.nii.gz") for n in names]
    assert pairs(predictions, tmp_path / "acdc") == expected
    found, _ = pair_masks(predictions, tmp_path / "acdc")
    assert [(p.phase, p.group) for p in found] == [("ED", "NOR"), ("ES", "NOR")]


def test_pairs_across_folders_of_other_names_are_told(tmp_path: Path) -> None:
    predictions = touch(tmp_path / "pred", "siteA/001.nii.gz", "siteA/002.nii.gz")
    references = touch(tmp_path / "ref", "siteB/001.nii.gz", "siteB/002.nii.gz")
    told = "2 masks pair by name across folders, such as siteA/001.nii.gz with siteB/001.nii.gz"
    with pytest.warns(FolderWarning, match=told):
        assert len(pairs(predictions, references)) == 2
    for place in ("siteA/001.nii.gz", "labelsTr/001.nii.gz", "001.nii.gz"):
        same = touch(tmp_path / place.replace("/", "_"), place)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(pairs(touch(tmp_path / "one", "siteA/001.nii.gz"), same)) == 1


def test_pairs_of_nnunet(tmp_path: Path) -> None:
    predictions = touch(tmp_path / "pred", "heart_001_0000.nii.gz", "heart_001_0000_entropy.nii.gz")
    references = touch(tmp_path / "labelsTs", "heart_001.nii.gz", "heart_001_members.nii.gz")
    assert pairs(predictions, references) == [("heart_001", "heart_001_0000.nii.gz", "heart_001.nii.gz")]


@pytest.mark.parametrize(
    ("prediction", "reference", "image"),
    [
        ("1/sa_ED.nii.gz", "1/label_sa_ED.nii.gz", "1/sa_ED.nii.gz"),  # UK Biobank
        ("a.nii.gz", "a_seg.nrrd", "a.nii.gz"),
        ("a-mask.nii.gz", "a-label.nii.gz", "a.nii.gz"),
        ("imagesTs/a.nii.gz", "labelsTs/a.nii.gz", "imagesTs/a_0000.nii.gz"),  # nnU-Net's own folder
    ],
)
def test_references_beside_their_images(tmp_path: Path, prediction: str, reference: str, image: str) -> None:
    predictions, references = touch(tmp_path / "pred", prediction), touch(tmp_path / "ref", reference, image)
    assert [names[1:] for names in pairs(predictions, references)] == [(prediction, reference)]


def test_numbers_and_two_labellings_stay_parts_of_names(tmp_path: Path) -> None:
    names = ["case_0001", "case_0002", "labels", "x_mask", "x_seg"]
    folder = touch(tmp_path / "masks", *(f"{name}.nii.gz" for name in names))
    assert [key for key, *_ in pairs(folder, folder)] == names


def test_equal_names_pair_by_their_folders(tmp_path: Path) -> None:
    predictions = touch(tmp_path / "pred", "a/scan.nii.gz", "b/scan.nii.gz", "b/scan_members.nii.gz")
    references = touch(tmp_path / "ref", "a/scan_gt.nii.gz", "b/scan_gt.nii.gz", "a/scan.nii.gz")
    assert pairs(predictions, references) == [
        ("a/scan", "a/scan.nii.gz", "a/scan_gt.nii.gz"),
        ("b/scan", "b/scan.nii.gz", "b/scan_gt.nii.gz"),
    ]


def test_two_files_pair_whatever_their_names(tmp_path: Path) -> None:
    touch(tmp_path, "p.nii", "r.nii.gz")
    ((pair,), lonely) = pair_masks(tmp_path / "p.nii", tmp_path / "r.nii.gz")
    assert (pair.prediction.name, pair.reference.name, lonely) == ("p.nii", "r.nii.gz", {})


def test_files_without_a_partner_are_named_and_the_others_pair(tmp_path: Path) -> None:
    predictions = touch(tmp_path / "pred", "a.nii.gz", "b.nii.gz")
    references = touch(tmp_path / "ref", "b.nii.gz", "c.nii.gz")
    found, lonely = pair_masks(predictions, references)
    assert [p.key for p in found] == ["b"]
    assert list(lonely) == ["a", "c"]
    assert str(lonely["a"]).startswith(f"{predictions / 'a.nii.gz'}: has no reference")
    assert str(lonely["c"]).startswith(f"{references / 'c.nii.gz'}: has no prediction")


def test_what_cannot_be_paired_at_all(tmp_path: Path) -> None:
    folder = touch(tmp_path / "masks", "a.nii.gz")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="no such file"):
        pair_masks(folder, tmp_path / "absent")
    with pytest.raises(InputError, match="two files or two folders"):
        pair_masks(folder / "a.nii.gz", folder)
    with pytest.raises(InputError, match=r"empty: holds no \.nii"):
        pair_masks(folder, empty)
    touch(folder, "a.nrrd")
    with pytest.raises(InputError, match="have the same name"):
        pair_masks(folder, folder)
