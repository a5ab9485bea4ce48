"""The model file: what it says comes back, MONAI's loaders take it, and what does not fit is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load_script
from ignite.engine import Engine, Events
from monai.handlers import CheckpointLoader
from monai.networks.nets import DynUNet
from small_networks import small_network
from torch import Tensor, nn

from cgdpm_med import (
    ClassConditioned,
    ConditionalUNet,
    ConditionOnly,
    ImageTarget,
    InputError,
    MaskTarget,
    NoiseLevelConditioned,
    NoiseSchedule,
    Regression,
    ResidualTarget,
    Target,
)
from cgdpm_med.diffusion.degradation import AreaDegradation
from cgdpm_med.diffusion.sampling import Sampling
from cgdpm_med.diffusion.targets import MaskDenoiser
from cgdpm_med.models.description import (
    Label,
    ModelDescription,
    PictureInput,
    SliceInput,
    TrainingData,
    VolumeInput,
)
from cgdpm_med.models.files import (
    OldModelWarning,
    check_continues,
    describe,
    describe_file,
    load_model,
    save_model,
    weights_for_walk,
)
from cgdpm_med.models.rebuild import described, rebuilt
from cgdpm_med.models.weights import digest_of, load_weights, save_weights, weights_digest

SCHEDULE = NoiseSchedule(100, "cosine", "sample")
INPUT = VolumeInput(spacing=1.5, field=64, neighbours=1, percentiles=(2, 98))
LABELS = ["RV", {"name": "Myo", "colour": "00ff00"}, "LV"]
PICTURE = PictureInput(32)


def network(seed: int = 0, **changes: Any) -> ConditionalUNet:
    return small_network(seed, **{"cond_channels": 3, **changes})


def mask_description(net: nn.Module | None = None, **changes: Any) -> ModelDescription:
    parts: dict[str, Any] = {"target": MaskTarget(4, 0.3), "schedule": SCHEDULE, "input": INPUT, "labels": LABELS}
    return describe(net or network(), **{**parts, **changes})


@pytest.fixture
def denoiser(tmp_path: Path) -> Path:
    """A model file of seed 1."""
    training = TrainingData(("b", "a"), "digest")
    save_model(tmp_path / "model.pt", network(1), mask_description(training=training))
    return tmp_path / "model.pt"


def test_all_of_a_model_comes_back(denoiser: Path) -> None:
    model = load_model(denoiser)
    wanted = network(1).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.network.state_dict().items())
    assert not model.network.training
    assert model.target == MaskTarget(4, 0.3)
    assert (model.schedule.T, model.schedule.prediction_type) == (100, "sample")
    assert torch.equal(model.schedule.beta, SCHEDULE.beta)
    assert model.input == INPUT
    assert model.input.channels == ("slice 1 before", "slice", "slice 1 after")
    assert model.description.labels == (Label("RV"), Label("Myo", "#00ff00"), Label("LV"))
    assert model.channel_names == {"0": "background", "1": "RV", "2": "Myo", "3": "LV"}
    assert model.description.training == TrainingData(("a", "b"), "digest")
    assert model.description.versions["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert model.multiple == 2
    assert model.digest == digest_of(wanted) == weights_digest(denoiser)


def test_an_input_that_shows_places(tmp_path: Path) -> None:
    """Two channels more; a file that shows none is written as before the field existed."""
    shown = replace(INPUT, places=True)
    assert shown.channels == (*INPUT.channels, "place in the stack", "distance from its middle")
    wider = network(cond_channels=5)
    save_model(tmp_path / "model.pt", wider, mask_description(wider, input=shown))
    assert load_model(tmp_path / "model.pt").input == shown
    assert "places" not in mask_description().as_dict()["input"]
    with pytest.raises(InputError, match="shows 5 channels of its image, its network sees 3"):
        mask_description(input=shown)


def test_loading_leaves_the_random_state_alone(denoiser: Path) -> None:
    before = torch.get_rng_state()
    load_model(denoiser)
    assert torch.equal(torch.get_rng_state(), before)


def networks() -> list[nn.Module]:
    plain = DynUNet(2, 3, 4, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 8], norm_name=("INSTANCE", {"affine": True}))
    return [
        network(fusion="input", patch_size=2, num_head_channels=8),
        ClassConditioned(network(num_classes=5)),
        Regression(network()),
        NoiseLevelConditioned(network(), SCHEDULE),
        ConditionOnly(plain),
    ]


@pytest.mark.parametrize("number", range(5))
def test_every_network_is_made_again(number: int, tmp_path: Path) -> None:
    net = networks()[number]
    save_model(tmp_path / "model.pt", net, mask_description(net))
    again = load_model(tmp_path / "model.pt").network
    assert type(again) is type(net)
    assert described(again) == described(net)
    assert digest_of(again.state_dict()) == digest_of(net.state_dict())


@pytest.mark.parametrize(
    "target",
    [
        MaskTarget(4, class_weights=(1.0, 2.0, 3.0, 4.0)),
        ImageTarget(4, 2, learn_sigma=True),
        ResidualTarget(4, 4, 2.0, AreaDegradation(4), project_steps=True),
    ],
)
def test_every_target_is_made_again(target: Target) -> None:
    content = json.loads(json.dumps(described(target)))
    again = rebuilt(content)
    assert type(again) is type(target)
    assert described(again) == content


# --- what others read -------------------------------------------------------------------------------------------------


def test_monais_loader_takes_the_tensors(denoiser: Path) -> None:
    net = network(2)
    engine = Engine(lambda engine, batch: None)
    CheckpointLoader(load_path=str(denoiser), load_dict={"model": net}).attach(engine)
    engine.fire_event(Events.STARTED)
    assert digest_of(net.state_dict()) == weights_digest(denoiser)


def test_the_entry_model_is_a_state_dict(denoiser: Path) -> None:
    content = torch.load(denoiser, weights_only=True)
    assert set(content) == {"model", "description"}
    net = network(2)
    net.load_state_dict(content.get("model", content))  # as MONAI Label does, and MONAI FL
    assert json.loads(json.dumps(content["description"])) == content["description"]


def test_load_weights_reads_both_kinds(denoiser: Path, tmp_path: Path) -> None:
    save_weights(network(1), tmp_path / "plain.pt")
    for path in (denoiser, tmp_path / "plain.pt"):
        assert digest_of(load_weights(network(2), path).state_dict()) == digest_of(network(1).state_dict())
    assert weights_digest(tmp_path / "plain.pt") == weights_digest(denoiser)


def test_the_digest_sees_names_types_shapes_and_values() -> None:
    tensors = {"a": torch.zeros(2, 2), "b": torch.tensor(1)}
    digests = {
        digest_of(changed)
        for changed in (
            tensors,
            {**tensors, "a": torch.zeros(4)},
            {**tensors, "a": torch.zeros(2, 2, dtype=torch.int32)},
            {**tensors, "a": torch.ones(2, 2)},
            {"c": tensors["a"], "b": tensors["b"]},
        )
    }
    assert len(digests) == 5
    assert digest_of(dict(reversed(tensors.items()))) == digest_of(tensors)


def test_a_file_of_version_0_1_is_read_with_a_description_and_a_note(tmp_path: Path) -> None:
    save_weights(network(1), tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"model\.pt: is of version 0\.1"):
        load_model(tmp_path / "model.pt")
    (tmp_path / "said.json").write_text(json.dumps(mask_description().as_dict()))
    with pytest.warns(OldModelWarning) as notes:
        model = load_model(tmp_path / "model.pt", description=tmp_path / "said.json")
    assert len(notes) == 1
    assert digest_of(model.network.state_dict()) == digest_of(network(1).state_dict())


# --- half precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_a_file_in_half_precision_is_read_as_float32(
    denoiser: Path, tmp_path: Path, dtype: torch.dtype, error: float
) -> None:
    half = tmp_path / "half.pt"
    save_model(half, network(1), mask_description(), dtype)
    content = torch.load(half, weights_only=True)
    assert {tensor.dtype for tensor in content["model"].values()} == {dtype}
    assert content["description"]["precision"] == str(dtype).removeprefix("torch.")
    model, wanted = load_model(half), network(1).state_dict()
    for name, tensor in model.network.state_dict().items():
        assert tensor.dtype == torch.float32
        assert bool(((tensor - wanted[name]).abs() <= error * wanted[name].abs() + 2**-25).all())
    assert model.digest == digest_of(content["model"])

    save_model(tmp_path / "again.pt", model.network, model.description, dtype)
    again = load_model(tmp_path / "again.pt")
    assert again.digest == model.digest
    assert again.description.rounded_from == model.description.rounded_from == weights_digest(denoiser)


def test_weights_trained_on_are_described_anew(denoiser: Path, tmp_path: Path) -> None:
    """A network that was read and changed is not the one that its description was of."""
    save_model(tmp_path / "half.pt", network(1), mask_description(), torch.float16)
    save_model(tmp_path / "guidance.pt", network(5), mask_description(guides=denoiser))
    model = load_model(tmp_path / "half.pt")
    save_model(tmp_path / "copy.pt", model.network, model.description)
    copy = load_model(tmp_path / "copy.pt")
    assert (copy.digest, copy.description) == (model.digest, model.description)
    copy.guide(tmp_path / "guidance.pt")

    with torch.no_grad():
        next(model.network.parameters()).add_(0.1)
    save_model(tmp_path / "changed.pt", model.network, model.description)
    changed = load_model(tmp_path / "changed.pt")
    assert (changed.description.precision, changed.description.rounded_from) == ("float32", None)
    assert digest_of(changed.network.state_dict()) == digest_of(model.network.state_dict())
    with pytest.raises(InputError, match="another denoiser"):
        changed.guide(tmp_path / "guidance.pt")


def test_a_half_weighs_half(denoiser: Path, tmp_path: Path) -> None:
    for name, dtype in (("whole", None), ("half", torch.float16)):
        save_model(tmp_path / name, {"a": torch.zeros(100_000), "n": torch.tensor(3)}, mask_description(), dtype)
    assert (tmp_path / "half").stat().st_size < 0.55 * (tmp_path / "whole").stat().st_size
    assert torch.load(tmp_path / "half", weights_only=True)["model"]["n"].dtype == torch.int64


def test_a_guidance_network_guides_its_denoiser_in_half_precision_too(denoiser: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "guidance.pt", network(5), mask_description(guides=denoiser), torch.float16)
    for name, seed in (("half.pt", 1), ("other.pt", 2)):
        save_model(tmp_path / name, network(seed), mask_description(), torch.float16)
    guide = load_model(tmp_path / "half.pt").guide(tmp_path / "guidance.pt")
    assert next(guide.parameters()).dtype == torch.float32
    with pytest.raises(InputError, match="another denoiser"):
        load_model(tmp_path / "other.pt").guide(tmp_path / "guidance.pt")


def test_weights_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    large = {"a": torch.tensor([7e4])}
    with pytest.raises(InputError, match="bfloat16"):
        save_model(tmp_path / "model.pt", large, mask_description(), torch.float16)
    assert not (tmp_path / "model.pt").exists()
    save_model(tmp_path / "model.pt", large, mask_description(), torch.bfloat16)


# --- guidance ---------------------------------------------------------------------------------------------------------


def test_a_guidance_network_knows_its_denoiser(denoiser: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "guidance.pt", network(5), mask_description(guides=denoiser))
    guide = load_model(denoiser).guide(tmp_path / "guidance.pt")
    assert guide.weighting == "sample"
    assert digest_of(guide.network.state_dict()) == digest_of(network(5).state_dict())
    save_model(tmp_path / "other.pt", network(2), mask_description())
    with pytest.raises(InputError, match="another denoiser"):
        load_model(tmp_path / "other.pt").guide(tmp_path / "guidance.pt")
    with pytest.raises(InputError, match="is a denoiser"):
        load_model(denoiser).guide(tmp_path / "other.pt")
    with pytest.raises(InputError, match="is a guidance network"):
        load_model(tmp_path / "guidance.pt")
    save_weights(network(6), tmp_path / "old.pt")  # of version 0.1
    assert load_model(denoiser).guide(tmp_path / "old.pt").weighting == "sample"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"target": MaskTarget(4, 0.1)}, "target"),
        ({"schedule": NoiseSchedule(50, "cosine", "sample")}, "schedule"),
        ({"input": replace(INPUT, spacing=2.0)}, "input"),
        ({"labels": ["LV", "Myo", "RV"]}, "labels"),
    ],
)
def test_stage_2_of_another_configuration_is_refused(denoiser: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=rf"model\.pt: was trained with another {named}"):
        mask_description(guides=denoiser, **changes)


def test_stage_2_takes_a_denoiser_whose_file_leaves_defaults_out(denoiser: Path) -> None:
    changed(denoiser, lambda said: said["target"].update(arguments={"num_classes": 4, "scale": 0.3}))
    assert mask_description(guides=denoiser).kind == "guidance"


# --- distillation -----------------------------------------------------------------------------------------------------


def distilled(path: Path, teacher: Path, seed: int = 5) -> Path:
    save_model(path, network(seed), mask_description(teacher=teacher, walk=(99, 66)))
    return path


def test_a_distilled_network_says_its_walk_and_its_teacher(denoiser: Path, tmp_path: Path) -> None:
    model = load_model(distilled(tmp_path / "few.pt", denoiser))
    assert model.walk == (99, 66)
    assert model.description.teacher == weights_digest(denoiser)
    assert load_model(denoiser).walk == ()
    assert replace(model.description, walk=(66, 99)).walk == (99, 66)
    assert not {"walk", "teacher"} & load_model(denoiser).description.as_dict().keys()  # version 0.2 reads it


@pytest.mark.parametrize("sides", [{}, {"region": (64, 48), "patch": (32, 32)}])
def test_a_slice_without_a_region_is_written_as_version_0_2_reads_it(sides: dict[str, Any]) -> None:
    seen = SliceInput(1.0, ("MR",), **sides)
    content = ModelDescription("denoiser", {}, {}, {}, seen).as_dict()
    assert {"region", "patch"} & content["input"].keys() == sides.keys()
    assert ModelDescription.from_dict(content).input == seen


CALM: dict[str, Any] = {"timesteps": (99, 66), "noise_scale": 0.5}


def test_a_distilled_network_is_a_denoiser_on_its_walk_alone(denoiser: Path, tmp_path: Path) -> None:
    model = load_model(distilled(tmp_path / "few.pt", denoiser))
    assert isinstance(model.denoiser(Sampling(timesteps=(66, 99))), MaskDenoiser)
    for other in ({"steps": 2}, {"timesteps": (99, 50)}, {"timesteps": (99, 66), "method": "ddpm"}, CALM):
        with pytest.raises(InputError, match="distilled for DDIM at the timesteps 99, 66"):
            model.denoiser(Sampling(**other))
    assert isinstance(load_model(denoiser).denoiser(Sampling(steps=2)), MaskDenoiser)


def test_a_distilled_network_serves_its_walk_and_its_teacher_every_other(tmp_path: Path) -> None:
    teacher = tmp_path / "denoiser" / "model.pt"
    save_model(teacher, network(1), mask_description())
    weights = distilled(tmp_path / "model.pt", teacher)
    for own in (None, (99, 66), [66, 99]):
        assert weights_for_walk(weights, own) == weights
    assert weights_for_walk(weights, other=True) == teacher
    assert weights_for_walk(weights, (99, 66), other=True) == teacher
    assert weights_for_walk(weights, (99, 66, 33)) == teacher
    save_model(teacher, network(1), mask_description(), torch.float16)  # the same, rounded
    assert weights_for_walk(weights, other=True) == teacher
    save_model(teacher, network(2), mask_description())  # trained on
    with pytest.raises(InputError, match=r"distilled for DDIM at the timesteps 99, 66, and its teacher is not in"):
        weights_for_walk(weights, other=True)
    teacher.unlink()
    with pytest.raises(InputError, match="its teacher is not in"):
        weights_for_walk(weights, (99, 50))
    assert weights_for_walk(weights) == weights


def test_what_is_not_distilled_serves_every_walk(denoiser: Path, tmp_path: Path) -> None:
    save_weights(network(1), tmp_path / "old.pt")  # of version 0.1
    for weights in (denoiser, tmp_path / "old.pt"):
        assert weights_for_walk(weights, (99, 66), other=True) == weights


def test_a_distilled_network_teaches_and_is_guided_by_none(denoiser: Path, tmp_path: Path) -> None:
    few = distilled(tmp_path / "few.pt", denoiser)
    with pytest.raises(InputError, match="is no denoiser at others"):
        mask_description(teacher=few, walk=(99,))
    with pytest.raises(InputError, match="is no denoiser at others"):
        mask_description(guides=few)
    with pytest.raises(InputError, match="was trained with another target"):
        mask_description(teacher=denoiser, walk=(99,), target=MaskTarget(4, 0.1))


def test_a_training_does_not_go_on_with_another_walk_or_teacher(denoiser: Path, tmp_path: Path) -> None:
    few = distilled(tmp_path / "few.pt", denoiser)
    said = load_model(few).description
    check_continues(few, said)
    for changed_description in (replace(said, walk=(99,)), replace(said, teacher="f" * 64), mask_description()):
        with pytest.raises(InputError, match=r"walk|teacher"):
            check_continues(few, changed_description)


@pytest.mark.parametrize("changes", [{"walk": (99, 66)}, {"teacher": "digest"}])
def test_walk_and_teacher_come_together(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a walk and a teacher"):
        replace(mask_description(), **changes)


# --- a class of one's own ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Doubled(Target):
    """Twice the truth."""

    factor: float = 2.0

    channels = 4
    predicts = "sample"

    def encode(self, truth: Tensor, y: Tensor) -> Tensor:
        return self.factor * truth

    def decode(self, x_0: Tensor, y: Tensor) -> Tensor:
        return x_0 / self.factor


def test_a_target_of_ones_own_is_made_only_where_it_is_allowed(tmp_path: Path) -> None:
    save_model(tmp_path / "model.pt", network(), mask_description(target=Doubled(3.0), labels=()))
    name = f"{__name__}.Doubled"
    with pytest.raises(InputError, match="is not known") as error:
        load_model(tmp_path / "model.pt")
    assert name in str(error.value.remedy)
    for allow in ([name], [Doubled]):
        assert load_model(tmp_path / "model.pt", allow=allow).target == Doubled(3.0)


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"target": MaskTarget(3), "labels": ["a", "b"]}, "3 channels, its network makes 4"),
        ({"labels": ["a", "b"]}, "2 labels for 4 classes"),
        ({"schedule": NoiseSchedule()}, "schedule that does not fit"),
        ({"input": replace(INPUT, neighbours=2)}, "shows 5 channels of its image, its network sees 3"),
        ({"labels": [{"name": "a", "colour": "red"}, "b", "c"]}, "red"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_the_training(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        mask_description(**changes)


def test_a_network_that_its_arguments_do_not_make_is_refused() -> None:
    net = network()
    net.head = nn.Identity()
    with pytest.raises(InputError, match="changed after it was made"):
        mask_description(net)
    with pytest.raises(InputError, match="does not say how it was made"):
        mask_description(nn.Conv2d(3, 4, 1))


def changed(path: Path, change: Any) -> Path:
    content = torch.load(path, weights_only=True)
    change(content["description"])
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda d: d.pop("target"), "target"),
        (lambda d: d.update(mood="good"), "mood is unknown"),
        (lambda d: d.update(kind="other"), "denoiser, guidance"),
        (lambda d: d.update(precision="float8"), "float8"),
        (lambda d: d["input"].update(kind="sound"), "volume, picture"),
        (lambda d: d["input"].pop("kind"), "kind is missing"),
        (lambda d: d["input"].update(spacing=-1.0), "no input can be so"),
        (lambda d: d["input"].update(view="long-axis"), "long-axis"),
        (lambda d: d["network"].update({"class": "os.system"}), r"os\.system, which is not known"),
        (lambda d: d["network"]["arguments"].update(channels=[8]), "cannot be"),
        (lambda d: d["network"]["arguments"].update(channels=[8, 24]), "belongs to another network"),
        (lambda d: d["target"]["arguments"].update(num_classes=3), "3 channels"),
        (lambda d: d.update(network=[1]), "network"),
        (lambda d: d.update(training={"patients": [1]}), "patients"),
    ],
)
def test_a_description_that_cannot_be_is_one_error(denoiser: Path, change: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as error:
        load_model(changed(denoiser, change))
    assert error.value.path == denoiser


def test_what_a_file_says_in_plain_values(denoiser: Path) -> None:
    said = describe_file(denoiser)
    assert json.loads(json.dumps(said)) == said
    assert said["digest"] == weights_digest(denoiser)
    assert said["parameters"] == sum(p.numel() for p in network().parameters())
    assert (said["input"]["kind"], said["input"]["spacing"]) == ("volume", 1.5)
    again = {name: value for name, value in said.items() if name not in ("digest", "parameters")}
    assert ModelDescription.from_dict(again) == load_model(denoiser).description


def test_a_picture_model(tmp_path: Path) -> None:
    net = small_network(in_channels=3, cond_channels=3, cond_scale=2)
    said = describe(net, ImageTarget(3, 2), SCHEDULE, PICTURE)
    save_model(tmp_path / "model.pt", net, said)
    model = load_model(tmp_path / "model.pt")
    assert (model.input, model.channel_names) == (PICTURE, {})
    assert model.target.size_factor == 2


def test_what_a_picture_model_was_trained_on_can_be_said_afterwards(tmp_path: Path) -> None:
    net = small_network(in_channels=3, cond_channels=3, cond_scale=2)
    save_model(tmp_path / "a.pt", net, describe(net, ImageTarget(3, 2), SCHEDULE, PICTURE))
    round_file = load_script("round_weights").round_file
    round_file(tmp_path / "a.pt", tmp_path / "b.pt", torch.float16, {"shows": "single faces"})
    known = load_model(tmp_path / "b.pt").input
    assert known == PICTURE  # a guidance network of the one is of the other
    assert known.shows == "single faces"
    with pytest.raises(InputError, match="at least one pixel"):
        round_file(tmp_path / "a.pt", tmp_path / "c.pt", torch.float16, {"window": 0})
