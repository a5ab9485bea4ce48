"""The bundle acdc_segmentation under MONAI: verified, trained, resumed, inferred and evaluated on small phantoms."""

from __future__ import annotations

import csv
import json
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import REPO, shared_path
from ignite.engine import Events
from monai.bundle import ConfigWorkflow, verify_metadata, verify_net_in_out
from phantoms_of_acdc import TEST, TINY, TRAIN

from cgdpm_med import InputError, Segmenter, acdc_datalist, read_volume, write_phantom_dataset
from cgdpm_med.evaluation.training_patients import training_record
from cgdpm_med.inference.bundles import built_from_bundle, bundle_path
from cgdpm_med.inference.labels import DEFAULT_LABELS, labels_of
from cgdpm_med.models.files import Model, load_model, save_model

BUNDLE = REPO / "bundles" / "acdc_segmentation"
CONFIGS = BUNDLE / "configs"
METADATA = CONFIGS / "metadata.json"


pytestmark = pytest.mark.usefixtures("leaves_no_determinism")


def workflow(kind: str, *names: str, **overrides: Any) -> ConfigWorkflow:
    """The bundle's configuration with the smoke settings on top, initialised."""
    files = [str(CONFIGS / f"{name}.yaml") for name in names] + [str(REPO / "configs" / "smoke.yaml")]
    settings = {"bundle_root": str(BUNDLE), "device": "$torch.device('cpu')", "precision": "float32", **overrides}
    flow = ConfigWorkflow(files, str(METADATA), logging_file=False, workflow_type=kind, **settings)
    flow.initialize()
    return flow


def train(dataset: Path, output: Path, *more: str, **overrides: Any) -> ConfigWorkflow:
    return workflow("train", "train", *more, dataset_dir=str(dataset), output_dir=str(output), **overrides)


