"""``python -m monai.bundle run``: mistyped overrides are refused, and a user's errors end in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO

from cgdpm_med import InputError
from cgdpm_med.inference.bundle_command import check_command, given_arguments, refuse_unknown
from cgdpm_med.inference.bundles import bundle_path, list_bundles, list_recipes

BUNDLES = [bundle_path(name) for name in (*list_bundles(), *list_recipes())]
ACDC = REPO / "bundles" / "acdc_segmentation" / "configs"


def train_file() -> str:
    return str(ACDC / "train.yaml")


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("epoch", "epochs"),
        ("validate_every", "val_interval"),
        ("train#inferrer", "train#inferer"),
        ("train::trainr::max_epochs", "train#trainer"),
        ("xyz", "batch_size"),
    ],
)
def test_what_the_configuration_lacks_is_refused(name: str, named: str) -> None:
    with pytest.raises(InputError, match="no key") as refused:
        refuse_unknown({"config_file": train_file(), name: 1})
    assert named in str(refused.value)


@pytest.mark.parametrize(
    "name",
    ["epochs", "train#trainer#max_epochs", "network_def#dropout", "run_id", "logging_file", "tracking", "run_name"],
)
def test_what_it_has_and_what_monai_takes_itself_is_not(name: str) -> None:
    refuse_unknown({"config_file": train_file(), name: 1})


def test_keys_of_every_file_of_a_stack_count() -> None:
    files = [train_file(), str(ACDC / "train_guidance.yaml")]
    refuse_unknown({"config_file": files, "coupling": "forward"})
    with pytest.raises(InputError, match="coupling"):
        refuse_unknown({"config_file": files[0], "coupling": "forward"})


def test_arguments_are_read_as_monai_reads_them(tmp_path: Path) -> None:
    (tmp_path / "more.json").write_text(json.dumps({"config_file": "b.yaml", "seed": 3, "epochs": 7}))
    words = ["--config_file", "['a.yaml','c.yaml']", "--epochs=5", "--learning-rate", "-0.1"]
    words += ["--args_file", str(tmp_path / "more.json"), "--shift", "true"]
    given = given_arguments(words)
    assert given["config_file"] == ["a.yaml", "c.yaml"]
    assert (given["epochs"], given["seed"], given["learning_rate"]) == (5, 3, -0.1)


@pytest.mark.parametrize("word", ["false", "true", "FALSE"])
def test_words_that_would_count_as_true_are_refused(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["run", "--config_file", train_file(), "--places"]
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "argv", [str(Path("monai", "bundle", "__main__.py")), *command, word])
    with pytest.raises(InputError, match=f"places {word} is a text") as refused:
        check_command()
    assert refused.value.remedy == f"Write {word.capitalize()}"
    monkeypatch.setattr(sys, "argv", [*sys.argv[:-1], word.capitalize()])
    check_command()


def test_another_program_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = sys.excepthook
    monkeypatch.setattr(sys, "argv", ["pytest", "run", "--config_file", train_file(), "--epoch", "3"])
    check_command()
    assert sys.excepthook is hook


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_every_configuration_that_runs_checks_its_command(bundle: Path) -> None:
    """One that states its own ``initialize`` replaces another's."""
    files = [path for path in (bundle / "configs").glob("*.yaml") if "\ninitialize:" in path.read_text()]
    assert len(files) >= 3
    assert [path.name for path in files if "bundle_command.check_command" not in path.read_text()] == []


def bundle_run(names: str, **settings: str) -> subprocess.CompletedProcess[str]:
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    files = str([str(ACDC / f"{name}.yaml") for name in names.split()])
    words += ["--config_file", files, "--bundle_root", str(ACDC.parent)]
    return subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", *words],
        env=os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.slow
def test_the_last_line_says_what_is_wrong(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent")
    for names, settings, named in (
        ("train", {"dataset_dir": absent, "epoch": "31"}, "'epoch'"),
        ("inference", {"dataset_dir": str(tmp_path), "weights": absent + ".pt"}, absent + ".pt"),
        ("inference evaluate", {"dataset_dir": absent, "output_dir": str(tmp_path / "out")}, absent),
    ):
        done = bundle_run(names, **settings)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        last = done.stderr.rstrip().splitlines()[-1]
        assert last.startswith("error: ")
        assert named in last
        assert not (tmp_path / "out").exists()
