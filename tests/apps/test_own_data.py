"""Sets of known truth: what is planned for them, what a short training reaches, and what memory it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import REPO, load_script
from fingerprints import PICTURES
from numpy.typing import NDArray
from PIL import Image

from cgdpm_med.apps.train import Wishes, plan_dataset, train, write_run
from cgdpm_med.datasets.choices import make_plan
from cgdpm_med.datasets.fingerprint import fingerprint
from cgdpm_med.datasets.folders import read_dataset
from cgdpm_med.datasets.loading import load_example
from cgdpm_med.datasets.run import Run
from cgdpm_med.datasets.split import of_part

own_data, own_acdc = load_script("own_data"), load_script("own_acdc")
pytestmark = pytest.mark.usefixtures("leaves_no_determinism")


# --- a look-alike of ACDC ---------------------------------------------------------------------------------------------


def hearts(root: Path) -> Path:
    """Short-axis volumes of ACDC's usual sizes and spacings: a ring with a pool inside, and a pool beside it."""
    shapes = [(216, 256, 10), (232, 256, 9), (154, 224, 8), (256, 216, 10)]
    spacings = [(1.5625, 1.5625, 10.0), (1.37, 1.37, 10.0), (1.68, 1.68, 10.0), (1.40, 1.40, 5.0)]
    for n, (shape, spacing) in enumerate(zip(shapes, spacings, strict=True)):
        label = heart(shape, spacing)
        image = np.random.default_rng(n).normal(100, 20, shape) + 30 * label
        own_data.write_case(root, f"patient{n:03d}_frame01", [image], label, spacing)
    own_data.write_description(root, ["cine MR"], ["RV", "Myo", "LV"], len(shapes))
    return root


