"""The phantom against its closed forms, its own labels, and ACDC's layout and header."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import shared_path
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage

from cgdpm_med.data.acdc import ACDC_GROUPS, acdc_patients, read_info
from cgdpm_med.phantom import (
    GROUPS,
    Phantom,
    PhantomSpec,
    make_phantom,
    write_phantom_dataset,
    write_phantom_patient,
)
from cgdpm_med.phantom.anatomy import contours_at, draw_heart, labels_of, pose_at
from cgdpm_med.phantom.painting import Canvas

RV, MYO, LV = 1, 2, 3
THIN = PhantomSpec(seed=3, shape=(84, 80, 120), spacing=(2.0, 2.0, 0.9))
"""Slices thin enough for voxel counts to meet the integrals; only its labels are drawn."""


@pytest.fixture(scope="module")
def study() -> Phantom:
    """A normal heart on ACDC's usual grid."""
    return make_phantom(PhantomSpec(seed=4))


def counted(labels: np.ndarray, label: int, spacing: tuple[float, float, float]) -> float:
    """Volume in ml, voxel by voxel."""
    return sum(1 for value in labels.ravel().tolist() if value == label) * spacing[0] * spacing[1] * spacing[2] / 1000


def file_hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --- volumes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", GROUPS)
def test_truth_is_what_the_labels_measure(group: str) -> None:
    phantom = make_phantom(PhantomSpec.small(seed=1, group=group))
    spacing = phantom.spec.spacing
    edv, esv = (counted(phantom.labels[f], LV, spacing) for f in (phantom.ed_frame, phantom.es_frame))
    rv_edv, rv_esv = (counted(phantom.labels[f], RV, spacing) for f in (phantom.ed_frame, phantom.es_frame))
    truth = phantom.truth
    assert truth.spacing_mm == spacing
    assert_allclose([truth.edv_ml, truth.esv_ml, truth.rv_edv_ml, truth.rv_esv_ml], [edv, esv, rv_edv, rv_esv])
    assert truth.ef_percent == pytest.approx(100 * (edv - esv) / edv)
    assert truth.rv_ef_percent == pytest.approx(100 * (rv_edv - rv_esv) / rv_edv)
    assert truth.myo_mass_g == pytest.approx(1.05 * counted(phantom.labels[phantom.ed_frame], MYO, spacing))


@pytest.mark.parametrize("contraction", [0.0, 0.4, 1.0])
def test_voxel_counts_approach_the_closed_form_volumes(contraction: float) -> None:
    canvas, heart = Canvas.of(THIN), replace(draw_heart(THIN), outflow=0.0)
    pose = pose_at(heart, contraction)
    labels = np.stack([labels_of(contours_at(heart, pose, canvas.x, canvas.y, z)) for z in canvas.z], -1)
    voxel = np.prod(THIN.spacing)
    lv, rv = (pair[0] + contraction * (pair[1] - pair[0]) for pair in (heart.lv_volume, heart.rv_volume))
    # the base is a flat face that falls between two slices: half a slice of its area is the error of the count
    face = np.pi * pose.lv_radius**2 * THIN.spacing[2] / 2
    assert np.sum(labels == LV) * voxel == pytest.approx(lv, abs=face + 0.003 * lv)
    shell = np.pi * ((pose.lv_radius + pose.wall) ** 2 - pose.lv_radius**2) * THIN.spacing[2] / 2
    assert np.sum(labels == MYO) * voxel == pytest.approx(heart.myocardium, abs=shell + 0.01 * heart.myocardium)
    assert np.sum(labels == RV) * voxel == pytest.approx(rv, rel=0.04)  # its integral takes the mean radius of the wall


@pytest.mark.parametrize("contraction", [0.0, 1.0])
def test_a_round_ventricle_is_the_half_ellipsoid(contraction: float) -> None:
    spec = PhantomSpec.small(seed=2)
    drawn = draw_heart(spec)
    round_ = np.ones_like(drawn.outline)
    heart = replace(drawn, outline=round_, thickness=round_, drift=(0.0, 0.0), outflow=0.0)
    pose, canvas = pose_at(heart, contraction), Canvas.of(spec)
    expected = np.zeros(spec.shape, int)
    for i, j, k in product(*map(range, spec.shape)):
        dx = (i - 31.5) * 2.8 - heart.centre[0]
        dy = (j - 27.5) * 2.8 - heart.centre[1]
        depth = (k + 0.5) * 22.0 - (heart.apex - pose.lv_length)
        if depth < 0:
            continue
        if (dx**2 + dy**2) / pose.lv_radius**2 + (depth / pose.lv_length) ** 2 < 1:
            expected[i, j, k] = LV
        elif (dx**2 + dy**2) / (pose.lv_radius + pose.wall) ** 2 + (
            depth / (pose.lv_length + 0.7 * pose.wall)
        ) ** 2 < 1:
            expected[i, j, k] = MYO
    drawn_labels = np.stack([labels_of(contours_at(heart, pose, canvas.x, canvas.y, z)) for z in canvas.z], -1)
    assert_array_equal(np.where(drawn_labels == RV, 0, drawn_labels), expected)
    assert {LV, MYO} < set(np.unique(expected))


