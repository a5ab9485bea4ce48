"""Scores of super-resolved pictures by hand; the networks are known functions."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REPO, load_script
from PIL import Image
from torch import Tensor, nn

from cgdpm_med import SuperResolver, evaluate_super_resolution, format_picture_summary, image_datalist
from cgdpm_med.apps.contact_sheet import GAP, HEADING, contact_sheet
from cgdpm_med.diffusion.ensemble import KeyedNoise
from cgdpm_med.diffusion.schedule import NoiseSchedule
from cgdpm_med.diffusion.targets import ImageTarget
from cgdpm_med.files import InputError
from cgdpm_med.inference.predictor import DiffusionPredictor

SIZE, FACTOR = 16, 2


class Nearest(nn.Module):
    """x_0 is the condition with every pixel repeated, plus ``offset``, plus ``noise`` times x_t."""

    def __init__(self, offset: float = 0.0, noise: float = 0.0) -> None:
        super().__init__()
        self.offset, self.noise = offset, noise

    def forward(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return F.interpolate(context, scale_factor=float(FACTOR)) + self.offset + self.noise * x_t


def resolver(members: int = 1, **network: float) -> SuperResolver:
    schedule = NoiseSchedule(prediction_type="sample")
    settings: dict[str, Any] = {"target": ImageTarget(factor=FACTOR), "steps": 1}
    return SuperResolver(
        DiffusionPredictor(Nearest(**network), schedule=schedule, members=members, precision="float32", **settings)
    )


def checker(low: int, high: int, size: int = SIZE) -> np.ndarray:
    """Grey levels in a chequered pattern; each 2 x 2 block holds two of both."""
    rows, columns = np.indices((size, size))
    return np.where((rows + columns) % 2, high, low).astype(np.uint8)[..., None].repeat(3, -1)


def blocks(seed: int) -> np.ndarray:
    """Levels that are constant in 2 x 2 blocks, away from the ends of the range."""
    coarse = np.random.default_rng(seed).integers(60, 200, (SIZE // 2, SIZE // 2, 3), dtype=np.uint8)
    return coarse.repeat(2, 0).repeat(2, 1)


def folder_of(folder: Path, *pictures: np.ndarray) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{i}.png")
    return image_datalist(folder)


def test_the_error_of_a_chequered_pattern(tmp_path: Path) -> None:
    """Levels 100 and 120 become 110 everywhere: an error of 10 levels at every pixel, and a consistent mean."""
    datalist = folder_of(tmp_path, checker(100, 120))
    summary = evaluate_super_resolution(resolver(), datalist, size=SIZE)
    for name in ("output", "bicubic"):  # the condition is constant, and so is its interpolation
        assert summary["means"][name]["psnr"] == pytest.approx(20 * math.log10(25.5), abs=1e-3)
        assert summary["means"][name]["consistency"] == pytest.approx(0, abs=1e-8)
    # constant against varying: the structure term is C2 / (var + C2), the means agree; var = (10/255)^2
    c2, variance = 0.03**2, (10 / 255) ** 2
    assert summary["means"]["output"]["ssim"] == pytest.approx(c2 / (variance + c2), rel=1e-2)
    assert (summary["pictures"], summary["exact"], summary["spread"], summary["failed"]) == (1, 0, None, {})


def test_an_offset_is_inconsistent_and_exactness_is_counted(tmp_path: Path) -> None:
    datalist = folder_of(tmp_path, blocks(0), blocks(1))
    exact = evaluate_super_resolution(resolver(), datalist, size=SIZE)
    assert exact["exact"] == 2
    assert exact["means"]["output"]["psnr"] is None  # infinite
    assert exact["means"]["output"]["ssim"] == pytest.approx(1, abs=1e-6)
    assert exact["means"]["bicubic"]["psnr"] < 40
    shifted = evaluate_super_resolution(resolver(offset=0.02), datalist, size=SIZE)["means"]["output"]
    assert shifted["psnr"] == pytest.approx(40, abs=1e-3)  # 0.02 of [-1, 1] is 0.01 of [0, 1]
    assert shifted["consistency"] == pytest.approx(1e-4 * 1e5, rel=1e-3)


def test_members_their_mean_and_their_spread(tmp_path: Path) -> None:
    datalist = folder_of(tmp_path / "in", blocks(0))
    noise = 0.05
    network = resolver(members=3, noise=noise)
    summary = evaluate_super_resolution(network, datalist, tmp_path / "out", size=SIZE)
    errors = KeyedNoise(0, [("0.png", member) for member in range(3)]).randn((3, 3, SIZE, SIZE)) * noise / 2
    psnr = [-10 * math.log10(float(e.square().mean())) for e in (errors.mean(dim=0), errors[0])]
    assert summary["means"]["output"]["psnr"] == pytest.approx(psnr[0], abs=1e-3)
    assert summary["means"]["sample"]["psnr"] == pytest.approx(psnr[1], abs=1e-3)
    spread = errors.var(dim=0, correction=0).mean(dim=0).sqrt().mean()
    assert summary["spread"] == pytest.approx(float(spread), rel=1e-4)
    (row,) = csv.DictReader((tmp_path / "out" / "pictures.csv").open(encoding="utf-8"))
    assert (row["picture"], row["lpips"]) == ("0.png", "")
    assert float(row["psnr_output"]) == pytest.approx(psnr[0], abs=1e-3)
    assert float(row["spread"]) == pytest.approx(float(spread), rel=1e-4)
    assert json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8")) == summary
    text = format_picture_summary(summary)
    assert f"output{psnr[0]:>13.2f}" in text
    assert "members 3" in text


def test_batches_change_nothing_and_bad_pictures_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_of(tmp_path, blocks(0), checker(90, 130), blocks(2))
    Image.fromarray(checker(0, 255, size=12)).save(tmp_path / "small.png")
    (tmp_path / "1b.png").write_bytes(b"no picture")
    datalist = image_datalist(tmp_path)
    network = resolver(noise=0.1)
    summaries = [evaluate_super_resolution(network, datalist, size=SIZE, batch_size=n) for n in (1, 3)]
    assert summaries[0]["means"]["output"] == pytest.approx(summaries[1]["means"]["output"])
    assert sorted(summaries[0]["failed"]) == ["1b.png", "small.png"]
    assert "its shorter side has 12 pixels, below 16" in summaries[0]["failed"]["small.png"]
    assert summaries[0]["pictures"] == 3
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 4


def test_what_cannot_be_scored_is_an_error(tmp_path: Path) -> None:
    datalist = folder_of(tmp_path, checker(0, 1, size=8))
    with pytest.raises(InputError, match="no picture could be scored"):
        evaluate_super_resolution(resolver(), datalist, size=SIZE)
    with pytest.raises(InputError, match="15 is no multiple of the factor 2"):
        evaluate_super_resolution(resolver(), datalist, size=15)


class MeanColours(nn.Module):
    """Three features and as many logits of a picture: its mean colours."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.float().mean(dim=(2, 3)) / 255
        return mean, 10 * mean


