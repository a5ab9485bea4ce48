"""Targets by hand: masks as channels and back, the residual of a picture, and what refuses to go together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_networks import small_mask_denoiser, small_network
from torch import Tensor

from cgdpm_med import (
    DiffusionLoss,
    DiffusionPredictor,
    ImageTarget,
    MaskTarget,
    NoiseSchedule,
    Replay,
    ResidualTarget,
    Target,
)
from cgdpm_med.diffusion.degradation import AreaDegradation, project
from cgdpm_med.diffusion.objectives import simple_loss
from cgdpm_med.diffusion.targets import PALETTE

SAMPLE = NoiseSchedule(1000, "cosine", "sample")


# --- masks ------------------------------------------------------------------------------------------------------------


def test_mask_target_by_hand() -> None:
    labels = torch.tensor([[0, 1, 2], [3, 0, 1], [2, 2, 3]])[None, None]
    target = MaskTarget(4, scale=0.5)
    x_0 = target.encode(labels)
    assert x_0.dtype == torch.float32
    low, high = -0.5, 0.5
    assert torch.equal(x_0[0, 1], torch.tensor([[low, high, low], [low, low, high], [low, low, low]]))
    assert torch.equal(x_0.sum(dim=1), torch.full((1, 3, 3), high + 3 * low))
    assert torch.equal(target.decode(x_0), F.one_hot(labels[:, 0]).movedim(-1, 1).float())


def test_two_classes_are_one_channel_unless_both_are_wanted() -> None:
    labels = torch.tensor([[0, 1], [1, 0]])[None, None]
    x_0 = MaskTarget(2, scale=1.0).encode(labels)
    assert torch.equal(x_0, torch.tensor([[[[-1.0, 1.0], [1.0, -1.0]]]]))
    assert torch.equal(MaskTarget(2, scale=1.0).decode(x_0).long(), labels)
    both = MaskTarget(2, scale=1.0, one_hot=True)
    assert (MaskTarget(2).channels, both.channels, MaskTarget(3).channels) == (1, 2, 3)
    assert torch.equal(both.encode(labels), torch.cat([-x_0, x_0], dim=1))


def test_a_volume_is_encoded_item_by_item(generator: torch.Generator) -> None:
    labels = torch.randint(0, 4, (3, 1, 5, 4, 2), generator=generator, dtype=torch.uint8)
    batch = MaskTarget(4).encode(labels)
    assert batch.shape == (3, 4, 5, 4, 2)
    for c in range(4):
        assert torch.equal(batch[:, c] > 0, labels[:, 0] == c)


def test_soft_labels_by_hand() -> None:
    probabilities = torch.tensor([0.75, 0.25, 0.0, 0.0]).reshape(1, 4, 1, 1)
    assert MaskTarget(4).encode(probabilities).flatten().tolist() == pytest.approx([0.05, -0.05, -0.1, -0.1])
    assert MaskTarget(2, scale=1.0).encode(probabilities[:, :2]).flatten().tolist() == [-0.5]


def test_integers_of_one_channel_a_class_are_no_label_map() -> None:
    labels = torch.tensor([[0, 1], [2, 3]])[None, None]
    one_hot = F.one_hot(labels[:, 0], 4).movedim(-1, 1)
    assert torch.equal(MaskTarget(4).encode(one_hot), MaskTarget(4).encode(labels))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.full((1, 1, 2, 2), 0.9), "values between whole numbers"),
        (torch.zeros(1, 3, 2, 2), "4 classes is a label map of one channel or has one channel for each, not 3"),
        (torch.zeros(1, 2, 2, 2, dtype=torch.uint8), "not 2 channels"),
    ],
)
def test_labels_of_another_form_are_refused(labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskTarget(4).encode(labels)


def test_certain_soft_labels_are_the_label_map(generator: torch.Generator) -> None:
    labels = torch.randint(0, 4, (2, 1, 5, 4), generator=generator)
    one_hot = F.one_hot(labels[:, 0], 4).movedim(-1, 1).half()
    assert torch.equal(MaskTarget(4).encode(one_hot), MaskTarget(4).encode(labels))


def test_decoding_inverts_soft_labels(generator: torch.Generator) -> None:
    p = torch.rand(2, 4, 3, 3, generator=generator)
    p = p / p.sum(1, keepdim=True)
    torch.testing.assert_close(MaskTarget(4).decode(MaskTarget(4).encode(p)), p, rtol=0, atol=1e-6)
    foreground = p[:, :1]
    both = torch.cat([1 - foreground, foreground], dim=1)
    torch.testing.assert_close(MaskTarget(2).decode(MaskTarget(2).encode(both)), foreground, rtol=0, atol=1e-6)


def test_probabilities_of_values_off_the_range() -> None:
    target = MaskTarget(3, scale=1.0)
    x_0 = torch.tensor([[-1.0, 3.0, -1.0], [-5.0, 1.0, -1.0], [-1.0, 0.0, -2.0]])  # three pixels of three classes
    p = target.decode(x_0.T.reshape(1, 3, 3, 1))
    torch.testing.assert_close(p[0, :, :, 0].T, torch.tensor([[0, 1, 0], [0, 1, 0], [0, 1, 0]], dtype=torch.float32))
    nothing = MaskTarget(4).decode(torch.full((1, 4, 1, 1), -1.5))
    torch.testing.assert_close(nothing, torch.full((1, 4, 1, 1), 0.25))  # no class more than another, and sum 1
    volume = target.decode(torch.full((2, 3, 2, 2, 2), 0.2))
    torch.testing.assert_close(volume, torch.full((2, 3, 2, 2, 2), 1 / 3))
    single = MaskTarget(2, scale=1.0).decode(torch.tensor([[[[-3.0, 0.0, 2.0]]]]))
    torch.testing.assert_close(single, torch.tensor([[[[0, 0.5, 1]]]]))


def test_colours_of_classes_by_hand() -> None:
    picture = MaskTarget(4).picture(MaskTarget(4).probabilities(torch.tensor([[0, 1], [2, 3]])[None, None]))
    assert picture.shape == (1, 3, 2, 2)
    for (row, col), label in {(0, 0): 0, (0, 1): 1, (1, 0): 2, (1, 1): 3}.items():
        assert torch.equal(picture[0, :, row, col], torch.tensor(PALETTE[label]))
    # a single channel is foreground above one half; a fifth class begins anew
    binary = MaskTarget(2).picture(torch.tensor([[[[0.4, 0.6]]]]))
    assert torch.equal(binary[0, :, 0], torch.tensor(PALETTE[:2]).T)
    fifth = MaskTarget(6).picture(MaskTarget(6).probabilities(torch.tensor([[[[5]]]])))
    assert torch.equal(fifth[0, :, 0, 0], torch.tensor(PALETTE[1]))


@pytest.mark.parametrize("settings", [{"num_classes": 1}, {"num_classes": 4, "scale": 0.0}])
def test_masks_that_cannot_be(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"classes|positive"):
        MaskTarget(**settings)  # type: ignore[arg-type]


# --- residuals --------------------------------------------------------------------------------------------------------

RESIDUAL = ResidualTarget(channels=2, factor=4, scale=2.7)


@pytest.fixture
def pair(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A picture in [-0.6, 0.6] and its area average."""
    picture = 1.2 * torch.rand(3, 2, 16, 12, generator=generator) - 0.6
    return picture, F.avg_pool2d(picture, 4)


