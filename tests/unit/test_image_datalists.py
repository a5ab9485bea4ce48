"""Folders of pictures and ImageNet's layouts. All files are generated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from cgdpm_med.files import InputError
from cgdpm_med.images import class_indices, image_datalist, imagenet_datalist, read_class_map


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_nested_folders(tmp_path: Path) -> None:
    touch(
        tmp_path / "b" / "00001" / "2.JPEG",
        tmp_path / "b" / "1.png",
        tmp_path / "a.jpg",
        tmp_path / "notes.txt",
        tmp_path / ".cache" / "3.png",
        tmp_path / "._a.jpg",
    )
    items = image_datalist(tmp_path)
    assert [item["key"] for item in items] == ["a.jpg", "b/00001/2.JPEG", "b/1.png"]
    assert items[1]["image"] == str(tmp_path / "b" / "00001" / "2.JPEG")


def test_folders_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no pictures"):
        image_datalist(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        image_datalist(tmp_path / "absent")


WNIDS = ("n00000030", "n00000010", "n00000020")
CLASSES = {"n00000010": 0, "n00000020": 1, "n00000030": 2}


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """Three classes with a train folder each, and four validation pictures side by side."""
    for wnid in WNIDS:
        touch(tmp_path / "train" / wnid / f"{wnid}_1.JPEG", tmp_path / "train" / wnid / f"{wnid}_0.JPEG")
    touch(*(tmp_path / "val" / f"ILSVRC2012_val_0000000{i}.JPEG" for i in (1, 2, 3, 4)))
    return tmp_path


def test_imagenet_train(imagenet: Path) -> None:
    items = imagenet_datalist(imagenet, classes=CLASSES)
    assert [item["class"] for item in items] == [0, 0, 1, 1, 2, 2]
    assert [item["wnid"] for item in items[::2]] == sorted(WNIDS)
    assert items[3]["key"] == "n00000020/n00000020_1.JPEG"


def test_classes_are_counted_only_where_all_thousand_are(imagenet: Path) -> None:
    with pytest.raises(InputError, match=r"holds 3 class folders: .* all 1000"):
        imagenet_datalist(imagenet)
    for n in range(997):
        (imagenet / "train" / f"n1{n:07d}").mkdir()
    items = imagenet_datalist(imagenet)
    assert [item["class"] for item in items] == [0, 0, 1, 1, 2, 2]
    assert class_indices(imagenet / "train")["n10000996"] == 999


GROUND_TRUTH = {
    "imagenet_2012_validation_synset_labels.txt": "n00000020\nn00000010\nn00000030\nn00000020\n",
    "LOC_val_solution.csv": (
        "ImageId,PredictionString\n"
        "ILSVRC2012_val_00000003,n00000030 1 2 3 4 n00000030 5 6 7 8 \n"
        "ILSVRC2012_val_00000001,n00000020 1 2 3 4 \n"
        "ILSVRC2012_val_00000004,n00000020 1 2 3 4 \n"
        "ILSVRC2012_val_00000002,n00000010 1 2 3 4 \n"
    ),
    "val.txt": "\n".join(f"ILSVRC2012_val_0000000{i}.JPEG {c}" for i, c in ((2, 0), (1, 1), (4, 1), (3, 2))),
    # the numbers of the development kit follow an order of their own
    "ILSVRC2012_validation_ground_truth.txt": "1\n3\n2\n1\n",
}


def write_devkit(folder: Path) -> None:
    """meta.mat: 1 is n00000020, 2 is n00000030, 3 is n00000010, 4 a group of classes."""
    wnids = ["n00000020", "n00000030", "n00000010", "n09999999"]
    synsets = np.array(
        [(i + 1, wnid) for i, wnid in enumerate(wnids)], dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")]
    ).reshape(-1, 1)
    savemat(folder / "meta.mat", {"synsets": synsets})


@pytest.mark.parametrize("name", GROUND_TRUTH)
@pytest.mark.parametrize("place", [".", "val", "ILSVRC2012_devkit_t12/data"])
def test_imagenet_val_side_by_side(name: str, place: str, imagenet: Path) -> None:
    folder = imagenet / place
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(GROUND_TRUTH[name])
    write_devkit(folder)
    items = imagenet_datalist(imagenet, "val", classes=CLASSES)
    assert [item["class"] for item in items] == [1, 0, 2, 1]
    assert [item["wnid"] for item in items] == ["n00000020", "n00000010", "n00000030", "n00000020"]
    assert [item["key"][-6] for item in items] == ["1", "2", "3", "4"]


def test_imagenet_val_in_class_folders(imagenet: Path) -> None:
    touch(imagenet / "val2" / "n00000030" / "ILSVRC2012_val_00000003.JPEG")
    (item,) = imagenet_datalist(imagenet, "val2", classes=CLASSES)
    assert (item["class"], item["wnid"]) == (2, "n00000030")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n00000020\nn00000010\n", "holds 2 lines for 4 pictures"),
        ("n00000020\nn00000010\nn00000099\nn00000020\n", "n00000099 is not in the map"),
        ("7\n1\n1\n1\n", "7 are no classes of meta.mat"),
        ("ILSVRC2012_val_00000002.JPEG 0\n", "says nothing of ILSVRC2012_val_00000001.JPEG"),
    ],
)
def test_a_ground_truth_that_does_not_fit(text: str, message: str, imagenet: Path) -> None:
    (imagenet / "truth.txt").write_text(text)
    write_devkit(imagenet)
    with pytest.raises(InputError, match=rf"truth\.txt: .*{message}"):
        imagenet_datalist(imagenet, "val", classes=CLASSES, ground_truth=imagenet / "truth.txt")


def test_missing_parts_of_imagenet_are_named(imagenet: Path) -> None:
    with pytest.raises(InputError, match="no file tells their classes"):
        imagenet_datalist(imagenet, "val", classes=CLASSES)
    with pytest.raises(InputError, match="has no folder 'test'"):
        imagenet_datalist(imagenet, "test", classes=CLASSES)
    (imagenet / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n3\n1\n")
    with pytest.raises(InputError, match=r"need meta\.mat"):
        imagenet_datalist(imagenet, "val", classes=CLASSES)
    with pytest.raises(InputError, match="n00000030 is not in the map"):
        imagenet_datalist(imagenet, classes={"n00000010": 0, "n00000020": 1})


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(CLASSES),
        json.dumps({str(index): [wnid, "a name"] for wnid, index in CLASSES.items()}),
        "n00000010 a name, another\n\nn00000020\nn00000030 third\n",
    ],
)
def test_class_maps(text: str, tmp_path: Path) -> None:
    (tmp_path / "classes").write_text(text)
    assert read_class_map(tmp_path / "classes") == CLASSES


@pytest.mark.parametrize(
    "text", ["", "tench\n", '{"n00000010": 0, "n00000020": 0}', '{"0": []}', "n00000010\nn00000010\n", "{", '{"a": 1}']
)
def test_bad_class_maps(text: str, tmp_path: Path) -> None:
    (tmp_path / "classes").write_text(text)
    with pytest.raises(InputError, match="classes: "):
        read_class_map(tmp_path / "classes")


def test_two_links_to_one_folder_are_both_walked(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "store" / "x.png")
    (tmp_path / "root").mkdir()
    for name in ("a", "b"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "store")
    assert [item["key"] for item in image_datalist(tmp_path / "root")] == ["a/x.png", "b/x.png"]


def test_a_link_that_leads_back_is_walked_once(tmp_path: Path) -> None:
    picture = tmp_path / "root" / "a" / "x.png"
    picture.parent.mkdir(parents=True)
    Image.new("L", (4, 4)).save(picture)
    (tmp_path / "root" / "a" / "up").symlink_to("..")
    assert [item["key"] for item in image_datalist(tmp_path / "root")] == ["a/x.png"]
