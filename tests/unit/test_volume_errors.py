"""Files that are no use: one clear error for each."""

from __future__ import annotations

import gzip
import os
import pickle
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nifti_files import OBLIQUE, RAMP, at, nifti, only_error, save

from cgdpm_med.files import InputError
from cgdpm_med.volumes import VOXEL_LIMIT, check_size, read_labels, read_volume, write_on_grid

pytestmark = pytest.mark.usefixtures("quiet_headers")


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
    "other format": ("v.vtk", b"# vtk DataFile", "is not named .nii or .nii.gz"),
    "zip of nothing": ("v.nii.gz", gzip.compress(b""), "truncated inside its header"),
    "truncated header": ("v.nii", nifti()[:200], "truncated inside its header"),
    "truncated plain": ("v.nii", without_tail(nifti(), 1), "the header promises 120 bytes of voxels"),
    "truncated gzip": ("v.nii.gz", gzip.compress(nifti())[:120], "is truncated or damaged"),
    "gzip without trailer": ("v.nii.gz", without_tail(gzip.compress(nifti()), 8), "is truncated or damaged"),
    "short voxels in gzip": ("v.nii.gz", gzip.compress(without_tail(nifti(), 1)), "Expected 120 bytes, got 119"),
    "damaged gzip": ("v.nii.gz", one_bit_flipped(nifti()), "CRC check failed"),
    "header of a pair": ("v.nii", nifti(magic=b"ni1"), "is the header of a NIfTI pair"),
    "Analyze": ("v.nii", nifti(magic=b""), "is not a single-file NIfTI"),
    "2D": ("v.nii", nifti(RAMP[..., 0], pixdim=(1.0, 1.0)), "has 2 dimensions"),
    "5D": ("v.nii", nifti(np.stack([RAMP[..., None]] * 2, axis=-1)), "has 5 dimensions"),
    "six axes": ("v.nii", nifti(dim=(4, 5, 3, 1, 1, 2)), "has 6 dimensions"),
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
