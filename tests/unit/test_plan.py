"""Fingerprint, plan and split, against hand-made data sets of known numbers."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from data_sets import volume
from fingerprints import HEARTS, PICTURES

import cgdpm_med.datasets
from cgdpm_med import InputError
from cgdpm_med.apps.train import sampled_as
from cgdpm_med.datasets.choices import make_plan
from cgdpm_med.datasets.dataset import DataSet, Example
from cgdpm_med.datasets.fingerprint import Fingerprint, centred_reach, fingerprint, piece_diameters
from cgdpm_med.datasets.folders import read_dataset
from cgdpm_med.datasets.memory import network_bytes, training_memory
from cgdpm_med.datasets.plan import parse_settings, plan_page, read_plan, write_plan
from cgdpm_med.datasets.rehearsal import Rehearsal, rehearsal_parser
from cgdpm_med.datasets.split import make_split, of_part


def test_reach_and_diameters_by_hand() -> None:
    label = np.zeros((10, 8, 2), np.uint8)
    label[6:8, 1:3, 0] = 1
    assert centred_reach(label, (1.0, 2.0, 5.0)) == (6.0, 12.0)
    assert centred_reach(0 * label, (1.0, 2.0, 5.0)) is None
    diameters, filled = piece_diameters(label, (1.0, 2.0, 5.0))
    assert diameters == pytest.approx([2 * np.sqrt(8 / np.pi)])
    assert filled == 1


def test_fingerprint_of_pictures(pictures: Path) -> None:
    found = fingerprint(read_dataset(pictures))
    assert (found.examples, found.patients, found.channels) == (4, 4, ("grey",))
    assert found.sizes == ((16, 16, 16), (12, 12, 12), (1, 1, 1))
    assert found.fractions == pytest.approx([16 / (16 * 12)])
    assert found.diameter == pytest.approx(2 * np.sqrt(16 / np.pi))
    assert found.present == (4,)


def test_fingerprint_of_two_channels(nnunet: Path) -> None:
    found = fingerprint(read_dataset(nnunet))
    assert (found.examples, found.patients, found.unlabelled) == (4, 3, 1)
    assert found.spacing == ((1, 1), (5, 5))
    assert found.intensities[1] == pytest.approx([2 * x for x in found.intensities[0]])


def test_label_maps_that_are_all_empty_in_volumes(nnunet: Path) -> None:
    for n in range(3):
        volume(nnunet / "labelsTr" / f"case_{n}.nii.gz", np.zeros((8, 7, 3), np.uint8))
    with pytest.raises(InputError, match="empty"):
        fingerprint(read_dataset(nnunet))


# --- plan -------------------------------------------------------------------------------------------------------------


def test_large_pieces_are_seen_at_half_the_resolution() -> None:
    plan = make_plan(PICTURES)
    assert plan.spacing == 2.0
    assert plan.field == plan.crop == (128, 128)
    assert (plan.neighbours, plan.intensity) == (0, "as it is")


def test_small_pieces_keep_the_pixels() -> None:
    plan = make_plan(replace(PICTURES, diameter=10))
    assert plan.spacing == 1.0
    assert plan.crop == (256, 256)


def test_hearts_are_planned_as_by_hand() -> None:
    plan = make_plan(HEARTS)
    assert plan.spacing == pytest.approx(1.25, rel=0.2)
    assert plan.crop[0] == pytest.approx(144, rel=0.2)
    assert (plan.neighbours, plan.batch_size, plan.patch_size, plan.scale) == (1, 16, 2, 0.1)
    assert plan.intensity == "percentiles"


def test_the_network_is_shown_the_middle_where_all_structures_lie_there() -> None:
    """Crops of 128 x 112 pixels are drawn up to 11.2 from the centre; structures lie within 190 x 180 mm."""
    plan = make_plan(HEARTS)
    assert plan.crop == (128, 112)
    assert plan.region == (160, 144)  # 150.4 and 139.4 in multiples of 16
    wide = make_plan(replace(HEARTS, farthest=(220, 180)))
    assert wide.region == (176, 144)  # 220 / 1.37 + 8


@pytest.mark.parametrize(
    "anywhere",
    [PICTURES, replace(HEARTS, farthest=(310, 180)), replace(HEARTS, examples=9), replace(HEARTS, extent=(220, 350))],
)
def test_whole_images_are_shown_where_structures_may_lie_anywhere(anywhere: Fingerprint) -> None:
    assert make_plan(anywhere).region == ()


@pytest.mark.parametrize(
    ("pictures", "side", "pixel", "reach"), [(True, 768, 1.0, 740), (True, 1024, 1.0, 1020), (False, 400, 0.8, 262)]
)
def test_structures_far_from_the_middle_are_trained_on(pictures: bool, side: float, pixel: float, reach: float) -> None:
    """The largest crop has 256 pixels about the middle, so pixels become larger where structures lie beyond."""
    near = PICTURES if pictures else replace(HEARTS, spacing=((pixel, pixel), (5, 10)))
    far = replace(near, extent=(side, side), reach=(reach, 200), farthest=(side, side), diameter=20)
    plan = make_plan(far)
    assert plan.crop[0] * plan.spacing >= reach
    assert "far from the middle" in plan.reasons["spacing"]
    assert f"{20 / plan.spacing:.2g} working pixels" in plan.reasons["spacing"]
    given = make_plan(far, given={"spacing": reach / 400})
    assert "are not learned" in given.reasons["crop"]


def test_one_large_image_among_small_ones_does_not_shrink_them_all() -> None:
    mixed = replace(PICTURES, extent=(300, 300), reach=(1900, 1900), farthest=(2000, 2000), diameter=40)
    plan = make_plan(mixed)
    assert plan.spacing == make_plan(replace(mixed, reach=(290, 290))).spacing
    assert "not learned" in plan.reasons["crop"]


@pytest.mark.parametrize("text", ["crop=512,512", "field=512,512"])
def test_whoever_says_how_much_is_shown_keeps_the_pixels(text: str) -> None:
    far = replace(PICTURES, extent=(512, 512), reach=(500, 500), farthest=(512, 512), diameter=12)
    assert make_plan(far).spacing > 1
    assert make_plan(far, given=parse_settings([text])).spacing == 1


@pytest.mark.parametrize(("epoch", "times"), [(100, 10), (1000, 5), (5000, 1)])
def test_validation_follows_the_length_of_an_epoch(epoch: int, times: int) -> None:
    plan = make_plan(PICTURES, iterations=5000, given={"epoch": epoch})
    assert plan.epochs // plan.validate_every == times


@pytest.mark.parametrize("text", ["crop=64,64,32", "field=64,64,64"])
def test_three_sides_are_no_crop_of_a_slice(text: str) -> None:
    with pytest.raises(InputError, match="two sides"):
        make_plan(PICTURES, given=parse_settings([text]))


@pytest.mark.parametrize("shape", [(64, 64, 32), (128, 16, 4), (96, 90, 7)])
def test_intensities_are_those_of_all_slices(shape: tuple[int, int, int], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for n in range(3):
        image = rng.uniform(300, 700, shape).astype(np.float32)
        image[..., 0] = 0
        mask = np.zeros(shape, np.uint8)
        mask[2:5, 2:5, 1] = 1
        volume(tmp_path / "images" / f"v{n}.nii.gz", image)
        volume(tmp_path / "masks" / f"v{n}.nii.gz", mask)
    ((_, middle, high),) = fingerprint(read_dataset(tmp_path)).intensities
    share = 1 / shape[2]  # of zeros, so the median lies at (0.5 - share) / (1 - share) of what is left
    assert middle == pytest.approx(300 + 400 * (0.5 - share) / (1 - share), abs=15)
    assert high == pytest.approx(696, abs=4)


def test_ct_has_one_window() -> None:
    plan = make_plan(replace(HEARTS, channels=("CT",), foreground=((-100, 300),)))
    assert (plan.intensity, plan.window) == ("fixed", ((-100, 300),))


def test_memory_bounds_the_batch() -> None:
    whole = make_plan(PICTURES)
    less = make_plan(PICTURES, memory=0.85 * whole.memory)
    assert less.batch_size == whole.batch_size // 2
    assert less.memory < 0.85 * whole.memory
    assert "memory" in less.reasons["batch_size"]
    fixed = make_plan(PICTURES, memory=0.85 * whole.memory, given={"batch_size": 8})
    assert fixed.memory == whole.memory


def test_memory_grows_with_batch_and_data_as_both_do() -> None:
    plan = make_plan(PICTURES)
    needs = training_memory(plan, ["grey"], ["x"], 100)
    more = training_memory(plan, ["grey"], ["x"], 200)
    assert needs.peak(6) - needs.peak(4) == pytest.approx(2 * needs.example)
    assert more.example == needs.example
    assert more.held - needs.held == 100 * 128 * 128 * (4 + 2 * 2)  # float32 image, two classes in half precision


def test_a_forward_pass_keeps_what_is_counted_without_it() -> None:
    """Attention over 1024 pixels, whose matrix of all pairs no device keeps."""
    plan = make_plan(PICTURES, given=parse_settings(["crop=64", "field=64", "widths=32,32", "patch_size=1"]))
    task = Rehearsal(plan, ["grey"], ["x"])
    kept, weights = network_bytes(task)
    parser = rehearsal_parser(task)
    network, loss = parser.get_parsed_content("network_def"), parser.get_parsed_content("loss")
    assert weights == sum(4 * parameter.numel() for parameter in network.parameters())
    seen: dict[int, torch.Tensor] = {}
    own = {parameter.data_ptr() for parameter in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(network, torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 64, 64))
    found = sum(tensor.untyped_storage().nbytes() for tensor in seen.values())
    assert kept == pytest.approx(found, rel=0.01)


def test_little_time_makes_a_cheaper_network() -> None:
    plan = make_plan(PICTURES, quick=True)
    assert (plan.patch_size, plan.widths, plan.crop) == (4, (32, 64, 96), (128, 128))
    assert make_plan(replace(PICTURES, diameter=12), quick=True).spacing == 1.5
    assert make_plan(PICTURES, quick=True, given={"widths": (64, 64)}).widths == (64, 64)


def test_few_slices_make_a_small_batch() -> None:
    assert make_plan(replace(PICTURES, slices=5)).batch_size == 2


def test_what_is_set_is_taken_and_the_rest_follows() -> None:
    plan = make_plan(PICTURES, given=parse_settings(["spacing=4", "widths=32,64"]))
    assert (plan.spacing, plan.widths, plan.crop) == (4.0, (32, 64), (64, 64))
    assert plan.reasons["spacing"] == "given"
    assert parse_settings(["crop=64"]) == {"crop": (64, 64)}
    assert parse_settings(["region=0"]) == {"region": ()}
    assert parse_settings(["region=96"]) == {"region": (96, 96)}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("spacin=1", "mean spacing"),
        ("spacing", "NAME=VALUE"),
        ("spacing=fine", "no value"),
        ("spacing=nan", "finite"),
        ("widths=a,b", "whole numbers"),
    ],
)
def test_settings_that_cannot_be_read(text: str, word: str) -> None:
    with pytest.raises(InputError, match=word):
        parse_settings([text])


@pytest.mark.parametrize(
    "text",
    [
        "spacing=-1",
        "spacing=0",
        "patch_size=0",
        "crop=50,50",
        "widths=33",
        "intensity=log",
        "patch_size=3",
        "flip=2",
        "dice_weight=-1",
        "timesteps=1000,5",
        "timesteps=5,5",
        "timesteps=9,-1",
        "region=112",
        "region=130",
        "region=128,128,128",
    ],
)
def test_settings_that_cannot_be(text: str) -> None:
    with pytest.raises(InputError, match="cannot be"):
        make_plan(PICTURES, given=parse_settings([text]))


@pytest.mark.parametrize("walk", [(), (999, 800, 0)])
def test_a_run_samples_as_its_plan_says(walk: tuple[int, ...]) -> None:
    template = Path(cgdpm_med.datasets.__path__[0]) / "templates" / "inference.yaml"
    plan = replace(make_plan(PICTURES), members=3, timesteps=walk)
    written = yaml.safe_load(sampled_as(plan, template.read_text(encoding="utf-8")))
    assert (written["members"], written["timesteps"]) == (3, list(walk) or None)


def test_the_page_shows_the_walk() -> None:
    parts = {"train": ["a"], "validation": ["b"], "test": ["c"]}
    page = plan_page(PICTURES, make_plan(PICTURES, given=parse_settings(["timesteps=999,800"])), parts, "pictures")
    assert "| timesteps | 999, 800 | given |" in page


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    plan = make_plan(HEARTS, given=parse_settings(["timesteps=999,500"]))
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan
    before = {name: value for name, value in asdict(plan).items() if name != "region"}  # version 0.2 knows none
    (tmp_path / "plan.json").write_text(json.dumps(before))
    assert read_plan(tmp_path / "plan.json") == replace(plan, region=())
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(InputError, match="no plan"):
        read_plan(tmp_path / "plan.json")


def test_the_page_names_classes_and_choices() -> None:
    page = plan_page(HEARTS, make_plan(HEARTS), {"train": ["a", "b"], "validation": ["c"], "test": []}, "hearts")
    assert "Myo" in page
    assert "2 train" in page
    assert "| spacing | 1.37 |" in page


# --- split ------------------------------------------------------------------------------------------------------------


def examples(patients: dict[str, str], each: int = 2) -> DataSet:
    files = (Path("a.png"),)
    made = [
        Example(f"{patient}_{n}", files, Path("m.png"), patient, part)
        for patient, part in patients.items()
        for n in range(each)
    ]
    return DataSet("x", Path("x"), ("a",), ("grey",), tuple(made))


def test_a_drawn_split_holds_everyone_once() -> None:
    dataset = examples({f"p{n}": "" for n in range(20)})
    parts = make_split(dataset, seed=3)
    assert {part: len(members) for part, members in parts.items()} == {"train": 14, "validation": 2, "test": 4}
    assert sorted(name for members in parts.values() for name in members) == sorted(f"p{n}" for n in range(20))
    assert parts == make_split(dataset, seed=3) != make_split(dataset, seed=4)
    assert len(of_part(dataset, parts, "test")) == 8


def test_a_given_split_is_kept() -> None:
    dataset = examples({"a": "train", "b": "validation", "c": "test"})
    assert make_split(dataset) == {"train": ("a",), "validation": ("b",), "test": ("c",)}


def test_a_given_test_part_stays_and_the_rest_is_drawn() -> None:
    parts = make_split(examples({"a": "test", **{f"p{n}": "" for n in range(9)}}))
    assert parts["test"] == ("a",)
    assert (len(parts["train"]), len(parts["validation"])) == (8, 1)


def test_folds_validate_everyone_once() -> None:
    dataset = examples({f"p{n}": "" for n in range(7)})
    held = [make_split(dataset, folds=3, fold=fold)["validation"] for fold in range(3)]
    assert sorted(name for part in held for name in part) == [f"p{n}" for n in range(7)]
    with pytest.raises(InputError, match="fold"):
        make_split(dataset, folds=3, fold=3)


def test_patients_that_are_gone() -> None:
    dataset = examples({"a": "train", "b": "validation", "c": "test"})
    with pytest.raises(InputError, match="no more d"):
        of_part(dataset, {"train": ("d",)}, "train")
