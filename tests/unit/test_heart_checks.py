"""Sizes and order of a heart: measurements in closed form, each finding alone, phantoms stored wrongly."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from segmentations import segmentation_of

from cgdpm_med.heart.checks import (
    assess_heart,
    compare_phases,
    heart_sizes,
    lean_to_apex,
    slice_areas,
    wall_thickness,
)
from cgdpm_med.heart.limits import HeartLimits
from cgdpm_med.heart.stack_checks import assess_stack
from cgdpm_med.inference.quality import Finding
from cgdpm_med.metrics.volumetry import FrameVolumes, frame_volumes
from cgdpm_med.phantom import GROUPS, Phantom, PhantomSpec, make_phantom, write_phantom_patient
from cgdpm_med.report.case import case_report
from cgdpm_med.report.records import study_record
from cgdpm_med.studies.outputs import Provenance
from cgdpm_med.studies.result import StudyResult
from cgdpm_med.studies.study import Study, write_cohort
from cgdpm_med.volumes import Volume, read_volume

SPACING = (2.0, 2.0, 10.0)
RADII = (22, 22, 20, 18, 15, 12, 8, 4)
"""Of the left ventricle from base to apex, in mm."""


def heart(radii: tuple[float, ...] = RADII, wall: float = 10.0, pixel: float = 2.0) -> NDArray[np.uint8]:
    """(X, Y, Z): round cavities in a wall, and beside it a right ventricle as wide as the cavity, but for the apex."""
    x, y = np.mgrid[-60:60:pixel, -60:60:pixel] + pixel / 2
    labels = np.zeros((*x.shape, len(radii)), dtype=np.uint8)
    for k, radius in enumerate(radii):
        if k < len(radii) - 2:
            labels[np.hypot(x + 30, y) < radius, k] = 1
        labels[np.hypot(x - 10, y) < radius + wall, k] = 2
        labels[np.hypot(x - 10, y) < radius, k] = 3
    return labels


def checks(findings: tuple[Finding, ...]) -> set[str]:
    assert all(finding.review for finding in findings)
    return {finding.check for finding in findings}


def reason(findings: tuple[Finding, ...], check: str) -> str:
    return next(finding.reason for finding in findings if finding.check == check)


# --- measurements -----------------------------------------------------------------------------------------------------


def test_areas_of_2x2x2() -> None:
    mask = np.array([[[1, 3], [2, 3]], [[0, 3], [2, 2]]])
    expected = [[1, 0], [1, 0], [2, 1], [0, 3]]  # voxels of each label in each slice
    np.testing.assert_allclose(slice_areas(mask, (1.5, 2.0, 8.0)), 3.0 * np.array(expected))


def test_wall_of_rings() -> None:
    inner, outer = np.array([10.0, 5.0]), np.array([18.0, 11.0])
    cavity, both = math.pi * inner**2, math.pi * outer**2
    np.testing.assert_allclose(wall_thickness([*cavity, 0.0], [*(both - cavity), 50.0]), [8.0, 6.0])


@pytest.mark.parametrize(
    ("areas", "lean"),
    [
        ([1, 1, 1], 0.0),
        ([3, 2, 1], (0 * 3 + 1 * 2 + 2 * 1) / 6 / 3 - 1 / 3),
        ([1, 2, 3], 1 / 3 - (0 * 3 + 1 * 2 + 2 * 1) / 6 / 3),
        ([0, 0, 3, 2, 1, 0], (0 * 3 + 1 * 2 + 2 * 1) / 6 / 3 - 1 / 3),
    ],
)
def test_lean_of_a_few_slices(areas: list[float], lean: float) -> None:
    assert lean_to_apex(areas) == pytest.approx(lean)


def test_sizes_of_a_box() -> None:
    mask = np.zeros((9, 9, 4), dtype=np.uint8)
    mask[1:8, 1:8, :3] = 2
    mask[2:7, 2:7, :3] = 3
    sizes = heart_sizes(mask, (2.0, 1.0, 10.0))
    assert sizes.lv == pytest.approx(25 * 3 * 20 / 1000)
    assert sizes.mass == pytest.approx(1.05 * 24 * 3 * 20 / 1000)
    assert sizes.rv is None
    assert sizes.width == pytest.approx(2 * math.sqrt(50 / math.pi))
    assert sizes.length == pytest.approx(30.0)
    wall = math.sqrt(98 / math.pi) - math.sqrt(50 / math.pi)
    assert (sizes.wall, sizes.thickest) == pytest.approx((wall, wall))
    assert (sizes.ends, sizes.lean) == pytest.approx((1.0, 0.0))


def test_nothing_is_measured_of_an_empty_mask() -> None:
    empty = np.zeros((4, 4, 4), dtype=np.uint8)
    assert set(vars(heart_sizes(empty, SPACING)).values()) == {None}
    assert assess_heart(empty, SPACING, frame="ED") == ()


# --- checks of a frame ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", ["ED", "ES", "frame 1"])
def test_a_plausible_heart_passes(frame: str) -> None:
    assert assess_heart(heart(), SPACING, frame=frame) == ()


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ((0.1, 0.1, 0.1), {"ventricular volume", "myocardial mass", "LV width", "LV length", "wall thickness"}),
        ((10, 10, 10), {"ventricular volume", "myocardial mass", "LV width", "LV length", "wall thickness"}),
        ((1, 1, 0.1), {"ventricular volume", "myocardial mass", "LV length", "LV shape"}),
        ((1, 1, 2), {"LV length", "LV shape"}),
        ((2.9, 2.9, 1), {"ventricular volume", "myocardial mass", "LV width", "LV shape"}),
    ],
)
def test_a_wrong_voxel_size_is_noticed(factors: tuple[float, float, float], expected: set[str]) -> None:
    spacing = tuple(size * factor for size, factor in zip(SPACING, factors, strict=True))
    assert checks(assess_heart(heart(), spacing, frame="ED")) == expected


def test_reasons_give_the_number_and_the_limits() -> None:
    sizes = heart_sizes(heart(), (2.0, 2.0, 1.0))
    found = assess_heart(heart(), (2.0, 2.0, 1.0), frame="ED")
    volume = reason(found, "ventricular volume")
    assert f"{sizes.lv:.1f} ml" in volume
    assert "25 to 550" in volume
    assert volume.startswith("ED: ")
    assert "8.0 mm" in reason(found, "LV length")
    assert f"{sizes.mass:.1f} g" in reason(found, "myocardial mass")


def test_limits_are_those_of_the_phase() -> None:
    small = heart(tuple(0.55 * radius for radius in RADII), wall=14.0, pixel=1.0)
    spacing = (1.0, 1.0, 7.0)
    lv = heart_sizes(small, spacing).lv
    assert lv is not None
    assert 10 < lv < 25
    assert "ventricular volume" in checks(assess_heart(small, spacing, frame="ED"))
    for frame in ("ES", "frame 1"):  # a frame of unknown phase may be either
        assert "ventricular volume" not in checks(assess_heart(small, spacing, frame=frame))


def test_limits_can_be_changed() -> None:
    limits = HeartLimits(lv_edv=(1, 10))
    assert "1 to 10 ml" in reason(assess_heart(heart(), SPACING, frame="ED", limits=limits), "ventricular volume")


def test_a_stack_from_apex_to_base_is_noticed() -> None:
    found = assess_heart(heart()[..., ::-1], SPACING, frame="ED")
    assert checks(found) == {"slice direction"}
    lean = lean_to_apex(slice_areas(heart()[..., ::-1], SPACING)[1:].sum(axis=0))
    assert f"{lean:.1%}" in reason(found, "slice direction")
    assert "--flip-slices" in reason(found, "slice direction")


def test_an_apex_first_stack_that_lost_its_right_ventricle_is_noticed() -> None:
    labels = heart()[..., ::-1].copy()
    labels[..., :5][labels[..., :5] == 1] = 0
    assert "slice direction" in checks(assess_heart(labels, SPACING))


def test_slices_that_are_frames_do_not_taper() -> None:
    beating = heart((22, 21, 19, 17, 16, 17, 19, 22))
    found = assess_heart(beating, SPACING, frame="ED")
    assert "LV ends" in checks(found)
    assert "100%" in reason(found, "LV ends")


def test_a_wall_thinner_than_a_pixel_everywhere_is_noticed() -> None:
    limits = HeartLimits(wall=(0.5, 30.0))
    labels = heart(wall=2.0)
    assert "wall thickness" not in checks(assess_heart(labels, SPACING, limits=limits))
    labels[:, ::2][labels[:, ::2] == 2] = 0  # gaps in a wall of one pixel
    thickest = heart_sizes(labels, SPACING).thickest
    assert thickest is not None
    assert thickest < 2
    found = assess_heart(labels, SPACING, limits=limits)
    assert f"{thickest:.2f} mm" in reason(found, "wall thickness")
    assert "pixel of 2 mm" in reason(found, "wall thickness")


# --- both phases ------------------------------------------------------------------------------------------------------


def volumes(rv: float, myo: float, lv: float) -> FrameVolumes:
    return FrameVolumes(np.array([0.0, rv, myo, lv]), np.empty((0, 4)))


GOOD = (volumes(150, 110, 140), volumes(70, 115, 60))


@pytest.mark.parametrize(
    ("ed", "es", "check", "number"),
    [
        (*GOOD, None, ""),
        (volumes(0, 0, 0), volumes(0, 0, 0), None, ""),
        (volumes(150, 110, 60), volumes(70, 115, 61), "phases", "LV is larger at ES (61.0 ml)"),
        (volumes(80, 110, 140), volumes(84, 115, 60), "phases", "RV is larger at ES (84.0 ml)"),
        (volumes(14, 110, 140), volumes(10, 115, 60), "RV and LV", "0.10 times"),
        (volumes(300, 110, 50), volumes(200, 115, 20), "RV and LV", "6.00 times"),
        (volumes(150, 110, 140), volumes(70, 55, 60), "myocardial mass", "0.50 times"),
        (volumes(150, 110, 140), volumes(70, 240, 60), "myocardial mass", "2.18 times"),
        (volumes(150, 110, 300), volumes(120, 115, 110), "stroke volumes", "160.0 ml apart"),
    ],
)
def test_phases_against_each_other(ed: FrameVolumes, es: FrameVolumes, check: str | None, number: str) -> None:
    found = compare_phases(ed, es)
    assert checks(found) == (set() if check is None else {check})
    assert all(number in finding.reason for finding in found)


# --- phantoms ---------------------------------------------------------------------------------------------------------

SPEC = PhantomSpec(shape=(108, 128, 10), spacing=(3.0, 3.0, 10.0), num_frames=3, affine="plain")
NEWER = {"voxel size", "axes", "few slices", "stack length", "picture size", "slices alike", "ventricular volume"} | {
    "myocardial mass", "LV width", "LV length", "LV shape", "LV ends", "wall thickness", "slice direction", "phases",
    "RV and LV", "stroke volumes",
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn() -> Phantom:
    return make_phantom(SPEC)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One phantom, written with directions and, like ACDC, without."""
    kinds: tuple[Any, ...] = ("plain", "acdc")
    return {k: write_phantom_patient(tmp_path_factory.mktemp(k), 1, replace(SPEC, affine=k)) for k in kinds}


