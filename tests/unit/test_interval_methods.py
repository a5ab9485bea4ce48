"""Ways to make intervals, by hand on measures whose scores are known."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from conftest import load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("interval_methods")


def seen(script: ModuleType, patient: int, error: float, measure: str = "lv_edv", unit: str = "ml") -> Any:
    """A truth that lies ``error`` above 100; the members agree, so that the margin of 5 ml is all."""
    return script.Seen(f"p{patient}", measure, unit, 100.0, 100.0, 100.0, 100.0 + error)


def test_scores_and_intervals_by_hand(script: ModuleType) -> None:
    one = seen(script, 0, 10.0)
    assert one.score == 2
    assert one.grown(2) == (90, 110)
    assert one.moved(3).grown(1) == (98, 108)


def test_each_measure_waits_for_its_worst_patient_and_all_together_do_not(script: ModuleType) -> None:
    """Ten patients: one measure is off by 5 ml, the other by 50 ml in one of them."""
    known = [seen(script, k, 5.0) for k in range(10)]
    known += [seen(script, k, 50.0 if k == 0 else 5.0, "lv_esv") for k in range(10)]
    new = seen(script, 11, 0.0, "lv_esv")
    assert script.each(known)(new) == (50, 150)  # the largest of ten
    assert script.pooled(known)(new) == (95, 105)  # number 19 of twenty
    assert script.by_kind(known)(new) == script.by_structure(known)(new) == (95, 105)
    assert script.without_spread(known)(new) == (50, 150)


def test_a_bias_is_taken_off_first(script: ModuleType) -> None:
    known = [seen(script, k, 7.0) for k in range(10)]
    assert script.shifted(script.each)(known)(seen(script, 11, 0.0)) == (107, 107)


def test_a_patient_is_judged_by_the_others(script: ModuleType) -> None:
    """Nine are off by 5 ml, the tenth by 50: a fit to the nine does not hold it, fits with it hold the nine."""
    known = [seen(script, k, 50.0 if k == 9 else 5.0) for k in range(10)]
    found = script.left_out(script.each, known)
    assert [lower for _, (lower, _) in found] == [50.0] * 9 + [95.0]
    assert script.scores(found) == {"lv_edv": (90.0, pytest.approx((9 * 100 + 10) / 10))}


def test_lengths_are_of_what_is_possible(script: ModuleType) -> None:
    ejection = script.Seen("p", "lv_ef", "%", 95.0, 95.0, 95.0, 95.0)
    assert script.scores([(ejection, (85.0, 105.0))]) == {"lv_ef": (100.0, 15.0)}


def test_the_interval_score_by_hand(script: ModuleType) -> None:
    """Length, and twenty times what is missed at the level of 90 %."""
    held, missed = seen(script, 0, 4.0), seen(script, 1, 7.0)
    assert script.winkler([(held, (95, 105))]) == {"lv_edv": pytest.approx(10)}
    assert script.winkler([(missed, (95, 105))]) == {"lv_edv": pytest.approx(10 + 20 * 2)}
    found = {"first": [(held, (95, 105))], "second": [(held, (90, 110))]}
    assert script.compared(found) == {"first": pytest.approx(1), "second": pytest.approx(2)}