def test_groups_differ_as_their_names_say() -> None:
    assert GROUPS == ACDC_GROUPS
    truth = {group: make_phantom(PhantomSpec.small(seed=5, group=group)).truth for group in GROUPS}
    assert truth["DCM"].target_edv_ml > 1.5 * truth["NOR"].target_edv_ml
    assert truth["DCM"].ef_percent < truth["MINF"].ef_percent < 45 < truth["NOR"].ef_percent
    assert truth["HCM"].myo_mass_g > 1.3 * truth["NOR"].myo_mass_g
    assert truth["RV"].rv_edv_ml > 1.2 * truth["RV"].edv_ml


# --- labels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "seed"), [(group, seed) for group in GROUPS for seed in (0, 1)])
def test_topology_in_every_slice(group: str, seed: int) -> None:
    spec = PhantomSpec(seed=seed, group=group)
    canvas, heart = Canvas.of(spec), draw_heart(spec)
    for contraction in (0.0, 1.0):
        pose = pose_at(heart, contraction)
        for z in canvas.z:
            section = labels_of(contours_at(heart, pose, canvas.x, canvas.y, z))
            cavity, wall, right = section == LV, section == MYO, section == RV
            assert max(ndimage.label(mask)[1] for mask in (cavity, right)) <= 1
            if right.any():
                assert (ndimage.binary_dilation(right) & wall).any()
            if cavity.any() and (z - pose.base >= 8.0 or heart.outflow == 0):
                assert ndimage.label(wall)[1] == 1
                assert_array_equal(ndimage.binary_fill_holes(wall), wall | cavity)
                assert not (ndimage.binary_dilation(cavity) & ~(cavity | wall)).any()


def test_an_outflow_tract_opens_the_basal_myocardium() -> None:
    spec = PhantomSpec(seed=0)
    heart, canvas = replace(draw_heart(spec), outflow=0.4), Canvas.of(spec)
    pose = pose_at(heart, 0.0)
    near, further = (
        labels_of(contours_at(heart, pose, canvas.x, canvas.y, pose.base + depth)) == MYO for depth in (4.0, 12.0)
    )
    assert not ndimage.binary_fill_holes(near).sum() > near.sum()  # open: it encloses nothing
    assert ndimage.binary_fill_holes(further).sum() > further.sum()


def test_slices_from_base_to_apex(study: Phantom) -> None:
    ed, es = study.labels[study.ed_frame], study.labels[study.es_frame]
    slices = {label: np.flatnonzero((ed == label).any((0, 1))) for label in (RV, MYO, LV)}
    assert len(slices[MYO]) > len(slices[LV]) >= 7
    assert slices[MYO][-1] > slices[LV][-1] > slices[LV][0]  # the apex is wall alone
    assert (es == RV).any((0, 1)).sum() < len(slices[RV])
    areas = (ed == LV).sum((0, 1))[slices[LV]]
    assert (np.diff(areas) < 0).all()


def test_the_right_ventricle_lies_to_the_left_and_the_heart_off_centre() -> None:
    for seed in range(8):
        labels = make_phantom(PhantomSpec.small(seed=seed)).labels[1]
        rv, lv = (np.argwhere(labels == label).mean(0) for label in (RV, LV))
        assert rv[0] < lv[0] - 5  # voxels of 2.8 mm
        heart = (np.argwhere(labels > 0).mean(0)[:2] + 0.5) / labels.shape[:2]
        assert 0.01 < np.abs(heart - 0.5).max() < 0.3


# --- image ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_contrast_lies_in_the_range_of_real_scans() -> None:
    """Means over the 100 ACDC training patients at end-diastole: RV .84 (sd .1), myocardium .44 (sd .1) of LV blood."""
    for group, seed in (("NOR", 0), ("DCM", 1), ("HCM", 2)):
        phantom = make_phantom(PhantomSpec(seed=seed, group=group))
        image, labels = phantom.images[1], phantom.labels[1]
        blood = image[labels == LV].mean()
        assert image[labels == RV].mean() / blood == pytest.approx(0.84, abs=0.12)
        assert image[labels == MYO].mean() / blood == pytest.approx(0.44, abs=0.08)
        assert 1.2 < np.percentile(image, 98) / blood < 2.2  # fat
        assert np.percentile(image, 10) / blood < 0.15  # air and lung


