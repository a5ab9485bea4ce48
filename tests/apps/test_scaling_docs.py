"""What docs/scaling.md tells people to run: scripts that a shell can read, options that exist, jobs that Slurm gets."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import yaml  # type: ignore[import-untyped]
from conftest import REPO, load_script

from cgdpm_med.apps.cli import app
from cgdpm_med.apps.cluster import read_slurm_config

DOCUMENT = (REPO / "docs" / "scaling.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every command: those of indented lines, of scripts, and those in the text that start with a program's name."""
    text = DOCUMENT.replace("\\\n", " ")
    lines = re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)
    lines += [line for script in blocks("bash") for line in script.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`((?:\w+=\S+ )*(?:python|docker|dask|cgdpm-med|pip) [^`]+)`", text)
    return [line.partition("  #")[0].strip() for line in lines if not line.startswith("#") and line.strip()]


@pytest.mark.parametrize("script", blocks("bash"))
def test_scripts_for_slurm(script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    lines = script.splitlines()
    assert lines[0] == "#!/bin/bash"
    directives = [line for line in lines if line.startswith("#SBATCH")]
    assert directives == lines[1 : 1 + len(directives)]  # Slurm reads none below the first command
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", line) for line in directives)
    assert any(line.startswith("srun ") for line in lines)


# --- every command ----------------------------------------------------------------------------------------------------


def _options(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}


def _ours(words: list[str]) -> None:
    known = {option for parameter in COMMANDS[words[0]].params for option in parameter.opts}
    assert _options(words) <= known


def _script(words: list[str]) -> None:
    found: list[argparse.ArgumentParser] = []
    module = load_script(Path(words[0]).stem)

    def parsed(parser: argparse.ArgumentParser, *_: object) -> argparse.Namespace:
        found.append(parser)
        raise SystemExit(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parsed)
        with pytest.raises(SystemExit):
            module.main()
    assert _options(words) <= set(found[0]._option_string_actions)


def _bundle(words: list[str]) -> None:
    """``monai.bundle run`` in the folder of a bundle."""
    root = REPO / "bundles" / "acdc_segmentation"
    files = re.findall(r"configs/[\w.]+", " ".join(words))
    settings = {key for file in files for key in yaml.safe_load((root / file).read_text(encoding="utf-8"))}
    assert files
    assert {option[2:] for option in _options(words)} <= settings | {"config_file"}


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "cgdpm-med": _ours,
    "cgdpm-med.sif": _ours,
    "scripts": _script,
    "monai.bundle": lambda words: _bundle(words[1:]),
}
OUTSIDE = ("pip install", "dask worker", "dask scheduler", "docker build -t cgdpm-med .", "apptainer build", "export")


def test_every_command_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its options exist, or it is another program's."""
    monkeypatch.syspath_prepend(str(REPO / "scripts"))
    seen: set[str] = set()
    for command in commands():
        words = shlex.split(command)
        place, name = next(
            ((n, k) for n, word in enumerate(words) for k in PROGRAMS if word == k or word.startswith(f"{k}/")),
            (0, ""),
        )
        if command.startswith("sbatch"):
            PROGRAMS["cgdpm-med"](shlex.split(words[words.index("--wrap") + 1])[1:])
        elif name and not command.startswith(OUTSIDE):
            PROGRAMS[name](words[place + (name != "scripts") :])
            seen.add(name)
        else:
            assert command.startswith((*OUTSIDE, "head=$(scontrol")), command
    assert seen == set(PROGRAMS)


def test_what_apptainer_builds_is_there() -> None:
    (path,) = re.findall(r"apptainer build \S+ (\S+)", DOCUMENT)
    assert (REPO / path).is_file()


def test_the_jobs_of_dask(tmp_path: Path) -> None:
    """Each job runs one worker that does one study at a time, in the environment that the file names."""
    slurm = pytest.importorskip("dask_jobqueue.slurm", reason="the extra 'cluster' is not installed")
    (text,) = blocks("yaml")
    (tmp_path / "slurm.yaml").write_text(text)
    jobs, arguments = read_slurm_config(tmp_path / "slurm.yaml")
    script = slurm.SLURMJob("tcp://127.0.0.1:8786", name="worker-0", **arguments).job_script()
    assert jobs == 16
    assert re.findall(r"--nthreads (\d+)", script)[-1] == "1"
    assert "--nworkers" not in script or "--nworkers 1" in script
    for line in ("#SBATCH --gpus=1", "#SBATCH --requeue", "#SBATCH -t 04:00:00", "#SBATCH --cpus-per-task=8"):
        assert line in script.splitlines()
    assert script.index("source /shared/cgdpm_med/bin/activate") < script.index("dask_worker")
