"""Batches that do not fit into the memory: drawn again in halves, with the same result."""

from __future__ import annotations

import pytest
import torch
from small_networks import small_mask_denoiser
from torch import Tensor, nn

from cgdpm_med import DiffusionPredictor, NoiseSchedule, sample_ensemble
from cgdpm_med.diffusion.targets import ImageTarget
from cgdpm_med.runtime.batching import AUTO_PIXELS, BatchLimit, is_out_of_memory

SCHEDULE = NoiseSchedule(1000, "cosine", "sample")
CPU = torch.device("cpu")
ERRORS = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
    "numpy": MemoryError(),
}


class Cramped(nn.Module):
    """A denoiser on a device that holds ``room`` fields; it halves what it sees."""

    def __init__(self, room: int, error: BaseException) -> None:
        super().__init__()
        self.room, self.error = room, error
        self.seen: list[int] = []

    def forward(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        self.seen.append(len(x_t))
        if len(x_t) > self.room:
            raise self.error
        return 0.5 * x_t + context


def draw(denoiser: nn.Module, max_batch: int | str | BatchLimit) -> Tensor:
    images = torch.linspace(-1, 1, 3 * 8).reshape(3, 1, 4, 2)
    return sample_ensemble(denoiser, images, SCHEDULE, shape=(1, 4, 2), members=5, steps=2, max_batch=max_batch)


@pytest.mark.parametrize("room", [1, 2, 4, 7, 15])
@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_halves_give_what_the_whole_gives(room: int, error: BaseException) -> None:
    whole = draw(Cramped(99, error), 99)
    cramped = Cramped(room, error)
    # elementwise arithmetic: the batch cannot change even the last bit
    assert torch.equal(draw(cramped, "auto"), whole)
    failed = [n for n in cramped.seen if n > room]
    assert failed == sorted(failed, reverse=True)
    assert len(failed) <= 4


def test_the_limit_is_remembered() -> None:
    limit, cramped = BatchLimit(), Cramped(4, ERRORS["gpu"])
    draw(cramped, limit)
    cramped.seen.clear()
    draw(cramped, limit)
    assert max(cramped.seen) <= 4


def test_one_field_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        draw(Cramped(0, ERRORS["gpu"]), "auto")


def test_other_errors_are_not_swallowed() -> None:
    cramped = Cramped(1, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        draw(cramped, 8)
    assert cramped.seen == [5]


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_out_of_memory_is_recognised(error: BaseException) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(ValueError("out of memory"))


def test_auto_counts_pixels() -> None:
    side = int(AUTO_PIXELS["cpu"] ** 0.5)
    assert BatchLimit().of((side // 2, side // 4), CPU) == 8
    assert BatchLimit().of((side, side), CPU) == BatchLimit().of((4 * side, side), CPU) == 1
    assert BatchLimit(32).of((4096, 4096), CPU) == 32


def test_half_of_what_failed_holds_for_other_sizes() -> None:
    limit = BatchLimit(32)
    limit.halve(32, (128, 128))
    assert [limit.of((n, n), CPU) for n in (64, 128, 256, 512, 1024)] == [32, 16, 4, 1, 1]


@pytest.mark.parametrize("bad", [0, -1, "automatic", 2.5])
def test_bad_limits_are_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="max_batch must be at least 1 or 'auto'"):
        BatchLimit(bad)  # type: ignore[arg-type]


def test_the_predictor_finds_its_batch(generator: torch.Generator) -> None:
    denoiser = Cramped(2, ERRORS["cpu"])
    model = DiffusionPredictor(denoiser, schedule=SCHEDULE, target=ImageTarget(1), members=4, steps=2)
    images = torch.randn(3, 1, 4, 2, generator=generator)
    expected = DiffusionPredictor(
        Cramped(99, ERRORS["cpu"]), schedule=SCHEDULE, target=ImageTarget(1), members=4, steps=2, max_batch=1
    ).ensemble(images)
    assert torch.equal(model.ensemble(images), expected)
    torch.testing.assert_close(model(images), expected.mean(dim=0))


def test_the_mean_holds_few_members_at_once(generator: torch.Generator) -> None:
    model = DiffusionPredictor(small_mask_denoiser(), schedule=SCHEDULE, members=7, steps=2, max_batch=4)
    images = torch.randn(2, 1, 16, 12, generator=generator)
    drawn: list[int] = []
    ensemble = model.ensemble
    model.ensemble = lambda image, member_ids: drawn.append(len(member_ids)) or ensemble(image, member_ids=member_ids)  # type: ignore[assignment, func-returns-value, misc]
    mean = model(images)
    assert drawn == [2, 2, 2, 1]
    torch.testing.assert_close(mean, ensemble(images).mean(dim=0))
