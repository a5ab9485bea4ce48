"""Test patients stay out of training, selection and calibration: the committed split, and what every program reads."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from cohorts import write_cohort
from conftest import REPO
from monai.bundle import ConfigParser

from cgdpm_med import acdc_datalist
from cgdpm_med.data.acdc import ACDC_GROUPS
from cgdpm_med.evaluation.calibrate import calibrate, calibration_items

BUNDLE = REPO / "bundles" / "acdc_segmentation"
CONFIGS = sorted([*(BUNDLE / "configs").glob("*.yaml"), *(REPO / "configs").rglob("*.yaml")])
SPLIT = json.loads((REPO / "cgdpm_med" / "splits" / "acdc_70_10_20.json").read_text(encoding="utf-8"))
SCRIPTS = sorted((REPO / "scripts").glob("*.py"))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred patients with the names of ACDC's."""
    names = [f"patient{n:03d}" for n in range(1, 101)]
    return write_cohort(tmp_path_factory.mktemp("cohort"), names, lambda name: ACDC_GROUPS[(int(name[-3:]) - 1) // 20])


# --- the split --------------------------------------------------------------------------------------------------------


def test_every_patient_is_in_one_section() -> None:
    sections = [SPLIT[name] for name in ("train", "validation", "test")]
    assert [len(section) for section in sections] == [70, 10, 20]
    assert sorted(chain(*sections)) == [f"patient{n:03d}" for n in range(1, 101)]


def test_every_group_is_in_every_section() -> None:
    for name, share in (("train", 14), ("validation", 2), ("test", 4)):
        groups = [ACDC_GROUPS[(int(patient.removeprefix("patient")) - 1) // 20] for patient in SPLIT[name]]
        assert {group: groups.count(group) for group in ACDC_GROUPS} == dict.fromkeys(ACDC_GROUPS, share)


# --- what the configurations say --------------------------------------------------------------------------------------


def texts(config: Any) -> Iterator[str]:
    """Every string of a parsed YAML file, keys included."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield str(key)
            yield from texts(value)
    elif isinstance(config, list):
        for value in config:
            yield from texts(value)
    elif isinstance(config, str):
        yield config


def sections_named(config: Any) -> set[str]:
    """What a configuration hands to a function that takes a section, and the values of keys called section."""
    found = set(re.findall(r"acdc_datalist\([^)]*?,\s*'(\w+)'", " ".join(texts(config))))
    if isinstance(config, dict) and "section" in config:
        found.add(config["section"])
    return found


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(REPO)))
def test_only_evaluation_names_the_test_patients(path: Path) -> None:
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    words = {word for text in texts(config) for word in re.findall(r"[A-Za-z]+", text)}
    if path == BUNDLE / "configs" / "evaluate.yaml":
        assert sections_named(config) == {"test"}
    else:
        assert "test" not in words
        # phantoms are all for training; of the data set only these two sections are
        whole = {"all"} if path.stem == "finetune" else set()
        assert sections_named(config) <= {"train", "validation"} | whole


def test_the_reading_of_configurations_sees_a_slip() -> None:
    assert sections_named({"data": "$cgdpm_med.acdc_datalist(@dataset_dir, 'test')[::2]"}) == {"test"}
    assert sections_named({"section": "all"}) == {"all"}


# --- what the configurations read -------------------------------------------------------------------------------------


def parser_of(cohort: Path, names: list[str], **overrides: Any) -> ConfigParser:
    paths = [path for name in names for path in CONFIGS if path.stem == name]
    assert len(paths) == len(names)
    parser = ConfigParser(ConfigParser.load_config_files([str(path) for path in paths]))
    parser.update({"bundle_root": str(BUNDLE), "dataset_dir": str(cohort), **overrides})
    return parser


def patients_of(parser: ConfigParser, key: str) -> set[str]:
    return {item["patient"] for item in parser.get_parsed_content(key)}


TRAINING = [
    ["train"],
    ["train", "finetune"],
    ["train", "train_guidance"],
    ["train", "train_guidance", "finetune_guidance"],
    ["train", "baseline_unet"],
    *(["train", p.stem] for p in CONFIGS if p.parent.name == "recipes" and not p.stem.endswith("_inference")),
]


@pytest.mark.parametrize("names", TRAINING, ids="+".join)
def test_training_reads_training_patients_and_selects_by_validation(cohort: Path, names: list[str]) -> None:
    parser = parser_of(cohort, names, phantom_folders=[])
    train, validation = (patients_of(parser, key) for key in ("train#dataset#data", "validate#dataset#data"))
    assert train == set(SPLIT["train"])
    assert validation == set(SPLIT["validation"])
    # the loaders take these lists and no others
    assert parser["train"]["slices"]["volumes"] == "@train::dataset"
    assert parser["validate"]["dataloader"]["dataset"] == "@validate::dataset"


def test_the_processes_of_several_gpus_share_the_validation_patients(
    cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch.distributed as dist

    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        parser = parser_of(cohort, ["train", "multi_gpu_train"])
        shares.append([item["key"] for item in parser.get_parsed_content("validate#dataset#data")])
        assert patients_of(parser, "train#dataset#data") == set(SPLIT["train"])
    assert sorted(chain(*shares)) == [item["key"] for item in acdc_datalist(cohort, "validation")]


def test_calibration_is_fitted_to_validation_patients(cohort: Path) -> None:
    assert inspect.signature(calibrate).parameters["section"].default == "validation"
    assert {item["patient"] for item in calibration_items(cohort)} == set(SPLIT["validation"])


def test_evaluation_reads_the_test_patients(cohort: Path) -> None:
    section = parser_of(cohort, ["inference", "evaluate"]).get_parsed_content("section")
    assert {item["patient"] for item in acdc_datalist(cohort, section)} == set(SPLIT["test"])


# --- what the programs read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_program_takes_test_patients_unasked(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name == "acdc_datalist":
            assert not [a.value for a in node.args if isinstance(a, ast.Constant) and a.value == "test"]
        if name == "add_argument" and any(isinstance(a, ast.Constant) and a.value == "--section" for a in node.args):
            default = next(k.value for k in node.keywords if k.arg == "default")
            assert isinstance(default, ast.Constant)
            assert default.value in ("train", "validation")
