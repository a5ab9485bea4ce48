"""Exported graphs give torch's numbers at sizes they were not traced with, and numpy alone samples what we sample."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPO
from small_networks import small_network
from torch import Tensor, nn
from typer.testing import CliRunner

from cgdpm_med.apps import export as application
from cgdpm_med.apps.cli import app
from cgdpm_med.apps.export import export_model
from cgdpm_med.diffusion.sampling import Sampling, sample
from cgdpm_med.diffusion.schedule import NoiseSchedule
from cgdpm_med.diffusion.targets import MaskTarget
from cgdpm_med.files import InputError
from cgdpm_med.models import describe, load_model, save_model
from cgdpm_med.models.export import filled, graphs_of, tensors_of
from cgdpm_med.networks.unet import FUSIONS
from cgdpm_med.phantom import PhantomSpec, make_phantom

FORMATS = ["torch", "onnx"]
needs_onnx = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnxscript") is None,
    reason="onnx, onnxscript or onnxruntime is not installed",
)


def write_model(path: Path, **settings: Any) -> Path:
    """A small mask network in a model file."""
    network, target = small_network(3, **settings), MaskTarget(4, scale=1.0)
    schedule = NoiseSchedule(prediction_type=target.predicts)
    seen = {"kind": "volume", "spacing": 1.5, "field": 32}
    save_model(path, network, describe(network, target, schedule, seen, labels=("a", "b", "c")))
    return path


def phantom_slice() -> Tensor:
    """A slice of a phantom, (1, 1, 64, 56) in [-1, 1]."""
    picture = torch.as_tensor(make_phantom(PhantomSpec.small(seed=5)).images[1][:, :, 2].astype(np.float32))
    return (2 * picture / picture.max() - 1)[None, None]


def numpy_example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sample_with_numpy", REPO / "examples" / "sample_with_numpy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def exported(folder: Path) -> dict[str, Any]:
    return export_model(write_model(folder / "model.pt"), folder / "out", FORMATS)


@pytest.mark.slow
@needs_onnx
def test_graphs_agree_with_torch_at_another_size(exported: dict[str, Any], folder: Path) -> None:
    assert exported["differences"].keys() == {f"{n}.{e}" for n in ("condition", "denoiser") for e in ("onnx", "pt2")}
    assert max(exported["differences"].values()) < 1e-4
    assert {path.name for path in (folder / "out").iterdir()} == {*exported["differences"], "model.json"}


@pytest.mark.slow
@needs_onnx
@pytest.mark.usefixtures("exported")
@pytest.mark.parametrize("steps", [1, 4, (999, 400)])
def test_numpy_around_the_graphs_samples_what_we_sample(folder: Path, steps: int | tuple[int, int]) -> None:
    example, model = numpy_example(), load_model(folder / "model.pt")
    y, x_T = phantom_slice(), torch.randn(3, 4, 64, 56, generator=torch.Generator().manual_seed(0))
    denoiser = model.target.denoiser(model.network)
    about = json.loads((folder / "out" / "model.json").read_text(encoding="utf-8"))
    sampling = Sampling(steps=steps) if isinstance(steps, int) else Sampling(timesteps=steps)
    if sampling.timesteps is not None:
        about["walk"] = list(sampling.timesteps)  # as of a distilled network
    ours = sample(denoiser, x_T, y, model.schedule, sampling, clip=(-1, 1))
    graphs = [example.load_graph(folder / "out", name, about) for name in ("condition", "denoiser")]
    theirs = example.sample(*graphs, y.numpy(), x_T.numpy(), about, sampling.steps)
    np.testing.assert_allclose(theirs, ours.numpy(), atol=1e-4)
    assert ours.std(dim=0).max() > 0.01  # the members differ, so x_T reached the graph
    probable = example.probabilities(theirs, 1.0)
    np.testing.assert_allclose(probable, model.target.decode(ours, y).numpy(), atol=1e-4)


@pytest.mark.slow
@needs_onnx
@pytest.mark.usefixtures("exported")
def test_the_example_runs_as_a_program(folder: Path) -> None:
    np.save(folder / "slice.npy", phantom_slice()[0].numpy())
    program = [sys.executable, str(REPO / "examples" / "sample_with_numpy.py")]
    subprocess.run([*program, "out", "slice.npy", "mask.npy", "--members", "2"], cwd=folder, check=True)
    mask = np.load(folder / "mask.npy")
    assert mask.shape == (4, 64, 56)
    np.testing.assert_allclose(mask.sum(axis=0), 1, atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_features_survive_being_flat(fusion: str) -> None:
    features = small_network(fusion=fusion).encode(torch.randn(1, 1, 8, 8))
    named = tensors_of(features)
    again = filled(features, iter([2 * tensor for tensor in named.values()]))
    assert type(again) is type(features)
    assert tensors_of(again).keys() == named.keys()
    for name, tensor in tensors_of(again).items():
        assert torch.equal(tensor, 2 * named[name])


def test_a_bare_image_is_its_own_feature() -> None:
    y = torch.randn(1, 1, 8, 8)
    assert list(tensors_of(y)) == ["features"]
    assert torch.equal(filled(torch.zeros(0), iter([y])), y)


def test_the_modules_behind_the_graphs_are_the_denoiser(tmp_path: Path) -> None:
    model = load_model(write_model(tmp_path / "model.pt"))
    condition, denoiser = graphs_of(model)
    y, x_t, t = torch.randn(2, 1, 8, 12), torch.randn(2, 4, 8, 12), torch.tensor([500])
    with torch.no_grad():
        found = denoiser.module(x_t, t, condition.module(y))
        assert torch.equal(found, model.target.denoiser(model.network)(x_t, t.expand(2), y))


class Changed(nn.Module):
    """A graph's module that says something else than what was exported."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(1.01 * found for found in self.module(*inputs))


def test_wrong_numbers_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(tmp_path / "model.pt")
    monkeypatch.setattr(application, "torch_bytes", lambda program: b"")
    monkeypatch.setattr(application, "exported", lambda graph: None)
    monkeypatch.setattr(application, "runner", lambda name, content, graph: lambda given: Changed(graph.module)(*given))
    with pytest.raises(InputError, match="differs from torch"):
        export_model(model, tmp_path / "out", ["torch"])
    assert not (tmp_path / "out").exists()


def test_without_the_packages_the_other_format_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(tmp_path / "model.pt")
    monkeypatch.setattr(application, "exported", lambda graph: None)
    monkeypatch.setattr("cgdpm_med.models.export.find_spec", lambda name: None)
    with pytest.raises(InputError, match="onnxscript"):
        export_model(model, tmp_path / "out", ["onnx"])
    assert not (tmp_path / "out").exists()


def test_the_command_refuses_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"no tensors")
    result = CliRunner().invoke(app, ["export", str(tmp_path / "model.pt"), str(tmp_path / "out")])
    assert isinstance(result.exception, InputError)
    assert not (tmp_path / "out").exists()
    assert CliRunner().invoke(app, ["export", "model.pt", "out", "--format", "keras"]).exit_code == 2


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="keras"):
        export_model(tmp_path / "model.pt", tmp_path / "out", ["keras"])
