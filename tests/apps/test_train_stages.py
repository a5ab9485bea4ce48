"""The stages of a run: killed in any of them, the same command leads to the same end; and what people see meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPO
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_use_of_runs import SETTINGS, blobs

from cgdpm_med import load_model
from cgdpm_med.apps.segment_slices import load_segmenter
from cgdpm_med.apps.train import Wishes, train
from cgdpm_med.apps.train_stages import finished
from cgdpm_med.models.weights import read_content

pytestmark = [pytest.mark.usefixtures("leaves_no_determinism"), pytest.mark.slow]
WISHES = Wishes(iterations=10, settings=(*SETTINGS, "epoch=5"), patients="^([^_]+)", guidance=True)

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from test_train_stages import WISHES
from cgdpm_med.apps import calibrate_slices
from cgdpm_med.apps.train import train
from cgdpm_med.training.engines import BestWeights, TrainingState
from cgdpm_med.training.guidance import ReplayLoader

torch.set_num_threads(1)
place = sys.argv[3]

def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def after(function):
    def run(*arguments, **named):
        function(*arguments, **named)
        kill()
    return run

if place == "denoiser, weights written and no checkpoint":
    BestWeights.update = after(BestWeights.update)
elif place == "denoiser, checkpoint written":
    TrainingState.save = after(TrainingState.save)
elif place == "guidance":
    told = ReplayLoader.set_epoch
    ReplayLoader.set_epoch = lambda loader, epoch: kill() if epoch == 2 else told(loader, epoch)
elif place == "calibration":
    calibrate_slices.observed = kill
train(sys.argv[1], sys.argv[2], WISHES, device="cpu")
"""


def train_apart(data: Path, run: Path, place: str) -> int:
    """The exit status of a process that trains, and kills itself at a place."""
    paths = [str(REPO), str(REPO / "tests"), str(REPO / "tests" / "apps"), str(REPO / "tests" / "unit")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(data), str(run), place]
    return subprocess.run(command, env=environment, check=False, capture_output=True).returncode


def tensors(path: Path) -> dict[str, Any]:
    return dict(read_content(path)[0])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blobs(tmp_path_factory.mktemp("blobs") / "data")


@pytest.fixture(scope="module")
def whole(data: Path) -> Path:
    """A run that nothing stopped."""
    train(data, data.parent / "whole", WISHES, device="cpu")
    return data.parent / "whole"


def test_killed_in_every_stage_a_run_ends_as_one_that_was_not(data: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    for place in (
        "denoiser, weights written and no checkpoint",
        "denoiser, checkpoint written",
        "guidance",
        "calibration",
    ):
        assert train_apart(data, run, place) == -signal.SIGKILL, place
    assert finished(run) == ["denoiser", "guidance"]
    assert train_apart(data, run, "nowhere") == 0
    for name in ("model.pt", "model_last.pt", "guidance/guidance.pt", "guidance/guidance_last.pt"):
        ends = [tensors(each / "models" / name) for each in (whole, run)]
        assert ends[0].keys() == ends[1].keys()
        assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0]), name
    for name in ("models/calibration.json", "evaluation/test.json", "models/split.json"):
        assert json.loads((whole / name).read_text()) == json.loads((run / name).read_text()), name


def test_all_stages_leave_their_files_and_are_done_once(data: Path, whole: Path) -> None:
    assert finished(whole) == ["denoiser", "guidance", "calibration", "test"]
    before = {path: path.stat().st_mtime_ns for path in (whole / "models").rglob("*") if path.is_file()}
    again = train(data, whole, WISHES, device="cpu")
    assert before == {path: path.stat().st_mtime_ns for path in (whole / "models").rglob("*") if path.is_file()}
    assert {"dice", "ece", "ged"} <= again["test"].keys()
    assert again["test"]["calibrated"]


def test_the_guidance_network_guides_the_masks(whole: Path) -> None:
    segmenter = load_segmenter(whole, device="$torch.device('cpu')")
    assert segmenter.predictor.guide is not None
    assert segmenter.settings["guidance_scale"] > 0
    assert len(segmenter.weights) == 2
    assert load_segmenter(whole, guidance_scale=0.0).predictor.guide is None


def test_a_stage_whose_weights_are_gone_is_not_finished(data: Path, whole: Path) -> None:
    weights = whole / "models" / "guidance" / "guidance.pt"
    weights.rename(weights.with_suffix(".away"))
    assert finished(whole) == ["denoiser"]
    weights.with_suffix(".away").rename(weights)


def test_tensorboard_shows_classes_learning_rate_bands_and_cases(whole: Path) -> None:
    events = EventAccumulator(str(whole / "logs" / "tensorboard" / "denoiser"))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"dice/spot", "learning_rate", "val_mean_dice", "train_loss"} <= scalars
    assert any(name.startswith("loss/t ") for name in scalars)
    assert events.Scalars("dice/spot")[-1].value == pytest.approx(events.Scalars("val_mean_dice")[-1].value)
    picture = events.Images("validation")[-1]
    assert picture.width > 4 * 256
    assert (whole / "logs" / "tensorboard" / "guidance").is_dir()


def test_a_run_is_moved_with_its_data(data: Path, whole: Path, tmp_path: Path) -> None:
    import shutil

    from monai.bundle import ConfigParser

    shutil.copytree(data.parent, tmp_path / "moved")
    parser = ConfigParser()
    run = tmp_path / "moved" / whole.name
    parser.read_config(str(run / "configs" / "train.yaml"))
    parser["bundle_root"] = str(run)
    found = parser.get_parsed_content("dataset_dir")
    assert Path(found).resolve() == (tmp_path / "moved" / data.name).resolve()
    assert str(data) not in (run / "configs" / "train.yaml").read_text()
    assert load_model(run / "models" / "model.pt").description.training is not None
