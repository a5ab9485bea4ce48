"""Ensembles over the slices of a volume, and windows inside the reverse step."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose, Invertd, ResizeWithPadOrCropd
from small_networks import small_mask_denoiser, small_network
from torch import Tensor

from cgdpm_med.data.slices import slice_stack
from cgdpm_med.data.transforms import LoadVolumed
from cgdpm_med.diffusion.guidance import guided
from cgdpm_med.diffusion.sampling import Guided, sample
from cgdpm_med.diffusion.schedule import NoiseSchedule
from cgdpm_med.inference.inferers import SliceEnsembleInferer, WindowedDenoiser
from cgdpm_med.inference.predictor import DiffusionPredictor
from cgdpm_med.runtime.batching import sample_ensemble

SCHEDULE = NoiseSchedule(1000, "cosine", "sample")


def predictor(*, cond_channels: int = 1, **changes: Any) -> DiffusionPredictor:
    defaults: dict[str, Any] = {"schedule": SCHEDULE, "steps": 2, "members": 3, "precision": "float32"}
    return DiffusionPredictor(small_mask_denoiser(cond_channels=cond_channels), **(defaults | changes))


@pytest.fixture
def volumes(generator: torch.Generator) -> Tensor:
    """Two volumes of three slices."""
    return torch.randn(2, 1, 12, 8, 3, generator=generator)


def named(volume: Tensor, key: str) -> MetaTensor:
    return MetaTensor(volume, meta={"key": key})


# --- slices of volumes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False], ids=["shared noise", "own noise"])
def test_members_lie_one_behind_the_other(volumes: Tensor, shared: bool) -> None:
    """Channel k * C + c of slice s is class c of member k, by the noise of the case or of (case, s)."""
    model = predictor(cond_channels=3, shared_noise=shared)
    out = SliceEnsembleInferer(neighbours=1)(named(volumes[:1], "case"), model)
    assert out.shape == (1, 3 * 4, 12, 8, 3)
    by_slice = model.ensemble(slice_stack(volumes[0], 1), keys=["case" if shared else f"case/{s}" for s in range(3)])
    for k, c, s in product(range(3), range(4), range(3)):
        torch.testing.assert_close(torch.as_tensor(out[0, 4 * k + c, :, :, s]), by_slice[k, s, c])
    torch.testing.assert_close(torch.as_tensor(out).unflatten(1, (3, 4)).sum(dim=2), torch.ones(1, 3, 12, 8, 3))


def test_the_network_is_shown_the_place_of_each_slice(volumes: Tensor) -> None:
    """Slices 8 mm apart: at -1, 0 and 1 of the stack, and 8 mm of 50 from its middle."""
    affine = torch.diag(torch.tensor([1.0, 1.0, 8.0, 1.0], dtype=torch.float64))
    volume = MetaTensor(volumes[:1], affine=affine, meta={"key": "case"})
    model = predictor(cond_channels=3)
    out = SliceEnsembleInferer(places=True)(volume, model)
    planes = torch.tensor([[-1, -0.16], [0, 0], [1, 0.16]])[:, :, None, None].expand(-1, -1, 12, 8)
    by_slice = model.ensemble(torch.cat([slice_stack(volumes[0]), planes], dim=1), keys=["case"] * 3)
    torch.testing.assert_close(torch.as_tensor(out)[0].unflatten(0, (3, 4)), by_slice.movedim(1, -1))


def test_shared_noise_adds_up_over_the_volume_and_leaves_each_slice_alone(generator: torch.Generator) -> None:
    """Sizes summed over S equal slices vary S^2 times as much as in one, with noise of their own S times."""
    slices, members = 6, 400
    volume = torch.randn(1, 1, 8, 8, 1, generator=generator).expand(-1, -1, -1, -1, slices)
    variances = {}
    for shared in (True, False):
        out = SliceEnsembleInferer()(volume, predictor(members=members, steps=1, shared_noise=shared))
        sizes = torch.as_tensor(out)[0].unflatten(0, (members, 4))[:, 1].sum(dim=(1, 2))  # of class 1, (K, Z)
        variances[shared] = sizes[:, 0].var(), sizes.sum(dim=1).var()
    (one, whole), (own_one, own_whole) = variances[True], variances[False]
    assert one > 0
    torch.testing.assert_close(whole, slices**2 * one, rtol=1e-3, atol=0)  # the same in each
    torch.testing.assert_close(own_one, one, rtol=0.3, atol=0)  # another draw of the same law
    torch.testing.assert_close(own_whole, slices * one, rtol=0.3, atol=0)


@pytest.mark.parametrize("max_batch", [1, 2, 4, 7])
def test_chunks_of_slices_and_members_change_nothing(volumes: Tensor, max_batch: int) -> None:
    inferer = SliceEnsembleInferer()
    expected = inferer(volumes, predictor())
    torch.testing.assert_close(inferer(volumes, predictor(max_batch=max_batch)), expected, rtol=0, atol=1e-3)


def test_many_slices_are_drawn_a_few_at_a_time(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = torch.randn(1, 1, 8, 8, 10, generator=generator)
    expected = SliceEnsembleInferer(neighbours=1)(volume, predictor(cond_channels=3))
    model = predictor(cond_channels=3, max_batch=7)  # two slices with their three members
    asked: list[list[str]] = []
    ensemble = model.ensemble

    def noted(image: Tensor, *, keys: list[str], **rest: Any) -> Tensor:
        asked.append(list(keys))
        return ensemble(image, keys=keys, **rest)

    monkeypatch.setattr(model, "ensemble", noted)
    found = SliceEnsembleInferer(neighbours=1)(volume, model)
    assert asked == [["0", "0"]] * 5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_a_batch_of_volumes_equals_each_alone(volumes: Tensor, tmp_path: Path) -> None:
    """Through MONAI's loader, whose batches hold lists of metadata: every volume keeps its own key."""
    items = []
    for name, volume in zip(("one", "two"), volumes, strict=True):
        nib.save(nib.Nifti1Image(volume[0].numpy(), np.eye(4)), tmp_path / f"{name}.nii.gz")
        items.append({"image": str(tmp_path / f"{name}.nii.gz")})
    (batch,) = DataLoader(Dataset(items, LoadVolumed("image")), batch_size=2)
    inferer, model = SliceEnsembleInferer(), predictor()
    together = inferer(batch["image"], model)
    for b, name in enumerate(("one", "two")):
        alone = inferer(named(volumes[[b]], name), model)
        torch.testing.assert_close(torch.as_tensor(together[b]), torch.as_tensor(alone[0]), rtol=0, atol=1e-3)
    other_name = inferer(named(volumes[[0]], "three"), model)
    assert (torch.as_tensor(other_name) - torch.as_tensor(together[:1])).abs().max() > 0.01


