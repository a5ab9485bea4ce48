"""A run that train wrote, in use: no training patient judges it, folds combine, masks are scored by its own names."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import picture, square, volume
from PIL import Image
from small_runs import SETTINGS, blobs
from typer.testing import CliRunner, Result

from cgdpm_med import InputError
from cgdpm_med.apps.cli import app
from cgdpm_med.apps.evaluate_masks_of_runs import evaluate_masks_of_runs
from cgdpm_med.apps.segment_images import segment_folder
from cgdpm_med.apps.segment_slices import load_segmenter, load_segmenters
from cgdpm_med.apps.train import Wishes, train
from cgdpm_med.datasets.loading import load_image
from cgdpm_med.evaluation.calibration_file import read_calibration
from cgdpm_med.metrics.calibration import temper

pytestmark = [pytest.mark.usefixtures("leaves_no_determinism"), pytest.mark.slow]
QUICK = ["--members", "2", "--steps", "1", "--device", "cpu"]


def trained(data: Path, run: Path, **wishes: Any) -> Path:
    train(data, run, Wishes(iterations=2, settings=SETTINGS, patients="^([^_]+)", **wishes), device="cpu")
    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blobs(tmp_path_factory.mktemp("blobs") / "data")


@pytest.fixture(scope="module")
def folds(data: Path) -> list[Path]:
    return [trained(data, data.parent / f"run{fold}", folds=2, fold=fold) for fold in (0, 1)]


@pytest.fixture
def run(folds: list[Path], tmp_path: Path) -> Path:
    """A copy that a test may change, without its calibration."""
    shutil.copytree(folds[0], tmp_path / "run")
    (tmp_path / "run" / "models" / "calibration.json").unlink()
    return tmp_path / "run"


def command(*words: Any) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def said(found: Result) -> str:
    """All that a person would read of what went wrong."""
    return f"{found.stderr} {found.exception or ''}"


def split_of(run: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads((run / "models" / "split.json").read_text())
    return found


def segmented(data: Path, run: Path, out: Path, *options: Any) -> Path:
    found = command("segment", data / "images", out, "--bundle", run, *QUICK, *options)
    assert found.exit_code == 0, found.output
    return out


# --- no training patient judges a network ----------------------------------------------------------------------------


def test_calibrate_takes_the_validation_part_and_segment_applies_it(data: Path, run: Path, tmp_path: Path) -> None:
    found = command("calibrate", data, "--bundle", run, *QUICK, "--json")
    assert found.exit_code == 0, found.output
    result = json.loads(found.stdout)
    assert result["data"]["patients"] == len(split_of(run)["validation"])
    assert result["data"]["volumes"] == 2 * result["data"]["patients"]
    assert result["after"]["nll"] <= result["before"]["nll"] + 1e-6
    calibration = read_calibration(run / "models" / "calibration.json")
    raw, tempered = (
        np.load(segmented(data, run, tmp_path / word, *options) / "a0_0_doubt.npz")["probabilities"]
        for word, options in (("raw", ["--no-calibration"]), ("tempered", []))
    )
    softened = temper(raw, calibration.temperature, calibration.doubt)
    np.testing.assert_allclose(tempered, softened, rtol=1e-3, atol=1e-4)
    assert json.loads((tmp_path / "tempered" / "segmentation.json").read_text())["temperature"] is not None


def test_a_calibration_for_other_settings_is_noted_and_left(data: Path, run: Path, tmp_path: Path) -> None:
    assert command("calibrate", data, "--bundle", run, *QUICK).exit_code == 0
    found = command("segment", data / "images", tmp_path / "out", "--bundle", run, *QUICK[2:], "--members", 3)
    assert found.exit_code == 0
    assert "--members 3" in found.stderr
    assert json.loads((tmp_path / "out" / "segmentation.json").read_text())["temperature"] is None


@pytest.mark.parametrize("section", ["train", "test"])
def test_calibrate_refuses_training_and_test_patients(data: Path, run: Path, section: str) -> None:
    found = command("calibrate", data, "--bundle", run, *QUICK, "--section", section)
    assert found.exit_code == 1
    assert not (run / "models" / "calibration.json").exists()


def test_calibrate_refuses_training_patients_of_another_split(data: Path, run: Path, tmp_path: Path) -> None:
    seen, held = split_of(run)["train"], split_of(run)["validation"]
    (tmp_path / "mine.json").write_text(json.dumps({"train": [], "validation": [seen[0], held[0]], "test": []}))
    found = command("calibrate", data, "--bundle", run, *QUICK, "--split", tmp_path / "mine.json")
    assert found.exit_code == 1
    assert f"{seen[0]} trained" in said(found)
    (tmp_path / "mine.json").write_text(json.dumps({"train": [], "validation": held, "test": []}))
    assert command("calibrate", data, "--bundle", run, *QUICK, "--split", tmp_path / "mine.json").exit_code == 0


def test_evaluate_refuses_training_patients_and_takes_others(data: Path, run: Path, tmp_path: Path) -> None:
    out = segmented(data, run, tmp_path / "out")
    refused = command("evaluate", out, data, "--bundle", run, "--json")
    assert refused.exit_code == 1
    assert split_of(run)["train"][0] in said(refused)
    held = tmp_path / "held"
    for patient in split_of(run)["validation"]:
        for n in range(2):
            picture(held / f"{patient}_{n}.png", np.asarray(Image.open(data / "masks" / f"{patient}_{n}.png")))
    for path in out.glob("a*.png"):
        if path.stem.removesuffix("_doubt").split("_")[0] not in split_of(run)["validation"]:
            path.unlink()
    good = command("evaluate", out, held, "--bundle", run, "--json")
    assert good.exit_code == 0, good.output
    summary = json.loads(good.stdout)
    assert list(summary["structures"]) == ["spot"]
    assert summary["unit"] == "px"


@pytest.mark.parametrize("kind", ["keys of a datalist", "names of channels"])
def test_evaluate_knows_training_patients_by_the_names_of_their_files(kind: str, data: Path, tmp_path: Path) -> None:
    names = [path.stem for path in sorted((data / "images").iterdir())]
    ending = "_0000" if kind == "names of channels" else ""
    for name in names:
        for folder in ("images", "masks"):
            picture(
                tmp_path / "set" / folder / f"{name}{ending}.png", np.asarray(Image.open(data / folder / f"{name}.png"))
            )
    source = tmp_path / "set"
    (source / "labels.json").write_bytes((data / "labels.json").read_bytes())
    if not ending:
        items = [
            {"image": f"images/{n}.png", "label": f"masks/{n}.png", "key": f"k{i}", "patient": f"p{i // 2}"}
            for i, n in enumerate(names)
        ]
        source /= "list.json"
        source.write_text(json.dumps({"training": items}))
    train(source, tmp_path / "run", Wishes(iterations=2, settings=SETTINGS), device="cpu")
    out = tmp_path / "out"
    assert command("segment", tmp_path / "set" / "images", out, "--bundle", tmp_path / "run", *QUICK).exit_code == 0
    refused = command("evaluate", out, tmp_path / "set" / "masks", "--bundle", tmp_path / "run", "--json")
    assert refused.exit_code == 1
    assert "trained the network" in said(refused)


def test_a_bundle_that_is_no_run_is_refused(data: Path, run: Path, tmp_path: Path) -> None:
    assert command("evaluate", data, data, "--bundle", "acdc_segmentation").exit_code == 2
    both = ["--bundle", run, "--bundle", "acdc_segmentation"]
    assert command("segment", data / "images", tmp_path / "out", *both).exit_code == 2


# --- masks as pictures, by their values ---------------------------------------------------------------------------


def test_picture_masks_have_the_dice_of_their_overlap(tmp_path: Path) -> None:
    first, second = np.zeros((8, 9), np.uint8), np.zeros((8, 9), np.uint8)
    first[2:6, 2:6], second[2:6, 4:8] = 255, 1  # 8 of 16 pixels in common, drawn with other values
    picture(tmp_path / "masks" / "p.png", first)
    picture(tmp_path / "pred" / "p.png", second, palette=True)
    found = command("evaluate", tmp_path / "pred", tmp_path / "masks", "--json")
    assert found.exit_code == 0, found.output
    summary = json.loads(found.stdout)
    assert summary["structures"]["foreground"]["dice"] == pytest.approx(0.5)
    assert summary["structures"]["foreground"]["hd95"] == pytest.approx(2)
    assert summary["structures"]["foreground"]["assd"] == pytest.approx(1)  # along contours: 4 x 2 + 4 x 1 of 12 pixels
    assert "HD95 px" in command("evaluate", tmp_path / "pred", tmp_path / "masks").stdout
    millimetres = command("evaluate", tmp_path / "pred", tmp_path / "masks", "--spacing", "0.5,3,1", "--json")
    assert json.loads(millimetres.stdout)["structures"]["foreground"]["hd95"] == pytest.approx(1)  # x is across


def test_colours_and_class_numbers_meet_by_their_names(tmp_path: Path) -> None:
    colours, numbers = np.zeros((8, 9, 3), np.uint8), np.zeros((8, 9), np.uint8)
    colours[1:3, 1:3], colours[5:7, 5:7] = (0, 0, 255), (255, 0, 0)
    numbers[1:3, 1:3], numbers[5:7, 5:6] = 2, 1
    picture(tmp_path / "ref" / "masks" / "p.png", colours)
    picture(tmp_path / "pred" / "p.png", numbers)
    table = {"background": "#000000", "vessel": "#0000ff", "tumour": "#ff0000"}
    (tmp_path / "ref" / "labels.json").write_text(json.dumps(table))
    (tmp_path / "pred" / "labels.json").write_text(json.dumps({"background": 0, "tumour": 1, "vessel": 2}))
    found = json.loads(command("evaluate", tmp_path / "pred", tmp_path / "ref", "--json").stdout)
    assert found["structures"]["vessel"]["dice"] == 1
    assert found["structures"]["tumour"]["dice"] == pytest.approx(2 / 3)


def test_a_picture_against_a_volume(tmp_path: Path) -> None:
    picture(tmp_path / "pred" / "p.png", square(1))
    volume(tmp_path / "ref" / "p.nii.gz", square(1)[..., None])
    found = command("evaluate", tmp_path / "pred", tmp_path / "ref", "--labels", "1=spot")
    assert found.exit_code == 1
    assert "volume" in found.stderr


# --- folds ----------------------------------------------------------------------------------------------------------


def test_members_are_drawn_over_the_networks_in_turns(data: Path, folds: list[Path]) -> None:
    how = {"members": 4, "steps": 1, "device": "$torch.device('cpu')"}
    loaded = load_image([data / "images" / "a0_0.png"])
    together = load_segmenters(folds, **how)(loaded, "a0_0").probabilities
    alone = [load_segmenter(fold, **how) for fold in folds]
    parts = [segmenter.drawn(loaded, "a0_0", ids) for segmenter, ids in zip(alone, ([0, 2], [1, 3]), strict=True)]
    channels = alone[0].predictor.out_channels
    mean = np.concatenate([part.numpy() for part in parts]).reshape(4, channels, 16, 16, 1).mean(axis=0)
    np.testing.assert_allclose(together[-1], mean[-1], atol=1e-5)


def test_folds_share_the_members_evenly(folds: list[Path]) -> None:
    three = [folds[0], folds[1], folds[0]]
    assert load_segmenters(three).settings["members"] == 9
    with pytest.raises(InputError, match="2 members"):
        load_segmenters(three, members=2)


def test_steps_take_the_place_of_timesteps_that_a_run_names(run: Path) -> None:
    inference = run / "configs" / "inference.yaml"
    inference.write_text(inference.read_text().replace("timesteps: null", "timesteps: [999, 900, 800]"))
    own, asked = load_segmenter(run).settings, load_segmenters([run], steps=5).settings
    assert own["timesteps"] == (999, 900, 800)
    assert (asked["timesteps"], asked["steps"]) == (None, 5)
    assert load_segmenter(run, steps=5).settings == asked
    with pytest.raises(InputError, match="cannot both be given"):
        load_segmenter(run, steps=5, timesteps=[999, 500])


def test_runs_that_sample_differently_are_not_combined(folds: list[Path], run: Path) -> None:
    inference = run / "configs" / "inference.yaml"
    inference.write_text(inference.read_text().replace("timesteps: null", "timesteps: [999, 900, 800]"))
    with pytest.raises(InputError, match="other settings of the sampler"):
        load_segmenters([folds[1], run])


def test_a_calibration_of_other_settings_is_not_lost(data: Path, folds: list[Path], tmp_path: Path) -> None:
    shutil.copytree(folds[0], tmp_path / "run")
    before = (tmp_path / "run" / "models" / "calibration.json").read_bytes()
    found = command("calibrate", data, "--bundle", tmp_path / "run", *QUICK, "--seed", 5)
    assert found.exit_code == 1
    assert "would lose it" in said(found)
    assert (tmp_path / "run" / "models" / "calibration.json").read_bytes() == before
    found = command(
        "calibrate", data, "--bundle", tmp_path / "run", *QUICK, "--seed", 5, "--output", tmp_path / "c.json"
    )
    assert found.exit_code == 0


def test_a_class_that_predictions_never_hold_is_missed_and_not_left_out(tmp_path: Path) -> None:
    truth = np.zeros((12, 12), np.uint8)
    truth[1:4, 1:4], truth[5:8, 5:8], truth[9:11, 9:11] = 1, 2, 3
    picture(tmp_path / "truth" / "a.png", truth)
    picture(tmp_path / "found" / "a.png", np.where(truth == 2, 0, truth))
    found = command("evaluate", tmp_path / "found", tmp_path / "truth", "--json")
    assert found.exit_code == 0, found.output
    summary = json.loads(found.stdout)
    assert {name: round(each["dice"], 6) for name, each in summary["structures"].items()} == {
        "class 1": 1,
        "class 2": 0,
        "class 3": 1,
    }


def test_runs_of_other_labels_are_not_combined(data: Path, folds: list[Path], tmp_path: Path) -> None:
    other = trained(blobs(tmp_path / "other", name="hole"), tmp_path / "strange")
    found = command(
        "segment", data / "images", tmp_path / "out", "--bundle", folds[0], "--bundle", other, "--device", "cpu"
    )
    assert found.exit_code == 1
    assert "labels" in said(found)


def test_a_calibration_of_folds_needs_a_file_and_new_patients(data: Path, folds: list[Path], tmp_path: Path) -> None:
    both = ["--bundle", folds[0], "--bundle", folds[1], "--members", "2", "--steps", "1", "--device", "cpu"]
    assert command("calibrate", data, *both, "--output", tmp_path / "c.json").exit_code == 1  # fold 1 trained on them
    new = blobs(tmp_path / "new")
    for path in [*(new / "images").iterdir(), *(new / "masks").iterdir()]:
        path.rename(path.with_name(f"new{path.name}"))
    patients = [f"newa{n}" for n in range(6)]
    (tmp_path / "split.json").write_text(json.dumps({"train": [], "validation": patients, "test": []}))
    given = [*both, "--split", tmp_path / "split.json"]
    assert "--output" in said(command("calibrate", new, *given))
    assert command("calibrate", new, *given, "--output", tmp_path / "c.json").exit_code == 0
    command("segment", new / "images", tmp_path / "out", *both, "--calibration", tmp_path / "c.json")
    assert json.loads((tmp_path / "out" / "segmentation.json").read_text())["temperature"] is not None


# --- what is written -------------------------------------------------------------------------------------------------


def test_a_record_and_a_page_in_the_data_sets_words(data: Path, folds: list[Path], tmp_path: Path) -> None:
    segmenter = load_segmenter(folds[0], members=2, steps=1, device="$torch.device('cpu')")
    segment_folder(segmenter, data / "images", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "segmentation.json").read_text())
    assert record["labels"] == {"1": "spot"}
    case = record["cases"][0]
    mask = np.asarray(Image.open(tmp_path / "out" / "a0_0.png"))
    assert case["pixels"]["spot"] == np.count_nonzero(mask)
    assert case["share"]["spot"] == pytest.approx(np.mean(mask == 1))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "spot, pixels" in page
    assert page.count("data:image/png") == 2 * 12
    segment_folder(segmenter, data / "images", tmp_path / "plain", pages=False)
    assert not (tmp_path / "plain" / "report.html").exists()


@pytest.mark.parametrize(
    ("names", "word", "written", "unwritten"),
    [
        (("x.png", "x.jpg", "y_0007.png"), "same name", "y_0007.png", "x.png"),
        (("x.png", "x_doubt.png", "x_entropy.png"), "name of the map that x gets", "x_doubt.npz", "x_doubt_doubt.png"),
        (
            ("x.png", "x_doubt.png", "x_entropy.png"),
            "name of the map that x gets",
            "x_entropy.png",
            "x_doubt_doubt.npz",
        ),
    ],
)
def test_files_whose_results_would_meet_fail_and_the_others_go_on(
    names: tuple[str, ...], word: str, written: str, unwritten: str, data: Path, folds: list[Path], tmp_path: Path
) -> None:
    for name in names:
        picture(tmp_path / "in" / name, np.asarray(Image.open(data / "images" / "a0_0.png")))
    found = command("segment", tmp_path / "in", tmp_path / "out", "--bundle", folds[0], *QUICK)
    assert found.exit_code == 1
    assert word in found.stderr
    assert (tmp_path / "out" / written).is_file()
    assert not (tmp_path / "out" / unwritten).exists()


@pytest.mark.parametrize("count", [1, 2])
def test_the_remedy_for_other_settings_names_the_runs_and_works(
    count: int, data: Path, folds: list[Path], tmp_path: Path
) -> None:
    images = tmp_path / "in"
    picture(images / "new.png", np.asarray(Image.open(data / "images" / "a0_0.png")))
    bundles = [word for fold in folds[:count] for word in ("--bundle", fold)]
    found = command("segment", images, tmp_path / "out", *bundles, *QUICK, "--seed", "3")
    named = re.search(r"cgdpm-med calibrate (.+), and give it as --calibration FILE", " ".join(found.output.split()))
    assert named, found.output
    words = [str(tmp_path / "c.json") if word == "FILE" else word for word in named[1].split()]
    assert words.count("--bundle") == count
    if count == 1:  # of several, new patients are asked for besides
        assert command("calibrate", data, *words, "--device", "cpu").exit_code == 0
        given = ["--calibration", tmp_path / "c.json"]
        again = command("segment", images, tmp_path / "out2", *bundles, *QUICK, "--seed", "3", *given)
        assert again.exit_code == 0
        assert "ignored" not in again.output


def test_pictures_with_numbers_in_their_names_stay_apart(data: Path, folds: list[Path], tmp_path: Path) -> None:
    for n in range(3):
        picture(tmp_path / "in" / f"film_{n:04d}.png", np.asarray(Image.open(data / "images" / f"a{n}_0.png")))
    found = command("segment", tmp_path / "in", tmp_path / "out", "--bundle", folds[0], *QUICK, "--json")
    assert [case["case"] for case in json.loads(found.stdout)["cases"]] == ["film_0000", "film_0001", "film_0002"]


def test_a_run_knows_whose_image_bears_a_name(data: Path, folds: list[Path], tmp_path: Path) -> None:
    seen = split_of(folds[0])["train"][0]
    picture(tmp_path / "p" / f"{seen}_77.png", np.zeros((4, 4)))  # another image of that patient
    picture(tmp_path / "r" / f"{seen}_77.png", np.zeros((4, 4)))
    with pytest.raises(InputError, match=f"{seen} trained"):
        evaluate_masks_of_runs(tmp_path / "p", tmp_path / "r", [folds[0]])
