"""The plain U-Net of the acdc bundle: its loss and its softmax by hand, trained and evaluated on small phantoms."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPO
from monai.bundle import ConfigWorkflow
from monai.networks.nets import DynUNet
from phantoms_of_acdc import TEST
from torch import Tensor, nn

from cgdpm_med import (
    ConditionalUNet,
    ConditionOnly,
    DiffusionPredictor,
    MaskDenoiser,
    Mirrored,
    NoiseSchedule,
    load_model,
    read_volume,
    save_model,
)

BUNDLE = REPO / "bundles" / "acdc_segmentation"
FILTERS = [8, 8, 8]


pytestmark = pytest.mark.usefixtures("leaves_no_determinism")


def workflow(kind: str, *names: str, **overrides: Any) -> ConfigWorkflow:
    files = [str(BUNDLE / "configs" / f"{name}.yaml") for name in names]
    # the shipped order: whatever shrinks the bundle comes before the baseline, which has the last word on members
    files.insert(1, str(REPO / "configs" / "smoke.yaml"))
    settings = {"bundle_root": str(BUNDLE), "device": "$torch.device('cpu')", "precision": "float32", **overrides}
    flow = ConfigWorkflow(
        files, str(BUNDLE / "configs" / "metadata.json"), logging_file=False, workflow_type=kind, **settings
    )
    flow.initialize()
    return flow


@pytest.fixture(scope="module")
def trained(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of one epoch of two iterations."""
    output = tmp_path_factory.mktemp("trained")
    where = {"dataset_dir": str(phantoms), "output_dir": str(output)}
    workflow("train", "train", "baseline_unet", epochs=1, filters=FILTERS, **where).run()
    return output


