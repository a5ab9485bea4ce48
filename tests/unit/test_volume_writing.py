"""Writing NIfTI: the grid of the input, headers untouched, nothing half-written."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
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

from cgdpm_med.files import InputError, atomic_write
from cgdpm_med.volumes import read_labels, read_volume, write_on_grid

CLEARED = {"aux_file", "intent_name", "db_name", "data_type"}


pytestmark = pytest.mark.usefixtures("quiet_headers")


def rotation(a: float, b: float, c: float) -> np.ndarray:
    """Rotation about z by a, then y by b, then x by c."""
    z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    x = np.array([[1, 0, 0], [0, np.cos(c), -np.sin(c)], [0, np.sin(c), np.cos(c)]])
    return x @ y @ z


ANGLES = st.floats(-3.1, 3.1)
SIZES = st.tuples(*[st.floats(0.25, 12.0, width=32)] * 3)
FULL = SIZES.filter(lambda sizes: all(abs(size - 1) > 0.02 for size in sizes))


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(1, 5), min_size=3, max_size=4).filter(lambda shape: np.prod(shape) > 1),
    ones=st.integers(0, 3),
    pixdim=SIZES,
    qfac=st.sampled_from([-1, 0, 1]),
    sform_size=st.one_of(st.none(), st.just((1.0, 1.0, 1.0)), FULL),
    angles=st.tuples(ANGLES, ANGLES, ANGLES),
    flips=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    permutation=st.permutations(range(3)),
    codes=st.tuples(st.integers(0, 4), st.integers(1, 2)),
    units=st.sampled_from([0, 2, 10]),
    endian=st.sampled_from("<>"),
    kind=st.sampled_from([nib.Nifti1Header, nib.Nifti2Header]),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
)
def test_output_grid_is_the_input_grid(
    shape: list[int],
    ones: int,
    pixdim: tuple[float, ...],
    qfac: int,
    sform_size: tuple[float, ...] | None,
    angles: tuple[float, float, float],
    flips: tuple[int, ...],
    permutation: list[int],
    codes: tuple[int, int],
    units: int,
    endian: Literal["<", ">"],
    kind: Any,
    suffix: str,
) -> None:
    shape = shape + [1] * ones
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
            intent_name=b"J. Doe",
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
        # the true spacing is the length of the columns; directions and origin are those nibabel sees, but for a unit
        # sform along the axes beside a qform that knows more
        lengths = np.linalg.norm(volume.grid.affine[:3, :3], axis=0)
        np.testing.assert_allclose(lengths, volume.grid.spacing, rtol=1e-4)
        nominal = sform_size == (1, 1, 1) and np.abs(sform[:3, :3]).max(axis=0).min() > 1 - 1e-6
        filled = not np.allclose(pixdim, 1, rtol=0.01)
        affine = before.get_qform() if nominal and filled and codes[0] > 0 else before.affine
        seen = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        np.testing.assert_allclose(volume.grid.affine[:3, :3] / lengths, seen, atol=1e-6)
        np.testing.assert_array_equal(volume.grid.affine[:3, 3], affine[:3, 3])
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
    free: dict[str, Any] = {
        "descrip": b"Doe^Jane 1970",
        "aux_file": b"Doe",
        "db_name": b"Doe^Jane",
        "intent_name": b"Doe",
    }
    content = nifti(**free, cal_max=4000, scl_slope=3.0)
    source, target = save(tmp_path / "in.nii", content), tmp_path / "out.nii"
    write_on_grid(LABELS, read_volume(source).grid, target)
    header = raw_header(target)
    assert (float(header["cal_min"]), float(header["cal_max"])) == (0, 3)
    assert (float(header["scl_slope"]), float(header["scl_inter"])) == (1, 0)
    assert bytes(header["descrip"]).startswith(b"cgdpm_med ")
    assert b"Doe" not in target.read_bytes()


@pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header])
def test_no_text_of_the_input_reaches_the_output(tmp_path: Path, kind: Any) -> None:
    fields = kind.template_dtype.fields.items()
    texts: dict[str, Any] = {name: b"Doe" for name, (dtype, _) in fields if dtype.kind == "S" and name != "magic"}
    meant: dict[str, Any] = {"intent_code": 1001, "intent_p1": 1.5, "intent_p2": 2.5, "intent_p3": 3.5}
    content = nifti(kind=kind, **texts, **meant)
    source, target = save(tmp_path / "in.nii", content), tmp_path / "out.nii"
    write_on_grid(LABELS, read_volume(source).grid, target)
    assert b"Doe" in source.read_bytes()
    assert b"Doe" not in target.read_bytes()
    header = nib.load(target).header
    assert [float(header[name]) for name in meant] == [0, 0, 0, 0]


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


def test_a_name_that_is_too_long_needs_another_name_not_another_folder(tmp_path: Path) -> None:
    path = tmp_path / f"{'n' * 300}.json"
    with pytest.raises(InputError, match=r"file name too long\. Choose a shorter name"), atomic_write(path):
        pass
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    volume = read_volume(save(tmp_path / "in.nii", nifti()))
    (tmp_path / "folder.nii").mkdir()
    for path, complaint in [
        (tmp_path / "folder.nii", "is a directory"),
        (tmp_path / "in.nii" / "o.nii", "cannot be written"),
        (tmp_path / "o.png", "is not named .nii"),
        (tmp_path / f"{'n' * 300}.nii", "file name too long"),
    ]:
        assert complaint in only_error(partial(write_on_grid, LABELS, volume.grid, path), path)
    assert sorted(os.listdir(tmp_path)) == ["folder.nii", "in.nii"]
