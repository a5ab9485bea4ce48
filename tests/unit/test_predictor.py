"""DiffusionPredictor: the ensemble does not depend on how it is batched; members, guidance, precision."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from small_networks import small_mask_denoiser, small_network
from torch import Tensor, nn

from cgdpm_med.diffusion.guidance import guided
from cgdpm_med.diffusion.schedule import NoiseSchedule
from cgdpm_med.diffusion.targets import ImageTarget, MaskDenoiser, MaskTarget, Target
from cgdpm_med.files import InputError
from cgdpm_med.inference.inferers import WindowedDenoiser
from cgdpm_med.inference.predictor import DiffusionPredictor
from cgdpm_med.networks.blocks import Attention
from cgdpm_med.networks.unet import ConditionalUNet
from cgdpm_med.runtime.autocast import COMPILER_OPTIONS, Autocast
from cgdpm_med.runtime.batching import sample_ensemble
from cgdpm_med.runtime.precision import autocast_dtype

SAMPLE = NoiseSchedule(1000, "cosine", "sample")
TARGET = MaskTarget(4, scale=0.5)
KEYS = ["a/0", "a/1", "b/0"]


def predictor(**settings: Any) -> DiffusionPredictor:
    defaults: dict[str, Any] = {"schedule": SAMPLE, "steps": 3, "members": 4, "precision": "float32"}
    return DiffusionPredictor(small_mask_denoiser(), **(defaults | settings))


@pytest.fixture
def images(generator: torch.Generator) -> Tensor:
    return torch.randn(3, 1, 16, 12, generator=generator)


@pytest.fixture
def ensemble(images: Tensor) -> Tensor:
    return predictor().ensemble(images, keys=KEYS)


def assert_same(a: Tensor, b: Tensor) -> None:
    """Probabilities to 1e-3 and equal labels, where the two largest are further apart than that."""
    torch.testing.assert_close(a, b, rtol=0, atol=1e-3)
    best = b.topk(2, dim=2).values
    decided = best[:, :, 0] - best[:, :, 1] > 2e-3
    assert decided.float().mean() > 0.9
    assert torch.equal(a.argmax(dim=2)[decided], b.argmax(dim=2)[decided])


# --- independence of the batching -------------------------------------------------------------------------------------


def test_ensemble_is_informative(images: Tensor, ensemble: Tensor) -> None:
    """The comparisons below mean something: members, images and pixels differ."""
    assert ensemble.shape == (4, 3, 4, 16, 12)
    assert ensemble.std(dim=0).mean() > 0.01
    assert ensemble.std(dim=(3, 4)).mean() > 0.01
    other = predictor().ensemble(images.flip(0), keys=KEYS)
    assert (other - ensemble).abs().max() > 0.01


@pytest.mark.parametrize("max_batch", [1, 3, 4, 5, 8, 100])
def test_max_batch_changes_nothing(images: Tensor, ensemble: Tensor, max_batch: int) -> None:
    assert_same(predictor(max_batch=max_batch).ensemble(images, keys=KEYS), ensemble)


def test_the_other_images_change_nothing(images: Tensor, ensemble: Tensor) -> None:
    order = [2, 0]
    some = predictor().ensemble(images[order], keys=[KEYS[i] for i in order])
    assert_same(some, ensemble[:, order])


def test_a_member_alone_is_that_member(images: Tensor, ensemble: Tensor) -> None:
    assert_same(predictor().ensemble(images, keys=KEYS, member_ids=[2]), ensemble[[2]])
    assert_same(predictor().ensemble(images, keys=KEYS, member_ids=[3, 1]), ensemble[[3, 1]])
    assert_same(predictor(members=2).ensemble(images, keys=KEYS), ensemble[:2])


def test_the_key_decides(images: Tensor, ensemble: Tensor) -> None:
    renamed = predictor().ensemble(images, keys=["a/0", "a/2", "b/0"])
    assert_same(renamed[:, [0, 2]], ensemble[:, [0, 2]])
    assert (renamed[:, 1] - ensemble[:, 1]).abs().max() > 0.01
    reseeded = predictor(seed=1).ensemble(images, keys=KEYS)
    assert (reseeded - ensemble).abs().amax(dim=(2, 3, 4)).min() > 0.01


@pytest.mark.parametrize("settings", [{"method": "ddpm"}, {"method": "ddim", "eta": 0.7}, {"method": "dpmpp_2m"}])
def test_other_samplers_are_keyed_too(images: Tensor, settings: dict[str, Any]) -> None:
    together = predictor(**settings).ensemble(images, keys=KEYS)
    apart = torch.cat([predictor(**settings).ensemble(images[[i]], keys=[KEYS[i]]) for i in range(3)], dim=1)
    assert_same(apart, together)


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_prediction_is_the_mean_of_the_members(images: Tensor) -> None:
    model = predictor()
    mean = model(images)
    torch.testing.assert_close(mean, model.ensemble(images).mean(dim=0))
    torch.testing.assert_close(mean.sum(dim=1), torch.ones(3, 16, 12))
    assert mean.min() >= 0
    assert not mean.requires_grad


def laid_out(network: nn.Module) -> nn.Module:
    """The network with its weights in the predictor's layout, which changes the order of sums, to the last bit."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stub