def test_area_degradation_by_hand() -> None:
    area = AreaDegradation(2)
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    y = area.degrade(x)
    assert torch.equal(y, torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]]))
    assert torch.equal(area.fill(y)[0, 0, :2], torch.tensor([[2.5, 2.5, 4.5, 4.5]] * 2))
    agreed = project(torch.zeros(1, 1, 4, 4), y, area)
    assert torch.equal(agreed, area.fill(y))
    assert AreaDegradation(2).degrade(torch.arange(8.0).reshape(1, 1, 2, 2, 2)).item() == 3.5


def test_a_residual_is_the_picture_without_its_interpolation(pair: tuple[Tensor, Tensor]) -> None:
    picture, y = pair
    x_0 = RESIDUAL.encode(picture, y)
    smooth = F.interpolate(y, scale_factor=4, mode="bicubic")
    torch.testing.assert_close(x_0, 2.7 * (picture - smooth))
    torch.testing.assert_close(RESIDUAL.decode(x_0, y), picture, rtol=0, atol=1e-6)


def test_whatever_was_sampled_the_picture_agrees_with_its_condition(
    pair: tuple[Tensor, Tensor], generator: torch.Generator
) -> None:
    _, y = pair
    x_0 = 0.3 * torch.randn(3, 2, 16, 12, generator=generator)
    x = RESIDUAL.project(torch.randn(3, 2, 16, 12, generator=generator), y)
    torch.testing.assert_close(F.avg_pool2d(x, 4), y, rtol=0, atol=1e-5)
    assert (F.avg_pool2d(RESIDUAL.decode(x_0, y), 4) - y).abs().max() < 1e-5  # nothing is clipped here
    stepwise = replace(RESIDUAL, project_steps=True)
    corrected = stepwise.decode(stepwise.correct(x_0, y), y)
    torch.testing.assert_close(corrected, RESIDUAL.decode(x_0, y), rtol=0, atol=1e-5)


