"""Refinement scored on phantoms: what is compared, by hand where it can be. The networks are known functions."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import REPO
from resolvers import noisy_resolver, small_bundle
from stubs import Thresholder

from cgdpm_med.apps.evaluate_volumes import (
    evaluate_acdc_volumes,
    evaluate_volumes,
    evenly,
    format_volume_summary,
    read_pair,
)
from cgdpm_med.apps.resolver import SuperResolver
from cgdpm_med.diffusion.degradation import KSpaceDegradation
from cgdpm_med.files import InputError
from cgdpm_med.models.description import CoarseSliceInput
from cgdpm_med.phantom import write_phantom_dataset

sys.path.insert(0, str(REPO))

from benchmarks.__main__ import main
from benchmarks.cardiac_sr import dice_claims, segmenter_of, segmenter_settings

pytestmark = pytest.mark.filterwarnings("ignore::cgdpm_med.volumes.HeaderWarning")
SIZE: dict[str, Any] = {"shape": (50, 46, 3), "spacing": (2.8, 2.8, 24.0), "num_frames": 6}


def scanner(strength: float = 0.3, factor: int = 4) -> SuperResolver:
    return noisy_resolver(strength, factor, KSpaceDegradation(factor), input=CoarseSliceInput(16))


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantoms")
    write_phantom_dataset(root, patients=3, seed=0, **SIZE)
    return root


def item(path: Path, data: np.ndarray, **label: str) -> dict[str, str]:
    nib.save(nib.Nifti1Image(data.astype(np.float32), np.diag([-1.5, -1.5, 8, 1])), path)
    return {"image": str(path), "key": path.name, **label}


def test_methods_are_scored_side_by_side(patients: Path, tmp_path: Path) -> None:
    rivals = {"nothing": scanner(0.0)}
    summary = evaluate_acdc_volumes(scanner(), patients, "validation", tmp_path, rivals=rivals, segmenter=Thresholder())
    found = summary["methods"]
    assert list(found) == ["zero-filled", "bicubic", "refined", "nothing", "true"]
    for measure in ("psnr", "ssim", "dice"):  # without a residual the network is zero-filling
        assert found["nothing"][measure] == pytest.approx(found["zero-filled"][measure], abs=1e-3)
    assert found["refined"]["psnr"] < found["zero-filled"]["psnr"]
    assert all(found[name]["off_largest"] < 1e-4 for name in ("zero-filled", "refined", "nothing"))
    assert found["bicubic"]["off_largest"] > 1e-3
    assert found["true"]["dice"] > 0
    assert summary["volumes"] == 2
    rows = list(csv.DictReader((tmp_path / "volumes.csv").open()))
    assert len(rows) == 2 * 5
    assert json.loads((tmp_path / "summary.json").read_text())["methods"] == found
    assert "zero-filled" in format_volume_summary(summary)


def test_psnr_by_hand(tmp_path: Path) -> None:
    """A wave that the coarse grid cannot hold is what zero-filling lacks."""
    i = np.arange(32)
    slow, fast = 100 * np.cos(2 * np.pi * i / 32), 20 * np.cos(2 * np.pi * 10 * i / 32)
    data = np.repeat((slow + fast)[:, None, None], 32, 1).repeat(2, 2)
    found = evaluate_volumes(scanner(0.0), [item(tmp_path / "a.nii", data)])["methods"]["zero-filled"]
    low, high = np.percentile(data.astype(np.float32), (0.5, 99.5))
    assert found["psnr"] == pytest.approx(-10 * np.log10((20 / (high - low)) ** 2 / 2), abs=1e-3)
    assert found["dice"] is None


def test_a_pair_is_cut_from_the_middle(tmp_path: Path) -> None:
    """Sides are cut to multiples of the factor, wherever the slices are stored."""
    rng = np.random.default_rng(0)
    data = rng.normal(size=(19, 22, 2))
    pair = read_pair(item(tmp_path / "a.nii", data), KSpaceDegradation(4))
    assert pair.fine.data.shape == (16, 20, 2)
    assert pair.coarse.shape == (4, 5, 2)
    np.testing.assert_array_equal(pair.fine.data, data[1:17, 1:21].astype(np.float32))
    file = tmp_path / "b.nii"
    nib.save(nib.Nifti1Image(np.moveaxis(data, 2, 0).astype(np.float32), np.diag([8.0, -1.5, -1.5, 1])), file)
    turned = read_pair({"image": str(file), "key": "b"}, KSpaceDegradation(4))
    np.testing.assert_array_equal(turned.coarse, np.moveaxis(pair.coarse, 2, 0))


def test_lpips_takes_every_slice(patients: Path, tmp_path: Path) -> None:
    class Distance(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return (a - b).abs().mean(dim=(1, 2, 3))

    torch.jit.script(Distance()).save(tmp_path / "d.ts")
    found = evaluate_acdc_volumes(scanner(), patients, "validation", lpips=tmp_path / "d.ts", most=1)["methods"]
    assert 0 < found["zero-filled"]["lpips"] < found["refined"]["lpips"]


def test_patients_are_taken_with_all_of_their_volumes(patients: Path) -> None:
    asked: list[str] = []

    def remember(key: str, compute: Any) -> Any:
        asked.append(key.split("_")[0])
        return {"refined": {"psnr": 1.0}}

    evaluate_acdc_volumes(scanner(), patients, "all", patients=2, remember=remember)
    first, last = sorted(set(asked))
    assert asked == [first, first, last, last]
    assert evenly([1, 2, 3, 4, 5], 3) == [1, 3, 5]
    evaluate_acdc_volumes(scanner(), patients, "all", patients=[last], remember=remember)
    assert asked[4:] == [last, last]
    with pytest.raises(InputError, match="nobody"):
        evaluate_acdc_volumes(scanner(), patients, "all", patients=["nobody"])


def test_bad_volumes_are_named_and_the_others_scored(tmp_path: Path) -> None:
    good = item(tmp_path / "a.nii", np.random.default_rng(0).normal(size=(16, 16, 2)))
    small = item(tmp_path / "b.nii", np.random.default_rng(0).normal(size=(3, 16, 2)))
    summary = evaluate_volumes(scanner(), [small, good])
    assert list(summary["failed"]) == ["b.nii"]
    assert summary["volumes"] == 1
    with pytest.raises(InputError, match="no volume"):
        evaluate_volumes(scanner(), [small])


def test_what_was_scored_is_remembered(tmp_path: Path) -> None:
    asked = []

    def remember(key: str, compute: Any) -> Any:
        asked.append(key)
        return {"refined": {"psnr": 1.0}}

    items = [item(tmp_path / "a.nii", np.random.default_rng(0).normal(size=(16, 16, 2)))]
    assert evaluate_volumes(scanner(), items, remember=remember)["methods"]["refined"]["psnr"] == 1
    assert asked == ["a.nii"]


def test_the_benchmark_runs_on_phantoms(tmp_path: Path) -> None:
    weights = small_bundle(tmp_path / "small", CoarseSliceInput(16), KSpaceDegradation(4), 4) / "models" / "model.pt"
    words = ["cardiac_sr", "--quick", "--no-dice", "--volumes", "1", "--output", str(tmp_path)]
    assert main([*words, "--weights", str(weights), "--regression", str(weights)]) == 0
    result = json.loads((tmp_path / "quick" / "cardiac_sr.json").read_text())
    claims = {claim["name"]: claim["value"] for claim in result["claims"]}
    assert claims["PSNR above the regression"] == 0
    assert claims["largest disagreement with the coarse scan"] < 1e-3


def test_the_benchmark_segments_at_the_timesteps_that_are_shipped() -> None:
    arguments = argparse.Namespace(segment_members=2, segment_steps=None, device="cpu")
    settings = segmenter_settings(segmenter_of(arguments))
    assert (settings["timesteps"], settings["members"], settings["guidance_scale"]) == ((999, 666), 2, 0)
    arguments.segment_steps = 2
    assert segmenter_settings(segmenter_of(arguments))["timesteps"] is None


def test_the_benchmark_tells_which_part_of_the_lost_dice_comes_back() -> None:
    dice = {"true": 92.0, "zero-filled": 86.0, "bicubic": 86.5, "refined": 88.0}
    nothing = {**dice, "refined": 86.0}
    (claim,) = dice_claims({"a_1": dice, "a_2": dice, "b_1": nothing, "b_2": nothing})
    assert claim.value == pytest.approx(1 / 6)
    assert claim.spread == pytest.approx((0, 1 / 3))
    assert dice_claims({"a_1": dice})[0].spread is None
