"""Studies done by the workers of Dask: the same files, whatever becomes of a worker; and nobody's name in a log."""

from __future__ import annotations

import gzip
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]
from clustered import Deadly, Unlucky, attempts, run_with
from command import run
from conftest import REPO, load_script
from numpy.typing import NDArray
from PIL import Image
from resolvers import small_bundle
from runs import contents
from scans import scan, write_image
from slow_work import slowly
from stub_bundles import stub_bundle
from stubs import Thresholder

from cgdpm_med import evaluate_folders
from cgdpm_med.apps import cluster
from cgdpm_med.apps.cluster import open_cluster
from cgdpm_med.files import InputError
from cgdpm_med.models.description import PictureInput
from cgdpm_med.phantom import write_phantom_dataset
from cgdpm_med.runtime.engines import Engine, InProcess

pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
NAMES = ("Doe^Jane", "Roe^Richard", "Poe^Edgar", "Moe^Mary", "Loe^Liam")


@pytest.fixture(scope="module")
def two() -> Iterator[cluster.DaskEngine]:
    """Two workers, whose processes know the scripts from their beginning, as the tests' own does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPO / "scripts"))
        with open_cluster("local:2") as engine:
            yield engine


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    for n, name in enumerate(NAMES):
        scan(tmp_path / "in" / name / f"{name}.nii.gz", n)
    return tmp_path / "in"


@pytest.mark.slow
def test_two_workers_do_what_one_process_does(two: cluster.DaskEngine, studies: Path, tmp_path: Path) -> None:
    (studies / "broken.nii.gz").write_bytes(b"nothing")
    alone = run_with(InProcess(), studies, tmp_path / "alone", Thresholder)
    together = run_with(two, studies, tmp_path / "together", Thresholder)
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")
    assert json.dumps(together).replace("together", "alone") == json.dumps(alone)
    assert list(together["failed"]) == ["broken"]
    (tmp_path / "together" / NAMES[0] / f"{NAMES[0]}.json").unlink()
    again = run_with(two, studies, tmp_path / "together", Thresholder, resume=True)
    assert [case["case"] for case in again["cases"]] == [f"{NAMES[0]}/{NAMES[0]}"]
    assert len(again["skipped"]) == len(NAMES) - 1
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")


@pytest.fixture
def masks(tmp_path: Path) -> tuple[Path, Path]:
    """Predictions and references of five cases, one of them on two grids."""
    for n, name in enumerate(NAMES):
        reference = np.zeros((8, 7, 3), np.uint8)
        reference[1:4, 1:4], reference[4:7, 1:4], reference[1:4, 4:6] = 1, 2, 3
        _write_mask(tmp_path / "ref" / f"{name}.nii.gz", reference)
        _write_mask(tmp_path / "pred" / f"{name}.nii.gz", np.roll(reference, n, axis=0)[: 7 if n == 3 else 8])
    return tmp_path / "pred", tmp_path / "ref"


def _write_mask(path: Path, mask: NDArray[np.uint8]) -> None:
    path.parent.mkdir(exist_ok=True)
    nib.Nifti1Image(mask, np.diag([1.5, 1.5, 8, 1])).to_filename(path)


@pytest.fixture
def by_two(two: cluster.DaskEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``--dask local:2`` of a command is the cluster that runs already, whose worker dies of the second case."""

    monkeypatch.setattr(cluster, "open_cluster", _opening(Unlucky(two, tmp_path / "log", {1: 1})))
    return tmp_path / "log"


def _opening(engine: Engine) -> Callable[..., AbstractContextManager[Engine]]:
    return lambda *_, **__: nullcontext(engine)


