"""Disks that fill up or turn read-only while results are written: one error a study, no half file, no lost study."""

from __future__ import annotations

import errno
import os
import resource
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
from command import run
from runs import again, contents, start
from scans import PLAIN, scan, write_image
from stubs import Thresholder

from cgdpm_med import files, find_cases, segment_all
from cgdpm_med.files import atomic_write, sweep_temporaries
from cgdpm_med.inference.segmenter import Segmenter

FULL = "Free space there or choose another folder"
SHUT = "Choose a folder that can be written to"


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on file sizes here")
def test_a_disk_that_takes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel itself refuses to write beyond 8 KiB: the mask of a large image fails, that of a small one fits."""
    large = np.random.default_rng(0).uniform(0, 1, (64, 64, 64))
    write_image(tmp_path / "in" / "large.nii.gz", large)
    scan(tmp_path / "in" / "small.nii.gz")
    monkeypatch.setattr(Segmenter, "from_bundle", lambda *_, **__: Thresholder())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        child = start(tmp_path / "log", str(tmp_path / "in"), str(tmp_path / "out"), "--write", "mask")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    _, status = os.waitpid(child, 0)
    log = (tmp_path / "log").read_text()
    assert os.waitstatus_to_exitcode(status) == 1, log
    errors = [line for line in log.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: {tmp_path}/out/large.nii.gz: cannot be written: file too large. {FULL}"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["small.json", "small.nii.gz"]


@pytest.mark.parametrize(
    ("number", "what", "remedy"),
    [
        (errno.ENOSPC, "no space left on device", FULL),
        (errno.EDQUOT, "disk quota exceeded", FULL),
        (errno.EROFS, "read-only file system", SHUT),
        (errno.EIO, "input/output error", SHUT),
    ],
    ids=["full", "quota", "read-only", "broken"],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("moment", range(4), ids=["mask", "entropy", "disagreement", "record"])
def test_a_disk_that_fails_at_one_file(
    number: int,
    what: str,
    remedy: str,
    call: str,
    moment: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for n, name in enumerate("ab"):
        scan(source / f"{name}.nii.gz", n)
    segment_all(Thresholder(), find_cases(source), tmp_path / "undisturbed", options=PLAIN)
    capsys.readouterr()

    real, left = getattr(os, call), [moment]

    def failing(*arguments: object) -> object:
        left[0] -= 1
        if left[0] == -1:
            raise OSError(number, os.strerror(number))
        return real(*arguments)

    with monkeypatch.context() as broken:
        broken.setattr(os, call, failing)
        result = segment_all(Thresholder(), find_cases(source), out, options=PLAIN)
    name = ("a.nii.gz", "a_entropy.nii.gz", "a_disagreement.nii.gz", "a.json")[moment]
    assert result["failed"] == {"a": f"{out / name}: cannot be written: {what}. {remedy}"}
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: {result['failed']['a']}"]
    assert [study["key"] for study in result["studies"]] == ["b"]
    assert not (out / "a.json").exists()
    assert not list(out.glob(".*"))
    undisturbed = contents(tmp_path / "undisturbed")
    assert {item for item in contents(out).items() if not item[0].startswith("cohort")} <= set(undisturbed.items())
    assert again(source, out) == ["a"]
    assert contents(out) == undisturbed


def test_a_read_only_folder_is_found_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = scan(tmp_path / "v.nii.gz")
    stub = Thresholder()
    monkeypatch.setattr(Segmenter, "from_bundle", lambda *_, **__: stub)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert run(monkeypatch, "segment", str(image), str(tmp_path / "out"), "--device", "cpu") == 1
    assert f"error: {tmp_path / 'out'}: cannot be written: read-only file system. Choose" in capsys.readouterr().err
    assert stub.seen == []


def test_what_was_there_before_survives_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("before")

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(files.InputError, match="no space left on device"), atomic_write(path) as file:
        file.write(b"after")
    assert path.read_text() == "before"
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]


def test_what_another_process_still_writes_is_not_swept(tmp_path: Path) -> None:
    """A pipe holds the other one in the middle of its file; killed, it leaves what is swept."""
    path, (ours, theirs), (told, tell) = tmp_path / "a.json", os.pipe(), os.pipe()
    if (child := os.fork()) == 0:
        with atomic_write(path) as file:
            file.write(b"half")
            file.flush()
            os.write(tell, b"!")
            os.read(ours, 1)
        os._exit(0)
    os.read(told, 1)
    sweep_temporaries(path)
    assert len(list(tmp_path.iterdir())) == 1
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    sweep_temporaries(path)
    assert list(tmp_path.iterdir()) == []
    for end in (ours, theirs, told, tell):
        os.close(end)
