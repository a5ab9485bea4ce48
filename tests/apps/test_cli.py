"""The command line: what it prints, where errors go, and its exit codes."""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from command import run
from conftest import REPO
from scans import upright
from stubs import Thresholder

import cgdpm_med
from cgdpm_med.apps import cli
from cgdpm_med.apps import demo as demo_app
from cgdpm_med.files import InputError
from cgdpm_med.inference import bundles
from cgdpm_med.inference.segmenter import Segmenter
from cgdpm_med.volumes import HeaderWarning


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
    # "2.8.0" of a wheel that calls itself "2.8.0+cu128"
    assert info["packages"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    digest = hashlib.sha256(b"weights").hexdigest()
    assert info["bundles"] == [{"name": "some_task", "version": "4.5.6", "weights": {"model.pt": digest}}]


def test_info_of_a_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    models = REPO / "bundles" / "acdc_segmentation" / "models"
    model = str(models / "denoiser" / "model.pt")
    assert run(monkeypatch, "info", model, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["kind"], said["input"]["spacing"], len(said["training"]["patients"])) == ("denoiser", 1.25, 74)
    assert run(monkeypatch, "info", model) == 0
    lines = capsys.readouterr().out
    for piece in ("spacing 1.25", "label 2", "Myo", "74 patients", "cosine", said["digest"]):
        assert piece in lines
    assert run(monkeypatch, "info", str(models / "model.pt")) == 0
    assert f"at the timesteps 999, 666, distilled from {said['digest'][:16]}" in capsys.readouterr().out
    assert run(monkeypatch, "info", str(tmp_path / "absent.pt")) != 0
    assert "no weights here" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",),
        ("phantom",),
        ("phantom", "out", "--patients", "0"),
        ("segment", "in"),
        ("segment", "in", "out", "--method", "euler"),
        ("segment", "in", "out", "--members", "0"),
        ("segment", "in", "out", "--guidance-scale", "-1"),
        ("segment", "in", "out", "--guidance-interval", "200"),
        ("evaluate", "pred"),
    ],
)
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


