"""Volumes over a beat: phases that other frames contradict, and frames that fit no beat."""

from __future__ import annotations

import numpy as np
import pytest

from cgdpm_med.heart.beat_checks import check_beat, check_phases
from cgdpm_med.heart.limits import HeartLimits

LIMITS = HeartLimits()


def beat(frames: int = 20, low: float = 60.0, high: float = 150.0) -> dict[int, float]:
    """A cosine: the largest is frame 1."""
    phase = 2 * np.pi * np.arange(frames) / frames
    return dict(enumerate((low + (high - low) * (1 + np.cos(phase)) / 2).tolist(), start=1))


def test_phases_that_the_volumes_agree_with_pass() -> None:
    assert check_phases(beat(), {"ED": 1, "ES": 11}, LIMITS) == ()
    assert check_phases(beat(), {"ED": 2, "ES": 10}, LIMITS) == ()  # within a twentieth of ED
    assert check_phases({1: 150.0, 2: 60.0}, {"ED": 2, "ES": 1}, LIMITS) == ()  # no other frame says so


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        ({"ED": 1, "ES": 4}, ["frame 11 holds 60.0 ml of LV, less than frame 4, taken as ES (131.5 ml)"]),
        ({"ED": 6, "ES": 11}, ["frame 1 holds 150.0 ml of LV, more than frame 6, taken as ED (105.0 ml)"]),
        ({"ED": 11, "ES": 1}, ["holds 147.8 ml", "holds 62.2 ml"]),
    ],
)
def test_frames_beyond_the_phases_are_named(phases: dict[str, int], expected: list[str]) -> None:
    found = check_phases(beat(), phases, LIMITS)
    assert {finding.check for finding in found} == {"phases"}
    assert [want in finding.reason for want, finding in zip(expected, found, strict=True)] == [True] * len(expected)


@pytest.mark.parametrize("frames", [10, 20, 40])
@pytest.mark.parametrize(("low", "high"), [(60.0, 150.0), (280.0, 300.0), (20.0, 120.0)])
def test_a_smooth_beat_passes(frames: int, low: float, high: float) -> None:
    assert check_beat(beat(frames, low, high), LIMITS) == ()


@pytest.mark.parametrize("number", [1, 7, 20])
def test_a_frame_that_jumps_is_named(number: int) -> None:
    volumes = beat() | {number: beat()[number] - 45}
    (finding,) = check_beat(volumes, LIMITS)
    assert (finding.check, finding.review) == ("beat", True)
    assert f"the LV of frame {number} ({volumes[number]:.1f} ml) jumps away" in finding.reason


def test_a_few_frames_are_no_beat_to_judge_by() -> None:
    assert check_beat({1: 150.0, 2: 60.0, 3: 140.0}, LIMITS) == ()