def study_of(drawn: Phantom, folder: Path, turned: tuple[int, ...] = (), **reading: Any) -> StudyResult:
    """The true masks of a phantom in a study, on images whose grid is changed."""
    study = Study("phantom")
    for frame, labels in drawn.labels.items():
        image = read_volume(folder / f"patient001_frame{frame:02d}.nii.gz", **reading)
        members = np.flip(labels, turned)[None]
        study.add(frame, segmentation_of(members, Volume(np.flip(image.data, turned), image.grid, image.path)))
    return study.result()


def sent(result: StudyResult) -> set[str]:
    return {finding.check for finding in result.quality.findings if finding.review} & NEWER


@pytest.mark.parametrize("group", GROUPS)
def test_hearts_of_every_group_pass(group: str) -> None:
    phantom = make_phantom(replace(SPEC, group=group))
    for frame, phase in ((phantom.ed_frame, "ED"), (phantom.es_frame, "ES")):
        assert assess_stack(phantom.images[frame], SPEC.spacing) == ()
        assert assess_heart(phantom.labels[frame], SPEC.spacing, frame=phase) == ()
    volume = math.prod(SPEC.spacing)
    ed, es = (frame_volumes(labels, labels[None], volume) for labels in phantom.labels.values())
    assert compare_phases(ed, es) == ()