def test_papillary_muscles_are_dark_and_belong_to_the_ventricle(study: Phantom) -> None:
    for frame in (study.ed_frame, study.es_frame):
        image, labels, papillary = study.images[frame], study.labels[frame], study.papillaries[frame]
        assert papillary.sum() > 30
        assert (labels[papillary] == LV).all()
        blood = ndimage.binary_erosion((labels == LV) & ~papillary, np.ones((3, 3, 1)))
        assert image[papillary].mean() < 0.65 * image[blood].mean()


def test_noise_is_a_ratio_to_the_blood_signal() -> None:
    clean, noisy = (make_phantom(PhantomSpec.small(seed=6, noise=noise)) for noise in (0.0, 0.04))
    blood = ndimage.binary_erosion(clean.labels[1] == LV, np.ones((3, 3, 1)))
    change = (noisy.images[1].astype(float) - clean.images[1])[blood]
    assert change.std() / clean.images[1][blood].mean() == pytest.approx(0.04, rel=0.2)  # some 400 voxels
    air = np.zeros(blood.shape, bool)
    air[:2, :2] = True  # below the noise, Rician noise raises the mean
    assert noisy.images[1][air].mean() >= clean.images[1][air].mean()


def test_shading_can_be_switched_off() -> None:
    shaded, flat = (make_phantom(PhantomSpec.small(seed=7, noise=0.0, bias=bias)).images[1] for bias in (1.0, 0.0))
    ratio = shaded[flat > 60] / flat[flat > 60].astype(float)
    x = np.nonzero(flat > 60)[0]
    assert ratio[x < 16].mean() > 1.03
    assert ratio[x > 48].mean() < 0.97


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_patient(tmp_path_factory.mktemp("acdc"), 7, PhantomSpec.small(group="MINF"), cine=True)


def test_layout(patient: Path) -> None:
    assert {path.name for path in patient.iterdir()} == {
        "Info.cfg",
        "patient007_4d.nii.gz",
        "patient007_frame01.nii.gz",
        "patient007_frame01_gt.nii.gz",
        "patient007_frame03.nii.gz",
        "patient007_frame03_gt.nii.gz",
    }
    info = read_info(patient / "Info.cfg")
    assert list(info) == ["ED", "ES", "Group", "Height", "NbFrame", "Weight"]
    assert (info["ED"], info["ES"], info["Group"], info["NbFrame"]) == ("1", "3", "MINF", "6")
    (read,) = acdc_patients(patient.parent)
    assert (read.patient, read.ed, read.es, read.group, read.frames) == ("patient007", 1, 3, "MINF", 6)


def test_files_hold_the_phantom(patient: Path) -> None:
    phantom = make_phantom(PhantomSpec.small(group="MINF"), cine=True)
    cine = nib.load(patient / "patient007_4d.nii.gz")
    assert cine.shape == (64, 56, 4, 6)
    assert_allclose(cine.header["pixdim"][1:4], (2.8, 2.8, 22.0))
    for frame in (1, 3):
        image = np.asarray(nib.load(patient / f"patient007_frame{frame:02d}.nii.gz").dataobj)
        labels = np.asarray(nib.load(patient / f"patient007_frame{frame:02d}_gt.nii.gz").dataobj)
        assert image.dtype == np.int16
        assert labels.dtype == np.uint8
        assert_array_equal(image, phantom.images[frame])
        assert_array_equal(image, np.asarray(cine.dataobj)[..., frame - 1])
        assert_array_equal(labels, phantom.labels[frame])


def test_cavity_shrinks_until_end_systole_and_refills() -> None:
    phantom = make_phantom(PhantomSpec.small(seed=8, num_frames=10), cine=True)
    cavity = [int((phantom.labels[frame] == LV).sum()) for frame in range(1, 11)]
    assert int(np.argmin(cavity)) + 1 == phantom.es_frame == 5
    assert cavity[0] > cavity[2] > cavity[4] < cavity[6] < cavity[9] <= cavity[0]


ACDC_HEADER = {
    "qform_code": 0,
    "sform_code": 2,
    "srow_x": (-1, 0, 0, 0),
    "srow_y": (0, -1, 0, 0),
    "srow_z": (0, 0, 1, 0),
    "quatern_b": 0,
    "quatern_c": 0,
    "quatern_d": 1,
    "xyzt_units": 0,
}


