"""The bundle cardiac_sr under MONAI: verified, trained in both stages, resumed and run on a phantom."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPO, shared_path
from monai.bundle import ConfigWorkflow, verify_metadata
from resolvers import small_bundle

from cgdpm_med import InputError, ResidualTarget, SuperResolver
from cgdpm_med.diffusion.degradation import KSpaceDegradation
from cgdpm_med.models import load_model
from cgdpm_med.models.description import CoarseSliceInput
from cgdpm_med.phantom import write_phantom_dataset

BUNDLE = REPO / "bundles" / "cardiac_sr"
CONFIGS = BUNDLE / "configs"
CPU = "$torch.device('cpu')"
SMALL = {
    "epochs": 1,
    "iterations": 2,
    "batch_size": 2,
    "channels": [8, 16, 16],
    "attention_levels": [False, False, True],
    "size": 64,
    "field": 64,
}

pytestmark = pytest.mark.usefixtures("leaves_no_determinism")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantoms")
    write_phantom_dataset(root, patients=3, seed=0)
    return root


def train(data: Path, out: Path, *more: str, **given: Any) -> None:
    files = [str(CONFIGS / name) for name in ("train.yaml", *more)]
    logging = str(CONFIGS / "logging.conf")
    settings = {"bundle_root": str(BUNDLE), "dataset_dir": str(data), "output_dir": str(out), "device": CPU}
    flow = ConfigWorkflow(files, workflow_type="train", logging_file=logging, **settings, **{**SMALL, **given})
    flow.initialize()
    assert flow.check_properties() == []
    flow.run()
    flow.finalize()


@pytest.fixture(scope="module")
def weights(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stage1")
    train(data, out, val_interval=1)
    return out / "model.pt"


def test_the_metadata_follow_the_schema(tmp_path: Path) -> None:
    schema = shutil.copyfile(shared_path("reference", "meta_schema_20240725.json"), tmp_path / "schema.json")
    digest = "06954cad2cc5d3784e72077ac76f0fc8"
    verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(schema), hash_val=digest)


def test_a_model_file_says_how_slices_are_brought_in(weights: Path) -> None:
    model = load_model(weights)
    assert model.input.percentiles == (0.5, 99.5)
    assert isinstance(model.target, ResidualTarget)
    assert model.target.operator.factor == 4
    assert not model.target.clip


def test_a_training_goes_on_from_given_weights(data: Path, weights: Path, tmp_path: Path) -> None:
    """With no learning left, the network is theirs, and their training patients count as this run's."""
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": ["patient902"], "validation": ["patient903"], "test": []}))
    given = {"initial_weights": str(weights), "learning_rate": 0.0, "val_interval": 1, "split": str(split), "seed": 1}
    train(data, tmp_path, "finetune.yaml", **given)
    model, begun = load_model(tmp_path / "model.pt"), load_model(weights)
    for name, tensor in begun.network.state_dict().items():
        torch.testing.assert_close(model.network.state_dict()[name], tensor)
    before, after = begun.description.training, model.description.training
    assert before is not None
    assert after is not None
    assert set(after.patients) == {"patient902", *before.patients}


def test_two_times_are_trained_by_a_file_on_top(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, "train_2x.yaml", val_interval=1)
    model = load_model(tmp_path / "model.pt")
    assert model.target.size_factor == 2
    assert model.input.spacing == (2.7, 3.9)
    resolver = SuperResolver.from_bundle(BUNDLE, weights=str(tmp_path / "model.pt"), device="cpu")
    assert resolver(torch.zeros(1, 1, 20, 24), keys=["a"]).shape[-2:] == (40, 48)
    with pytest.raises(InputError, match="refines 2 times, not 4"):
        SuperResolver.from_bundle(BUNDLE, weights=str(tmp_path / "model.pt"), device="cpu", factor=4)


def test_monai_finds_what_its_applications_need(weights: Path, tmp_path: Path) -> None:
    settings = {"bundle_root": str(BUNDLE), "dataset_dir": str(tmp_path), "weights": str(weights), "cases": []}
    flow = ConfigWorkflow(str(CONFIGS / "inference.yaml"), workflow_type="infer", logging_file=False, **settings)
    flow.initialize()
    assert flow.check_properties() == []


def test_what_is_refined_agrees_with_what_was_measured(weights: Path) -> None:
    resolver = SuperResolver.from_bundle(BUNDLE, weights=str(weights), members=2, steps=3, device="cpu")
    y = torch.randn(2, 1, 12, 16, generator=torch.Generator().manual_seed(0))
    fine = resolver(y, keys=["a", "b"])
    assert fine.shape == (2, 2, 1, 48, 64)
    operator = KSpaceDegradation(4)
    torch.testing.assert_close(operator.degrade(fine.flatten(0, 1)), y.repeat(2, 1, 1, 1), atol=1e-5, rtol=0)


def test_several_members_are_drawn_in_steps_enough_to_differ(tmp_path: Path) -> None:
    small = str(small_bundle(tmp_path / "small", CoarseSliceInput(16), KSpaceDegradation(4), 4) / "models" / "model.pt")

    def steps(**given: Any) -> int:
        return SuperResolver.from_bundle(BUNDLE, weights=small, device="cpu", **given).predictor.sampling.steps

    assert [steps(), steps(members=8), steps(members=8, steps=2), steps(steps=3)] == [1, 4, 2, 3]


def test_it_is_evaluated_on_volumes_made_coarse(tmp_path: Path) -> None:
    small = small_bundle(tmp_path / "small", CoarseSliceInput(16), KSpaceDegradation(4), 4)
    size: dict[str, Any] = {"shape": (48, 40, 3), "spacing": (2.8, 2.8, 24.0), "num_frames": 6}
    write_phantom_dataset(tmp_path / "in", patients=3, seed=0, **size)
    files = [str(CONFIGS / name) for name in ("inference.yaml", "evaluate.yaml")]
    given = {"bundle_root": str(BUNDLE), "dataset_dir": str(tmp_path / "in"), "output_dir": str(tmp_path), "most": 1}
    given |= {"weights": str(small / "models" / "model.pt"), "device": CPU}
    flow = ConfigWorkflow(files, workflow_type="infer", logging_file=False, **given)
    flow.initialize()
    flow.run()
    methods = json.loads((tmp_path / "summary.json").read_text())["methods"]
    assert set(methods) == {"zero-filled", "bicubic", "refined"}
    assert methods["refined"]["off_largest"] < 1e-3 < methods["bicubic"]["off_largest"]


@pytest.mark.slow
def test_guidance_is_trained_on_it(data: Path, weights: Path, tmp_path: Path) -> None:
    train(data, tmp_path, "train_guidance.yaml", denoiser_weights=str(weights), chain_steps=2, val_interval=1)
    guide = str(tmp_path / "guidance.pt")
    given = {"weights": str(weights), "guidance_weights": guide, "steps": 2, "device": CPU}
    y = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    plain, guided = (SuperResolver.from_bundle(BUNDLE, guidance_scale=w, **given)(y, keys=["a"]) for w in (0.0, 1.0))
    assert not torch.equal(plain, guided)