def test_a_phantom_passes_as_a_study(drawn: Phantom, files: dict[str, Path]) -> None:
    assert [sent(study_of(drawn, folder)) for folder in files.values()] == [set(), set()]


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        ((0.3, 0.3, 1.0), {"voxel size", "stack length", "picture size", "ventricular volume"}),
        ((30.0, 30.0, 100.0), {"voxel size", "stack length", "picture size", "ventricular volume"}),
        ((3.0, 3.0, 1.0), {"stack length", "LV shape"}),
        ((1.0, 1.0, 1.0), {"stack length", "ventricular volume"}),
        ((3.0, 3.0, 22.0), {"stack length", "voxel size"}),
    ],
)
def test_phantoms_of_a_wrong_spacing_go_to_review(
    spacing: tuple[float, float, float], expected: set[str], drawn: Phantom, files: dict[str, Path]
) -> None:
    result = study_of(drawn, files["plain"], spacing=spacing)
    assert expected <= sent(result)
    assert result.quality.status == "review"


@pytest.mark.parametrize("affine", ["acdc", "plain"])
def test_a_phantom_from_apex_to_base_goes_to_review(affine: str, drawn: Phantom, files: dict[str, Path]) -> None:
    assert sent(study_of(drawn, files[affine], turned=(2,))) == {"slice direction"}


def test_the_side_that_is_taken_as_the_base_is_said_where_the_file_does_not(
    drawn: Phantom, files: dict[str, Path]
) -> None:
    notes = {
        kind: [f for f in study_of(drawn, folder).quality.findings if f.check == "slice order"]
        for kind, folder in files.items()
    }
    assert notes["plain"] == []
    (note,) = notes["acdc"]  # once, for both frames
    assert not note.review
    assert "base to apex" in note.reason
    assert "--flip-slices" in note.reason


def test_findings_reach_the_json_the_page_and_the_table(drawn: Phantom, files: dict[str, Path], tmp_path: Path) -> None:
    result = study_of(drawn, files["plain"], spacing=(3.0, 3.0, 1.0))
    why = next(f.reason for f in result.quality.findings if f.check == "stack length")
    assert "10 mm" in why
    assert why in json.dumps(study_record(result))
    write_cohort([result], tmp_path / "cohort.csv")
    assert why in (tmp_path / "cohort.csv").read_text()
    assert why in case_report(result, {}, Provenance({}, {}, {}))