@pytest.fixture(scope="module")
def trained(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of an uninterrupted run of two epochs."""
    output = tmp_path_factory.mktemp("trained")
    train(phantoms, output).run()
    return output


def test_metadata_follow_the_schema(tmp_path: Path) -> None:
    schema = shutil.copyfile(shared_path("reference", "meta_schema_20240725.json"), tmp_path / "schema.json")
    verify_metadata(meta_file=str(METADATA), filepath=str(schema), hash_val="06954cad2cc5d3784e72077ac76f0fc8")


def test_weights_of_another_task_are_named() -> None:
    weights = bundle_path("cardiac_sr") / "models" / "model.pt"
    with pytest.raises(InputError, match="is of another task: its network sees the input 'coarse slice'") as caught:
        Segmenter.from_bundle(BUNDLE, weights=str(weights))
    assert caught.value.path == weights


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"steps": 5000}, "steps must be between 1 and 1000"),
        ({"timesteps": [999, 999]}, "timesteps must be different"),
        ({"guidance_interval": [0, 5000]}, "the guidance interval must be"),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_is_not_the_configurations_fault(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError) as caught:
        built("network_def", **given)
    assert str(caught.value).startswith(complaint)
    assert f"Give another value of {next(iter(given))}" in str(caught.value)
    assert "inference.yaml" not in str(caught.value)


def test_metadata_agree_with_the_configuration() -> None:
    metadata = json.loads(METADATA.read_text(encoding="utf-8"))
    assert metadata["version"] in metadata["changelog"]
    once = {"bundle_root": str(BUNDLE), "members": 1, "steps": 1}  # as the zoo's check gives the folder
    verify_net_in_out("network_def", str(METADATA), str(CONFIGS / "inference.yaml"), "cpu", n=2, **once)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"timesteps": (999, 666), "members": 8, "guidance_scale": 0.0, "shared_first_step": True}),
        ({"steps": 10}, {"timesteps": None, "steps": 10, "start": None, "members": 8}),
        ({"steps": 1}, {"timesteps": None, "steps": 1, "members": 1}),  # a mask without doubt
        ({"start": 600}, {"timesteps": None, "steps": 4, "start": 600}),
        ({"timesteps": [999, 700]}, {"timesteps": (999, 700)}),
        ({"members": 3, "guidance_scale": 0.25}, {"timesteps": (999, 666, 333), "members": 3, "guidance_scale": 0.25}),
    ],
    ids=str,
)
def test_what_is_given_stands_in_place_of_the_default_sampling(given: dict[str, Any], expected: dict[str, Any]) -> None:
    found = built("sampling", **given)
    assert {name: getattr(found, name) for name in expected} == expected


def built(entry: str, bundle: Path = BUNDLE, **given: Any) -> Any:
    return built_from_bundle(bundle, entry, given, example="", unknown=lambda name, known: name)


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        ({}, "models"),
        ({"members": 2, "seed": 1}, "models"),
        ({"timesteps": [999, 666]}, "models"),
        ({"timesteps": [666, 999]}, "models"),
        ({"timesteps": (999, 666, 333)}, "denoiser"),
        ({"timesteps": [999, 700]}, "denoiser"),
        ({"steps": 4}, "denoiser"),
        ({"steps": 1}, "denoiser"),
        ({"start": 600}, "denoiser"),
        ({"guidance_scale": 0.25}, "denoiser"),
        ({"method": "dpmpp_2m"}, "denoiser"),
    ],
    ids=str,
)
def test_the_distilled_network_serves_the_walk_that_it_learned_and_no_other(given: dict[str, Any], folder: str) -> None:
    assert Path(built("weights", **given)).parent.name == folder


def test_weights_of_ones_own_walk_over_three_timesteps_unless_they_are_distilled(trained: Path) -> None:
    assert built("sampling", weights=str(trained / "model.pt")).timesteps == (999, 666, 333)
    distilled = str(BUNDLE / "models" / "model.pt")
    assert built("sampling", weights=distilled).timesteps == (999, 666)
    with pytest.raises(InputError, match="distilled for DDIM at the timesteps 999, 666"):
        Segmenter.from_bundle(BUNDLE, weights=distilled, steps=4)


def test_a_network_that_is_trained_in_the_bundle_takes_the_place_of_both(trained: Path, tmp_path: Path) -> None:
    """As MONAI Label does: it writes models/model.pt of its copy of the bundle."""
    copy = Path(shutil.copytree(BUNDLE, tmp_path / "bundle"))
    shutil.copyfile(trained / "model.pt", copy / "models" / "model.pt")
    for given in ({}, {"steps": 4}, {"timesteps": [999, 666]}):
        assert Path(built("weights", copy, **given)).parent.name == "models"
    assert built("sampling", copy).timesteps == (999, 666, 333)


def test_further_weights_draw_their_share_of_the_members(phantoms: Path, trained: Path, tmp_path: Path) -> None:
    """The same network twice draws what it draws alone, another one other members at every second place."""
    first, other = trained / "model.pt", tmp_path / "other.pt"
    model = load_model(first)
    changed = {name: 1.05 * value for name, value in model.network.state_dict().items()}
    save_model(other, changed, model.description)
    volume = read_volume(next(phantoms.glob("*/*_frame01.nii.gz")))

    def members(*further: Path) -> Any:
        given = {"weights": str(first), "further_weights": list(map(str, further)), "members": 3, "device": "cpu"}
        segmenter = Segmenter.from_bundle(BUNDLE, one_body=False, **given)  # it has hardly learned what a body is
        assert segmenter.weights == (first, *further)
        return segmenter(volume, "case").members

    alone, mixed = members(), members(other)
    np.testing.assert_array_equal(members(first), alone)
    np.testing.assert_array_equal(mixed[::2], alone[::2])
    assert (mixed[1] != alone[1]).any()
    with pytest.raises(InputError, match="1 members cannot be drawn over 2 networks"):
        Segmenter.from_bundle(BUNDLE, weights=str(first), further_weights=[str(first)], steps=1)


@pytest.mark.parametrize("more", [(), ("gpu",)], ids=["cpu", "gpu"])
def test_the_file_of_a_network_stays_below_the_limit_of_the_zoo(more: tuple[str, ...]) -> None:
    files = [str(CONFIGS / f"{name}.yaml") for name in ("train", *more)]
    network = ConfigWorkflow(files, str(METADATA), logging_file=False).parser.get_parsed_content("network_def")
    assert 2 * sum(tensor.numel() for tensor in network.state_dict().values()) < 25e6  # bytes of the file, in float16


def test_inference_takes_what_the_network_is_from_its_file(phantoms: Path, trained: Path) -> None:
    training = workflow("train", "train", dataset_dir=str(phantoms)).parser
    inference = workflow("infer", "inference", weights=str(trained / "model.pt")).parser
    model = inference.get_parsed_content("model")
    names = ("target", "spacing", "field", "neighbours")
    target, *sizes = (training.get_parsed_content(name) for name in names)
    assert model.target == target
    assert [getattr(model.input, name) for name in names[1:]] == sizes
    assert inference.get_parsed_content("preprocessing").transforms[2].spacing_transform.pixdim[0] == 4.0
    assert inference.get_parsed_content("segmenter").labels.names == ("RV", "Myo", "LV")
    assert model.description.training.patients == (f"patient{TRAIN:03d}",)


def test_metadata_name_the_classes_as_the_model_file_does() -> None:
    metadata = json.loads(METADATA.read_text(encoding="utf-8"))
    names = [metadata["network_data_format"]["outputs"]["pred"]["channel_def"], load_of_shipped().channel_names]
    assert [labels_of(each, 4) for each in names] == [DEFAULT_LABELS, DEFAULT_LABELS]
    inputs = metadata["network_data_format"]["inputs"]["image"]
    assert inputs["num_channels"] == len(load_of_shipped().input.channels)


def load_of_shipped() -> Model:
    return load_model(BUNDLE / "models" / "model.pt")


@pytest.mark.slow
def test_the_gpu_recipe_trains_and_infers(phantoms: Path, tmp_path: Path) -> None:
    small = {"channels": [8, 8, 8, 8, 8], "batch_size": 4, "epochs": 1, "val_interval": 1, "compile": False}
    train(phantoms, tmp_path / "run", "gpu", **small).run()
    inference = workflow(
        "infer",
        "inference",
        dataset_dir=str(phantoms),
        weights=str(tmp_path / "run" / "model.pt"),
        output_dir=str(tmp_path / "out"),
    )
    inference.run()
    assert len(list((tmp_path / "out").rglob("*_entropy.nii.gz"))) == 6


def test_fewer_steps_are_learned_from_the_weights_of_a_run(phantoms: Path, trained: Path, tmp_path: Path) -> None:
    teacher, run = trained / "model.pt", tmp_path / "run"
    small = {"initial_weights": str(teacher), "phantom_folders": [], "iterations": 2, "epochs": 1, "val_interval": 1}
    train(phantoms, run, "finetune", "train_distillation", **small).run()
    student = load_model(run / "model.pt")
    assert (student.walk, student.description.teacher) == ((999, 666), load_model(teacher).digest)
    assert student.description.training is not None
    assert student.description.training.patients == (f"patient{TRAIN:03d}",)
    before = load_model(teacher).network.state_dict()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in student.network.state_dict().items())
    given = {"dataset_dir": str(phantoms), "output_dir": str(tmp_path / "out"), "steps": None}
    workflow("infer", "inference", weights=str(run / "model.pt"), **given).run()
    assert len(list((tmp_path / "out").rglob("*_entropy.nii.gz"))) == 6


def test_monai_finds_what_its_applications_need(phantoms: Path, trained: Path, tmp_path: Path) -> None:
    given = {"dataset_dir": str(phantoms), "output_dir": str(tmp_path / "out")}
    for names in (("inference",), ("inference", "evaluate")):
        assert workflow("infer", *names, weights=str(trained / "model.pt"), **given).check_properties() == []
    start = {"initial_weights": str(trained / "model.pt"), "phantom_folders": []}
    for more, settings in (((), {}), (("finetune",), start), (("evaluate",), {})):
        flow = workflow("train", "train", *more, **given, **settings)
        assert flow.check_properties() == []
    # those that MONAI calls optional, too; training has no mask to process or to score
    for name in ("dataset", "dataset_data", "preprocessing", "handlers", "inferer"):
        assert getattr(flow, f"train_{name}") is not None
        assert getattr(flow, f"val_{name}") is not None
    assert (flow.val_interval, len(flow.val_postprocessing.transforms)) == (1, 2)
    assert flow.evaluator is flow.parser.get_parsed_content("validate#evaluator")
    assert list(flow.val_key_metric) == ["val_mean_dice"]
    assert not (tmp_path / "out" / "model.pt").exists()


def test_an_application_that_drives_the_evaluator_gets_scores(phantoms: Path, trained: Path, tmp_path: Path) -> None:
    given = {"dataset_dir": str(phantoms), "output_dir": str(tmp_path), "weights": str(trained / "model.pt")}
    flow = workflow("infer", "inference", "evaluate", **given)
    flow.evaluator.run()
    segmenter = flow.parser.get_parsed_content("segmenter")
    scores = []
    for item in acdc_datalist(phantoms, "test"):
        mask = segmenter(read_volume(item["image"]), key=item["key"]).mask
        truth = np.asarray(nib.load(item["label"]).dataobj)
        scores += [dice_by_hand(mask == label, truth == label) for label in (1, 2, 3)]
    assert flow.evaluator.state.metrics["mean_dice"] == pytest.approx(np.mean(scores), abs=1e-6)


def test_evaluation_stacks_on_training(phantoms: Path, trained: Path, tmp_path: Path) -> None:
    """What is scored is models/model.pt of the bundle, as the inference configuration samples it."""
    bundle = tmp_path / "bundle"
    shutil.copytree(CONFIGS, bundle / "configs")
    (bundle / "models").mkdir()
    shutil.copyfile(trained / "model.pt", bundle / "models" / "model.pt")
    given = {"bundle_root": str(bundle), "dataset_dir": str(phantoms), "output_dir": str(tmp_path / "out")}
    flow = workflow("train", "train", "evaluate", **given)
    flow.run()
    flow.finalize()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["volumes"], summary["settings"]["members"]) == (2, 8)
    assert not (tmp_path / "out" / "model.pt").exists()


def test_training_leaves_weights_curves_and_pictures(phantoms: Path, trained: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = training_record(trained / "model.pt")
    assert record is not None
    assert record.patients == {item["patient"] for item in acdc_datalist(phantoms, "train")}
    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    assert len(events.Scalars("train_loss")) == 4  # 8 slices in batches of 4, twice
    assert [point.step for point in events.Scalars("val_mean_dice")] == [1, 2]
    assert [picture.step for picture in events.Images("samples")] == [1, 2]
    best = max(point.value for point in events.Scalars("val_mean_dice"))
    state = torch.load(trained / "checkpoint.pt", weights_only=True)
    assert state["best"]["best"] == pytest.approx(best, abs=1e-6)
    last = torch.load(trained / "model_last.pt", weights_only=True)["model"]
    assert all(torch.equal(last[name], state["ema"][name]) for name in last)


def test_a_stopped_run_continues_as_if_it_had_not(phantoms: Path, trained: Path, tmp_path: Path) -> None:
    stopped = train(phantoms, tmp_path)

    def power_cut() -> None:
        raise KeyboardInterrupt

    stopped.parser.get_parsed_content("train#trainer").add_event_handler(Events.ITERATION_COMPLETED(once=3), power_cut)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    train(phantoms, tmp_path).run()
    there, here = (torch.load(run / "checkpoint.pt", weights_only=True) for run in (trained, tmp_path))
    assert here["place"] == there["place"] == {"epoch": 2, "iteration": 4}
    for part in ("network", "ema"):
        assert all(torch.equal(here[part][name], there[part][name]) for name in there[part])
    assert here["best"] == there["best"]


def test_several_processes_save_what_one_reads(phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    flow = train(phantoms, tmp_path, "multi_gpu_train", epochs=1)
    flow.run()
    assert isinstance(flow.parser.get_parsed_content("network"), torch.nn.parallel.DistributedDataParallel)
    flow.finalize()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    network = flow.parser.get_parsed_content("network_def")
    assert state["network"].keys() == state["ema"].keys() == network.state_dict().keys()


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder of one's own: two volumes with different headers in two folders, and a damaged one."""
    folder = tmp_path / "scans"
    sources = []
    for kind in ("acdc", "oblique"):
        (patient,) = write_phantom_dataset(tmp_path / kind, patients=[1], seed=2, affine=kind, **TINY)
        sources.append(patient / "patient001_frame01.nii.gz")
    for name, source in zip(("first/scan.nii.gz", "second/scan.nii.gz"), sources, strict=True):
        (folder / name).parent.mkdir(parents=True)
        shutil.copyfile(source, folder / name)
    (folder / "first" / "broken.nii.gz").write_bytes(sources[0].read_bytes()[:2000])
    return folder


def test_inference_keeps_the_grid_and_survives_a_bad_file(
    mixed: Path, trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "masks"
    settings = {"output_dir": str(output), "weights": str(trained / "model.pt")}
    flow = workflow("infer", "inference", dataset_dir=str(mixed), **settings)
    with pytest.raises(RuntimeError) as stopped:
        flow.run()
    assert isinstance(stopped.value.__cause__, InputError)
    assert re.search(r"1 input failed: first/broken", str(stopped.value.__cause__))
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert str(mixed / "first" / "broken.nii.gz") in errors[0]

    endings = ("scan.json", "scan.nii.gz", "scan_disagreement.nii.gz", "scan_entropy.nii.gz")
    written = sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())
    of_cases = [f"{folder}/{ending}" for folder in ("first", "second") for ending in ("scan.html", *endings)]
    assert written == ["cohort.csv", "cohort.html", *of_cases]
    for folder in ("first", "second"):
        source = nib.load(mixed / folder / "scan.nii.gz")
        for ending in endings[1:]:
            result = nib.load(output / folder / ending)
            assert result.shape == source.shape
            assert np.array_equal(result.affine, source.affine)
            for field in ("pixdim", "sform_code", "qform_code", "srow_x", "quatern_b", "qoffset_x", "xyzt_units"):
                assert np.array_equal(result.header[field], source.header[field]), field
        mask = np.asarray(nib.load(output / folder / "scan.nii.gz").dataobj)
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 1, 2, 3}


