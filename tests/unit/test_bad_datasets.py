"""What is wrong with a data set is said once, with the file and a way out that leads to the goal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import change, every, grey, picture, square, volume
from numpy.typing import NDArray
from PIL import Image

from cgdpm_med import InputError
from cgdpm_med.apps.train import Wishes, plan_dataset, write_run
from cgdpm_med.datasets.folders import read_dataset
from cgdpm_med.datasets.label_values import stored_labels
from cgdpm_med.datasets.loading import input_files
from cgdpm_med.datasets.run import Run


def rgba(path: Path, colour: NDArray[Any], alpha: NDArray[Any]) -> None:
    Image.fromarray(np.dstack([colour] * 3 + [alpha]).astype(np.uint8)).save(path)


# --- pictures: what is wrong, and what the remedy says ------------------------------------------------------------


def two_of_a_name(root: Path) -> None:
    picture(root / "images" / "p1.bmp", grey(1))


def one_of_a_name(root: Path) -> None:
    (root / "images" / "p1.bmp").unlink()


def near_values(root: Path) -> None:
    mask = square()
    mask[2, 3], mask[0, 0] = 253, 2  # as compression leaves them
    picture(root / "masks" / "p1.png", mask)


def clean_values(root: Path) -> None:
    picture(root / "masks" / "p1.png", square())


def told_by_transparency(root: Path) -> None:
    rgba(root / "masks" / "p1.png", np.zeros((16, 12)), square())


def class_numbers_as_jpeg(root: Path) -> None:
    (root / "masks" / "p1.png").unlink()
    Image.fromarray(square(3)).save(root / "masks" / "p1.jpg", quality=95)


def no_jpeg(root: Path) -> None:
    (root / "masks" / "p1.jpg").unlink()
    clean_values(root)


def pages(root: Path) -> None:
    (root / "masks" / "p1.png").unlink()
    first, second = Image.fromarray(square()), Image.fromarray(square(at=5))
    first.save(root / "masks" / "p1.tif", save_all=True, append_images=[second])


def one_page(root: Path) -> None:
    Image.fromarray(square()).save(root / "masks" / "p1.tif")


def no_number(root: Path) -> None:
    (root / "labels.json").write_text(json.dumps({"background": 0, "spot": [255]}))


def a_number(root: Path) -> None:
    (root / "labels.json").write_text(json.dumps({"background": 0, "spot": 255}))


def a_class_that_nobody_has(root: Path) -> None:
    (root / "labels.json").write_text(json.dumps({"background": 0, "spot": 255, "ghost": 7}))


def the_first_in_colour(root: Path) -> None:
    picture(root / "images" / "p0.png", np.dstack([grey()] * 3))


def the_first_in_grey(root: Path) -> None:
    picture(root / "images" / "p0.png", grey())


def a_class_of_one_patient(root: Path) -> None:
    """Who validates: nobody is left to train on it."""
    root.joinpath("labels.json").write_text(json.dumps({"background": 0, "spot": 255, "rare": 100}))
    for part, n in (("training", 0), ("training", 1), ("validation", 2), ("test", 3)):
        for folder in ("images", "masks"):
            place = root / PLACES[part] / folder / f"p{n}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            (root / folder / f"p{n}.png").rename(place)
    for folder in ("images", "masks"):
        (root / folder).rmdir()
    picture(root / "val" / "masks" / "p2.png", square() + square(100, at=8))


PLACES = {"training": "train", "validation": "val", "test": "test"}


def another_split(root: Path) -> None:
    for folder in ("images", "masks"):
        (root / "val" / folder / "p2.png").rename(root / "train" / folder / "p2.png")
        (root / "train" / folder / "p1.png").rename(root / "val" / folder / "p1.png")


def folders_of_patients(root: Path) -> None:
    for path in list((root / "images").iterdir()):
        (path.parent / path.stem).mkdir()
        path.rename(path.parent / path.stem / path.name)


def no_folders(root: Path) -> None:
    for path in list((root / "images").rglob("*.png")):
        path.rename(root / "images" / path.name)


Change = Callable[[Path], None]
FAULTS: list[tuple[Change, str, Change]] = [
    (two_of_a_name, r"p1\.png.*same name as p1\.bmp", one_of_a_name),
    (near_values, r"p1\.png.*253.*compression", clean_values),
    (told_by_transparency, r"p1\.png.*transparency", clean_values),
    (class_numbers_as_jpeg, r"p1\.jpg.*labels are lost", no_jpeg),
    (pages, r"p1\.tif.*2 pages", one_page),
    (no_number, r"labels\.json.*value of its own", a_number),
    (a_class_that_nobody_has, r"no ghost", a_number),
    (the_first_in_colour, r"p0\.png.*3 channels.*others.*1 channel", the_first_in_grey),
    (a_class_of_one_patient, r"no rare.*another split", another_split),
    (folders_of_patients, r"images.*only folders", no_folders),
]


@pytest.mark.parametrize(("fault", "words", "remedy"), FAULTS, ids=[fault.__name__ for fault, *_ in FAULTS])
def test_a_fault_is_named_and_its_remedy_helps(pictures: Path, fault: Change, words: str, remedy: Change) -> None:
    fault(pictures)
    with pytest.raises(InputError, match=words) as caught:
        plan_dataset(pictures, Wishes(iterations=2), device="cpu")
    assert caught.value.path is not None
    assert caught.value.remedy
    remedy(pictures)
    assert plan_dataset(pictures, Wishes(iterations=2), device="cpu").seen.examples == 4


def test_pixels_to_ignore_beside_class_numbers_must_be_named(pictures: Path) -> None:
    for n in range(4):
        mask = square(1) + square(2, at=8)
        mask[15] = 255
        picture(pictures / "masks" / f"p{n}.png", mask)
    with pytest.raises(InputError, match="ignore"):
        read_dataset(pictures)
    table = {"background": 0, "vessel": 1, "tumour": 2, "margin": 255}
    (pictures / "labels.json").write_text(json.dumps(table))
    assert every(pictures)[0].label.max() == 3


def test_masks_with_harmless_transparency_and_wide_greys_are_read(tmp_path: Path) -> None:
    rgba(tmp_path / "opaque.png", square(), np.full((16, 12), 255))
    rgba(tmp_path / "cut.png", square(), square())  # the background is black and transparent
    for name in ("opaque.png", "cut.png"):
        np.testing.assert_array_equal(stored_labels(tmp_path / name), square())
    deep = square().astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert set(np.unique(stored_labels(tmp_path / "deep.png"))) == {0, 65535}


def test_a_mask_that_its_file_turns_lies_as_its_image_does(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(square()).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(stored_labels(tmp_path / "turned.png"), np.rot90(square(), -1))


def test_images_of_16_bits_and_with_transparency_are_planned(tmp_path: Path) -> None:
    for n in range(4):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(grey(n).astype(np.uint16) * 16).save(tmp_path / "images" / f"p{n}.png")
        picture(tmp_path / "masks" / f"p{n}.png", square(at=2 + n))
    assert plan_dataset(tmp_path, Wishes(iterations=2), device="cpu").plan.intensity == "percentiles"
    for n in range(4):
        rgba(tmp_path / "images" / f"p{n}.png", grey(n), np.full((16, 12), 255))
    assert len(plan_dataset(tmp_path, Wishes(iterations=2), device="cpu").seen.channels) == 3


def test_three_images_are_enough_to_begin(pictures: Path) -> None:
    for folder in ("images", "masks"):
        (pictures / folder / "p3.png").unlink()
    parts = plan_dataset(pictures, Wishes(iterations=2), device="cpu").parts
    assert [len(parts[part]) for part in ("train", "validation", "test")] == [1, 1, 1]


# --- nnU-Net ------------------------------------------------------------------------------------------------------


def test_files_of_another_ending_are_not_passed_over(nnunet: Path) -> None:
    stray = nnunet / "imagesTr" / "case_9_0000.nii"
    volume(stray, np.zeros((8, 7, 3), np.float32))
    with pytest.raises(InputError, match=r"case_9_0000\.nii.*file_ending"):
        read_dataset(nnunet)
    stray.unlink()
    assert len(read_dataset(nnunet).labelled) == 3


def test_a_label_map_without_image(nnunet: Path) -> None:
    volume(nnunet / "labelsTr" / "case_7.nii.gz", np.zeros((8, 7, 3), np.uint8))
    with pytest.raises(InputError, match=r"case_7\.nii\.gz.*no image"):
        read_dataset(nnunet)


def test_a_label_map_whose_name_differs_in_case(nnunet: Path) -> None:
    file = nnunet / "labelsTr" / "case_1.nii.gz"
    file.rename(file.with_name("Case_1.nii.gz"))
    with pytest.raises(InputError, match=r"case_1_0000\.nii\.gz.*Case_1\.nii\.gz.*called case_1"):
        read_dataset(nnunet)
    file.with_name("Case_1.nii.gz").rename(file)
    assert len(read_dataset(nnunet).labelled) == 3


def test_a_number_of_cases_that_does_not_fit(nnunet: Path) -> None:
    change(nnunet, numTraining=4)
    with pytest.raises(InputError, match="numTraining 4"):
        read_dataset(nnunet)
    change(nnunet, numTraining=3)
    assert len(read_dataset(nnunet).labelled) == 3


def test_channels_are_grouped_where_their_numbers_say_so(nnunet: Path, tmp_path: Path) -> None:
    found, failed = input_files(nnunet / "imagesTs", 2)
    assert {key: len(files) for key, files in found.items()} == {"case_3": 2}
    assert not failed
    single, _ = input_files(nnunet / "imagesTs", 1)
    assert sorted(single) == ["case_3_0000", "case_3_0001"]


def test_nnunets_ending_of_the_only_channel_is_no_part_of_a_name(tmp_path: Path) -> None:
    for n in (1, 2):
        picture(tmp_path / f"case_{n}_0000.png", grey(n))
    assert sorted(input_files(tmp_path, 1)[0]) == ["case_1", "case_2"]


def test_cases_that_show_a_structure_choose_the_weights(pictures: Path, tmp_path: Path) -> None:
    """Two validation cases are looked at; the first two by name are empty."""
    for n in range(4, 8):
        picture(pictures / "images" / f"p{n}.png", grey(n))
        picture(pictures / "masks" / f"p{n}.png", square())
    for n in (0, 1, 2):
        picture(pictures / "masks" / f"p{n}.png", square(0))
    items = [{"image": f"images/p{n}.png", "label": f"masks/p{n}.png"} for n in range(8)]
    (pictures / "list.json").write_text(json.dumps({"training": items[5:], "validation": items[:5]}))
    wishes = Wishes(iterations=2, settings=("validation_cases=2", "batch_size=1"))
    planned = plan_dataset(pictures / "list.json", wishes, device="cpu")
    write_run(planned, tmp_path / "run", pictures / "list.json", wishes)
    chosen = Run(tmp_path / "run", pictures / "list.json").validation_items()
    assert [bool(item["label"].any()) for item in chosen] == [True, True]
