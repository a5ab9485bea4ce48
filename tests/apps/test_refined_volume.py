"""Volumes and cines made finer: agreement with the input, axes, frames, headers. The network is a known function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from resolvers import noisy_resolver

from cgdpm_med.apps.refined_volume import super_resolve_volume
from cgdpm_med.diffusion.degradation import KSpaceDegradation
from cgdpm_med.files import InputError
from cgdpm_med.models.description import CoarseSliceInput

AFFINE = np.diag([-1.5, -1.2, 8.0, 1.0])


def save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE, **zooms: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, affine)
    if data.ndim == 4:
        image.header.set_zooms((*image.header.get_zooms()[:3], zooms["seconds"]))
    nib.save(image, path)
    return path


def read(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)  # type: ignore[attr-defined]


def speckle(*shape: int, seed: int = 0, dtype: Any = np.int16) -> np.ndarray:
    return np.random.default_rng(seed).integers(-200, 1800, shape).astype(dtype)


def blocks(fine: np.ndarray, factor: int) -> np.ndarray:
    """Mean over factor x factor blocks of the first two axes, by plain loops."""
    x, y = (n // factor for n in fine.shape[:2])
    out = np.empty((x, y, *fine.shape[2:]))
    for i in range(x):
        for j in range(y):
            out[i, j] = fine[factor * i : factor * (i + 1), factor * j : factor * (j + 1)].mean(axis=(0, 1))
    return out


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("multiple", [2, 16])
def test_every_sample_agrees_with_the_input(dtype: Any, multiple: int, tmp_path: Path) -> None:
    """Though the noise leaves the range of intensities by far, is clipped there, and odd sizes are padded."""
    data = np.abs(speckle(7, 9, 3)).astype(dtype)
    network = noisy_resolver(strength=2.0, members=3)
    network.multiple = multiple
    result = super_resolve_volume(network, save(tmp_path / "a.nii.gz", data), tmp_path / "out")
    samples = read(tmp_path / "out" / "a_samples.nii.gz")
    assert samples.shape == (14, 18, 3, 3)
    extent = float(data.max()) - float(data.min())
    np.testing.assert_allclose(blocks(samples, 2), np.repeat(data[..., None], 3, -1), atol=1e-5 * extent)
    assert result.disagreement.largest < 1e-5
    assert samples.max() > data.max()  # MR has no greatest intensity
    assert (samples.std(-1) > 0).any()


def test_a_cine_is_refined_frame_by_frame(tmp_path: Path) -> None:
    data = speckle(6, 5, 3, 4)
    data[..., 1] //= 3  # a frame of another range
    seen: list[float] = []
    network = noisy_resolver(members=2)
    path = save(tmp_path / "cine.nii.gz", data, seconds=0.04)
    result = super_resolve_volume(network, path, tmp_path / "out", key="c", progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1)
    mean, deviation = (nib.load(tmp_path / "out" / f"cine{name}.nii.gz") for name in ("", "_std"))
    assert mean.shape == deviation.shape == (12, 10, 3, 4)
    np.testing.assert_allclose(mean.header.get_zooms(), (0.75, 0.6, 8, 0.04), rtol=1e-6)
    for t in range(4):
        alone = save(tmp_path / str(t) / "frame.nii.gz", data[..., t])
        super_resolve_volume(network, alone, tmp_path / "alone" / str(t), key="c")
        for name, whole in (("", mean), ("_std", deviation)):
            frame = read(tmp_path / "alone" / str(t) / f"frame{name}.nii.gz")
            np.testing.assert_array_equal(np.asanyarray(whole.dataobj)[..., t], frame)
        of_frame = read(tmp_path / "out" / f"cine_frame{t + 1:03d}_samples.nii.gz")
        np.testing.assert_array_equal(of_frame, read(tmp_path / "alone" / str(t) / "frame_samples.nii.gz"))
    assert len(result.facts["intensity"]) == 4
    assert len(result.files) == 6


def test_thick_slices_are_found_wherever_they_are_stored(tmp_path: Path) -> None:
    data = speckle(6, 5, 3)
    usual = super_resolve_volume(noisy_resolver(), save(tmp_path / "a.nii.gz", data), tmp_path / "1", key="a")
    turned = save(tmp_path / "b.nii.gz", np.moveaxis(data, 2, 0), np.diag([8.0, -1.5, -1.2, 1.0]))
    other = super_resolve_volume(noisy_resolver(), turned, tmp_path / "2", key="a")
    np.testing.assert_array_equal(read(other.files[0]), np.moveaxis(read(usual.files[0]), 2, 0))
    assert read(other.files[0]).shape == (3, 12, 10)
    np.testing.assert_allclose(nib.load(other.files[0]).header.get_zooms(), (8, 0.75, 0.6), rtol=1e-6)


def test_nothing_is_drawn_into_an_empty_slice(tmp_path: Path) -> None:
    data = speckle(6, 5, 3, 2)
    data[:, :, 1, 0] = 70  # one slice, and a whole frame
    data[..., 1] = -3
    path = save(tmp_path / "a.nii.gz", data, seconds=1)
    fine = read(super_resolve_volume(noisy_resolver(), path, tmp_path / "out").files[0])
    np.testing.assert_allclose(fine[:, :, 1, 0], 70, atol=1e-3)
    assert (fine[..., 1] == -3).all()
    assert np.ptp(fine[:, :, 0, 0]) > 100


def test_slices_together_or_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.nii.gz", speckle(6, 5, 4))
    together = read(super_resolve_volume(noisy_resolver(members=2), path, tmp_path / "1").files[0])
    monkeypatch.setattr("cgdpm_med.apps.refined_volume.MOST_AT_ONCE", 1)
    single = read(super_resolve_volume(noisy_resolver(members=2), path, tmp_path / "2").files[0])
    np.testing.assert_allclose(single, together, atol=1e-2)


def test_the_header_says_that_detail_is_synthetic(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", speckle(6, 5, 2))
    for file in super_resolve_volume(noisy_resolver(members=2), path, tmp_path / "out").files:
        assert b"SYNTHETIC" in bytes(nib.load(file).header["descrip"])  # type: ignore[attr-defined]


def test_a_result_beyond_the_limit_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.nii.gz", speckle(6, 5, 2))
    monkeypatch.setattr("cgdpm_med.volumes.grid.VOXEL_LIMIT", 12 * 10 * 2 * 2)
    super_resolve_volume(noisy_resolver(members=2), path, tmp_path / "out")
    with pytest.raises(InputError, match="more than the limit"):
        super_resolve_volume(noisy_resolver(members=3), path, tmp_path / "out")


@pytest.mark.parametrize(("value", "word"), [(5.0, "constant"), (np.nan, "NaN")])
def test_what_has_no_range_is_one_clear_error(value: float, word: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.full((4, 4, 2), value, np.float32))
    with pytest.raises(InputError, match=word):
        super_resolve_volume(noisy_resolver(), path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_views_show_before_after_and_doubt(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", speckle(6, 5, 8))
    result = super_resolve_volume(noisy_resolver(members=2), path, tmp_path / "out")
    assert [view.title for view in result.views] == ["slice 3", "slice 5", "slice 7"]
    for view in result.views:
        assert view.before.shape == (5, 6)  # rows downwards
        assert view.doubt is not None
        assert view.after.shape == view.doubt.shape == (10, 12)
        assert view.aspect == pytest.approx(1.2 / 1.5)
    alone = super_resolve_volume(noisy_resolver(), path, tmp_path / "out")
    assert [view.doubt for view in alone.views] == [None] * 3


# --- as a scanner makes them ------------------------------------------------------------------------------------------


def waves(fine: np.ndarray, factor: int) -> np.ndarray:
    """The lowest spatial frequencies along the first two axes on the coarse grid, summed up wave by wave."""
    for axis in (0, 1):
        n = fine.shape[axis] // factor
        spectrum = np.fft.fft(np.moveaxis(fine, axis, 0), axis=0)
        at = factor * np.arange(n) + (factor - 1) / 2  # centres of coarse pixels, in fine ones
        total = np.zeros((n, *spectrum.shape[1:]), complex)
        for k in range(-(n // 2), n // 2 + 1):
            wave = np.exp(2j * np.pi * k * at / (factor * n))
            total += np.multiply.outer(wave, spectrum[k]) / (factor * n)
        fine = np.moveaxis(total, 0, axis)
    return fine.real


@pytest.mark.parametrize("multiple", [4, 32])
@pytest.mark.parametrize("shape", [(6, 8, 2), (7, 5, 2), (2, 3, 2)])
def test_in_k_space_every_sample_agrees_whatever_the_size(
    shape: tuple[int, ...], multiple: int, tmp_path: Path
) -> None:
    data = speckle(*shape)
    data[0, 0, 0] = 30000  # far above the percentiles
    network = noisy_resolver(1.0, 4, KSpaceDegradation(4), input=CoarseSliceInput(16), members=2)
    network.multiple = multiple
    result = super_resolve_volume(network, save(tmp_path / "a.nii.gz", data), tmp_path / "out")
    samples = read(tmp_path / "out" / "a_samples.nii.gz").astype(np.float64)
    for k in range(2):
        np.testing.assert_allclose(waves(samples[..., k], 4), data, atol=1e-4 * np.ptp(data))
    assert result.disagreement.largest < 1e-5


def test_intensities_are_scaled_by_the_percentiles_that_the_model_file_names(tmp_path: Path) -> None:
    data = np.zeros((10, 10, 2), np.float32)
    data.flat[:] = np.arange(200)
    network = noisy_resolver(input=CoarseSliceInput(16, (10, 90)))
    facts = super_resolve_volume(network, save(tmp_path / "a.nii.gz", data), tmp_path / "out").facts["intensity"]
    low, high = np.percentile(data, (10, 90))
    assert facts["offset"] == pytest.approx((low + high) / 2)
    assert facts["scale"] == pytest.approx((high - low) / 2)
    data[:] = 0
    data[4, 4] = 5, 7  # percentiles that fall together are no range
    facts = super_resolve_volume(network, save(tmp_path / "b.nii.gz", data), tmp_path / "out").facts["intensity"]
    assert (facts["offset"], facts["scale"]) == (3.5, 3.5)


OBLIQUE = np.array([[1.1, -0.4, 0.3, -20], [0.5, 1.2, -0.2, 11], [0.1, 0.2, 7.9, 5], [0, 0, 0, 1]])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(12, 9), (11, 14)])
def test_a_bump_stays_where_it_was_in_the_world(size: tuple[int, int], flip: bool, tmp_path: Path) -> None:
    """A smooth bump on an oblique grid of unequal pixels: the centre of gravity moves by less than .01 mm."""
    q, _ = np.linalg.qr(OBLIQUE[:3, :3])
    affine = OBLIQUE.copy()
    affine[:3, :3] = q * (1.5 * (-1 if flip else 1), 1.1, 8.0)
    i, j = np.meshgrid(*(np.arange(n) for n in size), indexing="ij")
    place = (size[0] / 2 - 0.3, size[1] / 2 - 0.8)
    bump = 1000 * np.exp(-((i - place[0]) ** 2 + (j - place[1]) ** 2) / (2 * 1.2**2))
    data = np.stack([bump, bump], axis=-1).astype(np.float32)
    network = noisy_resolver(0.0, 4, KSpaceDegradation(4), input=CoarseSliceInput(16))
    result = super_resolve_volume(network, save(tmp_path / "a.nii.gz", data, affine), tmp_path / "out")
    fine = nib.load(result.files[0])
    np.testing.assert_allclose(centre(np.asanyarray(fine.dataobj), fine.affine), centre(data, affine), atol=0.01)


def centre(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Of gravity, in the world."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in data.shape), indexing="ij"), axis=-1)
    mean = (index * data[..., None]).sum(axis=(0, 1, 2)) / data.sum()
    return affine[:3, :3] @ mean + affine[:3, 3]
