"""Hours told in steps: what reading, validation and the test take is measured and set aside first."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from cgdpm_med.datasets.choices import ENOUGH
from cgdpm_med.datasets.fingerprint import Fingerprint
from cgdpm_med.datasets.plan import Plan
from cgdpm_med.files import InputError
from cgdpm_med.training.step_time import Pace, rehearse

USED = 0.93
"""Of the hours given; the rest is for what nobody foresees."""
VALIDATING, DRAWING = 0.06, 0.15
"""Of the time that is left, at most, where a case and a member are not too much already."""
PICTURED = 16
"""Members that each validation draws for its pictures."""
LEAST_CASES, MOST_CASES, MOST_MEMBERS = 4, 32, 8
LEAST_STEPS = 20
MEASURING = 0.005
"""Of the hours, for steps on trial."""

Make = Callable[..., Plan]
"""``make(iterations=…, quick=…, suggested=…)``: the plan with so many steps."""


@dataclass(frozen=True)
class Hours:
    """Time that a user gives.

    Attributes:
        hours: in all.
        begin: ``time.perf_counter()`` at their beginning.
        reading: seconds that reading the data set once took.
    """

    hours: float
    begin: float
    reading: float

    @property
    def seconds(self) -> float:
        """In all."""
        return 3600 * self.hours

    @property
    def left(self) -> float:
        """Seconds for training, validation and the test, when all is read once more."""
        return USED * self.seconds - (time.perf_counter() - self.begin) - self.reading


@dataclass(frozen=True)
class Division:
    """How time is divided.

    Attributes:
        steps: of training.
        cases: of each validation.
        members: of the ensembles of calibration and test.
    """

    steps: int
    cases: int
    members: int


def divided(left: float, pace: Pace, validations: int, slices: float, tests: int) -> Division:
    """Validation gets its share, and the ensembles of calibration and test theirs; the rest is steps.

    Args:
        left: seconds.
        validations: how many.
        slices: of a case, on average; 1 where volumes are drawn as a whole.
        tests: cases of which ensembles are drawn.
    """
    case = slices * pace.member
    cases = _within(VALIDATING * left / (validations * case), LEAST_CASES, MOST_CASES)
    members = _within(DRAWING * left / (tests * case), 1, MOST_MEMBERS) if tests else MOST_MEMBERS
    rest = left - (validations * cases + tests * members) * case - validations * PICTURED * pace.member
    return Division(int(rest / pace.step), cases, members)


def _within(number: float, least: int, most: int) -> int:
    return int(min(max(number, least), most))


def plan_for_hours(
    hours: Hours,
    make: Make,
    seen: Fingerprint,
    parts: Mapping[str, Sequence[str]],
    device: torch.device,
    say: Callable[[str], None],
    *,
    step_cost: float = 1.0,
) -> Plan:
    """The plan whose training, with all that belongs to it, ends in time.

    Where the usual network gets few steps, a cheaper one is taken.

    Args:
        step_cost: of a step with its share of later stages, by that of a step.

    Raises:
        InputError: for hours in which next to nothing could be learned.
    """
    slices = seen.slices / max(1, seen.examples - seen.unlabelled)
    drawn = len(parts["test"]) + len(parts["validation"])  # the calibration draws for the latter
    tests = round(drawn * (seen.examples - seen.unlabelled) / max(1, seen.patients))

    def measured(plan: Plan) -> tuple[Callable[[float], Division], Pace]:
        """How seconds are divided with this plan, and its pace here."""
        pace = rehearse(plan, seen.channels, seen.labels, device, MEASURING * hours.seconds)
        pace = replace(pace, step=step_cost * pace.step)
        each = 1 if plan.volumes else slices
        return partial(divided, pace=pace, validations=validations(plan), slices=each, tests=tests), pace

    plan = make()
    divide, pace = measured(plan)
    share = divide(hours.left)
    if quick := share.steps < ENOUGH and _cost(make(quick=True)) < _cost(plan):
        divide, pace = measured(make(quick=True))
        share = divide(hours.left)
    if share.steps < LEAST_STEPS:
        what = f"{hours.hours:g} hours hold {max(0, share.steps)} steps of {pace.step:.2g} s here"
        remedy = f"Give --hours {_enough(hours, divide):g} or more, or a smaller --set crop"
        raise InputError(what, remedy=remedy)
    plan = make(
        iterations=share.steps,
        quick=quick,
        suggested={"validation_cases": (share.cases, IN_TIME), "members": (share.members, IN_TIME)},
    )
    say(f"a step takes {pace.step:.3g} s here: {plan.iterations} steps in {hours.hours:g} h")
    return plan


def _enough(hours: Hours, divide: Callable[[float], Division]) -> float:
    """Hours, to the hundredth above, that hold a training: also where all takes a tenth longer then."""
    left, more = hours.left, 0.0
    while divide((left + (USED - 2 * MEASURING) * more) / 1.1).steps < LEAST_STEPS:  # two networks may be measured
        more += max(36.0, 0.02 * (hours.seconds + more))
    return math.ceil((hours.seconds + more) / 36) / 100


IN_TIME = "what the hours hold"


def validations(plan: Plan) -> int:
    """How often a run is validated."""
    return -(-plan.epochs // plan.validate_every)


def _cost(plan: Plan) -> Any:
    """Of the finest level, which most of a step's time goes to."""
    stem = math.prod(plan.levels.stem) if plan.volumes else plan.patch_size**2
    return math.prod(plan.crop) / stem * plan.widths[0] + sum(plan.widths)