def test_volumes_without_a_name_are_keyed_by_their_place(volumes: Tensor) -> None:
    inferer, model = SliceEnsembleInferer(), predictor()
    out = inferer(volumes, model)
    assert type(out) is Tensor
    torch.testing.assert_close(out[1:], torch.as_tensor(inferer(named(volumes[1:], "1"), model)).as_subclass(Tensor))


def test_prediction_can_be_inverted_after_decollating(tmp_path: Path, generator: torch.Generator) -> None:
    """MONAI's Invertd only warns when a prediction has lost its metadata."""
    voxels = torch.randn(10, 14, 2, generator=generator).numpy()
    nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 9.0, 1.0])), tmp_path / "case.nii.gz")
    forth = Compose([LoadVolumed("image"), ResizeWithPadOrCropd("image", (12, 8, -1))])
    (batch,) = DataLoader(Dataset([{"image": str(tmp_path / "case.nii.gz")}], forth), batch_size=1)
    batch["pred"] = SliceEnsembleInferer()(batch["image"], predictor())
    (item,) = decollate_batch(batch)
    native = Invertd("pred", forth, orig_keys="image", nearest_interp=False)(item)["pred"]
    assert native.shape == (12, 10, 14, 2)
    assert torch.equal(native[:, :, 3:11].as_tensor(), batch["pred"][0, :, 1:11].as_tensor())
    assert not native[:, :, :3].any()
    np.testing.assert_array_equal(native.affine, np.diag([2.0, 2.0, 9.0, 1.0]))


def test_progress_of_a_call_comes_before_the_inferers_own(volumes: Tensor) -> None:
    own: list[int] = []
    given_: list[int] = []
    inferer = SliceEnsembleInferer(progress=own.append)
    inferer(volumes, predictor())
    assert sum(own) == 2 * 3 * 3
    inferer(volumes, predictor(), progress=given_.append)
    assert (sum(own), sum(given_)) == (18, 18)


# --- windows: places --------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    field=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    window=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    overlap=st.sampled_from([0.0, 0.2, 0.5, 0.75, 0.95]),
    factor=st.sampled_from([1, 2, 8]),
)
def test_windows_cover_the_field_on_the_grid_of_the_condition(
    field: tuple[int, int], window: tuple[int, int], overlap: float, factor: int
) -> None:
    size = tuple(factor * n for n in field)
    sides = tuple(factor * n for n in window)
    places = WindowedDenoiser(None, sides, overlap, size_factor=factor).places(size)
    covered = np.zeros(size, dtype=int)
    for place in places:
        covered[place] += 1
        for s, n, side in zip(place, size, sides, strict=True):
            assert s.stop - s.start == min(n, side)
            assert 0 <= s.start < s.stop <= n
            assert s.start % factor == s.stop % factor == 0
    assert covered.min() >= 1
    assert len({str(place) for place in places}) == len(places)


