"""A 3D plan through all stages, on small volumes of ellipsoids that are larger than the patch, so windowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import load_script
from data_sets import volume
from monai.bundle import ConfigWorkflow
from typer.testing import CliRunner

from cgdpm_med import InputError
from cgdpm_med.apps.cli import app
from cgdpm_med.apps.segment_images import segment_folder
from cgdpm_med.apps.segment_slices import load_segmenter, load_segmenters
from cgdpm_med.apps.train import Wishes, plan_dataset, train
from cgdpm_med.apps.train_stages import STAGES, finished
from cgdpm_med.datasets.json_files import read_json
from cgdpm_med.models.weights import read_content
from cgdpm_med.training.engines import TrainingState

own_data = load_script("own_data")
pytestmark = [pytest.mark.usefixtures("leaves_no_determinism"), pytest.mark.slow]
SETTINGS = (
    *("dimensions=3", "crop=24,24,8", "widths=32,32", "patch_size=2", "batch_size=2", "epoch=2", "members=2"),
    *("validation_cases=1", "validate_every=2"),
)
SPACING = (1, 1, 2.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own_data.write_set("ellipsoids", tmp_path_factory.mktemp("ellipsoids") / "data", cases=6, size=24)


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    train(data, data.parent / "run", Wishes(iterations=4, settings=SETTINGS, guidance=True), device="cpu")
    return data.parent / "run"


def test_all_stages_are_done(run: Path) -> None:
    assert finished(run, [*STAGES]) == [*STAGES]
    scores = read_json(run / "evaluation" / "test.json")
    assert set(scores["dice"]) == {"bright", "dark"}
    assert scores["calibrated"]
    assert list((run / "logs" / "tensorboard").rglob("events*"))


def test_every_volume_gets_its_mask_on_its_own_grid(run: Path, tmp_path: Path) -> None:
    """Larger than the patch, thinner, a single slice, another spacing, stored the other way round."""
    rng = np.random.default_rng(0)
    shapes = {"large": (30, 20, 10), "thin": (24, 20, 3), "slice": (16, 18, 1), "small": (5, 4, 6)}
    for name, shape in shapes.items():
        volume(tmp_path / "in" / f"{name}.nii.gz", rng.normal(100, 20, shape).astype(np.float32), SPACING)
    volume(tmp_path / "in" / "fine.nii.gz", rng.normal(100, 20, (40, 40, 30)).astype(np.float32), (0.5, 0.5, 1))
    image = nib.load(tmp_path / "in" / "large.nii.gz")  # type: ignore[attr-defined]
    turned = nib.as_closest_canonical(image).slicer[::-1, :, :]
    nib.save(turned, tmp_path / "in" / "turned.nii.gz")  # type: ignore[attr-defined]
    volume(tmp_path / "in" / "series.nii.gz", rng.normal(size=(8, 8, 8, 2)).astype(np.float32), SPACING)
    outcome = segment_folder(load_segmenter(run, members=2, steps=1), tmp_path / "in", tmp_path / "out")
    assert set(outcome["failed"]) == {"series"}  # two channels, where the network knows one
    for name in (*shapes, "fine", "turned"):
        made = nib.load(tmp_path / "out" / f"{name}.nii.gz")  # type: ignore[attr-defined]
        source = nib.load(tmp_path / "in" / f"{name}.nii.gz")  # type: ignore[attr-defined]
        assert made.shape == source.shape
        np.testing.assert_allclose(made.affine, source.affine)


def test_the_stored_order_of_a_volume_changes_nothing(run: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).normal(100, 20, (24, 20, 14)).astype(np.float32)
    volume(tmp_path / "one" / "x.nii.gz", noise, SPACING)
    affine = np.diag([-1.0, 1.0, 2.5, 1.0])
    affine[0, 3] = 23.0
    (tmp_path / "two").mkdir()
    nib.save(nib.Nifti1Image(noise[::-1], affine), tmp_path / "two" / "x.nii.gz")  # type: ignore[attr-defined]
    segmenter = load_segmenter(run, members=2, steps=1)
    found = [segmenter(segmenter.loaded([tmp_path / name / "x.nii.gz"]), "x").mask for name in ("one", "two")]
    assert np.array_equal(found[0], found[1][::-1])


def test_a_stopped_training_ends_as_an_unstopped_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes = Wishes(iterations=4, settings=SETTINGS)
    train(data, tmp_path / "whole", wishes, device="cpu")
    save = TrainingState.save

    def stop_after_one(state: TrainingState, engine: Any) -> None:
        save(state, engine)
        if engine.state.epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "save", stop_after_one)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "stopped", wishes, device="cpu")
    train(data, tmp_path / "stopped", wishes, device="cpu")
    ends = [dict(read_content(tmp_path / name / "models" / "model_last.pt")[0]) for name in ("whole", "stopped")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_the_commands_take_the_run(data: Path, run: Path, tmp_path: Path) -> None:
    held = read_json(run / "models" / "split.json")["test"]
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for key in held:
        (tmp_path / "images" / f"{key}_0000.nii.gz").symlink_to(data / "imagesTr" / f"{key}_0000.nii.gz")
        (tmp_path / "labels" / f"{key}.nii.gz").symlink_to(data / "labelsTr" / f"{key}.nii.gz")
    few, out = ["--members", "2", "--steps", "1", "--device", "cpu"], tmp_path / "out"
    for words in (
        ["segment", tmp_path / "images", out, "--bundle", run, "--bundle", run, *few],
        ["evaluate", out, tmp_path / "labels", "--bundle", run],
        ["calibrate", data, "--bundle", run, "--output", tmp_path / "calibration.json", *few],
    ):
        found = CliRunner().invoke(app, [str(word) for word in words])
        assert found.exit_code == 0, (words, found.output, found.exception)
    assert set(json.loads((out / "segmentation.json").read_text())["labels"].values()) == {"bright", "dark"}


def test_monai_finds_every_property_and_its_engine_writes_what_segment_writes(
    data: Path, run: Path, tmp_path: Path
) -> None:
    how = {"bundle_root": str(run), "dataset_dir": str(data), "device": "$torch.device('cpu')"}
    configs = run / "configs"
    meta = str(configs / "metadata.json")
    training = ConfigWorkflow(str(configs / "train.yaml"), meta_file=meta, workflow_type="train", **how)
    training.initialize()
    assert training.check_properties() == []
    how |= {"dataset_dir": str(data / "imagesTr"), "output_dir": str(tmp_path / "engine")}
    few: dict[str, Any] = {"members": 2, "steps": 1}
    inference = ConfigWorkflow(str(configs / "inference.yaml"), meta_file=meta, workflow_type="inference", **how, **few)
    inference.initialize()
    assert inference.check_properties() == []
    inference.evaluator.run()
    segment_folder(load_segmenter(run, **few), data / "imagesTr", tmp_path / "segment", pages=False)
    masks = [
        np.asarray(nib.load(tmp_path / name / "case_000.nii.gz").dataobj)  # type: ignore[attr-defined]
        for name in ("engine", "segment")
    ]
    assert np.array_equal(masks[0], masks[1])


def test_hours_are_told_in_steps(data: Path) -> None:
    settings = [each for each in SETTINGS if not each.startswith(("epoch", "validate_every"))]
    plan = plan_dataset(data, Wishes(hours=0.5, settings=settings), device="cpu").plan
    assert plan.dimensions == "3D"
    assert plan.iterations >= 20


def test_runs_in_2d_and_3d_are_not_combined(data: Path, run: Path, tmp_path: Path) -> None:
    flat = Wishes(iterations=2, settings=("dimensions=2", "widths=32,32", "batch_size=2", "epoch=1", "members=1"))
    train(data, tmp_path / "flat", flat, device="cpu")
    with pytest.raises(InputError, match="spacing"):
        load_segmenters([run, tmp_path / "flat"])


def test_a_set_of_which_one_volume_is_a_single_slice(data: Path, tmp_path: Path) -> None:
    """It is trained on as it is: its slice goes on to both sides."""
    mixed = own_data.write_set("ellipsoids", tmp_path / "data", cases=6, size=24)
    for path in (mixed / "imagesTr" / "case_000_0000.nii.gz", mixed / "labelsTr" / "case_000.nii.gz"):
        whole = nib.load(path)  # type: ignore[attr-defined]
        nib.save(whole.slicer[:, :, 6:7], path)  # type: ignore[attr-defined]
    settings = (*SETTINGS, "members=1")
    test = train(mixed, tmp_path / "run", Wishes(iterations=2, settings=settings), device="cpu")["test"]
    assert test["images"] >= 1
