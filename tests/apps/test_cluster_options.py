"""Clusters that are asked for wrongly."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import run
from scans import scan

from cgdpm_med.apps import cluster
from cgdpm_med.apps.cluster import device_number, open_cluster, read_slurm_config
from cgdpm_med.files import InputError

pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--dask", "local:0"), "local:2"),
        (("--dask", "local"), "local:2"),
        (("--dask", "slurm"), "--dask-config"),
        (("--dask", "local:2", "--dask-config", "x.yaml"), "slurm"),
        (("--dask-config", "x.yaml"), "slurm"),
        (("--dask", "local:2", "--shard", "1/2"), "--shard"),
    ],
)
def test_options_that_do_not_fit(
    arguments: tuple[str, ...],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scan(tmp_path / "in" / "a.nii.gz")
    assert run(monkeypatch, "segment", str(tmp_path / "in"), str(tmp_path / "out"), *arguments) in (1, 2)
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_dask_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"cgdpm-med\[cluster\]"), open_cluster("local:2"):
        pass


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1",
        "a: b: c",
        "jobs: 4",
        "jobs: 0\ncluster: {cores: 1, memory: 1GB}",
        "jobs: 1\ncluster: {memory: 1GB}",
        "jobs: 1\ncluster: {cores: 1, memory: 1GB}\nqueue: gpu",
        "jobs: true\ncluster: {cores: 4}",
    ],
)
def test_a_configuration_for_slurm_that_says_too_little(text: str, tmp_path: Path) -> None:
    (tmp_path / "slurm.yaml").write_text(text)
    with pytest.raises(InputError, match=r"slurm\.yaml"):
        read_slurm_config(tmp_path / "slurm.yaml")


@pytest.mark.parametrize(
    ("name", "number"),
    [("0", "0"), ("3", "3"), ("SLURMCluster-12", "12"), ("SLURMCluster-1-2", "2"), ("tcp://10.0.0.1:41", None)],
)
def test_the_number_of_a_worker(name: str, number: str | None) -> None:
    assert device_number(name) == number
