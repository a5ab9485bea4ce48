"""Geometry of the whole segment path, with the shipped bundle's own transforms: whatever the shape, spacing and way of
storing, outputs lie on the input's grid, and a flipped or permuted file gives the flipped or permuted mask.

The predictor here is a function of the working grid alone that knows left from right, top from bottom and base from
apex, so any slip of the geometry changes its answer.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import REPO
from directed import SEGMENTER, smooth_noise
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from cgdpm_med import InputError, Options, Segmenter, find_cases, read_volume
from cgdpm_med.apps.pipeline import segment_cases
from cgdpm_med.inference.segmenter import Segmentation
from cgdpm_med.metrics.masks import dice_per_structure
from cgdpm_med.phantom import PhantomSpec, make_phantom
from cgdpm_med.volumes import ShortAxisView

BUNDLE = REPO / "bundles" / "acdc_segmentation"
OUTPUTS = ("mask", "probabilities", "entropy", "disagreement", "members")
STORED = [
    ShortAxisView((a, b, c), flips)
    for a, b, c in permutations(range(3))
    for flips in product((False, True), (False, True), (False, True))
]
SETTINGS = settings(max_examples=40, deadline=None)


@dataclass
class Stack:
    """An image (X, Y, Z) and where it lies."""

    data: np.ndarray
    affine: np.ndarray
    code: int = 1

    def stored(self, view: ShortAxisView) -> Stack:
        """The same image of the same place, stored with other axes."""
        return Stack(view.apply(self.data), self.affine @ view.stored_from_shown(self.data.shape), self.code)

    def save(self, path: Path) -> Path:
        image = nib.Nifti1Image(np.ascontiguousarray(self.data), self.affine)
        image.set_sform(self.affine, self.code)
        image.set_qform(self.affine, self.code)
        image.to_filename(path)
        return path


@st.composite
def stacks(draw: Any) -> Stack:
    shape = draw(st.tuples(st.integers(2, 40), st.integers(2, 40), st.integers(1, 7)))
    in_plane = [draw(st.floats(0.8, 3.0)) for _ in range(2)]
    spacing = (*in_plane, 1.6 * max(in_plane) + draw(st.floats(0, 8)))
    angles = [draw(st.floats(-180, 180)) for _ in range(3)]
    handedness = draw(st.sampled_from([1.0, -1.0]))
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * (1, 1, handedness)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = [draw(st.floats(-200, 200)) for _ in range(3)]
    return Stack(smooth_noise(shape, draw(st.integers(0, 9))), affine)


def segmented(stack: Stack, folder: Path) -> Segmentation:
    return SEGMENTER(read_volume(stack.save(folder / "v.nii")), "v")


@SETTINGS
@given(stack=stacks(), view=st.sampled_from(STORED))
def test_outputs_lie_on_the_grid_of_the_input(stack: Stack, view: ShortAxisView) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        image = stack.stored(view).save(folder / "v.nii")
        outcome = segment_cases(
            SEGMENTER, find_cases(image), folder / "out", options=Options(write=OUTPUTS, pages=False)
        )
        assert outcome.failed == {}
        before = nib.load(image)
        for output in OUTPUTS:
            after = nib.load(folder / "out" / f"v{'' if output == 'mask' else '_' + output}.nii.gz")
            assert after.shape[:3] == before.shape
            np.testing.assert_array_equal(after.affine, before.affine)
            for field in ("pixdim", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x"):
                np.testing.assert_array_equal(after.header[field], before.header[field])
        assert nib.load(folder / "out" / "v_probabilities.nii.gz").shape[3] == 4
        assert nib.load(folder / "out" / "v_members.nii.gz").shape[3] == 2


def between_two_views(stack: Stack) -> bool:
    """Whether a hair's turn would change the view: then nothing can be said."""
    turn = stack.affine[:3, :3] / np.linalg.norm(stack.affine[:3, :3], axis=0)
    across, down, along = turn.T @ (-1, 0, 0), turn.T @ (0, -1, -1), turn.T @ (-1, 1, 0.25)
    chosen = int(abs(across[1]) > abs(across[0]))
    return min(abs(abs(across[0]) - abs(across[1])), *np.abs((across[chosen], down[1 - chosen], along[2]))) < 1e-3


@SETTINGS
@given(stack=stacks(), view=st.sampled_from(STORED))
def test_a_flipped_or_permuted_file_gives_the_flipped_or_permuted_mask(stack: Stack, view: ShortAxisView) -> None:
    assume(not between_two_views(stack))
    with tempfile.TemporaryDirectory() as folder:
        first, second = (segmented(s, Path(folder)) for s in (stack, stack.stored(view)))
    np.testing.assert_allclose(second.probabilities, view.apply(first.probabilities, first=1), atol=2e-3)
    ranked = np.sort(first.probabilities, axis=0)
    clear = view.apply(ranked[-1] - ranked[-2] > 5e-3)
    np.testing.assert_array_equal(second.mask[clear], view.apply(first.mask)[clear])
    assert clear.mean() > 0.5 or clear.size < 200  # most were compared; of a few dozen, several can be close calls


def test_the_stub_knows_its_directions(tmp_path: Path) -> None:
    """Voxels that are mirrored under an unchanged affine are another patient: the answer must not follow."""
    stack = Stack(smooth_noise((24, 20, 5), 0), np.diag([-1.25, -1.25, 9, 1]))
    first = segmented(stack, tmp_path)
    for axis in range(3):
        mirrored = Stack(np.flip(stack.data, axis), stack.affine)
        assert np.mean(segmented(mirrored, tmp_path).mask != np.flip(first.mask, axis)) > 0.1


def test_without_directions_only_the_slice_axis_is_found(tmp_path: Path) -> None:
    stack = Stack(smooth_noise((24, 20, 5), 0), np.diag([-1.5, -1.5, 9, 1]), code=0)
    first = segmented(stack, tmp_path)
    turned = ShortAxisView((2, 0, 1))
    np.testing.assert_array_equal(segmented(stack.stored(turned), tmp_path).mask, turned.apply(first.mask))


def test_one_frame_at_a_time_is_asked_for(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.random.default_rng(0).normal(size=(4, 4, 2, 3)).astype(np.float32), np.eye(4))
    image.to_filename(tmp_path / "v.nii")
    with pytest.raises(InputError, match="a series of 3 frames"):
        SEGMENTER(read_volume(tmp_path / "v.nii"))


@pytest.mark.slow
def test_the_shipped_network_sees_one_heart_however_it_is_stored(tmp_path: Path) -> None:
    segmenter = Segmenter.from_bundle("acdc_segmentation", members=1, steps=1, device="cpu", precision="float32")
    spec = PhantomSpec.small(seed=1, spacing=(2.0, 2.0, 20.0), affine="plain")
    drawn = make_phantom(spec)
    stack = Stack(drawn.images[1].astype(np.float32), np.diag([-2.0, -2.0, 20.0, 1.0]))
    masks = []
    for view in (ShortAxisView(), ShortAxisView((2, 1, 0), (True, False, True))):
        path = stack.stored(view).save(tmp_path / "v.nii")
        masks.append(view.undo(segmenter(read_volume(path), "v").mask))
    np.testing.assert_array_equal(masks[0], masks[1])
    # a heart at all: the left ventricle, because four slices of 20 mm leave little of the right one
    assert dice_per_structure(masks[0], drawn.labels[1])[3] > 0.9
