"""Files that are no use: one clear error for each."""

from __future__ import annotations

import os
import pickle
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_files import BAD_FILES
from hypothesis import given, settings
from hypothesis import strategies as st
from nifti_files import OBLIQUE, nifti, only_error, save

from cgdpm_med.files import InputError
from cgdpm_med.volumes import VOXEL_LIMIT, check_size, read_labels, read_volume, write_on_grid

pytestmark = pytest.mark.usefixtures("quiet_headers")


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
