"""Whether a file can be a short-axis stack: likeness of slices in closed form, each finding, grids of scanners."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cgdpm_med.heart.limits import HeartLimits
from cgdpm_med.heart.stack_checks import assess_stack, compare_grids, slice_likeness
from cgdpm_med.inference.quality import Finding
from cgdpm_med.phantom import PhantomSpec, make_phantom

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]

SPACING: Triple = (1.5, 1.5, 10.0)
SHAPE: Shape = (200, 216, 9)


def noise(shape: Shape = SHAPE) -> NDArray[np.float32]:
    """Slices that have nothing in common."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def found(spacing: Triple = SPACING, shape: Shape = SHAPE) -> dict[str, str]:
    """Reasons by check of what goes to review; a check may give one reason for pixels and one for slices."""
    findings = assess_stack(noise(shape), spacing)
    assert all(finding.review for finding in findings)
    return {finding.check: finding.reason for finding in findings}


# --- measurements -----------------------------------------------------------------------------------------------------


def test_likeness_of_three_slices() -> None:
    image = np.zeros((2, 2, 3))
    image[..., 0] = [[1, -1], [1, -1]]
    image[..., 1] = [[11, 9], [9, 11]]  # at right angles to the first, whatever its mean
    image[..., 2] = 3 * image[..., 1]  # the same but for its scale
    assert slice_likeness(image) == pytest.approx(0.5)  # the median of 0 and 1


def test_slices_without_contrast_say_nothing() -> None:
    image = noise((8, 8, 4))
    image[..., 1:3] = 7
    assert slice_likeness(image) is None
    assert slice_likeness(noise((8, 8, 1))) is None


# --- checks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spacing", "shape"),
    [
        (SPACING, SHAPE),
        ((0.7, 0.7, 5.0), (512, 512, 18)),
        ((1.25, 1.25, 1.25), (128, 128, 80)),  # resampled to cubes
        ((1.4, 1.4, 8.0), (96, 96, 10)),  # cut out around the heart
        ((2.0, 2.2, 12.0), (160, 192, 8)),
    ],
)
def test_stacks_as_scanners_and_tools_write_them_pass(spacing: Triple, shape: Shape) -> None:
    assert found(spacing, shape) == {}


@pytest.mark.parametrize(
    ("spacing", "shape", "check", "number"),
    [
        ((0.15, 0.15, 10.0), SHAPE, "voxel size", "0.15 x 0.15"),
        ((15.0, 15.0, 10.0), SHAPE, "voxel size", "15 x 15"),
        ((1.5, 1.5, 100.0), SHAPE, "voxel size", "100 mm apart"),
        ((1.5, 1.5, 0.444), SHAPE, "voxel size", "0.444 mm apart"),
        ((1.5, 1.5, 1.0), SHAPE, "stack length", "stack of 9 mm"),
        ((1.5, 1.5, 8.0), (200, 216, 30), "stack length", "stack of 240 mm"),
        (SPACING, (200, 216, 1), "few slices", "1 slice,"),
        (SPACING, (200, 216, 2), "few slices", "2 slices,"),
        (SPACING, (200, 216, 3), "few slices", "3 slices,"),
        ((0.3, 0.3, 10.0), SHAPE, "picture size", "60 x 64.8 mm"),
        ((1.5, 4.0, 10.0), SHAPE, "axes", "1.5 x 4 mm"),
        (SPACING, (200, 9, 216), "axes", "216 slices"),
        (SPACING, (9, 200, 216), "axes", "216 slices"),
        ((1.0, 1.0, 1.0), (216, 9, 200), "axes", "200 slices"),
    ],
)
def test_what_is_no_short_axis_stack_goes_to_review(spacing: Triple, shape: Shape, check: str, number: str) -> None:
    reasons = [f.reason for f in assess_stack(noise(shape), spacing) if f.check == check]
    assert any(number in reason for reason in reasons)


def test_a_short_stack_is_called_by_its_slices_alone() -> None:
    assert set(found(SPACING, (200, 216, 2))) == {"few slices"}


@pytest.mark.parametrize(("distance", "expected"), [(8.0, {"slices alike"}), (1.25, set())])
def test_frames_read_as_slices_are_noticed(distance: float, expected: set[str]) -> None:
    cine = make_phantom(PhantomSpec.small(num_frames=10, noise=0.0), cine=True)
    time = np.stack([cine.images[frame][..., 1] for frame in sorted(cine.images)], axis=-1)
    number = slice_likeness(time)
    assert number is not None
    assert number > 0.95
    findings = {f.check: f.reason for f in assess_stack(time, (2.8, 2.8, distance)) if f.check == "slices alike"}
    assert set(findings) == expected  # slices of a millimetre may well look alike
    assert all(f"{number:.3f}" in reason for reason in findings.values())


def test_true_slices_do_not_look_alike() -> None:
    image = make_phantom(PhantomSpec(shape=(108, 128, 10), spacing=(3.0, 3.0, 10.0), num_frames=3)).images[1]
    assert assess_stack(image, (3.0, 3.0, 10.0)) == ()


def test_limits_can_be_changed() -> None:
    assert assess_stack(noise(), SPACING, limits=HeartLimits(slices=12))[0].check == "few slices"
    assert assess_stack(noise((200, 216, 3)), (1.5, 1.5, 20.0), limits=HeartLimits(slices=3)) == ()


def test_voxels_of_two_frames_are_compared() -> None:
    assert compare_grids({"ED": SPACING}) == ()
    assert compare_grids({"ED": SPACING, "ES": (1.5001, 1.5, 10.0)}) == ()
    (finding,) = compare_grids({"ED": SPACING, "ES": (1.5, 1.5, 1.0)})
    assert finding == Finding("voxel size", "voxels measure 1.5 x 1.5 x 10 mm at ED and 1.5 x 1.5 x 1 mm at ES")