def test_short_runs_on_packed_volumes_leave_weights_and_no_checkpoint(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for flag in ("benchmark", "deterministic"):  # set back afterwards
        monkeypatch.setattr(torch.backends.cudnn, flag, getattr(torch.backends.cudnn, flag))
    names = ("train", "baseline_unet", "../../../configs/packed", "../../../configs/short_runs_gpu")
    where = {"dataset_dir": str(phantoms), "output_dir": str(tmp_path)}
    flow = workflow("train", *names, epochs=1, filters=FILTERS, **where)
    scaling = flow.parser.get_parsed_content("preprocessing").transforms[4].scaler
    assert (scaling.lower, scaling.upper) == (0, 100)
    assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.deterministic
    flow.run()
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["model.pt", "model_last.pt"]


def inference(phantoms: Path, trained: Path, *more: str, **overrides: Any) -> ConfigWorkflow:
    weights = str(trained / "model_last.pt")
    where = {"dataset_dir": str(phantoms), "weights": weights}
    return workflow("infer", "inference", "baseline_unet_inference", *more, **where, **overrides)


def test_two_iterations_move_the_weights_by_the_same_trainer(trained: Path) -> None:
    state = torch.load(trained / "checkpoint.pt", weights_only=True)
    assert state["place"] == {"epoch": 1, "iteration": 2}  # 8 slices in batches of 4
    fresh = workflow("train", "train", "baseline_unet", filters=FILTERS).parser.get_parsed_content("network_def")
    assert isinstance(fresh, ConditionOnly)
    assert isinstance(fresh.network, DynUNet)
    assert state["network"].keys() == fresh.state_dict().keys() == state["ema"].keys()
    norms = [name for name, _ in fresh.named_parameters() if ".norm" in name]
    assert len(norms) == 2 * 10  # weight and bias of two convolutions on each side, at the bottom on one
    for name in norms:
        began = 1 if name.endswith("weight") else 0
        assert (state["network"][name] != began).any(), name


def test_the_loss_is_cross_entropy_and_dice(generator: torch.Generator) -> None:
    flow = workflow("train", "train", "baseline_unet", filters=FILTERS)
    network, loss = (flow.parser.get_parsed_content(name) for name in ("network_def", "loss"))
    scale = flow.parser.get_parsed_content("target").scale
    network.eval()
    labels = torch.randint(4, (2, 16, 16), generator=generator)
    image = torch.randn(2, 3, 16, 16, generator=generator)
    one_hot = torch.nn.functional.one_hot(labels, 4).movedim(-1, 1).float()
    with torch.no_grad():
        found = loss(network, scale * (2 * one_hot - 1), image)
        p = network.network(image).softmax(dim=1).double()
    entropy, dice = 0.0, []
    for b in range(2):
        for i in range(16):
            for j in range(16):
                entropy -= float(p[b, labels[b, i, j], i, j].log()) / (2 * 16 * 16)
    for c in (1, 2, 3):
        overlap = float((p[:, c] * (labels == c)).sum())
        dice.append((2 * overlap + 1) / (float(p[:, c].sum()) + int((labels == c).sum()) + 1))
    assert float(found) == pytest.approx(entropy + 1 - np.mean(dice), rel=1e-5)


def test_probabilities_are_the_softmax_in_one_pass(phantoms: Path, trained: Path, generator: torch.Generator) -> None:
    parser = inference(phantoms, trained).parser
    predictor, network = parser.get_parsed_content("network"), parser.get_parsed_content("model").network.network
    assert isinstance(predictor, DiffusionPredictor)
    image = torch.randn(2, 3, 16, 24, generator=generator)
    with torch.no_grad():
        softmax = network.eval()(image).softmax(dim=1)
    (member,) = predictor.ensemble(image)
    torch.testing.assert_close(member, softmax, rtol=1e-5, atol=1e-6)


def test_flips_average_the_softmax_of_the_mirror_images(
    phantoms: Path, trained: Path, generator: torch.Generator
) -> None:
    parser = inference(phantoms, trained, flips=True).parser
    predictor, network = parser.get_parsed_content("network"), parser.get_parsed_content("model").network.network
    image = torch.randn(1, 3, 16, 24, generator=generator)
    with torch.no_grad():
        network.eval()
        upright = network(image).softmax(dim=1)
        rows = network(image.flip(2)).softmax(dim=1).flip(2)
        columns = network(image.flip(3)).softmax(dim=1).flip(3)
        both = network(image.flip(2).flip(3)).softmax(dim=1).flip(3).flip(2)
    torch.testing.assert_close(predictor(image), (upright + rows + columns + both) / 4, rtol=1e-4, atol=1e-6)


def test_several_networks_average_the_mirrored_softmax_of_each(
    trained: Path, tmp_path: Path, generator: torch.Generator
) -> None:
    model = load_model(trained / "model_last.pt")
    for seed in (1, 2):
        torch.manual_seed(seed)
        for parameter in model.network.parameters():
            nn.init.normal_(parameter, std=0.3)
        save_model(tmp_path / f"{seed}.pt", model.network, model.description)
    further = [str(tmp_path / f"{seed}.pt") for seed in (1, 2)]
    image = torch.randn(1, 3, 16, 24, generator=generator)

    def mean(weights: str, others: list[str]) -> Tensor:
        changes = {"weights": weights, "further_weights": others}
        parser = workflow("infer", "inference", "baseline_unet_inference", flips=True, **changes).parser
        predictor: Tensor = parser.get_parsed_content("network")(image)
        return predictor

    paths = [str(trained / "model_last.pt"), *further]
    alone = [mean(path, []) for path in paths]
    assert (alone[0] - alone[1]).abs().max() > 0.05
    torch.testing.assert_close(mean(paths[0], further), torch.stack(alone).mean(dim=0), rtol=1e-4, atol=1e-6)


class Ramp(nn.Module):
    """Logits 0 and the image plus the column's number."""

    def forward(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        logit = context + torch.arange(context.shape[-1])
        return torch.cat([torch.zeros_like(logit), logit], dim=1)


def test_mirrored_on_a_row_of_three_pixels() -> None:
    image = torch.tensor([[[[0.0, 0.0, 1.0]]]])
    found = Mirrored(Ramp(), axes=(-1,))(torch.zeros(1, 2, 1, 3), torch.zeros(1), image).softmax(dim=1)

    def sigmoid(x: float) -> float:
        return 1 / (1 + float(np.exp(-x)))

    # upright logits 0, 1, 3; in the mirror 1, 1, 2, which read back are 2, 1, 1
    expected = [(sigmoid(a) + sigmoid(b)) / 2 for a, b in ((0, 2), (1, 1), (3, 1))]
    torch.testing.assert_close(found[0, 1, 0], torch.tensor(expected))


def test_the_network_sees_the_image_alone(generator: torch.Generator) -> None:
    denoiser = MaskDenoiser(ConditionOnly(nn.Conv2d(1, 4, 1)), scale=0.1)
    schedule = NoiseSchedule(schedule="cosine", prediction_type="sample")
    image = torch.randn(1, 1, 4, 4, generator=generator)
    first, second = (
        DiffusionPredictor(denoiser, schedule=schedule, members=2, steps=steps, seed=seed)
        for steps, seed in ((1, 0), (3, 7))
    )
    members = first.ensemble(image)
    torch.testing.assert_close(members[0], members[1], rtol=0, atol=0)
    torch.testing.assert_close(second(image), members[0], rtol=1e-4, atol=1e-6)


def test_its_size_is_that_of_the_diffusion_model() -> None:
    def parameters(network: nn.Module) -> int:
        return sum(p.numel() for p in network.parameters())

    def of(*names: str) -> nn.Module:
        files = [str(BUNDLE / "configs" / f"{name}.yaml") for name in names]
        flow = ConfigWorkflow(files, str(BUNDLE / "configs" / "metadata.json"), logging_file=False)
        network: nn.Module = flow.parser.get_parsed_content("network_def")
        return network

    diffusion, plain = of("train"), of("train", "baseline_unet")
    assert isinstance(diffusion, ConditionalUNet)
    assert 0.8 < parameters(plain) / parameters(diffusion) < 1.25


def test_the_protocol_scores_its_softmax(phantoms: Path, trained: Path, tmp_path: Path) -> None:
    flow = inference(phantoms, trained, "evaluate", output_dir=str(tmp_path))
    flow.run()
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["volumes"] == 2
    assert (summary["settings"]["members"], summary["settings"]["steps"]) == (1, 1)
    assert summary["settings"]["guidance_scale"] == 0
    assert summary["ensemble"]["pairwise_dice"] is None
    with (tmp_path / "cases.csv").open(encoding="utf-8", newline="") as file:
        row = next(csv.DictReader(file))

    image = phantoms / f"patient{TEST:03d}" / f"{row['case']}.nii.gz"
    truth = np.asarray(read_volume(image.with_name(f"{row['case']}_gt.nii.gz")).data).astype(int)
    result = flow.parser.get_parsed_content("segmenter")(read_volume(image), row["case"])
    first, last = (f(np.argwhere(truth), axis=0) for f in (np.min, np.max))
    region = tuple(slice(max(0, int(a) - 10), int(b) + 11) for a, b in zip(first, last, strict=True))
    errors = sum((result.probabilities[c] - (truth == c)) ** 2 for c in range(4))
    assert float(row["brier"]) == pytest.approx(float(errors[region].mean()), abs=6e-6)
    for label, name in {1: "RV", 2: "Myo", 3: "LV"}.items():
        found, known = result.mask == label, truth == label
        expected = 2 * np.sum(found & known) / (found.sum() + known.sum())
        assert float(row[f"dice_{name}"]) == pytest.approx(expected, abs=6e-6)


@pytest.mark.parametrize("more", [(), ("gpu",), ("baseline_unet",)], ids=["own", "gpu", "unet"])
def test_every_region_has_sides_that_its_network_takes(more: tuple[str, ...], tmp_path: Path) -> None:
    """A heart of any size: the side of its region is a multiple of what the network halves."""
    metadata = str(BUNDLE / "configs" / "metadata.json")
    files = [str(BUNDLE / "configs" / f"{name}.yaml") for name in ("train", *more)]
    parser = ConfigWorkflow(files, metadata, logging_file=False, **{"train#dataset#data": []}).parser
    network, description = (parser.get_parsed_content(name) for name in ("network_def", "description"))
    save_model(tmp_path / "model.pt", network, description)
    inference = ConfigWorkflow(str(BUNDLE / "configs" / "inference.yaml"), metadata, logging_file=False)
    inference.parser.update({"weights": str(tmp_path / "model.pt")})
    inferer = inference.parser.get_parsed_content("inferer")
    assert [side % inferer.multiple for side in inferer.smallest] == [0, 0]
    side = max(inferer.smallest) + inferer.multiple
    with torch.inference_mode():
        out = network.eval()(torch.zeros(1, 4, side, side), torch.zeros(1), torch.zeros(1, 3, side, side))
    assert out.shape == (1, 4, side, side)
