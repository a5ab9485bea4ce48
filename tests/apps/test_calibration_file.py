"""Which ensembles a calibration fits, and what is said of the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from calibrations import MADE, example

from cgdpm_med import InputError
from cgdpm_med.evaluation.calibration_file import CALIBRATION, SETTINGS, find_calibration, write_calibration


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Path, ...]:
    """Weights with a calibration of theirs."""
    weights = (tmp_path / "model.pt",)
    weights[0].write_bytes(b"weights")
    write_calibration(example(weights[0]), tmp_path / CALIBRATION)
    return weights


def test_a_calibration_of_the_same_ensemble_is_found(kept: tuple[Path, ...]) -> None:
    calibration, ignored = find_calibration(kept, {**MADE, "seed": 7, "device": "cuda"})
    assert ignored is None
    assert calibration is not None
    assert replace(calibration, digest="") == example(kept[0])


def test_other_weights_leave_one_line(kept: tuple[Path, ...]) -> None:
    kept[0].write_bytes(b"retrained")
    calibration, ignored = find_calibration(kept, MADE)
    assert calibration is None
    assert ignored is not None
    assert ignored.startswith("note: calibration.json was fitted to other weights and is ignored")
    with pytest.raises(InputError, match="was fitted to other weights"):  # asked for by name, it must fit
        find_calibration(kept, MADE, kept[0].with_name(CALIBRATION))


def test_what_fits_again_to_other_weights_names_them(kept: tuple[Path, ...], tmp_path: Path) -> None:
    kept[0].write_bytes(b"retrained")
    assert f"cgdpm-med calibrate --weights {kept[0]}" in (find_calibration(kept, MADE)[1] or "")
    file = kept[0].with_name(CALIBRATION)
    with pytest.raises(InputError, match=f"--weights {kept[0]} --output {file}"):
        find_calibration(kept, MADE, file)
    further = tmp_path / "second.pt"
    further.write_bytes(b"another network")
    several = find_calibration((*kept, further), MADE)[1] or ""  # calibrate takes one network
    assert "--no-calibration" in several
    assert "cgdpm-med calibrate" not in several


@pytest.mark.parametrize(("fitted", "wanted", "option"), [(True, False, True), (False, True, False)])
def test_masks_of_all_pieces_are_fitted_again_by_name(
    fitted: bool, wanted: bool, option: bool, kept: tuple[Path, ...]
) -> None:
    write_calibration(example(kept[0], settings={**MADE, "one_body": fitted}), kept[0].with_name(CALIBRATION))
    ignored = find_calibration(kept, {**MADE, "one_body": wanted})[1] or ""
    assert "cgdpm-med calibrate" in ignored
    assert ("--all-pieces" in ignored) is option


def test_a_guidance_network_makes_other_weights(kept: tuple[Path, ...]) -> None:
    guide = kept[0].with_name("guidance.pt")
    guide.write_bytes(b"guide")
    assert find_calibration((*kept, guide), MADE)[0] is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"members": 16}, "members 5"),
        ({"staple": True, "steps": 2}, "steps 4, staple False"),
        ({"start": 600}, "start None"),
        ({"shared_noise": False}, "shared noise True"),
        ({"timesteps": (999, 666, 333), "steps": 3}, "steps 4, timesteps None"),
        ({"shared_first_step": True}, "shared first step False"),
        ({"guidance_scale": 0.5, "guidance_interval": (0, 500)}, "guidance scale 0.0, guidance interval None"),
    ],
)
def test_other_settings_leave_one_line(kept: tuple[Path, ...], change: dict[str, Any], said: str) -> None:
    calibration, ignored = find_calibration(kept, {**MADE, **change})
    assert calibration is None
    assert ignored is not None
    assert f"was fitted to {said} and is ignored" in ignored


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (
            {"timesteps": (999, 666, 333), "steps": 3},
            "--output FILE --timesteps 999,666,333, and give it as --calibration FILE",
        ),
        ({"steps": 3}, "--output FILE --steps 3, and give it as --calibration FILE"),
    ],
)
def test_other_timesteps_are_said_in_one_option(kept: tuple[Path, ...], change: dict[str, Any], remedy: str) -> None:
    said = find_calibration(kept, {**MADE, **change})[1] or ""
    assert said.endswith(f" {remedy}")


def test_a_calibration_older_than_truncated_chains_was_fitted_to_whole_ones(kept: tuple[Path, ...]) -> None:
    file = kept[0].with_name(CALIBRATION)
    content = json.loads(file.read_text())
    del content["settings"]["start"]
    file.write_text(json.dumps(content))
    assert find_calibration(kept, MADE)[0] is not None
    assert find_calibration(kept, {**MADE, "start": 600})[0] is None


def test_a_calibration_of_version_0_1_says_nothing_of_later_dials(kept: tuple[Path, ...]) -> None:
    file = kept[0].with_name(CALIBRATION)
    content = json.loads(file.read_text())
    for dial in ("eta", "timesteps", "shared_first_step"):
        del content["settings"][dial]
    file.write_text(json.dumps(content))
    assert find_calibration(kept, MADE)[0] is not None
    assert find_calibration(kept, {**MADE, "eta": 0.5})[0] is None


def test_version_0_1_called_the_combination_of_members_fusion(kept: tuple[Path, ...]) -> None:
    file = kept[0].with_name(CALIBRATION)
    content = json.loads(file.read_text())
    content["settings"]["fusion"] = content["settings"].pop("combine")
    file.write_text(json.dumps(content))
    assert find_calibration(kept, MADE)[0] is not None
    calibration, ignored = find_calibration(kept, {**MADE, "combine": "majority"})
    assert calibration is None
    assert "combine mean" in (ignored or "")


def test_a_calibration_older_than_one_body_was_fitted_to_all_pieces(kept: tuple[Path, ...]) -> None:
    file = kept[0].with_name(CALIBRATION)
    content = json.loads(file.read_text())
    del content["settings"]["one_body"]
    file.write_text(json.dumps(content))
    assert find_calibration(kept, MADE)[0] is not None
    calibration, ignored = find_calibration(kept, {**MADE, "one_body": True})
    assert calibration is None
    assert "one body False" in (ignored or "")


def test_a_calibration_older_than_shared_noise_was_fitted_to_a_noise_for_each_slice(kept: tuple[Path, ...]) -> None:
    file = kept[0].with_name(CALIBRATION)
    content = json.loads(file.read_text())
    del content["settings"]["shared_noise"]
    file.write_text(json.dumps(content))
    assert find_calibration(kept, MADE)[0] is None
    assert find_calibration(kept, {**MADE, "shared_noise": False})[0] is not None


def test_no_file_is_no_calibration_and_no_complaint(tmp_path: Path) -> None:
    assert find_calibration((tmp_path / "model.pt",), MADE) == (None, None)
    assert find_calibration((), MADE) == (None, None)
    with pytest.raises(InputError, match="is no calibration"):
        find_calibration((), MADE, tmp_path / "absent.json")


@pytest.mark.parametrize(
    "break_it",
    [
        lambda c: c.pop("temperature"),
        lambda c: c.update(temperature=-1),
        lambda c: c.update(temperature="hot"),
        lambda c: c.update(doubt=1.0),
        lambda c: c.update(unknown=1),
        lambda c: c["widening"].pop("lv_ef"),
        lambda c: c["margin"].update(lv_ef=-1),
        lambda c: c.update(weights={}),
        lambda c: c["settings"].pop("members"),
        lambda c: c.update(level=1.0),
    ],
)
def test_a_damaged_file_is_one_error(kept: tuple[Path, ...], break_it: Callable[[dict[str, Any]], Any]) -> None:
    path = kept[0].with_name(CALIBRATION)
    content = json.loads(path.read_text())
    break_it(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"calibration.json: is no calibration .*--no-calibration"):
        find_calibration(kept, MADE)


def test_settings_of_a_calibration_are_all_there() -> None:
    assert set(MADE) == set(SETTINGS)