def test_ensemble_equals_the_sampler_it_wraps(images: Tensor, ensemble: Tensor) -> None:
    denoiser = laid_out(small_mask_denoiser())
    x_0 = sample_ensemble(denoiser, images, SAMPLE, shape=(4, 16, 12), members=4, keys=KEYS, steps=3, clip=(-0.5, 0.5))
    assert torch.equal(ensemble, torch.stack([TARGET.decode(x) for x in x_0]))


def test_a_truncated_start_reaches_the_sampler(images: Tensor, ensemble: Tensor) -> None:
    denoiser = laid_out(small_mask_denoiser())
    how: dict[str, Any] = {"members": 4, "keys": KEYS, "timesteps": [0, 300, 600], "clip": (-0.5, 0.5)}
    x_0 = sample_ensemble(denoiser, images, SAMPLE, shape=(4, 16, 12), **how)
    truncated = predictor(start=600).ensemble(images, keys=KEYS)
    assert torch.equal(truncated, torch.stack([TARGET.decode(x) for x in x_0]))
    assert (truncated - ensemble).abs().max() > 0.01


def test_images_are_clipped_and_enlarged(generator: torch.Generator) -> None:
    schedule = NoiseSchedule(1000, "linear_beta", "v_prediction")
    network = small_network(in_channels=3, cond_channels=3, cond_scale=4)
    model = DiffusionPredictor(
        network,
        schedule=schedule,
        target=ImageTarget(3, factor=4),
        steps=4,
        members=2,
        precision="float32",
    )
    small = torch.randn(1, 3, 4, 6, generator=generator)
    members = model.ensemble(small)
    assert members.shape == (2, 1, 3, 16, 24)
    x_0 = sample_ensemble(network, small, schedule, shape=(3, 16, 24), members=2, steps=4, clip=(-1.0, 1.0))
    assert torch.equal(members, x_0.clamp(-1, 1))
    assert members.abs().max() <= 1


def test_progress_counts_every_field(images: Tensor) -> None:
    counts: list[int] = []
    predictor(max_batch=5).ensemble(images, progress=counts.append)
    assert sum(counts) == 4 * 3
    assert max(counts) <= 5


def test_wrap_is_applied_to_the_denoiser(images: Tensor, ensemble: Tensor) -> None:
    seen = []

    def wrap(denoiser: Any) -> Any:
        seen.append(denoiser)
        return denoiser

    assert torch.equal(predictor().ensemble(images, keys=KEYS, wrap=wrap), ensemble)
    assert len(seen) == 1
    assert isinstance(seen[0], Autocast)


