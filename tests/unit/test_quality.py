"""Quality checks: measurements on masks of a few voxels, each check alone, verdicts, studies of phantoms."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPO
from numpy.typing import NDArray
from segmentations import segmentation_of

from cgdpm_med.files import InputError
from cgdpm_med.heart.checks import assess_borders, assess_function, open_cavity_fraction
from cgdpm_med.heart.function import cardiac_function
from cgdpm_med.heart.limits import HeartLimits
from cgdpm_med.heart.single_images import single_image_columns
from cgdpm_med.inference.quality import (
    Finding,
    Quality,
    QualityLimits,
    assess_frame,
    combine,
    fragment_fraction,
    missing_slices,
    worst_cases_auroc,
)
from cgdpm_med.metrics.volumetry import Estimate, FrameVolumes, frame_volumes
from cgdpm_med.phantom import Phantom, PhantomSpec, make_phantom, write_phantom_patient
from cgdpm_med.studies.measures import Measurements
from cgdpm_med.studies.study import Study, write_cohort
from cgdpm_med.volumes import Volume, read_volume


def ring(size: int = 7) -> NDArray[np.uint8]:
    """(size, size, 3): a cavity of 3 x 3 voxels inside a closed wall, with a right ventricle beside it."""
    labels = np.zeros((size, size, 3), dtype=np.uint8)
    labels[1:6, 1:6] = 2
    labels[2:5, 2:5] = 3
    labels[0, 1:6] = 1
    return labels


# --- measurements -----------------------------------------------------------------------------------------------------


def test_fragments_of_3x3x3() -> None:
    cube = np.zeros((3, 3, 3), dtype=bool)
    assert fragment_fraction(cube) == 0
    cube[0, 0, 0] = cube[0, 0, 1] = cube[0, 1, 1] = True
    assert fragment_fraction(cube) == 0
    cube[2, 2, 2] = True  # three voxels here, one there
    assert fragment_fraction(cube) == pytest.approx(1 / 4)
    cube[1, 1, 2] = True  # touches both at a corner: one piece
    assert fragment_fraction(cube) == 0


def test_missing_slices_of_3x3x3() -> None:
    cube = np.zeros((3, 3, 3), dtype=bool)
    assert missing_slices(cube) == []
    cube[1, 1, 0] = True
    assert missing_slices(cube) == []
    cube[1, 1, 2] = True
    assert missing_slices(cube) == [1]


def test_a_closed_ring_covers_the_cavity() -> None:
    assert open_cavity_fraction(ring()) == 0


@pytest.mark.parametrize("beyond", [0, 1])
def test_each_uncovered_face_counts(beyond: int) -> None:
    labels = ring()
    labels[1, 3, 0] = beyond  # a wall voxel beside the cavity, in one of three slices of 12 faces each
    assert open_cavity_fraction(labels) == pytest.approx(1 / 36)


def test_a_cavity_at_the_edge_of_the_image_is_open_there() -> None:
    labels = np.full((3, 3, 1), 3, dtype=np.uint8)
    assert open_cavity_fraction(labels) == 1
    assert open_cavity_fraction(np.zeros((3, 3, 1))) == 0


# --- checks of a frame ------------------------------------------------------------------------------------------------


def test_a_good_frame_passes() -> None:
    labels = ring()
    quality = assess_frame(labels, np.stack([labels, labels]), frame="ED")
    assert quality == Quality((), {"ED": {1: 1.0, 2: 1.0, 3: 1.0}})
    assert quality.status == "pass"


def broken(what: str) -> NDArray[np.uint8]:
    labels = ring()
    if what == "empty structure":
        labels[labels == 1] = 0
    elif what == "missing slices":
        labels[..., 1] = 0
    elif what == "fragments":
        labels[1:6, 1:6, :] = ring()[1:6, 1:6]
        labels[0, 1:5] = 0
        labels[6, 6, :] = 1
    else:
        labels[2:5, 1] = 0
    return labels


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("empty structure", "ES: RV is empty"),
        ("missing slices", "ES: RV is absent from slice 2 between slices that hold it"),
        ("fragments", "ES: 50.0 % of RV lies apart from its largest piece"),
        ("LV outside myocardium", "ES: 25.0 % of the LV border is not covered by myocardium"),
    ],
)
def test_each_defect_is_named(what: str, reason: str) -> None:
    labels = broken(what)
    quality = assess_frame(labels, labels[None], frame="ES", anatomy=assess_borders(labels, frame="ES"))
    assert quality.status == "review"
    assert next(f.reason for f in quality.findings if f.check == what) == reason


def test_reasons_name_the_slices_of_the_file() -> None:
    labels = np.concatenate([ring(), ring()], axis=2)
    labels[..., 1:-1] = 0
    numbers = range(labels.shape[2], 0, -1)  # stored from the apex to the base
    quality = assess_frame(labels, labels[None], slice_numbers=list(numbers))
    inner = ", ".join(str(n) for n in list(numbers)[1:-1])
    assert f"RV is absent from slices {inner} between slices that hold it" in quality.reasons


@pytest.mark.parametrize(("removed", "status"), [(1, "pass"), (2, "review")])
def test_what_was_taken_out_is_told_and_much_of_it_asks_for_a_person(removed: int, status: str) -> None:
    labels = ring()
    kept = np.count_nonzero(labels == 1)
    limits = QualityLimits(fragments=1.5 / (kept + 1.5))
    quality = assess_frame(labels, labels[None], frame="ES", limits=limits, removed_voxels={1: removed, 2: 0})
    share = 100 * removed / (kept + removed)
    reason = f"ES: {share:.1f} % of RV lay apart from the other structures and was left out"
    assert [(finding.check, finding.reason) for finding in quality.findings] == [("left out", reason)]
    assert quality.status == status


def test_disagreeing_members_lower_the_predicted_dice() -> None:
    labels = ring()
    other = labels.copy()
    other[0, 1:4] = 0  # two voxels of five remain: Dice 2 * 2 / (5 + 2)
    quality = assess_frame(labels, np.stack([labels, other]))
    assert quality.predicted_dice[""][1] == pytest.approx(4 / 7)
    assert quality.reasons == ("predicted Dice of RV is 0.571, below 0.8",)
    assert assess_frame(labels, np.stack([labels, other]), limits=QualityLimits(predicted_dice=0.5)).status == "pass"


def test_one_member_predicts_no_dice() -> None:
    labels = ring()
    assert assess_frame(labels, labels[None]).predicted_dice == {}


@pytest.mark.parametrize(("asked", "status"), [(False, "pass"), (True, "review")])
def test_a_header_note_asks_for_review_only_on_request(asked: bool, status: str) -> None:
    labels = ring()
    limits = QualityLimits(header_notes=asked)
    quality = assess_frame(labels, labels[None], header_note="pixdim and affine disagree", limits=limits)
    assert quality.findings == (Finding("header", "pixdim and affine disagree", review=asked),)
    assert quality.status == status


def test_the_documented_limits_are_the_defaults() -> None:
    text = (REPO / "docs" / "integration.md").read_text(encoding="utf-8")
    written = dict(re.findall(r"^\| [^|]+ \| `(\w+)` \| ([^|]+) \|$", text, flags=re.MULTILINE))
    limits = {name: value for name, value in vars(HeartLimits()).items() if name != "header_notes"}
    pairs = {n: v if isinstance(v, tuple) else (v,) for n, v in limits.items()}
    assert written == {name: " to ".join(f"{end:g}" for end in ends) for name, ends in pairs.items()}


# --- function ---------------------------------------------------------------------------------------------------------


def function_with(**measures: Estimate) -> Measurements:
    volumes = frame_volumes(ring(), ring()[None], 1.0)
    plain = cardiac_function(volumes, volumes)
    fine = {"lv_ef": Estimate(60.0, 58.0, 62.0), "rv_ef": Estimate(55.0, 50.0, 60.0)}
    return replace(plain, measures={**plain.measures, **fine, **measures})


@pytest.mark.parametrize(
    ("ef", "check"),
    [
        (Estimate(60.0, 58.0, 62.0), None),
        (Estimate(5.0, 4.0, 6.0), None),
        (Estimate(4.9), "ejection fraction"),
        (Estimate(-20.0), "ejection fraction"),
        (Estimate(81.0, 80.0, 82.0), "ejection fraction"),
        (Estimate(None), "ejection fraction"),
        (Estimate(60.0, 50.0, 66.0), "uncertain function"),
    ],
)
@pytest.mark.parametrize("name", ["lv_ef", "rv_ef"])
def test_implausible_or_uncertain_ejection_fractions(name: str, ef: Estimate, check: str | None) -> None:
    found = assess_function(function_with(**{name: ef}))
    assert [f.check for f in found] == ([] if check is None else [check])
    assert all(f.reason.startswith(name[:2].upper()) for f in found)


def test_frames_and_function_make_one_verdict() -> None:
    frames = [Quality((Finding("a", "first"),), {"ED": {1: 0.5}}), Quality((), {"ES": {1: 0.9}})]
    quality = combine(frames, [Finding("b", "second"), Finding("c", "noted", review=False)])
    assert quality.reasons == ("first", "second")
    assert [f.check for f in quality.findings] == ["a", "b", "c"]
    assert quality.predicted_dice == {"ED": {1: 0.5}, "ES": {1: 0.9}}


# --- worst cases ------------------------------------------------------------------------------------------------------


def test_worst_decile_of_ten_cases() -> None:
    true = np.array([0.9, 0.8, 0.95, 0.3, 0.85, 0.92, 0.91, 0.93, 0.94, 0.96])
    predicted = np.array([0.9, 0.5, 0.95, 0.6, 0.85, 0.92, 0.91, 0.93, 0.94, 0.4])
    # the worst case has predicted .6; two of the other nine are predicted lower
    assert worst_cases_auroc(predicted, true) == pytest.approx(7 / 9)
    assert worst_cases_auroc(predicted, np.ones(10)) is None
    with pytest.raises(InputError):
        worst_cases_auroc(predicted, true[:9])


# --- studies ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Phantom, Volume]:
    spec = PhantomSpec.small(seed=2, affine="plain")
    folder = write_phantom_patient(tmp_path_factory.mktemp("study"), 1, spec)
    return make_phantom(spec, cine=True), read_volume(folder / "patient001_frame01.nii.gz")


def test_a_cine_keeps_two_frames_and_finds_the_truth(cine: tuple[Phantom, Volume]) -> None:
    drawn, volume = cine
    study = Study("phantom", height=180, weight=80)
    for frame, labels in drawn.labels.items():
        study.add(frame, segmentation_of(labels[None], volume))
        assert len(study._kept) <= 2
    result = study.result()
    assert result.phases == {"ED": drawn.ed_frame, "ES": drawn.es_frame}
    assert result.function is not None
    assert result.function.measures["lv_ef"].value == pytest.approx(drawn.truth.ef_percent)
    assert result.function.measures["lv_edv"].value == pytest.approx(drawn.truth.edv_ml, rel=1e-6)
    kept = study.key_frames()
    np.testing.assert_array_equal(kept["ED"].mask, drawn.labels[drawn.ed_frame])
    np.testing.assert_array_equal(kept["ES"].mask, drawn.labels[drawn.es_frame])


@pytest.mark.parametrize("known", [{}, {"ED": 1}, {"ES": 2}])
def test_frames_beyond_a_phase_that_was_given_reach_the_verdict(
    known: dict[str, int], cine: tuple[Phantom, Volume]
) -> None:
    drawn, volume = cine
    study = Study("phantom", known=known)
    for frame, labels in drawn.labels.items():
        study.add(frame, segmentation_of(labels[None], volume))
    quality = study.result().quality
    found = [finding.reason for finding in quality.findings if finding.check in ("phases", "beat")]
    assert (drawn.ed_frame, drawn.es_frame == 2) == (1, False)
    assert [f"frame {drawn.es_frame} holds" in reason for reason in found] == [True] * (known == {"ES": 2})


def test_known_frames_are_kept(cine: tuple[Phantom, Volume]) -> None:
    drawn, volume = cine
    study = Study("phantom", known={"ED": 2, "ES": 3})
    for frame, labels in drawn.labels.items():
        study.add(frame, segmentation_of(labels[None], volume))
    result = study.result()
    assert result.phases == {"ED": 2, "ES": 3}
    np.testing.assert_array_equal(study.key_frames()["ES"].mask, drawn.labels[3])


def test_a_single_frame_has_no_function(cine: tuple[Phantom, Volume]) -> None:
    drawn, volume = cine
    study = Study("phantom")
    study.add(1, segmentation_of(drawn.labels[1][None], volume))
    result = study.result()
    assert result.function is None
    assert list(study.key_frames()) == ["frame 1"]
    assert "ejection fraction" not in {f.check for f in result.quality.findings}


def test_a_heart_that_does_not_beat_goes_to_review(cine: tuple[Phantom, Volume]) -> None:
    drawn, volume = cine
    study = Study("phantom")
    for frame in (1, 2, 3):
        study.add(frame, segmentation_of(drawn.labels[1][None], volume))
    result = study.result()
    assert result.function is None
    assert any("same frame" in reason for reason in result.quality.reasons)


def test_wrong_frames_are_refused(cine: tuple[Phantom, Volume]) -> None:
    drawn, volume = cine
    with pytest.raises(InputError, match="no frames"):
        Study("phantom").result()
    study = Study("phantom", known={"ED": 1, "ES": 9})
    for frame in (1, 2):
        study.add(frame, segmentation_of(drawn.labels[frame][None], volume))
    with pytest.raises(InputError, match="given twice") as caught:
        study.add(1, segmentation_of(drawn.labels[1][None], volume))
    assert caught.value.path == volume.path
    with pytest.raises(InputError, match="frame 9"):
        study.result()


def test_cohort_file(cine: tuple[Phantom, Volume], tmp_path: Path) -> None:
    drawn, volume = cine
    results: list[Any] = []
    for key, frames in (("one", (1, drawn.es_frame)), ("two", (1,))):
        study = Study(key)
        for frame in frames:
            study.add(frame, segmentation_of(drawn.labels[frame][None], volume))
        results.append(study.result())
    write_cohort(results, tmp_path / "cohort.csv")
    with (tmp_path / "cohort.csv").open(newline="") as file:
        one, two = csv.DictReader(file)
    assert (one["case"], one["ed_frame"], one["es_frame"]) == ("one", "1", str(drawn.es_frame))
    assert float(one["lv_ef_percent"]) == pytest.approx(drawn.truth.ef_percent, abs=1e-3)
    assert (two["case"], two["ed_frame"], two["lv_ef_percent"]) == ("two", "", "")
    assert one["quality"] in ("pass", "review")
    assert (one["lv_ml"], one["myo_g_lower"]) == ("", "")
    millilitres = np.bincount(drawn.labels[1].ravel(), minlength=4) * volume.grid.voxel_volume / 1000
    for name, label, factor in (("lv_ml", 3, 1), ("rv_ml", 1, 1), ("myo_g", 2, 1.05)):
        assert float(two[name]) == pytest.approx(factor * millilitres[label], abs=1e-3)
        assert two[f"{name}_lower"] == two[f"{name}_upper"] == ""  # one member has no spread


def test_the_interval_of_a_single_image_is_the_members_own() -> None:
    members = np.outer(np.arange(90, 111), [1000.0, 1, 2, 3])  # of 21 members the central 90 % are 91 to 109
    columns = single_image_columns(FrameVolumes(np.array([1e5, 100, 200, 300]), members))
    assert [columns[f"lv_ml{end}"] for end in ("", "_lower", "_upper")] == ["300.000", "273.000", "327.000"]
    assert [columns[f"rv_ml{end}"] for end in ("", "_lower", "_upper")] == ["100.000", "91.000", "109.000"]
    assert [columns[f"myo_g{end}"] for end in ("", "_lower", "_upper")] == ["210.000", "191.100", "228.900"]
    assert set(single_image_columns(None).values()) == {""}
