"""The package is what its metadata say: one version, every file in the wheel, every import declared."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import cgdpm_med
from cgdpm_med.files import InputError
from cgdpm_med.inference import bundles

IMPORT_TO_DISTRIBUTION = {"ignite": "pytorch-ignite", "PIL": "pillow", "SimpleITK": "simpleitk", "yaml": "pyyaml"}


def tracked_files(folder: str) -> set[Path]:
    run = subprocess.run(["git", "ls-files", "-z", "--", folder], capture_output=True, text=True, cwd=REPO)
    if run.returncode:
        pytest.skip("not a git checkout")
    return {REPO / name for name in run.stdout.split("\0") if name}


def make_bundle(folder: Path, name: str) -> Path:
    configs = folder / name / "configs"
    configs.mkdir(parents=True)
    (configs / "metadata.json").write_text('{"version": "0.0.1"}', encoding="utf-8")
    return folder / name


def test_one_version(pyproject: dict[str, Any]) -> None:
    newest = re.search(r"^## \[(.+?)\]", (REPO / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert newest is not None
    assert pyproject["project"]["version"] == cgdpm_med.__version__ == newest[1]


def test_every_folder_of_modules_is_packaged(pyproject: dict[str, Any]) -> None:
    folders = {".".join(path.parent.relative_to(REPO).parts) for path in (REPO / "cgdpm_med").rglob("*.py")}
    assert set(pyproject["tool"]["setuptools"]["packages"]) == folders | {"cgdpm_med.bundles", "cgdpm_med.recipes"}


DATA = [("cgdpm_med", "cgdpm_med"), ("cgdpm_med.bundles", "bundles"), ("cgdpm_med.recipes", "recipes")]


@pytest.mark.parametrize(("package", "folder"), DATA)
def test_every_data_file_is_packaged(pyproject: dict[str, Any], package: str, folder: str) -> None:
    patterns = pyproject["tool"]["setuptools"]["package-data"][package]
    packaged = {path for pattern in patterns for path in (REPO / folder).glob(pattern)}
    assert {path for path in tracked_files(folder) if path.suffix != ".py"} - packaged == set()


def test_every_import_is_declared(pyproject: dict[str, Any]) -> None:
    project = pyproject["project"]
    extras = project["optional-dependencies"]
    declared = {
        canonicalize_name(Requirement(text).name)
        for texts in (project["dependencies"], *(extras[name] for name in extras.keys() - {"dev", "docs"}))
        for text in texts
    }
    imported = set()
    for path in (REPO / "cgdpm_med").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    with_torch = {"triton"}  # comes with PyTorch's builds for CUDA, and is imported where it is there
    third_party = imported - sys.stdlib_module_names - {"cgdpm_med"} - with_torch
    assert {canonicalize_name(IMPORT_TO_DISTRIBUTION.get(name, name)) for name in third_party} - declared == set()


def test_constraints_lie_in_the_declared_ranges(pyproject: dict[str, Any]) -> None:
    lines = (REPO / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {}
    for requirement in (Requirement(line) for line in lines if not line.startswith("#")):
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        pins[canonicalize_name(requirement.name)] = pin.version
    project = pyproject["project"]
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["dev"], *extras["docs"]]:
        requirement = Requirement(text)
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, text


def test_bundles_are_found_in_a_checkout_and_when_installed(tmp_path: Path) -> None:
    package = tmp_path / "cgdpm_med"
    package.mkdir()
    for name, folder in (("bundles", bundles.bundles_folder), ("recipes", bundles.recipes_folder)):
        assert folder(package) == tmp_path / name
        (package / name).mkdir()
        assert folder(package) == package / name


def test_bundle_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = make_bundle(tmp_path, "second_task")
    first = make_bundle(tmp_path, "first_task")
    (tmp_path / "not_a_bundle").mkdir()
    monkeypatch.setattr(bundles, "bundles_folder", lambda: tmp_path)
    assert bundles.list_bundles() == ["first_task", "second_task"]
    assert bundles.bundle_path("first_task") == first
    assert bundles.bundle_path("second_task") == second
    assert bundles.bundle_path("imagenet_sr_64_256") == REPO / "recipes" / "imagenet_sr_64_256"


@pytest.mark.parametrize("name", ["third_task", "not_a_bundle", "../first_task", ""])
def test_unknown_bundle_lists_the_known(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bundle(tmp_path, "first_task")
    make_bundle(tmp_path, "second_task")
    (tmp_path / "not_a_bundle").mkdir()
    monkeypatch.setattr(bundles, "bundles_folder", lambda: tmp_path)
    with pytest.raises(InputError, match="first_task, second_task"):
        bundles.bundle_path(name)
