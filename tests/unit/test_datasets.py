"""Data sets in every layout that is read, as other tools write them, and what is wrong with bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from data_sets import change, every, grey, picture, square, volume
from PIL import Image

from cgdpm_med import InputError, write_phantom_dataset
from cgdpm_med.apps.train import Wishes, patients_by_name, plan_dataset
from cgdpm_med.datasets.dataset import Example
from cgdpm_med.datasets.folders import read_dataset
from cgdpm_med.datasets.loading import load_example, load_image

# --- layouts ----------------------------------------------------------------------------------------------------------


def test_pictures_with_binary_masks(pictures: Path) -> None:
    dataset = read_dataset(pictures)
    assert dataset.labels == ("foreground",)
    assert [example.key for example in dataset.examples] == ["p0", "p1", "p2", "p3"]
    loaded = load_example(dataset, dataset.examples[1])
    assert loaded.image.shape == (1, 16, 12, 1)
    assert loaded.image[0, 1, 2, 0] == pytest.approx((12 + 2 + 1) / 127.5 - 1)
    assert loaded.label is not None
    np.testing.assert_array_equal(loaded.label[..., 0], square(1, at=3))


def test_palette_masks_and_other_suffixes(tmp_path: Path) -> None:
    for n in range(3):
        picture(tmp_path / "images" / f"p{n}.tif", np.stack([grey(n)] * 2 + [grey(9)], -1))
        picture(tmp_path / "masks" / f"p{n}_mask.png", square(1) + square(2, at=8), palette=True)
    dataset = read_dataset(tmp_path)
    assert dataset.labels == ("class 1", "class 2")
    loaded = load_example(dataset, dataset.examples[0])
    assert loaded.image.shape == (3, 16, 12, 1)
    assert loaded.label is not None
    assert loaded.label[3, 4, 0] == 1
    assert loaded.label[9, 4, 0] == 2


def test_a_palette_whose_first_colour_is_not_black_is_read_by_its_colours(tmp_path: Path) -> None:
    for n in range(3):
        picture(tmp_path / "images" / f"p{n}.png", grey(n))
        (tmp_path / "masks").mkdir(exist_ok=True)
        mask = Image.fromarray(1 - square(1, at=2 + n), "P")  # white is number 0, as Pillow's quantize makes it
        mask.putpalette([255, 255, 255, 0, 0, 0])
        mask.save(tmp_path / "masks" / f"p{n}.png")
    empty = Image.fromarray(np.ones((16, 12), np.uint8), "P")  # black is number 1 here, too
    empty.putpalette([255, 255, 255, 0, 0, 0])
    empty.save(tmp_path / "masks" / "p3.png")
    picture(tmp_path / "images" / "p3.png", grey(3))
    dataset = read_dataset(tmp_path)
    assert dataset.labels == ("foreground",)
    for number, expected in ((1, square(1, at=3)), (3, np.zeros((16, 12)))):
        loaded = load_example(dataset, dataset.examples[number])
        assert loaded.label is not None
        np.testing.assert_array_equal(loaded.label[..., 0], expected)


def test_a_coloured_palette_without_black_needs_a_table(tmp_path: Path) -> None:
    for n in range(3):
        picture(tmp_path / "images" / f"p{n}.png", grey(n))
        (tmp_path / "masks").mkdir(exist_ok=True)
        mask = Image.fromarray(1 - square(1), "P")
        mask.putpalette([255, 0, 0, 0, 0, 0])
        mask.save(tmp_path / "masks" / f"p{n}.png")
    with pytest.raises(InputError, match="coloured"):
        read_dataset(tmp_path)
    (tmp_path / "labels.json").write_text(json.dumps({"background": "#000000", "organ": "#ff0000"}))
    dataset = read_dataset(tmp_path)
    loaded = load_example(dataset, dataset.examples[0])
    assert loaded.label is not None
    np.testing.assert_array_equal(loaded.label[..., 0], square(1))


def test_colour_masks_need_a_table(tmp_path: Path) -> None:
    for n in range(3):
        picture(tmp_path / "images" / f"p{n}.png", grey(n))
        mask = np.zeros((16, 12, 3), np.uint8)
        mask[2:4, 2:4], mask[8, 8] = (255, 0, 0), (0, 0, 255)
        picture(tmp_path / "masks" / f"p{n}.png", mask)
    with pytest.raises(InputError, match=r"labels\.json"):
        read_dataset(tmp_path)
    table = {"background": "#000000", "vessel": "#0000ff", "tumour": "#ff0000"}
    (tmp_path / "labels.json").write_text(json.dumps(table))
    dataset = read_dataset(tmp_path)
    assert dataset.labels == ("vessel", "tumour")
    label = load_example(dataset, dataset.examples[0]).label
    assert label is not None
    assert (label[2, 2, 0], label[8, 8, 0], label[0, 0, 0]) == (2, 1, 0)


def test_jpeg_masks_are_read_as_black_and_white(pictures: Path) -> None:
    for path in (pictures / "masks").iterdir():
        array = np.kron(np.asarray(Image.open(path)), np.ones((8, 8), np.uint8))
        Image.fromarray(array).save(path.with_suffix(".jpg"), quality=80)
        path.unlink()
        image = pictures / "images" / path.name
        Image.fromarray(np.kron(np.asarray(Image.open(image)), np.ones((8, 8), np.uint8))).save(image)
    label = every(pictures)[0].label
    np.testing.assert_array_equal(label[..., 0], np.kron(square(1), np.ones((8, 8), np.uint8)))


def test_nnunet_raw(nnunet: Path) -> None:
    dataset = read_dataset(nnunet)
    assert dataset.labels == ("zone", "lesion")
    assert dataset.channels == ("T2", "ADC")
    assert [(example.key, example.part, example.label is None) for example in dataset.examples] == [
        ("case_0", "", False),
        ("case_1", "", False),
        ("case_2", "", False),
        ("case_3", "test", True),
    ]
    loaded = load_example(dataset, dataset.examples[0])
    assert loaded.image.shape[0] == 2
    np.testing.assert_array_equal(loaded.image[1], 2 * loaded.image[0])
    assert loaded.spacing == (1, 1, 5)


def test_decathlon_with_channels_in_one_file(tmp_path: Path) -> None:
    listed = []
    for n in range(3):
        volume(
            tmp_path / "imagesTr" / f"c{n}.nii.gz",
            np.arange(5 * 4 * 3 * 2, dtype=np.float32).reshape(5, 4, 3, 2),
            (1,) * 3,
        )
        volume(tmp_path / "labelsTr" / f"c{n}.nii.gz", np.eye(5, 4, dtype=np.uint8)[..., None].repeat(3, 2), (1,) * 3)
        listed.append({"image": f"./imagesTr/c{n}.nii.gz", "label": f"./labelsTr/c{n}.nii.gz"})
    content = {
        "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "background", "1": "edge"},
        "training": listed,
        "test": [],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    dataset = read_dataset(tmp_path)
    assert (dataset.labels, dataset.channels) == (("edge",), ("T2", "ADC"))
    assert load_example(dataset, dataset.examples[0]).image.shape == (2, 5, 4, 3)


def test_monai_datalist_keeps_its_parts(pictures: Path) -> None:
    items = [{"image": f"images/p{n}.png", "label": f"masks/p{n}.png"} for n in range(4)]
    content = {"training": items[:2], "validation": items[2:3], "testing": items[3:]}
    (pictures / "list.json").write_text(json.dumps(content))
    dataset = read_dataset(pictures / "list.json")
    with pytest.raises(InputError, match="no folder and no JSON"):
        read_dataset(pictures / "images" / "p0.png")
    assert [example.part for example in dataset.examples] == ["train", "train", "validation", "test"]
    assert dataset.labels == ("foreground",)


def test_a_datalist_uses_the_stored_values_it_found(pictures: Path) -> None:
    items = [{"image": f"images/p{n}.png", "label": f"masks/p{n}.png"} for n in range(4)]
    (pictures / "list.json").write_text(json.dumps({"training": items}))
    label = every(pictures / "list.json")[0].label
    np.testing.assert_array_equal(label[..., 0], square(1))


@pytest.mark.slow
def test_acdc_layout(tmp_path: Path) -> None:
    write_phantom_dataset(tmp_path, patients=3, seed=0)
    dataset = read_dataset(tmp_path)
    assert dataset.labels == ("RV", "Myo", "LV")
    assert len({example.patient for example in dataset.examples}) == 3
    assert len(dataset.examples) == 6


# --- slices last ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thick", [0, 1, 2])
def test_thick_slices_come_last_and_go_back(tmp_path: Path, thick: int) -> None:
    spacing = [1.0, 1.2, 1.1]
    spacing[thick] = 8.0
    affine = np.diag([-spacing[0], spacing[1], -spacing[2], 1])
    array = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "a.nii.gz")
    loaded = load_image([tmp_path / "a.nii.gz"])
    assert loaded.image.shape[-1] == array.shape[thick]
    assert loaded.spacing[2] == pytest.approx(8)
    np.testing.assert_array_equal(loaded.view.undo(loaded.image[0]), array)


def test_one_volume_stored_two_ways_looks_the_same(tmp_path: Path) -> None:
    array = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    image = nib.Nifti1Image(array, np.diag([1.0, 1.2, 5.0, 1]))
    nib.save(image, tmp_path / "a.nii.gz")
    turned = image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    nib.save(turned, tmp_path / "b.nii.gz")
    first, second = (load_image([tmp_path / name]) for name in ("a.nii.gz", "b.nii.gz"))
    np.testing.assert_array_equal(first.image, second.image)
    assert first.spacing == pytest.approx(second.spacing)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_a_missing_mask(pictures: Path) -> None:
    (pictures / "masks" / "p1.png").unlink()
    with pytest.raises(InputError, match=r"p1\.png.*label map"):
        read_dataset(pictures)


def test_a_mask_without_image(pictures: Path) -> None:
    (pictures / "images" / "p1.png").unlink()
    with pytest.raises(InputError, match=r"masks/p1\.png"):
        read_dataset(pictures)


def test_names_that_differ_in_case(pictures: Path) -> None:
    (pictures / "masks" / "p1.png").rename(pictures / "masks" / "P1.png")
    with pytest.raises(InputError, match="case") as caught:
        read_dataset(pictures)
    assert "Rename" in str(caught.value)


def test_two_images_are_too_few(pictures: Path) -> None:
    for n in (2, 3):
        for folder in ("images", "masks"):
            (pictures / folder / f"p{n}.png").unlink()
    with pytest.raises(InputError, match="2 patients"):
        read_dataset(pictures)


def test_masks_that_are_all_empty(pictures: Path) -> None:
    for path in (pictures / "masks").iterdir():
        picture(path, np.zeros((16, 12)))
    with pytest.raises(InputError, match="all empty"):
        read_dataset(pictures)


def test_a_mask_of_another_size(pictures: Path) -> None:
    picture(pictures / "masks" / "p2.png", square()[:, :-1])
    with pytest.raises(InputError, match=r"masks/p2\.png.*16 x 11"):
        every(pictures)


def test_pictures_given_as_masks(pictures: Path) -> None:
    for path in (pictures / "masks").iterdir():
        picture(path, grey())
    with pytest.raises(InputError, match="no label maps"):
        read_dataset(pictures)


def test_a_colour_picture_among_grey_ones(pictures: Path) -> None:
    picture(pictures / "images" / "p1.png", np.stack([grey(), grey(3), grey(5)], -1))
    dataset = read_dataset(pictures)
    with pytest.raises(InputError, match=r"p1\.png.*3 channels"):
        load_example(dataset, dataset.examples[1], channels=1)


def test_a_value_without_a_name(nnunet: Path) -> None:
    change(nnunet, labels={"background": 0, "zone": 1})
    with pytest.raises(InputError, match=r"case_0\.nii\.gz.*value 2"):
        every(nnunet)


def test_a_label_on_another_grid(nnunet: Path) -> None:
    volume(nnunet / "labelsTr" / "case_1.nii.gz", np.ones((8, 7, 3), np.uint8), (1, 1, 4))
    with pytest.raises(InputError, match=r"case_1\.nii\.gz"):
        every(nnunet)


def test_a_missing_channel(nnunet: Path) -> None:
    (nnunet / "imagesTr" / "case_1_0001.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case_1.*channels 0"):
        read_dataset(nnunet)


def test_a_channel_on_another_grid(nnunet: Path) -> None:
    volume(nnunet / "imagesTr" / "case_1_0001.nii.gz", np.eye(8, 7)[..., None].repeat(3, 2), (1, 2, 5))
    with pytest.raises(InputError, match=r"case_1_0001\.nii\.gz.*another grid"):
        every(nnunet)


@pytest.mark.parametrize(
    ("entries", "word"),
    [
        ({"labels": {"background": 0, "whole": [1, 2], "core": 2}}, "regions"),
        ({"labels": {"background": 0, "zone": 2}}, "gap"),
        ({"labels": {"background": 0, "zone": 1, "ignore": 2}}, "ignore"),
        ({"labels": {"liver": 0, "tumour": 1, "vessel": 2}}, "'liver' the number 0"),
        ({"labels": {"0": "background", "1": "lesion", "2": "lesion"}}, "two classes named 'lesion'"),
        ({"file_ending": ".png"}, "file_ending"),
        ({"channel_names": {"1": "T2"}}, "channel_names"),
    ],
)
def test_a_dataset_json_that_cannot_be_used(nnunet: Path, entries: dict[str, Any], word: str) -> None:
    change(nnunet, **entries)
    with pytest.raises(InputError, match=word):
        read_dataset(nnunet)


def test_an_empty_folder_of_test_images_is_passed_over(nnunet: Path) -> None:
    for path in (nnunet / "imagesTs").iterdir():
        path.unlink()
    assert len(read_dataset(nnunet).examples) == 3


def test_two_masks_of_one_image(pictures: Path) -> None:
    for n in range(4):
        (pictures / "masks" / f"p{n}.png").rename(pictures / "masks" / f"p{n}_mask.png")
    picture(pictures / "masks" / "p3_seg.png", square(255))
    with pytest.raises(InputError, match=r"p3_seg\.png.*and p3_mask\.png are masks of one image"):
        read_dataset(pictures)


def test_patients_are_known_by_every_name_of_their_files() -> None:
    examples = [
        Example(
            "case0", (Path("a/scan_00_0000.png"), Path("a/scan_00_0001.png")), Path("b/scan_00_mask.png"), "ann", ""
        ),
        Example("case1", (Path("c/x.png"),), Path("d/truth.png"), "bob", ""),
        Example("case2", (Path("e/x.png"),), Path("f/truth2.png"), "cid", ""),
    ]
    found = patients_by_name(examples)
    assert {name for name, patient in found.items() if patient == "ann"} == {
        "case0",
        "scan_00",
        "scan_00_0000",
        "scan_00_0001",
        "scan_00_mask",
    }
    assert found["truth"] == found["case1"] == "bob"
    assert found["case2"] == "cid"
    assert "x" not in found


def test_one_image_under_two_keys(pictures: Path) -> None:
    items = [{"image": f"images/p{n}.png", "label": f"masks/p{n}.png", "key": f"x{n}"} for n in range(4)]
    again = [{**items[3], "key": "y"}]
    (pictures / "list.json").write_text(json.dumps({"training": items, "validation": again}))
    with pytest.raises(InputError, match=r"p3\.png.*is the image of x3 and of y") as refused:
        read_dataset(pictures / "list.json")
    assert refused.value.remedy == "Name every image once"


def test_one_name_twice_needs_keys_only_where_the_files_differ(pictures: Path) -> None:
    item = {"image": "images/p0.png", "label": "masks/p0.png"}
    picture(pictures / "other" / "p0.png", grey(9))
    for again, remedy in (
        (item, "Name every image once"),
        ({**item, "image": "other/p0.png"}, "Give each item a key of its own"),
    ):
        (pictures / "list.json").write_text(json.dumps({"training": [item, again]}))
        with pytest.raises(InputError, match="names p0 twice") as refused:
            read_dataset(pictures / "list.json")
        assert refused.value.remedy == remedy


def test_pictures_beside_volumes(pictures: Path) -> None:
    volume(pictures / "images" / "z.nii.gz", np.ones((16, 12, 2), np.float32))
    volume(pictures / "masks" / "z.nii.gz", square(255)[..., None].repeat(2, 2))
    with pytest.raises(InputError, match=r"z\.nii\.gz.*is a volume, and p0\.png a picture"):
        read_dataset(pictures)


def test_one_patient_in_two_parts(pictures: Path) -> None:
    items = [{"image": f"images/p{n}.png", "label": f"masks/p{n}.png", "patient": f"x{n % 3}"} for n in range(4)]
    content = {"training": items[:2], "validation": items[2:3], "testing": items[3:]}
    (pictures / "list.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="two parts"):
        read_dataset(pictures / "list.json")


def test_patients_from_names(pictures: Path) -> None:
    dataset = read_dataset(pictures).grouped(r"^p(\d)")
    assert {example.patient for example in dataset.examples} == {"0", "1", "2", "3"}
    with pytest.raises(InputError, match="label maps of 1 patients"):
        plan_dataset(pictures, Wishes(patients=r"^(p)\d"))
    with pytest.raises(InputError, match="no patient"):
        dataset.grouped(r"^q")


def test_a_pattern_never_moves_a_patient_between_parts(tmp_path: Path) -> None:
    for part, names in {"train": ("a_1", "b_1", "c_1"), "test": ("a_2", "d_1")}.items():
        for name in names:
            picture(tmp_path / part / "images" / f"{name}.png", grey())
            picture(tmp_path / part / "masks" / f"{name}.png", square())
    dataset = read_dataset(tmp_path)
    assert {example.part for example in dataset.examples} == {"", "test"}  # of the former some validate
    with pytest.raises(InputError, match="patient a's, who stands in two parts"):
        dataset.grouped("^([^_]+)")
    with pytest.raises(InputError, match="no patient is found"):
        dataset.grouped("(z)?")


def test_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="layout"):
        read_dataset(tmp_path)
