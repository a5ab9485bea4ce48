"""Cardiac function: phantoms of known volumes, intervals worked out by hand, ED and ES, indexing, the cohort table."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest

from cgdpm_med import phantom
from cgdpm_med.files import InputError
from cgdpm_med.heart.function import (
    MEASURES,
    MYOCARDIAL_DENSITY,
    body_surface_area,
    cardiac_function,
    cohort_csv,
    find_ed_es,
    volume_curve,
    write_cohort_csv,
)
from cgdpm_med.metrics.volumetry import Estimate, FrameVolumes, frame_volumes, interval_estimate


def heart(rv: float, myo: float, lv: float) -> list[float]:
    return [0.0, rv, myo, lv]


def volumes(combined: list[float], *members: list[float]) -> FrameVolumes:
    return FrameVolumes(np.array(combined), np.array(members).reshape(-1, 4))


def ends(estimate: Estimate) -> tuple[float | None, float | None, float | None]:
    return estimate.value, estimate.lower, estimate.upper


# --- against the phantom ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", phantom.GROUPS)
def test_true_masks_of_a_phantom_give_its_true_function(group: str) -> None:
    study = phantom.make_phantom(phantom.PhantomSpec.small(seed=3, group=group))
    voxel_volume = math.prod(study.spec.spacing)
    ed, es = (frame_volumes(study.labels[f], study.labels[f][None], voxel_volume) for f in (1, study.es_frame))
    function, truth = cardiac_function(ed, es), study.truth
    expected = {
        "lv_edv": truth.edv_ml,
        "lv_esv": truth.esv_ml,
        "lv_sv": truth.edv_ml - truth.esv_ml,
        "lv_ef": truth.ef_percent,
        "rv_edv": truth.rv_edv_ml,
        "rv_esv": truth.rv_esv_ml,
        "rv_sv": truth.rv_edv_ml - truth.rv_esv_ml,
        "rv_ef": truth.rv_ef_percent,
        "myo_mass": truth.myo_mass_g,
    }
    assert {name: e.value for name, e in function.measures.items()} == pytest.approx(expected, rel=1e-12)


def test_ed_and_es_of_a_phantom_cine_are_found() -> None:
    study = phantom.make_phantom(phantom.PhantomSpec.small(seed=1), cine=True)
    frames = {f: frame_volumes(labels, labels[None], 1.0) for f, labels in study.labels.items()}
    curve = volume_curve(frames)
    ed, es = find_ed_es([e.value or 0.0 for e in curve.lv])
    assert (curve.frames[ed], curve.frames[es]) == (study.ed_frame, study.es_frame)
    assert [e.value for e in curve.rv] == [np.count_nonzero(study.labels[f] == 1) / 1000 for f in sorted(study.labels)]


def test_density_is_the_phantoms() -> None:
    assert MYOCARDIAL_DENSITY == phantom.MYOCARDIAL_DENSITY


# --- volumes ----------------------------------------------------------------------------------------------------------


def test_voxels_are_counted_by_label() -> None:
    mask = np.array([[[0, 1, 1], [2, 3, 3]], [[3, 0, 0], [0, 0, 2]]], dtype=np.uint8)
    found = frame_volumes(mask, np.stack([mask, np.zeros_like(mask)]), voxel_volume=20.0)
    assert found.combined == pytest.approx([0.1, 0.04, 0.04, 0.06])
    assert found.members == pytest.approx(np.array([[0.1, 0.04, 0.04, 0.06], [0.24, 0, 0, 0]]))


@pytest.mark.parametrize(
    ("members", "voxel_volume", "what"),
    [
        (np.zeros((2, 3, 3)), 1.0, "shape"),
        (np.full((1, 3, 3, 1), 4), 1.0, "0 to 4|4 to 4"),
        (np.full((1, 3, 3, 1), -1), 1.0, "-1"),
        (np.zeros((1, 3, 3, 1)), 0.0, "voxel volume"),
        (np.zeros((1, 3, 3, 1)), math.nan, "voxel volume"),
    ],
)
def test_bad_masks_are_refused(members: np.ndarray, voxel_volume: float, what: str) -> None:
    with pytest.raises(InputError, match=what):
        frame_volumes(np.zeros((3, 3, 1), dtype=np.uint8), members, voxel_volume)


# --- intervals --------------------------------------------------------------------------------------------------------


def test_interval_of_eleven_members() -> None:
    # order statistics 0, 10 … 100: the quantiles at .05 and .95 lie halfway between the first two and the last two
    found = interval_estimate(40.0, np.arange(0, 101, 10)[::-1])
    assert (found.value, found.lower, found.upper) == pytest.approx((40.0, 5.0, 95.0))
    assert found.width == pytest.approx(90.0)


def test_interval_of_two_members_at_half_level() -> None:
    found = interval_estimate(1.0, [0.0, 4.0], level=0.5)
    assert (found.lower, found.upper) == pytest.approx((1.0, 3.0))


@pytest.mark.parametrize(("widening", "expected"), [(2.0, (-30.0, 150.0)), (0.5, (22.5, 67.5)), (0.0, (40.0, 40.0))])
def test_widening_stretches_both_sides_from_the_value(widening: float, expected: tuple[float, float]) -> None:
    found = interval_estimate(40.0, np.arange(0, 101, 10), widening=widening)
    assert (found.lower, found.upper) == pytest.approx(expected)


def test_interval_is_cut_at_what_is_possible() -> None:
    found = interval_estimate(40.0, np.arange(0, 101, 10), widening=2.0, floor=0.0, ceiling=100.0)
    assert (found.lower, found.upper) == (0.0, 100.0)


@pytest.mark.parametrize(
    ("value", "members", "expected"),
    [
        (-5.0, [-20.0, 51.0], (0.0, 51.0)),
        (-5.0, [-20.0, -3.0], (0.0, 0.0)),
        (3.0, [-20.0, 51.0], (0.0, 51.0)),
        (110.0, [105.0, 120.0], (100.0, 100.0)),
    ],
)
def test_ends_are_possible_where_the_value_is_not(
    value: float, members: list[float], expected: tuple[float, float]
) -> None:
    found = interval_estimate(value, members, level=1 - 1e-12, floor=0.0, ceiling=100.0)
    assert found.value == value
    assert (found.lower, found.upper) == pytest.approx(expected)
    nearest = min(max(value, 0.0), 100.0)
    assert expected[0] <= nearest <= expected[1]


def test_no_possible_truth_is_lost_to_the_range() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        value, truth = rng.normal(5, 20), rng.uniform(0, 100)
        members = value + rng.normal(0, 15, 8)
        whole, cut = (interval_estimate(value, members, widening=2, margin=3, **limits) for limits in WHOLE_AND_CUT)
        assert covers(whole, truth) <= covers(cut, truth)
        assert covers(cut, min(max(value, 0), 100))


def covers(estimate: Estimate, truth: float) -> bool:
    _, lower, upper = ends(estimate)
    return lower is not None and upper is not None and lower <= truth <= upper


WHOLE_AND_CUT: tuple[dict[str, float], ...] = ({}, {"floor": 0.0, "ceiling": 100.0})


def test_interval_reaches_to_a_value_outside_the_members() -> None:
    found = interval_estimate(7.0, [1.0, 1.0, 1.0], widening=1.0)
    assert (found.lower, found.upper) == (1.0, 7.0)


def test_undefined_members_are_left_out() -> None:
    assert interval_estimate(2.0, [math.nan, 1.0, 3.0], level=0.5) == Estimate(2.0, 1.5, 2.5)
    assert interval_estimate(2.0, [math.nan, 1.0]) == Estimate(2.0)
    assert interval_estimate(math.nan, [1.0, 2.0]) == Estimate(None)


@pytest.mark.parametrize(("level", "widening"), [(0.0, 1.0), (1.0, 1.0), (0.9, -1.0), (0.9, math.inf)])
def test_impossible_levels_are_refused(level: float, widening: float) -> None:
    with pytest.raises(ValueError, match="level"):
        interval_estimate(1.0, [1.0, 2.0], level=level, widening=widening)


# --- function ---------------------------------------------------------------------------------------------------------

ED = volumes(heart(160, 100, 120), heart(160, 100, 100), heart(160, 120, 140))
ES = volumes(heart(80, 100, 48), heart(64, 100, 50), heart(96, 100, 42))


def test_each_member_is_a_heart_of_its_own() -> None:
    found = cardiac_function(ED, ES, level=0.5).measures
    # pairs of members: EF 100 (1 - 50/100) = 50 and 100 (1 - 42/140) = 70; quartiles between two points
    assert ends(found["lv_ef"]) == pytest.approx((60.0, 55.0, 65.0))
    assert ends(found["lv_sv"]) == pytest.approx((72.0, 62.0, 86.0))
    assert ends(found["rv_ef"]) == pytest.approx((50.0, 45.0, 55.0))
    assert found["rv_edv"] == Estimate(160.0, 160.0, 160.0)
    assert ends(found["myo_mass"]) == pytest.approx((105.0, 105.0, 120.75))
    assert set(found) == set(MEASURES)


def test_widening_by_measure() -> None:
    plain, wide = (cardiac_function(ED, ES, widening=w).measures for w in (1.0, {"lv_ef": 3.0}))
    assert wide["lv_ef"].width == pytest.approx(3 * (plain["lv_ef"].width or 0))
    assert wide["lv_edv"] == plain["lv_edv"]
    assert cardiac_function(ED, ES, widening=2.0).widening == dict.fromkeys(MEASURES, 2.0)
    with pytest.raises(InputError, match="'lvef'"):
        cardiac_function(ED, ES, widening={"lvef": 3.0})


def test_a_right_ventricle_that_grows_keeps_its_value_and_a_possible_interval() -> None:
    ed = volumes(heart(100, 100, 120), heart(100, 100, 120), heart(100, 100, 120))
    es = volumes(heart(105, 100, 50), heart(120, 100, 50), heart(49, 100, 50))
    shown, whole = (cardiac_function(ed, es, level=0.5, possible=possible).measures for possible in (True, False))
    # members: 100 (1 - 120/100) = -20 and 51; the quartiles of two points are -2.25 and 33.25
    assert ends(whole["rv_ef"]) == pytest.approx((-5.0, -5.0, 33.25))
    assert ends(shown["rv_ef"]) == pytest.approx((-5.0, 0.0, 33.25))
    assert ends(whole["rv_sv"]) == pytest.approx((-5.0, -5.0, 33.25))
    assert ends(shown["rv_sv"]) == pytest.approx((-5.0, 0.0, 33.25))
    assert shown["lv_ef"] == whole["lv_ef"]


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_has_a_range_of_a_heart_that_pumps(name: str) -> None:
    measure = MEASURES[name]
    assert measure.floor == 0
    assert measure.ceiling == (100 if measure.unit == "%" else math.inf)


def test_an_absent_ventricle_has_no_ejection_fraction() -> None:
    empty = volumes(heart(0, 50, 80), heart(0, 50, 80), heart(0, 50, 80))
    found = cardiac_function(empty, empty).measures
    assert found["rv_ef"] == Estimate(None)
    assert found["rv_sv"].value == 0
    assert found["lv_ef"].value == 0


def test_unequal_ensembles_are_refused() -> None:
    with pytest.raises(InputError, match="ED has 2 members and ES 1"):
        cardiac_function(ED, volumes(heart(1, 1, 1), heart(1, 1, 1)))


def test_body_surface_of_a_known_body() -> None:
    assert body_surface_area(180.0, 80.0) == pytest.approx(2.0)  # sqrt(180 * 80 / 3600) = sqrt(4)


@pytest.mark.parametrize(("height", "weight", "what"), [(0, 80, "height"), (180, -1, "weight"), (math.nan, 80, "nan")])
def test_impossible_bodies_are_refused(height: float, weight: float, what: str) -> None:
    with pytest.raises(InputError, match=what):
        body_surface_area(height, weight)


def test_indexing_divides_volumes_and_mass_alone() -> None:
    function = cardiac_function(ED, ES, height=180, weight=80, level=0.5)
    indexed = function.indexed(MEASURES)
    assert function.body_surface == pytest.approx(2.0)
    assert ends(indexed["lv_edv"]) == pytest.approx((60.0, 55.0, 65.0))
    assert indexed["myo_mass"].value == pytest.approx(52.5)
    assert "lv_ef" not in indexed
    assert "rv_ef" not in indexed
    assert cardiac_function(ED, ES, height=180).indexed(MEASURES) == {}


# --- ED and ES --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "expected"),
    [({}, (1, 3)), ({"ed": 0}, (0, 3)), ({"es": 2}, (1, 2)), ({"ed": 4, "es": 0}, (4, 0))],
)
def test_ed_and_es_are_the_extremes_or_given(known: dict[str, int], expected: tuple[int, int]) -> None:
    assert find_ed_es([100, 120, 60, 50, 50, 120], **known) == expected


@pytest.mark.parametrize(
    ("lv", "known"), [([5.0], {}), ([5.0, 5.0], {}), ([], {}), ([5.0, 6.0], {"ed": 2}), ([5.0, 6.0], {"es": 1})]
)
def test_frames_that_cannot_be_told_apart_are_refused(lv: list[float], known: dict[str, int]) -> None:
    with pytest.raises(InputError):
        find_ed_es(lv, **known)


# --- the table --------------------------------------------------------------------------------------------------------


def test_cohort_table(tmp_path: Path) -> None:
    function = cardiac_function(ED, ES, height=180, weight=80, level=0.5)
    write_cohort_csv(tmp_path / "cohort.csv", {"a": function, "b, c": None}, {"b, c": {"quality": "review"}})
    text = (tmp_path / "cohort.csv").read_text()
    first, second = csv.DictReader(io.StringIO(text))
    assert (first["case"], first["members"], first["body_surface_m2"], first["quality"]) == ("a", "2", "2.000", "")
    assert (first["lv_ef_percent"], first["lv_ef_percent_lower"], first["lv_ef_percent_upper"]) == (
        "60.000",
        "55.000",
        "65.000",
    )
    assert first["myo_mass_g_per_m2"] == "52.500"
    assert "lv_ef_percent_per_m2" not in first
    assert second["case"] == "b, c"
    assert second["quality"] == "review"
    assert second["lv_edv_ml"] == ""
    assert cohort_csv({}).count("\n") == 1
