"""Which data sets get a 3D plan, and what it holds."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fingerprints import PICTURES

from cgdpm_med import InputError
from cgdpm_med.datasets.choices import make_plan
from cgdpm_med.datasets.memory import training_memory
from cgdpm_med.datasets.plan import parse_settings, plan_page, read_plan, write_plan
from cgdpm_med.datasets.rehearsal import Rehearsal, rehearsal_parser
from cgdpm_med.datasets.volume_choices import divisible, patch_sides, steps_of

ORGANS = replace(
    PICTURES,
    pictures=False,
    channels=("MR",),
    sizes=((160, 192, 192), (160, 192, 192), (60, 80, 120)),
    spacing=((1.0, 1.0), (2.5, 2.5)),
    extent=(192, 192),
    reach=(180, 150),
    slices=1000,
    examples=12,
    present=(12,),
    diameter=30,
)
THICK = replace(ORGANS, spacing=((1.0, 1.0), (4.0, 4.0)))
FEW = replace(ORGANS, sizes=((192,) * 3, (192,) * 3, (8, 10, 12)))
SOLID = parse_settings(["dimensions=3"])


SMALL = replace(ORGANS, sizes=((48,) * 3, (48,) * 3, (24,) * 3), extent=(48, 48), reach=(40, 40), diameter=15)


def test_small_volumes_of_thin_slices_are_planned_in_3d() -> None:
    plan = make_plan(SMALL)
    assert (plan.dimensions, plan.patch_size, plan.batch_size) == ("3D", 2, 4)
    assert math.prod(plan.crop) <= 2**14
    thick = replace(SMALL, spacing=((1.0, 1.0), (3.0, 3.0)))
    few = replace(SMALL, sizes=(*SMALL.sizes[:2], (15,) * 3))
    larger = replace(SMALL, sizes=((96,) * 3, (96,) * 3, (24,) * 3))
    assert [make_plan(seen).dimensions for seen in (thick, few, larger)] == ["2D"] * 3


def test_a_plan_in_2d_says_where_3d_may_help() -> None:
    plans = [make_plan(seen) for seen in (ORGANS, PICTURES, THICK, FEW)]
    assert [plan.dimensions for plan in plans] == ["2D"] * 4
    assert ["dimensions=3" in plan.reasons["dimensions"] for plan in plans] == [True, False, False, False]
    assert plans[2].neighbours == 1


@pytest.mark.parametrize("text", ["2", "2d", "2D"])
def test_a_user_chooses_otherwise(text: str) -> None:
    assert make_plan(ORGANS, given=parse_settings([f"dimensions={text}"])).dimensions == "2D"
    assert make_plan(ORGANS, given=parse_settings(["neighbours=2"])).neighbours == 2
    assert make_plan(THICK, given=parse_settings(["dimensions=3"])).dimensions == "3D"
    with pytest.raises(InputError, match="dimensions"):
        parse_settings(["dimensions=4"])


def test_sides_and_levels_of_thick_slices() -> None:
    plan = make_plan(
        ORGANS, given=parse_settings(["dimensions=3", "spacing=1", "between=4", "crop=64,64,16", "widths=32,64,96"])
    )
    # 1, 1, 4 -> 2, 2, 4 -> 4, 4, 4: only then the slices are halved, too
    assert plan.levels.stem == (2, 2, 1)
    assert plan.levels.strides == ((2, 2, 1), (2, 2, 2))
    assert plan.levels.kernels == ((3, 3, 1), (3, 3, 3), (3, 3, 3))
    assert plan.multiples == (8, 8, 2)
    assert (plan.neighbours, plan.crop) == (0, (64, 64, 16))


def test_a_patch_is_cut_where_it_is_longest_in_mm() -> None:
    assert divisible((50, 40, 9), (1, 1, 2.5), 3) == ((56, 40, 10), (3, 3, 1))
    assert patch_sides((64, 64, 32), (1, 1, 2), 2, 2**20) == (64, 64, 32)
    sides = patch_sides((256, 256, 30), (1, 1, 4), 3, 2**17)
    assert math.prod(sides) <= 2**17
    assert max(sides[0], sides[1], 4 * sides[2]) - min(sides[0], sides[1], 4 * sides[2]) <= 16
    assert steps_of((48, 48, 24), (1, 1, 2.5)) == 3


def test_memory_bounds_batch_and_patch() -> None:
    whole = make_plan(ORGANS, given=SOLID)
    less = make_plan(ORGANS, given=SOLID, memory=0.8 * whole.memory)
    assert less.memory <= 0.8 * whole.memory
    assert less.batch_size * math.prod(less.crop) < whole.batch_size * math.prod(whole.crop)


def test_memory_holds_whole_volumes() -> None:
    plan = make_plan(ORGANS, given=SOLID)
    one, two = (training_memory(plan, ["MR"], ["x"], volumes).held for volumes in (1, 2))
    assert two - one == math.prod(plan.field) * (4 + 2 * 2)  # float32 image, two classes in half precision


def test_the_planned_network_takes_the_planned_patch() -> None:
    plan = make_plan(ORGANS, given=parse_settings(["dimensions=3", "widths=32,32", "crop=16,16,8", "spacing=1"]))
    parser = rehearsal_parser(Rehearsal(plan, ["T2", "ADC"], ["x"]))
    network, batch = parser.get_parsed_content("network_def"), parser.get_parsed_content("train#dataset")[0]
    assert batch["image"].shape == (2, 20, 20, 10)
    image, label = parser.get_parsed_content("augmentation")(batch["image"][None], batch["label"][None])
    assert (image.shape, label.shape) == ((1, 2, 16, 16, 8), (1, 2, 16, 16, 8))
    assert network(torch.zeros(1, 1, 16, 16, 8), torch.tensor([3]), image).shape == (1, 1, 16, 16, 8)
    assert network.divisors == plan.multiples == (4, 4, 2)


@pytest.mark.parametrize(
    ("seen", "text", "word"),
    [
        (PICTURES, "dimensions=3", "pictures"),
        (replace(ORGANS, sizes=((9,) * 3, (9,) * 3, (1,) * 3)), "dimensions=3", "single slice"),
        (ORGANS, "field=64", "no field"),
        (ORGANS, "region=64", "no region"),
        (ORGANS, "crop=64", "three sides"),
        (ORGANS, "crop=9,9,9", "halved"),
        (ORGANS, "between=-1", "cannot be"),
        (FEW, "between=2", ""),
        (PICTURES, "between=2", "pictures"),
    ],
)
def test_settings_that_cannot_be(seen: object, text: str, word: str) -> None:
    if not word:
        assert make_plan(seen, given=parse_settings([text])).dimensions == "3D"  # type: ignore[arg-type]
        return
    with pytest.raises(InputError, match=word):
        make_plan(seen, given=parse_settings(["dimensions=3", text]))  # type: ignore[arg-type]


def test_a_plan_survives_its_file_and_its_page_tells_the_levels(tmp_path: Path) -> None:
    plan = make_plan(ORGANS, given=SOLID)
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan
    page = plan_page(ORGANS, plan, {"train": ["a"], "validation": [], "test": []}, "organs")
    assert "## Plan: 3D" in page
    assert "| (strides) |" in page
    assert "| neighbours |" not in page