def test_places_by_hand() -> None:
    windows = WindowedDenoiser(None, (8, 8), overlap=0.5)
    assert windows.places((18, 8)) == [(slice(a, a + 8), slice(0, 8)) for a in (0, 4, 8, 10)]
    assert windows.places((5, 8)) == [(slice(0, 5), slice(0, 8))]
    # half of 24 is 12, which is no multiple of 8: windows go on by 8
    enlarged = WindowedDenoiser(None, (24,), overlap=0.5, size_factor=8)
    assert enlarged.places((48,)) == [(slice(a, a + 24),) for a in (0, 8, 16, 24)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"overlap": 1.0}, r"overlap must be in \[0, 1\), not 1.0"),
        ({"size_factor": 8, "window": (32, 20)}, r"\(32, 20\) must be multiples of the size factor 8"),
        ({"window_batch": 0}, "window_batch must be at least 1, not 0"),
    ],
)
def test_impossible_windows(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WindowedDenoiser(None, **({"window": (32, 32)} | arguments))


# --- windows: one step ------------------------------------------------------------------------------------------------


def toy(x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Linear, pixel by pixel, so that windows can make no difference; without ``encode``."""
    return (0.3 * x_t + 0.5 * y) * (1 - t.reshape(-1, 1, 1, 1) / 2000)


def toy_guide(x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return 0.1 * y - 0.2 * x_t


class Twin:
    """Windows one after the other, blended pixel by pixel with weights from their definition."""

    def __init__(self, denoiser: Any, window: int, step: int) -> None:
        self.denoiser, self.window, self.step = denoiser, window, step

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        height, width = x_t.shape[2:]
        total, weights = np.zeros(x_t.shape), np.zeros((height, width))
        for top, left in product(self._starts(height), self._starts(width)):
            at = (..., slice(top, top + self.window), slice(left, left + self.window))
            part = self.denoiser(x_t[at], t, y[at]).double().numpy()
            for i, j in product(range(self.window), repeat=2):
                squared = (i - (self.window - 1) / 2) ** 2 + (j - (self.window - 1) / 2) ** 2
                weight = max(np.exp(-squared / (2 * (self.window / 8) ** 2)), 1e-3)
                total[..., top + i, left + j] += weight * part[..., i, j]
                weights[top + i, left + j] += weight
        return torch.from_numpy(total / weights).float()

    def _starts(self, size: int) -> list[int]:
        starts = list(range(0, size - self.window, self.step))
        return [*starts, size - self.window]


@pytest.fixture
def field(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, t and y of two images."""
    x_t, y = torch.randn(2, 4, 20, 14, generator=generator), torch.randn(2, 1, 20, 14, generator=generator)
    return x_t, torch.tensor([700, 700]), y


def test_a_window_as_large_as_the_field_is_no_window(field: tuple[Tensor, Tensor, Tensor]) -> None:
    x_t, t, y = field
    network = small_network()
    for window in ((20, 14), (64, 64)):
        windowed: Any = WindowedDenoiser(network, window)
        with torch.no_grad():
            assert torch.equal(windowed(x_t, t, windowed.encode(y)), network(x_t, t, y))


def test_no_seam_where_the_denoiser_has_none(field: tuple[Tensor, Tensor, Tensor]) -> None:
    x_t, t, y = field
    windowed = WindowedDenoiser(toy, (8, 6), overlap=0.25)
    torch.testing.assert_close(windowed(x_t, t, windowed.encode(y)), toy(x_t, t, y), rtol=0, atol=1e-5)


@pytest.mark.parametrize("window_batch", [1, 2, 5, 100])
def test_windows_are_blended_with_gaussian_weights(field: tuple[Tensor, Tensor, Tensor], window_batch: int) -> None:
    x_t, t, y = field
    network = small_network()
    windowed = WindowedDenoiser(network, (8, 8), window_batch=window_batch)
    with torch.no_grad():
        out = windowed(x_t, t, windowed.encode(y))
        torch.testing.assert_close(out, Twin(network, window=8, step=4)(x_t, t, y), rtol=0, atol=1e-4)
        assert (out - network(x_t, t, y)).abs().max() > 1e-3  # windows matter to this network


@pytest.mark.parametrize("kept", [0, 2, 100])
def test_features_that_are_not_kept_are_made_again(field: tuple[Tensor, Tensor, Tensor], kept: int) -> None:
    x_t, t, y = field
    network = small_network()
    expected: Any = WindowedDenoiser(network, (8, 8), window_batch=2)
    few: Any = WindowedDenoiser(network, (8, 8), window_batch=2, kept_windows=kept)
    with torch.no_grad():
        features = few.encode(y)
        out = few(x_t, t, features)
        assert torch.equal(out, expected(x_t, t, expected.encode(y)))
    assert len(features.kept) == min(kept // 2, len(few.places(x_t.shape[2:])) // 2)


@pytest.mark.parametrize("window_batch", [1, 3])
def test_guidance_is_blended_beside_the_output(field: tuple[Tensor, Tensor, Tensor], window_batch: int) -> None:
    x_t, t, y = field
    composed = guided(toy, toy_guide, SCHEDULE, scale=0.7, interval=(100, 800))
    windowed = WindowedDenoiser(composed, (8, 6), window_batch=window_batch)
    features = windowed.encode(y)
    inside = windowed(x_t, t, features)
    assert isinstance(inside, Guided)
    torch.testing.assert_close(inside.output, toy(x_t, t, y), rtol=0, atol=1e-5)
    torch.testing.assert_close(inside.shift, 0.7 * toy_guide(x_t, t, y), rtol=0, atol=1e-5)
    outside = windowed(x_t, t + 200, features)
    assert isinstance(outside, Tensor)
    torch.testing.assert_close(outside, toy(x_t, t + 200, y), rtol=0, atol=1e-5)


def test_learned_variance_is_blended_too(field: tuple[Tensor, Tensor, Tensor]) -> None:
    x_t, t, y = field

    def with_variance(x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.cat([toy(x_t, t, y), x_t.tanh()], dim=1)

    windowed = WindowedDenoiser(with_variance, (8, 6))
    out = windowed(x_t, t, windowed.encode(y))
    torch.testing.assert_close(out, with_variance(x_t, t, y), rtol=0, atol=1e-5)


def test_condition_eight_times_smaller(generator: torch.Generator) -> None:
    """Every window of x_t goes with the matching window of the condition."""
    y = torch.randn(1, 3, 9, 7, generator=generator)
    x_t = torch.randn(1, 3, 72, 56, generator=generator)
    t = torch.tensor([300])

    def enlarge(x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return 0.5 * x_t + y.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)

    windowed = WindowedDenoiser(enlarge, (40, 24), overlap=0.5, size_factor=8, window_batch=2)
    out = windowed(x_t, t, windowed.encode(y))
    torch.testing.assert_close(out, enlarge(x_t, t, y), rtol=0, atol=1e-5)
    network = small_network(in_channels=3, cond_channels=3, cond_scale=8)
    with torch.no_grad():
        one, many = (WindowedDenoiser(network, (40, 24), size_factor=8, window_batch=n) for n in (1, 4))
        torch.testing.assert_close(one(x_t, t, one.encode(y)), many(x_t, t, many.encode(y)), rtol=0, atol=1e-4)


# --- windows: whole trajectories --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ddim", "ddpm", "dpmpp_2m"])
def test_windows_inside_any_sampler(method: str, generator: torch.Generator) -> None:
    x_T, y = torch.randn(2, 1, 18, 14, generator=generator), torch.randn(2, 1, 18, 14, generator=generator)

    def run(denoiser: Any) -> Tensor:
        noise = torch.Generator().manual_seed(1)
        return sample(denoiser, x_T, y, SCHEDULE, steps=4, method=method, generator=noise)

    torch.testing.assert_close(run(WindowedDenoiser(toy, (8, 8))), run(toy), rtol=0, atol=1e-4)


@pytest.mark.parametrize("denoiser", [toy, guided(toy, toy_guide, SCHEDULE, scale=0.5)], ids=["plain", "guided"])
def test_members_of_a_denoiser_without_features(denoiser: Any, generator: torch.Generator) -> None:
    """Each window of the condition goes to every member of its own image."""
    y = torch.randn(2, 1, 12, 10, generator=generator)
    settings_: dict[str, Any] = {"shape": (1, 12, 10), "members": 3, "steps": 3}
    whole = sample_ensemble(denoiser, y, SCHEDULE, **settings_)
    windows = sample_ensemble(WindowedDenoiser(denoiser, (8, 8), window_batch=2), y, SCHEDULE, **settings_)
    torch.testing.assert_close(windows, whole, rtol=0, atol=1e-4)


def test_windowed_volume_does_not_depend_on_its_batches(volumes: Tensor) -> None:
    whole = SliceEnsembleInferer(window=(12, 8))(volumes, predictor())
    assert torch.equal(whole, SliceEnsembleInferer()(volumes, predictor()))
    windowed = SliceEnsembleInferer(window=[8, 8])
    expected = windowed(volumes, predictor())
    assert (expected - whole).abs().max() > 1e-3
    for max_batch in (1, 4):
        torch.testing.assert_close(windowed(volumes, predictor(max_batch=max_batch)), expected, rtol=0, atol=1e-3)
