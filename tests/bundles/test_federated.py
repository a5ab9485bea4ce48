"""MONAI FL: two sites of phantoms train the bundle acdc_segmentation in rounds, driven by MonaiAlgo as it comes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPO
from ignite.engine import Events
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, ModelType, WeightType
from monai.fl.utils.exchange_object import ExchangeObject

from cgdpm_med import write_phantom_dataset
from cgdpm_med.models import load_model

CONFIGS = REPO / "bundles" / "acdc_segmentation" / "configs"
SMOKE = str(REPO / "configs" / "smoke.yaml")
TINY: dict[str, Any] = {"shape": (64, 56, 4), "spacing": (2.8, 2.8, 22.0), "num_frames": 6}
ROUNDS = 2

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("leaves_no_determinism")]


def site(folder: Path, seed: int) -> MonaiAlgo:
    """A client with its own data and its own copy of the bundle."""
    write_phantom_dataset(folder / "data", patients=[1, 2], seed=seed, **TINY)
    shutil.copytree(CONFIGS, folder / "bundle" / "configs")
    common = {"dataset_dir": str(folder / "data"), "device": "$torch.device('cpu')", "precision": "float32"}
    algo = MonaiAlgo(
        bundle_root=str(folder / "bundle"),
        local_epochs=1,
        send_weight_diff=False,
        config_train_filename=["configs/train.yaml", SMOKE, "configs/federated.yaml"],
        train_kwargs={**common, "epochs": ROUNDS, "lr_scheduler#warmup": 1},
        config_evaluate_filename=["configs/train.yaml", SMOKE, "configs/evaluate.yaml"],
        eval_kwargs={**common, "output_dir": str(folder / "scores")},
        final_model_filepath="models/model_last.pt",
    )
    with pytest.warns(UserWarning, match="(?i)code"):  # MONAI's, that a bundle runs code
        algo.initialize(extra={ExtraItems.CLIENT_NAME: folder.name})
    return algo


def averaged(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([part[name].float() for part in parts]).mean(dim=0) for name in parts[0]}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_two_sites_train_exchange_and_score(tmp_path: Path) -> None:
    sites = [site(tmp_path / name, seed) for seed, name in enumerate(("north", "south"))]
    north = sites[0]
    assert north.trainer is not None
    assert north.evaluator is not None
    ema = north.train_workflow.parser.get_parsed_content("ema").ema_model  # type: ignore[union-attr]
    began: list[dict[str, torch.Tensor]] = []

    def note_the_average(engine: Any) -> None:
        began.append({name: value.clone() for name, value in ema.state_dict().items()})

    north.trainer.add_event_handler(Events.EPOCH_STARTED, note_the_average)
    shared = {name: value.clone() for name, value in north.trainer.network.state_dict().items()}
    for number in range(1, ROUNDS + 1):
        for each in sites:
            each.train(ExchangeObject(weights=shared, weight_type=WeightType.WEIGHTS))
            assert each.trainer is not None
            assert each.trainer.state.epoch == number
        assert equal(began[-1], shared)
        before, shared = shared, averaged([dict(each.get_weights().weights) for each in sites])
        assert not equal(before, shared)
    # the schedule went over the rounds to its end, and the last checkpoint knows its place
    assert north.trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 5e-4)
    place = torch.load(tmp_path / "north/bundle/models/checkpoint.pt", weights_only=True)["place"]
    assert place["epoch"] == ROUNDS

    scores = [each.evaluate(ExchangeObject(weights=shared)).metrics for each in sites]
    assert all(0 <= score["val_mean_dice"] <= 1 for score in scores)
    assert equal(dict(north.evaluator.network.state_dict()), shared)
    assert not list((tmp_path / "north/scores").rglob("*.pt"))
    for kind, name in ((ModelType.BEST_MODEL, "model.pt"), (ModelType.FINAL_MODEL, "model_last.pt")):
        weights = north.get_weights(extra={ExtraItems.MODEL_TYPE: kind}).weights
        model = load_model(tmp_path / "north/bundle/models" / name)
        assert equal(dict(weights), dict(model.network.state_dict()))
    for each in sites:
        each.finalize()
