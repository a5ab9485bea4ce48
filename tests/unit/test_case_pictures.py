"""Pictures for people have the pixels they should, and losses are counted in the right band."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cgdpm_med.diffusion.losses import DiffusionLoss
from cgdpm_med.diffusion.schedule import NoiseSchedule
from cgdpm_med.diffusion.targets import ImageTarget
from cgdpm_med.images.case_pictures import contoured, doubtful, enlarged, outline, shown, table_of
from cgdpm_med.training.handlers import spoken_time
from cgdpm_med.training.watching import BandedLoss


def test_an_outline_runs_inside_and_stops_at_the_edge_of_the_picture() -> None:
    mask = np.zeros((5, 5), bool)
    mask[1:, 1:4] = True
    expected = mask.copy()
    expected[2:, 2] = False  # the lowest row goes on below the picture
    np.testing.assert_array_equal(outline(mask), expected)


def test_small_pictures_are_enlarged_by_whole_factors() -> None:
    assert enlarged(np.zeros((60, 100), np.uint8)).shape == (180, 300)
    assert enlarged(np.zeros((300, 400, 3), np.uint8)).shape == (300, 400, 3)


def test_contours_have_the_class_colour_and_the_inside_stays() -> None:
    image, mask = np.full((32, 32, 3), 7, np.uint8), np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 2
    drawn = contoured(image, mask, {1: "#ff0000", 2: "#00ff00"})
    assert tuple(drawn[8 * 8, 8 * 8]) == (0, 255, 0)
    assert tuple(drawn[128, 128]) == (7, 7, 7)
    assert not (drawn == (255, 0, 0)).all(axis=-1).any()


def test_grey_and_colour_images_and_doubt() -> None:
    grey = shown(np.linspace(-3, 5, 64).reshape(1, 8, 8))
    assert grey.shape == (8, 8, 3)
    assert (grey[..., 0] == grey[..., 2]).all()
    assert (grey.min(), grey.max()) == (0, 255)
    assert tuple(doubtful(np.array([[0, 1]], np.float32), side=2)[0, 1]) == (255, 255, 255)


def test_a_table_holds_every_tile_and_the_colours_of_its_legend() -> None:
    colours = (10, 90, 200), (20, 70, 150)
    tiles = [np.full((20, 20, 3), value, np.uint8) for value in colours]
    table = table_of([tiles, tiles[::-1]], ["a", "b"], ["one", "two"], [("#ff0000", "spot")])
    for value in colours:
        assert (table == value).all(axis=-1).sum() == 2 * 20 * 20
    assert (table == (255, 0, 0)).all(axis=-1).any()


class Zero(torch.nn.Module):
    def forward(self, x: Tensor, t: Tensor, context: object) -> Tensor:
        return torch.zeros_like(x)


def test_losses_by_band_are_those_of_their_timesteps() -> None:
    """The network answers 0, so the loss of an example is the square of its picture, here its timestep / 1000."""
    drawn = torch.tensor([3, 400, 420, 999])

    def timesteps(*_: object) -> Tensor:
        return drawn

    inner = DiffusionLoss(NoiseSchedule(prediction_type="sample"), ImageTarget(channels=1), timesteps)
    loss = BandedLoss(inner, bands=4)
    x_0 = (drawn.float() / 1000).reshape(4, 1, 1, 1).expand(4, 1, 3, 3)
    total = loss(Zero(), x_0)
    torch.testing.assert_close(total, (drawn.float() / 1000).square().mean())
    found = loss.take()
    assert list(found) == ["t 0 to 249", "t 250 to 499", "t 750 to 999"]
    np.testing.assert_allclose(list(found.values()), [9e-6, (0.16 + 0.1764) / 2, 0.998001], rtol=1e-4)
    assert loss.take() == {}


def test_times_are_said_as_people_say_them() -> None:
    assert [spoken_time(seconds) for seconds in (0.2, 42, 700, 9000)] == ["1 s", "42 s", "12 min", "2.5 h"]
