"""The super-resolution bundles under MONAI: verified, trained, resumed, run and evaluated on generated pictures."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml  # type: ignore[import-untyped]
from conftest import REPO, load_script, shared_path
from ignite.engine import Events
from monai.bundle import ConfigParser, ConfigWorkflow, verify_metadata, verify_net_in_out
from PIL import Image
from tiny_adm import NUM_HEADS, write_tiny_adm

from cgdpm_med import (
    ClassConditioned,
    ImageTarget,
    InputError,
    NoiseLevelConditioned,
    Regression,
    ResidualTarget,
    SuperResolver,
    super_resolve,
)
from cgdpm_med.apps.load_resolver import load_resolver
from cgdpm_med.images import read_picture
from cgdpm_med.inference.bundles import bundle_path, list_bundles, list_recipes
from cgdpm_med.models import load_model, save_model, save_weights
from cgdpm_med.models.files import OldModelWarning
from cgdpm_med.models.rebuild import rebuilt

FACES = ("face_sr_16_128", "face_sr_64_512")
IMAGENET = ("imagenet_sr_64_256", "imagenet_sr_128_512")
PHOTO = "photo_sr_64_256"
OWN = (*FACES, PHOTO)  # networks of our own on plain folders of pictures; the others are ADM's, and know classes
BUNDLES = (*OWN, *IMAGENET)
# in which two sizes of a bundle differ: pixels, the network, the budget, and the names of ADM's files
VALUES = {"size", "channels", "attention_levels", "num_res_blocks", "epochs", "iterations", "batch_size", "warmup"}
VALUES |= {
    "steps",
    "learning_rate",
    "ema_momentum",
    "timestep_power",
    "patch_size",
    "held_out",
    "cached",
    "workers",
    "max_batch",
}
VALUES |= {"weights", "initial_weights", "model"}
CLASSES = {"n00000001": 0, "n00000002": 1}
SIZE, FACTOR = 16, 4  # of configs/sr_smoke.yaml


pytestmark = pytest.mark.usefixtures("leaves_no_determinism")


def write_pictures(folder: Path, count: int, seed: int, size: tuple[int, int] = (20, 26)) -> None:
    """Smooth colours with a little texture."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(40, 216, (3, 4, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC)).astype(int)
        array = (smooth + rng.integers(-8, 9, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(array).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``faces``, ``imagenet`` and a small ADM file."""
    root = tmp_path_factory.mktemp("pictures")
    write_pictures(root / "faces", 10, seed=1)
    for place, wnid in enumerate(CLASSES):
        write_pictures(root / "imagenet" / "train" / wnid, 4, seed=2 + place)
        write_pictures(root / "imagenet" / "val" / wnid, 2, seed=4 + place)
    write_tiny_adm(root / "adm.pt")
    return root


def configs(bundle: str) -> Path:
    return bundle_path(bundle) / "configs"


def settings(bundle: str, data: Path) -> dict[str, Any]:
    """What a test of this bundle gives in place of the user."""
    given: dict[str, Any] = {"bundle_root": str(configs(bundle).parent), "device": "$torch.device('cpu')"}
    given |= {"precision": "float32", "dataset_dir": str(data / ("faces" if bundle in OWN else "imagenet"))}
    return given


def adm(kind: str, data: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """What ImageNet's bundles are told of the small ADM file, and of the two classes."""
    if kind == "train":
        return {"initial_weights": str(data / "adm.pt"), "num_heads": NUM_HEADS, "classes": CLASSES}
    of_data = {"datalist#classes": CLASSES} if "evaluate" in names else {}
    return {"weights": str(data / "adm.pt"), "model#num_heads": NUM_HEADS, "model#window": SIZE, **of_data}


def small(bundle: str, data: Path, kind: str, names: tuple[str, ...]) -> dict[str, Any]:
    """What configs/sr_smoke.yaml cannot shrink, as not every bundle has it."""
    if bundle == PHOTO:
        return ({"field": 20} if kind == "train" else {}) | ({"reference_size": SIZE} if "evaluate" in names else {})
    return adm(kind, data, names) if bundle in IMAGENET else {}


def workflow(bundle: str, data: Path, kind: str, *names: str, **overrides: Any) -> ConfigWorkflow:
    """The bundle's configuration with the smoke settings on top, initialised; a name with a slash is below the root."""
    files = [REPO / name if "/" in name else configs(bundle) / f"{name}.yaml" for name in names]
    flow = ConfigWorkflow(
        [str(file) for file in (*files, REPO / "configs" / "sr_smoke.yaml")],
        str(configs(bundle) / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        **{**settings(bundle, data), **small(bundle, data, kind, names), **overrides},
    )
    flow.initialize()
    return flow


def train(bundle: str, data: Path, output: Path, *more: str, **overrides: Any) -> ConfigWorkflow:
    return workflow(bundle, data, "train", "train", *more, output_dir=str(output), **overrides)


@pytest.fixture(scope="module", params=BUNDLES)
def trained(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A bundle and the output folder of an uninterrupted run of two epochs, one iteration each."""
    output = tmp_path_factory.mktemp(request.param)
    train(request.param, data, output).run()
    return request.param, output


def weights_of(bundle: str, output: Path) -> dict[str, Any]:
    """Settings for inference with what stage 1 has left there."""
    return {"weights": str(output / "model.pt"), **({} if bundle in OWN else {"class_index": 1})}


# --- the folder -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bundle", BUNDLES)
def test_a_bundle_is_complete(bundle: str) -> None:
    folder = configs(bundle).parent
    names = ["metadata.json", "train.yaml", "train_guidance.yaml", "inference.yaml", "evaluate.yaml"]
    files = [*(f"configs/{n}" for n in (*names, "multi_gpu_train.yaml", "logging.conf")), "LICENSE"]
    assert [f for f in (*files, "docs/README.md", "docs/data_license.txt") if not (folder / f).is_file()] == []
    metadata = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert metadata["version"] in metadata["changelog"]


@pytest.mark.parametrize("bundle", BUNDLES)
def test_metadata_follow_the_schema(bundle: str, tmp_path: Path) -> None:
    schema = shutil.copyfile(shared_path("reference", "meta_schema_20240725.json"), tmp_path / "schema.json")
    hash_val = "06954cad2cc5d3784e72077ac76f0fc8"
    verify_metadata(meta_file=str(configs(bundle) / "metadata.json"), filepath=str(schema), hash_val=hash_val)


@pytest.mark.parametrize("bundle", BUNDLES)
def test_metadata_agree_with_the_network(bundle: str, data: Path, tmp_path: Path) -> None:
    """Networks of our own in their full width, on a small picture; ImageNet's is the small ADM file's."""
    files = (str(configs(bundle) / name) for name in ("metadata.json", "inference.yaml"))
    given = {**settings(bundle, data), "device": "cpu"}
    given |= {"weights": str(untrained(bundle, tmp_path))} if bundle in OWN else adm("infer", data, ())
    verify_net_in_out("network_def", *files, n=1, steps=1, **given)


def untrained(bundle: str, folder: Path) -> Path:
    """A model file of the bundle's own network, in its full width."""
    parser = ConfigParser()
    parser.read_config(str(configs(bundle) / "train.yaml"))
    network, description = (parser.get_parsed_content(key) for key in ("network_def", "description"))
    save_model(folder / "model.pt", network, description)
    return folder / "model.pt"


@pytest.mark.parametrize("pair", [FACES, IMAGENET])
def test_two_sizes_differ_in_values_alone(pair: tuple[str, str]) -> None:
    """The two bundles are one set of files: whoever mends one mends the other."""
    for file in sorted(path.name for path in configs(pair[0]).glob("*.yaml")):
        one, other = (yaml.safe_load((configs(bundle) / file).read_text(encoding="utf-8")) for bundle in pair)
        assert list(one) == list(other)
        differing = {key for key in one if one[key] != other[key]}
        assert differing <= (VALUES if file in ("train.yaml", "inference.yaml") else set()), file


def test_photographs_are_trained_as_faces_are() -> None:
    """A copy: what is mended in one is mended in the other, but for crops, data and numbers."""
    apart = VALUES | {"field", "factor", "target", "description", "pictures", "preprocessing", "augmentation"}
    apart |= {"dataset_dir", "shrink", "shrink_prob", "val_interval", "reference_size", "summary", "pairs_of_pictures"}
    for file in sorted(path.name for path in configs(PHOTO).glob("*.yaml")):
        one, other = (yaml.safe_load((configs(b) / file).read_text(encoding="utf-8")) for b in (PHOTO, FACES[0]))
        assert {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)} <= apart, file


@pytest.mark.parametrize("bundle", [*list_bundles(), *list_recipes()])
def test_no_key_is_equal_by_hand_in_training_and_use(bundle: str) -> None:
    """What both state can come to differ without a word; the model file says it instead."""
    assert load_script("house").equal_by_hand(bundle_path(bundle)) == []


@pytest.mark.parametrize("bundle", ["face_sr_16_128", PHOTO])
def test_weights_of_small_bundles_fit_in_one_file_of_the_model_zoo(bundle: str) -> None:
    parser = ConfigParser()
    parser.read_config(str(configs(bundle) / "train.yaml"))
    with torch.device("meta"):
        network = parser.get_parsed_content("network_def")
    assert 2 * sum(p.numel() for p in network.parameters()) < 25e6  # bytes, in float16


# --- training ---------------------------------------------------------------------------------------------------------


def test_training_leaves_weights_and_curves(trained: tuple[str, Path]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, output = trained
    events = EventAccumulator(str(output / "tensorboard")).Reload()
    assert len(events.Scalars("train_loss")) == 2
    assert [point.step for point in events.Scalars("val_psnr")] == [1, 2]
    best = max(point.value for point in events.Scalars("val_psnr"))
    assert 3 < best < 40  # dB; black against white is 0
    state = torch.load(output / "checkpoint.pt", weights_only=True)
    assert state["best"]["best"] == pytest.approx(best, abs=1e-4)
    last = load_model(output / "model_last.pt")
    assert all(torch.equal(tensor, state["ema"][name]) for name, tensor in last.network.state_dict().items())
    assert last.input.window == SIZE


def test_monai_finds_what_its_applications_need(trained: tuple[str, Path], data: Path, tmp_path: Path) -> None:
    bundle = trained[0]
    for more in ((), ("evaluate",)):
        flow = train(bundle, data, tmp_path, *more)
        assert flow.check_properties() == []
    for name in ("dataset", "dataset_data", "preprocessing", "handlers", "inferer"):
        assert getattr(flow, f"train_{name}") is not None
        assert getattr(flow, f"val_{name}") is not None
    assert flow.val_interval == 1
    flow.evaluator.run()
    assert list(flow.evaluator.state.metrics) == ["val_psnr"]
    assert not (tmp_path / "model.pt").exists()  # an evaluation leaves the weights of a training alone


def test_a_stopped_run_continues_as_if_it_had_not(trained: tuple[str, Path], data: Path, tmp_path: Path) -> None:
    bundle, output = trained
    stopped = train(bundle, data, tmp_path)

    def power_cut() -> None:
        raise KeyboardInterrupt

    stopped.parser.get_parsed_content("train#trainer").add_event_handler(Events.ITERATION_COMPLETED(once=2), power_cut)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    train(bundle, data, tmp_path).run()
    there, here = (torch.load(run / "checkpoint.pt", weights_only=True) for run in (output, tmp_path))
    assert here["place"] == there["place"] == {"epoch": 2, "iteration": 2}
    for part in ("network", "ema"):
        assert all(torch.equal(here[part][name], there[part][name]) for name in there[part])
    assert here["best"] == there["best"]


@pytest.mark.parametrize("bundle", ["face_sr_16_128", "imagenet_sr_64_256"])
def test_several_processes_save_what_one_reads(
    bundle: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    flow = train(bundle, data, tmp_path, "multi_gpu_train", epochs=1)
    flow.run()
    assert isinstance(flow.parser.get_parsed_content("network"), torch.nn.parallel.DistributedDataParallel)
    flow.finalize()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    network = flow.parser.get_parsed_content("network_def")
    assert state["network"].keys() == state["ema"].keys() == network.state_dict().keys()


# --- guidance ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_guidance_network_is_trained_on_the_frozen_denoiser(
    trained: tuple[str, Path], data: Path, tmp_path: Path
) -> None:
    bundle, output = trained
    stage1 = str(output / "model.pt")
    fast = {"learning_rate": 1e-2, "warmup": 1}  # two steps are to leave a trace
    train(bundle, data, tmp_path, "train_guidance", denoiser_weights=stage1, **fast).run()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["place"] == {"epoch": 2, "iteration": 2}
    guidance = torch.load(tmp_path / "guidance_last.pt", weights_only=True)["model"]
    assert any(tensor.abs().max() > 0 for name, tensor in guidance.items() if ".head." in f".{name}")  # it began at 0

    common = weights_of(bundle, output)
    pictures = data / "faces"
    image = read_picture(pictures / "0.png").pixels[None]
    results = {
        scale: workflow(
            bundle,
            data,
            "infer",
            "inference",
            dataset_dir=str(pictures),
            guidance_weights=str(tmp_path / "guidance_last.pt"),
            guidance_scale=scale,
            **common,
        ).parser.get_parsed_content("resolver")(image)
        for scale in (0.0, 1.0)
    }
    assert results[0.0].shape == (1, 1, 3, 80, 104)
    assert not torch.equal(results[0.0], results[1.0])


@pytest.mark.parametrize("bundle", BUNDLES)
def test_the_guidance_network_is_looked_for_beside_the_denoiser(bundle: str, tmp_path: Path) -> None:
    parser = ConfigParser()
    parser.read_config(str(configs(bundle) / "inference.yaml"))
    parser["weights"] = str(tmp_path / "model.pt")
    assert parser.get_parsed_content("guidance_weights") == str(tmp_path / "guidance" / "guidance.pt")
    (tmp_path / "guidance.pt").touch()
    parser.parse(reset=True)
    assert parser.get_parsed_content("guidance_weights") == str(tmp_path / "guidance.pt")


def test_the_guidance_network_of_adm_itself(data: Path, tmp_path: Path) -> None:
    """Without stage 1: frozen is ADM's own file, which the guidance network names and no other."""
    bundle = "imagenet_sr_64_256"
    train(bundle, data, tmp_path, "train_guidance").run()
    given: dict[str, Any] = {"guidance_weights": str(tmp_path / "guidance.pt"), "guidance_scale": 1.0}
    flow = workflow(bundle, data, "infer", "inference", class_index=1, **given)
    assert flow.parser.get_parsed_content("resolver").predictor.guide is not None
    flow = workflow(bundle, data, "infer", "inference", class_index=1, project=False, **given)
    with pytest.raises(RuntimeError) as refused:
        flow.parser.get_parsed_content("resolver")
    assert "samples that agree with their input" in str(refused.value.__cause__)
    assert "Set project to true" in str(refused.value.__cause__)
    other = write_tiny_adm(tmp_path / "other.pt", seed=1)
    flow = workflow(bundle, data, "infer", "inference", class_index=1, **given, weights=str(other))
    with pytest.raises(RuntimeError) as refused:
        flow.parser.get_parsed_content("resolver")
    assert "trained to guide another denoiser" in str(refused.value.__cause__)


# --- inference and evaluation -----------------------------------------------------------------------------------------


def test_inference_survives_a_bad_file_and_the_engine_agrees(
    trained: tuple[str, Path], data: Path, tmp_path: Path
) -> None:
    bundle, output = trained
    source = tmp_path / "in"
    (source / "deeper").mkdir(parents=True)
    shutil.copyfile(data / "faces" / "0.png", source / "deeper" / "a.png")
    given = {"dataset_dir": str(source), **weights_of(bundle, output)}

    engine = workflow(bundle, data, "infer", "inference", output_dir=str(tmp_path / "engine"), **given)
    assert engine.check_properties() == []
    engine.parser.get_parsed_content("evaluator").run()

    (source / "broken.png").write_bytes(b"no picture")
    flow = workflow(bundle, data, "infer", "inference", output_dir=str(tmp_path / "out"), **given)
    with pytest.raises(RuntimeError) as stopped:
        flow.run()
    assert isinstance(stopped.value.__cause__, InputError)
    assert re.search(r"1 input failed: broken", str(stopped.value.__cause__))
    fine = Image.open(tmp_path / "out" / "deeper" / "a.png")
    assert fine.size == (26 * FACTOR, 20 * FACTOR)
    assert np.array_equal(np.asarray(fine), np.asarray(Image.open(tmp_path / "engine" / "deeper" / "a.png")))


def test_evaluation_scores_what_it_can(trained: tuple[str, Path], data: Path, tmp_path: Path) -> None:
    bundle, output = trained
    flow = workflow(
        bundle, data, "infer", "inference", "evaluate", output_dir=str(tmp_path), **weights_of(bundle, output)
    )
    flow.run()
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["pictures"] == (10 if bundle in OWN else 4)
    assert summary["settings"]["size"] == SIZE
    assert summary["settings"]["steps"] == 2
    with (tmp_path / "pictures.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == summary["pictures"]
    # an application that drives the engine gets the same scores
    assert flow.check_properties() == []
    flow.evaluator.run()
    engine = flow.evaluator.state.metrics["val_psnr"]
    assert engine == pytest.approx(sum(float(row["psnr_output"]) for row in rows) / len(rows), abs=1e-3)
    mean = sum(float(row["psnr_output"]) for row in rows) / len(rows)
    assert summary["means"]["output"]["psnr"] == pytest.approx(mean, rel=1e-4)
    assert Image.open(tmp_path / "sheet_00.png").size[0] == 4 * SIZE + 3 * 2


def test_every_picture_is_refined_with_its_own_class(data: Path, tmp_path: Path) -> None:
    """Evaluation takes the class from the folder, so it must equal inference told the same class."""
    flow = workflow("imagenet_sr_64_256", data, "infer", "inference", "evaluate", output_dir=str(tmp_path))
    resolver = flow.parser.get_parsed_content("resolver")
    coarse = torch.linspace(-1, 1, 2 * 3 * 16).reshape(2, 3, 4, 4)
    both = resolver(coarse, ["a", "b"], classes=[0, 1])
    # both pictures of one class, in a batch of the same size: one picture alone is rounded differently
    same = [resolver(coarse, ["a", "b"], classes=[k, k]) for k in (0, 1)]
    for place in (0, 1):
        torch.testing.assert_close(both[:, place], same[place][:, place], atol=1e-6, rtol=0)
        assert (both[:, place] - same[1 - place][:, place]).abs().max() > 1e-2
    with pytest.raises(InputError, match="needs the class"):
        resolver(coarse)


def test_the_command_line_hands_the_class_to_a_bundle(data: Path) -> None:
    given: dict[str, Any] = {"window": 16, "model#num_heads": NUM_HEADS, "steps": 2, "device": "cpu"}
    resolver = load_resolver(data / "adm.pt", configs("imagenet_sr_64_256").parent, class_index=1, **given)
    assert resolver.class_index == 1
    with pytest.raises(InputError, match="no key 'class_index'"):
        load_resolver(data / "adm.pt", configs("face_sr_16_128").parent, class_index=1, device="cpu")


# --- version 0.1 ------------------------------------------------------------------------------------------------------


def of_version_0_1(bundle: str, **changes: Any) -> torch.nn.Module:
    said = json.loads((configs(bundle) / "version_0_1.json").read_text(encoding="utf-8"))["network"]
    network = rebuilt({**said, "arguments": {**said["arguments"], **changes}})
    assert isinstance(network, torch.nn.Module)
    return network


@pytest.mark.parametrize("bundle", FACES)
def test_weights_of_version_0_1_are_read_with_a_note(bundle: str, tmp_path: Path) -> None:
    save_weights(of_version_0_1(bundle), tmp_path / "model.pt")
    save_weights(of_version_0_1(bundle), tmp_path / "guidance.pt")
    given: dict[str, Any] = {"weights": str(tmp_path / "model.pt"), "guidance_scale": 1.0, "device": "cpu"}
    with pytest.warns(OldModelWarning) as notes:
        resolver = SuperResolver.from_bundle(configs(bundle).parent, **given)
    assert len([note for note in notes if note.category is OldModelWarning]) == 1
    assert resolver.predictor.schedule.prediction_type == "v_prediction"
    assert isinstance(resolver.predictor.target, ImageTarget)
    assert resolver.predictor.guide is not None


@pytest.mark.parametrize("bundle", IMAGENET)
def test_condition_branches_of_version_0_1_have_a_description(bundle: str) -> None:
    with torch.device("meta"):
        network = of_version_0_1(bundle)
    assert isinstance(network, ClassConditioned)


def test_a_run_of_version_0_1_is_not_continued_by_another_network(data: Path, tmp_path: Path) -> None:
    network = of_version_0_1("face_sr_16_128")
    state: dict[str, Any] = {name: {} for name in ("optimizer", "best", "lr_scheduler", "random")}
    place = {"epoch": 0, "iteration": 0}
    weights = network.state_dict()
    torch.save({"network": weights, "ema": weights, **state, "place": place}, tmp_path / "checkpoint.pt")
    with pytest.raises(RuntimeError) as refused:
        train("face_sr_16_128", data, tmp_path).run()
    assert "does not fit this run's network" in str(refused.value.__cause__)


def test_a_run_is_not_continued_towards_another_target(trained: tuple[str, Path], data: Path, tmp_path: Path) -> None:
    bundle, output = trained
    run = shutil.copytree(output, tmp_path / "run")
    changes = {"target#scale": 1.0} if bundle in OWN else {"schedule#num_train_timesteps": 500}
    with pytest.raises(RuntimeError) as refused:
        train(bundle, data, run, epochs=3, **changes).run()
    assert "was trained with another" in str(refused.value.__cause__)
    tensors = load_model(run / "model_last.pt").network
    save_weights(tensors, run / "model_last.pt")  # as version 0.1 wrote it
    with pytest.warns(OldModelWarning, match="this configuration"):
        train(bundle, data, run, epochs=3).run()


# --- baselines and ablation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "fusion", "kind"),
    [
        ("regression", "encoder", Regression),
        ("sr3", "input", NoiseLevelConditioned),
        ("b1", "bottleneck", None),
        ("b2", "dual_encoder", None),
        ("b3", "encoder_decoder", None),
        ("b4", "encoder", None),
        ("b5", "encoder", None),
    ],
)
@pytest.mark.parametrize("paper", [False, True])
def test_the_model_file_of_a_row_says_what_it_is(
    row: str, fusion: str, kind: type | None, paper: bool, data: Path, tmp_path: Path
) -> None:
    target = ("configs/paper_target.yaml",) if paper else ()
    flow = train("face_sr_16_128", data, tmp_path, *target, f"configs/{row}.yaml")
    network, description = (flow.parser.get_parsed_content(key) for key in ("network_def", "description"))
    save_model(tmp_path / "model.pt", network, description)
    model = load_model(tmp_path / "model.pt")
    assert model.schedule.prediction_type == ("epsilon" if paper and row != "regression" else "sample")
    assert math.isclose(float(model.schedule.beta[-1]), 0.02 if paper else 0.999)
    assert isinstance(model.target, ImageTarget if paper else ResidualTarget)
    arguments = model.description.network["arguments"]
    assert (arguments if kind is None else arguments["network"]["arguments"])["fusion"] == fusion
    assert kind is None or isinstance(model.network, kind)
    assert model.network.state_dict().keys() == network.state_dict().keys()


def test_regression_is_one_pass_without_noise(data: Path, tmp_path: Path) -> None:
    train("face_sr_16_128", data, tmp_path, "configs/regression.yaml").run()
    outputs = []
    for seed in (0, 1):
        files = [configs("face_sr_16_128") / "inference.yaml"]
        given = {**settings("face_sr_16_128", data), "weights": str(tmp_path / "model.pt"), "seed": seed, "steps": 1}
        parser = ConfigParser()
        parser.read_config([str(file) for file in files])
        parser.update(given)
        resolver: SuperResolver = parser.get_parsed_content("resolver")
        outputs.append(resolver(torch.zeros(1, 3, 4, 4)))
    assert torch.equal(outputs[0], outputs[1])


def test_class_of_the_guided_network(data: Path) -> None:
    flow = workflow("imagenet_sr_64_256", data, "infer", "inference", class_index=0)
    resolver = flow.parser.get_parsed_content("resolver")
    assert isinstance(resolver.predictor.denoiser, ClassConditioned)
    result = super_resolve(resolver, data / "faces" / "0.png", data / "finer")
    assert result["failed"] == {}