def test_header_is_that_of_acdc(patient: Path) -> None:
    for name in ("patient007_frame01", "patient007_frame01_gt"):
        header = nib.load(patient / f"{name}.nii.gz").header
        assert_allclose(header["pixdim"], (1, 2.8, 2.8, 22, 1, 1, 1, 1))
        for field, value in ACDC_HEADER.items():
            assert_array_equal(header[field], value, err_msg=field)


def test_expected_header_is_found_in_real_files() -> None:
    folder = shared_path("data", "acdc", "training", "patient001")
    header = nib.load(folder / "patient001_frame01.nii.gz").header
    for field, value in ACDC_HEADER.items():
        assert_array_equal(header[field], value, err_msg=field)
    assert header["pixdim"][0] == 1
    assert list(read_info(folder / "Info.cfg")) == ["ED", "ES", "Group", "Height", "NbFrame", "Weight"]


@pytest.mark.parametrize("kind", ["oblique", "plain"])
def test_true_affines(tmp_path: Path, kind: str) -> None:
    spec = PhantomSpec.small(seed=9, affine=kind)
    image = nib.load(write_phantom_patient(tmp_path, 1, spec) / "patient001_frame01.nii.gz")
    affine, header = image.affine, image.header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    assert_allclose(header.get_sform(), affine, atol=1e-4)
    assert_allclose(header.get_qform(), affine, atol=1e-4)
    assert_allclose(header.get_zooms(), spec.spacing, rtol=1e-6)
    directions = affine[:3, :3] / spec.spacing
    assert_allclose(directions.T @ directions, np.eye(3), atol=1e-5)
    assert np.linalg.det(directions) == pytest.approx(1.0, abs=1e-5)
    assert_allclose(affine @ (31.5, 27.5, 1.5, 1), (0, 0, 0, 1), atol=1e-4)
    off_axis = np.abs(directions - np.diag(np.diag(directions))).max(0)
    assert (off_axis > 0.15).all() if kind == "oblique" else (off_axis == 0).all()


def test_affine_changes_no_voxel() -> None:
    phantoms = [make_phantom(PhantomSpec.small(seed=9, affine=kind)) for kind in ("acdc", "oblique", "plain")]
    for other in phantoms[1:]:
        assert_array_equal(other.images[1], phantoms[0].images[1])


# --- randomness ----------------------------------------------------------------------------------------------------


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    spec = PhantomSpec.small(seed=10, affine="oblique")
    first, again, other = (
        file_hashes(write_phantom_patient(tmp_path / name, 1, replace(spec, seed=seed)))
        for name, seed in (("first", 10), ("again", 10), ("other", 11))
    )
    assert first == again
    assert all(first[name] != other[name] for name in first if "Info" not in name)


def test_a_dataset_patient_depends_on_its_number_alone(tmp_path: Path) -> None:
    small: dict[str, Any] = {"shape": (64, 56, 4), "spacing": (2.8, 2.8, 22.0), "num_frames": 6}
    folders = write_phantom_dataset(tmp_path / "three", 3, seed=1, **small)
    assert [folder.name for folder in folders] == ["patient901", "patient902", "patient903"]
    (alone,) = write_phantom_dataset(tmp_path / "one", [902], seed=1, **small)
    assert file_hashes(alone) == file_hashes(folders[1])
    assert [read_info(folder / "Info.cfg")["Group"] for folder in folders] == list(GROUPS[:3])


def test_key_frames_do_not_depend_on_the_cine() -> None:
    still, moving = (make_phantom(PhantomSpec.small(seed=12), cine=cine) for cine in (False, True))
    assert list(still.images) == [1, 3]
    for frame in still.images:
        assert_array_equal(still.images[frame], moving.images[frame])


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group": "ABC"}, "'ABC'.*NOR"),
        ({"affine": "tilted"}, "'tilted'.*oblique"),
        ({"seed": -1}, "seed"),
        ({"shape": (64, 56)}, "three axes"),
        ({"shape": (64, 1, 4)}, "three axes"),
        ({"spacing": (2.8, float("nan"), 22.0)}, "spacing"),
        ({"spacing": (2.8, 2.8, 10.0)}, "40 mm cannot hold"),
        ({"num_frames": 2}, "num_frames=2"),
        ({"noise": -0.1}, "noise"),
        ({"bias": float("nan")}, "bias"),
    ],
)
def test_impossible_specifications(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PhantomSpec.small(**changes)


@pytest.mark.parametrize("number", [0, 1000])
def test_impossible_patient_number(tmp_path: Path, number: int) -> None:
    with pytest.raises(ValueError, match=str(number)):
        write_phantom_patient(tmp_path, number, PhantomSpec.small())
    assert list(tmp_path.iterdir()) == []
