"""Reading NIfTI: true geometry, voxels of every type, labels."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pytest
from conftest import shared_path
from nifti_files import (
    ACDC_SFORM,
    CHANGED,
    LABELS,
    OBLIQUE,
    RAMP,
    at,
    fields_that_differ,
    nifti,
    only_error,
    raw_header,
    save,
)

from cgdpm_med.volumes import (
    HeaderWarning,
    frames,
    read_labels,
    read_volume,
    write_on_grid,
)

pytestmark = pytest.mark.usefixtures("quiet_headers")


# --- geometry --------------------------------------------------------------------------------------------------------


def test_unit_sform_yields_to_pixdim(tmp_path: Path) -> None:
    path = save(tmp_path / "acdc.nii.gz", nifti(sform=ACDC_SFORM, sform_code=2, pixdim=(1.5625, 1.25, 10.0)))
    with pytest.warns(HeaderWarning, match=r"pixdim says 1.5625 x 1.25 x 10 mm, the affine 1 x 1 x 1 mm: pixdim is"):
        volume = read_volume(path)
    np.testing.assert_array_equal(volume.grid.affine, np.diag([-1.5625, -1.25, 10.0, 1.0]))
    np.testing.assert_array_equal(volume.grid.header_affine, ACDC_SFORM)
    assert volume.grid.spacing == (1.5625, 1.25, 10.0)
    assert volume.grid.voxel_volume == pytest.approx(1.5625 * 1.25 * 10)


def test_a_conflict_is_warned_of_once_per_kind_and_noted_for_every_file(tmp_path: Path) -> None:
    pixdim_wins = nifti(sform=ACDC_SFORM, pixdim=(1.5, 1.5, 10.0))
    affine_wins = nifti(sform=OBLIQUE, pixdim=(1.0, 1.0, 1.0))
    files = [pixdim_wins, pixdim_wins, affine_wins, affine_wins]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        volumes = [read_volume(save(tmp_path / f"{i}.nii", content)) for i, content in enumerate(files)]
    assert [("pixdim is taken" in str(w.message), w.filename) for w in caught] == [(True, __file__), (False, __file__)]
    assert all(volume.grid.note for volume in volumes)


@pytest.mark.parametrize(
    ("pixdim", "sform_size", "spacing", "expected"),
    [
        # agreement within 1 %
        ((1.25, 1.4, 8.0), (1.25, 1.4, 8.0), "auto", (1.25, 1.4, 8.0)),
        ((1.25, 1.4, 8.0), (1.255, 1.395, 8.04), "auto", (1.25, 1.4, 8.0)),
        # pixdim wins beside a unit sform
        ((1.25, 1.4, 8.0), (1.0, 1.0, 1.0), "auto", (1.25, 1.4, 8.0)),
        ((1.0, 1.0, 8.0), (1.0, 1.0, 1.0), "auto", (1.0, 1.0, 8.0)),
        # a full affine wins: over the thickness, over another opinion, over a pixdim never filled in
        ((1.25, 1.4, 6.0), (1.25, 1.4, 8.0), "auto", (1.25, 1.4, 8.0)),
        ((1.5, 1.5, 7.0), (1.25, 1.4, 8.0), "auto", (1.25, 1.4, 8.0)),
        ((1.25, 1.4, 1.0), (1.25, 1.4, 8.0), "auto", (1.25, 1.4, 8.0)),
        ((1.0, 1.4, 8.0), (1.25, 1.4, 8.0), "auto", (1.25, 1.4, 8.0)),
        ((1.25, 1.4, 0.0), (1.25, 1.4, 8.0), "auto", (1.25, 1.4, 8.0)),
        ((0.125, 0.14, 0.8), (1.25, 1.4, 8.0), "auto", (1.25, 1.4, 8.0)),
        ((0.0, np.nan, 0.0), (1.0, 1.0, 8.0), "auto", (1.0, 1.0, 8.0)),
        ((1.0, 1.0, 1.0), (1.25, 1.4, 8.0), "auto", (1.25, 1.4, 8.0)),
        ((0.0, 0.0, 0.0), (1.25, 1.4, 8.0), "auto", (1.25, 1.4, 8.0)),
        ((1.25, np.nan, 8.0), (1.25, 1.4, 8.0), "auto", (1.25, 1.4, 8.0)),
        ((-1.0, 1.0, 3.0), (1.25, 1.4, 8.0), "auto", (1.25, 1.4, 8.0)),
        # signs alone are no conflict, and a unit affine is no better than they are
        ((-1.25, 1.4, -8.0), (1.25, 1.4, 8.0), "auto", (1.25, 1.4, 8.0)),
        ((-1.25, 1.4, 8.0), (1.0, 1.0, 1.0), "auto", (1.25, 1.4, 8.0)),
        # by hand
        ((1.25, 1.4, 8.0), (1.0, 1.0, 1.0), "affine", (1.0, 1.0, 1.0)),
        ((1.0, 1.0, 1.0), (1.25, 1.4, 8.0), "pixdim", (1.0, 1.0, 1.0)),
        ((1.0, 1.0, 1.0), (1.25, 1.4, 8.0), (2.0, 3.0, 4.0), (2.0, 3.0, 4.0)),
    ],
)
def test_spacing_rule(tmp_path: Path, pixdim: Any, sform_size: Any, spacing: Any, expected: Any) -> None:
    directions = OBLIQUE[:3, :3] / (1.25, 1.4, 8.0)
    sform = np.eye(4)
    sform[:3, :3], sform[:3, 3] = directions * sform_size, (7, -8, 9)
    volume = read_volume(save(tmp_path / "v.nii", nifti(sform=sform, pixdim=pixdim)), spacing=spacing)
    assert volume.grid.spacing == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(volume.grid.affine[:3, :3], directions * expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(volume.grid.affine[:3, 3], (7, -8, 9))


def test_oblique_qform_is_where_its_angles_put_it(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_qform(OBLIQUE, code=1)
    qform = {name: header[name] for name in header if name.startswith(("qoffset", "quatern"))}
    content = nifti(pixdim=tuple(header["pixdim"][1:4]), qform_code=1, **qform)
    for qfac in (float(header["pixdim"][0]), 0.0):  # 0 stands for 1
        edited = nib.Nifti1Header(content[:348], check=False)
        edited["pixdim"][0] = qfac
        got = read_volume(save(tmp_path / "q.nii", edited.binaryblock + content[348:])).grid
        sign = np.diag([1, 1, 1 if qfac else header["pixdim"][0], 1])
        np.testing.assert_allclose(got.affine, OBLIQUE @ sign, atol=1e-5)
        assert got.spacing == pytest.approx((1.25, 1.4, 8.0), rel=1e-6)
        assert got.note is None


def test_sform_goes_before_qform(tmp_path: Path) -> None:
    path = save(tmp_path / "v.nii", nifti(sform=OBLIQUE, qform_code=1, qoffset_x=500))
    np.testing.assert_allclose(read_volume(path).grid.affine, OBLIQUE, atol=1e-5)


def test_without_any_form_pixdim_is_the_only_source(tmp_path: Path) -> None:
    got = read_volume(save(tmp_path / "v.nii", nifti(pixdim=(1.5, 2.0, 9.0)))).grid
    assert got.spacing == (1.5, 2.0, 9.0)
    assert got.note is None
    blank = save(tmp_path / "blank.nii", nifti(pixdim=(0.0, 0.0, 0.0)))
    assert read_volume(blank, spacing=(1.5, 2.0, 9.0)).grid.voxel_volume == pytest.approx(27.0)


@pytest.mark.parametrize(("code", "factor"), [(0, 1.0), (2, 1.0), (3, 1e-3), (1, 1e3)])
def test_units_become_millimetres(tmp_path: Path, code: int, factor: float) -> None:
    in_file = tuple(size / factor for size in (1.25, 1.4, 8.0))
    sform = OBLIQUE.copy()
    sform[:3] /= factor
    got = read_volume(save(tmp_path / "v.nii", nifti(sform=sform, pixdim=in_file, xyzt_units=code | 8))).grid
    assert got.spacing == pytest.approx((1.25, 1.4, 8.0), rel=1e-5)
    np.testing.assert_allclose(got.affine, OBLIQUE, rtol=1e-5, atol=1e-4)


def test_sheared_affine_is_noted_and_its_voxels_keep_their_volume(tmp_path: Path) -> None:
    sheared = np.eye(4)
    sheared[:3, :3] = [[2, 0, 3], [0, 2, 0], [0, 0, 4]]  # the slice axis has length 5 and leans by asin(3/5)
    got = read_volume(save(tmp_path / "v.nii", nifti(sform=sheared, pixdim=(2.0, 2.0, 5.0)))).grid
    assert got.spacing == (2.0, 2.0, 5.0)
    assert got.note == "the affine is sheared by 36.9 degrees"
    assert got.voxel_volume == pytest.approx(16.0)


def test_left_handed_affine_keeps_its_handedness(tmp_path: Path) -> None:
    flipped = np.diag([1.25, 1.4, -8.0, 1.0])
    got = read_volume(save(tmp_path / "v.nii", nifti(sform=flipped))).grid
    np.testing.assert_allclose(got.affine, flipped, rtol=1e-6)
    assert got.note is None


def test_difference_sees_a_voxel_and_forgives_rounding(tmp_path: Path) -> None:
    reference = read_volume(save(tmp_path / "a.nii", nifti(sform=OBLIQUE))).grid
    rounded, shifted = OBLIQUE.round(4), OBLIQUE.copy()
    shifted[0, 3] += 1.25
    assert reference.difference(read_volume(save(tmp_path / "b.nii", nifti(sform=rounded))).grid) is None
    moved = reference.difference(read_volume(save(tmp_path / "c.nii", nifti(sform=shifted))).grid)
    assert moved is not None
    assert "1.25 mm" in moved
    turned = read_volume(save(tmp_path / "d.nii", nifti(RAMP.transpose(1, 0, 2), sform=OBLIQUE))).grid
    assert reference.difference(turned) == "shape 5 x 4 x 3 instead of 4 x 5 x 3"
    single = read_volume(save(tmp_path / "e.nii", nifti(RAMP[..., None], sform=OBLIQUE))).grid
    assert reference.difference(single) is None


# --- voxels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII.GZ"])
@pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header])
@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8", "i8"])
def test_every_type_and_byte_order(
    tmp_path: Path, suffix: str, kind: Any, endian: Literal["<", ">"], dtype: str
) -> None:
    content = nifti(RAMP.astype(dtype), sform=OBLIQUE, endian=endian, kind=kind, scl_slope=0.5, scl_inter=-3)
    path = tmp_path / f"v{suffix}"
    path.write_bytes(gzip.compress(content, 1) if suffix.lower().endswith("gz") else content)
    volume = read_volume(path)
    assert volume.data.dtype == np.float32
    np.testing.assert_array_equal(volume.data, RAMP * 0.5 - 3)  # exact in float32
    np.testing.assert_allclose(volume.grid.affine, OBLIQUE, atol=1e-5)


@pytest.mark.parametrize("slope", [0.0, np.nan, np.inf])
def test_a_slope_of_no_use_means_unscaled(tmp_path: Path, slope: float) -> None:
    path = save(tmp_path / "v.nii", nifti(scl_slope=slope, scl_inter=7))
    np.testing.assert_array_equal(read_volume(path).data, RAMP)


@pytest.mark.parametrize("name", ["two words.nii.gz", "Jürgen 心脏 (1).nii.gz", "a.b.c.nii", " leading.nii"])
def test_awkward_names(tmp_path: Path, name: str) -> None:
    volume = read_volume(save(tmp_path / name, nifti()))
    np.testing.assert_array_equal(volume.data, RAMP)
    write_on_grid(LABELS, volume.grid, tmp_path / "out folder" / name)
    np.testing.assert_array_equal(read_labels(tmp_path / "out folder" / name).data, LABELS)


def test_extensions_and_a_far_data_offset_are_stepped_over(tmp_path: Path) -> None:
    content = nifti(vox_offset=352 + 32)
    extended = (
        content[:348] + b"\1\0\0\0" + (32).to_bytes(4, "little") + (6).to_bytes(4, "little") + b"comment".ljust(24)
    )
    volume = read_volume(save(tmp_path / "v.nii", extended + content[352:]))
    np.testing.assert_array_equal(volume.data, RAMP)
    write_on_grid(LABELS, volume.grid, tmp_path / "o.nii")
    assert b"comment" not in (tmp_path / "o.nii").read_bytes()


def test_last_axis_of_one_is_removed_and_remembered(tmp_path: Path) -> None:
    volume = read_volume(save(tmp_path / "v.nii", nifti(RAMP[..., None])))
    assert volume.grid.shape == (4, 5, 3, 1)
    np.testing.assert_array_equal(volume.data, RAMP)
    write_on_grid(LABELS, volume.grid, tmp_path / "mask.nii")
    written = nib.load(tmp_path / "mask.nii")
    assert written.shape == (4, 5, 3, 1)
    np.testing.assert_array_equal(written.get_fdata()[..., 0], LABELS)


def test_frames_of_a_cine(tmp_path: Path) -> None:
    cine = np.stack([RAMP, RAMP + 100], axis=-1)
    volume = read_volume(save(tmp_path / "cine.nii", nifti(cine, sform=OBLIQUE, pixdim=(1.25, 1.4, 8.0, 0.03))))
    first, second = frames(volume)
    np.testing.assert_array_equal(first.data, RAMP)
    np.testing.assert_array_equal(second.data, RAMP + 100)
    assert second.grid.shape == (4, 5, 3)
    write_on_grid(LABELS, second.grid, tmp_path / "frame.nii")
    assert raw_header(tmp_path / "frame.nii")["pixdim"][4] == np.float32(0.03)
    assert read_labels(tmp_path / "frame.nii", like=second.grid).grid.shape == (4, 5, 3)
    assert [frame.grid.shape for frame in frames(first)] == [(4, 5, 3)]


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8"])
def test_labels_of_any_stored_type(tmp_path: Path, dtype: str) -> None:
    labels = read_labels(save(tmp_path / "gt.nii.gz", nifti(LABELS.astype(dtype), sform=OBLIQUE)))
    assert labels.data.dtype == np.uint8
    np.testing.assert_array_equal(labels.data, LABELS)


def test_scaled_and_empty_label_maps(tmp_path: Path) -> None:
    scaled = save(tmp_path / "s.nii", nifti((LABELS * 10).astype(np.int16), scl_slope=0.1))
    np.testing.assert_array_equal(read_labels(scaled).data, LABELS)
    empty = save(tmp_path / "e.nii", nifti(np.zeros((4, 5, 3), np.uint8)))
    assert read_labels(empty).data.sum() == 0


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (np.where(LABELS == 3, 200, LABELS).astype(np.int16), "label values 200, allowed are 0, 1, 2, 3"),
        (np.where(LABELS == 3, -1, LABELS.astype(np.int16)), "label values -1, allowed"),
        (LABELS.astype(np.int32) * 65536, "label values 65536, 131072, 196608"),
        (RAMP, "label values 4, 5, 6, 7, 8, 9, 10, 11 and 48 more"),
        (np.where(LABELS == 3, 2.5, LABELS), "15 values that are not whole numbers (2.5)"),
        (at(np.nan, 0, 0, 0), "1 NaN"),
    ],
)
def test_wrong_labels(tmp_path: Path, data: np.ndarray, complaint: str) -> None:
    path = save(tmp_path / "gt.nii.gz", nifti(data))
    assert complaint in only_error(lambda: read_labels(path), path)


def test_other_labels_may_be_allowed(tmp_path: Path) -> None:
    path = save(tmp_path / "gt.nii", nifti(np.where(LABELS == 3, 200, LABELS).astype(np.int16)))
    assert set(np.unique(read_labels(path, allowed={0, 1, 2, 200}).data)) == {0, 1, 2, 200}


def test_labels_must_lie_on_their_image(tmp_path: Path) -> None:
    image = read_volume(save(tmp_path / "v.nii", nifti(sform=OBLIQUE)))
    elsewhere = save(tmp_path / "gt.nii", nifti(LABELS, sform=OBLIQUE @ np.diag([-1.0, 1, 1, 1])))
    text = only_error(lambda: read_labels(elsewhere, like=image.grid), elsewhere)
    assert "is not on its image's grid: its voxels lie up to 7.5 mm elsewhere" in text  # 2 x 3 x 1.25 mm
    # a tool that repaired the header states the same place in other words
    acdc = read_volume(save(tmp_path / "acdc.nii", nifti(sform=ACDC_SFORM, pixdim=(1.25, 1.4, 8.0))))
    repaired = save(tmp_path / "repaired.nii", nifti(LABELS, sform=np.diag([-1.25, -1.4, 8.0, 1.0])))
    np.testing.assert_array_equal(read_labels(repaired, like=acdc.grid).data, LABELS)


# --- real files ------------------------------------------------------------------------------------------------------


def test_acdc_patient(tmp_path: Path) -> None:
    folder = shared_path("data", "acdc", "training", "patient001")
    source, target = folder / "patient001_frame01.nii.gz", tmp_path / "out.nii.gz"
    image = read_volume(source)
    labels = read_labels(folder / "patient001_frame01_gt.nii.gz", like=image.grid)
    assert image.grid.spacing == (1.5625, 1.5625, 10.0)
    np.testing.assert_array_equal(image.data, nib.load(source).get_fdata())
    write_on_grid(labels.data, image.grid, target)
    assert fields_that_differ(source, target) <= CHANGED
    np.testing.assert_array_equal(read_labels(target, like=image.grid).data, labels.data)
