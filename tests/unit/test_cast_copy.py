"""CastCopy: what autocast computes, without casting again; and Autocast, which evaluates it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from small_networks import field, small_mask_denoiser
from torch import Tensor, nn

from cgdpm_med.diffusion.targets import MaskDenoiser
from cgdpm_med.runtime.autocast import Autocast
from cgdpm_med.runtime.precision import CastCopy

CPU = torch.device("cpu")
T = torch.tensor([300]).expand(6)


def fields() -> Tensor:
    return field(6, 4, 16, 16, seed=0)


def images() -> Tensor:
    return field(3, 1, 16, 16, seed=1)


def of(network: MaskDenoiser) -> CastCopy:
    made = CastCopy(network, torch.bfloat16)
    made.refresh()
    return made


def autocast(network: nn.Module | CastCopy) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return network(fields(), T, network.encode(images()))  # type: ignore[no-any-return,operator]


def test_every_bit_is_autocasts() -> None:
    network = small_mask_denoiser().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    expected = autocast(network)
    assert torch.equal(autocast(of(network)), expected)
    with torch.no_grad():
        assert not torch.equal(network(fields(), T, images()), expected)  # bfloat16 is no float32


def test_what_is_cast() -> None:
    kinds = {name.split(".")[-2]: p.dtype for name, p in of(small_mask_denoiser()).copy.named_parameters()}
    assert kinds["conv1"] == kinds["emb"] == torch.bfloat16
    assert kinds["norm1"] == torch.float32


def test_the_network_is_left_alone() -> None:
    network = small_mask_denoiser().train()
    before = copy.deepcopy(network.state_dict())
    made = of(network)
    assert network.training
    assert not made.copy.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in network.parameters())
    assert not any(p.requires_grad for p in made.copy.parameters())
    ours = {p.data_ptr() for p in network.parameters()}
    assert ours.isdisjoint(p.data_ptr() for p in made.copy.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_weights_shared_by_two_layers_stay_shared() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    made = CastCopy(network, torch.bfloat16)
    made.refresh()
    assert made.copy[1].weight is made.copy[0].weight
    assert made.copy[1].weight.dtype == torch.bfloat16


def test_a_bare_function_of_the_condition_is_handed_on() -> None:
    class Plain(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
            return x_t + context

    made = CastCopy(Plain(), torch.bfloat16)
    made.refresh()
    y = fields()
    assert made.encode(y) is y
    assert torch.equal(made(fields(), T, y), 2 * fields())


class Leaves(nn.Module):
    """Its last layer is evaluated in float32."""

    def __init__(self, error: str = "") -> None:
        super().__init__()
        self.first, self.last, self.error = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 1), error

    def forward(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        if self.error:
            raise RuntimeError(self.error)
        h = self.first(x_t)
        with torch.autocast("cpu", enabled=False):
            return self.last(h.float())  # type: ignore[no-any-return]


@torch.no_grad()
def test_a_network_that_leaves_autocast_keeps_its_weights() -> None:
    torch.manual_seed(0)
    network, other = Leaves(), Leaves()
    made = CastCopy(network, torch.bfloat16)
    made.refresh()
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            torch.testing.assert_close(made(fields(), T, fields()), network(fields(), T, fields()))
            made.refresh()
        network.load_state_dict(other.state_dict())
        made.refresh()
        torch.testing.assert_close(made(fields(), T, fields()), other(fields(), T, fields()))


@pytest.mark.parametrize("error", ["something else", "BFloat16 whatever the weights"])
def test_other_faults_are_told(error: str) -> None:
    made = CastCopy(Leaves(error), torch.bfloat16)
    made.refresh()
    with pytest.raises(RuntimeError, match=error):
        made(fields(), T, fields())


@pytest.mark.parametrize("assign", [False, True])
def test_new_weights_are_taken(assign: bool) -> None:
    network, other = small_mask_denoiser(0), small_mask_denoiser(1)
    made = of(network)
    evaluated = made.copy
    network.load_state_dict(other.state_dict(), assign=assign)
    made.refresh()
    assert made.copy is evaluated  # what was compiled or recorded of it stays
    assert torch.equal(autocast(made), autocast(of(other)))


@pytest.mark.parametrize("fused", [False, True])
def test_steps_of_an_optimiser_are_taken(fused: bool) -> None:
    network = small_mask_denoiser()
    made = of(network)
    before = autocast(made)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, fused=fused)
    network(fields(), T, images()).square().mean().backward()
    optimizer.step()
    made.refresh()
    after = autocast(made)
    assert torch.equal(after, autocast(of(network)))
    assert not torch.allclose(before, after, atol=0.01)


def test_another_structure_makes_another_copy() -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    made = CastCopy(network, torch.bfloat16)
    made.refresh()
    network.append(nn.Linear(2, 3))
    made.refresh()
    assert len(made.copy) == 2


def test_copies_do_not_travel() -> None:
    made = of(small_mask_denoiser())
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert other.copy is None
        assert other.network is not made.network
        assert torch.equal(autocast(other), autocast(made))


def test_autocast_takes_new_weights_at_a_refresh() -> None:
    network, other = small_mask_denoiser(0), small_mask_denoiser(1)
    low = Autocast(network, CPU, torch.bfloat16)
    before = low(fields(), T, low.encode(images()))
    network.load_state_dict(other.state_dict())
    low.refresh()
    after = low(fields(), T, low.encode(images()))
    assert not torch.allclose(before, after, atol=0.01)
    fresh = Autocast(other, CPU, torch.bfloat16)
    assert torch.equal(after, fresh(fields(), T, fresh.encode(images())))


def test_autocast_in_float32_evaluates_the_network_itself() -> None:
    network = small_mask_denoiser().train()
    full = Autocast(network, CPU, torch.float32)
    assert full.copy is None
    assert not network.training
    calls = []
    network.register_forward_hook(lambda *_: calls.append(1))
    full(fields(), T, full.encode(images()))
    assert calls == [1]
