"""STAPLE: equal to SimpleITK's on masks made by hand, its confusion matrices, undecided voxels, limits."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from segmentations import segmentation_of

from cgdpm_med.files import InputError
from cgdpm_med.inference.staple import combine_staple, staple
from cgdpm_med.volumes import read_volume

GOOD = [[0, 0, 1, 1], [0, 2, 1, 1], [0, 2, 2, 3], [0, 0, 3, 3]]
ALSO_GOOD = [[0, 0, 1, 1], [0, 2, 2, 1], [0, 2, 2, 3], [0, 0, 3, 3]]
POOR = [[1, 1, 1, 1], [0, 0, 1, 3], [0, 0, 2, 2], [0, 0, 0, 3]]
HAND = np.array([GOOD, ALSO_GOOD, GOOD, POOR, POOR], dtype=np.uint8)


def simpleitk(members: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return sitk.GetArrayFromImage(sitk.MultiLabelSTAPLE([sitk.GetImageFromArray(m) for m in members], 255))


def plain_loop(members: NDArray[np.uint8], classes: int, rounds: int) -> NDArray[np.float64]:
    """Posterior (C, N) of the EM algorithm written out: start from the votes' own confusion, uniform weights."""
    flat = members.reshape(len(members), -1)
    prior = np.array([(flat == label).mean() for label in range(classes)])
    majority = np.stack([(flat == label).sum(0) for label in range(classes)])
    posterior = np.where(majority == majority.max(0), 1.0, 0.0)
    posterior /= posterior.sum(0)
    for _ in range(rounds):
        confusion = np.zeros((len(flat), classes, classes))
        for k, member in enumerate(flat):
            for decided in range(classes):
                confusion[k, decided] = posterior[:, member == decided].sum(1) / posterior.sum(1)
        posterior = prior[:, None] * np.prod([confusion[k][flat[k]].T for k in range(len(flat))], axis=0)
        posterior /= posterior.sum(0)
    return posterior


@pytest.mark.parametrize("shape", [(4, 4), (4, 2, 2)])
def test_equals_simpleitk_on_masks_made_by_hand(shape: tuple[int, ...]) -> None:
    members = HAND.reshape(5, *shape)
    found = staple(members)
    assert found.undecided == 0
    np.testing.assert_array_equal(found.mask, simpleitk(members))


def test_equals_the_algorithm_written_out() -> None:
    posterior = plain_loop(HAND, classes=4, rounds=200)
    assert np.sort(posterior, axis=0)[-2].max() < 0.4  # no voxel is close to a tie
    np.testing.assert_array_equal(staple(HAND).mask.ravel(), posterior.argmax(0))


def test_two_good_raters_overrule_three_poor_ones() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat(np.repeat(GOOD, 3, axis=0), 3, axis=1).astype(np.uint8)
    guesses = rng.integers(0, 4, (3, *truth.shape), dtype=np.uint8)
    poor = np.where(rng.random(guesses.shape) < 0.7, guesses, truth).astype(np.uint8)
    poor[:, 6, 6] = 3  # truth 2: three votes of five for the wrong label
    members = np.stack([truth, truth, *poor])
    assert truth[6, 6] == 2
    np.testing.assert_array_equal(staple(members).mask, truth)


def test_confusion_of_perfect_raters_is_the_identity() -> None:
    found = staple(np.array([GOOD, GOOD, GOOD]))
    np.testing.assert_allclose(found.confusion, np.broadcast_to(np.eye(4), (3, 4, 4)), atol=1e-6)


def test_confusion_rows_are_decisions() -> None:
    # the third rater sees label 1 everywhere: P(says 1 | truth) = 1 for both truths
    members = np.array([[[0, 0], [1, 1]], [[0, 0], [1, 1]], [[1, 1], [1, 1]]], dtype=np.uint8)
    np.testing.assert_allclose(staple(members).confusion[2], [[0, 0], [1, 1]], atol=1e-6)


def test_undecided_voxels_take_the_vote() -> None:
    members = np.array([[[0, 1, 1], [2, 2, 1], [3, 3, 0]], [[0, 1, 1], [2, 2, 2], [3, 3, 0]]], dtype=np.uint8)
    assert simpleitk(members)[1, 2] == 255
    found = staple(members)
    assert found.undecided == 1
    assert found.mask[1, 2] == 1  # one vote each for 1 and 2: the smaller label
    assert found.mask.max() == 3


def test_a_single_member_and_an_empty_one() -> None:
    np.testing.assert_array_equal(staple(HAND[:1]).mask, GOOD)
    assert not staple(np.zeros((3, 4, 4, 2), dtype=np.uint8)).mask.any()


@pytest.mark.parametrize(
    "members",
    [np.zeros((0, 4, 4)), np.zeros((4, 4)), np.full((2, 3, 3), 255), np.full((2, 3, 3), -1)],
    ids=["none", "no member axis", "too large", "negative"],
)
def test_bad_members_are_refused(members: NDArray[np.float64]) -> None:
    with pytest.raises(InputError):
        staple(members)


def test_fusing_a_segmentation_changes_its_mask_alone(tmp_path: Path) -> None:
    image = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
    nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / "image.nii.gz")
    before = segmentation_of(HAND[..., None], read_volume(tmp_path / "image.nii.gz"))
    after = combine_staple(before)
    np.testing.assert_array_equal(after.mask[..., 0], GOOD)
    assert after.mask.dtype == np.uint8
    assert after.probabilities is before.probabilities
    assert after.members is before.members