@pytest.mark.slow
def test_masks_are_scored_alike(
    by_two: Path,
    masks: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    said = []
    for name, where in (("alone", ()), ("together", ("--dask", "local:2"))):
        assert run(monkeypatch, "evaluate", *masks, "--out", tmp_path / name, *where) == 1
        said.append([line for line in capfd.readouterr() if line])
    assert said[0] == said[1]
    assert f"{NAMES[3]}.nii.gz" in said[0][1]
    assert contents(tmp_path / "alone") == contents(tmp_path / "together") != {}
    assert len(attempts(by_two, "1")) == 2


@pytest.mark.slow
def test_a_pair_that_ends_workers_is_named(
    two: cluster.DaskEngine, masks: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    summary = evaluate_folders(*masks, engine=Unlucky(two, tmp_path / "log", {0: 99}))
    first = sorted(NAMES)[0]
    assert set(summary["failed"]) == {first, NAMES[3]}
    assert f"{first}.nii.gz: ended each worker that tried it, 3 times" in summary["failed"][first]
    assert summary["failed"][first] in capfd.readouterr().err


@pytest.mark.slow
def test_a_calibration_is_fitted_alike(
    by_two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = range(901, 910)
    write_phantom_dataset(
        tmp_path / "in", patients=list(numbers), shape=(32, 28, 3), spacing=(5.6, 5.6, 30), num_frames=4
    )
    names = [f"patient{n}" for n in numbers]
    (tmp_path / "split.json").write_text(json.dumps({"train": [], "validation": names, "test": []}))
    folder = str(tmp_path / "models")
    bundle = stub_bundle(tmp_path / "bundle", "overconfident.Overconfident", folder=folder)
    how = ("--split", tmp_path / "split.json", "--bundle", bundle, "--device", "cpu")
    for name, where in (("alone", ()), ("together", ("--dask", "local:2"))):
        assert run(monkeypatch, "calibrate", tmp_path / "in", *how, "--output", tmp_path / name, *where) == 0
    assert (tmp_path / "alone").read_bytes() == (tmp_path / "together").read_bytes()
    assert len(attempts(by_two, "1")) == 2
    (image,) = (tmp_path / "in" / names[0]).glob("*_frame01.nii.gz")
    image.write_bytes(b"nothing")
    capsys.readouterr()
    assert run(monkeypatch, "calibrate", tmp_path / "in", *how, "--output", tmp_path / "third", *where) == 1
    assert image.name in capsys.readouterr().err
    assert not (tmp_path / "third").exists()


@pytest.mark.slow
def test_pictures_are_refined_alike(
    by_two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle, rng = small_bundle(tmp_path / "bundle", PictureInput(8)), np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for name in NAMES[:3]:
        Image.fromarray(rng.integers(0, 255, (8, 6), np.uint8)).save(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "broken.png").write_bytes(b"nothing")
    said = []
    for name, where in (("alone", ()), ("together", ("--dask", "local:2"))):
        how = ("--bundle", bundle, "--members", "2", "--device", "cpu", *where)
        assert run(monkeypatch, "super-resolve", tmp_path / "in", tmp_path / name, *how) == 1
        said.append([sorted(stream.replace("together", "alone").splitlines()) for stream in capfd.readouterr()])
    assert said[0] == said[1]
    assert "broken.png" in "".join(said[0][1])
    assert contents(tmp_path / "alone") == contents(tmp_path / "together") != {}
    assert len(attempts(by_two, "1")) == 2


@pytest.mark.slow
def test_studies_of_lost_workers_are_done_again_and_poison_is_left(
    two: cluster.DaskEngine, studies: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two studies cost a worker each, one every worker that tries it, and one meets an error of some library."""
    run_with(InProcess(), studies, tmp_path / "alone", Thresholder)
    keys = [f"{name}/{name}" for name in NAMES]
    poison, strange = keys[2], keys[4]
    orders = Deadly(tmp_path / "log", at=((keys[0], 1), (keys[1], 1), (poison, 99)), broken=(strange,))
    result = run_with(two, studies, tmp_path / "out", orders)
    assert set(result["failed"]) == {poison, strange}
    assert "3 times" in result["failed"][poison]
    assert "RuntimeError: nobody foresaw this" in result["failed"][strange]
    assert len(attempts(tmp_path / "log", poison)) == 3
    assert all(len(attempts(tmp_path / "log", key)) >= 2 for key in keys[:2])
    whole = contents(tmp_path / "alone")
    for name in NAMES[:2] + NAMES[3:4]:
        folder = tmp_path / "out" / name
        assert contents(folder) == {Path(p).name: data for p, data in whole.items() if p.startswith(f"{name}/")}
    for name in (NAMES[2], NAMES[4]):
        assert not (tmp_path / "out" / name / f"{name}.json").exists()

    # nothing that workers or the scheduler wrote or show names a patient
    logs = [*two.client.get_worker_logs().values(), two.client.get_scheduler_logs()]
    shown = two.client.run_on_scheduler(_what_the_dashboard_shows)
    _, printed = capfd.readouterr()
    told = [line for line in printed.splitlines() if not line.startswith(("error: ", "segmented "))]
    for text in (str(logs), shown, "\n".join(told)):
        assert not any(part in text for name in NAMES for part in name.split("^"))
    assert "study-" in shown


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on file sizes here")
def test_a_disk_that_is_full(
    two: cluster.DaskEngine,
    studies: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """To workers the kernel refuses what lies beyond 8 KiB of a file: the mask of a large image."""
    write_image(studies / "large.nii.gz", np.random.default_rng(0).uniform(0, 1, (64, 64, 64)))
    bundle = stub_bundle(tmp_path / "bundle", "stubs.Thresholder")
    run_with(InProcess(), studies, tmp_path / "alone", Thresholder)
    command = ("segment", studies, tmp_path / "out", "--bundle", bundle, "--device", "cpu", "--no-report")
    monkeypatch.setattr(cluster, "open_cluster", _opening(two))
    two.client.wait_for_workers(2)
    two.client.run(_limit_files, 8192)
    try:
        assert run(monkeypatch, *command, "--dask", "local:2") == 1
    finally:
        two.client.run(_limit_files, None)
    (error,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"{tmp_path}/out/large.nii.gz: cannot be written: file too large" in error
    assert not [path for path in (tmp_path / "out").rglob("*") if "large" in path.name or path.name.startswith(".")]
    done = contents(tmp_path / "out")
    assert {f"{name}/{name}.json" for name in NAMES} < set(done)
    assert {item for item in done.items() if "cohort" not in item[0]} <= set(contents(tmp_path / "alone").items())


def _limit_files(size: int | None) -> None:
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (most if size is None else size, most))


@pytest.mark.slow
def test_no_patient_is_named_anywhere(
    two: cluster.DaskEngine,
    by_two: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A patient in headers, a worker lost, an image damaged: outputs, what is printed, logs and names of tasks."""
    dicom_scans = pytest.importorskip("dicom_scans", reason="the extra 'dicom' is not installed")
    scans = [dicom_scans.Scan(phases=2, seed=n) for n in range(3)]
    for n, one in enumerate(scans):
        one.write(tmp_path / "in" / f"scan{n}")
    damaged = sorted((tmp_path / "in" / "scan2").rglob("*.dcm"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    two.client.wait_for_workers(2)
    two.client.run(_print_into, str(tmp_path))
    out = tmp_path / "out"
    how = ("--bundle", stub_bundle(tmp_path / "bundle", "stubs.Thresholder"), "--device", "cpu", "--label-table")
    code = run(
        monkeypatch, "segment", tmp_path / "in", out, *how, "--dicom-seg", "deidentified", "--dask", "local:2", "--json"
    )
    assert code == 1
    told = {f"printed {n}": text for n, text in enumerate(capfd.readouterr())}
    told |= {path.name: path.read_text() for path in tmp_path.glob("printed.*")}
    told |= {"workers": str(two.client.get_worker_logs()), "scheduler": str(two.client.get_scheduler_logs())}
    told["dashboard"] = two.client.run_on_scheduler(_what_the_dashboard_shows)
    written = {str(path): _plain(path) for path in out.rglob("*") if path.is_file()}
    assert sum(name.endswith("_seg.dcm") for name in written) == 4
    values = dicom_scans.PATIENT.values()
    assert all(value in _plain(sorted((tmp_path / "in" / "scan0").rglob("*.dcm"))[0]) for value in values)
    assert [(name, value) for name, text in (told | written).items() for value in values if value in text] == []
    uids = [uid for one in scans for uid in (one.study, one.uid)]  # a SEG must refer to its images
    assert [(name, uid) for name, text in told.items() for uid in uids if uid in text] == []
    assert len(told) >= 7


def _print_into(folder: str) -> None:
    """What this worker prints from now on goes into a file of its own."""
    with open(f"{folder}/printed.{os.getpid()}", "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _plain(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("latin-1")


@pytest.mark.slow
def test_workers_killed_at_random(two: cluster.DaskEngine, tmp_path: Path) -> None:
    """A small one of what scripts/cluster_faults.py does with 200 studies and 10 kills."""
    found = load_script("cluster_faults").trial(two, tmp_path, studies=16, kills=2, seed=0)
    assert found == {"studies": 16, "killed": 2, "done": 16, "twice": 0, "failed": 0, "differing_files": 0}


def _what_the_dashboard_shows(dask_scheduler: Any = None) -> str:
    return str([*dask_scheduler.transition_log, dict(dask_scheduler.tasks), dask_scheduler.get_events()])


@contextmanager
def running(module: str, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    path = os.pathsep.join([str(REPO), str(REPO / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", f"distributed.cli.{module}", *arguments, "--no-dashboard"]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_scheduler_that_is_lost_is_one_error(studies: Path, tmp_path: Path) -> None:
    """Workers of another owner, on a disk that takes no file above 1 KiB; then the scheduler is killed."""
    where = tmp_path / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with running("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(where), **quiet) as it:
        deadline = time.monotonic() + 240
        while not (where.exists() and where.read_text()) and time.monotonic() < deadline:
            time.sleep(0.2)
        address = json.loads(where.read_text())["address"]
        with (
            running("dask_worker", address, "--nthreads", "1", "--no-nanny", cwd=tmp_path, **quiet),
            open_cluster(address) as engine,
        ):
            items = {name: name for name in NAMES}
            answers = engine.do(slowly, items, lambda key, fraction: None)
            assert next(answers)[0] in NAMES
            it.kill()
            with pytest.raises(InputError, match="scheduler was lost"):
                list(answers)


@pytest.mark.slow
def test_jobs_of_slurm(studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sbatch that starts what it is given here, and a scancel that ends it."""
    tools = tmp_path / "bin"
    tools.mkdir()
    job = tmp_path / "job.sh"  # the script that is handed in does not stay
    (tools / "sbatch").write_text(
        f'#!/bin/bash\ncp "${{@: -1}}" {job}\nbash {job} >/dev/null 2>&1 &\necho "Submitted batch job $!"\n'
    )
    (tools / "scancel").write_text("#!/bin/bash\npkill -P $1\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPO), str(REPO / "tests" / "helpers")]))
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "slurm.yaml"
    settings = {"cores": 1, "memory": "2GB", "scheduler_options": {"host": "127.0.0.1", "dashboard_address": ":0"}}
    config.write_text(yaml.safe_dump({"jobs": 1, "cluster": settings}))
    with open_cluster("slurm", config) as engine:
        result = run_with(engine, studies, tmp_path / "out", Thresholder)
    assert len(result["cases"]) == len(NAMES)
