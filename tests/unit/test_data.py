"""Patient folders, the committed split, and that no patient can be on two sides of it."""

from __future__ import annotations

import json
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest
from conftest import shared_path

from cgdpm_med.data.acdc import (
    ACDC_GROUPS,
    SECTIONS,
    acdc_datalist,
    acdc_patient_folders,
    acdc_patients,
    draw_acdc_split,
    load_split,
    read_acdc_patient,
    read_info,
    section_of,
    split_by_rank,
)
from cgdpm_med.files import InputError


def write_patient(root: Path, name: str, info: str = "ED: 1\nES: 9\nGroup: HCM\n", suffix: str = ".nii.gz") -> Path:
    """An ACDC-layout patient whose image files are empty: datalists only name them."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "Info.cfg").write_text(info)
    for frame in ("01", "09"):
        (folder / f"{name}_frame{frame}{suffix}").touch()
        (folder / f"{name}_frame{frame}_gt{suffix}").touch()
    return folder


# --- the committed split ----------------------------------------------------------------------------------------------


def group_of(name: str) -> str:
    return ACDC_GROUPS[(int(name.removeprefix("patient")) - 1) // 20]


def test_committed_split_is_the_documented_draw() -> None:
    text = (resources.files("cgdpm_med") / "splits" / "acdc_70_10_20.json").read_text(encoding="utf-8")
    assert json.loads(text) == draw_acdc_split(seed=0)


def test_committed_split_places_every_patient_once_and_every_group_alike() -> None:
    split = load_split()
    names = [name for section in SECTIONS for name in split[section]]
    assert sorted(names) == [f"patient{n:03d}" for n in range(1, 101)]
    for section, count in zip(SECTIONS, (14, 2, 4), strict=True):
        assert Counter(map(group_of, split[section])) == dict.fromkeys(ACDC_GROUPS, count)


def test_another_seed_draws_another_split() -> None:
    assert draw_acdc_split(seed=1)["test"] != draw_acdc_split(seed=0)["test"]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("{", "cannot read the split"),
        ("[]", "lacks a section"),
        ('{"train": ["a"], "validation": []}', "lacks a section"),
        ('{"train": "abc", "validation": [], "test": []}', "lacks a section"),
        ('{"train": ["a"], "validation": [], "test": ["a"]}', "places a more than once"),
        ('{"train": ["b", "b"], "validation": [], "test": ["a"]}', "places b more than once"),
    ],
)
def test_bad_split_file_is_named(tmp_path: Path, content: str, what: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(content)
    with pytest.raises(InputError, match=what) as caught:
        load_split(path)
    assert caught.value.path == path


def test_missing_split_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.json"):
        load_split(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("n", "sizes"),
    [
        (0, (0, 0, 0)),
        (1, (0, 0, 1)),
        (2, (1, 0, 1)),
        (3, (1, 1, 1)),
        (4, (2, 1, 1)),
        (10, (7, 1, 2)),
        (100, (70, 10, 20)),
    ],
)
def test_split_by_rank_sizes(n: int, sizes: tuple[int, int, int]) -> None:
    split = split_by_rank(f"p{i:03d}" for i in reversed(range(n)))
    assert tuple(len(split[section]) for section in SECTIONS) == sizes
    assert [name for section in SECTIONS for name in split[section]] == [f"p{i:03d}" for i in range(n)]


def test_known_patients_keep_their_section_whatever_else_is_in_the_folder() -> None:
    split = load_split()
    test_patient, train_patient = split["test"][0], split["train"][0]
    phantoms = [f"patient{n}" for n in range(901, 911)]
    for company in ([], phantoms, [train_patient], [*phantoms, train_patient]):
        places = section_of([*company, test_patient])
        assert places[test_patient] == "test"
    places = section_of([*phantoms, test_patient, train_patient])
    assert places[train_patient] == "train"
    assert [places[name] for name in phantoms] == ["train"] * 7 + ["validation"] + ["test"] * 2


# --- patient folders --------------------------------------------------------------------------------------------------


def test_patient_is_read_whole(tmp_path: Path) -> None:
    info = "ED: 1\nES: 12\nGroup: MINF\nHeight: 166.5\nNbFrame: 25\nWeight: 74.0\n\n"
    folder = write_patient(tmp_path, "patient007", info)
    patient = read_acdc_patient(folder)
    assert (patient.patient, patient.ed, patient.es, patient.group) == ("patient007", 1, 12, "MINF")
    assert (patient.height, patient.weight, patient.frames) == (166.5, 74.0, 25)
    assert patient.image(9) == folder / "patient007_frame09.nii.gz"
    assert patient.label(9) == folder / "patient007_frame09_gt.nii.gz"
    with pytest.raises(InputError, match=r"4D cine series.*") as caught:
        patient.cine()
    assert caught.value.path == folder / "patient007_4d.nii.gz"


def test_entries_beyond_ed_and_es_are_optional(tmp_path: Path) -> None:
    patient = read_acdc_patient(write_patient(tmp_path, "patient901", "ED: 1\nES: 9"))
    assert (patient.group, patient.height, patient.weight, patient.frames) == ("unknown", None, None, None)


@pytest.mark.parametrize(
    ("info", "what"),
    [
        ("ES: 9", "ED is not stated"),
        ("ED: 1", "ES is not stated"),
        ("ED: 1\nES: nine", "ES is 'nine', not a positive number"),
        ("ED: 0\nES: 9", "ED is '0', not a positive number"),
        ("ED: 1\nES: nan", "ES is 'nan', not a positive number"),
        ("ED: 1\nES: 9.5", "ES is '9.5', not a whole number"),
        ("ED: 9\nES: 9", "ED and ES are the same frame, 9"),
        ("ED: 1\nES: 9\nNbFrame: 8", "frame 9 lies beyond NbFrame, 8"),
        ("ED: 1\nES 9", "line 2 is not of the form"),
        ("ED: 1\nED: 2\nES: 9", "line 2 names an entry twice"),
        ("ED: 1\nES: 9\nHeight: -3", "Height is '-3', not a positive number"),
        ("ED: 1\nES: 9\nHeight: 1.66", "Height is 1.66, not 30 to 260 cm"),
        ("ED: 1\nES: 9\nWeight: 80000", "Weight is 80000, not 0.5 to 500 kg"),
    ],
)
def test_bad_info_is_named(tmp_path: Path, info: str, what: str) -> None:
    folder = write_patient(tmp_path, "patient001", info)
    with pytest.raises(InputError) as caught:
        read_acdc_patient(folder)
    assert caught.value.what.startswith(what)
    assert caught.value.path == folder / "Info.cfg"
    assert caught.value.remedy


def test_missing_or_binary_info_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Info\.cfg: cannot read"):
        read_info(tmp_path / "Info.cfg")
    (tmp_path / "Info.cfg").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"Info\.cfg: cannot read"):
        read_info(tmp_path / "Info.cfg")


def test_root_may_hold_patients_or_training_or_be_one_patient(tmp_path: Path) -> None:
    release = tmp_path / "release"
    for name in ("patient002", "patient001"):
        write_patient(release / "training", name)
    (release / "training" / "notes").mkdir()
    write_patient(release / "testing", "patient101")
    names = ["patient001", "patient002"]
    assert [p.patient for p in acdc_patients(release)] == names
    assert [p.patient for p in acdc_patients(release / "training")] == names
    assert [p.patient for p in acdc_patients(release / "training" / "patient002")] == ["patient002"]


def test_one_broken_patient_need_not_stop_the_others(tmp_path: Path) -> None:
    for n in (1, 3):
        write_patient(tmp_path, f"patient{n:03d}")
    (tmp_path / "patient002").mkdir()
    folders = acdc_patient_folders(tmp_path)
    assert [f.name for f in folders] == ["patient001", "patient002", "patient003"]
    with pytest.raises(InputError) as caught:
        acdc_patients(tmp_path)
    assert caught.value.path == tmp_path / "patient002" / "Info.cfg"


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_absent_or_empty_root_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        acdc_patients(tmp_path / name)
    assert caught.value.path == tmp_path / name


# --- datalists --------------------------------------------------------------------------------------------------------


def test_datalist_of_one_patient(tmp_path: Path) -> None:
    folder = write_patient(tmp_path, "patient901", suffix=".nii")
    expected = [
        {
            "image": str(folder / f"patient901_frame{frame}.nii"),
            "label": str(folder / f"patient901_frame{frame}_gt.nii"),
            "patient": "patient901",
            "frame": phase,
            "key": f"patient901_frame{frame}",
            "group": "HCM",
        }
        for phase, frame in (("ED", "01"), ("ES", "09"))
    ]
    assert acdc_datalist(tmp_path, "all") == expected
    assert acdc_datalist(tmp_path, "test") == expected
    without = [{k: v for k, v in item.items() if k != "label"} for item in expected]
    assert acdc_datalist(tmp_path, "all", labels=False) == without


def test_ed_comes_first_where_it_is_not_the_first_frame(tmp_path: Path) -> None:
    write_patient(tmp_path, "patient090", "ED: 9\nES: 1")
    assert [(i["frame"], i["key"]) for i in acdc_datalist(tmp_path, "all")] == [
        ("ED", "patient090_frame09"),
        ("ES", "patient090_frame01"),
    ]


def test_missing_reference_is_named_only_where_labels_are_needed(tmp_path: Path) -> None:
    folder = write_patient(tmp_path, "patient901")
    (missing := folder / "patient901_frame09_gt.nii.gz").unlink()
    with pytest.raises(InputError, match="reference mask is missing") as caught:
        acdc_datalist(tmp_path, "all")
    assert caught.value.path == missing
    assert len(acdc_datalist(tmp_path, "all", labels=False)) == 2


def test_missing_image_is_named(tmp_path: Path) -> None:
    folder = write_patient(tmp_path, "patient901")
    (missing := folder / "patient901_frame01.nii.gz").unlink()
    with pytest.raises(InputError) as caught:
        acdc_datalist(tmp_path, "all", labels=False)
    assert caught.value.path == missing


def test_own_split_and_unknown_or_empty_sections(tmp_path: Path) -> None:
    for name in ("patient901", "patient902"):
        write_patient(tmp_path, name)
    split = {"train": ["patient902"], "validation": ["patient901"], "test": []}
    assert {i["patient"] for i in acdc_datalist(tmp_path, "train", split=split)} == {"patient902"}
    with pytest.raises(InputError, match="no patient here belongs to section 'test'"):
        acdc_datalist(tmp_path, "test", split=split)
    with pytest.raises(InputError, match="unknown section 'training'"):
        acdc_datalist(tmp_path, "training")  # type: ignore[arg-type]


def test_sections_of_a_phantom_folder_are_disjoint_and_complete(tmp_path: Path) -> None:
    for n in range(901, 907):
        write_patient(tmp_path, f"patient{n}")
    sections = [{i["patient"] for i in acdc_datalist(tmp_path, s)} for s in ("train", "validation", "test")]
    assert [len(s) for s in sections] == [4, 1, 1]
    assert set.union(*sections) == {f"patient{n}" for n in range(901, 907)}


def test_real_release_follows_the_committed_split() -> None:
    root = shared_path("data", "acdc")
    for section, volumes in (("train", 140), ("validation", 20), ("test", 40)):
        items = acdc_datalist(root, section)  # type: ignore[arg-type]
        assert len(items) == volumes
        assert {i["patient"] for i in items} == set(load_split()[section])
        assert all(i["group"] == group_of(i["patient"]) for i in items)
