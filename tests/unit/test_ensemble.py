"""Keyed noise, ensembles that do not depend on how they are batched, fusions and uncertainty on 3 x 3 masks."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from oracles import Gaussian
from small_networks import small_mask_denoiser, small_network
from torch import Tensor, nn

from cgdpm_med.diffusion.ensemble import (
    SERIAL,
    KeyedNoise,
    combine_majority,
    combine_mean,
    disagreement,
    entropy,
    key_seed,
    mutual_information,
)
from cgdpm_med.diffusion.guidance import guided
from cgdpm_med.diffusion.sampling import sample
from cgdpm_med.diffusion.schedule import NoiseSchedule
from cgdpm_med.diffusion.targets import MaskDenoiser
from cgdpm_med.networks import ConditionalUNet
from cgdpm_med.runtime.batching import sample_ensemble

SCHEDULE = NoiseSchedule(prediction_type="v_prediction")
SHAPE = (2, 8, 8)


@pytest.fixture(scope="module")
def network() -> ConditionalUNet:
    """A tiny network whose zero-initialised layers have been filled, so that condition, t and x_t all count."""
    torch.manual_seed(0)
    net = ConditionalUNet(
        2, 2, 1, 2, channels=(8, 16), num_res_blocks=1, attention_levels=(False, True), num_head_channels=8
    )
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.15)
    return net.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


# --- keys -----------------------------------------------------------------------------------------------------------


def test_seed_is_a_hash_of_the_key() -> None:
    digest = hashlib.sha256(b"(7,('patient001',3),12)").digest()
    assert key_seed(7, ("patient001", 3), 12) == int.from_bytes(digest[:8], "big") // 2
    assert 0 <= key_seed(0) < 2**63


def test_different_keys_have_different_seeds() -> None:
    keys = [(), ("a/b", 1), ("a", "b/1"), ("a", "b", 1), ("a", ("b", 1)), (("a", "b"), 1), (1,), ("1",), (1, 1), (11,)]
    keys += [("',1",), ("'", 1), ("a',1,'b",), ("a", 1, "b")]
    assert len({key_seed(0, *key) for key in keys}) == len(keys)
    assert key_seed(1, 2) != key_seed(2, 1)


def test_integers_of_every_library_are_the_same_key() -> None:
    assert key_seed(0, "a", 3) == key_seed(0, "a", np.int64(3)) == key_seed(0, "a", torch.tensor(3))
    assert key_seed(0, ("a", 3)) == key_seed(0, ("a", np.int32(3)))


@pytest.mark.parametrize("part", [1.5, None, b"a", ("a", 0.5)])
def test_other_keys_are_refused(part: object) -> None:
    with pytest.raises(TypeError, match="strings, integers and tuples"):
        key_seed(0, part)  # type: ignore[arg-type]


# --- keyed noise ----------------------------------------------------------------------------------------------------


def test_noise_of_a_key_depends_on_nothing_else() -> None:
    keys = [("case", s, k) for s in range(2) for k in range(3)]
    together = KeyedNoise(5, keys)
    first, second = together.randn((6, *SHAPE)), together.randn((6, *SHAPE))
    for b in (4, 0):
        alone = KeyedNoise(5, keys[b : b + 1])
        assert torch.equal(alone.randn((1, *SHAPE))[0], first[b])
        assert torch.equal(alone.randn((1, *SHAPE))[0], second[b])
    assert not torch.equal(first, second)
    assert len({float(field.sum()) for field in first}) == 6


def test_every_part_of_the_key_and_the_seed_count() -> None:
    keys = [("case", 0, 0), ("other", 0, 0), ("case", 1, 0), ("case", 0, 1)]
    fields = torch.cat([KeyedNoise(seed, keys).randn((4, 16)) for seed in (0, 1)])
    assert len(fields.unique(dim=0)) == 8


def test_elements_of_one_key_share_their_noise() -> None:
    keys = [("a", 0), ("b", 0), ("a", 0), ("a", 1)]
    noise = KeyedNoise(5, keys)
    drawn = [noise.randn((4, *SHAPE)) for _ in range(2)]
    for b, key in enumerate(keys):
        alone = KeyedNoise(5, [key])
        for each in drawn:
            assert torch.equal(each[b], alone.randn((1, *SHAPE))[0])
    assert not torch.equal(drawn[0][0], drawn[0][3])


@pytest.mark.parametrize("values", [9, SERIAL])  # one thread, several
def test_noise_is_that_of_the_generators_one_by_one(values: int) -> None:
    keys = [("a", k) for k in range(3)]
    expected = [np.random.Generator(np.random.Philox(key=key_seed(7, *key))) for key in keys]
    noise = KeyedNoise(7, keys)
    for _ in range(2):
        drawn = noise.randn((3, 2, values))
        for b, generator in enumerate(expected):
            assert np.array_equal(drawn[b], generator.standard_normal((2, values), dtype=np.float32))


def test_noise_is_standard_normal_and_independent() -> None:
    noise = KeyedNoise(0, [("a", k) for k in range(8)]).randn((8, 40_000))
    assert noise.dtype == torch.float32
    covariance = noise @ noise.T / 40_000
    torch.testing.assert_close(covariance, torch.eye(8), rtol=0, atol=0.03)
    torch.testing.assert_close(noise.mean(1), torch.zeros(8), rtol=0, atol=0.02)
    assert (noise**4).mean().item() == pytest.approx(3, abs=0.05)


def test_noise_uses_all_bits_of_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    # torch's CPU generator would give the same numbers for seeds 2^32 apart
    seeds = iter([5, 5 + 2**32])
    monkeypatch.setattr("cgdpm_med.diffusion.ensemble.key_seed", lambda *_: next(seeds))
    a, b = KeyedNoise(0, [("a",), ("b",)]).randn((2, 16))
    assert not torch.equal(a, b)


def test_noise_in_other_precisions_is_the_same_noise() -> None:
    single = KeyedNoise(0, [("a",)]).randn((1, 9))
    assert torch.equal(KeyedNoise(0, [("a",)]).randn((1, 9), dtype=torch.float64), single.double())
    assert torch.equal(KeyedNoise(0, [("a",)]).randn((1, 9), dtype=torch.bfloat16), single.bfloat16())


def test_noise_for_another_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="batch of 3 asked of 2 keys"):
        KeyedNoise(0, [("a",), ("b",)]).randn((3, 4))


# --- ensembles ------------------------------------------------------------------------------------------------------


class Recorder:
    """A denoiser that keeps the first x_t it is given."""

    def __init__(self) -> None:
        self.initial: list[Tensor] = []

    def __call__(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        if int(t[0]) == SCHEDULE.T - 1:
            self.initial.append(x_t.clone())
        return 0.5 * x_t + context


def initial_noise(context: Tensor, **how: object) -> Tensor:
    """(rows, C, *S): what the chains started from, in the order of the batches."""
    recorder = Recorder()
    sample_ensemble(recorder, context, SCHEDULE, shape=SHAPE, seed=9, steps=2, **how)  # type: ignore[arg-type]
    return torch.cat(recorder.initial)


def test_initial_noise_is_the_members_own_bit_for_bit(images: Tensor) -> None:
    keys = [("a", 0), ("a", 1), ("b", 0)]
    whole = initial_noise(images, members=4, keys=keys).unflatten(0, (3, 4))
    assert len(whole.flatten(0, 1).flatten(1).unique(dim=0)) == 12
    for b, key in enumerate(keys):
        for k in range(4):
            expected = KeyedNoise(9, [(key, k)]).randn((1, *SHAPE))[0]
            assert torch.equal(whole[b, k], expected)
            assert torch.equal(initial_noise(images[b : b + 1], keys=[key], member_ids=[k])[0], expected)
    assert torch.equal(initial_noise(images, members=4, keys=keys, max_batch=1), whole.flatten(0, 1))


SAMPLERS = (
    {"method": "ddim", "steps": 4},
    {"method": "ddim", "steps": 4, "eta": 0.7},
    {"method": "ddpm", "steps": 4},
    {"method": "dpmpp_2m", "steps": 4, "clip": (-1, 1)},
)


@pytest.mark.parametrize("how", SAMPLERS, ids=lambda how: f"{how['method']}-{how.get('eta', 0)}")
def test_ensemble_does_not_depend_on_batching(network: ConditionalUNet, images: Tensor, how: dict[str, Any]) -> None:
    keys = ["x", ("y", 1), 5]

    def ensemble(rows: slice = slice(None), **arguments: Any) -> Tensor:
        return sample_ensemble(
            network, images[rows], SCHEDULE, shape=SHAPE, seed=3, keys=keys[rows], **{**how, **arguments}
        )

    whole = ensemble(members=3)
    assert whole.shape == (3, 3, *SHAPE)
    assert whole.dtype == torch.float32
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
    for max_batch in (1, 2, 4, 7):
        torch.testing.assert_close(ensemble(members=3, max_batch=max_batch), whole, **close)
    torch.testing.assert_close(ensemble(member_ids=[2, 0]), whole[[2, 0]], **close)
    torch.testing.assert_close(ensemble(slice(1, 3), members=3), whole[:, 1:], **close)
    # members and images differ, another seed too
    spread = torch.cdist(whole.flatten(2).flatten(0, 1), whole.flatten(2).flatten(0, 1))
    assert bool((spread + torch.eye(9) > 0.1).all())
    other = sample_ensemble(network, images, SCHEDULE, shape=SHAPE, seed=4, keys=keys, members=3, **how)
    assert (other - whole).abs().mean() > 0.1


def test_ensemble_equals_a_loop_over_single_samples(network: ConditionalUNet, images: Tensor) -> None:
    ensemble = sample_ensemble(network, images, SCHEDULE, shape=SHAPE, members=2, seed=1, steps=3, method="ddpm")
    for b in range(3):
        for k in range(2):
            noise = KeyedNoise(1, [(b, k)])
            x_T = noise.randn((1, *SHAPE))
            alone = sample(network, x_T, images[b : b + 1], SCHEDULE, steps=3, method="ddpm", generator=noise)
            torch.testing.assert_close(ensemble[k, b], alone[0], rtol=1e-5, atol=1e-5)


def test_denoiser_without_features_gets_each_image_once_per_member(images: Tensor) -> None:
    def denoiser(x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        assert context.shape[0] == x_t.shape[0]
        return context.expand_as(x_t)

    schedule = NoiseSchedule(prediction_type="sample")
    out = sample_ensemble(denoiser, images, schedule, shape=SHAPE, members=3, steps=2, max_batch=5)
    torch.testing.assert_close(out, images.expand(3, 3, 2, 8, 8), rtol=0, atol=1e-6)


def test_the_condition_is_encoded_once_per_image(
    network: ConditionalUNet, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    encode = network.encode

    def counted(y: Tensor) -> object:
        calls.append(len(y))
        return encode(y)

    monkeypatch.setattr(network, "encode", counted)
    done: list[int] = []
    sample_ensemble(network, images, SCHEDULE, shape=SHAPE, members=5, steps=3, max_batch=2, progress=done.append)
    assert calls == [1, 1, 1]
    assert done == [2, 2, 1] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"members": 0}, "at least one member"),
        ({"member_ids": []}, "at least one member"),
        ({"keys": ["a"]}, "1 keys for 3 images"),
        ({"max_batch": 0}, "max_batch must be at least 1"),
    ],
)
def test_bad_arguments_are_named(images: Tensor, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_ensemble(Recorder(), images, SCHEDULE, shape=SHAPE, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["ddim", "dpmpp_2m"])
def test_members_of_gaussian_data_spread_as_the_noise_they_start_from(method: str) -> None:
    """The optimal denoiser of N(m, s^2) is affine, and so is the walk: half the noise is half the way from the mean."""
    schedule = NoiseSchedule(schedule="cosine", prediction_type="sample")
    how: dict[str, Any] = {"shape": SHAPE, "start": 900, "steps": 5, "method": method}
    none, half, whole = (
        sample_ensemble(Gaussian(schedule), torch.zeros(2, *SHAPE), schedule, noise_scale=scale, members=members, **how)
        for scale, members in ((0.0, 1), (0.5, 3), (1.0, 3))
    )
    assert bool((whole[1:] - whole[:1]).abs().amax() > 0.1)
    torch.testing.assert_close(half - none, (whole - none) / 2, rtol=0, atol=2e-6)


# --- masks and probabilities ----------------------------------------------------------------------------------------


class Logits(nn.Module):
    """Returns x_t as logits; has no ``encode``."""

    def forward(self, x_t: Tensor, t: Tensor, context: object) -> Tensor:
        return x_t


def test_mask_denoiser_decodes_logits_by_hand() -> None:
    t = torch.zeros(1, dtype=torch.int64)
    three = torch.tensor([math.log(1), math.log(2), math.log(5)]).reshape(1, 3, 1, 1)
    decoded = MaskDenoiser(Logits(), scale=0.1)(three, t, None)
    torch.testing.assert_close(decoded.flatten(), torch.tensor([-0.075, -0.05, 0.025]))
    one = MaskDenoiser(Logits())(torch.full((1, 1, 1, 1), math.log(3)), t, None)
    torch.testing.assert_close(one.flatten(), torch.tensor([0.5]))


def test_mask_denoiser_encodes_as_its_network_does(network: ConditionalUNet, images: Tensor) -> None:
    assert MaskDenoiser(Logits()).encode(images) is images
    features = MaskDenoiser(network).encode(images)
    expected = network.encode(images).stem
    assert expected is not None
    assert torch.equal(features.stem, expected)


# Three members' 3 x 3 masks of two foreground classes; the members agree in the first column, two of three in the
# second, and in the last row of the third all differ.
MEMBERS = torch.tensor(
    [
        [[0, 1, 2], [1, 1, 0], [2, 0, 0]],
        [[0, 1, 2], [1, 0, 0], [2, 2, 1]],
        [[0, 2, 1], [1, 1, 0], [2, 2, 2]],
    ]
)
ONE_HOT = nn.functional.one_hot(MEMBERS, 3).movedim(-1, 1).double()  # (K, C, H, W)
THIRD = 1 / 3


def test_fusions_of_hard_masks_count_votes() -> None:
    votes = torch.zeros(3, 3, 3, dtype=torch.float64)
    for member in MEMBERS:
        for i in range(3):
            for j in range(3):
                votes[member[i, j], i, j] += THIRD
    torch.testing.assert_close(combine_majority(ONE_HOT), votes)
    torch.testing.assert_close(combine_mean(ONE_HOT), votes)


def test_majority_counts_members_and_mean_weighs_their_confidence() -> None:
    foreground = torch.tensor([0.9, 0.45, 0.45]).reshape(3, 1, 1, 1)
    assert combine_mean(foreground).item() == pytest.approx(0.6)
    assert combine_majority(foreground).item() == pytest.approx(THIRD)
    both = torch.cat([1 - foreground, foreground], dim=1)
    torch.testing.assert_close(combine_majority(both).flatten(), torch.tensor([2 * THIRD, THIRD]))


def test_disagreement_by_hand() -> None:
    expected = torch.tensor([[0, THIRD, THIRD], [0, THIRD, 0], [0, THIRD, 2 * THIRD]], dtype=torch.float64)
    torch.testing.assert_close(disagreement(ONE_HOT), expected)
    # of a batch of images, counted from either end
    batch = torch.stack([ONE_HOT, ONE_HOT.flip(-1)], dim=1)
    for channel_dim in (2, -3):
        torch.testing.assert_close(disagreement(batch, channel_dim), torch.stack([expected, expected.flip(-1)]))
    binary = (MEMBERS > 0)[:, None].double()
    expected = torch.tensor([[0, 0, 0], [0, THIRD, 0], [0, THIRD, THIRD]], dtype=torch.float64)
    torch.testing.assert_close(disagreement(binary), expected)
    torch.testing.assert_close(disagreement(binary, channel_dim=-3), expected)


def test_entropy_by_hand() -> None:
    two_one = (math.log(3) - 2 / 3 * math.log(2)) / math.log(3)  # of (2/3, 1/3, 0), over log 3
    expected = torch.tensor([[0, two_one, two_one], [0, two_one, 0], [0, two_one, 1]], dtype=torch.float64)
    torch.testing.assert_close(entropy(combine_mean(ONE_HOT)), expected)
    torch.testing.assert_close(entropy(ONE_HOT, channel_dim=1), torch.zeros(3, 3, 3, dtype=torch.float64))
    quarter = (2 * math.log(2) - 0.75 * math.log(3)) / math.log(2)  # of (1/4, 3/4), over log 2
    binary = torch.tensor([[[0.0, 0.25, 0.5], [0.75, 1.0, 0.5]]])
    torch.testing.assert_close(entropy(binary), torch.tensor([[0, quarter, 1], [quarter, 0, 1]]))


def test_mutual_information_by_hand() -> None:
    # certain members that differ: all of the entropy of the mean is disagreement
    torch.testing.assert_close(mutual_information(ONE_HOT), entropy(combine_mean(ONE_HOT)))
    # unsure members that agree: none of it is
    unsure = torch.full((3, 3, 2, 2), THIRD)
    torch.testing.assert_close(mutual_information(unsure), torch.zeros(2, 2), rtol=0, atol=1e-6)
    # (1/4, 3/4) and (3/4, 1/4): mean entropy H(1/4), entropy of the mean 1
    mixed = torch.tensor([0.25, 0.75]).reshape(2, 1, 1, 1)
    quarter = (2 * math.log(2) - 0.75 * math.log(3)) / math.log(2)
    assert mutual_information(mixed).item() == pytest.approx(1 - quarter, abs=1e-6)
    assert mutual_information(mixed, channel_dim=-3).item() == pytest.approx(1 - quarter, abs=1e-6)


def test_a_mask_denoiser_is_not_read_as_one_of_noise(generator: torch.Generator) -> None:
    denoiser, image = small_mask_denoiser(), torch.randn(1, 1, 8, 8, generator=generator)
    noise = torch.randn(1, 4, 8, 8, generator=generator)
    with pytest.raises(ValueError, match="'sample'"):
        sample_ensemble(denoiser, image, SCHEDULE, shape=(4, 8, 8), members=1, steps=1)
    with pytest.raises(ValueError, match="'sample'"):
        guided(denoiser, small_network(), NoiseSchedule())
    assert sample(denoiser, noise, image, NoiseSchedule(prediction_type="sample"), steps=1).abs().max() <= 0.5
