"""Metrics against masks small enough to count by hand, and against plain-loop twins."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cgdpm_med.files import InputError
from cgdpm_med.metrics import masks as metrics
from cgdpm_med.metrics.masks import (
    VolumeScore,
    brier,
    calibration_error,
    calibration_table,
    consistency,
    dice_per_structure,
    error_uncertainty_auroc,
    expected_calibration_error,
    foreground_region,
    generalised_energy_distance,
    interval_coverage,
    mean_pairwise_dice,
    pairwise_dice,
    predicted_true_dice_correlation,
    psnr,
    score_volume,
    ssim,
    summarise,
    surface_distances,
)

LABELS = (1, 2, 3)


def random_labels(seed: int, *shape: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, 4, shape)


def random_probabilities(seed: int, *shape: int) -> NDArray[np.float64]:
    raw = np.random.default_rng(seed).gamma(0.5, size=shape)
    return raw / raw.sum(0)


# --- Dice -------------------------------------------------------------------------------------------------------------

PRED = np.array([[1, 1, 0], [0, 2, 2], [0, 0, 2]])
REF = np.array([[1, 0, 0], [1, 2, 2], [0, 0, 0]])


def test_dice_counted_by_hand() -> None:
    # label 1: 1 shared of 2 + 2; label 2: 2 shared of 3 + 2; label 3: absent from both
    assert dice_per_structure(PRED, REF) == {1: 0.5, 2: 0.8, 3: 1.0}


def test_dice_of_a_structure_in_one_mask_only_is_zero() -> None:
    empty = np.zeros_like(REF)
    assert dice_per_structure(empty, REF) == {1: 0.0, 2: 0.0, 3: 1.0}
    assert dice_per_structure(REF, empty) == {1: 0.0, 2: 0.0, 3: 1.0}


def loop_dice(p: NDArray[np.int64], r: NDArray[np.int64], label: int) -> float:
    both = in_p = in_r = 0
    for a, b in zip(p.ravel(), r.ravel(), strict=True):
        both += a == label and b == label
        in_p += a == label
        in_r += b == label
    return 1.0 if in_p + in_r == 0 else 2 * both / (in_p + in_r)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32, torch.bfloat16])
def test_dice_equals_the_loop_for_any_kind_of_array(dtype: torch.dtype) -> None:
    p, r = random_labels(0, 5, 7, 3), random_labels(1, 5, 7, 3)
    expected = {label: loop_dice(p, r, label) for label in LABELS}
    assert dice_per_structure(p, r) == expected
    assert dice_per_structure(torch.from_numpy(p).to(dtype), torch.from_numpy(r).to(dtype)) == expected


def test_unequal_shapes_are_an_error() -> None:
    with pytest.raises(InputError, match=r"\(3, 3\) and \(3, 2\)"):
        dice_per_structure(PRED, REF[:, :2])


# --- surface distances ------------------------------------------------------------------------------------------------


def loop_surface(mask: NDArray[np.bool_]) -> list[tuple[int, ...]]:
    """Voxels with a face neighbour that is outside the mask or outside the volume."""
    found = []
    for voxel in np.ndindex(mask.shape):
        neighbours = [
            tuple(int(v) + step * (axis == k) for k, v in enumerate(voxel))
            for axis in range(mask.ndim)
            for step in (-1, 1)
        ]
        inside = [
            all(0 <= v < n for v, n in zip(neighbour, mask.shape, strict=True)) and mask[neighbour]
            for neighbour in neighbours
        ]
        if mask[voxel] and not all(inside):
            found.append(voxel)
    return found


def loop_distances(p: NDArray[np.bool_], r: NDArray[np.bool_], spacing: tuple[float, ...]) -> tuple[float, float]:
    def nearest(voxel: tuple[int, ...], surface: list[tuple[int, ...]]) -> float:
        return min(
            math.sqrt(sum(((a - b) * s) ** 2 for a, b, s in zip(voxel, other, spacing, strict=True)))
            for other in surface
        )

    surface_p, surface_r = loop_surface(p), loop_surface(r)
    there = [nearest(v, surface_r) for v in surface_p]
    back = [nearest(v, surface_p) for v in surface_r]
    return max(np.percentile(there, 95), np.percentile(back, 95)), float(np.mean(there + back))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.37, 1.5, 10.0), (0.7, 1.9, 5.0)])
def test_surface_distances_equal_the_loop(spacing: tuple[float, float, float]) -> None:
    p, r = np.zeros((9, 8, 5), dtype=np.uint8), np.zeros((9, 8, 5), dtype=np.uint8)
    p[0:6, 2:7, 1:5] = 1  # touches two faces of the volume
    p[8, 0, 0] = 1  # and a stray voxel far off
    r[2:8, 1:6, 0:4] = 1
    hd95, assd = surface_distances(p, r, spacing, labels=(1,))[1]
    assert (hd95, assd) == pytest.approx(loop_distances(p == 1, r == 1, spacing), rel=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_of_one_slice_is_measured_along_contours(axis: int) -> None:
    """Two discs, 6 pixels apart: between filled regions the distances would be those of the crescents alone."""
    x, y = np.mgrid[:40, :44]
    p, r = (((x - 18) ** 2 + (y - centre) ** 2 <= 100).astype(np.uint8) for centre in (16, 22))
    flat = surface_distances(p, r, (1.5, 2.0), labels=(1,))[1]
    assert flat == pytest.approx(loop_distances(p == 1, r == 1, (1.5, 2.0)), rel=1e-6)
    spacing = tuple(np.insert(np.array([1.5, 2.0]), axis, 8.0).tolist())
    lone = surface_distances(np.expand_dims(p, axis), np.expand_dims(r, axis), spacing, labels=(1,))[1]
    assert lone == pytest.approx(flat)
    assd = surface_distances(np.stack([p, p], axis), np.stack([r, r], axis), spacing, labels=(1,))[1].assd
    assert assd is not None
    assert assd < 0.5 * loop_distances(p == 1, r == 1, (1.5, 2.0))[1]


def test_two_voxels_are_as_far_apart_as_the_spacing_says() -> None:
    p, r = np.zeros((5, 6, 4)), np.zeros((5, 6, 4))
    p[1, 1, 1] = r[2, 3, 2] = 3
    found = surface_distances(p, r, (1.5, 2.0, 10.0))
    distance = math.sqrt(1.5**2 + 4.0**2 + 10.0**2)
    assert found[3] == pytest.approx((distance, distance))
    assert found[1] == found[2] == (None, None)


def test_plane_masks_are_measured_in_two_axes() -> None:
    p, r = np.zeros((4, 9)), np.zeros((4, 9))
    p[:, 2] = r[:, 7] = 1
    assert surface_distances(p, r, (3.0, 0.5), labels=(1,))[1] == (2.5, 2.5)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 1.0, 0.0), (1.0, float("nan"), 1.0)])
def test_a_spacing_that_does_not_fit_is_an_error(spacing: tuple[float, ...]) -> None:
    mask = np.ones((2, 2, 2))
    with pytest.raises(InputError, match="does not fit a 3D mask"):
        surface_distances(mask, mask, spacing)


# --- the protocol -----------------------------------------------------------------------------------------------------


def volume(*labels: int) -> NDArray[np.int64]:
    """(len, 1, 1) label map: one voxel per number."""
    return np.array(labels)[:, None, None]


def approx(value: float) -> Any:
    """Stands in the place of a number."""
    return pytest.approx(value)


def test_score_of_a_volume_states_which_masks_hold_each_structure() -> None:
    score = score_volume(
        volume(1, 1, 0, 2, 0), volume(1, 0, 0, 0, 3), (2.0, 1.0, 1.0), key="case", phase="ED", group="RV"
    )
    assert score == VolumeScore(
        dice={1: 2 / 3, 2: 0.0, 3: 0.0},
        hd95={1: approx(1.9), 2: None, 3: None},  # distances 0 and 2 there, 0 back: percentile 95 is .95 * 2
        assd={1: approx(2 / 3), 2: None, 3: None},
        present={1: "both", 2: "prediction", 3: "reference"},
        key="case",
        phase="ED",
        group="RV",
    )
    assert score_volume(volume(0, 0), volume(0, 0), (1, 1, 1)).present == dict.fromkeys(LABELS, "neither")


@pytest.mark.parametrize(
    ("pred", "ref", "what"),
    [
        (volume(0, 4, 4), volume(0, 1, 2), "the prediction holds the value 4 in 2 voxels"),
        (volume(0, 1, 2), volume(0, 1, 255), "the reference holds the value 255 in 1 voxels"),
        (volume(0, 1) * 0.5, volume(0, 1), "the prediction holds the value 0.5 in 1 voxels"),
        (volume(0, 1), volume(0, 1) * np.nan, "the reference holds the value nan in 2 voxels"),
        (volume(0, 1), volume(0, 1, 2), "prediction and reference differ in shape"),
        (volume(0, 1)[0], volume(0, 1)[0], r"spacing \(1, 1, 1\) does not fit a 2D mask"),
    ],
)
def test_bad_masks_name_the_file(pred: NDArray[np.int64], ref: NDArray[np.int64], what: str) -> None:
    with pytest.raises(InputError, match=f"^masks/a.nii.gz: {what}"):
        score_volume(pred, ref, (1, 1, 1), path="masks/a.nii.gz")


def test_summary_worked_out_by_hand() -> None:
    scores = [
        VolumeScore({1: 0.8, 2: 0.6}, {1: 3.0, 2: 4.0}, {1: 1.0, 2: 2.0}, {1: "both", 2: "both"}, "a", "ED", "DCM"),
        VolumeScore(
            {1: 0.6, 2: 0.0}, {1: 5.0, 2: None}, {1: 2.0, 2: None}, {1: "both", 2: "reference"}, "b", "ES", "DCM"
        ),
        VolumeScore(
            {1: 1.0, 2: 0.0}, {1: None, 2: None}, {1: None, 2: None}, {1: "neither", 2: "prediction"}, "c", "ES", "RV"
        ),
    ]
    summary = summarise(scores, names={1: "RV", 2: "Myo"})
    assert summary["volumes"] == 3
    assert summary["structures"] == {
        "RV": {
            "dice": pytest.approx(0.8),
            "dice_std": pytest.approx(math.sqrt(0.08 / 3)),
            "hd95": 4.0,
            "assd": 1.5,
            "missed": 0,
            "invented": 0,
            "both_empty": 1,
            "distances_missing": 1,
        },
        "Myo": {
            "dice": pytest.approx(0.2),
            "dice_std": pytest.approx(math.sqrt(0.08)),
            "hd95": 4.0,
            "assd": 2.0,
            "missed": 1,
            "invented": 1,
            "both_empty": 0,
            "distances_missing": 2,
        },
    }
    assert summary["average"] == {"dice": pytest.approx(0.5), "hd95": 4.0, "assd": 1.75}
    by_phase, by_group = summary["by_phase"], summary["by_group"]
    assert isinstance(by_phase, dict)
    assert isinstance(by_group, dict)
    assert {name: part["volumes"] for name, part in by_phase.items()} == {"ED": 1, "ES": 2}
    assert by_phase["ES"]["structures"]["Myo"]["dice"] == 0.0
    assert by_phase["ES"]["average"] == {"dice": pytest.approx(0.4), "hd95": None, "assd": None}
    assert {name: part["average"]["dice"] for name, part in by_group.items()} == pytest.approx({"DCM": 0.5, "RV": 0.5})


def test_nothing_to_summarise_is_an_error() -> None:
    with pytest.raises(InputError, match="no volumes"):
        summarise([])


# --- ensembles of masks -----------------------------------------------------------------------------------------------


def loop_overlap(a: NDArray[np.int64], b: NDArray[np.int64], kind: str) -> float:
    values = []
    for label in LABELS:
        both = sum(x == label and y == label for x, y in zip(a.ravel(), b.ravel(), strict=True))
        either = sum(x == label or y == label for x, y in zip(a.ravel(), b.ravel(), strict=True))
        if kind == "iou":
            values.append(both / either if either else 1.0)
        else:
            values.append(2 * both / (either + both) if either else 1.0)
    return float(np.mean(values))


def loop_ged(members: NDArray[np.int64], refs: NDArray[np.int64], kind: str) -> float:
    def expectation(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
        return float(np.mean([1 - loop_overlap(a, b, kind) for a, b in itertools.product(first, second)]))

    return 2 * expectation(members, refs) - expectation(members, members) - expectation(refs, refs)


@pytest.mark.parametrize("kind", ["iou", "dice"])
def test_ged_equals_the_loop(kind: metrics.Overlap) -> None:
    members, refs = random_labels(2, 4, 3, 5, 2), random_labels(3, 2, 3, 5, 2)
    members[:, :, :, 0] = np.where(members[:, :, :, 0] == 3, 0, members[:, :, :, 0])
    assert generalised_energy_distance(members, refs, overlap=kind) == pytest.approx(loop_ged(members, refs, kind))
    assert generalised_energy_distance(members, refs[0], overlap=kind) == pytest.approx(
        loop_ged(members, refs[:1], kind)
    )


def test_ged_by_hand() -> None:
    # members {1} and {1, 2} of two voxels, reference {1}: IoU 1 and 1/2, so 2 * 1/4 - 1/4 - 0
    members, ref = np.array([[1, 0], [1, 1]]), np.array([1, 0])
    assert generalised_energy_distance(members, ref, labels=(1,)) == pytest.approx(0.25)
    # with Dice: 1 and 2/3, so 2 * 1/6 - 1/6
    assert generalised_energy_distance(members, ref, labels=(1,), overlap="dice") == pytest.approx(1 / 6)


def test_ged_of_equal_sets_is_zero_and_of_disjoint_sure_masks_two() -> None:
    members = random_labels(4, 3, 6, 4)
    assert generalised_energy_distance(members, members[::-1]) == pytest.approx(0.0, abs=1e-12)
    ones, twos = np.ones((2, 3, 3)), np.full((2, 3, 3), 2)
    assert generalised_energy_distance(ones, twos, labels=(1, 2)) == pytest.approx(2.0)


def test_pairwise_dice_equals_the_loop_and_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    members = random_labels(5, 4, 7, 5, 3)
    expected = {
        label: np.mean([loop_dice(a, b, label) for a, b in itertools.combinations(members, 2)]) for label in LABELS
    }
    whole = pairwise_dice(members)
    assert whole == pytest.approx(expected)
    assert mean_pairwise_dice(members) == pytest.approx(np.mean(list(expected.values())))
    monkeypatch.setattr(metrics, "VOXELS_PER_CHUNK", 11)
    assert pairwise_dice(torch.from_numpy(members)) == whole


def test_one_member_has_no_agreement() -> None:
    with pytest.raises(InputError, match="at least two members"):
        mean_pairwise_dice(np.zeros((1, 3, 3)))


def test_predicted_true_correlation() -> None:
    # ranks agree wholly, a line does not: Pearson of (1, 2, 3) and (1, 4, 9) is 8 / sqrt(2 * 98 / 3)
    found = predicted_true_dice_correlation([0.1, 0.2, 0.3], [0.01, 0.04, 0.09])
    assert found == pytest.approx({"pearson": 8 / math.sqrt(2 * 98 / 3), "spearman": 1.0})
    nothing = {"pearson": None, "spearman": None}
    assert predicted_true_dice_correlation([0.1, 0.2], [0.1, 0.2]) == nothing
    assert predicted_true_dice_correlation([0.5, 0.5, 0.5], [0.1, 0.2, 0.3]) == nothing


def test_interval_coverage_counts_the_ends_as_inside() -> None:
    assert interval_coverage([0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1.01, -0.01]) == 0.5
    with pytest.raises(InputError, match="empty or reversed"):
        interval_coverage([1.0], [0.0], [0.5])
    with pytest.raises(InputError, match="empty or reversed"):
        interval_coverage([], [], [])


# --- calibration and uncertainty --------------------------------------------------------------------------------------


def loop_ece(p: NDArray[np.float64], ref: NDArray[np.int64], bins: int, region: NDArray[np.bool_]) -> float:
    members: dict[int, list[tuple[float, bool]]] = {}
    for voxel in np.ndindex(ref.shape):
        if not region[voxel]:
            continue
        column = [p[(c, *voxel)] for c in range(len(p))]
        confidence = max(column)
        index = next(b for b in range(bins) if confidence <= (b + 1) / bins or b == bins - 1)
        members.setdefault(index, []).append((confidence, column.index(confidence) == ref[voxel]))
    total = sum(map(len, members.values()))
    return sum(
        len(found) / total * abs(float(np.mean([right for _, right in found]) - np.mean([c for c, _ in found])))
        for found in members.values()
    )


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_ece_equals_the_loop(bins: int) -> None:
    p, ref = random_probabilities(6, 4, 6, 5, 3), random_labels(7, 6, 5, 3)
    everywhere = np.ones(ref.shape, dtype=bool)
    part = np.random.default_rng(8).random(ref.shape) < 0.4
    assert expected_calibration_error(p, ref, bins) == pytest.approx(loop_ece(p, ref, bins, everywhere))
    assert expected_calibration_error(p, ref, bins, part) == pytest.approx(loop_ece(p, ref, bins, part))
    found = expected_calibration_error(torch.from_numpy(p), torch.from_numpy(ref), bins, torch.from_numpy(part))
    assert found == pytest.approx(loop_ece(p, ref, bins, part))


def test_ece_by_hand() -> None:
    # confidences .8, .8 (one right: gap .3) and .6 (wrong: gap .6): 2/3 * .3 + 1/3 * .6
    p = np.array([[0.8, 0.2, 0.4], [0.2, 0.8, 0.6]])
    assert expected_calibration_error(p, np.array([0, 0, 0]), bins=10) == pytest.approx(0.4)


def test_calibration_tables_of_volumes_add_up() -> None:
    p, ref = random_probabilities(9, 4, 8, 6), random_labels(10, 8, 6)
    table = calibration_table(p[:, :3], ref[:3]) + calibration_table(p[:, 3:], ref[3:])
    assert calibration_error(table) == pytest.approx(expected_calibration_error(p, ref))
    assert table[:, 0].sum() == ref.size


def test_background_hides_miscalibration_outside_the_foreground_region() -> None:
    ref = np.zeros((40, 40), dtype=int)
    ref[18:22, 18:22] = 1
    p = np.stack([np.ones((40, 40)), np.zeros((40, 40))])  # surely background, so wrong on 16 voxels
    assert expected_calibration_error(p, ref) == pytest.approx(16 / 1600)
    assert expected_calibration_error(p, ref, region=foreground_region(ref, margin=2)) == pytest.approx(16 / 64)


def test_foreground_region_is_a_grown_box_inside_the_volume() -> None:
    ref = np.zeros((7, 9, 4))
    ref[1, 4, 2] = ref[3, 5, 2] = 2
    expected = np.zeros(ref.shape, dtype=bool)
    expected[0:6, 2:8, 2:3] = True
    np.testing.assert_array_equal(foreground_region(ref, margin=(2, 2, 0)), expected)
    assert foreground_region(np.zeros((3, 2))).all()


def test_brier_equals_the_loop_and_its_extremes() -> None:
    p, ref = random_probabilities(11, 4, 5, 6), random_labels(12, 5, 6)
    part = np.random.default_rng(13).random(ref.shape) < 0.5
    values = [sum((p[(c, *v)] - (ref[v] == c)) ** 2 for c in range(4)) for v in np.ndindex(ref.shape) if part[v]]
    assert brier(p, ref, part) == pytest.approx(np.mean(values))
    sure = np.stack([np.ones(3), np.zeros(3)])
    assert brier(sure, np.zeros(3)) == 0.0
    assert brier(sure, np.ones(3)) == 2.0
    assert brier(np.full((2, 3), 0.5), np.ones(3)) == 0.5


@pytest.mark.parametrize("ref", [np.array([0, 1, 2]), np.array([0, -1, 1])])
def test_labels_without_a_channel_are_an_error(ref: NDArray[np.int64]) -> None:
    with pytest.raises(InputError, match="labels outside 0 to 1"):
        brier(np.full((2, 3), 0.5), ref)


def test_an_empty_region_is_an_error() -> None:
    with pytest.raises(InputError, match="no voxels"):
        expected_calibration_error(np.full((2, 3), 0.5), np.zeros(3), region=np.zeros(3, dtype=bool))


def test_auroc_equals_the_loop_over_pairs() -> None:
    rng = np.random.default_rng(14)
    doubt, wrong = rng.integers(0, 5, (6, 7)), rng.random((6, 7)) < 0.3  # few values, so many ties
    pairs = [(w > r) + 0.5 * (w == r) for w in doubt[wrong] for r in doubt[~wrong]]
    assert error_uncertainty_auroc(doubt, wrong) == pytest.approx(np.mean(pairs))
    region = np.zeros((6, 7), dtype=bool)
    region[1:5, 2:6] = True
    inside = [(w > r) + 0.5 * (w == r) for w in doubt[wrong & region] for r in doubt[~wrong & region]]
    assert error_uncertainty_auroc(doubt, wrong, region) == pytest.approx(np.mean(inside))


def test_auroc_extremes() -> None:
    wrong = np.array([True, False, False])
    assert error_uncertainty_auroc([3, 1, 2], wrong) == 1.0  # type: ignore[arg-type]
    assert error_uncertainty_auroc(torch.tensor([0.0, 1.0, 2.0]), wrong) == 0.0
    assert error_uncertainty_auroc(np.zeros(3), wrong) == 0.5
    assert error_uncertainty_auroc(np.zeros(3), np.zeros(3)) is None
    assert error_uncertainty_auroc(np.zeros(3), np.ones(3)) is None


# --- super-resolved images --------------------------------------------------------------------------------------------


def test_psnr_is_the_mean_over_images() -> None:
    ref = np.full((2, 3, 4, 5), 0.5)
    pred = ref.copy()
    pred[0] += 0.1
    pred[1] += 0.01
    assert psnr(pred, ref) == pytest.approx((20 + 40) / 2)
    assert psnr(ref, ref) == math.inf


def loop_ssim(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for i, j in np.ndindex(x.shape[0] - 10, x.shape[1] - 10):
        a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
        mean_a, mean_b = (window * a).sum(), (window * b).sum()
        var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
        cov = (window * (a - mean_a) * (b - mean_b)).sum()
        luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
        values.append(luminance * (2 * cov + 9e-4) / (var_a + var_b + 9e-4))
    return float(np.mean(values))


def test_ssim_equals_the_loop() -> None:
    rng = np.random.default_rng(15)
    ref = rng.random((2, 3, 14, 13))
    pred = np.clip(ref + 0.2 * rng.standard_normal(ref.shape), 0, 1)
    expected = np.mean([loop_ssim(pred[b, c], ref[b, c]) for b, c in np.ndindex(2, 3)])
    assert ssim(pred, ref) == pytest.approx(expected, abs=1e-5)
    assert ssim(ref, ref) == pytest.approx(1.0, abs=1e-6)


def test_consistency_is_in_units_of_1e_5() -> None:
    low = torch.full((1, 3, 4, 4), 0.5)
    assert consistency(low, low + 0.01) == pytest.approx(10.0, rel=1e-4)
    assert consistency(low, low) == 0.0


@pytest.mark.parametrize("measure", [psnr, ssim, consistency])
def test_images_outside_the_unit_range_or_without_a_batch_are_an_error(measure) -> None:  # type: ignore[no-untyped-def]
    image = np.full((1, 3, 12, 12), 0.5)
    with pytest.raises(InputError, match=r"leave \[0, 1\]"):
        measure(image * 2 - 1.5, image)
    with pytest.raises(InputError, match=r"leave \[0, 1\]"):
        measure(image * np.nan, image)
    with pytest.raises(InputError, match=r"\(3, 12, 12\)"):
        measure(image[0], image[0])


def test_ssim_needs_room_for_its_window() -> None:
    small = np.zeros((1, 1, 10, 20))
    with pytest.raises(InputError, match="smaller than the 11 x 11 window"):
        ssim(small, small)
