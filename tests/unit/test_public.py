"""What a stranger meets is valid, and says of versions and licences what pyproject.toml says."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPO
from packaging.licenses import canonicalize_license_expression
from packaging.specifiers import SpecifierSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

YAML = [*(REPO / ".github").rglob("*.yml"), REPO / ".pre-commit-config.yaml", REPO / "CITATION.cff"]
PROJECT: dict[str, Any] = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def content(path: str | Path) -> Any:
    return yaml.safe_load((REPO / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_each_file_is_a_table(path: Path) -> None:
    assert isinstance(content(path), dict)


def test_the_matrix_has_every_python_that_is_declared() -> None:
    matrix = content(".github/workflows/tests.yml")["jobs"]["fast"]["strategy"]["matrix"]
    prefix = "Programming Language :: Python :: 3."
    declared = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if text.startswith(prefix)]
    assert matrix["python"] == declared
    admitted = SpecifierSet(PROJECT["requires-python"])
    assert declared[0] in admitted
    assert "3.9" not in admitted
    assert {name.partition("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}
    (lowest,) = matrix["include"]
    assert lowest["python"] == declared[0]
    assert lowest["versions"] == "lowest-direct"


def test_every_dependency_has_a_lowest_version() -> None:
    texts = [*PROJECT["dependencies"], *(text for extra in PROJECT["optional-dependencies"].values() for text in extra)]
    assert [text for text in texts if ">=" not in text and not text.startswith("cgdpm-med")] == []


def test_scripts_that_the_workflow_runs_exist() -> None:
    steps = [step for job in content(".github/workflows/tests.yml")["jobs"].values() for step in job["steps"]]
    scripts = [step["run"] for step in steps if step.get("run", "").startswith("./")]
    assert scripts
    assert all((REPO / script.split()[0]).is_file() for script in scripts)


def test_pre_commit_formats_with_the_pinned_ruff() -> None:
    pinned = re.search(r"^ruff==(\S+)", (REPO / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned is not None
    revisions = {repo["repo"].rpartition("/")[2]: repo["rev"] for repo in content(".pre-commit-config.yaml")["repos"]}
    assert revisions["ruff-pre-commit"] == f"v{pinned[1]}"


def test_the_licence_is_that_of_code_and_weights() -> None:
    expression = PROJECT["license"]
    assert canonicalize_license_expression(expression) == expression
    data = ("ACDC", "faces", "ImageNet")
    assert set(expression.split(" AND ")) == {"Apache-2.0", *(f"LicenseRef-{name}-non-commercial" for name in data)}
    files = {path.relative_to(REPO).as_posix() for pattern in PROJECT["license-files"] for path in REPO.glob(pattern)}
    shipping = {path.parents[1].name for path in REPO.glob("bundles/*/models/model.pt")}
    assert {"LICENSE", *(f"bundles/{name}/docs/data_license.txt" for name in shipping)} <= files


def test_the_citation_is_of_this_version() -> None:
    citation = content("CITATION.cff")
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["cff-version"] == "1.2.0"
    assert {"title", "authors", "message"} <= citation.keys()


def test_files_that_the_page_for_contributors_names_exist() -> None:
    text = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/])\.?/?((?:scripts|tests|docs)/[\w/.]+\.\w+|\w+\.(?:toml|txt|md))\b", text))
    assert {"scripts/test.sh", "pyproject.toml"} <= named
    assert [name for name in named if not (REPO / name).is_file()] == []
