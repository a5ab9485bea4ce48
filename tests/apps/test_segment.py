"""Segmenting many inputs: what is written, what is reported, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scans import upright
from segmentations import segmentation_of
from stubs import Thresholder

from cgdpm_med import InputError, Options, autocast_dtype, find_cases, read_volume, segment, segment_all
from cgdpm_med.apps.pipeline import segment_cases
from cgdpm_med.files import reserved
from cgdpm_med.inference.segmenter import choose_device
from cgdpm_med.studies.outputs import describe, save_segmentation

SHAPE, SPACING = (5, 4, 3), (1.5, 2.0, 8.0)


def test_every_output_lies_on_the_grid_with_its_channels_last(tmp_path: Path) -> None:
    volume = read_volume(upright(tmp_path / "scan.nii.gz"))
    members = np.random.default_rng(1).integers(0, 4, (2, *SHAPE))
    result = segmentation_of(members, volume, "scan")
    outputs = ("mask", "probabilities", "entropy", "disagreement", "members")
    files = save_segmentation(result, tmp_path / "out", outputs)
    assert [path.name for path in files] == [
        "scan.nii.gz",
        *(f"scan_{name}.nii.gz" for name in outputs[1:]),
        "scan.json",
    ]
    images = {name: nib.load(path) for name, path in zip(outputs, files[:-1], strict=True)}
    for image in images.values():
        assert image.shape[:3] == SHAPE
        assert np.array_equal(image.affine, np.diag([*SPACING, 1]))
    assert np.array_equal(images["mask"].get_fdata(), result.mask)
    for channel in range(4):
        assert np.array_equal(images["probabilities"].get_fdata()[..., channel], result.probabilities[channel])
    for k in range(2):
        assert np.array_equal(images["members"].get_fdata()[..., k], members[k])


def test_one_output_may_be_named_by_itself(tmp_path: Path) -> None:
    volume = read_volume(upright(tmp_path / "scan.nii.gz"))
    result = segmentation_of(np.zeros((1, *SHAPE), int), volume, "scan")
    files = save_segmentation(result, tmp_path / "out", "mask")
    assert [path.name for path in files] == ["scan.nii.gz", "scan.json"]
    assert Options(write="entropy").write == ("entropy",)
    for unknown in ("masks", ["mask", "masks"], "m"):
        with pytest.raises(InputError, match="there is no output"):
            save_segmentation(result, tmp_path / "other", unknown)
    assert not (tmp_path / "other").exists()


def test_volumes_are_counted_voxels(tmp_path: Path) -> None:
    volume = read_volume(upright(tmp_path / "scan.nii.gz"))
    members = np.zeros((2, *SHAPE), int)
    members[0, :2, 0, 0] = 3  # two voxels of 24 mm^3
    members[1, :4, 0, 0] = 3
    members[:, 0, 3, 2] = 1
    described = describe(segmentation_of(members, volume, "scan"))
    assert described["member_volume_ml"] == {"1": [0.024, 0.024], "2": [0.0, 0.0], "3": [0.048, 0.096]}
    assert described["volume_ml"] == {"1": 0.024, "2": 0.0, "3": 0.048}  # argmax gives a tie to the background
    assert described["spacing_mm"] == list(SPACING)


def test_a_bad_input_is_one_line_and_the_rest_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in"
    for name in ("a.nii.gz", "deep/c.nii.gz"):
        upright(source / name)
    (source / "b.nii.gz").write_bytes(b"no image at all")
    result = segment_all(Thresholder(), find_cases(source), tmp_path / "out")
    assert [case["case"] for case in result["cases"]] == ["a", "deep/c"]
    for case in result["cases"]:
        assert all(Path(path).is_file() for path in case["files"])
        assert len(case["files"]) == 4
    assert [study["key"] for study in result["studies"]] == ["a", "deep/c"]
    assert list(result["failed"]) == ["b"]
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert str(source / "b.nii.gz") in error
    assert json.dumps(result)
    assert not list((tmp_path / "out").rglob("b*"))


def test_progress_rises_to_one_for_each_case(tmp_path: Path) -> None:
    upright(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "in" / "b.nii.gz").write_bytes(b"")
    seen: list[tuple[str, float]] = []
    segment_cases(
        Thresholder(), find_cases(tmp_path / "in"), tmp_path / "out", progress=lambda key, f: seen.append((key, f))
    )
    assert seen == [("a", 0.0), ("a", 0.5), ("a", 1.0), ("b", 0.0), ("b", 1.0)]


def test_an_input_is_never_overwritten(tmp_path: Path) -> None:
    image = upright(tmp_path / "scan.nii.gz")
    before = image.read_bytes()
    outcome = segment_cases(Thresholder(), find_cases(image), tmp_path)
    assert "would be overwritten" in outcome.failed["scan"]
    assert image.read_bytes() == before


@pytest.mark.parametrize(("name", "text"), [("scan.json", '{"EchoTime": 1.2}'), ("scan.html", "<p>my notes</p>")])
def test_a_file_of_ones_own_is_never_overwritten(name: str, text: str, tmp_path: Path) -> None:
    image = upright(tmp_path / "in" / "scan.nii.gz")
    own = tmp_path / "notes" / name
    own.parent.mkdir()
    own.write_text(text)
    outcome = segment_cases(Thresholder(), find_cases(image), own.parent)
    assert f"{name}: stands where a result would be written, and no run wrote it" in str(outcome.failed["scan"])
    assert [(path.name, path.read_text()) for path in own.parent.iterdir()] == [(name, text)]
    assert segment_cases(Thresholder(), find_cases(image), tmp_path / "out").failed == {}


def test_what_an_earlier_run_wrote_is_replaced(tmp_path: Path) -> None:
    image = upright(tmp_path / "in" / "scan.nii.gz")
    for _ in range(2):
        assert segment_cases(Thresholder(), find_cases(image), tmp_path / "out").failed == {}
    (tmp_path / "out" / "scan.json").unlink()  # as a run that was killed before its record leaves it
    assert (tmp_path / "out" / "scan.html").is_file()
    assert segment_cases(Thresholder(), find_cases(image), tmp_path / "out").failed == {}


def test_two_runs_do_not_make_one_study_at_once(tmp_path: Path) -> None:
    for name in "ab":
        upright(tmp_path / "in" / f"{name}.nii.gz")
    cases, out = find_cases(tmp_path / "in"), tmp_path / "out"
    with reserved(out / "b.json"):
        outcome = segment_cases(Thresholder(), cases, out)
        assert list(outcome.failed) == ["b"]
        assert "b.json: is being made by another run. Wait until it ends" in str(outcome.failed["b"])
        assert not (out / "b.nii.gz").exists()
    assert segment_cases(Thresholder(), cases, out).failed == {}
    assert (out / "b.nii.gz").is_file()


def test_a_slice_that_is_missing_in_some_frames_is_refused(tmp_path: Path) -> None:
    image = upright(tmp_path / "cine.nii.gz", (5, 4, 3, 4))
    voxels = np.asarray(nib.load(image).dataobj).copy()  # type: ignore[attr-defined]
    voxels[:, :, 0] = 0  # padding in every frame is no fault
    nib.Nifti1Image(voxels, np.diag([1.5, 2.0, 8.0, 1])).to_filename(image)
    assert segment_cases(Thresholder(), find_cases(image), tmp_path / "out").failed == {}
    voxels[:, :, 2, 1:3] = 7
    nib.Nifti1Image(voxels, np.diag([1.5, 2.0, 8.0, 1])).to_filename(image)
    outcome = segment_cases(Thresholder(), find_cases(image), tmp_path / "out")
    assert "slice 3 is constant in frame 2 and 1 more, and not in others" in str(outcome.failed["cine"])


def test_one_end_systole_is_not_that_of_several_studies(tmp_path: Path) -> None:
    for name in "ab":
        upright(tmp_path / "in" / f"{name}.nii.gz", (5, 4, 3, 4))
    with pytest.raises(InputError, match="one --es cannot be that of 2 studies"):
        segment(tmp_path / "in", tmp_path / "out", options=Options(es=2))


def test_wrong_requests_stop_before_any_work(tmp_path: Path) -> None:
    image = upright(tmp_path / "scan.nii.gz")
    with pytest.raises(InputError, match="there is no output 'variance'"):
        segment(image, tmp_path / "out", options=Options(write=["mask", "variance"]))
    with pytest.raises(InputError, match="there is no output 'variance'"):
        segment_cases(Thresholder(), find_cases(image), tmp_path / "out", options=Options(write=["variance"]))
    with pytest.raises(InputError, match="no bundle named"):
        segment(image, tmp_path / "out", bundle="absent")
    assert not (tmp_path / "out").exists()


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    for absent in ("cuda", "cuda:0", "mps"):
        with pytest.raises(InputError, match=f"device '{absent}' was asked for, but PyTorch finds none here"):
            choose_device(absent)
    for unknown in ("gpu", "cuda:x", ""):
        with pytest.raises(InputError, match="there is no device called"):
            choose_device(unknown)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match="2 of them"):
        choose_device("cuda:2")


@pytest.mark.parametrize(
    ("cuda", "mps", "rank", "expected"),
    [
        (2, False, None, "cuda"),
        (2, True, None, "cuda"),
        (2, True, "1", "cuda:1"),
        (2, False, "3", "cuda:1"),
        (0, True, None, "mps"),
        (0, True, "1", "mps"),
        (0, False, "1", "cpu"),
    ],
)
def test_auto_takes_cuda_then_mps_then_the_cpu(
    cuda: int, mps: bool, rank: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert choose_device("auto") == torch.device(expected)
    if not cuda and mps:
        assert choose_device("mps") == torch.device("mps")
        assert autocast_dtype(torch.device("mps"), "auto") == torch.float32  # bfloat16 is emulated on older chips
