"""The recipe search: what a recipe reaches, what a row costs and scores, and that a stopped search goes on."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import REPO, load_script
from monai.bundle import ConfigParser
from small_networks import small_network
from torch import nn

from cgdpm_med import (
    ConditionalUNet,
    ConditionOnly,
    DiffusionPredictor,
    InputError,
    MaskDenoiser,
    MaskTarget,
    NoiseSchedule,
    Segmenter,
    VolumeInput,
    describe,
    load_model,
    save_model,
    write_phantom_dataset,
)
from cgdpm_med.models.weights import digest_of
from cgdpm_med.tables.csv_files import write_csv
from cgdpm_med.tables.markdown import markdown_table
from cgdpm_med.tables.rows import kept_row

CONFIGS = REPO / "bundles" / "acdc_segmentation" / "configs"
SHIPPED = sorted(
    path.stem for path in (REPO / "configs" / "recipes").glob("*.yaml") if not path.stem.endswith("_inference")
)


pytestmark = pytest.mark.usefixtures("leaves_no_determinism")


@pytest.fixture(scope="module")
def recipes() -> ModuleType:
    return load_script("recipes")


# --- rows -------------------------------------------------------------------------------------------------------------


def test_a_row_is_made_once_and_for_one_purpose(tmp_path: Path) -> None:
    calls: list[int] = []

    def make() -> dict[str, Any]:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return {"dice": 87.5}

    with pytest.raises(KeyboardInterrupt):
        kept_row(tmp_path / "row", {"interval": (0, 500)}, make)
    with pytest.raises(InputError, match=r"row: was made with other settings \(interval\)"):
        kept_row(tmp_path / "row", {"interval": (0, 300)}, make)
    for _ in range(2):
        assert kept_row(tmp_path / "row", {"interval": [0, 500]}, make) == {"dice": 87.5}
    assert len(calls) == 2


def test_tables_as_text(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", [{"a": 0.123456789, "b": None, "c": 3}, {"a": 1.0, "b": "x", "c": 4}])
    assert (tmp_path / "t.csv").read_text(encoding="utf-8").split() == ["a,b,c", "0.12346,,3", "1.00000,x,4"]
    assert markdown_table(["a", "b"], [["1", "2"]]).splitlines() == ["| a | b |", "| --- | --- |", "| 1 | 2 |"]


# --- recipes ----------------------------------------------------------------------------------------------------------


def test_each_stage_gets_the_keys_that_reach_it(recipes: ModuleType, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("# My recipe.\nspacing: 2.0\nloss#timesteps#power: 3.0\ninferer#scout_steps: 3\n")
    found = recipes.read_recipe(str(recipe))
    assert (found.name, found.about) == ("mine", "My recipe")
    assert found.training == {"spacing": 2.0, "loss#timesteps#power": 3.0}
    assert found.inference == {"spacing": 2.0, "inferer#scout_steps": 3}


def test_a_key_that_nothing_reads_is_an_error(recipes: ModuleType, tmp_path: Path) -> None:
    recipe = tmp_path / "typo.yaml"
    recipe.write_text("# Typo\nmask_scael: 0.3\n")
    with pytest.raises(InputError, match=r"typo\.yaml: sets 'mask_scael', which nothing reads"):
        recipes.read_recipe(str(recipe))
    with pytest.raises(InputError, match="there is no recipe 'absent'"):
        recipes.read_recipe("absent")


@pytest.mark.parametrize("name", [*SHIPPED, "baseline_unet"])
def test_a_shipped_recipe_trains_the_network_it_scores(recipes: ModuleType, name: str, tmp_path: Path) -> None:
    recipe = recipes.read_recipe(name)
    assert recipe.about
    assert recipe.training  # each of them changes something about the training
    parser = ConfigParser(ConfigParser.load_config_file(CONFIGS / "train.yaml"))
    parser.update({**recipe.training, "train#dataset#data": []})
    network, said = (parser.get_parsed_content(name) for name in ("network_def", "description"))
    save_model(tmp_path / "model.pt", network, said)  # from which the scoring makes its network
    parser = ConfigParser(ConfigParser.load_config_file(CONFIGS / "inference.yaml"))
    parser.update({**recipe.inference, "weights": str(tmp_path / "model.pt")})
    model = parser.get_parsed_content("model")
    assert digest_of(model.network.state_dict()) == digest_of(network.state_dict())


def test_a_recipe_changes_what_it_says(recipes: ModuleType) -> None:
    parser = ConfigParser(ConfigParser.load_config_file(CONFIGS / "train.yaml"))
    parser.update(dict(recipes.read_recipe("dice_weight_0").training))
    assert parser.get_parsed_content("loss").target.dice_weight == 0
    parser.update(dict(recipes.read_recipe("augmentation_strong").training))
    augmentation = parser.get_parsed_content("augmentation")
    assert (augmentation.rotate, augmentation.size) == (0.5, (144, 144))


def test_a_network_is_widened_without_a_change(tmp_path: Path, generator: torch.Generator) -> None:
    script = load_script("show_places")
    narrow = small_network(1, cond_channels=1)
    parts: dict[str, Any] = {"target": MaskTarget(4), "schedule": NoiseSchedule(100, "cosine", "sample")}
    said = describe(narrow, **parts, input=VolumeInput(1.5, 64), labels=["RV", "Myo", "LV"])
    save_model(tmp_path / "narrow.pt", narrow, said)
    script.show_places(tmp_path / "narrow.pt", tmp_path / "wide.pt")
    wide = load_model(tmp_path / "wide.pt")
    assert wide.input == VolumeInput(1.5, 64, places=True)
    x_t, y, places = (torch.randn(2, c, 16, 16, generator=generator) for c in (4, 1, 2))
    t = torch.tensor([90, 10])
    with torch.no_grad():
        expected, found = narrow.eval()(x_t, t, y), wide.network(x_t, t, torch.cat([y, places], dim=1))
    torch.testing.assert_close(found, expected)
    with pytest.raises(InputError, match="shows no volumes, or the places of their slices already"):
        script.show_places(tmp_path / "wide.pt", tmp_path / "wider.pt")
    with pytest.raises(InputError, match=r"narrow\.pt: is the file to widen"):
        script.show_places(tmp_path / "narrow.pt", tmp_path / "narrow.pt")


def with_places(stage: str) -> ConfigParser:
    """train.yaml with a stage stacked on it, and the places of slices shown."""
    stages = [ConfigParser.load_config_file(CONFIGS / f"{name}.yaml") for name in ("train", stage)]
    parser = ConfigParser(stages[0] | stages[1])
    parser["places"] = True
    return parser


@pytest.mark.parametrize(("stage", "prepares"), [("finetune", "prepare_batch"), ("train_guidance", "image_pairs")])
def test_every_stage_shows_the_place_of_slices(stage: str, prepares: str) -> None:
    place = torch.tensor([[-1.0, 0.5], [0.25, 0.0]])
    batch = {"image": torch.zeros(2, 3, 192, 192), "label": torch.zeros(2, 4, 192, 192), "place": place}
    _, y = with_places(stage).get_parsed_content(prepares)(batch, "cpu")
    assert y.shape == (2, 5, 144, 144)
    assert torch.equal(y[:, 3:, 0, 0], place)


def test_the_plain_unet_sees_the_place_of_slices() -> None:
    network = with_places("baseline_unet").get_parsed_content("network_def").eval()
    x_t, y = torch.zeros(1, 4, 64, 64), torch.zeros(1, 5, 64, 64)
    with torch.no_grad():
        assert network(x_t, torch.zeros(1, dtype=torch.int64), y).shape == x_t.shape


def test_what_is_no_denoiser_of_slices_is_not_widened(tmp_path: Path) -> None:
    solid = ConditionalUNet(3, 4, 1, 4, channels=(8, 8), attention_levels=(False, False))
    parts: dict[str, Any] = {"target": MaskTarget(4), "schedule": NoiseSchedule(100, "cosine", "sample")}
    script = load_script("show_places")
    said = describe(solid, **parts, input=VolumeInput(1.5, 64), labels=["RV", "Myo", "LV"])
    save_model(tmp_path / "solid.pt", solid, said)
    with pytest.raises(InputError, match=r"solid\.pt: is no ConditionalUNet of slices"):
        script.show_places(tmp_path / "solid.pt", tmp_path / "wide.pt")
    assert not (tmp_path / "wide.pt").exists()


# --- cost -------------------------------------------------------------------------------------------------------------


def test_gflops_of_a_convolution_by_hand(recipes: ModuleType) -> None:
    network = ConditionOnly(nn.Conv2d(3, 4, 5, padding=2, bias=False))
    schedule = NoiseSchedule(schedule="cosine", prediction_type="sample")
    segmenter = Segmenter(dict, lambda *a: a[0], DiffusionPredictor(MaskDenoiser(network), schedule=schedule), dict)
    # a multiplication and an addition for each of 3 x 5 x 5 weights, 4 channels and 8 x 8 pixels
    assert recipes.gflops(segmenter, 3, 8) == pytest.approx(2 * 3 * 25 * 4 * 64 / 1e9)


def test_the_table_has_means_over_seeds(recipes: ModuleType, tmp_path: Path) -> None:
    common: dict[str, Any] = dict.fromkeys((*recipes.SCORES, *recipes.COLUMNS), 1.0)
    common |= {"iterations": 600, "volumes": 20, "device": "cpu", "parameters": 9_610_836, "seconds_per_step": None}
    results = {"default": [{**common, "about": "as is", "seed": s, "dice": d} for s, d in ((0, 85.0), (1, 86.0))]}
    arguments = recipes.parse_arguments(["--dataset-dir", "x", "--output", str(tmp_path), "--seeds", "0", "1"])
    recipes.write_tables(results, arguments)
    row = (tmp_path / "recipes.md").read_text(encoding="utf-8").splitlines()[2].split(" | ")
    assert row[:3] == ["| default", "as is", "85.50 ± 0.71"]
    assert (row[11], row[12]) == ("–", "9610836")
    with (tmp_path / "recipes.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["seed"], line["dice"], line["seconds_per_step"]) for line in lines] == [
        ("0", "85.00000", ""),
        ("1", "86.00000", ""),
    ]


# --- the whole --------------------------------------------------------------------------------------------------------


def test_one_command_trains_scores_and_continues(
    recipes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny: dict[str, Any] = {"shape": (64, 56, 4), "spacing": (2.8, 2.8, 22.0), "num_frames": 6}
    write_phantom_dataset(tmp_path / "data", patients=[2, 1], seed=1, **tiny)  # training and validation patients
    command = ["recipes.py", "default", "hard_labels", "--dataset-dir", str(tmp_path / "data")]
    command += ["--output", str(tmp_path / "out"), "--settings", str(REPO / "configs" / "smoke.yaml")]
    command += ["--iterations", "4", "--epoch", "2", "--every", "2", "--members", "2", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", command)
    recipes.main()
    table = (tmp_path / "out" / "recipes.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in table.splitlines()[2:4]]
    assert [row[0] for row in rows] == ["| default", "| hard_labels"]
    assert "4 training steps a row, 1 volumes of the validation patients, 2 members and 1 steps" in table
    folder = tmp_path / "out" / "seed0" / "default"
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert state["place"] == {"epoch": 2, "iteration": 4}
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    network = ConfigParser(ConfigParser.load_config_file(CONFIGS / "train.yaml"))
    network.update({"channels": [8, 8, 8, 8]})
    unet = network.get_parsed_content("network_def")
    assert result["parameters"] == sum(p.numel() for p in unet.parameters()) == int(rows[0][12])
    assert float(rows[0][2]) == pytest.approx(result["dice"], abs=0.005)
    assert result["seconds_per_step"] > 0
    averaged = torch.load(folder / "model_last.pt", weights_only=True)["model"]
    other = torch.load(folder.with_name("hard_labels") / "model_last.pt", weights_only=True)["model"]
    assert any(not torch.equal(value, other[name]) for name, value in averaged.items())

    monkeypatch.setattr(recipes.Work, "train", lambda work: pytest.fail("a finished row was trained again"))
    recipes.main()
    assert (tmp_path / "out" / "recipes.md").read_text(encoding="utf-8") == table
    monkeypatch.setattr(sys, "argv", [*command, "--iterations", "6"])
    with pytest.raises(InputError, match=r"default: was made with other settings \(iterations\)"):
        recipes.main()


def test_rows_may_start_from_given_weights(recipes: ModuleType, tmp_path: Path) -> None:
    parser = ConfigParser(ConfigParser.load_config_file(CONFIGS / "train.yaml"))
    parser.update({"channels": [8, 8, 8, 8], "device": "$torch.device('cpu')"})
    state = {
        name: torch.full_like(v, 0.25) for name, v in parser.get_parsed_content("network_def").state_dict().items()
    }
    torch.save(state, tmp_path / "start.pt")
    command = ["default", "--dataset-dir", "x", "--output", "y", "--initial-weights", str(tmp_path / "start.pt")]
    work = recipes.Work(recipes.read_recipe("default"), 0, recipes.parse_arguments(command))
    assert work.made_with()["initial_weights"] != recipes.Work(
        work.recipe, 0, recipes.parse_arguments(command[:5])
    ).made_with().get("initial_weights")
    parser.update(work.start())
    network = parser.get_parsed_content("network")
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert recipes.Work(work.recipe, 0, recipes.parse_arguments(command[:5])).start() == {}
