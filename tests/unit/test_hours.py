"""Hours are divided into training, validation and the test."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from fingerprints import HEARTS, PICTURES

from cgdpm_med.apps import hours
from cgdpm_med.apps.hours import Division, divided
from cgdpm_med.datasets.choices import make_plan
from cgdpm_med.datasets.plan import Plan
from cgdpm_med.files import InputError
from cgdpm_med.training.step_time import Pace, rehearse


def spent(division: Division, pace: Pace, validations: int, slices: float, tests: int) -> float:
    """Seconds."""
    drawn = (validations * division.cases + tests * division.members) * slices
    return division.steps * pace.step + (drawn + 16 * validations) * pace.member  # pictures have 4 members of 4 cases


@pytest.mark.parametrize(("left", "tests"), [(1000, 160), (100, 160), (100, 0), (1e5, 20)])
def test_the_parts_fill_the_time_and_no_more(left: float, tests: int) -> None:
    pace = Pace(step=0.5, member=0.1)
    division = divided(left, pace, validations=3, slices=2.0, tests=tests)
    assert left - pace.step < spent(division, pace, 3, 2.0, tests) <= left
    assert 4 <= division.cases <= 32
    assert 1 <= division.members <= 8


def test_little_time_is_not_spent_on_looking() -> None:
    division = divided(104, Pace(step=0.5, member=0.1), validations=3, slices=1.0, tests=60)
    # 6 s, 12 s of at most 15.6, 4.8 s of pictures; 81.2 s are left
    assert division == Division(steps=162, cases=20, members=2)


def test_time_that_is_not_enough_holds_no_step() -> None:
    assert divided(10, Pace(step=1.0, member=1.0), validations=3, slices=1.0, tests=60).steps < 0


def test_a_rehearsal_measures_the_network_that_is_trained() -> None:
    plan = make_plan(PICTURES, given={"widths": (32,), "crop": (16, 16), "field": (16, 16), "batch_size": 2})
    pace = rehearse(plan, ["grey"], ["x"], torch.device("cpu"), seconds=0.0)
    assert pace.step > pace.member / 4 > 0


@pytest.mark.parametrize("step", [0.7, 4.0, 20.0, 100.0])
def test_the_hours_that_an_error_asks_for_are_enough(step: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def rehearse(*_: object) -> Pace:
        clock[0] += float(_[-1])  # type: ignore[arg-type]
        return Pace(step=slower[0] * step, member=slower[0] * step / 2)

    slower = [1.0]
    monkeypatch.setattr(hours, "rehearse", rehearse)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    seen = replace(HEARTS, slices=90000, examples=900, unlabelled=0, patients=900)
    parts = {"train": list("abcdef"), "validation": list("gh"), "test": [str(n) for n in range(50)]}

    def plan(given: float) -> Plan:
        told = hours.Hours(given, clock[0], reading=1.0)
        make = partial(make_plan, seen)
        return hours.plan_for_hours(told, make, seen, parts, torch.device("cpu"), lambda _: None)

    with pytest.raises(InputError, match="hours hold") as refused:
        plan(20 * step / 3600 / 2)
    slower[0] = 1.08  # the machine may be busier then
    asked = float(str(refused.value).partition("--hours ")[2].split()[0])
    assert plan(asked).iterations >= hours.LEAST_STEPS