# --- guidance ---------------------------------------------------------------------------------------------------------


def test_guidance_of_scale_zero_never_asks_the_guide(images: Tensor, ensemble: Tensor) -> None:
    class Forbidden(nn.Module):
        def forward(self, *args: object) -> Tensor:
            raise AssertionError("the guide was evaluated")

    assert torch.equal(predictor(guide=Forbidden(), guidance_scale=0.0).ensemble(images, keys=KEYS), ensemble)


def test_guidance_equals_the_composed_denoiser(images: Tensor, ensemble: Tensor) -> None:
    guide, interval = laid_out(small_network(seed=7)), (100, 900)
    model = predictor(guide=guide, guidance_scale=0.5, guidance_interval=list(interval))
    denoiser = guided(laid_out(small_mask_denoiser()), guide, SAMPLE, scale=0.5, interval=interval)
    x_0 = sample_ensemble(denoiser, images, SAMPLE, shape=(4, 16, 12), members=4, keys=KEYS, steps=3, clip=(-0.5, 0.5))
    members = model.ensemble(images, keys=KEYS)
    assert torch.equal(members, torch.stack([TARGET.decode(x) for x in x_0]))
    assert (members - ensemble).abs().max() > 0.01


# --- precision and mode -----------------------------------------------------------------------------------------------


def test_bfloat16_stays_inside_the_network(images: Tensor, ensemble: Tensor) -> None:
    members = predictor(precision="bfloat16").ensemble(images, keys=KEYS)
    assert members.dtype == torch.float32
    assert not torch.equal(members, ensemble)
    torch.testing.assert_close(members.mean(), ensemble.mean(), rtol=0, atol=1e-3)
    assert (members - ensemble).abs().mean() < 0.02


def test_auto_precision_is_one_of_the_two() -> None:
    assert autocast_dtype(torch.device("cpu"), "auto") in (torch.float32, torch.bfloat16)
    assert autocast_dtype(torch.device("cpu"), "float32") == torch.float32
    assert autocast_dtype(torch.device("meta"), "auto") == torch.float32


