"""Calibration against closed forms: temperatures that are known, coverage that has a law."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgdpm_med import InputError
from cgdpm_med.metrics.calibration import (
    SMALLEST_PROBABILITY,
    TEMPERATURES,
    conformal_factor,
    conformal_rank,
    fit_probabilities,
    fit_temperature,
    guaranteed_coverage,
    interval_score,
    negative_log_likelihood,
    temper,
    untemper,
)
from cgdpm_med.metrics.masks import brier

# --- temperature ------------------------------------------------------------------------------------------------------


def test_a_voxel_by_hand() -> None:
    # square roots of .64, .32 and .04 over their sum: .8, .5657, .2
    roots = np.sqrt([0.64, 0.32, 0.04])
    np.testing.assert_allclose(temper([[0.64], [0.32], [0.04]], 2.0)[:, 0], roots / roots.sum(), rtol=1e-6)


def test_the_temperature_of_two_classes_in_closed_form() -> None:
    """Every voxel says .9, and 80 of 100 are right: the likelihood is best where the tempered .9 is .8."""
    p = np.tile([[0.9], [0.1]], 100)
    labels = np.repeat([0, 1], [80, 20])
    temperature = fit_temperature(p, labels)
    assert temperature == pytest.approx(math.log(9) / math.log(4), rel=1e-5)
    assert temper(p, temperature)[0, 0] == pytest.approx(0.8, rel=1e-5)
    assert negative_log_likelihood(p, labels, temperature) == pytest.approx(-0.8 * math.log(0.8) - 0.2 * math.log(0.2))


@pytest.mark.parametrize("true_temperature", [0.6, 1.0, 2.5])
def test_the_temperature_of_drawn_labels_is_recovered(true_temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4, 40_000))
    honest = np.exp(logits) / np.exp(logits).sum(axis=0)
    labels = (honest.cumsum(axis=0) < rng.uniform(size=honest.shape[1])).sum(axis=0)
    said = honest**true_temperature / (honest**true_temperature).sum(axis=0)  # temper(said, T) is honest
    # the information about log T in 40 000 voxels leaves a standard deviation of about half a per cent
    assert fit_temperature(said, labels) == pytest.approx(true_temperature, rel=0.02)


def test_no_temperature_around_the_fitted_one_is_likelier() -> None:
    rng = np.random.default_rng(1)
    p = rng.dirichlet([0.2, 0.3, 0.5], 5000).T
    labels = np.where(rng.uniform(size=5000) < 0.5, p.argmax(axis=0), rng.integers(0, 3, 5000))
    fitted = fit_temperature(p, labels)
    best = negative_log_likelihood(p, labels, fitted)
    assert all(negative_log_likelihood(p, labels, t) > best for t in (0.95 * fitted, 1.05 * fitted, 1.0))


def test_certain_truth_and_certain_error_stop_at_the_ends() -> None:
    p = np.array([[0.7, 0.2], [0.3, 0.8]])
    assert fit_temperature(p, [0, 1]) == TEMPERATURES[0]
    assert fit_temperature(p, [1, 0]) == TEMPERATURES[1]


def test_an_impossible_truth_costs_as_much_as_the_smallest_probability() -> None:
    found = negative_log_likelihood([[1.0], [0.0]], [1])
    assert found == pytest.approx(-math.log(SMALLEST_PROBABILITY), rel=1e-6)


def test_likelihood_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    p, labels = rng.dirichlet(np.ones(4), 101).T, rng.integers(0, 4, 101)
    whole = negative_log_likelihood(p, labels, 1.7), fit_temperature(p, labels), temper(p, 1.7)
    monkeypatch.setattr("cgdpm_med.metrics.calibration._CHUNK", 7)
    assert negative_log_likelihood(p, labels, 1.7) == pytest.approx(whole[0], rel=1e-12)
    assert fit_temperature(p, labels) == pytest.approx(whole[1], rel=1e-5)
    np.testing.assert_array_equal(temper(p, 1.7), whole[2])


# --- doubt ------------------------------------------------------------------------------------------------------------


def test_a_doubtful_voxel_by_hand() -> None:
    # square roots of .64, .32 and .04 over their sum keep .7; each class gets .1 besides
    roots = np.sqrt([0.64, 0.32, 0.04])
    found = temper([[0.64], [0.32], [0.04]], 2.0, 0.3)[:, 0]
    np.testing.assert_allclose(found, 0.7 * roots / roots.sum() + 0.1, rtol=1e-6)


def agreeing_and_differing(wrong: int) -> tuple[np.ndarray, np.ndarray]:
    """10 000 voxels that say 1, ``wrong`` of them wrong, and 1000 that say .7 and are right as often."""
    p = np.concatenate([np.tile([[1.0], [0.0]], 10_000), np.tile([[0.7], [0.3]], 1000)], axis=1)
    return p, np.repeat([0, 1, 0, 1], [10_000 - wrong, wrong, 700, 300])


def test_errors_of_members_that_agree_are_doubt_and_leave_honest_voxels_alone() -> None:
    p, labels = agreeing_and_differing(wrong=100)
    softened = temper(p, *fit_probabilities(p, labels))
    np.testing.assert_allclose(softened[0, [0, -1]], [0.99, 0.7], atol=2e-3)
    assert temper(p, fit_temperature(p, labels))[0, -1] < 0.6  # a temperature by likelihood spoils them


@pytest.mark.parametrize("wrong", [0, 30])
def test_no_neighbour_of_what_is_fitted_has_a_better_brier_score(wrong: int) -> None:
    rng = np.random.default_rng(3)
    p = rng.dirichlet([0.2, 0.3, 0.5], 3000).T
    labels = (p.cumsum(axis=0) < rng.uniform(size=3000)).sum(axis=0)
    labels[:wrong] = p[:, :wrong].argmin(axis=0)
    temperature, doubt = fit_probabilities(p, labels)
    best = brier(temper(p, temperature, doubt), labels)
    around = [(t, d) for t in (0.97, 1, 1.03) for d in (-0.003, 0, 0.003) if doubt + d >= 0]
    assert all(brier(temper(p, temperature * t, doubt + d), labels) >= best - 1e-6 for t, d in around)


def test_there_is_no_doubt_where_a_temperature_says_it_all() -> None:
    """Every voxel says .9, and 80 of 100 are right."""
    p, labels = np.tile([[0.9], [0.1]], 100), np.repeat([0, 1], [80, 20])
    temperature, doubt = fit_probabilities(p, labels)
    assert temperature == pytest.approx(math.log(9) / math.log(4), rel=2e-3)
    assert doubt == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.6, 4.0), st.floats(0.0, 0.4))
def test_temperature_and_doubt_can_be_undone(seed: int, temperature: float, doubt: float) -> None:
    p = np.random.default_rng(seed).dirichlet(np.full(4, 0.5), 7).T
    p = np.maximum(p, 0.01)
    p /= p.sum(axis=0)
    softened = temper(p, temperature, doubt)
    np.testing.assert_array_equal(softened.argmax(axis=0), p.argmax(axis=0))
    np.testing.assert_allclose(softened.sum(axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(untemper(softened, temperature, doubt), p, rtol=5e-3)


@pytest.mark.parametrize("doubt", [-0.1, 1.0, math.nan])
def test_impossible_doubts(doubt: float) -> None:
    with pytest.raises(ValueError, match="doubt"):
        temper([[0.5], [0.5]], 1.0, doubt)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.2, 8.0))
def test_tempering_keeps_the_order_and_can_be_undone(seed: int, temperature: float) -> None:
    p = np.random.default_rng(seed).dirichlet(np.full(4, 0.5), (5, 3)).transpose(2, 0, 1)
    p = np.maximum(p, 0.01)
    p = (p / p.sum(axis=0)).astype(np.float32)
    tempered = temper(p, temperature)
    np.testing.assert_array_equal(np.argsort(tempered, axis=0, kind="stable"), np.argsort(p, axis=0, kind="stable"))
    np.testing.assert_allclose(tempered.sum(axis=0), 1, rtol=1e-5)
    if temperature > 0.5:  # sharper ones fall below what is kept
        np.testing.assert_allclose(temper(tempered, 1 / temperature), p, rtol=1e-3)


def test_a_certain_voxel_stays_certain_of_its_class() -> None:
    p = np.zeros((4, 3), np.float32)
    p[2] = 1
    tempered = temper(p, 3.0)
    assert (tempered.argmax(axis=0) == 2).all()
    small = SMALLEST_PROBABILITY ** (1 / 3)
    np.testing.assert_allclose(tempered[2], 1 / (1 + 3 * small), rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_impossible_temperatures(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        temper([[0.5], [0.5]], temperature)


@pytest.mark.parametrize(
    ("probabilities", "labels", "what"),
    [
        (np.ones((2, 0)), [], "probabilities"),
        (np.ones((2, 3)), [0, 1], "probabilities"),
        (np.ones((2, 2)), [0, 2], "outside 0 to 1"),
        (np.ones((2, 2)), [-1, 0], "outside 0 to 1"),
    ],
)
def test_voxels_that_do_not_fit(probabilities: np.ndarray, labels: list[int], what: str) -> None:
    with pytest.raises(InputError, match=what):
        fit_temperature(probabilities, labels)


# --- intervals --------------------------------------------------------------------------------------------------------


def test_scores_by_hand() -> None:
    # guess [50 - 4 - 2, 50 + 1 + 2]: 44 to 53
    assert interval_score(50, 46, 51, 44, margin=2) == pytest.approx(1.0)
    assert interval_score(50, 46, 51, 59, margin=2) == pytest.approx(3.0)
    assert interval_score(50, 46, 51, 50, margin=2) == 0
    assert interval_score(50, 50, 50, 47, margin=2) == pytest.approx(1.5)
    for value, margin in ((45, 2), (50, 0)):
        with pytest.raises(ValueError, match="do not fit"):
            interval_score(value, 46, 51, 50, margin=margin)


@pytest.mark.parametrize(("cases", "rank"), [(8, None), (9, 9), (10, 10), (18, 18), (19, 18), (20, 19), (99, 90)])
def test_ranks_of_nine_in_ten(cases: int, rank: int | None) -> None:
    assert conformal_rank(cases, 0.9) == rank


def test_the_factor_is_an_order_statistic() -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 20.0))
    assert conformal_factor(scores, 0.9) == 18
    assert conformal_factor([*scores[:-1], math.inf], 0.5) == pytest.approx(np.sort([*scores[:-1], np.inf])[9])
    assert conformal_factor([1.0] * 9 + [math.inf]) == math.inf
    with pytest.raises(InputError, match=r"8 cases cannot support intervals of 90 %.*9 or more"):
        conformal_factor(scores[:8], 0.9)
    with pytest.raises(ValueError, match="level"):
        conformal_factor(scores, 1.0)


@pytest.mark.parametrize("cases", [10, 19, 40])
def test_coverage_of_exchangeable_cases_follows_its_law(cases: int) -> None:
    """Members of no use, errors with heavy tails: the mean coverage over fits and its spread are as promised."""
    rng = np.random.default_rng(cases)
    fits, new = 1500, 400
    error = rng.standard_t(2, (fits, cases + new)) * rng.uniform(1, 5, (fits, cases + new))
    spread = rng.uniform(0, 2, error.shape)

    def score(row: int, column: int) -> float:
        half = spread[row, column]
        return interval_score(0, -half, half, error[row, column], margin=0.5)

    factors = np.array([conformal_factor([score(r, c) for c in range(cases)]) for r in range(fits)])
    reach = factors[:, None] * (spread[:, cases:] + 0.5)
    coverage = (np.abs(error[:, cases:]) <= reach).mean(axis=1)
    promised, single = guaranteed_coverage(cases)
    assert promised >= 0.9
    assert coverage.mean() == pytest.approx(promised, abs=4 * coverage.std() / math.sqrt(fits))
    # the law of a single fit, blurred by the finite number of new cases
    assert np.mean(coverage >= single) == pytest.approx(0.95, abs=0.02)


def test_the_promise_of_ten_cases() -> None:
    """Rank ten of ten: the largest score. A single fit covers U^(1/10): below .05^(1/10) one time in twenty."""
    assert guaranteed_coverage(10) == pytest.approx((10 / 11, 0.05**0.1))
    assert guaranteed_coverage(8) == (1.0, 1.0)
