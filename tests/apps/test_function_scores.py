"""Errors of cardiac function and coverage of its intervals, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from studies import study

from cgdpm_med.evaluation.function_scores import known_studies, score_function, true_volumes
from cgdpm_med.heart.function import cardiac_function


def test_errors_and_coverage_by_hand() -> None:
    studies = [study("a", 100, 50, 105, 50), study("b", 120, 60, 100, 50), study("c", 200, 100, 203, 120)]
    truths = [s.truth() for s in studies]
    scores = score_function(truths, [s.found() for s in studies])
    edv, esv = scores["lv_edv"], scores["lv_esv"]
    # errors -5, 20, -3; intervals +-9 around the values (two members: .05 and .95 of the way between them)
    assert edv["error_mean"] == pytest.approx(4)
    assert edv["error_sd"] == pytest.approx(np.sqrt((81 + 256 + 49) / 2))
    assert edv["error_absolute"] == pytest.approx(28 / 3)
    assert edv["coverage"] == pytest.approx(2 / 3)
    assert edv["width"] == pytest.approx(18)
    assert esv["coverage"] == pytest.approx(1 / 3)
    assert esv["correlation"] == pytest.approx(np.corrcoef([50, 60, 100], [50, 50, 120])[0, 1])
    wide = score_function(truths, [s.found(2.0, {"lv_edv": 3.0}) for s in studies])
    assert wide["lv_edv"]["coverage"] == 1.0
    assert wide["lv_edv"]["width"] == pytest.approx(2 * (2 * 9 + 3))
    assert scores["rv_edv"]["correlation"] is None  # the truth does not vary


def test_an_absent_ventricle_is_counted() -> None:
    empty = study("a", 0, 0, 100, 50)
    scores = score_function([empty.truth()], [empty.found()])["lv_ef"]
    assert (scores["n"], scores["undefined"], scores["coverage"]) == (0, 1, None)


def test_studies_need_both_phases() -> None:
    whole = study("b", 1, 1, 1, 1)
    ed, es = whole.frames["ED"], whole.frames["ES"]
    (found,) = known_studies([replace(ed, patient="a"), es, ed, replace(ed, patient="")])
    assert (found.patient, list(found.frames)) == ("b", ["ED", "ES"])
    assert found.frames["ES"] is es


def test_a_true_mask_has_volumes_and_no_members() -> None:
    found = true_volumes(np.array([[[0, 3, 3]]]), 500.0)
    assert found.combined.tolist() == [0.5, 0, 0, 1]
    assert found.members.shape == (0, 4)
    assert cardiac_function(found, found).measures["lv_edv"].lower is None
