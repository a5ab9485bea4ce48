"""The shipped weights of face_sr_16_128, on a face that is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import load_script
from PIL import Image
from typer.testing import CliRunner

from cgdpm_med import SuperResolver, bundle_path
from cgdpm_med.apps.cli import app

BUNDLE = bundle_path("face_sr_16_128")
MODELS = [BUNDLE / "models" / "model.pt", BUNDLE / "models" / "guidance" / "guidance.pt"]
drawn = load_script("drawn_face")


def psnr(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Of values in [-1, 1], in dB."""
    return 10 * float(torch.log10(4 / (found - truth).square().mean()))


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """A face (1, 3, 128, 128) and its area averages, in [-1, 1]."""
    fine = torch.from_numpy(drawn.drawn_face(128)).movedim(-1, 0)[None].float() * 2 - 1
    return fine, F.avg_pool2d(fine, 8)


@pytest.mark.parametrize("file", MODELS, ids=lambda file: file.stem)
def test_weights_fit_in_a_file_of_the_model_zoo(file: Path) -> None:
    assert 1e6 < file.stat().st_size < 25e6


def test_one_step_is_nearer_than_bicubic_and_agrees(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    fine, coarse = pair
    found = SuperResolver.from_bundle(BUNDLE, steps=1, device="cpu")(coarse)[0]
    smooth = F.interpolate(coarse, size=128, mode="bicubic").clamp(-1, 1)
    assert psnr(found, fine) > psnr(smooth, fine)
    assert (F.avg_pool2d(found, 8) - coarse).square().mean() < 1e-5  # what remains is clipping


def test_guidance_brings_samples_together(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    """It draws each towards the conditional mean."""
    spread = []
    for w in (0.0, 1.0):
        resolver = SuperResolver.from_bundle(BUNDLE, steps=4, members=3, guidance_scale=w, device="cpu")
        spread.append(float(resolver(pair[1]).std(dim=0).mean()))
    assert spread[1] < spread[0]


def test_a_drawn_face_by_the_command(tmp_path: Path) -> None:
    coarse = (255 * drawn.coarse(drawn.drawn_face())).round().astype(np.uint8)
    Image.fromarray(coarse).save(tmp_path / "face.png")
    options = ["--bundle", "face_sr_16_128", "--steps", "2", "--device", "cpu"]
    result = CliRunner().invoke(app, ["super-resolve", str(tmp_path / "face.png"), str(tmp_path / "out"), *options])
    assert result.exit_code == 0, result.output
    fine = np.asarray(Image.open(tmp_path / "out" / "face.png"), float)
    assert fine.shape == (128, 128, 3)
    assert np.abs(drawn.coarse(fine) - coarse).max() <= 1  # of 255: rounding and clipping
    assert json.loads((tmp_path / "out" / "face.json").read_text(encoding="utf-8"))
