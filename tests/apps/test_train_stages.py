"""The stages of a run: killed in any of them, the same command leads to the same end; and what people see meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPO, shared_path
from monai.bundle import ConfigWorkflow, verify_metadata
from monai.bundle import run as monai_run
from small_runs import WISHES, blobs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cgdpm_med import InputError
from cgdpm_med.apps.segment_slices import load_segmenter
from cgdpm_med.apps.train import train
from cgdpm_med.apps.train_stages import STAGES, finished
from cgdpm_med.models.weights import read_content

pytestmark = [pytest.mark.usefixtures("leaves_no_determinism"), pytest.mark.slow]


def train_and_die(data: Path, run: Path) -> list[int]:
    """How processes ended that trained one after the other, each killed at one of the places."""
    paths = [str(REPO), str(REPO / "tests"), str(REPO / "tests" / "helpers")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(REPO / "tests" / "helpers" / "small_runs.py"), str(data), str(run)]
    found = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    return [int(line.split()[1]) for line in found.stdout.splitlines() if line.startswith("status ")]


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
    assert train_and_die(data, run) == [signal.SIGKILL] * 4 + [0]
    for name in ("model.pt", "model_last.pt", "guidance/guidance.pt", "guidance/guidance_last.pt"):
        ends = [tensors(each / "models" / name) for each in (whole, run)]
        assert ends[0].keys() == ends[1].keys()
        assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0]), name
    for name in ("models/calibration.json", "evaluation/test.json", "models/split.json"):
        assert json.loads((whole / name).read_text()) == json.loads((run / name).read_text()), name


def test_all_stages_leave_their_files_and_are_done_once(data: Path, whole: Path) -> None:
    assert finished(whole, [*STAGES]) == [*STAGES]
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
    assert finished(whole, [*STAGES]) == ["denoiser"]
    weights.with_suffix(".away").rename(weights)


def test_a_guidance_network_asked_for_later_brings_a_new_calibration(data: Path, tmp_path: Path) -> None:
    wishes = replace(WISHES, guidance=False)
    train(data, tmp_path / "run", wishes, device="cpu")
    calibration = tmp_path / "run" / "models" / "calibration.json"
    assert len(json.loads(calibration.read_text())["weights"]) == 1
    train(data, tmp_path / "run", WISHES, device="cpu")
    assert len(json.loads(calibration.read_text())["weights"]) == 2
    with pytest.raises(InputError, match="other options"):
        train(data, tmp_path / "run", replace(WISHES, seed=7), device="cpu")


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


def test_no_configuration_of_a_run_holds_a_path_of_this_machine(data: Path, whole: Path) -> None:
    for path in (whole / "configs").iterdir():
        if path.suffix == ".yaml":
            assert str(data.parent) not in path.read_text()


# --- under MONAI ------------------------------------------------------------------------------------------------------


def test_monai_finds_every_property_of_a_run(data: Path, whole: Path) -> None:
    how = {"bundle_root": str(whole), "dataset_dir": str(data), "device": "$torch.device('cpu')"}
    configs = whole / "configs"
    meta = str(configs / "metadata.json")
    training = ConfigWorkflow(str(configs / "train.yaml"), meta_file=meta, workflow_type="train", **how)
    training.initialize()
    assert training.check_properties() == []
    how["dataset_dir"] = str(data / "images")
    inference = ConfigWorkflow(str(configs / "inference.yaml"), meta_file=meta, workflow_type="inference", **how)
    inference.initialize()
    assert inference.check_properties() == []


def test_the_metadata_of_a_run_are_of_monais_schema(whole: Path, tmp_path: Path) -> None:
    schema = shutil.copyfile(shared_path("reference", "meta_schema_20240725.json"), tmp_path / "schema.json")
    meta = str(whole / "configs" / "metadata.json")
    verify_metadata(meta_file=meta, filepath=str(schema), hash_val="06954cad2cc5d3784e72077ac76f0fc8")


def test_monais_command_and_engine_write_what_segment_writes(data: Path, whole: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {
        "bundle_root": str(whole),
        "dataset_dir": str(data / "images"),
        "device": "$torch.device('cpu')",
        "members": 2,
        "steps": 1,
    }
    config = str(whole / "configs" / "inference.yaml")
    monai_run("initialize", "run", config_file=config, output_dir=str(tmp_path / "run"), **how)
    workflow = ConfigWorkflow(config, workflow_type="inference", output_dir=str(tmp_path / "engine"), **how)
    workflow.initialize()
    workflow.evaluator.run()
    written = {path.name: path.read_bytes() for path in (tmp_path / "engine").iterdir()}
    assert len(written) == 3 * 12
    for name, content in written.items():
        if name.endswith(".png"):
            assert (tmp_path / "run" / name).read_bytes() == content, name


def test_monai_trains_a_run_that_was_moved(data: Path, whole: Path, tmp_path: Path) -> None:
    """From another folder, with the configuration's own way to the data; it is complete, so nothing changes."""
    shutil.copytree(data.parent, tmp_path / "moved")
    run = tmp_path / "moved" / whole.name
    monai_run("initialize", "run", config_file=str(run / "configs" / "train.yaml"), bundle_root=str(run))
    ends = [tensors(each / "models" / "model_last.pt") for each in (whole, run)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_a_finished_run_is_not_continued_with_other_data(data: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        train(tmp_path / "nowhere", whole, device="cpu")
    with pytest.raises(InputError, match="other classes than when this run began"):
        train(blobs(tmp_path / "other", name="blot"), whole, device="cpu")
    swapped = blobs(tmp_path / "swapped")
    (swapped / "labels.json").write_text(json.dumps({"background": 255, "spot": 0}))
    with pytest.raises(InputError, match="other values in the label maps"):
        train(swapped, whole, device="cpu")
