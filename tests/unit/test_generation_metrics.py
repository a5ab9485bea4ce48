"""FID, Inception Score and LPIPS against closed forms and straightforward matrix computations."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn

from cgdpm_med.files import InputError
from cgdpm_med.metrics.generation import (
    FeatureStatistics,
    Inception,
    InceptionOutput,
    InceptionScore,
    Lpips,
    frechet_distance,
    generation_scores,
)


def statistics(features: Tensor, batch: int = 7) -> FeatureStatistics:
    result = FeatureStatistics()
    for part in features.split(batch):
        result.update(part)
    return result


def correlated(n: int, d: int, seed: int, offset: float = 0.0) -> Tensor:
    """Features with a random covariance, far from the origin, where naive sums of squares lose digits."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator)
    return torch.randn(n, d, generator=generator) @ mixing + 1000 + offset


def fid_by_matrices(features: Tensor, others: Tensor) -> float:
    x, y = features.double().numpy(), others.double().numpy()
    s, r = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    shift = x.mean(0) - y.mean(0)
    return float(shift @ shift + np.trace(s + r - 2 * np.real(sqrtm(s @ r))))


# --- streaming statistics ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 7, 40, 100])
def test_streamed_statistics_are_numpys(batch: int) -> None:
    features = correlated(40, 5, seed=0)
    result = statistics(features, batch)
    assert result.count == 40
    np.testing.assert_allclose(result.mean, features.double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(result.covariance, np.cov(features.double().numpy(), rowvar=False), rtol=1e-8)


def test_an_empty_batch_changes_nothing() -> None:
    result = statistics(correlated(10, 3, seed=0))
    before = result.covariance.clone()
    result.update(torch.zeros(0, 3))
    assert result.count == 10
    assert torch.equal(result.covariance, before)


def test_statistics_survive_a_file(tmp_path: Path) -> None:
    original = statistics(correlated(30, 4, seed=1))
    original.save(tmp_path / "real.npz")
    loaded = FeatureStatistics.load(tmp_path / "real.npz")
    assert loaded.count == 30
    torch.testing.assert_close(loaded.mean, original.mean, rtol=0, atol=0)
    torch.testing.assert_close(loaded.covariance, original.covariance, rtol=1e-14, atol=0)
    # a reference of others, with arrays beside mu and sigma
    np.savez(tmp_path / "adm.npz", mu=original.mean, sigma=original.covariance, arr_0=np.zeros(3, np.uint8))
    adm = FeatureStatistics.load(tmp_path / "adm.npz")
    assert frechet_distance(adm, original) == pytest.approx(0, abs=1e-6)


def test_bad_statistics_files_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    np.savez(tmp_path / "b.npz", mu=np.zeros(3))
    (tmp_path / "c.npz").write_bytes(b"nothing")
    for name, message in (("a", "do not belong together"), ("b", "sigma"), ("c", "cannot be read"), ("d", "cannot")):
        with pytest.raises(InputError, match=rf"{name}\.npz: .*{message}"):
            FeatureStatistics.load(tmp_path / f"{name}.npz")


def test_bad_features_are_refused() -> None:
    result = statistics(torch.rand(4, 3))
    with pytest.raises(InputError, match=r"features of shape \(4, 2\)"):
        result.update(torch.rand(4, 2))
    with pytest.raises(InputError, match="not finite"):
        result.update(torch.full((1, 3), math.nan))
    with pytest.raises(InputError, match="covariance of 1"):
        _ = statistics(torch.rand(1, 3)).covariance


# --- Frechet distance -------------------------------------------------------------------------------------------------


def test_a_set_has_no_distance_to_itself() -> None:
    features = correlated(200, 6, seed=2)
    assert frechet_distance(statistics(features, 7), statistics(features, 64)) == pytest.approx(0, abs=1e-4)


def test_distance_equals_the_matrix_computation() -> None:
    x, y = correlated(150, 6, seed=3), correlated(220, 6, seed=4, offset=0.5)
    assert frechet_distance(statistics(x), statistics(y)) == pytest.approx(fid_by_matrices(x, y), abs=1e-4)


def test_distance_of_known_gaussians() -> None:
    # one feature with variances 4 and 9, means 1 apart: 1 + (2 - 3)^2; a second with equal ones adds nothing
    base = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    unit = torch.cat([base, base.flip(0)]) * math.sqrt(3 / 4)  # mean 0, unbiased variance 1
    second = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]], dtype=torch.float64)
    x, y = torch.cat([2 * unit, second], 1), torch.cat([3 * unit + 1, second], 1)
    assert frechet_distance(statistics(x), statistics(y)) == pytest.approx(2, abs=1e-6)