@pytest.mark.parametrize("command", [("phantom",), ("demo",), ("export", "model.pt")], ids=lambda words: words[0])
def test_a_file_where_the_results_should_go(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cgdpm_med.apps.export.load_model", lambda path: path)
    (tmp_path / "file").write_text("mine")
    assert run(monkeypatch, *command, tmp_path / "file") == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "file: is a file. Choose a folder" in errors[0]
    assert (tmp_path / "file").read_text() == "mine"


# --- segment, evaluate, demo ------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the command asked of the bundle; a threshold stands in for the network."""
    settings: dict[str, object] = {}

    def from_bundle(bundle: object, **overrides: object) -> Thresholder:
        settings.update(overrides, bundle=bundle)
        return Thresholder()

    monkeypatch.setattr(Segmenter, "from_bundle", from_bundle)
    return settings


def test_segment_passes_on_what_was_asked_and_nothing_else(
    tmp_path: Path, asked: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = upright(tmp_path / "in" / "scan.nii.gz")
    out = str(tmp_path / "out")
    assert run(monkeypatch, "segment", str(image), out, "--device", "cpu") == 0
    assert asked == {"bundle": "acdc_segmentation", "device": torch.device("cpu")}
    expected = {"members": 4, "steps": 7, "method": "ddpm", "seed": 3, "precision": "float32", "weights": "w.pt"}
    options = [f"--{name}={value}" for name, value in {**expected, "bundle": "b"}.items()]
    assert run(monkeypatch, "segment", str(image), out, "--write", "members, mask", *options) == 0
    assert {name: asked[name] for name in (*expected, "bundle")} == {**expected, "bundle": "b"}
    assert (tmp_path / "out" / "scan_members.nii.gz").is_file()


def test_guidance_is_one_option(tmp_path: Path, asked: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    image = upright(tmp_path / "in" / "scan.nii.gz")
    options = ("--guidance-scale", "0.5", "--guidance-interval", "200:1000", "--device", "cpu")
    assert run(monkeypatch, "segment", str(image), str(tmp_path / "out"), *options) == 0
    assert asked["guidance_scale"] == 0.5
    assert asked["guidance_interval"] == [200, 1000]


def test_timesteps_are_one_option(tmp_path: Path, asked: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    image = upright(tmp_path / "in" / "scan.nii.gz")
    here = ("segment", str(image), str(tmp_path / "out"), "--device", "cpu")
    assert run(monkeypatch, *here, "--timesteps", "999, 666,333") == 0
    assert asked["timesteps"] == [999, 666, 333]


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("options", [("--timesteps", "999:333"), ("--timesteps", "999", "--steps", "4")], ids=str)
def test_timesteps_that_say_nothing_or_two_things_are_refused(
    tmp_path: Path, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = upright(tmp_path / "in" / "scan.nii.gz")
    assert run(monkeypatch, "segment", str(image), str(tmp_path / "out"), *options) == 2
    assert "--timesteps" in capsys.readouterr().err


@pytest.mark.usefixtures("asked")
def test_segment_fails_when_one_input_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    upright(tmp_path / "in" / "good.nii.gz")
    upright(tmp_path / "in" / "flat.nii.gz", shape=(5, 4))
    assert run(monkeypatch, "segment", str(tmp_path / "in"), str(tmp_path / "out"), "--json") == 1
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert [case["case"] for case in result["cases"]] == ["good"]
    assert "has 2 dimensions" in result["failed"]["flat"]
    assert sum(line.startswith("error: ") for line in captured.err.splitlines()) == 1
    assert (tmp_path / "out" / "good.nii.gz").is_file()


@pytest.mark.usefixtures("asked")
def test_no_folder_is_left_where_every_input_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    upright(tmp_path / "in" / "flat.nii.gz", shape=(5, 4))
    out = tmp_path / "new" / "out"
    assert run(monkeypatch, "segment", str(tmp_path / "in"), str(out)) == 1
    assert capsys.readouterr().out == "0 segmented, 1 failed\n"
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("segment", "absent.nii.gz", "out"), "absent.nii.gz: there is no such file or folder"),
        (("segment", ".", "out", "--device", "cuda:99"), "device 'cuda:99' was asked for"),
        (("segment", ".", "out", "--write", "mask,variance"), "there is no output 'variance'"),
        (("evaluate", "absent", "."), "absent: there is no such file or folder"),
        (("demo", "out", "--device", "abacus"), "there is no device called 'abacus'"),
    ],
)
def test_one_line_says_what_is_wrong(
    arguments: tuple[str, ...],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {complaint}")
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("pred", "ref"):
        (tmp_path / folder).mkdir()
        mask = nib.Nifti1Image(np.arange(24, dtype=np.uint8).reshape(4, 3, 2) % 4, np.diag([1.5, 2.0, 8.0, 1.0]))
        mask.to_filename(tmp_path / folder / "a.nii.gz")
    folders = (str(tmp_path / "pred"), str(tmp_path / "ref"))
    assert run(monkeypatch, "evaluate", *folders, "--out", str(tmp_path / "scores")) == 0
    assert "average   100.00" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "scores").iterdir()) == ["cases.csv", "summary.json"]
    (tmp_path / "pred" / "a.nii.gz").rename(tmp_path / "pred" / "b.nii.gz")
    (tmp_path / "pred" / "a.nii").write_bytes(b"")
    assert run(monkeypatch, "evaluate", *folders, "--json") == 1
    assert "error: no volumes were scored" in capsys.readouterr().err


def test_demo_passes_on_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, object] = {}

    def run_demo(out: Path, **settings: object) -> dict[str, object]:
        seen.update(settings, out=out)
        return {"dice": 1}

    monkeypatch.setattr(demo_app, "run_demo", run_demo)
    assert run(monkeypatch, "demo", str(tmp_path), "--members", "3", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"dice": 1}
    assert (seen["out"], seen["members"], seen["steps"]) == (tmp_path, 3, None)


def test_warnings_of_this_package_are_plain_notes(capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[str] = []
    show = cli._note_or(lambda message, *rest: shown.append(str(message)))
    show(HeaderWarning("pixdim is taken"), HeaderWarning, "file.py", 3)
    show(UserWarning("other"), UserWarning, "file.py", 3)
    assert capsys.readouterr().err == "note: pixdim is taken\n"
    assert shown == ["other"]
