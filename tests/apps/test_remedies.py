"""Remedies, followed to the letter, lead to the goal: on the command line (see :mod:`remedies`) and from Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import remedies_of_files  # noqa: F401
import remedies_of_folders  # noqa: F401
import remedies_of_scores  # noqa: F401
import torch
from calibrations import MADE, example
from cohorts import write_cohort
from command import run
from dicom_scans import Scan
from nifti_files import LABELS, OBLIQUE, nifti, save
from remedies import CASES
from toy_training import toy_run

from cgdpm_med import InputError, bundle_path, read_dicom, read_labels, read_volume
from cgdpm_med.apps import cli
from cgdpm_med.evaluation.calibrate import calibration_items
from cgdpm_med.evaluation.calibration_file import CALIBRATION, find_calibration, write_calibration
from cgdpm_med.volumes import write_on_grid

pytestmark = [
    pytest.mark.usefixtures("quiet_headers", "threshold"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.mark.parametrize("name", CASES)
def test_a_remedy_followed_leads_to_the_goal(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TERM", "dumb")
    words, case = CASES[name]
    attempts = case(tmp_path)
    assert run(monkeypatch, *map(str, next(attempts))) in (1, 2)
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(set(errors))
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list((tmp_path / "out").glob("v.*"))  # of the input that failed
    assert run(monkeypatch, *map(str, next(attempts))) == 0, capsys.readouterr().err


# --- from Python ------------------------------------------------------------------------------------------------------


def remedy_of(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value.remedy)


@pytest.mark.filterwarnings("ignore")
def test_a_series_is_chosen_in_python(tmp_path: Path) -> None:
    scan = Scan()
    scan.write(tmp_path / "a")
    Scan(series=8, seed=1, size=(9, 9)).write(tmp_path / "b")
    assert "with series= among 5, 8" in remedy_of(lambda: read_dicom(tmp_path))
    np.testing.assert_array_equal(read_dicom(tmp_path, series=[5]).data, scan.voxels)
    np.testing.assert_array_equal(read_dicom(tmp_path / "a").data, scan.voxels)


def test_a_bundle_is_chosen_among_those_there_are() -> None:
    (first, *_) = remedy_of(lambda: bundle_path("nonesuch")).removeprefix("Use ").split(",")
    assert bundle_path(first).is_dir()


def test_labels_under_another_header_are_not_resampled(tmp_path: Path) -> None:
    image = read_volume(save(tmp_path / "a.nii", nifti(sform=OBLIQUE)))
    labels = save(tmp_path / "a_gt.nii", nifti(LABELS, sform=np.diag([1.25, 1.4, 8, 1])))
    assert "with the header of their image" in remedy_of(lambda: read_labels(labels, like=image.grid))
    write_on_grid(read_labels(labels).data, image.grid, labels)
    np.testing.assert_array_equal(read_labels(labels, like=image.grid).data, LABELS)
    smaller = save(tmp_path / "b_gt.nii", nifti(LABELS[1:], sform=OBLIQUE))
    assert remedy_of(lambda: read_labels(smaller, like=image.grid)).startswith("Resample")


@pytest.mark.parametrize("damage", ["unreadable", "of another run"])
def test_a_checkpoint_moved_elsewhere_lets_the_run_start_anew(damage: str, tmp_path: Path) -> None:
    toy_run(tmp_path, epochs=1)
    checkpoint = tmp_path / "checkpoint.pt"
    if damage == "unreadable":
        checkpoint.write_bytes(b"no checkpoint")
    else:
        torch.save([1, 2], checkpoint)
    remedy = remedy_of(lambda: toy_run(tmp_path, epochs=1))
    assert "ove " in remedy
    assert "elete" not in remedy
    checkpoint.rename(tmp_path / "kept.pt")
    assert toy_run(tmp_path, epochs=1)["iteration"] == 3


def test_a_split_needs_all_its_lists_and_the_remedy_says_so(tmp_path: Path) -> None:
    names = [f"own{n:02d}" for n in range(9)]
    cohort, split = write_cohort(tmp_path / "data", names), tmp_path / "mine.json"
    assert "list validation of a JSON file" in remedy_of(lambda: calibration_items(cohort))
    split.write_text(json.dumps({"validation": names}))
    assert "train, validation and test" in remedy_of(lambda: calibration_items(cohort, "validation", split))
    split.write_text(json.dumps({"train": [], "validation": names, "test": []}))
    assert len(calibration_items(cohort, "validation", split)) == 18


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({"members": 16}, ["--members 16"]),
        ({"steps": 2, "method": "ddpm"}, ["--steps 2", "--method ddpm"]),
        ({"staple": True}, []),
        ({"keep_largest": True, "members": 3}, []),
    ],
)
def test_a_calibration_is_fitted_again_only_where_that_helps(
    change: dict[str, Any], options: list[str], tmp_path: Path
) -> None:
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"weights")
    file = tmp_path / CALIBRATION
    write_calibration(example(weights), file)
    remedy = remedy_of(lambda: find_calibration([weights], {**MADE, **change}, file))
    assert all(option in remedy for option in options)
    if options:
        write_calibration(example(weights, settings={**MADE, **change}), file)
        assert find_calibration([weights], {**MADE, **change}, file)[0] is not None
    else:
        assert "--no-calibration" in remedy
        assert "cgdpm-med calibrate" not in remedy


def test_an_interrupt_names_continue_only_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise cli.Interrupted(130)

    monkeypatch.setattr(cli, "app", interrupted)
    for command, named in (("segment", True), ("calibrate", False), ("evaluate", False)):
        assert run(monkeypatch, command, "in", "out") == 130
        assert ("--continue" in capsys.readouterr().err) == named
