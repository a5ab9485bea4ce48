"""One model from several: their weights by hand, what the file says of itself, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import load_script
from small_networks import small_network

from cgdpm_med import InputError, MaskTarget, NoiseSchedule, VolumeInput, describe, load_model, save_model
from cgdpm_med.models.description import TrainingData

SEEN = VolumeInput(spacing=1.5, field=64)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("average_weights")


def written(path: Path, value: float, patients: tuple[str, ...] = ("a",), **changes: Any) -> Path:
    """A model whose every weight is ``value``."""
    network = small_network(0, cond_channels=1)
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, value)
    parts: dict[str, Any] = {"target": MaskTarget(4), "schedule": NoiseSchedule(100, "cosine", "sample"), "input": SEEN}
    said = describe(network, **parts, labels=["RV", "Myo", "LV"], training=TrainingData(patients, "split"))
    save_model(path, network, replace(said, **changes))
    return path


def values_of(path: Path) -> set[float]:
    return {value for tensor in load_model(path).network.state_dict().values() for value in tensor.unique().tolist()}


def test_the_average_of_three(script: ModuleType, tmp_path: Path) -> None:
    sources = [written(tmp_path / f"{v}.pt", v, (p,)) for v, p in ((1.0, "b"), (2.0, "a"), (6.0, "b"))]
    script.average_files(tmp_path / "all.pt", sources)
    assert values_of(tmp_path / "all.pt") == {3.0}
    said = load_model(tmp_path / "all.pt").description
    assert said.training == TrainingData(("a", "b"), "split")
    assert (said.precision, said.walk, said.input) == ("float16", (), SEEN)


def test_an_older_file_that_names_fewer_arguments(script: ModuleType, tmp_path: Path) -> None:
    old = written(tmp_path / "old.pt", 1.0)
    content = torch.load(old, weights_only=True)
    del content["description"]["network"]["arguments"]["strides"]
    torch.save(content, old)
    script.average_files(tmp_path / "all.pt", [old, written(tmp_path / "new.pt", 4.0)])
    assert values_of(tmp_path / "all.pt") == {2.5}


def test_what_was_learned_is_added(script: ModuleType, tmp_path: Path) -> None:
    """The average 3, and 0.5 that distillation has changed; its teacher is the average as it is written."""
    before, other = written(tmp_path / "before.pt", 2.0), written(tmp_path / "other.pt", 4.0)
    after = written(tmp_path / "after.pt", 2.5, ("a", "phantom"), walk=(90, 60), teacher="its own")
    script.average_files(tmp_path / "teacher.pt", [before, other])
    script.average_files(tmp_path / "distilled.pt", [before, other], [after, before])
    assert values_of(tmp_path / "distilled.pt") == {3.5}
    said = load_model(tmp_path / "distilled.pt").description
    assert said.walk == (90, 60)
    assert said.teacher == load_model(tmp_path / "teacher.pt").digest
    assert said.training == TrainingData(("a", "phantom"), "split")


def test_a_distilled_network_is_no_part_of_an_average(script: ModuleType, tmp_path: Path) -> None:
    """Half of it would answer every walk, and be right for none."""
    plain = written(tmp_path / "plain.pt", 1.0)
    distilled = written(tmp_path / "distilled.pt", 2.0, walk=(90, 60), teacher="its own")
    for sources, learned in (
        ([plain, distilled], None),
        ([distilled, plain], None),
        ([plain, distilled], [distilled, plain]),
        ([plain], [plain, distilled]),
    ):
        with pytest.raises(InputError, match=r"distilled\.pt: is a distilled network"):
            script.average_files(tmp_path / "all.pt", sources, learned)
    assert not (tmp_path / "all.pt").exists()


def test_an_input_is_never_overwritten(script: ModuleType, tmp_path: Path) -> None:
    first, other = written(tmp_path / "first.pt", 1.0), written(tmp_path / "other.pt", 2.0)
    with pytest.raises(InputError, match=r"first\.pt: is one of the files to average"):
        script.average_files(first, [first, other])
    assert values_of(first) == {1.0}


def test_networks_of_other_splits_are_refused(script: ModuleType, tmp_path: Path) -> None:
    first = written(tmp_path / "first.pt", 1.0)
    other = written(tmp_path / "other.pt", 2.0, training=TrainingData(("a",), "another"))
    with pytest.raises(InputError, match=r"other\.pt: has another split"):
        script.average_files(tmp_path / "all.pt", [first, other])


def test_other_networks_are_refused(script: ModuleType, tmp_path: Path) -> None:
    first = written(tmp_path / "first.pt", 1.0)
    other = written(tmp_path / "other.pt", 1.0, input=VolumeInput(spacing=2, field=64))
    with pytest.raises(InputError, match=r"other\.pt: has another input than the first file"):
        script.average_files(tmp_path / "all.pt", [first, other])
    assert not (tmp_path / "all.pt").exists()
