"""The shipped weights of cardiac_sr, on synthetic hearts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cgdpm_med import SuperResolver, acdc_datalist, bundle_path
from cgdpm_med.apps.evaluate_volumes import evaluate_volumes
from cgdpm_med.models import load_model
from cgdpm_med.phantom import write_phantom_dataset

BUNDLE = bundle_path("cardiac_sr")
FACTORS = {"model": 4, "model_2x": 2}
FILES = [BUNDLE / "models" / f"{name}.pt" for name in FACTORS]
each = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


@pytest.fixture(scope="module")
def hearts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hearts")
    size: dict[str, Any] = {"shape": (112, 96, 3), "spacing": (1.5, 1.5, 24.0), "num_frames": 6}
    write_phantom_dataset(root, patients=1, seed=0, **size)
    return root


@each
def test_weights_fit_in_a_file_of_the_model_zoo(file: Path) -> None:
    assert 1e6 < file.stat().st_size < 25e6


@each
def test_weights_are_found_by_their_factor(file: Path) -> None:
    factor = FACTORS[file.stem]
    assert load_model(file).target.size_factor == factor
    assert SuperResolver.from_bundle(BUNDLE, factor=factor, device="cpu").weights == file


@each
@pytest.mark.filterwarnings("ignore::cgdpm_med.volumes.HeaderWarning")
def test_one_step_is_nearer_than_zero_filling_and_agrees(file: Path, hearts: Path) -> None:
    resolver = SuperResolver.from_bundle(BUNDLE, factor=FACTORS[file.stem], device="cpu", precision="float32")
    found = evaluate_volumes(resolver, acdc_datalist(hearts, "all", labels=False))["methods"]
    assert found["refined"]["psnr"] > found["zero-filled"]["psnr"] + 0.5
    assert found["refined"]["ssim"] > found["zero-filled"]["ssim"]
    assert found["refined"]["off_largest"] < 1e-3
