"""Slices with their neighbours, keyed augmentation, and an order that depends on the seed and the epoch alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, RandFlipd, RandGaussianNoised
from torch import Tensor
from torch.utils.data import DataLoader

from cgdpm_med.data.slices import EpochSampler, SliceDataset, slice_places, slice_stack, with_places


def volume_of(depth: int, start: int = 0) -> dict[str, Tensor]:
    """Slice z of the image is constant start + z, of the label z % 4."""
    z = torch.arange(depth, dtype=torch.float32)
    shape = (1, 3, 2, depth)
    return {"image": (start + z).expand(shape).clone(), "label": (z % 4).expand(shape).clone()}


# --- stacks -----------------------------------------------------------------------------------------------------------


def test_neighbours_by_hand() -> None:
    stack = slice_stack(volume_of(3, start=10)["image"], neighbours=1)
    assert stack.shape == (3, 3, 3, 2)
    assert stack[:, :, 0, 0].tolist() == [[10, 10, 11], [10, 11, 12], [11, 12, 12]]


def test_two_neighbours_of_a_single_slice() -> None:
    assert slice_stack(volume_of(1, start=7)["image"], neighbours=2)[:, :, 0, 0].tolist() == [[7] * 5]


def test_stack_without_neighbours_is_the_slices(generator: torch.Generator) -> None:
    volume = torch.rand(2, 3, 4, 5, generator=generator)
    stack = slice_stack(volume)
    assert stack.shape == (5, 2, 3, 4)
    for z in range(5):
        assert torch.equal(stack[z], volume[..., z])


def test_channels_of_several_modalities_stay_together(generator: torch.Generator) -> None:
    volume = torch.rand(2, 3, 4, 5, generator=generator)
    stack = slice_stack(volume, neighbours=1)
    assert torch.equal(stack[2], torch.cat([volume[..., 1], volume[..., 2], volume[..., 3]]))


# --- places -----------------------------------------------------------------------------------------------------------


def of_gap(depth: int, gap: float) -> MetaTensor:
    """A tilted stack whose slices lie ``gap`` mm apart."""
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, 2] = gap * torch.tensor([0.6, 0.0, -0.8])
    return MetaTensor(torch.zeros(1, 3, 2, depth), affine=affine)


def test_places_by_hand() -> None:
    five = torch.tensor([[-1, -0.4], [-0.5, -0.2], [0, 0], [0.5, 0.2], [1, 0.4]])
    torch.testing.assert_close(slice_places(of_gap(5, 10)), five)
    torch.testing.assert_close(slice_places(of_gap(2, 25)), torch.tensor([[-1, -0.25], [1, 0.25]]))


def test_a_single_slice_lies_in_the_middle() -> None:
    assert slice_places(of_gap(1, 8)).tolist() == [[0, 0]]


def test_places_need_millimetres() -> None:
    with pytest.raises(ValueError, match="affine"):
        slice_places(torch.zeros(1, 3, 2, 4))


def test_places_become_planes_after_the_image(generator: torch.Generator) -> None:
    stack = torch.rand(2, 3, 4, 5, generator=generator)
    shown = with_places(stack, torch.tensor([[-1.0, 0.25], [1.0, 0.5]]))
    assert shown.shape == (2, 5, 4, 5)
    assert torch.equal(shown[:, :3], stack)
    assert torch.equal(shown[1, 3:], torch.stack([torch.ones(4, 5), torch.full((4, 5), 0.5)]))


def test_items_know_their_place() -> None:
    volumes = [{"image": of_gap(n, 10), "label": torch.zeros(1, 3, 2, n)} for n in (3, 2)]
    data = SliceDataset(volumes, places=True)
    assert [data[i]["place"].tolist() for i in range(5)] == [
        pytest.approx(place) for place in ([-1, -0.2], [0, 0], [1, 0.2], [-1, -0.1], [1, 0.1])
    ]
    assert "place" not in SliceDataset(volumes)[0]


# --- data set ---------------------------------------------------------------------------------------------------------


def test_data_set_holds_every_slice_of_every_volume() -> None:
    volumes = [volume_of(3, start=10), {key: MetaTensor(value) for key, value in volume_of(2, start=20).items()}]
    data = SliceDataset(volumes, neighbours=1)
    assert len(data) == 5
    assert [data[i]["image"][1, 0, 0].item() for i in range(5)] == [10, 11, 12, 20, 21]
    # neighbours never come from the next volume
    assert data[2]["image"][:, 0, 0].tolist() == [11, 12, 12]
    assert data[3]["image"][:, 0, 0].tolist() == [20, 20, 21]
    assert [data[i]["label"][0, 0, 0].item() for i in range(5)] == [0, 1, 2, 0, 1]
    assert data[4]["label"].dtype == torch.uint8
    assert type(data[4]["image"]) is Tensor


def test_soft_labels_stay_soft() -> None:
    probabilities = torch.tensor([0.25, 0.75]).reshape(2, 1, 1, 1).expand(2, 3, 2, 2)
    data = SliceDataset([{"image": torch.zeros(1, 3, 2, 2), "label": probabilities}])
    assert data[1]["label"].tolist() == probabilities[..., 1].tolist()


def test_no_volumes() -> None:
    with pytest.raises(ValueError, match="no volumes"):
        SliceDataset([])


def augmentation() -> Compose:
    return Compose([RandFlipd("image", prob=0.5, spatial_axis=0), RandGaussianNoised("image", prob=1.0)])


def image_of(item: dict[str, Any]) -> Tensor:
    return torch.as_tensor(item["image"]).as_subclass(Tensor)


def test_augmentation_is_a_function_of_seed_epoch_and_slice() -> None:
    volumes = [volume_of(4)]
    forwards = SliceDataset(volumes, augmentation(), seed=1)
    backwards = SliceDataset(volumes, augmentation(), seed=1)
    keys = [(epoch, i) for epoch in (1, 2) for i in range(4)]
    first = {key: image_of(forwards[key]) for key in keys}
    second = {key: image_of(backwards[key]) for key in reversed(keys)}
    assert all(torch.equal(first[key], second[key]) for key in keys)
    noise = {key: image - image.mean() for key, image in first.items()}
    assert not torch.allclose(noise[1, 0], noise[2, 0])
    assert not torch.allclose(noise[1, 0], noise[1, 1])
    other_seed = image_of(SliceDataset(volumes, augmentation(), seed=2)[1, 0])
    assert not torch.equal(other_seed, first[1, 0])
    assert torch.equal(image_of(forwards[0]), image_of(forwards[0, 0]))


def test_augmentation_leaves_the_stored_slices_alone() -> None:
    data = SliceDataset([volume_of(2)], augmentation())
    data[1, 0], data[1, 1]
    assert [image[0, 0, 0].item() for image in data.images] == [0, 1]


# --- order ------------------------------------------------------------------------------------------------------------


def order(sampler: EpochSampler, epoch: int) -> list[tuple[int, int]]:
    sampler.set_epoch(epoch)
    return list(sampler)


def test_order_is_a_function_of_seed_and_epoch() -> None:
    sampler = EpochSampler(23, seed=4, batch_size=5)
    third = order(sampler, 3)
    order(sampler, 4)
    assert order(sampler, 3) == third
    assert order(EpochSampler(23, seed=4, batch_size=5), 3) == third
    assert [i for _, i in order(sampler, 4)] != [i for _, i in third]
    assert [i for _, i in order(EpochSampler(23, seed=5, batch_size=5), 3)] != [i for _, i in third]
    assert {epoch for epoch, _ in third} == {3}


def test_an_epoch_visits_whole_batches_of_distinct_slices() -> None:
    sampler = EpochSampler(23, batch_size=5)
    indices = [i for _, i in sampler]
    assert len(indices) == len(sampler) == 20
    assert len(set(indices)) == 20
    assert set(indices) <= set(range(23))
    # what one epoch leaves out, others visit
    assert set().union(*({i for _, i in order(sampler, epoch)} for epoch in range(8))) == set(range(23))


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_order_of_one(world_size: int) -> None:
    length, batch_size = 31, 4
    alone = order(EpochSampler(length, seed=9, batch_size=batch_size * world_size), 2)
    shares = [
        order(EpochSampler(length, seed=9, batch_size=batch_size, rank=rank, world_size=world_size), 2)
        for rank in range(world_size)
    ]
    # step by step: the batches of all processes, side by side, are the one process's batch
    steps = len(shares[0]) // batch_size
    together = [
        pair for step in range(steps) for share in shares for pair in share[step * batch_size : (step + 1) * batch_size]
    ]
    assert together == alone
    assert len({len(share) for share in shares}) == 1


def test_too_few_items_for_a_batch() -> None:
    with pytest.raises(ValueError, match=r"7 items fill no batch of 4 on 2 process"):
        EpochSampler(7, batch_size=4, rank=0, world_size=2)


def test_loader_hands_epoch_and_index_to_the_data_set() -> None:
    data = SliceDataset([volume_of(6)], augmentation(), seed=3)
    sampler = EpochSampler(6, seed=3, batch_size=2)
    sampler.set_epoch(7)
    loaded = [image for batch in DataLoader(data, batch_size=2, sampler=sampler) for image in image_of(batch)]
    expected = [image_of(data[7, i]) for _, i in order(sampler, 7)]
    assert len(loaded) == 6
    assert all(torch.equal(a, b) for a, b in zip(loaded, expected, strict=True))
