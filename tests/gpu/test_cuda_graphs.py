"""GraphReplay without a GPU: what it decides, with a stand-in for CUDA graphs that runs the function again."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from small_networks import field, small_mask_denoiser
from torch import Tensor
from torch.utils import _pytree as pytree

from cgdpm_med.runtime import cuda_graphs
from cgdpm_med.runtime.cuda_graphs import GraphReplay, Recorder, Recording


class Again:
    """Replays by computing anew from the inputs in place."""

    def __init__(self, call: Callable[..., Any], inputs: list[Tensor | None], nesting: Any) -> None:
        self.call, self.inputs, self.nesting = call, inputs, nesting
        self.outputs, self.nested = pytree.tree_flatten(self.compute())
        self.replays = 0

    def compute(self) -> Any:
        with torch.no_grad():
            return self.call(*pytree.tree_unflatten(self.inputs, self.nesting))

    def replay(self) -> None:
        self.replays += 1
        for place, value in zip(self.outputs, pytree.tree_leaves(self.compute()), strict=True):
            if place is not None:
                place.copy_(value)


def again(call: Callable[..., Any], inputs: list[Tensor | None], nesting: Any) -> Recording:
    graph = Again(call, inputs, nesting)
    return Recording(graph, inputs, graph.outputs, graph.nested)


def recorder() -> Recorder:
    return again


def replay_of(network: torch.nn.Module, dtype: torch.dtype = torch.float32) -> GraphReplay:
    made = GraphReplay(network, dtype, new_recorder=recorder)
    made.refresh()
    return made


def fields(count: int = 6, size: int = 16, seed: int = 0) -> Tensor:
    return field(count, 4, size, size, seed=seed)


def images(seed: int = 0) -> Tensor:
    return field(3, 1, 16, 16, seed=seed)


@pytest.fixture
def replay() -> GraphReplay:
    return replay_of(small_mask_denoiser(0))


@torch.no_grad()
def test_every_call_is_the_networks(replay: GraphReplay) -> None:
    network, t = small_mask_denoiser(0), torch.tensor([700])
    for call in range(8):
        y = images(call // 4)  # another condition after four steps
        if call % 4 == 0:
            features, expected_features = replay.encode(y), network.encode(y)
            for found, expected in zip(*map(pytree.tree_leaves, (features, expected_features)), strict=True):
                assert (found is None) == (expected is None)
                if found is not None:
                    torch.testing.assert_close(found, expected)
        x_t, times = fields(seed=call), (t - 100 * call % 300).expand(6)
        torch.testing.assert_close(replay(x_t, times, features), network(x_t, times, expected_features))
    graphs: list[Any] = [recording.graph for recording in replay.recordings]
    assert sum(graph.replays for graph in graphs) == 8  # 7 of 8 evaluations, 1 of 2 encodings


@torch.no_grad()
def test_results_are_the_callers_own(replay: GraphReplay) -> None:
    features, times = replay.encode(images()), torch.tensor([5]).expand(6)
    first, second, third = (replay(fields(seed=seed), times, features) for seed in (0, 1, 2))
    kept = second.clone()
    assert not torch.equal(second, third)
    replay(fields(seed=3), times, features)
    assert torch.equal(second, kept)
    assert not torch.equal(first, second)


@torch.no_grad()
def test_one_recording_for_every_shape_and_way_to_give_t(replay: GraphReplay) -> None:
    features = replay.encode(images())
    for _ in range(3):
        for count in (3, 6):
            replay(fields(count), torch.tensor([5]).expand(count), features)
        replay(fields(6), torch.tensor([5, 6, 7, 8, 9, 10]), features)
    network = small_mask_denoiser(0)
    t = torch.tensor([900, 6, 7, 8, 9, 10])
    torch.testing.assert_close(replay(fields(6), t, features), network(fields(6), t, features))
    assert len(replay.recordings) == 3


@torch.no_grad()
def test_new_weights_are_taken(replay: GraphReplay) -> None:
    features, times = replay.encode(images()), torch.tensor([5]).expand(6)
    for _ in range(3):
        before = replay(fields(), times, features)
    replay.source.network.load_state_dict(small_mask_denoiser(1).state_dict())
    replay.refresh()
    assert replay.recordings  # read the weights where they are
    features = replay.encode(images())
    for _ in range(3):
        after = replay(fields(), times, features)
        torch.testing.assert_close(after, small_mask_denoiser(1)(fields(), times, images()))
    assert not torch.allclose(before, after)


@torch.no_grad()
def test_recordings_of_another_copy_are_not_replayed(replay: GraphReplay) -> None:
    features, times = replay.encode(images()), torch.tensor([5]).expand(6)
    for _ in range(3):
        expected = replay(fields(), times, features)
    assert replay.recordings
    replay.source.copy = None  # as a network that leaves autocast makes it
    torch.testing.assert_close(replay(fields(), times, features), expected)
    assert not replay.recordings
    for _ in range(3):
        torch.testing.assert_close(replay(fields(), times, features), expected)
    assert replay.recordings


@torch.no_grad()
def test_the_least_used_recording_goes_first(replay: GraphReplay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "RECORDINGS", 2)
    features, times = small_mask_denoiser(0).encode(images()), torch.tensor([5])
    for count in (3, 3, 6, 6, 3, 9, 9):
        replay(fields(count), times.expand(count), features)
    assert [recording.inputs[0].shape[0] for recording in replay.recordings] == [3, 9]  # type: ignore[union-attr]


@torch.no_grad()
def test_lower_precision_keeps_norms(replay: GraphReplay) -> None:
    low = replay_of(small_mask_denoiser(0), torch.bfloat16)
    kinds = {name.rpartition(".")[0].rpartition(".")[2]: p.dtype for name, p in low.source.copy.named_parameters()}
    assert kinds["conv1"] == torch.bfloat16
    assert kinds["norm1"] == torch.float32
    assert {p.dtype for p in low.source.network.parameters()} == {torch.float32}


def test_recordings_stay_behind_in_copies(replay: GraphReplay) -> None:
    with torch.no_grad():
        for _ in range(3):
            replay(fields(), torch.tensor([5]).expand(6), images())
    for other in (copy.deepcopy(replay), pickle.loads(pickle.dumps(replay))):
        assert replay.recordings
        assert not other.recordings
        assert other.source.network is not replay.source.network


def test_what_holds_more_than_tensors_runs_as_it_stands() -> None:
    class Odd(torch.nn.Module):
        def forward(self, x_t: Tensor, t: Tensor, context: str) -> Tensor:
            return x_t + len(context)

    odd = replay_of(Odd())
    for _ in range(3):
        assert torch.equal(odd(fields(), torch.tensor([5]).expand(6), "abc"), fields() + 3)
    assert not odd.recordings


@torch.no_grad()
def test_recordings_give_way_to_an_evaluation(replay: GraphReplay) -> None:
    features, times = replay.encode(images()), torch.tensor([5])
    for _ in range(2):
        replay(fields(3), times.expand(3), features)
    evaluate, failures = replay.source.copy.forward, [torch.OutOfMemoryError("no memory"), ValueError("another fault")]

    def full(x_t: Tensor, t: Tensor, context: Any) -> Tensor:
        if failures:
            raise failures.pop(0)
        return evaluate(x_t, t, context)

    replay.source.copy.forward = full
    expected = small_mask_denoiser(0)(fields(6), times.expand(6), features)
    with pytest.raises(ValueError, match="another fault"):  # of the second attempt, which followed the first
        replay(fields(6), times.expand(6), features)
    assert not replay.recordings
    torch.testing.assert_close(replay(fields(6), times.expand(6), features), expected)
    failures.append(torch.OutOfMemoryError("no memory"))
    with pytest.raises(torch.OutOfMemoryError):  # nothing is left to give up
        replay(fields(9), times.expand(9), features)


def test_threads_take_turns(replay: GraphReplay) -> None:
    network, times = small_mask_denoiser(0), torch.tensor([5]).expand(6)

    @torch.no_grad()
    def difference(seed: int) -> float:
        features = replay.encode(images(seed))
        expected = network(fields(seed=seed), times, network.encode(images(seed)))
        return max((replay(fields(seed=seed), times, features) - expected).abs().max().item() for _ in range(5))

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(difference, range(16))) < 1e-5
