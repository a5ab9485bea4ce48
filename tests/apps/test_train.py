"""plan, train and segment on tiny data sets: a run is a bundle, continues exactly, and refuses what it cannot do."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from command import run
from data_sets import picture
from PIL import Image
from typer.testing import CliRunner

from cgdpm_med import InputError, TrainingState, load_model
from cgdpm_med.apps.cli import app
from cgdpm_med.apps.segment_images import segment_folder
from cgdpm_med.apps.segment_slices import is_run, load_segmenter
from cgdpm_med.apps.train import Wishes, plan_dataset, train
from cgdpm_med.datasets.loading import Loaded, View
from cgdpm_med.datasets.prepare import back, prepare
from cgdpm_med.models.description import SliceInput
from cgdpm_med.models.files import training_data_of

pytestmark = pytest.mark.usefixtures("leaves_no_determinism")

QUICK = Wishes(iterations=3, settings=("batch_size=2", "epoch=1", "widths=32,32", "validate_every=1"))


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    """Eight pictures of 16 x 16 with a bright square each."""
    rng = np.random.default_rng(0)
    for n in range(8):
        mask = np.zeros((16, 16))
        x, y = rng.integers(2, 8, 2)
        mask[x : x + 6, y : y + 6] = 255
        picture(tmp_path / "data" / "images" / f"p{n}.png", (60 + mask / 2 + rng.normal(0, 8, mask.shape)).clip(0, 255))
        picture(tmp_path / "data" / "masks" / f"p{n}.png", mask)
    return tmp_path / "data"


def tensors(path: Path) -> dict[str, Any]:
    return dict(load_model(path).network.state_dict())


def test_preparing_and_going_back_keeps_a_mask() -> None:
    label = np.zeros((20, 30, 2), np.uint8)
    label[4:12, 6:18] = 1
    image = np.linspace(-3, 9, 20 * 30 * 2, dtype=np.float32).reshape(1, 20, 30, 2)
    loaded = Loaded(image, (0.5, 0.5, 4.0), View(), None, label)
    seen = SliceInput(1.0, ("MR",), intensity="percentiles")
    item = prepare(loaded, seen, 2, multiple=8)
    assert item["image"].shape == (1, 16, 16, 2)
    assert float(item["image"].min()) == -1
    assert 0.9 < float(item["image"].max()) <= 1
    torch.testing.assert_close(item["label"].sum(dim=0), torch.ones(16, 16, 2))
    returned = back(item["label"], loaded, seen, 2)
    wrong = np.argwhere(returned.argmax(dim=0).numpy() != label)  # edges keep their place, corners become round
    assert {tuple(place[:2]) for place in wrong} <= {(x, y) for x in (4, 11) for y in (6, 17)}


def test_what_lies_beyond_the_region_is_background() -> None:
    """Of 5 x 2 pixels the network sees the three in the middle, along the axis that is longer than its region."""
    image = np.arange(10, dtype=np.float32).reshape(1, 5, 2, 1)
    loaded = Loaded(image, (1.0, 1.0, 1.0), View(), None, np.ones((5, 2, 1), np.uint8))
    seen = SliceInput(1.0, ("red",), intensity="as it is", region=(3, 4))
    assert prepare(loaded, seen, 2)["image"][0, ..., 0].tolist() == [[2, 3], [4, 5], [6, 7]]
    answer = torch.stack([torch.zeros(3, 2, 1), torch.ones(3, 2, 1)])
    background, structure = back(answer, loaded, seen, 2)[..., 0].tolist()
    assert structure == [[0, 0], [1, 1], [1, 1], [1, 1], [0, 0]]
    assert background == [[1, 1], [0, 0], [0, 0], [0, 0], [1, 1]]


def test_a_fixed_window_is_the_same_for_all() -> None:
    image = np.array([-200, -100, 100, 500], np.float32).reshape(1, 2, 2, 1)
    seen = SliceInput(1.0, ("CT",), intensity="fixed", window=((-100, 300),))
    found = prepare(Loaded(image, (1.0, 1.0, 1.0), View()), seen, 2)["image"]
    assert found.flatten().tolist() == pytest.approx([-1, -1, 0, 1])


def test_a_run_trains_segments_and_says_what_it_is(blobs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = train(blobs, run, QUICK)
    assert is_run(run)
    assert set(result["test"]["dice"]) == {"foreground"}
    assert result["test"]["images"] == 2
    split = json.loads((run / "models" / "split.json").read_text())
    training = training_data_of(run / "models" / "model.pt")
    assert training is not None
    assert list(training.patients) == split["train"]
    assert json.loads((run / "configs" / "metadata.json").read_text())["label_classes"] == "0 background, 1 foreground"

    segmenter = load_segmenter(run, members=2, steps=1)
    (blobs / "images" / "broken.png").write_bytes(b"no picture")
    picture(blobs / "images" / "colour.png", np.stack([np.eye(16) * 200, np.eye(16), np.eye(16)], -1))
    outcome = segment_folder(segmenter, blobs / "images", tmp_path / "out")
    assert set(outcome["failed"]) == {"broken", "colour"}
    assert len(outcome["cases"]) == 8
    with Image.open(tmp_path / "out" / "p0.png") as mask:
        assert (mask.mode, mask.size) == ("P", (16, 16))
        assert set(np.unique(np.asarray(mask))) <= {0, 1}
    maps = np.load(tmp_path / "out" / "p0_doubt.npz")
    np.testing.assert_allclose(maps["probabilities"].sum(axis=0), 1, atol=1e-5)
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == {"background": 0, "foreground": 1}
    with pytest.raises(InputError, match="images themselves"):
        segment_folder(segmenter, blobs / "images", blobs / "images")


def test_a_stopped_run_ends_as_an_unstopped_one(blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(blobs, tmp_path / "whole", QUICK)
    save = TrainingState.save

    def stop_after_two(state: TrainingState, engine: Any) -> None:
        save(state, engine)
        if engine.state.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "save", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            train(blobs, tmp_path / "stopped", QUICK)
    train(blobs, tmp_path / "stopped", QUICK)
    ends = [tensors(tmp_path / name / "models" / "model_last.pt") for name in ("whole", "stopped")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    with pytest.raises(InputError, match="other options"):
        train(blobs, tmp_path / "stopped", Wishes(iterations=5))


def test_two_channels_two_classes_in_volumes(nnunet: Path, tmp_path: Path) -> None:
    train(nnunet, tmp_path / "run", QUICK)
    segmenter = load_segmenter(tmp_path / "run", members=2, steps=1)
    assert segmenter.labels.names == ("zone", "lesion")
    outcome = segment_folder(segmenter, nnunet / "imagesTs", tmp_path / "out")
    assert outcome["failed"] == {}
    assert [case["case"] for case in outcome["cases"]] == ["case_3"]
    assert set(outcome["cases"][0]["share"]) == {"zone", "lesion"}
    made = nib.load(tmp_path / "out" / "case_3.nii.gz")  # type: ignore[attr-defined]
    source = nib.load(nnunet / "imagesTs" / "case_3_0000.nii.gz")  # type: ignore[attr-defined]
    assert made.shape == source.shape
    np.testing.assert_allclose(made.affine, source.affine)
    with pytest.raises(InputError, match="is a file"):
        segment_folder(segmenter, nnunet / "imagesTs", nnunet / "dataset.json")


def test_plan_measures_hours_and_refuses_too_few(blobs: Path) -> None:
    planned = plan_dataset(blobs, Wishes(hours=0.05, settings=("batch_size=2", "widths=32,32")))
    assert planned.plan.iterations > 20
    with pytest.raises(InputError, match="steps"):
        plan_dataset(blobs, Wishes(hours=1e-6, settings=QUICK.settings))
    with pytest.raises(InputError, match="both"):
        plan_dataset(blobs, Wishes(hours=1, iterations=10))


def test_empty_masks_in_a_part_that_is_needed(blobs: Path) -> None:
    for path in (blobs / "masks").iterdir():
        if path.name != "p3.png":
            picture(path, np.zeros((16, 16)))
    with pytest.raises(InputError, match="only empty"):
        plan_dataset(blobs, Wishes(seed=1))


def test_a_folder_of_something_else_is_left_alone(blobs: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="something else"):
        train(blobs, tmp_path / "run", QUICK)


@pytest.mark.parametrize("place", ["file/run", "/proc/cgdpm_med_run"])
def test_a_place_that_cannot_be_written_is_told_before_any_measurement(place: str, blobs: Path, tmp_path: Path) -> None:
    if place.startswith("/proc") and not Path("/proc/self").is_dir():
        pytest.skip("no file system on which not even root may create a folder")
    (tmp_path / "file").write_text("mine")
    said: list[str] = []
    with pytest.raises(InputError, match="can be written to"):
        train(blobs, tmp_path / place, Wishes(hours=0.05), say=said.append)
    assert said == []


def test_an_interrupt_says_how_to_go_on(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cgdpm_med.apps.train.run_stages", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert run(monkeypatch, "train", str(blobs), str(tmp_path / "run"), "--device", "cpu", "--iterations", "3") == 130
    assert "interrupted" in (last := capsys.readouterr().err.splitlines()[-1])
    assert "same command" in last


def test_bad_data_leave_no_folder_behind(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match="holds no data set"):
        train(tmp_path / "data", tmp_path / "new" / "run", QUICK)
    assert not (tmp_path / "new").exists()


def test_the_command_plans_and_refuses_options_for_hearts(blobs: Path, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["plan", str(blobs), "--set", "batch_size=2", "--json"])
    assert json.loads(found.stdout)["plan"]["batch_size"] == 2
    train(blobs, tmp_path / "run", QUICK)
    command = ["segment", str(blobs / "images"), str(tmp_path / "out"), "--bundle", str(tmp_path / "run")]
    assert CliRunner().invoke(app, [*command, "--keep-largest"]).exit_code == 2
    good = CliRunner().invoke(app, [*command, "--members", "1", "--steps", "1"])
    assert good.exit_code == 0
    assert (tmp_path / "out" / "p0.png").is_file()


@pytest.mark.parametrize(
    ("wishes", "word"),
    [
        (Wishes(fold=3), "--folds"),
        (Wishes(fold=0), "--folds"),
        (Wishes(hours=8, settings=("iterations=100",)), "--hours"),
        (Wishes(iterations=10, settings=("iterations=200",)), "--iterations"),
    ],
)
def test_wishes_that_would_be_passed_over_are_refused(wishes: Wishes, word: str, blobs: Path) -> None:
    with pytest.raises(InputError, match=word):
        plan_dataset(blobs, wishes)


def test_a_training_that_diverges_is_one_error_with_a_remedy(blobs: Path, tmp_path: Path) -> None:
    settings = ("batch_size=2", "epoch=6", "widths=32,32", "learning_rate=1e30")
    wild = Wishes(iterations=6, settings=settings)
    with pytest.raises(InputError, match=r"left the finite numbers .* learning_rate may help, in a new folder"):
        train(blobs, tmp_path / "run", wild, device="cpu")