def test_fid_of_sets_against_the_full_matrices(tmp_path: Path) -> None:
    torch.jit.script(MeanColours()).save(str(tmp_path / "inception.pt"))
    pictures = [blocks(seed) for seed in range(6)]
    datalist = folder_of(tmp_path / "in", *pictures)
    given: dict[str, Any] = {"size": SIZE, "inception": tmp_path / "inception.pt", "batch_size": 4}
    assert evaluate_super_resolution(resolver(), datalist, **given)["fid"] == pytest.approx(0, abs=1e-6)
    # a shift of all colours by 5 levels: equal covariances, so the distance is 3 (5/255)^2
    shifted = evaluate_super_resolution(resolver(offset=10 / 255), datalist, **given)
    assert shifted["fid"] == pytest.approx(3 * (5 / 255) ** 2, rel=1e-2)
    p = torch.from_numpy(10 * (np.stack(pictures) + 5.0) / 255).mean(dim=(1, 2)).softmax(dim=1)
    score = (p * (p.log() - p.mean(dim=0).log())).sum(dim=1).mean().exp()
    assert shifted["inception_score"] == pytest.approx(float(score), rel=1e-4)


def test_a_sheet_by_hand() -> None:
    small = torch.tensor([[-1.0, 1.0], [0.0, 0.5]]).reshape(1, 1, 2, 2).repeat(2, 1, 1, 1)
    large = torch.full((2, 3, 4, 4), -0.5)
    sheet = contact_sheet({"a": small, "b": large})
    assert sheet.shape == (3, HEADING + 2 * (4 + GAP), 4 + GAP + 4)
    top = HEADING + 4 + GAP  # of the second row
    expected = small[0, 0].repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(sheet[1, top : top + 4, :4], expected)
    assert torch.equal(sheet[:, top : top + 4, 4 + GAP :], large[0])
    assert bool((sheet[:, HEADING:, 4 : 4 + GAP] == 1).all())
    assert bool((sheet[:, HEADING + 4 : top] == 1).all())
    assert bool((sheet[:, :HEADING] < 0).any())  # letters
    with pytest.raises(ValueError, match="make no sheet"):
        contact_sheet({"a": small, "b": large[:1]})


