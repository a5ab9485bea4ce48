"""What a sample averages to is its condition: through windows, guidance, members, volumes and files.

The networks are seeded and untrained, so that nothing but the projection makes their samples agree.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from small_networks import small_network
from torch import Tensor, nn

from cgdpm_med import (
    DiffusionPredictor,
    ImageTarget,
    NoiseSchedule,
    ResidualTarget,
    ScaledGuide,
    SuperResolver,
    evaluate_super_resolution,
    image_datalist,
    super_resolve,
)
from cgdpm_med.diffusion.guidance import guidance_weighting
from cgdpm_med.diffusion.targets import Target

FACTOR = 4
SCHEDULE = NoiseSchedule(100, "cosine", "sample")
RESIDUAL = ResidualTarget(3, FACTOR, scale=20.0)  # details so small that nothing is clipped
ROUNDING = 2e-6  # of float32, on [-1, 1]


def unet(seed: int = 0) -> nn.Module:
    return small_network(seed, in_channels=3, cond_channels=3, cond_scale=FACTOR)


def resolver(target: Target = RESIDUAL, window: int | None = 16, **settings: Any) -> SuperResolver:
    chosen = {"steps": 3, "members": 2, "schedule": SCHEDULE, "precision": "float32", **settings}
    return SuperResolver(DiffusionPredictor(chosen.pop("denoiser", unet()), target=target, **chosen), window)


def coarse(height: int = 13, width: int = 9) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1)) - 0.5


def disagreement(members: Tensor, y: Tensor) -> float:
    """The largest difference of an average from its condition."""
    return float((F.avg_pool2d(members.flatten(0, 1), FACTOR) - y.repeat(len(members), 1, 1, 1)).abs().max())


def guided() -> dict[str, Any]:
    guide = ScaledGuide(unet(seed=5), SCHEDULE, guidance_weighting(SCHEDULE))
    return {"guide": guide, "guidance_scale": 1.0}


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize(
    ("target", "settings"),
    [
        (RESIDUAL, dict),
        (RESIDUAL, lambda: {"method": "ddpm"}),
        (RESIDUAL, guided),
        (ResidualTarget(3, FACTOR, scale=20.0, project_steps=True), dict),
    ],
    ids=["ddim", "ddpm", "guided", "every step"],
)
def test_every_sample_agrees(target: Target, settings: Callable[[], dict[str, Any]], window: int | None) -> None:
    y = coarse()
    members = resolver(target, window, **settings())(y)
    assert (members[0] - members[1]).abs().max() > 1e-3
    assert disagreement(members, y) < ROUNDING


class Dark(nn.Module):
    """A network of pictures that are too dark by a fifth, with noise of its own."""

    def forward(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return F.interpolate(context, scale_factor=float(FACTOR)) - 0.2 + 0.01 * x_t.clamp(-3, 3)


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize(("project", "least", "most"), [(True, 0.0, ROUNDING), (False, 0.1, 0.3)])
def test_a_picture_is_projected_where_it_is_asked(project: bool, least: float, most: float, window: int | None) -> None:
    """As for the weights of ADM, whose network makes the picture itself."""
    y = coarse()
    members = resolver(ImageTarget(3, FACTOR, project=project), window, denoiser=Dark())(y)
    assert least <= disagreement(members, y) < most


def test_what_remains_is_clipped() -> None:
    """Averages of white and black cannot be kept where details would leave the range; all others are."""
    y = coarse()
    y[0, :, 2:4, 2:4], y[1, :, 5, 5] = 1, -1
    members = resolver()(y)
    assert members.abs().max() <= 1
    inside = F.max_pool2d(members.abs().flatten(0, 1), FACTOR) < 1
    different = (F.avg_pool2d(members.flatten(0, 1), FACTOR) - y.repeat(2, 1, 1, 1)).abs()
    assert 0 < (~inside).float().mean() < 0.1
    assert different[inside].max() < ROUNDING
    assert different[~inside].max() > ROUNDING


# --- files ------------------------------------------------------------------------------------------------------------


def averaged(array: NDArray[Any]) -> NDArray[np.float64]:
    """Means of blocks along the first two axes."""
    rows, columns = (n // FACTOR for n in array.shape[:2])
    return array.reshape(rows, FACTOR, columns, FACTOR, *array.shape[2:]).astype(np.float64).mean(axis=(1, 3))


def written(folder: Path, name: str, array: NDArray[Any], members: int) -> NDArray[Any]:
    """The result for a picture file."""
    folder.joinpath("in").mkdir()
    Image.fromarray(array).save(folder / "in" / name)
    result = super_resolve(resolver(members=members), folder / "in", folder / "out")
    assert result["failed"] == {}
    return np.asarray(Image.open(folder / "out" / name))


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize(
    ("shape", "low", "high", "dtype"),
    [((11, 14, 3), 60, 190, np.uint8), ((11, 14), 60, 190, np.uint8), ((11, 14), 16_000, 49_000, np.uint16)],
    ids=["colour", "grey", "grey of 16 bits"],
)
def test_files_agree_to_their_rounding(
    shape: tuple[int, ...], low: int, high: int, dtype: type[np.integer[Any]], members: int, tmp_path: Path
) -> None:
    """Every pixel is rounded by half a level at most, so their mean is."""
    array = np.random.default_rng(0).integers(low, high, shape, dtype=dtype)
    fine = written(tmp_path, "a.png", array, members)
    assert fine.dtype == dtype
    assert fine.shape == (4 * 11, 4 * 14, *shape[2:])
    levels = np.iinfo(dtype).max
    assert np.abs(averaged(fine) - array).max() <= 0.5 + ROUNDING / 2 * levels
    assert np.abs(np.diff(fine.astype(int), axis=1)[:, 1::FACTOR]).max() > 0  # no pixel is merely repeated


def test_slices_of_a_volume_agree(tmp_path: Path) -> None:
    data = np.random.default_rng(0).uniform(200, 800, (9, 12, 2)).astype(np.float32)
    data[0, 0, 1], data[0, 1, 1] = (
        0,
        1000,
    )  # which become -1 and 1; details beside them are clipped, in this slice alone
    nib.save(nib.Nifti1Image(data, np.diag([1.5, 1.5, 8, 1])), tmp_path / "a.nii.gz")
    assert super_resolve(resolver(), tmp_path / "a.nii.gz", tmp_path / "out")["failed"] == {}
    fine = nib.load(tmp_path / "out" / "a.nii.gz").get_fdata()  # type: ignore[attr-defined]
    assert np.abs(averaged(fine) - data)[..., 0].max() < ROUNDING * 500


def test_evaluation_sees_it(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    array = np.random.default_rng(0).integers(60, 190, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "in" / "a.png")
    evaluate_super_resolution(resolver(), image_datalist(tmp_path / "in"), tmp_path / "out", size=32)
    summary = (tmp_path / "out" / "summary.json").read_text(encoding="utf-8")

    means = json.loads(summary)["means"]
    assert means["output"]["consistency"] < 1e5 * (0.5 / 255) ** 2  # the mean square of half a level, in 1e-5
    assert means["bicubic"]["consistency"] > 10 * means["output"]["consistency"]
