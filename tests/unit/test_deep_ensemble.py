"""Members over several networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import field, small_network
from torch import Tensor

from cgdpm_med import DiffusionPredictor, InputError, MaskTarget, NoiseSchedule, describe, load_model, save_model
from cgdpm_med.inference.deep_ensemble import DeepEnsemble, over_networks
from cgdpm_med.models.description import VolumeInput

TARGET = MaskTarget(4, scale=0.5)
SCHEDULE = NoiseSchedule(schedule="cosine", prediction_type="sample")
IMAGES = field(3, 1, 8, 8, seed=5)


def predictor(seed: int, **dials: Any) -> DiffusionPredictor:
    settings: dict[str, Any] = {"members": 5, "steps": 2, "seed": 7, "precision": "float32", **dials}
    return DiffusionPredictor(TARGET.denoiser(small_network(seed)), None, SCHEDULE, TARGET, **settings)


def test_member_k_is_that_of_network_k_modulo_their_number() -> None:
    networks = [predictor(seed) for seed in range(3)]
    alone = [network.ensemble(IMAGES) for network in networks]

    drawn = DeepEnsemble(networks).ensemble(IMAGES)

    assert drawn.shape == (5, 3, 4, 8, 8)
    for k in range(5):
        assert torch.equal(drawn[k], alone[k % 3][k]), k
    assert not torch.equal(alone[0][1], alone[1][1])  # or the places would say nothing


def test_the_members_asked_for_are_given_in_their_order() -> None:
    ensemble = DeepEnsemble([predictor(0), predictor(1)])
    every = ensemble.ensemble(IMAGES)

    assert torch.equal(ensemble.ensemble(IMAGES, member_ids=[4, 1, 2]), every[[4, 1, 2]])
    torch.testing.assert_close(ensemble(IMAGES), every.mean(dim=0))
    with pytest.raises(ValueError, match="at least one member"):
        ensemble.ensemble(IMAGES, member_ids=[])


def test_one_network_given_twice_draws_what_it_draws_alone() -> None:
    one = predictor(0)
    assert torch.equal(DeepEnsemble([one, predictor(0)]).ensemble(IMAGES), one.ensemble(IMAGES))


def test_keys_name_the_noise_for_every_network() -> None:
    ensemble = DeepEnsemble([predictor(0), predictor(1)])
    same = torch.cat([IMAGES[:1], IMAGES[:1]])

    drawn = ensemble.ensemble(same, keys=["a", "a"])

    torch.testing.assert_close(drawn[:, 0], drawn[:, 1])
    assert not torch.allclose(ensemble.ensemble(same, keys=["a", "b"])[:, 1], drawn[:, 1])


@pytest.mark.parametrize(("shared", "evaluated"), [(False, [6, 4]), (True, [4, 3])])
def test_each_network_makes_a_shared_first_step_once(shared: bool, evaluated: list[int]) -> None:
    """5 members of 2 steps, 3 and 2 of them: 3 * 2 and 2 * 2 evaluations, or 1 + 3 and 1 + 2."""
    counted = [0, 0]

    def counting(place: int) -> Callable[[Any, tuple[Any, ...]], None]:
        def count(_module: Any, arguments: tuple[Any, ...]) -> None:
            counted[place] += len(arguments[0])

        return count

    networks = [predictor(seed, shared_first_step=shared) for seed in range(2)]
    for place, network in enumerate(networks):
        network.denoiser.register_forward_pre_hook(counting(place))

    DeepEnsemble(networks).ensemble(IMAGES[:1])

    assert counted == evaluated


def test_progress_counts_every_field_once() -> None:
    done: list[int] = []
    DeepEnsemble([predictor(0), predictor(1)]).ensemble(IMAGES, progress=done.append)
    assert sum(done) == 15


def test_what_cannot_be_drawn_together_is_refused() -> None:
    guided = DiffusionPredictor(TARGET.denoiser(small_network(0)), small_network(1), SCHEDULE, TARGET)
    with pytest.raises(ValueError, match="guidance"):
        DeepEnsemble([predictor(0), guided])
    with pytest.raises(ValueError, match="at least one network"):
        DeepEnsemble([])
    two = MaskTarget(2, scale=0.5)
    other = DiffusionPredictor(two.denoiser(small_network(0, in_channels=2)), None, SCHEDULE, two)
    with pytest.raises(ValueError, match="other channels"):
        DeepEnsemble([predictor(0), other])


# --- model files ------------------------------------------------------------------------------------------------------


def model_file(path: Path, seed: int = 0, target: MaskTarget = TARGET, spacing: float = 1.5, **network: Any) -> Path:
    made = small_network(seed, **network)
    seen = VolumeInput(spacing=spacing, field=32, neighbours=0, percentiles=(1, 99))
    save_model(path, made, describe(made, target, SCHEDULE, seen, labels=["a", "b", "c"]))
    return path


def drawn_over(first: Path, *further: Path, **how: Any) -> DiffusionPredictor | DeepEnsemble:
    model = load_model(first)
    denoiser = model.target.denoiser(model.network)
    return over_networks(model, further, denoiser, schedule=model.schedule, target=model.target, **how)


def test_files_of_further_networks_join_that_of_the_first(tmp_path: Path) -> None:
    files = [model_file(tmp_path / f"{seed}.pt", seed) for seed in range(2)]
    dials: dict[str, Any] = {"members": 4, "steps": 2, "seed": 7, "precision": "float32"}

    def members(*some: Path) -> Tensor:
        return drawn_over(*some, **dials).ensemble(IMAGES)

    assert isinstance(drawn_over(files[0], **dials), DiffusionPredictor)
    first, second = members(files[0]), members(files[1])
    torch.testing.assert_close(members(*files), torch.stack([first[0], second[1], first[2], second[3]]), rtol=0, atol=0)


def test_files_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    first = model_file(tmp_path / "first.pt")
    for name, wrong, said in (
        ("spacing.pt", {"spacing": 1.25}, "another input than first.pt"),
        ("scale.pt", {"target": MaskTarget(4, scale=0.1)}, "another target than first.pt"),
        ("deep.pt", {"patch_size": 2}, "another depth of the network than first.pt"),
    ):
        with pytest.raises(InputError, match=said) as refused:
            drawn_over(first, model_file(tmp_path / name, **wrong), members=2)  # type: ignore[arg-type]
        assert refused.value.path == tmp_path / name
    with pytest.raises(InputError, match="1 members cannot be drawn over 2 networks") as refused:
        drawn_over(first, first, members=1)
    assert refused.value.remedy == "Set members to 2 or more"


def test_guidance_is_refused_with_further_networks(tmp_path: Path) -> None:
    first = model_file(tmp_path / "first.pt")
    with pytest.raises(InputError, match="belongs to one denoiser"):
        drawn_over(first, first, guide=small_network(1))


def test_one_file_loaded_into_the_ensemble_is_its_first_networks(tmp_path: Path) -> None:
    """As MONAI Label loads the bundle's model.pt into network_def."""
    files = [model_file(tmp_path / f"{seed}.pt", seed) for seed in range(3)]
    ensemble = drawn_over(files[0], files[1], members=4, precision="float32")
    wanted = drawn_over(files[2], files[1], members=4, precision="float32")

    ensemble.load_state_dict(torch.load(files[2], weights_only=True)["model"], strict=True)

    assert torch.equal(ensemble.ensemble(IMAGES), wanted.ensemble(IMAGES))
    ensemble.load_state_dict(wanted.state_dict(), strict=True)
