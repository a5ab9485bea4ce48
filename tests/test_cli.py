"""The command line: what it prints, where errors go, and its exit codes."""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path

import pytest
import torch

import cgdpm_med
from cgdpm_med.apps import bundles, cli
from cgdpm_med.volumes import InputError


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of ``cgdpm-med`` with these arguments."""
    monkeypatch.setattr("sys.argv", ["cgdpm-med", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return 0 if stop.value.code is None else int(stop.value.code)


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"{cgdpm_med.__version__}\n"


@pytest.fixture
def one_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "some_task"
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "metadata.json").write_text('{"version": "4.5.6"}', encoding="utf-8")
    (folder / "models" / "model.pt").write_bytes(b"weights")
    monkeypatch.setattr(bundles, "bundles_folder", lambda: tmp_path)
    return folder


@pytest.mark.usefixtures("one_bundle")
def test_info_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "info", "--json") == 0
    info = json.loads(capsys.readouterr().out)
    assert info["cgdpm_med"] == cgdpm_med.__version__
    assert info["python"] == platform.python_version()
    assert info["packages"]["torch"] == torch.__version__
    digest = hashlib.sha256(b"weights").hexdigest()
    assert info["bundles"] == [{"name": "some_task", "version": "4.5.6", "weights": {"model.pt": digest}}]


@pytest.mark.usefixtures("one_bundle")
def test_info_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "info") == 0
    *_, bundle, weights = capsys.readouterr().out.splitlines()
    assert bundle.split() == ["bundle", "some_task", "4.5.6"]
    assert weights.split() == ["model.pt", "sha256", hashlib.sha256(b"weights").hexdigest()]


@pytest.mark.parametrize(
    "error", [InputError("the image is constant\nin every slice", path=Path("a b.nii.gz")), PermissionError("no entry")]
)
def test_bad_input_is_one_line_on_stderr(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.delenv("CGDPM_DEBUG", raising=False)
    assert run(monkeypatch) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    for word in str(error).split():
        assert word in captured.err

    monkeypatch.setenv("CGDPM_DEBUG", "1")
    with pytest.raises(type(error)):
        cli.main()


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(KeyError, match="a bug"):
        cli.main()


@pytest.mark.parametrize("arguments", [("no-such-command",), ("phantom",), ("phantom", "out", "--patients", "0")])
def test_usage_errors_exit_with_2(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, *arguments) == 2


def test_phantom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "studies"
    assert run(monkeypatch, "phantom", str(out), "--seed", "3", "--json") == 0
    (patient,) = json.loads(capsys.readouterr().out)["patients"]
    assert [path.name for path in out.iterdir()] == [Path(patient).name]
    labels = sorted(Path(patient).glob("*_gt.nii.gz"))
    assert len(labels) == 2  # end diastole and end systole
    for path in labels:
        assert path.with_name(path.name.replace("_gt", "")).exists()


def test_phantom_into_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "taken"
    out.write_text("not a folder", encoding="utf-8")
    assert run(monkeypatch, "phantom", str(out)) == 1
    assert out.read_text(encoding="utf-8") == "not a folder"