def test_the_evaluator_of_monai_gives_the_same_mask(mixed: Path, trained: Path, tmp_path: Path) -> None:
    source = mixed / "second" / "scan.nii.gz"
    weights = str(trained / "model.pt")
    workflow(
        "infer", "inference", dataset_dir=str(source), output_dir=str(tmp_path / "out"), weights=weights
    ).parser.get_parsed_content("evaluator").run()
    flow = workflow("infer", "inference", dataset_dir=str(source), weights=weights)
    here = flow.parser.get_parsed_content("segmenter")(read_volume(source))
    assert np.array_equal(np.asarray(nib.load(tmp_path / "out" / "scan.nii.gz").dataobj), here.mask)
    assert np.array_equal(nib.load(tmp_path / "out" / "scan_entropy.nii.gz").get_fdata(), here.entropy)


def dice_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    common, total = 0, 0
    for x, y in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True):
        common += x and y
        total += x + y
    return 2 * common / total if total else 1.0


def test_evaluation_scores_what_it_can(phantoms: Path, trained: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    name = f"patient{TEST:03d}"
    shutil.copytree(phantoms / name, study / name)
    missing = study / name / f"{name}_frame03_gt.nii.gz"
    missing.unlink()
    output = tmp_path / "scores"
    settings = {"dataset_dir": str(study), "output_dir": str(output), "weights": str(trained / "model.pt")}
    with pytest.raises(RuntimeError) as stopped:
        workflow("infer", "inference", "evaluate", **settings).run()
    assert isinstance(stopped.value.__cause__, InputError)
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    assert summary["volumes"] == 1
    assert list(summary["failed"]) == [str(missing)]
    assert summary["settings"]["steps"] == summary["settings"]["members"] == 2

    image = study / name / f"{name}_frame01.nii.gz"
    flow = workflow("infer", "inference", **settings)
    mask = flow.parser.get_parsed_content("segmenter")(read_volume(image)).mask
    truth = np.asarray(nib.load(image.with_name(f"{name}_frame01_gt.nii.gz")).dataobj)
    with (output / "cases.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["case"], row["phase"]) == (f"{name}_frame01", "ED")
    for label, structure in {1: "RV", 2: "Myo", 3: "LV"}.items():
        expected = dice_by_hand(mask == label, truth == label)
        assert float(row[f"dice_{structure}"]) == pytest.approx(expected, abs=6e-6)
        assert summary["structures"][structure]["dice"] == pytest.approx(expected, abs=1e-12)


def test_a_segmenter_names_what_is_wrong_with_its_settings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are no weights here"):
        Segmenter.from_bundle(BUNDLE, weights=str(tmp_path / "absent.pt"))
    with pytest.raises(InputError, match="has no key 'member'"):
        Segmenter.from_bundle(BUNDLE, member=3)
    (tmp_path / "other.pt").write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"other\.pt: is not a file of plain weights"):
        Segmenter.from_bundle(BUNDLE, weights=str(tmp_path / "other.pt"))
