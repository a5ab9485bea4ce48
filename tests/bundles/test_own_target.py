"""A target of one's own, a signed distance map: trained and sampled through the bundle, the package untouched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPO
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from cgdpm_med import Target, write_phantom_dataset

pytestmark = pytest.mark.usefixtures("leaves_no_determinism")

BUNDLE = REPO / "bundles" / "acdc_segmentation"
TRAIN, VALIDATION = 2, 1
TOY = f"""
target:
  _target_: {__name__}.SignedDistance
learning_rate: 0.01
lr_scheduler#warmup: 1
validate#postprocessing: null
validate#key_metric#val_mean_dice#output_transform: $__import__('{__name__}').inside
"""


@dataclass(frozen=True)
class SignedDistance(Target):
    """Distance to the boundary of the heart in pixels over ``reach``, positive inside; one number from -1 to 1."""

    reach: float = 8.0

    channels = 1
    makes = "distance"
    predicts = "sample"

    def encode(self, truth: Tensor, y: Tensor) -> Tensor:
        """Labels, or class probabilities with the background first, to the map (B, 1, H, W)."""
        heart = 1 - truth[:, :1] if truth.shape[1] > 1 else truth.float()
        maps = [self._distance(each.numpy() > 0.5) for each in heart[:, 0].cpu()]
        return torch.from_numpy(np.stack(maps)[:, None]).to(y)

    def _distance(self, inside: np.ndarray) -> np.ndarray:
        if inside.all() or not inside.any():
            return np.full(inside.shape, 1.0 if inside.all() else -1.0, np.float32)
        signed = distance_transform_edt(inside) - distance_transform_edt(~inside)
        return (signed / self.reach).clip(-1, 1).astype(np.float32)

    def decode(self, x_0: Tensor, y: Tensor) -> Tensor:
        """The map in pixels."""
        return self.reach * x_0.clamp(-1, 1)

    def correct(self, x_0: Tensor, y: Tensor) -> Tensor:
        return x_0.clamp(-1, 1)


def inside(output: list[dict[str, Any]]) -> tuple[list[Tensor], list[Tensor]]:
    """For MONAI's Dice: one member's map and the labels, as foreground channels beside the background."""
    found = [item["pred"][:1] > 0 for item in output]
    truth = [item["label"][:1] > 0 for item in output]
    return [torch.cat([~x, x]).float() for x in found], [torch.cat([~x, x]).float() for x in truth]


def loss_of(engine: Engine) -> float:
    output: Any = engine.state.output
    return float((output[0] if isinstance(output, list) else output)["loss"])


def test_a_distance_map_by_hand() -> None:
    labels = torch.tensor([[0, 0, 1, 2, 1, 0]])[None, None]
    x_0 = SignedDistance(reach=2.0).encode(labels, torch.zeros(1, 1, 1, 6))
    assert x_0.flatten().tolist() == [-1.0, -0.5, 0.5, 1.0, 0.5, -0.5]
    assert SignedDistance(reach=2.0).decode(x_0, x_0).flatten().tolist() == [-2.0, -1.0, 1.0, 2.0, 1.0, -1.0]


def test_twenty_steps_of_a_bundle_and_a_sample(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"shape": (64, 56, 4), "spacing": (2.8, 2.8, 22.0), "num_frames": 6}
    write_phantom_dataset(tmp_path / "in", [TRAIN, VALIDATION], seed=1, **shape)
    (tmp_path / "toy.yaml").write_text(TOY)
    files = [BUNDLE / "configs" / "train.yaml", REPO / "configs" / "smoke.yaml", tmp_path / "toy.yaml"]
    flow = ConfigWorkflow(
        [str(file) for file in files],
        str(BUNDLE / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        bundle_root=str(BUNDLE),
        dataset_dir=str(tmp_path / "in"),
        output_dir=str(tmp_path / "out"),
        device="$torch.device('cpu')",
        precision="float32",
        epochs=10,  # of two iterations
        val_interval=10,
    )
    flow.initialize()
    trainer = flow.parser.get_parsed_content("train#trainer")
    losses: list[float] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: losses.append(loss_of(engine)))
    flow.run()
    assert len(losses) == 20
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    assert (tmp_path / "out" / "model.pt").is_file()  # the best by Dice of the maps' insides
    predictor = flow.parser.get_parsed_content("sampler_predictor")
    y = torch.zeros(2, 3, 32, 32)
    members = predictor.ensemble(y, member_ids=[0, 1])
    assert members.shape == (2, 2, 1, 32, 32)
    assert members.abs().max() <= 8
    assert torch.equal(members, predictor.ensemble(y, member_ids=[0, 1]))