def test_pictures_agree_at_every_step_where_that_is_asked(pair: tuple[Tensor, Tensor]) -> None:
    picture, y = (0.5 * part for part in pair)
    brighter = picture + 0.125
    told = torch.cat([y, torch.ones_like(y[:, :1])], dim=1)  # a class may travel with the condition
    plain = ImageTarget(picture.shape[1], 4)
    torch.testing.assert_close(replace(plain, project=True).correct(brighter, told), picture, rtol=0, atol=1e-6)
    assert torch.equal(plain.correct(brighter, told), brighter)


def test_projection_is_the_nearest_picture_that_agrees(pair: tuple[Tensor, Tensor]) -> None:
    picture, y = pair
    moved = RESIDUAL.project(picture + 0.25, y)
    torch.testing.assert_close(moved, picture, rtol=0, atol=1e-6)  # a constant lies outside the null space of averaging


def test_a_class_may_travel_with_the_condition(pair: tuple[Tensor, Tensor]) -> None:
    picture, y = pair
    with_class = torch.cat([y, torch.full_like(y[:, :1], 207.0)], dim=1)
    assert torch.equal(RESIDUAL.encode(picture, with_class), RESIDUAL.encode(picture, y))
    assert torch.equal(RESIDUAL.decode(picture, with_class), RESIDUAL.decode(picture, y))


def test_residuals_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="positive"):
        ResidualTarget(scale=-1.0)
    with pytest.raises(ValueError, match="factor 8"):
        ResidualTarget(factor=8, degradation=AreaDegradation(4))


# --- what goes together -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_mask_refuses_a_schedule_that_does_not_predict_it(prediction_type: str) -> None:
    schedule = NoiseSchedule(prediction_type=prediction_type)
    with pytest.raises(ValueError, match="'sample'"):
        DiffusionLoss(schedule, MaskTarget(4))
    with pytest.raises(ValueError, match="'sample'"):
        DiffusionPredictor(small_mask_denoiser(), schedule=schedule)
    with pytest.raises(ValueError, match="'sample'"):
        Replay(small_mask_denoiser(), schedule, target=MaskTarget(4), generator=torch.Generator())
    for target in (ImageTarget(), ResidualTarget()):
        DiffusionLoss(schedule, target)


def test_a_predictor_refuses_a_denoiser_of_another_scale() -> None:
    with pytest.raises(ValueError, match=r"0\.5.*0\.1"):
        DiffusionPredictor(small_mask_denoiser(scale=0.5), schedule=SAMPLE, target=MaskTarget(4, scale=0.1))
    with pytest.raises(ValueError, match="channels"):
        DiffusionPredictor(small_mask_denoiser(), schedule=SAMPLE, target=MaskTarget(4, scale=0.5), out_channels=3)


def test_a_residual_is_sampled_and_agrees_with_its_condition(generator: torch.Generator) -> None:
    network = small_network(in_channels=3, cond_channels=3, cond_scale=4)
    target = ResidualTarget(factor=4)
    predictor = DiffusionPredictor(network, schedule=SAMPLE, target=target, steps=2, members=2, precision="float32")
    y = 0.4 * torch.rand(2, 3, 4, 6, generator=generator) - 0.2
    members = predictor.ensemble(y)
    assert members.shape == (2, 2, 3, 16, 24)
    unclipped = (members.abs() < 1).float().mean()
    assert unclipped > 0.5
    inside = F.max_pool2d((members.flatten(0, 1).abs() >= 1).float(), 4) == 0
    error = (F.avg_pool2d(members.flatten(0, 1), 4) - y.repeat(2, 1, 1, 1)).abs()
    assert error[inside].max() < 1e-5


def test_a_target_of_ones_own_needs_two_methods(generator: torch.Generator) -> None:
    class Doubled(Target):
        channels = 1

        def encode(self, truth: Tensor, y: Tensor) -> Tensor:
            return 2 * truth

        def decode(self, x_0: Tensor, y: Tensor) -> Tensor:
            return x_0 / 2

    x_0, eps = torch.randn(2, 2, 1, 4, 4, generator=generator).unbind()
    t = torch.tensor([3, 700])
    x_t = SAMPLE.q_sample(x_0, t, eps)
    output = torch.zeros_like(x_0)
    expected = simple_loss(output, x_0, eps, x_t, t, SAMPLE)
    assert torch.equal(Doubled().objective(output, x_0, eps, x_t, t, SAMPLE), expected)
    assert Doubled().picture(x_0).shape == (2, 3, 4, 4)
