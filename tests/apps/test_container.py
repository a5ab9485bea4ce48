"""The Dockerfile, read: what it copies is there and reaches the build, it ends without root, and its command runs."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO

import cgdpm_med


def instructions() -> list[tuple[str, str]]:
    """(instruction, its arguments) of the Dockerfile, comments left out and continued lines joined."""
    text = (REPO / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [(name.upper(), rest) for name, rest in (line.split(maxsplit=1) for line in lines)]


def stages() -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for name, rest in instructions():
        if name == "FROM":
            found.append([])
        found[-1].append((name, rest))
    return found


def copied() -> list[str]:
    """Paths of the checkout that a stage copies."""
    sources = [shlex.split(rest) for name, rest in instructions() if name == "COPY"]
    return [source for words in sources if not words[0].startswith("--from") for source in words[:-1]]


def ignored(path: str) -> bool:
    patterns = (REPO / ".dockerignore").read_text(encoding="utf-8").split()
    parents = ["/".join(path.split("/")[: n + 1]) for n in range(path.count("/") + 1)]
    return any(fnmatch.fnmatch(part, pattern.removeprefix("**/")) for part in parents for pattern in patterns)


def test_what_is_copied_exists_and_is_sent_to_the_build() -> None:
    assert "." not in copied()  # a checkout holds more than the image needs, data perhaps
    for path in copied():
        assert (REPO / path).exists(), path
        assert not ignored(path), path


def test_what_the_build_needs_is_copied(pyproject: dict[str, Any]) -> None:
    needed = {"pyproject.toml", pyproject["project"]["readme"]}
    needed |= {name.split("/")[0] for name in pyproject["project"]["license-files"]}
    needed |= {folder.split("/")[0] for folder in pyproject["tool"]["setuptools"]["package-dir"].values()}
    needed |= {name for _, rest in instructions() for name in re.findall(r"--constraint (\S+)", rest)}
    assert needed <= set(copied())
    (extras,) = [found[1].split(",") for _, rest in instructions() if (found := re.search(r"\.\[([\w,]+)\]", rest))]
    assert set(extras) == {"dicom", "cluster", "archive"} <= set(pyproject["project"]["optional-dependencies"])


def test_the_base_is_pinned_to_a_python_that_fits(pyproject: dict[str, Any]) -> None:
    lowest = tuple(int(part) for part in pyproject["project"]["requires-python"].removeprefix(">=").split("."))
    for stage in stages():
        image = stage[0][1].split()[0]
        version = re.fullmatch(r"python:(\d+)\.(\d+)-slim", image)
        assert version is not None, image
        assert (int(version[1]), int(version[2])) >= lowest


def test_files_come_from_stages_that_exist() -> None:
    names = {words[2] for _, rest in instructions() if len(words := rest.split()) == 3 and words[1].upper() == "AS"}
    used = {name for _, rest in instructions() for name in re.findall(r"--from=(\S+)", rest)}
    assert used == names == {"build"}


def test_it_runs_without_root_and_fetches_nothing() -> None:
    final = stages()[-1]
    (user,) = [rest for name, rest in final if name == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert [name for name, _ in final].index("USER") < [name for name, _ in final].index("ENTRYPOINT")
    assert "RUN" not in {name for name, _ in final}
    assert not {name for name, _ in instructions()} & {"ADD", "MAINTAINER", "SHELL"}


def test_pip_leaves_no_cache_and_keeps_to_the_tested_versions() -> None:
    installs = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    assert len(installs) == 2
    for line in installs:
        assert {"--no-cache-dir", "--constraint"} <= set(shlex.split(line))


def test_the_command_runs(pyproject: dict[str, Any]) -> None:
    ((name, entry),) = stages()[-1][-1:]
    assert name == "ENTRYPOINT"
    (command,) = json.loads(entry)
    module, _, function = pyproject["project"]["scripts"][command].partition(":")
    assert callable(getattr(import_module(module), function))
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == cgdpm_med.__version__


def test_docs_build_and_run_this_file() -> None:
    docs = Path(REPO / "docs" / "integration.md").read_text(encoding="utf-8")
    assert "docker build -t cgdpm-med ." in docs
    assert re.search(r"docker run --rm --network none .*cgdpm-med segment /in /out", docs)


@pytest.mark.slow
def test_docker_builds_it_and_it_runs() -> None:
    """Where there is a daemon that may fetch a Python and PyTorch."""
    docker = next((name for name in ("docker", "podman") if _works(name)), None)
    if docker is None:
        pytest.skip("neither docker nor podman works here")
    if subprocess.run([docker, "pull", "-q", "python:3.11-slim"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no registry to fetch python:3.11-slim from")
    subprocess.run([docker, "build", "-q", "-t", "cgdpm-med-test", "."], cwd=REPO, check=True)
    command = [docker, "run", "--rm", "--network", "none", "cgdpm-med-test", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == cgdpm_med.__version__


@pytest.mark.slow
def test_buildah_builds_it() -> None:
    """For machines without a daemon."""
    if not _works("buildah"):
        pytest.skip("buildah does not work here")
    if subprocess.run(["buildah", "pull", "-q", "python:3.11-slim"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no registry to fetch python:3.11-slim from")
    subprocess.run(["buildah", "build", "-q", "-t", "cgdpm-med-test", "."], cwd=REPO, check=True)


def _works(program: str) -> bool:
    path = shutil.which(program)
    return path is not None and subprocess.run([path, "info"], capture_output=True, check=False).returncode == 0


# --- Apptainer --------------------------------------------------------------------------------------------------------


def sections() -> dict[str, list[str]]:
    """Lines of the Apptainer definition by section, the header under an empty name."""
    found: dict[str, list[str]] = {"": []}
    for line in (REPO / "scripts" / "slurm" / "cgdpm-med.def").read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("%"):
            found[text[1:]] = []
        elif text and not text.startswith("#"):
            found[list(found)[-1]].append(text)
    return found


def test_apptainer_builds_what_docker_builds() -> None:
    definition = sections()
    assert dict(line.split(": ") for line in definition[""])["From"] == stages()[-1][0][1]
    files = dict(line.split() for line in definition["files"])
    assert set(files) == set(copied())
    assert all(target == f"/src/{source}" for source, target in files.items())
    docker = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    assert [line for line in definition["post"] if "pip install" in line] == docker
    assert definition["runscript"] == ['exec cgdpm-med "$@"']
