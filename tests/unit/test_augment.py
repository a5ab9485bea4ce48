"""Augmentation of whole batches: exact special cases, a plain-loop twin, labels that follow their image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cgdpm_med.data.augment import AugmentParameters, SliceAugment, change_intensity, warp


def identity(batch: int = 1, **changes: Tensor) -> AugmentParameters:
    zero, one = torch.zeros(batch, 1, 1, 1), torch.ones(batch, 1, 1, 1)
    return AugmentParameters(
        matrix=torch.eye(2).repeat(batch, 1, 1),
        shift=torch.zeros(batch, 2),
        gamma=one,
        gain=one,
        offset=zero,
        blur=zero,
        noise=zero,
        bias=torch.zeros(batch, 1, 4, 4),
    )._replace(**changes)


def pictures(generator: torch.Generator, *shape: int) -> tuple[Tensor, Tensor]:
    """An image in [-1, 1] and labels 0 … 3."""
    batch, _, height, width = shape
    image = 2 * torch.rand(shape, generator=generator) - 1
    label = torch.randint(0, 4, (batch, 1, height, width), generator=generator, dtype=torch.uint8)
    return image, label


# --- geometry ---------------------------------------------------------------------------------------------------------


def test_identity_is_the_centre_crop(generator: torch.Generator) -> None:
    image, label = pictures(generator, 2, 3, 32, 64)
    warped, labels = warp(image, label, *identity(2)[:2], (16, 20))
    assert torch.equal(warped, image[:, :, 8:24, 22:42])  # powers of two: not even rounding
    assert torch.equal(labels, label[:, :, 8:24, 22:42])
    assert labels.dtype == torch.uint8


def test_identity_for_the_sizes_of_the_bundle(generator: torch.Generator) -> None:
    image, label = pictures(generator, 1, 1, 160, 160)
    warped, labels = warp(image, label, *identity()[:2], (128, 128))
    torch.testing.assert_close(warped, image[:, :, 16:144, 16:144], rtol=0, atol=1e-4)
    assert torch.equal(labels, label[:, :, 16:144, 16:144])


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_equal_rot90(turns: int, generator: torch.Generator) -> None:
    image, label = pictures(generator, 1, 2, 32, 32)
    angle = torch.tensor(turns * math.pi / 2)
    matrix = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])[None]
    warped, labels = warp(image, label, matrix, torch.zeros(1, 2), (32, 32))
    torch.testing.assert_close(warped, torch.rot90(image, -turns, (2, 3)), rtol=0, atol=1e-5)
    assert torch.equal(labels, torch.rot90(label, -turns, (2, 3)))


def test_mirror_and_whole_shifts(generator: torch.Generator) -> None:
    image, label = pictures(generator, 1, 1, 32, 32)
    mirror = torch.diag(torch.tensor([-1.0, 1.0]))[None]
    warped, labels = warp(image, label, mirror, torch.zeros(1, 2), (32, 32))
    assert torch.equal(warped, image.flip(2))
    assert torch.equal(labels, label.flip(2))
    # input offset = output offset + shift: the crop moves down by 3 rows and left by 5 columns
    warped, labels = warp(image, label, torch.eye(2)[None], torch.tensor([[3.0, -5.0]]), (16, 16))
    assert torch.equal(warped, image[:, :, 11:27, 3:19])
    assert torch.equal(labels, label[:, :, 11:27, 3:19])


def test_outside_the_image_border_continues_and_labels_end(generator: torch.Generator) -> None:
    image, label = pictures(generator, 1, 1, 8, 8)
    label += 1
    warped, labels = warp(image, label, torch.eye(2)[None], torch.tensor([[8.0, 0.0]]), (8, 8))
    assert torch.equal(warped, image[:, :, 7:].expand(1, 1, 8, 8))
    assert not labels.any()


def warp_loop(
    image: np.ndarray, label: np.ndarray, matrix: np.ndarray, shift: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """One slice (H, W), pixel by pixel in float64."""
    height, width = image.shape
    out, out_label = np.zeros(size), np.zeros(size, dtype=int)
    for r in range(size[0]):
        for c in range(size[1]):
            offset = matrix @ np.array([r - (size[0] - 1) / 2, c - (size[1] - 1) / 2]) + shift
            y, x = offset + np.array([(height - 1) / 2, (width - 1) / 2])
            i, j = round(y), round(x)
            if 0 <= i < height and 0 <= j < width:
                out_label[r, c] = label[i, j]
            y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
            i, j = min(int(y), height - 2), min(int(x), width - 2)
            u, v = y - i, x - j
            out[r, c] = (1 - u) * ((1 - v) * image[i, j] + v * image[i, j + 1]) + u * (
                (1 - v) * image[i + 1, j] + v * image[i + 1, j + 1]
            )
    return out, out_label


def test_warp_equals_a_plain_loop(generator: torch.Generator) -> None:
    image, label = pictures(generator, 3, 2, 13, 18)
    drawn = SliceAugment(shift=4.0, turn_prob=0.5, flip_prob=0.5).draw(3, generator)
    warped, labels = warp(image, label, drawn.matrix, drawn.shift, (9, 12))
    for b in range(3):
        for channel in range(2):
            expected, expected_label = warp_loop(
                image[b, channel].double().numpy(),
                label[b, 0].numpy(),
                drawn.matrix[b].double().numpy(),
                drawn.shift[b].double().numpy(),
                (9, 12),
            )
            np.testing.assert_allclose(warped[b, channel], expected, atol=1e-4)
        np.testing.assert_array_equal(labels[b, 0], expected_label)


def test_soft_labels_are_warped_like_images_and_are_background_outside(generator: torch.Generator) -> None:
    image = torch.zeros(2, 1, 13, 18)
    labels = torch.rand(2, 3, 13, 18, generator=generator).softmax(dim=1)
    drawn = SliceAugment(shift=12).draw(2, generator)
    _, warped = warp(image, labels, drawn.matrix, drawn.shift, (9, 12))
    # against images that continue by zero outside: the same resampling of a field with a wide dark border
    padded = torch.nn.functional.pad(labels, (20, 20, 20, 20))
    expected, _ = warp(padded, torch.zeros(2, 1, 53, 58), drawn.matrix, drawn.shift, (9, 12))
    torch.testing.assert_close(warped[:, 1:], expected[:, 1:])
    torch.testing.assert_close(warped.sum(dim=1), torch.ones(2, 9, 12))
    assert (warped[:, 0] > expected[:, 0] + 0.5).any()


def test_labels_follow_the_image(generator: torch.Generator) -> None:
    """A label rendered as an image is warped like the label, up to the pixels that interpolation mixes at an edge."""
    rows, cols = torch.meshgrid(torch.arange(48.0) - 20, torch.arange(40.0) - 22, indexing="ij")
    label = ((rows / 14) ** 2 + (cols / 9) ** 2 < 1)[None, None].to(torch.uint8).repeat(8, 1, 1, 1)
    drawn = SliceAugment(shift=5.0, turn_prob=0.5, flip_prob=0.5).draw(8, generator)
    picture, labels = warp(label.float(), label, drawn.matrix, drawn.shift, (36, 36))
    certain = (picture - 0.5).abs() > 0.49
    assert certain.float().mean() > 0.8
    assert torch.equal((picture > 0.5)[certain], (labels > 0)[certain])
    assert labels.flatten(1).sum(dim=1).min() > 200


# --- intensity --------------------------------------------------------------------------------------------------------


def test_identity_intensity(generator: torch.Generator) -> None:
    image, _ = pictures(generator, 2, 3, 8, 8)
    unchanged = change_intensity(image, identity(2), torch.randn(image.shape, generator=generator))
    torch.testing.assert_close(unchanged, image, rtol=0, atol=1e-6)


def test_intensity_by_hand() -> None:
    image = torch.full((1, 1, 4, 4), 0.0)  # u = 1/2
    one = torch.ones(1, 1, 1, 1)
    noise = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)

    def value(**changes: Tensor) -> Tensor:
        return change_intensity(image, identity(1, **changes), noise)

    torch.testing.assert_close(value(gamma=2 * one), torch.full_like(image, 2 * 0.25 - 1))
    torch.testing.assert_close(value(gamma=2 * one, gain=1.2 * one), torch.full_like(image, 2 * (0.5 - 0.3) - 1))
    torch.testing.assert_close(value(offset=0.1 * one), torch.full_like(image, 0.2))
    torch.testing.assert_close(value(noise=0.3 * one), 0.3 * noise)
    # the field doubles the signal, whose zero is -1
    torch.testing.assert_close(value(bias=torch.full((1, 1, 4, 4), math.log(2.0))), torch.full_like(image, 1.0))


def test_blur_averages_and_keeps_constants() -> None:
    spot = -torch.ones(1, 1, 9, 9)
    spot[..., 4, 4] = 1
    blurred = change_intensity(spot, identity(1, blur=torch.ones(1, 1, 1, 1)), torch.zeros_like(spot))
    kernel = torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0])  # a box of three, twice
    expected = -torch.ones(9, 9)
    expected[2:7, 2:7] += 2 * torch.outer(kernel, kernel) / 81
    torch.testing.assert_close(blurred[0, 0], expected)
    half = change_intensity(spot, identity(1, blur=torch.full((1, 1, 1, 1), 0.5)), torch.zeros_like(spot))
    torch.testing.assert_close(half, (spot + blurred) / 2)


# --- drawing ----------------------------------------------------------------------------------------------------------


def test_the_generator_decides(generator: torch.Generator) -> None:
    image, label = pictures(generator, 2, 3, 24, 24)
    augment = SliceAugment((16, 16), turn_prob=0.5, noise_prob=1.0)

    def run(seed: int) -> tuple[Tensor, Tensor]:
        return augment(image, label, torch.Generator().manual_seed(seed))

    first, again, other = run(1), run(1), run(2)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    # without one, torch's global generator: what a checkpoint restores
    state = torch.get_rng_state()
    by_default = augment(image, label)
    torch.set_rng_state(state)
    assert torch.equal(by_default[0], augment(image, label)[0])


def test_the_call_is_warp_then_intensity() -> None:
    generator = torch.Generator().manual_seed(3)
    image, label = pictures(generator, 2, 1, 24, 24)
    augment = SliceAugment((16, 16), noise_prob=1.0)
    state = generator.get_state()
    out, labels = augment(image, label, generator)
    generator.set_state(state)
    drawn = augment.draw(2, generator)
    warped, expected_labels = warp(image, label, drawn.matrix, drawn.shift, (16, 16))
    noise = torch.randn(warped.shape, generator=generator)
    assert torch.equal(labels, expected_labels)
    torch.testing.assert_close(out, change_intensity(warped, drawn, noise))


def test_nothing_is_drawn_where_everything_is_off() -> None:
    off = SliceAugment(
        rotate=0, scale=0, shear=0, shift=0, turn_prob=0, flip_prob=0, blur_prob=0, noise_prob=0, intensity_prob=0
    )
    drawn = off.draw(5)
    for name, value in identity(5)._asdict().items():
        assert torch.equal(getattr(drawn, name), value), name


def test_ranges_and_probabilities() -> None:
    settings: dict[str, Any] = {
        "rotate": 0.3,
        "scale": 0.1,
        "shear": 0.0,
        "shift": 7.0,
        "turn_prob": 0.4,
        "flip_prob": 0.25,
    }
    drawn = SliceAugment(**settings, gamma=1.5, intensity_prob=0.5).draw(4000, torch.Generator().manual_seed(0))
    assert drawn.shift.abs().max() <= 7
    assert drawn.shift.abs().max() > 6.9
    scale = drawn.matrix.det()
    assert scale.abs().min() >= 0.9**2
    assert scale.abs().max() <= 1.1**2
    assert (scale < 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    # row 0 of the mirrored column apart, the second column is (-sin, cos) times its stretch
    angle = torch.atan2(-drawn.matrix[:, 0, 1], drawn.matrix[:, 1, 1])
    turned = angle.abs() > 0.3001
    assert turned.float().mean().item() == pytest.approx(0.4, abs=0.03)
    quarter = (angle / (math.pi / 2)).round()
    assert (angle - quarter * math.pi / 2).abs().max() <= 0.3 + 1e-5
    assert {-1, 1, 2} <= {int(q) for q in quarter} | {int(abs(q)) for q in quarter}
    changed = drawn.gamma != 1
    assert changed.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert drawn.gamma.min() >= 1 / 1.5 - 1e-6
    assert drawn.gamma.max() <= 1.5 + 1e-6