def test_a_training_network_is_evaluated_without_dropout(images: Tensor) -> None:
    network = small_network(dropout=0.5)
    model = DiffusionPredictor(network, schedule=SAMPLE, steps=2, members=1, precision="float32")
    expected = model(images)
    network.train()
    assert torch.equal(model(images), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "float16"}, "precision must be one of auto, float32, bfloat16, not 'float16'"),
        ({"target": "masks"}, "must be a Target.*'masks'"),
        ({"members": 0}, "at least one member, not 0"),
        ({"start": 1000}, "must start at a timestep 0 … 999, not 1000"),
        ({"start": 1, "steps": 3}, "steps must be between 1 and 2"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predictor(**settings)


def test_unknown_precision_of_a_device() -> None:
    with pytest.raises(ValueError, match="not 'half'"):
        autocast_dtype(torch.device("cpu"), "half")


# --- predictions that are not numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [MaskTarget(4), ImageTarget(4)])
def test_predictions_that_are_not_numbers_are_an_error(target: Target) -> None:
    """One pixel of one image is enough: a mask's probabilities there would look like doubt."""

    class Spoilt(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
            output = torch.zeros_like(x_t)
            output[:, 0, 0, 0] = torch.where(y[:, 0, 0, 0] > 0, torch.nan, 0.0)
            return output

    model = DiffusionPredictor(Spoilt(), schedule=SAMPLE, target=target, steps=2, members=2, precision="float32")
    images = torch.full((2, 1, 4, 4), -1.0)
    assert model.ensemble(images).isfinite().all()
    images[0, 0, 0, 0] = 1.0
    with pytest.raises(InputError, match="not finite numbers"):
        model.ensemble(images)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_attention_in_bfloat16_is_eager(generator: torch.Generator) -> None:
    """On a CPU with a matrix unit it was NaN without the options."""
    attention = Attention(64)
    nn.init.normal_(attention.get_parameter("proj.weight"), std=0.1, generator=generator)
    x = torch.randn(2, 64, 8, 8, generator=generator).bfloat16()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        eager = attention(x)
        attention.compile(dynamic=False, options=COMPILER_OPTIONS)
        torch.testing.assert_close(attention(x), eager, atol=0.05, rtol=0.02)
        assert (eager - x).abs().mean() > 0.02  # attention did something


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.parametrize(("precision", "within"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_compiled_is_eager(images: Tensor, precision: str, within: float) -> None:
    eager, compiled = (predictor(precision=precision, compile=each) for each in (False, True))
    with torch.inference_mode():
        found = compiled.ensemble(images, keys=KEYS)
        torch.testing.assert_close(found, eager.ensemble(images, keys=KEYS), rtol=0, atol=within)


# --- schedules that fit -----------------------------------------------------------------------------------------------


class Knowing(torch.nn.Module):
    """Predicts the mask that the image's sign is: one channel, or background and foreground."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        truth = (context[:, :1] > 0).float()
        return torch.cat([1 - truth, truth], dim=1)[:, -self.channels :] * 2 - 1


@pytest.mark.parametrize("channels", [1, 2])
def test_the_default_schedule_of_masks_reads_predictions_of_x_0(channels: int, images: Tensor) -> None:
    model = DiffusionPredictor(Knowing(channels), out_channels=channels, steps=4, members=2, precision="float32")
    assert torch.equal(model(images)[:, -1] > 0.5, images[:, 0] > 0)
    assert DiffusionPredictor(Knowing(), target=ImageTarget()).schedule.prediction_type == "epsilon"


@pytest.mark.parametrize("denoiser", [Knowing(), small_mask_denoiser()], ids=["any network", "mask denoiser"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_masks_under_a_schedule_for_another_prediction_are_refused(denoiser: Any, prediction_type: str) -> None:
    with pytest.raises(ValueError, match="'sample'"):
        DiffusionPredictor(denoiser, schedule=NoiseSchedule(prediction_type=prediction_type))


def test_a_network_of_masks_may_say_what_it_predicts() -> None:
    class Noise(torch.nn.Module):
        prediction_type = "epsilon"

    assert DiffusionPredictor(Noise()).schedule.prediction_type == "epsilon"
    with pytest.raises(ValueError, match="'epsilon'"):
        DiffusionPredictor(Noise(), schedule=SAMPLE)


# --- three dimensions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", [False, True])
def test_volumes_are_sampled_whole_and_in_windows(precision: str, attention: bool, generator: torch.Generator) -> None:
    levels = {"channels": (8, 16), "num_res_blocks": 1, "attention_levels": (False, attention)}
    network = ConditionalUNet(3, 2, 1, 2, **levels)  # type: ignore[arg-type]
    torch.nn.init.normal_(network.get_parameter("head.weight"), std=0.2, generator=generator)
    settings: dict[str, Any] = {"out_channels": 2, "steps": 2, "members": 2, "precision": precision}
    model = DiffusionPredictor(MaskDenoiser(network), schedule=SAMPLE, **settings)
    image = torch.randn(1, 1, 16, 12, 8, generator=generator)
    whole = model.ensemble(image)
    assert whole.shape == (2, 1, 2, 16, 12, 8)
    assert not torch.equal(whole[0], whole[1])
    torch.testing.assert_close(whole.sum(dim=2), torch.ones(2, 1, 16, 12, 8))
    one_window = model.ensemble(image, wrap=lambda denoiser: WindowedDenoiser(denoiser, (16, 12, 8)))
    assert torch.equal(one_window, whole)
    windows = model.ensemble(image, wrap=lambda denoiser: WindowedDenoiser(denoiser, (8, 8, 4)))
    assert windows.shape == whole.shape
    assert not torch.equal(windows, whole)
