"""The program behind the paper's figure 4: its closed forms, and its files."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import load_script
from PIL import Image
from torch.distributions import Independent, Normal, kl_divergence

from cgdpm_med.diffusion.schedule import NoiseSchedule


@pytest.fixture(scope="module")
def figure4() -> ModuleType:
    return load_script("figure4")


def test_divergence_is_that_of_the_two_gaussians(figure4: ModuleType) -> None:
    a, b = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = list(figure4.divergence_of(a, b))
    for t in (0, 400, 999):
        ab = NoiseSchedule().alpha_bar[t]
        p, q = (Independent(Normal(ab.sqrt() * x, (1 - ab).sqrt()), 2) for x in (a, b))
        assert rows[t]["kl"] == pytest.approx(float(kl_divergence(p, q)))
        assert rows[t]["kl_per_dimension"] == pytest.approx(float(kl_divergence(p, q)) / 12)


def test_drawn_moments_agree_with_the_exact_ones(figure4: ModuleType) -> None:
    x_0 = torch.full((4, 1, 50, 50), -1.0)
    x_0[:, :, ::4] = 1.0  # 13 of 50 rows: mean -0.48
    rows = list(figure4.end_statistics(x_0, torch.Generator().manual_seed(0)))
    assert [row["T"] for row in rows] == [100, 500, 1000, 2000, 5000, 10000, 20000, 50000] * 2
    for row in rows:
        assert row["standard_error_of_mean"] == 0.01
        assert row["mean"] == pytest.approx(row["exact_mean"], abs=0.04)
        assert row["std"] == pytest.approx(row["exact_std"], abs=0.03)
    # constant end points, T = 100: log alpha_bar is about - sum beta, a hundred times their mean, less half the squares
    beta = np.linspace(1e-4, 2e-2, 100)
    assert rows[8]["exact_mean"] == pytest.approx(-0.48 * math.exp(np.log1p(-beta).sum() / 2), rel=1e-6)


def test_files_are_written_for_a_folder_of_images(
    figure4: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("a.png", 0), ("b.png", 255)):
        Image.fromarray(np.full((12, 20, 3), value, dtype=np.uint8)).save(tmp_path / name)
    command = ["figure4.py", "--data", f"images:{tmp_path}", "--output", str(tmp_path / "out"), "--size", "4"]
    monkeypatch.setattr(sys, "argv", command)
    figure4.main()
    with open(tmp_path / "out" / "figure4b.csv", newline="") as file:
        row = list(csv.DictReader(file))[500]
    ab = float(NoiseSchedule().alpha_bar[500])
    # black against white: every one of 48 values differs by 2
    assert float(row["kl"]) == pytest.approx(ab * 48 * 4 / (2 * (1 - ab)), rel=1e-5)
    assert Image.open(tmp_path / "out" / "figure4.png").size[0] > 1000


@pytest.mark.parametrize("data", ["faces", "acdc", "phantom:x"])
def test_unknown_data_is_explained(
    figure4: ModuleType, data: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["figure4.py", "--data", data])
    with pytest.raises(SystemExit):
        figure4.main()
    assert "phantom, acdc:DIR or images:DIR" in capsys.readouterr().err
