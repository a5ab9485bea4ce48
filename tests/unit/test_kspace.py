"""A coarse scan as fewer frequencies: against a plain discrete Fourier transform, and the exact way back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cgdpm_med.data.coarse_slices import CoarsePatches, CoarseSlices, patch_of
from cgdpm_med.diffusion.degradation import KSpaceDegradation, project
from cgdpm_med.diffusion.targets import ResidualTarget


def by_fourier(x: np.ndarray, factor: int) -> np.ndarray:
    """The plain way for one axis: keep |k| < n / 2, move by half a block, transform back; no highest frequency."""
    fine = len(x)
    n = fine // factor
    spectrum = np.fft.fft(x) / fine
    y = np.zeros(n, dtype=complex)
    for p in range(n):
        for k in range(-((n - 1) // 2), (n - 1) // 2 + 1):
            y[p] += spectrum[k] * np.exp(2j * np.pi * k * (factor * p + (factor - 1) / 2) / fine)
    return y.real


@pytest.mark.parametrize(("n", "factor"), [(5, 4), (8, 4), (7, 2), (6, 3), (1, 4), (9, 1)])
def test_it_is_the_low_part_of_the_spectrum(n: int, factor: int) -> None:
    x = torch.randn(n * factor, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spectrum = torch.fft.fft(x)
    if n % 2 == 0:  # what the plain way leaves out
        spectrum[n // 2] = spectrum[-(n // 2)] = 0
    x = torch.fft.ifft(spectrum).real
    rows = x[None, None, None, :].expand(1, 1, factor, -1)  # constant along the other axis
    y = KSpaceDegradation(factor).degrade(rows)
    np.testing.assert_allclose(y[0, 0, 0].numpy(), by_fourier(x.numpy(), factor), atol=1e-12)


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("shape", [(8, 8), (7, 9), (6, 5), (1, 4), (3, 4, 5)])
def test_filling_is_an_exact_right_inverse(shape: tuple[int, ...], factor: int) -> None:
    operator = KSpaceDegradation(factor)
    y = torch.randn(2, 1, *shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(operator.degrade(operator.fill(y)), y, atol=2e-6, rtol=0)
    x = torch.randn(2, 1, *(factor * n for n in shape), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(operator.degrade(project(x, y, operator)), y, atol=5e-6, rtol=0)


def test_projection_goes_the_shortest_way() -> None:
    """What is added is orthogonal to all that the coarse scan does not see."""
    operator = KSpaceDegradation(2)
    unseen = torch.randn(1, 1, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    unseen = unseen - operator.fill(operator.degrade(unseen))
    added = operator.fill(torch.randn(1, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4)))
    assert float((unseen * added).sum().abs()) < 1e-10


def test_a_wave_keeps_its_place() -> None:
    """A cosine that the coarse grid can hold is sampled at the centres of its blocks, and comes back whole."""
    j = torch.arange(24, dtype=torch.float64)
    wave = torch.cos(2 * torch.pi * 2 * (j - 3.7) / 24)[None, None, :, None].expand(1, 1, 24, 24)
    operator = KSpaceDegradation(4)
    y = operator.degrade(wave)
    centres = 4 * torch.arange(6, dtype=torch.float64) + 1.5
    torch.testing.assert_close(y[0, 0, :, 0], torch.cos(2 * torch.pi * 2 * (centres - 3.7) / 24))
    torch.testing.assert_close(operator.fill(y), wave)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        KSpaceDegradation(0)
    with pytest.raises(ValueError, match="divisible"):
        KSpaceDegradation(4).degrade(torch.zeros(1, 1, 8, 10))


TARGET = ResidualTarget(channels=1, factor=4, scale=3.8, degradation=KSpaceDegradation(4), clip=False)


def volume(shape: tuple[int, int, int] = (40, 56, 2)) -> dict[str, torch.Tensor]:
    return {"image": torch.randn(1, *shape, generator=torch.Generator().manual_seed(5))}


def test_a_patch_has_the_residual_of_the_whole_slice() -> None:
    whole = volume()["image"][..., 0]
    image, y = patch_of(whole, TARGET, (2, 5), 24)
    coarse = TARGET.operator.degrade(whole[None])
    residual = TARGET.encode(whole[None], coarse)
    torch.testing.assert_close(y, coarse[0, :, 2:8, 5:11])
    torch.testing.assert_close(TARGET.encode(image[None], y[None]), residual[:, :, 8:32, 20:44], atol=1e-5, rtol=0)


def test_patches_are_drawn_by_key() -> None:
    patches = CoarsePatches([volume()], TARGET, size=32, seed=1)
    assert len(patches) == 2
    torch.testing.assert_close(patches[(3, 1)], patches[(3, 1)])
    assert not torch.equal(patches[(3, 1)]["image"], patches[(4, 1)]["image"])
    assert patches[0]["image"].shape == (1, 32, 32)
    assert patches[0]["condition"].shape == (1, 8, 8)


def test_small_slices_are_padded_and_odd_ones_cut() -> None:
    item = CoarsePatches([volume((22, 41, 1))], TARGET, size=32)[0]
    assert item["image"].shape == (1, 32, 32)
    assert torch.isfinite(item["image"]).all()


def test_validation_shows_the_middle() -> None:
    item = CoarseSlices([volume()], TARGET, size=32, every=2)[0]
    torch.testing.assert_close(item["label"], volume()["image"][:, 4:36, 12:44, 0])
    torch.testing.assert_close(item["image"], TARGET.operator.degrade(item["label"][None])[0])


def test_without_clipping_the_result_agrees_exactly() -> None:
    y = 3 * torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(6))
    x_0 = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(7))
    made = TARGET.decode(x_0, y)
    assert made.abs().max() > 1
    torch.testing.assert_close(TARGET.operator.degrade(made), y, atol=1e-5, rtol=0)
    torch.testing.assert_close(TARGET.correct(x_0, y), x_0)
