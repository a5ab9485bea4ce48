"""The short-axis view: hand-made headers, every way to store one stack, and the way back."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd
from nifti_files import ACDC_SFORM, nifti, save
from scipy.spatial.transform import Rotation

from cgdpm_med.data.transforms import LoadVolumed, ShortAxisd
from cgdpm_med.volumes import (
    Grid,
    ShortAxisView,
    directions_known,
    read_volume,
    reoriented_grid,
    short_axis_view,
    slice_order,
    view_of,
)

AS_STORED = ShortAxisView()
STORED = [
    ShortAxisView((a, b, c), flips)
    for a, b, c in permutations(range(3))
    for flips in product((False, True), (False, True), (False, True))
]


def columns(*world: tuple[float, float, float]) -> np.ndarray:
    """An affine whose axes point along these RAS+ vectors, in mm."""
    affine = np.eye(4)
    affine[:3, :3] = np.transpose(world)
    return affine


LEFT, BACK, UP = (-1.0, 0, 0), (0, -1.0, 0), (0, 0, 1.0)
# row, column and slice direction of a short-axis stack as scanners place it: to the left and back, to the feet, and
# from the base to the left, front and feet
ROW, COLUMN = (-0.70, -0.65, 0.30), (-0.13, -0.30, -0.94)
SLICE = tuple(-np.cross(ROW, COLUMN))
AFFINES = {
    "as ACDC names its axes": (columns(LEFT, BACK, (0, 0, 10.0)), AS_STORED),
    "RAS": (np.diag([1.0, 1, 10, 1]), ShortAxisView((0, 1, 2), (True, True, False))),
    "a scanner's": (columns(ROW, COLUMN, tuple(8 * np.array(SLICE))), AS_STORED),
    "a scanner's, apex first": (
        columns(ROW, COLUMN, tuple(-8 * np.array(SLICE))),
        ShortAxisView((0, 1, 2), (False, False, True)),
    ),
    "rows bottom up, as dcm2niix writes them": (
        columns(ROW, tuple(-np.array(COLUMN)), tuple(8 * np.array(SLICE))),
        ShortAxisView((0, 1, 2), (False, True, False)),
    ),
    "columns first": (
        columns(COLUMN, ROW, tuple(8 * np.array(SLICE))),
        ShortAxisView((1, 0, 2)),
    ),
    "slices first": (columns((0, 0, -10.0), LEFT, BACK), ShortAxisView((1, 2, 0), (False, False, True))),
    "thin slices stay last": (columns((0, 0, 1.4), LEFT, BACK), ShortAxisView((1, 0, 2), (False, True, True))),
}


@pytest.mark.parametrize("case", AFFINES)
def test_views_worked_out_by_hand(case: str) -> None:
    affine, expected = AFFINES[case]
    assert short_axis_view(affine) == expected


def test_directions_that_are_not_believed_are_not_used() -> None:
    assert short_axis_view(np.diag([1.0, 1, 10, 1]), directions=False) == AS_STORED
    assert short_axis_view(np.diag([1.0, 10, 1, 1]), directions=False) == ShortAxisView((0, 2, 1))


@pytest.mark.parametrize(
    ("content", "known"),
    [
        (nifti(sform=ACDC_SFORM, sform_code=2, pixdim=(1.5, 1.5, 10.0)), False),
        (nifti(sform=np.diag([-1.5, -1.5, 10, 1]), pixdim=(1.5, 1.5, 10.0)), True),
        (nifti(sform=np.diag([-1.5, -1.5, 10, 1]), pixdim=(1.0, 1.0, 1.0)), True),  # pixdim never filled in
        (nifti(sform=np.diag([-1.5, -1.5, 10, 1]), sform_code=0, pixdim=(1.5, 1.5, 10.0)), False),
        (nifti(sform=np.diag([-1.5, -1.5, 10, 1]), sform_code=0, qform_code=1, pixdim=(1.5, 1.5, 10.0)), True),
    ],
    ids=["ACDC", "true", "pixdim empty", "no code", "qform"],
)
@pytest.mark.filterwarnings("ignore::cgdpm_med.volumes.HeaderWarning")
def test_which_directions_are_known(content: bytes, known: bool, tmp_path: Path) -> None:
    assert directions_known(read_volume(save(tmp_path / "v.nii", content)).grid) is known


@pytest.mark.parametrize("case", AFFINES)
@pytest.mark.parametrize("directions", [True, False])
def test_the_users_word_turns_the_slices_and_nothing_else(case: str, directions: bool) -> None:
    affine, _ = AFFINES[case]
    given, turned = (short_axis_view(affine, directions=directions, flip_slices=flip) for flip in (False, True))
    assert turned.axes == given.axes
    assert turned.flips == (*given.flips[:2], not given.flips[2])


@pytest.mark.filterwarnings("ignore::cgdpm_med.volumes.HeaderWarning")
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (nifti(sform=ACDC_SFORM, sform_code=2), ("base to apex", "apex to base")),
        (nifti(), ("base to apex", "apex to base")),
        (nifti(sform=np.diag([-1.25, -1.4, 8, 1])), (None, "opposite")),
        (nifti(np.zeros((4, 5, 1)) + np.arange(5)[:, None], sform=ACDC_SFORM), (None, None)),
    ],
    ids=["ACDC", "no form", "known", "one slice"],
)
def test_an_order_of_slices_that_was_not_read_is_said(
    content: bytes, words: tuple[str | None, str | None], flip: bool, tmp_path: Path
) -> None:
    grid = replace(read_volume(save(tmp_path / "v.nii", content)).grid, flip_slices=flip)
    said, word = slice_order(grid), words[flip]
    assert said is None if word is None else word in str(said)
    shown = reoriented_grid(grid, view_of(grid))
    assert view_of(shown) == AS_STORED


def test_apply_by_hand() -> None:
    stored = np.arange(6).reshape(1, 2, 3)
    view = ShortAxisView((2, 0, 1), (True, False, True))
    shown = view.apply(stored)
    assert shown.shape == (3, 1, 2)
    np.testing.assert_array_equal(shown[:, 0], [[5, 2], [4, 1], [3, 0]])
    np.testing.assert_array_equal(view.undo(shown), stored)
    assert view.slice_numbers(stored.shape) == [2, 1]
    assert AS_STORED.slice_numbers(stored.shape) == [1, 2, 3]


@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    handedness=st.sampled_from([1.0, -1.0]),
    stored=st.sampled_from(STORED),
    seed=st.integers(0, 99),
)
def test_every_way_to_store_a_stack_has_one_view(
    angles: tuple[float, float, float], handedness: float, stored: ShortAxisView, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    data = rng.normal(size=(2, 5, 4, 3))
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * (1, 1, handedness)
    affine[:3, :3] = turn * (1.4, 1.6, 9.0)
    affine[:3, 3] = rng.normal(size=3)
    across, down, along = turn.T @ (-1, 0, 0), turn.T @ (0, -1, -1), turn.T @ (-1, 1, 0.25)
    chosen = int(abs(across[1]) > abs(across[0]))
    margins = (abs(across[0]) - abs(across[1]), across[chosen], down[1 - chosen], along[2])
    assume(min(map(abs, margins)) > 1e-6)  # else exactly between two answers
    other = stored.apply(data, first=1), affine @ stored.stored_from_shown(data.shape[1:])
    first, second = (short_axis_view(a) for a in (affine, other[1]))
    np.testing.assert_array_equal(second.apply(other[0], first=1), first.apply(data, first=1))
    np.testing.assert_allclose(
        other[1] @ second.stored_from_shown(other[0].shape[1:]),
        affine @ first.stored_from_shown(data.shape[1:]),
        atol=1e-9,
    )
    np.testing.assert_array_equal(second.undo(second.apply(other[0], first=1), first=1), other[0])


def grid_of(path: Path, affine: np.ndarray, shape: tuple[int, ...] = (5, 4, 3)) -> Grid:
    voxels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    nib.Nifti1Image(voxels, affine).to_filename(path)
    return read_volume(path).grid


@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4, 3, 2)])
def test_the_grid_of_a_view_holds_the_same_places(shape: tuple[int, ...], tmp_path: Path) -> None:
    affine = AFFINES["slices first"][0] @ np.diag([1, 1.2, 1.3, 1])
    affine[:3, 3] = 3, 4, 5
    grid = grid_of(tmp_path / "v.nii", affine, shape)
    view = view_of(grid)
    assert view == ShortAxisView((1, 2, 0), (False, False, True))
    shown = reoriented_grid(grid, view)
    assert shown.shape == (4, 3, 5, *shape[3:])
    assert shown.spacing == pytest.approx((1.2, 1.3, 10.0))
    # first slice of the view is the file's last
    np.testing.assert_allclose(shown.affine @ (2, 1, 0, 1), grid.affine @ (4, 2, 1, 1))
    np.testing.assert_allclose(shown.header.get_best_affine(), shown.affine, atol=1e-5)
    np.testing.assert_allclose(shown.header["pixdim"][1:4], shown.spacing, rtol=1e-6)
    assert view_of(shown) == AS_STORED


def test_the_transform_and_its_inverse(tmp_path: Path) -> None:
    path = tmp_path / "v.nii"
    grid_of(path, AFFINES["slices first"][0])
    volume = read_volume(path)
    forth = Compose([LoadVolumed("image"), ShortAxisd("image")])
    item = forth({"image": path})
    view = view_of(volume.grid)
    np.testing.assert_array_equal(item["image"][0], view.apply(volume.data))
    np.testing.assert_allclose(item["image"].affine, reoriented_grid(volume.grid, view).affine)
    item["pred"] = MetaTensor(torch.cat([item["image"], 2 * item["image"]]), meta=item["image"].meta)
    back = Invertd("pred", forth, "image", nearest_interp=False)(item)["pred"]
    np.testing.assert_array_equal(back, np.stack([volume.data, 2 * volume.data]))
    np.testing.assert_allclose(back.affine, volume.grid.affine)


@pytest.mark.filterwarnings("ignore::cgdpm_med.volumes.HeaderWarning")
def test_a_file_of_acdc_stays_as_it_is(tmp_path: Path) -> None:
    path = save(tmp_path / "v.nii", nifti(sform=np.eye(4), pixdim=(1.5, 1.5, 10.0)))
    item = Compose([LoadVolumed("image"), ShortAxisd("image")])({"image": path})
    np.testing.assert_array_equal(item["image"][0], read_volume(path).data)
