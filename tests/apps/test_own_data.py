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
from numpy.typing import NDArray

from cgdpm_med.apps.train import Wishes, train
from cgdpm_med.datasets.choices import make_plan
from cgdpm_med.datasets.fingerprint import fingerprint
from cgdpm_med.datasets.folders import read_dataset

own_data = load_script("own_data")
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
@pytest.mark.parametrize("settings", [(), pytest.param(("spacing=1", "batch_size=4"), marks=pytest.mark.long)])
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
