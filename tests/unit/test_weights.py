"""Weights files: written, read, refused, and the best of a run."""

from __future__ import annotations

import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from malicious import Payload, write_malicious
from small_networks import small_network
from torch import nn

from cgdpm_med.files import InputError
from cgdpm_med.models.weights import load_weights, save_weights
from cgdpm_med.training.engines import BestWeights


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_weights_come_back(tmp_path: Path, dtype: torch.dtype | None) -> None:
    network, other = small_network(seed=1), small_network(seed=2)
    save_weights(network, tmp_path / "new" / "model.pt", dtype=dtype)
    assert load_weights(other, tmp_path / "new" / "model.pt") is other
    for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True):
        assert b.dtype == torch.float32
        assert torch.equal(b, a if dtype is None else a.half().float())
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["model.pt"]


def test_float16_halves_the_file_and_leaves_integers(tmp_path: Path) -> None:
    network = nn.BatchNorm1d(20_000)
    network.get_buffer("num_batches_tracked").fill_(70_000)  # beyond float16
    save_weights(network, tmp_path / "full.pt")
    save_weights(network, tmp_path / "half.pt", dtype=torch.float16)
    sizes = [(tmp_path / name).stat().st_size for name in ("half.pt", "full.pt")]
    assert sizes[0] < 0.51 * sizes[1]
    assert load_weights(nn.BatchNorm1d(20_000), tmp_path / "half.pt").num_batches_tracked == 70_000


def test_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pt: there are no weights here"):
        load_weights(nn.Linear(1, 1), tmp_path / "none.pt")
    with pytest.raises(InputError, match="there are no weights here"):
        load_weights(nn.Linear(1, 1), tmp_path)


def test_weights_that_would_run_code(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    write_malicious(tmp_path / "model.pt", marker)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Payload(marker), protocol=2))
    for name in ("model.pt", "plain.pt"):
        with pytest.raises(InputError, match=rf"{name}: is not a file of plain weights \(UnpicklingError\)"):
            load_weights(nn.Linear(1, 1), tmp_path / name)
    assert not marker.exists()


def test_truncated_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    save_weights(small_network(), path)
    whole = path.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        complaint = "is truncated" if length else "is an empty file"
        with pytest.raises(InputError, match=rf"model\.pt: {complaint}\. Download or copy it again"):
            load_weights(small_network(), path)


def test_a_tensor_overwritten_with_zeros(tmp_path: Path) -> None:
    """PyTorch reads it without a word."""
    path = tmp_path / "model.pt"
    save_weights(nn.Linear(64, 64), path)
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    middle = record.header_offset + record.file_size // 2  # the header before it is far shorter than its half
    content[middle : middle + 100] = bytes(100)
    path.write_bytes(content)
    assert not torch.load(path, weights_only=True)["weight"].all()
    with pytest.raises(InputError) as caught:
        load_weights(nn.Linear(64, 64), path)
    assert f"is damaged (checksum of {record.filename}). Download or copy it again" in str(caught.value)


def test_an_archive_of_something_else_is_not_called_damaged(tmp_path: Path) -> None:
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    with pytest.raises(InputError, match="is not a file of plain weights"):
        load_weights(nn.Linear(1, 1), tmp_path / "arrays.npz")


@pytest.mark.parametrize("content", [[1, 2], {"network": {"a": torch.zeros(1)}}, {"epoch": 3}])
def test_something_else_than_a_state_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(InputError, match="holds something else than a state_dict"):
        load_weights(nn.Linear(1, 1), tmp_path / "model.pt")


def test_weights_of_another_network_name_the_first_differences(tmp_path: Path) -> None:
    save_weights(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1, bias=False)), tmp_path / "model.pt")
    network = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1))
    before = [p.clone() for p in network.parameters()]
    with pytest.raises(InputError) as caught:
        load_weights(network, tmp_path / "model.pt")
    assert "4 of 4 tensors differ, first " in str(caught.value)
    assert "0.bias (network (4,), file (3,)), 0.weight (network (4, 2), file (3, 2))" in str(caught.value)
    assert "1.bias (network (1,), file has none)" in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


# --- best weights -----------------------------------------------------------------------------------------------------


def evaluate(best: BestWeights, value: float) -> None:
    engine = Engine(lambda engine, batch: None)
    best.attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: e.state.metrics.update(score=value))
    engine.run([0], max_epochs=1)


def test_the_last_weights_are_those_of_the_end(tmp_path: Path) -> None:
    """Of a training whose last epoch is not validated."""
    network = nn.Linear(1, 1, bias=False)
    evaluator = Engine(lambda engine, batch: None)

    def step(engine: Engine, batch: Any) -> None:
        with torch.no_grad():
            network.weight.fill_(engine.state.epoch)

    trainer = Engine(step)
    BestWeights(network, tmp_path / "model.pt", "score").watching(evaluator).attach(trainer)
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda e: e.state.metrics.update(score=1.0))
    trainer.add_event_handler(Events.EPOCH_COMPLETED(every=2), lambda: evaluator.run([0]))
    trainer.run([0], max_epochs=3)
    saved = (torch.load(tmp_path / name, weights_only=True) for name in ("model.pt", "model_last.pt"))
    assert [state["weight"].item() for state in saved] == [2.0, 3.0]


def test_best_and_last_weights(tmp_path: Path) -> None:
    network = nn.Linear(1, 1, bias=False)
    best = BestWeights(network, tmp_path / "model.pt", "score")

    def after(value: float, weight: float) -> tuple[float, float]:
        with torch.no_grad():
            network.weight.fill_(weight)
        evaluate(best, value)
        saved = (torch.load(tmp_path / name, weights_only=True) for name in ("model.pt", "model_last.pt"))
        return tuple(state["weight"].item() for state in saved)  # type: ignore[return-value]

    assert after(0.5, weight=1.0) == (1.0, 1.0)
    assert after(0.4, weight=2.0) == (1.0, 2.0)
    assert after(0.5, weight=3.0) == (1.0, 3.0)
    assert after(math.nan, weight=4.0) == (1.0, 4.0)
    # a resumed run does not take a worse value for the best
    saved = best.state_dict()
    best = BestWeights(network, tmp_path / "model.pt", "score")
    best.load_state_dict(saved)
    assert after(0.45, weight=5.0) == (1.0, 5.0)
    assert after(0.6, weight=6.0) == (6.0, 6.0)
