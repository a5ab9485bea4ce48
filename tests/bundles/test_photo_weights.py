"""The shipped weights of photo_sr_64_256, on a picture that is drawn; the command is super-resolve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from cgdpm_med import SuperResolver, bundle_path
from cgdpm_med.apps.cli import app

BUNDLE = bundle_path("photo_sr_64_256")


@pytest.fixture(scope="module")
def pair() -> tuple[Tensor, Tensor]:
    """Sharp discs on a slope of brightness (1, 3, 192, 144), larger than the window, and their area averages."""
    x, y = np.meshgrid(np.arange(192), np.arange(144), indexing="ij")
    picture = 0.25 + np.stack([0.3 * x / 192, 0.2 * y / 144, 0 * x])
    for n, (u, v, r) in enumerate([(50, 40, 25), (120, 90, 36), (150, 30, 14), (60, 110, 18)]):
        picture[n % 3][np.hypot(x - u, y - v) < r] = 0.7 - 0.1 * n
    fine = 2 * torch.as_tensor(picture, dtype=torch.float32)[None] - 1
    return fine, F.avg_pool2d(fine, 4)


def test_one_step_is_nearer_than_bicubic_and_agrees(pair: tuple[Tensor, Tensor]) -> None:
    fine, coarse = pair
    found = SuperResolver.from_bundle(BUNDLE, steps=1, device="cpu")(coarse)[0]
    smooth = F.interpolate(coarse, scale_factor=4.0, mode="bicubic").clamp(-1, 1)
    gain = 10 * torch.log10((smooth - fine).square().mean() / (found - fine).square().mean())
    assert gain > 0.5  # dB
    assert (F.avg_pool2d(found, 4) - coarse).square().mean() < 1e-4  # what remains is clipping


def test_a_photograph_by_the_command(pair: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    coarse = (127.5 * (pair[1][0] + 1)).round().byte().movedim(0, -1).numpy()
    Image.fromarray(coarse).save(tmp_path / "photo.png")
    options = ["--bundle", "photo_sr_64_256", "--members", "2", "--device", "cpu"]
    result = CliRunner().invoke(app, ["super-resolve", str(tmp_path / "photo.png"), str(tmp_path / "out"), *options])
    assert result.exit_code == 0, result.output
    fine = np.asarray(Image.open(tmp_path / "out" / "photo.png"), float)
    assert fine.shape == (192, 144, 3)
    averages = fine.reshape(48, 4, 36, 4, 3).mean(axis=(1, 3))
    assert np.abs(averages - coarse).max() <= 1  # of 255: rounding and clipping
    assert np.asarray(Image.open(tmp_path / "out" / "photo_std.png")).any()