# --- the ablation -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    return load_script("ablation_sr")


def result(*psnr: float, lpips: float | None = None) -> dict[str, Any]:
    """Of pictures with these values; SSIM is a hundredth of them."""
    quality = {"psnr": fmean(psnr), "ssim": 0.5, "consistency": 2.0}
    made_with = {"iterations": 100, "guidance_iterations": 25, "steps": 20, "settings": ["sr_8_64.yaml"]}
    common = {"parameters": 1_500_000, "pictures": len(psnr), "size": 64, "factor": 8, "device": "cpu", "lpips": lpips}
    scores = {"psnr": [*psnr], "ssim": [value / 100 for value in psnr]}
    return {
        "made_with": made_with,
        "output": quality,
        "bicubic": {**quality, "psnr": 20.0},
        "of_pictures": scores,
        **common,
    }


def test_the_table_shows_means_and_deviations_of_seeds(ablation: ModuleType, tmp_path: Path) -> None:
    results = {"b3": [result(22.0, 22.0)], "b4": [result(22.0, 22.0, lpips=0.25), result(22.5, 23.5, lpips=0.35)]}
    ablation.write_table(results, tmp_path)
    text = (tmp_path / "ablation.md").read_text(encoding="utf-8")
    assert "| bicubic | | | 20.00 | 0.500 | 2.00 | | |" in text
    assert "| B3 encoder and decoder | 23.24 | 0.66 | 22.00 | 0.500 | 2.00 |  | 1.50 M |" in text
    assert "| B4 encoder | 23.51 | 0.68 | 22.50 ± 0.71 | 0.500 ± 0.000 | 2.00 ± 0.00 | 0.300 ± 0.071 | 1.50 M |" in text
    rows = list(csv.DictReader((tmp_path / "ablation.csv").open(encoding="utf-8")))
    found = [(row["row"], row["run"], float(row["psnr"]), row["lpips"]) for row in rows]
    assert found == [("b3", "0", 22.0, ""), ("b4", "0", 22.0, "0.25000"), ("b4", "1", 23.0, "0.35000")]


def test_claims_are_paired_by_picture_and_by_seed(ablation: ModuleType) -> None:
    """B4 is half a dB ahead of B1 on every picture, which the spread among pictures does not blur."""
    results = {
        "b1": [result(18.0, 25.0), result(19.0, 24.0)],
        "b4": [result(18.25, 25.25), result(19.75, 24.75)],
        "b5": [result(18.25, 25.25)],
    }
    one, other = ablation.claims(results)
    assert one.startswith("- B4 less B1: +0.50 dB (+0.50 to +0.50; by seed +0.25, +0.75), +0.0050 SSIM (+0.0050 to")
    assert other.startswith("- B5 less B4: +0.00 dB (+0.00 to +0.00; by seed +0.00)")


def test_one_command_trains_scores_and_continues(
    ablation: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for name, count in (("train", 8), ("test", 3)):
        (tmp_path / name).mkdir()
        for i in range(count):
            picture = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / name / f"{i}.png")
    command = ["ablation_sr.py", "--dataset-dir", str(tmp_path / "train"), "--test-dir", str(tmp_path / "test")]
    command += ["--output", str(tmp_path / "out"), "--settings", str(REPO / "configs" / "sr_smoke.yaml")]
    command += ["--rows", "regression", "b4", "b5", "--iterations", "2", "--epoch", "1", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", command)
    ablation.main()
    table = (tmp_path / "out" / "ablation.md").read_text(encoding="utf-8")
    assert [line.split(" | ")[0] for line in table.splitlines()[3:6]] == [
        "| Regression",
        "| B4 encoder",
        "| B5 = B4 with guidance",
    ]
    assert Image.open(tmp_path / "out" / "sheet.png").size[0] == 6 * 16 + 5 * GAP
    state = torch.load(tmp_path / "out" / "seed0" / "b4" / "checkpoint.pt", weights_only=True)
    assert state["place"] == {"epoch": 2, "iteration": 2}

    monkeypatch.setattr(ablation, "train_row", lambda *a: pytest.fail("a finished row was trained again"))
    ablation.main()
    assert (tmp_path / "out" / "ablation.md").read_text(encoding="utf-8") == table
    monkeypatch.setattr(sys, "argv", [*command, "--finished", "--seeds", "0", "1"])
    ablation.main()  # of seed 1 there is nothing yet
    assert (tmp_path / "out" / "ablation.md").read_text(encoding="utf-8") == table
    monkeypatch.setattr(sys, "argv", [*command, "--iterations", "3"])
    with pytest.raises(InputError, match="made with other settings"):
        ablation.main()