def heart(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> NDArray[np.uint8]:
    """In every slice, 45 mm off the centre: LV of radius 24 mm, a wall of 10 mm, and RV up to 85 mm aside."""
    x, y = ((np.arange(n) - (n - 1) / 2)[:, None, None] * s for n, s in zip(shape[:2], spacing[:2], strict=True))
    y = y.reshape(1, -1, 1) - 45
    left, right = np.hypot(x + 12, y), np.hypot((x - 45) / 1.2, y)
    plane = np.select([left < 24, left < 34, right < 33], [3, 2, 1])
    return np.asarray(np.broadcast_to(plane, shape), np.uint8)


def test_hearts_are_planned_as_the_bundle_was_made_by_hand(tmp_path: Path) -> None:
    text = (REPO / "bundles" / "acdc_segmentation" / "configs" / "train.yaml").read_text(encoding="utf-8")
    by_hand = yaml.safe_load(text)
    seen = fingerprint(read_dataset(hearts(tmp_path)))
    plan = make_plan(seen, large=True, memory=1e11)
    assert plan.spacing == pytest.approx(by_hand["spacing"], rel=0.2)
    assert plan.crop == pytest.approx((by_hand["crop"],) * 2, rel=0.2)
    assert plan.widths == tuple(by_hand["channels"])
    assert plan.neighbours == by_hand["neighbours"]
    assert plan.batch_size == by_hand["batch_size"]
    assert plan.learning_rate == by_hand["learning_rate"]
    assert plan.patch_size == by_hand["network_def"]["patch_size"]
    assert plan.scale == by_hand["target"]["scale"]
    assert plan.intensity == "percentiles"


# --- training ---------------------------------------------------------------------------------------------------------

SMALL = ("widths=32,32", "batch_size=8", "members=4", "validation_cases=4", "learning_rate=0.002")


LONG = (pytest.mark.slow, pytest.mark.long)
WHOLE = ("spacing=1", "batch_size=4")
TWO_LEVELS = (*WHOLE, "widths=64,64")  # attention over 9216 pixels


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "size"),
    [pytest.param(kind, 32, marks=LONG) for kind in ("pictures", "blobs", "volumes", "channels")],
)
def test_a_short_training_finds_what_is_there(kind: str, size: int, tmp_path: Path) -> None:
    """The full budgets are scripts/own_data.py's; here a fraction, so that a plan that cannot learn is found."""
    data = own_data.write_set(kind, tmp_path / "data", cases=30, size=size)
    test = train(data, tmp_path / "run", Wishes(iterations=150, settings=SMALL), device="cpu")["test"]
    assert test["mean_dice"] > 0.7


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system tells no peak of a process")
@pytest.mark.parametrize("settings", [(), pytest.param(WHOLE, marks=LONG), pytest.param(TWO_LEVELS, marks=LONG)])
def test_a_training_takes_the_memory_that_was_planned(settings: tuple[str, ...], tmp_path: Path) -> None:
    """Peak of a process of its own, as the command runs."""
    data = own_data.write_set("pictures", tmp_path / "data", cases=10, size=192)
    wishes = ["iterations=2", "epoch=2", "validation_cases=1", "members=1", *settings]
    options = [word for setting in wishes for word in ("--set", setting)]
    # not getrusage: a process begins with the peak of the one that started it
    program = (
        "from cgdpm_med.apps.cli import app; app(standalone_mode=False);"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    words = [sys.executable, "-c", program, "train", str(data), str(tmp_path / "run"), "--device", "cpu", *options]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    planned = json.loads((tmp_path / "run" / "configs" / "plan.json").read_text())["memory"]
    assert 1024 * int(done.stdout.split()[-1]) == pytest.approx(planned, rel=0.2)


# --- scripts ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def readers_run(tmp_path: Path) -> Run:
    """Planned for two steps, not trained."""
    data, run = own_data.write_set("readers", tmp_path / "data", cases=5, size=32), tmp_path / "run"
    wishes = Wishes(iterations=2, settings=("widths=32,32,32", "batch_size=2", "epoch=2", "validation_cases=1"))
    write_run(plan_dataset(data, wishes, device="cpu"), run, data, wishes)
    return Run(run, data)


def test_members_that_are_both_readers_lie_nowhere_from_them(readers_run: Run) -> None:
    """One reader alone is off by half the distance d of the two: 2 d/2 - 0 - d/2."""
    (key,) = readers_run.parts["test"]
    inner, outer = (
        np.asarray(Image.open(readers_run.source / reader / f"{key}.png"))[..., None] > 0 for reader in own_data.READERS
    )
    assert inner.sum() < outer.sum()
    apart = 1 - inner.sum() / outer.sum()  # the inner lies within the outer
    for members, expected in (((inner, outer), 0), ((outer, inner, outer, inner), 0), ((inner,), apart / 2)):
        drawn = np.stack(members).astype(np.uint8)
        assert own_data.distance_of_readers(readers_run, lambda *_, drawn=drawn: drawn) == pytest.approx(expected)


def test_pixels_are_drawn_as_often_as_their_probability_says() -> None:
    probability = np.array([0.0, 0.25, 1.0])
    drawn = own_data.drawn_by_pixel(probability, 20_000, np.random.default_rng(0))
    assert drawn.mean(axis=0) == pytest.approx(probability, abs=5 * np.sqrt(0.25 * 0.75 / 20_000))


@pytest.mark.slow
def test_the_rival_is_a_plain_network_on_the_same_split(readers_run: Run, tmp_path: Path) -> None:
    for _ in range(2):  # the second finds it trained
        rival = own_data.train_rival(readers_run.source, readers_run.folder, tmp_path / "rival")
    assert Run(tmp_path / "rival", readers_run.source).parts == readers_run.parts
    assert type(rival.model.network).__name__ == "ConditionOnly"
    (example,) = of_part(readers_run.dataset, readers_run.parts, "test")
    found = rival(load_example(readers_run.dataset, example), example.key)
    np.testing.assert_array_equal(found.members[0], found.mask)
    np.testing.assert_array_equal(found.probabilities[1] > 0.5, found.mask)


def test_acdc_becomes_an_nnunet_set_by_links(phantoms: Path, tmp_path: Path) -> None:
    dataset = read_dataset(own_acdc.link_raw(phantoms, tmp_path / "raw", patients=2)).grouped(own_acdc.PATIENT)
    assert dataset.labels == ("RV", "Myo", "LV")
    assert len(dataset.labelled) == 4
    assert len({example.patient for example in dataset.labelled}) == 2
    assert all(file.is_symlink() for example in dataset.labelled for file in example.images)


def test_choices_are_compared_in_relative_terms() -> None:
    assert own_acdc.apart((144, 144), (160, 144)) == pytest.approx(16 / 144)
    assert own_acdc.apart("fixed", "percentiles") == own_acdc.apart((64, 96), (64,)) == 1
    assert set(own_acdc.planned_values(make_plan(PICTURES))) == set(own_acdc.by_hand())


def test_sets_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    for kind in own_data.KINDS:
        one = read_dataset(own_data.write_set(kind, tmp_path / "a" / kind, cases=3, size=32))
        other = read_dataset(own_data.write_set(kind, tmp_path / "b" / kind, cases=3, size=32))
        assert len(one.labelled) == 3
        files = [[*example.images, example.label] for example in one.examples]
        again = [[*example.images, example.label] for example in other.examples]
        assert [[f.read_bytes() for f in row if f] for row in files] == [
            [f.read_bytes() for f in row if f] for row in again
        ]
        assert fingerprint(one).present == (3,) * len(one.labels)
