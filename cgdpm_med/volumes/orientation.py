"""One way to look at a short-axis stack, however its file stores it: the way the networks were trained.

In the short-axis view the third array axis runs through the slices from the base of the heart to its apex, the first
from the picture's left to its right, towards the patient's left, and the second downwards, towards back and feet. It is
how ACDC stores its images. Other files hold the same stack flipped or permuted, and say so in their affine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cgdpm_med.volumes.grid import Grid, mark_millimetres, with_shape

THICK = 1.5
"""An axis whose voxels are this much longer than along both others is the slice axis, wherever it is stored."""

# where the axes of the view point, in RAS+ world coordinates
_TO_LEFT = np.array([-1.0, 0.0, 0.0])
_DOWN = np.array([0.0, -1.0, -1.0])
# base to apex: to the left and front. The little of it upwards decides for stacks whose slices are level alone, which
# no scanner's short-axis stack is: their files were given ACDC's nominal axes
_TO_APEX = np.array([-1.0, 1.0, 0.25])


@dataclass(frozen=True)
class ShortAxisView:
    """Which stored axis is shown as which, and in which direction.

    Attributes:
        axes: the stored axes (0, 1, 2) shown as first, second and third.
        flips: whether each shown axis runs against the stored one.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)

    def apply(self, array: NDArray[Any], first: int = 0) -> NDArray[Any]:
        """An array whose stored spatial axes begin at axis ``first``, as the view shows it; no copy is made."""
        return np.flip(array.transpose(self.order(array.ndim, first)), self.flipped(first))

    def undo(self, array: NDArray[Any], first: int = 0) -> NDArray[Any]:
        """The inverse of :meth:`apply`."""
        return np.flip(array, self.flipped(first)).transpose(np.argsort(self.order(array.ndim, first)))

    def order(self, ndim: int, first: int = 0) -> list[int]:
        """The permutation of all axes of an array of ``ndim``; it comes before the flips."""
        return [*range(first), *(first + axis for axis in self.axes), *range(first + 3, ndim)]

    def flipped(self, first: int = 0) -> tuple[int, ...]:
        """The shown axes to flip, in an array whose spatial axes begin at ``first``."""
        return tuple(first + axis for axis, flip in enumerate(self.flips) if flip)

    def stored_from_shown(self, shape: Sequence[int]) -> NDArray[np.float64]:
        """(4, 4): shown indices to stored indices, for a stored ``shape``."""
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1
        for shown, (stored, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            matrix[stored, shown] = -1 if flip else 1
            matrix[stored, 3] = shape[stored] - 1 if flip else 0
        return matrix

    def slice_numbers(self, shape: Sequence[int]) -> list[int]:
        """For each slice of the view its number in the file, counted from 1; ``shape`` is the stored one."""
        numbers = list(range(1, shape[self.axes[2]] + 1))
        return numbers[::-1] if self.flips[2] else numbers


def short_axis_view(affine: ArrayLike, *, directions: bool = True, flip_slices: bool = False) -> ShortAxisView:
    """How to see the short-axis view of a stack with this affine.

    The slice axis is the last, unless another has voxels :data:`THICK` times as long as along both others. Of the two
    in the plane the one closer to the patient's left-right becomes the first.

    Args:
        affine: (4, 4), voxel indices to RAS+ world mm, its columns as long as the voxels.
        directions: whether its directions are to be believed; else nothing is flipped, and the axes in the plane
            stay in the order in which they are stored.
        flip_slices: whether to show the slices in the order opposite to what follows from all this.
    """
    columns = np.asarray(affine, dtype=np.float64)[:3, :3]
    lengths = np.linalg.norm(columns, axis=0)
    thick = [axis for axis in range(3) if all(lengths[axis] >= THICK * lengths[o] for o in range(3) if o != axis)]
    slices = thick[0] if thick else 2
    first, second = (axis for axis in range(3) if axis != slices)
    if not directions:
        return ShortAxisView((first, second, slices), (False, False, flip_slices))
    cosines = columns / lengths
    if abs(cosines[:, second] @ _TO_LEFT) > abs(cosines[:, first] @ _TO_LEFT):
        first, second = second, first
    axes = (first, second, slices)
    along = (float(cosines[:, a] @ way) for a, way in zip(axes, (_TO_LEFT, _DOWN, _TO_APEX), strict=True))
    x, y, z = (cosine < 0 for cosine in along)
    return ShortAxisView(axes, (x, y, z != flip_slices))


def view_of(grid: Grid) -> ShortAxisView:
    """:func:`short_axis_view` of a grid: its directions count where they are known, and the user's word always."""
    return short_axis_view(grid.affine, directions=grid.directions, flip_slices=grid.flip_slices)


def directions_known(grid: Grid) -> bool:
    """Whether the header says where the axes point.

    It does not where it has neither sform nor qform, nor where its affine holds ones, signs and zeros alone beside
    another voxel size: such an affine was never filled in. This is so in every file of ACDC, which are stored in the
    view as they are. A conflict of lengths alone, or a spacing given by hand, leaves the directions of an affine.
    """
    return grid.directions


def slice_order(grid: Grid) -> str | None:
    """One line where the order of the slices, base to apex, was assumed or given and not read; else None."""
    if grid.spatial_shape[view_of(grid).axes[2]] == 1:
        return None
    if grid.directions and grid.flip_slices:
        return "slices taken in the order opposite to the header's directions, as --flip-slices says"
    if grid.flip_slices:
        return "slices taken as apex to base, as --flip-slices says"
    if not grid.directions:
        return "slices taken as base to apex: the header does not say their direction; --flip-slices turns it round"
    return None


def reoriented_grid(grid: Grid, view: ShortAxisView) -> Grid:
    """The grid of ``view.apply(data)``: the same places in the patient, with a header that says so in its sform.

    What is unknown or given by the user stays so: the view of the new grid is the grid as it is.
    """
    shape = [grid.spatial_shape[axis] for axis in view.axes]
    affine = grid.affine @ view.stored_from_shown(grid.spatial_shape)
    x, y, z = (grid.spacing[axis] for axis in view.axes)
    header = with_shape(grid.header, [*shape, *grid.shape[3:]])
    header["pixdim"][1:4] = x, y, z
    mark_millimetres(header)
    header["qform_code"] = 0
    header.set_sform(affine, int(header["sform_code"]) or 1)
    return replace(
        grid,
        shape=(*shape, *grid.shape[3:]),
        spacing=(x, y, z),
        affine=affine,
        header=header,
        header_affine=affine,
        flip_slices=grid.flip_slices and grid.directions,
    )
