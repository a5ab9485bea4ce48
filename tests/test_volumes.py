"""Reading and writing NIfTI: true geometry, untouched headers, and one clear error for every file that is no use."""

from __future__ import annotations

import errno
import gzip
import os
import pickle
import resource
import tempfile
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import shared_path
from hypothesis import given, settings
from hypothesis import strategies as st

from cgdpm_med.volumes import (
    VOXEL_LIMIT,
    HeaderWarning,
    InputError,
    atomic_write,
    check_size,
    frames,
    grid,
    read_labels,
    read_volume,
    write_on_grid,
)

RAMP = np.arange(4 * 5 * 3, dtype=np.int16).reshape(4, 5, 3)
LABELS = (RAMP % 4).astype(np.uint8)
ACDC_SFORM = np.diag([-1.0, -1.0, 1.0, 1.0])
# a rotation by 30 degrees about x, thick slices, written out by hand
OBLIQUE = np.array(
    [
        [-1.25, 0.0, 0.0, 80.0],
        [0.0, -1.4 * 0.8660254, -8.0 * 0.5, 30.0],
        [0.0, -1.4 * 0.5, 8.0 * 0.8660254, -12.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
# what write_on_grid may change in a header; "dim" only where the array has another last axis
CHANGED = {"datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter", "cal_min", "cal_max", "descrip"}
CLEARED = {"aux_file", "db_name", "data_type"}


@pytest.fixture(autouse=True)
def _fresh_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test is the first in its process to meet a header conflict, and meets it quietly unless it looks."""
    monkeypatch.setattr(grid, "_WARNED", set())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HeaderWarning)
        yield


def nifti(
    data: np.ndarray = RAMP,
    *,
    sform: np.ndarray | None = None,
    sform_code: int = 1,
    pixdim: tuple[float, ...] = (1.25, 1.4, 8.0),
    endian: str = "<",
    kind: type[nib.Nifti1Header] = nib.Nifti1Header,
    dim: tuple[int, ...] | None = None,
    **fields: Any,
) -> bytes:
    """A NIfTI file byte for byte, with header fields no library would write."""
    header = kind(endianness=endian)
    header.set_data_dtype(data.dtype.newbyteorder("="))
    dim = data.shape if dim is None else dim
    header["dim"] = [len(dim), *dim] + [1] * (7 - len(dim))
    header["pixdim"][1 : 1 + len(pixdim)] = pixdim
    header["vox_offset"] = kind.single_vox_offset
    header["scl_slope"], header["scl_inter"] = 1, 0
    if sform is not None:
        header["sform_code"] = sform_code
        header["srow_x"], header["srow_y"], header["srow_z"] = sform[:3]
    for name, value in fields.items():
        header[name] = value
    voxels = data.astype(data.dtype.newbyteorder(endian)).tobytes(order="F")
    return header.binaryblock + bytes(4) + voxels


def save(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content, 1) if path.name.endswith(".gz") else content)
    return path


def raw_header(path: Path) -> nib.Nifti1Header:
    """The header of a file, without nibabel's repairs."""
    content = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
    kind = nib.Nifti2Header if 540 in (int.from_bytes(content[:4], order) for order in ("little", "big")) else None
    kind = kind or nib.Nifti1Header
    return kind(content[: kind.sizeof_hdr], check=False)


def fields_that_differ(a: Path, b: Path) -> set[str]:
    first, second = raw_header(a), raw_header(b)
    assert first.endianness == second.endianness
    return {name for name in first if first[name].tobytes() != second[name].tobytes()}


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
        # pixdim wins: unit sform, scaled template space, one axis only
        ((1.25, 1.4, 8.0), (1.0, 1.0, 1.0), "auto", (1.25, 1.4, 8.0)),
        ((1.25, 1.4, 8.0), (1.5, 1.5, 7.0), "auto", (1.25, 1.4, 8.0)),
        ((1.0, 1.0, 8.0), (1.0, 1.0, 1.0), "auto", (1.0, 1.0, 8.0)),
        # the affine wins: pixdim never filled in
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
def test_every_type_and_byte_order(tmp_path: Path, suffix: str, kind: Any, endian: str, dtype: str) -> None:
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


# --- files that are no use -------------------------------------------------------------------------------------------


def at(value: float, *index: int, shape: tuple[int, ...] = (4, 5, 3)) -> np.ndarray:
    data = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    data[index] = value
    return data


def without_tail(content: bytes, n: int) -> bytes:
    return content[: len(content) - n]


def one_bit_flipped(content: bytes) -> bytes:
    stored = bytearray(gzip.compress(content, 0))  # stored blocks: the damage is in a voxel, not in the deflate code
    stored[-20] ^= 1
    return bytes(stored)


RGB = np.zeros((4, 5, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
SINGULAR = np.array([[1.0, 2, 0, 0], [1, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
ZERO_COLUMN = np.diag([1.0, 1.0, 0.0, 1.0])
BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("v.nii.gz", b"", "is an empty file"),
    "empty plain": ("v.nii", b"", "is an empty file"),
    "not gzip": ("v.nii.gz", nifti(), "not gzip data"),
    "hidden gzip": ("v.nii", gzip.compress(nifti()), "is gzip data but not named .gz"),
    "text": ("v.nii", b"patient,volume\n" * 40, "is not a single-file NIfTI"),
    "zipped text": ("v.nii.gz", gzip.compress(b"patient,volume\n" * 40), "is not a single-file NIfTI"),
    "other format": ("v.mha", b"ObjectType = Image", "is not named .nii or .nii.gz"),
    "zip of nothing": ("v.nii.gz", gzip.compress(b""), "truncated inside its header"),
    "truncated header": ("v.nii", nifti()[:200], "truncated inside its header"),
    "truncated plain": ("v.nii", without_tail(nifti(), 1), "the header promises 120 bytes of voxels"),
    "truncated gzip": ("v.nii.gz", gzip.compress(nifti())[:120], "is truncated or damaged"),
    "gzip without trailer": ("v.nii.gz", without_tail(gzip.compress(nifti()), 8), "is truncated or damaged"),
    "short voxels in gzip": ("v.nii.gz", gzip.compress(without_tail(nifti(), 1)), "Expected 120 bytes, got 119"),
    "damaged gzip": ("v.nii.gz", one_bit_flipped(nifti()), "CRC check failed"),
    "header of a pair": ("v.nii", nifti(magic=b"ni1"), "is not a single-file NIfTI"),
    "Analyze": ("v.nii", nifti(magic=b""), "is not a single-file NIfTI"),
    "2D": ("v.nii", nifti(RAMP[..., 0], pixdim=(1.0, 1.0)), "has 2 dimensions"),
    "5D": ("v.nii", nifti(RAMP[..., None, None]), "has 5 dimensions"),
    "no dimensions": ("v.nii", nifti(dim=()), "has 0 dimensions"),
    "zero size": ("v.nii", nifti(dim=(4, 0, 3)), "has size 0 along axis 1 (shape 4 x 0 x 3)"),
    "negative size": ("v.nii", nifti(dim=(4, 5, -3)), "has size -3 along axis 2"),
    "huge": ("v.nii", nifti(dim=(32767, 32767, 32767)), "has 35,181,150,961,663 voxels"),
    "huge cine": ("v.nii.gz", gzip.compress(nifti(dim=(512, 512, 30, 3000))), "has 23,592,960,000 voxels"),
    "large promise": ("v.nii.gz", gzip.compress(nifti(dim=(512, 512, 1000))), "promises 524,288,000 bytes"),
    "RGB": ("v.nii", nifti(RGB), "holds colour (RGB) voxels"),
    "complex": ("v.nii", nifti(RAMP.astype(np.complex64)), "holds complex voxels"),
    "unknown type": ("v.nii", nifti(datatype=999), "unknown data type (code 999)"),
    "NaN": ("v.nii.gz", gzip.compress(nifti(at(np.nan, 1, 2, 2))), "1 NaN and 0 infinite voxels in slices 2."),
    "Inf": ("v.nii", nifti(at(-np.inf, slice(2), 2, 1)), "0 NaN and 2 infinite voxels in slices 1."),
    "NaN in a frame": ("v.nii", nifti(at(np.nan, 0, 0, 1, 1, shape=(4, 5, 3, 2))), "slices 1 of frames 1."),
    "overflow": ("v.nii", nifti(RAMP * 1e300), "beyond the range of float32"),
    "constant": ("v.nii", nifti(np.full((4, 5, 3), 7, np.int16)), "every voxel is 7"),
    "scaled out of range": ("v.nii", nifti(scl_slope=3e38), "0 NaN and 58 infinite voxels in slices 0, 1, 2."),
    "infinite inter": ("v.nii", nifti(scl_inter=np.inf), "invalid intercept"),
    "offset beyond the end": ("v.nii", nifti(vox_offset=10_000), "is truncated"),
    "negative offset": ("v.nii", nifti(vox_offset=-16), "vox_offset -16"),
    "offset not a number": ("v.nii", nifti(vox_offset=np.nan), "vox_offset nan"),
    "singular affine": ("v.nii", nifti(sform=SINGULAR), "singular affine"),
    "zero column": ("v.nii", nifti(sform=ZERO_COLUMN), "singular affine"),
    "all-zero sform": ("v.nii", nifti(sform=np.zeros((4, 4))), "singular affine"),
    "NaN affine": ("v.nii", nifti(sform=OBLIQUE * np.nan), "not finite"),
    "impossible quaternion": ("v.nii", nifti(qform_code=1, quatern_b=0.9, quatern_c=0.9), "impossible qform"),
    "immense affine": ("v.nii", nifti(sform=OBLIQUE * 1e300, kind=nib.Nifti2Header), "not finite"),
    "NaN quaternion": ("v.nii", nifti(qform_code=1, quatern_b=np.nan), "not finite"),
    "no spacing": ("v.nii", nifti(pixdim=(1.0, 0.0, 8.0)), "has no voxel spacing: pixdim is 1 x 0 x 8 mm"),
    "metres": ("v.nii", nifti(xyzt_units=1), "implausible voxel spacing of 1250 x 1400 x 8000 mm"),
}


def only_error(call: Callable[[], object], path: Path) -> str:
    """The text of the single InputError of ``call``: one line that opens with the path and ends with a remedy."""
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert caught.value.path == path
    assert text.startswith(f"{path}: ")
    assert caught.value.remedy is not None
    assert text.endswith(f". {caught.value.remedy}")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(tmp_path: Path, case: str) -> None:
    name, content, complaint = BAD_FILES[case]
    path = tmp_path / name
    path.write_bytes(content)
    assert complaint in only_error(lambda: read_volume(path), path)


@settings(deadline=None, max_examples=150)
@given(
    damage=st.dictionaries(st.integers(0, 351), st.integers(0, 255), min_size=1, max_size=6),
    compressed=st.booleans(),
    with_sform=st.booleans(),
)
def test_any_damage_to_a_header_is_one_error_or_a_volume(
    damage: dict[int, int], compressed: bool, with_sform: bool
) -> None:
    content = bytearray(nifti(sform=OBLIQUE if with_sform else None, qform_code=1))
    for place, value in damage.items():
        content[place] = value
    with tempfile.TemporaryDirectory() as folder:
        path = save(Path(folder, "v.nii.gz" if compressed else "v.nii"), bytes(content))
        try:
            volume = read_volume(path)
        except InputError:
            return
        mask = np.zeros(volume.data.shape, np.uint8)
        write_on_grid(mask, volume.grid, path.with_name("o.nii.gz"))
        assert volume.grid.difference(read_labels(path.with_name("o.nii.gz")).grid) is None
        assert np.isfinite(volume.data).all()
        assert 0 < volume.grid.voxel_volume < np.inf


def make_missing(path: Path) -> None:
    assert not path.exists()


def make_loop(path: Path) -> None:
    path.with_name("b.nii").symlink_to(path)
    path.symlink_to(path.with_name("b.nii"))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (make_missing, "no such file"),
        (Path.mkdir, "is a directory"),
        (make_loop, "symbolic links"),
        (os.mkfifo, "is not a regular file"),
    ],
)
@pytest.mark.parametrize("read", [read_volume, read_labels])
def test_not_a_file(tmp_path: Path, read: Any, make: Callable[[Path], None], complaint: str) -> None:
    path = tmp_path / "a.nii"
    make(path)
    assert complaint in only_error(lambda: read(path), path)


@pytest.mark.parametrize(
    ("spacing", "complaint"), [((1, 2), "three numbers"), ("header", "unknown"), ((1, 0, 1), "1 x 0")]
)
def test_bad_spacing_argument(tmp_path: Path, spacing: Any, complaint: str) -> None:
    path = save(tmp_path / "v.nii", nifti())
    with pytest.raises(InputError, match=complaint):
        read_volume(path, spacing=spacing)


@pytest.mark.parametrize("case", ["huge", "huge cine", "large promise"])
def test_sizes_are_refused_before_memory_is_taken(tmp_path: Path, case: str) -> None:
    name, content, _ = BAD_FILES[case]
    path = tmp_path / name
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(InputError):
        read_volume(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_check_size_at_the_limit() -> None:
    check_size((512, 512, VOXEL_LIMIT // 2**18))
    with pytest.raises(InputError, match=r"has 537,133,056 voxels .*more than the limit of 536,870,912"):
        check_size((512, 512, VOXEL_LIMIT // 2**18 + 1))


def test_input_error_is_one_line_and_crosses_processes() -> None:
    error = InputError("is broken.", path="a\nb\udcff.nii", remedy="Mend it")
    assert str(error) == "a b\\udcff.nii: is broken. Mend it"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # data loader workers send errors this way
    assert str(InputError("is broken")) == "is broken"


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


# --- writing ---------------------------------------------------------------------------------------------------------


def rotation(a: float, b: float, c: float) -> np.ndarray:
    """Rotation about z by a, then y by b, then x by c."""
    z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    x = np.array([[1, 0, 0], [0, np.cos(c), -np.sin(c)], [0, np.sin(c), np.cos(c)]])
    return x @ y @ z


ANGLES = st.floats(-3.1, 3.1)
SIZES = st.tuples(*[st.floats(0.25, 12.0, width=32)] * 3)


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(1, 5), min_size=3, max_size=4).filter(lambda shape: np.prod(shape) > 1),
    pixdim=SIZES,
    qfac=st.sampled_from([-1, 0, 1]),
    sform_size=st.one_of(st.none(), st.just((1.0, 1.0, 1.0)), SIZES),
    angles=st.tuples(ANGLES, ANGLES, ANGLES),
    flips=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    permutation=st.permutations(range(3)),
    codes=st.tuples(st.integers(0, 4), st.integers(1, 4)),
    units=st.sampled_from([0, 2, 10]),
    endian=st.sampled_from("<>"),
    kind=st.sampled_from([nib.Nifti1Header, nib.Nifti2Header]),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
)
def test_output_grid_is_the_input_grid(
    shape: list[int],
    pixdim: tuple[float, ...],
    qfac: int,
    sform_size: tuple[float, ...] | None,
    angles: tuple[float, float, float],
    flips: tuple[int, ...],
    permutation: list[int],
    codes: tuple[int, int],
    units: int,
    endian: str,
    kind: Any,
    suffix: str,
) -> None:
    sform = np.eye(4)
    if sform_size is not None:
        sform[:3, :3] = (rotation(*angles) * flips)[:, permutation] * sform_size
        sform[:3, 3] = (-91.5, 40.25, 7.0)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, f"in{suffix}"), Path(folder, f"out{suffix}")
        content = nifti(
            np.arange(np.prod(shape), dtype=np.float32).reshape(shape),
            sform=None if sform_size is None else sform,
            sform_code=codes[1],
            pixdim=pixdim,
            endian=endian,
            kind=kind,
            qform_code=codes[0],
            quatern_b=0.3,
            quatern_d=-0.2,
            qoffset_y=11.5,
            xyzt_units=units,
            intent_name=b"kept",
            aux_file=b"J. Doe",
        )
        header = kind(content[: kind.sizeof_hdr], endian, check=False)
        header["pixdim"][0] = qfac
        save(source, header.binaryblock + content[kind.sizeof_hdr :])
        volume = read_volume(source)
        mask = (np.arange(np.prod(shape)) % 4).reshape(volume.data.shape)
        write_on_grid(mask, volume.grid, target)

        assert fields_that_differ(source, target) <= CHANGED | CLEARED
        before, after = nib.load(source), nib.load(target)
        assert after.shape == tuple(shape)
        np.testing.assert_array_equal(before.affine, after.affine)
        np.testing.assert_array_equal(after.get_fdata().ravel(), mask.ravel())
        again = read_labels(target, like=volume.grid).grid
        np.testing.assert_array_equal(again.affine, volume.grid.affine)
        assert again.spacing == volume.grid.spacing
        # the true spacing is the length of the columns, and directions and origin are those nibabel sees
        lengths = np.linalg.norm(volume.grid.affine[:3, :3], axis=0)
        np.testing.assert_allclose(lengths, volume.grid.spacing, rtol=1e-4)
        seen = before.affine[:3, :3] / np.linalg.norm(before.affine[:3, :3], axis=0)
        np.testing.assert_allclose(volume.grid.affine[:3, :3] / lengths, seen, atol=1e-6)
        np.testing.assert_array_equal(volume.grid.affine[:3, 3], before.affine[:3, 3])
        if sform_size is None:
            np.testing.assert_allclose(volume.grid.spacing, pixdim, rtol=1e-6)


@pytest.mark.parametrize("sform", [ACDC_SFORM, OBLIQUE], ids=["unit sform", "oblique"])
def test_another_reader_sees_the_same_place(tmp_path: Path, sform: np.ndarray) -> None:
    source, target = save(tmp_path / "in.nii.gz", nifti(sform=sform, sform_code=2)), tmp_path / "out.nii.gz"
    volume = read_volume(source)
    write_on_grid(LABELS, volume.grid, target)
    before, after = sitk.ReadImage(str(source)), sitk.ReadImage(str(target))
    for place in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(before, place)() == getattr(after, place)()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(after), LABELS.T)
    assert after.GetSpacing() == pytest.approx(volume.grid.spacing, rel=1e-6)


def test_written_header_shows_labels_and_names_nobody(tmp_path: Path) -> None:
    content = nifti(descrip=b"Doe^Jane 1970", aux_file=b"Doe", db_name=b"Doe^Jane", cal_max=4000, scl_slope=3.0)
    source, target = save(tmp_path / "in.nii", content), tmp_path / "out.nii"
    write_on_grid(LABELS, read_volume(source).grid, target)
    header = raw_header(target)
    assert (float(header["cal_min"]), float(header["cal_max"])) == (0, 3)
    assert (float(header["scl_slope"]), float(header["scl_inter"])) == (1, 0)
    assert bytes(header["descrip"]).startswith(b"cgdpm_med ")
    assert b"Doe" not in target.read_bytes()


def test_class_probabilities_on_a_3d_grid(tmp_path: Path) -> None:
    source, target = save(tmp_path / "in.nii.gz", nifti(sform=OBLIQUE)), tmp_path / "p.nii.gz"
    probabilities = np.random.default_rng(0).random((4, 5, 3, 4), dtype=np.float32)
    write_on_grid(probabilities, read_volume(source).grid, target, dtype=np.float32)
    assert fields_that_differ(source, target) <= CHANGED | {"dim"}
    np.testing.assert_array_equal(nib.load(target).get_fdata(dtype=np.float32), probabilities)


def test_equal_arrays_make_equal_files(tmp_path: Path) -> None:
    volume = read_volume(save(tmp_path / "in.nii.gz", nifti()))
    write_on_grid(LABELS, volume.grid, tmp_path / "a.nii.gz")
    write_on_grid(np.asfortranarray(LABELS).astype(np.int64), volume.grid, tmp_path / "other name.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "other name.nii.gz").read_bytes()


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (LABELS.transpose(1, 0, 2), np.uint8),
        (LABELS[..., 0], np.uint8),
        (LABELS + 0.25, np.uint8),
        (LABELS.astype(int) + 255, np.uint8),
        (at(np.nan, 0, 0, 0), np.float32),
        (RAMP * 1e300, np.float32),
    ],
)
def test_arrays_that_do_not_fit_are_not_written(tmp_path: Path, array: np.ndarray, dtype: Any) -> None:
    volume = read_volume(save(tmp_path / "in.nii.gz", nifti()))
    with pytest.raises(ValueError, match=r"does not lie on|do not fit"):
        write_on_grid(array, volume.grid, tmp_path / "out.nii.gz", dtype=dtype)
    assert os.listdir(tmp_path) == ["in.nii.gz"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_write_leaves_the_old_file_alone(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def interrupted() -> None:
        with atomic_write(path) as file:
            file.write(b"half of the n")
            raise error

    with pytest.raises(error):
        interrupted()
    assert [(name.name, name.read_text()) for name in tmp_path.iterdir()] == [("report.json", "old")]
    with atomic_write(path) as file:
        file.write(b"new")
    assert [(name.name, name.read_text()) for name in tmp_path.iterdir()] == [("report.json", "new")]


@pytest.mark.parametrize("name", ["out.nii", "out.nii.gz"])
def test_a_disk_that_fills_up_half_way(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 64), dtype=np.uint8)
    volume = read_volume(save(tmp_path / "in.nii", nifti(noise)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))  # the kernel stops the write after 64 KiB
    try:
        text = only_error(lambda: write_on_grid(noise, volume.grid, tmp_path / name), tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be written: file too large. Free space" in text
    assert os.listdir(tmp_path) == ["in.nii"]


@pytest.mark.parametrize(
    ("code", "remedy"),
    [(errno.ENOSPC, "Free space"), (errno.EROFS, "Choose a folder"), (errno.EACCES, "Choose a folder")],
)
def test_remedies_for_a_refused_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    volume = read_volume(save(tmp_path / "in.nii", nifti()))
    monkeypatch.setattr(os, "fsync", refuse)
    text = only_error(lambda: write_on_grid(LABELS, volume.grid, tmp_path / "o.nii"), tmp_path / "o.nii")
    assert f"cannot be written: {os.strerror(code).lower()}. {remedy}" in text
    assert os.listdir(tmp_path) == ["in.nii"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    volume = read_volume(save(tmp_path / "in.nii", nifti()))
    (tmp_path / "folder.nii").mkdir()
    for path, complaint in [
        (tmp_path / "folder.nii", "is a directory"),
        (tmp_path / "in.nii" / "o.nii", "cannot be written"),
        (tmp_path / "o.png", "is not named .nii"),
        (tmp_path / f"{'n' * 300}.nii", "file name too long"),
    ]:
        assert complaint in only_error(lambda path=path: write_on_grid(LABELS, volume.grid, path), path)
    assert sorted(os.listdir(tmp_path)) == ["folder.nii", "in.nii"]


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