def test_different_features_are_refused() -> None:
    with pytest.raises(InputError, match="3 features of generated pictures and 4"):
        frechet_distance(statistics(torch.rand(9, 3)), statistics(torch.rand(9, 4)))


# --- Inception Score --------------------------------------------------------------------------------------------------


def score(logits: Tensor, split_size: int = 5000, batch: int = 7) -> tuple[float, float]:
    result = InceptionScore(split_size)
    for part in logits.split(batch):
        result.update(part)
    return result.compute()


def test_uniform_predictions_score_one() -> None:
    assert score(torch.zeros(30, 10)) == pytest.approx((1, 0), abs=1e-12)


@pytest.mark.parametrize("classes", [2, 10])
def test_certain_and_balanced_predictions_score_the_number_of_classes(classes: int) -> None:
    one_hot = torch.eye(classes).repeat(6, 1)
    assert score(1000 * one_hot)[0] == pytest.approx(classes, abs=1e-9)
    assert score(one_hot.log())[0] == pytest.approx(classes, abs=1e-9)  # log-probabilities, with minus infinity


def test_certain_predictions_of_one_class_score_one() -> None:
    assert score(1000 * torch.eye(10)[:1].repeat(20, 1))[0] == pytest.approx(1, abs=1e-12)


def is_by_loops(p: np.ndarray) -> float:
    marginal = p.mean(0)
    divergences = [sum(pk * math.log(pk / qk) for pk, qk in zip(row, marginal, strict=True)) for row in p]
    return math.exp(np.mean(divergences))


@pytest.mark.parametrize("batch", [1, 6, 8, 50])
def test_splits_equal_plain_loops(batch: int) -> None:
    logits = 2 * torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    p = logits.double().softmax(1).numpy()
    parts = [is_by_loops(p[i : i + 8]) for i in (0, 8, 16)]
    assert score(logits, split_size=8, batch=batch) == pytest.approx((np.mean(parts), np.std(parts)), rel=1e-9)
    assert score(logits, batch=batch)[0] == pytest.approx(is_by_loops(p), rel=1e-9)


def test_a_score_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="no pictures"):
        InceptionScore().compute()


# --- TorchScript files ------------------------------------------------------------------------------------------------


