"""The stages of a run: denoiser, guidance network, calibration, test; each is done once, and goes on where it stopped.

``logs/stages.json`` lists the finished ones. Within a stage of training the checkpoint of the last epoch counts; a
calibration and a test are made anew. Killed at any moment, the same command leads to the same end.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cgdpm_med.apps.calibrate_slices import calibrate_runs
from cgdpm_med.apps.evaluate_slices import evaluate_part
from cgdpm_med.apps.segment_slices import calibrate_masks, load_segmenter
from cgdpm_med.console import input_error_behind
from cgdpm_med.datasets.json_files import read_json
from cgdpm_med.datasets.run import SPLIT, Run
from cgdpm_med.evaluation.calibration_file import CALIBRATION
from cgdpm_med.files import InputError
from cgdpm_med.inference.bundles import unusable
from cgdpm_med.models.files import guidance_beside
from cgdpm_med.studies.outputs import write_json

DONE = "logs/stages.json"
WEIGHTS = "models/model.pt"
TEST = "evaluation/test.json"

Say = Callable[[str], None]
Stage = Callable[[Path, Path, torch.device], None]


def train_denoiser(source: Path, run: Path, device: torch.device) -> None:
    """By ``configs/train.yaml``, from its checkpoint where there is one."""
    run_configuration(source, run, device, ["train.yaml"], run / WEIGHTS)


def train_guidance(source: Path, run: Path, device: torch.device) -> None:
    """By ``configs/train_guidance.yaml``, on the denoiser."""
    written = run / "models" / "guidance" / "guidance.pt"
    run_configuration(source, run, device, ["train.yaml", "train_guidance.yaml"], written)


def calibrate(source: Path, run: Path, device: torch.device) -> None:
    """On the validation part; the file beside the weights takes the place of one of an earlier stage's settings."""
    calibrate_runs(source, [run], device=str(device), output=(run / WEIGHTS).with_name(CALIBRATION))


def score_test_part(source: Path, run: Path, device: torch.device) -> None:
    """Scores on the test part, where there is one."""
    if read_json(run / SPLIT)["test"]:
        segmenter = load_segmenter(run, device=f"$torch.device('{device}')")
        calibrate_masks(segmenter)
        evaluate_part(segmenter, run, source, "test", run / "evaluation")


STAGES: Mapping[str, Stage] = {
    "denoiser": train_denoiser,
    "guidance": train_guidance,
    "calibration": calibrate,
    "test": score_test_part,
}


def run_stages(source: Path, run: Path, device: torch.device, say: Say = lambda text: None) -> dict[str, Any] | None:
    """All stages that are not finished; returns the scores on the test part, None without one.

    Raises:
        InputError: for data that changed, or weights that a training left behind unusable.
    """
    wanted = [name for name in STAGES if name != "guidance" or Run(run, source).guidance]
    done = finished(run, wanted)  # a stage before an unfinished one only: what follows rests on its weights
    for number, name in enumerate(wanted[len(done) :], start=len(done) + 1):
        say(f"stage {number} of {len(wanted)}: {name}")
        STAGES[name](source, run, device)
        write_json({"finished": wanted[:number]}, run / DONE)
    scores = run / TEST
    if not scores.is_file():
        return None
    return {name: value for name, value in read_json(scores).items() if name != "cases"}


def finished(run: Path, wanted: Sequence[str]) -> list[str]:
    """The first of the wanted stages, as far as all are finished and their weights are there."""
    recorded = read_json(run / DONE)["finished"] if (run / DONE).is_file() else []
    files = {"denoiser": run / WEIGHTS, "guidance": guidance_beside(run / WEIGHTS)}
    there = [name in recorded and (name not in files or files[name].is_file()) for name in wanted]
    return list(wanted[: there.index(False)] if False in there else wanted)


def run_configuration(source: Path, run: Path, device: torch.device, names: Sequence[str], written: Path) -> None:
    """A training: these files of ``configs/`` together, as MONAI runs them.

    Raises:
        InputError: known errors from within, or where ``written`` is not there at the end.
    """
    from monai.bundle import ConfigParser

    configs = [run / "configs" / name for name in names]
    parser = ConfigParser()
    parser.read_config([str(config) for config in configs])
    parser["bundle_root"], parser["dataset_dir"] = str(run), str(source)
    parser["device"] = f"$torch.device('{device}')"
    try:
        parser.parse()
        for step in ("initialize", "run"):
            parser.get_parsed_content(step)
    except Exception as error:  # MONAI wraps whatever a configuration raises
        if known := input_error_behind(error):
            raise known from error
        if diverged(error):
            what = f"the training left the finite numbers ({diverged(error)})"
            raise InputError(what, path=run, remedy=f"{_SMALLER}, in a new folder") from error
        if shutil.disk_usage(run).free < 2**20:
            raise unusable(configs[-1], error) from error
        raise
    if not written.is_file():
        raise InputError("ended without weights", path=run, remedy=f"Look into logs/. {_SMALLER}")


_SMALLER = "A smaller --set learning_rate may help"


def diverged(error: BaseException | None) -> FloatingPointError | None:
    """The complaint about a loss that is not finite, if ``error`` was raised because of one."""
    while error is not None and not isinstance(error, FloatingPointError):
        error = error.__cause__ or error.__context__
    return error
