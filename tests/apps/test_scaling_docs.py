"""What docs/scaling.md tells people to run: scripts that a shell can read, options that exist, jobs that Slurm gets."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import typer
from conftest import REPO

from cgdpm_med.apps.cli import app
from cgdpm_med.apps.cluster import read_slurm_config

DOCUMENT = (REPO / "docs" / "scaling.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every call of cgdpm-med, continued lines joined."""
    text = DOCUMENT.replace("\\\n", " ")
    return re.findall(
        r"(?:^ {4}|^srun |no-python |run --nv cgdpm-med\.sif )(?:cgdpm-med )?((?:segment|archive|cohort) .*)",
        text,
        re.MULTILINE,
    )


@pytest.mark.parametrize("script", blocks("bash"))
def test_scripts_for_slurm(script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    lines = script.splitlines()
    assert lines[0] == "#!/bin/bash"
    directives = [line for line in lines if line.startswith("#SBATCH")]
    assert directives == lines[1 : 1 + len(directives)]  # Slurm reads none below the first command
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", line) for line in directives)
    assert any(line.startswith("srun ") for line in lines)


def test_options_exist() -> None:
    found = commands()
    assert len(found) >= 8
    group = typer.main.get_command(app)
    for command in found:
        name = command.split()[0]
        known = {option for parameter in group.commands[name].params for option in parameter.opts}  # type: ignore[attr-defined]
        assert set(re.findall(r"(?<!\S)--[a-z-]+", command.partition(" #")[0])) <= known, command


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