class StyleGanLike(nn.Module):
    """Features are the channel means in levels; class k has probability proportional to its channel's mean."""

    def forward(self, img: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
        assert img.dtype == torch.uint8
        means = img.to(torch.float32).mean(dim=[2, 3])
        if return_features:
            return means
        assert no_output_bias
        return means / means.sum(dim=1, keepdim=True)


class TwoOutputs(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        means = images.to(torch.float32).mean(dim=[2, 3])
        return means, means.log()


class FeaturesOnly(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.to(torch.float32).mean(dim=[2, 3])


class FeatureMaps(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.to(torch.float32)


def saved(module: nn.Module, path: Path) -> Path:
    torch.jit.script(module).save(str(path))
    return path


def pictures(n: int, seed: int = 0, size: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(1, 256, (n, 3, size, size), generator=generator)
    return levels / 255


@pytest.mark.parametrize("module", [StyleGanLike(), TwoOutputs()])
def test_both_kinds_of_inception_file(module: nn.Module, tmp_path: Path) -> None:
    inception = Inception(saved(module, tmp_path / "inception.pt"))
    images = pictures(3)
    features, logits = inception(images)
    means = (255 * images).mean(dim=(2, 3))
    torch.testing.assert_close(features, means)
    assert logits is not None
    torch.testing.assert_close(logits.double().softmax(1), (means / means.sum(1, keepdim=True)).double())


def test_scores_of_streamed_sets(tmp_path: Path) -> None:
    inception = Inception(saved(StyleGanLike(), tmp_path / "inception.pt"))
    generated, real = pictures(40, seed=1), pictures(50, seed=2) ** 2
    seen: list[int] = []
    scores = generation_scores(generated.split(9), iter(real.split(11)), inception, progress=seen.append)
    levels = [(255 * x).round().mean(dim=(2, 3)) for x in (generated, real)]
    p = (levels[0] / levels[0].sum(1, keepdim=True)).double().numpy()
    assert scores.fid == pytest.approx(fid_by_matrices(*levels), abs=1e-4)
    assert scores.inception_score == pytest.approx(is_by_loops(p), rel=1e-6)
    assert scores.pictures == 40
    assert sum(seen) == 90
    known = FeatureStatistics()
    known.update(levels[1])
    assert generation_scores([generated], known, inception).fid == pytest.approx(scores.fid, abs=1e-6)


def test_no_score_without_logits(tmp_path: Path) -> None:
    inception = Inception(saved(FeaturesOnly(), tmp_path / "inception.pt"))
    scores = generation_scores([pictures(9)], [pictures(9)], inception)
    assert scores[0] == pytest.approx(0, abs=1e-4)
    assert scores[1:3] == (None, None)


def test_what_is_no_inception_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.pt: no such file"):
        Inception(tmp_path / "absent.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=r"weights\.pt: is no TorchScript file"):
        Inception(tmp_path / "weights.pt")
    with pytest.raises(InputError, match=r"maps\.pt: gives outputs of shape \(2, 3, 4, 4\) for 2 pictures"):
        Inception(saved(FeatureMaps(), tmp_path / "maps.pt"))(pictures(2))


@pytest.mark.parametrize(
    ("images", "message"),
    [(torch.zeros(1, 1, 4, 4), "RGB batches"), (torch.full((1, 3, 4, 4), 1.1), r"leave \[0, 1\]")],
)
def test_other_images_are_refused(images: Tensor, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        Inception(saved(FeaturesOnly(), tmp_path / "inception.pt"))(images)


def test_any_function_will_do() -> None:
    def inception(images: Tensor) -> InceptionOutput:
        return InceptionOutput(images.flatten(1)[:, :2], None)

    x, y = pictures(30, seed=5), pictures(30, seed=6)
    expected = fid_by_matrices(x.flatten(1)[:, :2], y.flatten(1)[:, :2])
    assert generation_scores([x], [y], inception).fid == pytest.approx(expected, abs=1e-6)


class PairDistance(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().mean(dim=[1, 2, 3], keepdim=True)


class DistanceOf(nn.Module):
    """A distance by another reduction: for each pair, for each pixel, their mean alone, or something else."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        d = (a - b).abs()
        if self.form == "pairs":
            return d.mean(dim=[1, 2, 3])
        if self.form == "pixels":
            return d.mean(dim=1, keepdim=True)
        return d.mean() if self.form == "mean" else d[0, 0]


class LpipsFeatures(nn.Module):
    def forward(self, img: Tensor, resize_images: bool = True, return_lpips: bool = False) -> Tensor:
        assert return_lpips
        assert not resize_images
        return img.mean(dim=[2, 3])


def test_lpips_of_both_kinds_of_file(tmp_path: Path) -> None:
    a, b = pictures(3, seed=1), pictures(3, seed=2)
    pairs = Lpips(saved(PairDistance(), tmp_path / "pairs.pt"))
    assert pairs(a, b) == pytest.approx(2 * float((a - b).abs().mean()), rel=1e-5)
    features = Lpips(saved(LpipsFeatures(), tmp_path / "features.pt"))
    expected = (255 * (a - b)).mean(dim=(2, 3)).square().sum(1).mean()
    assert features(a, b) == pytest.approx(float(expected), rel=1e-4)
    assert pairs(a, a) == features(a, a) == 0
    with pytest.raises(InputError, match="pairs of one shape"):
        pairs(a, b[:2])


@pytest.mark.parametrize("form", ["pairs", "pixels", "mean"])
@pytest.mark.parametrize("batch", [1, 3])
def test_lpips_of_files_with_other_shapes(form: str, batch: int, tmp_path: Path) -> None:
    a, b = pictures(batch, seed=1), pictures(batch, seed=2)
    score = Lpips(saved(DistanceOf(form), tmp_path / "file.pt"))
    assert score(a, b) == pytest.approx(2 * float((a - b).abs().mean()), rel=1e-5)


def test_lpips_of_a_file_that_returns_something_else(tmp_path: Path) -> None:
    score = Lpips(saved(DistanceOf("rows"), tmp_path / "file.pt"))
    with pytest.raises(InputError, match="3 pairs"):
        score(pictures(3, seed=1), pictures(3, seed=2))
