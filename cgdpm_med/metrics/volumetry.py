"""Volumes of the labels of a mask in ml, and numbers made of them with an interval from the ensemble's members.

Everything starts from millilitres by label, of the combined mask and of every member (:class:`FrameVolumes`); voxels
are not needed after that, so a cine of any length costs a few numbers a frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cgdpm_med.files import InputError

# --- one frame --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FrameVolumes:
    """Millilitres by label of one frame.

    Attributes:
        combined: (C,), of the combined mask.
        members: (K, C), of each member.
    """

    combined: NDArray[np.float64]
    members: NDArray[np.float64]


def frame_volumes(mask: ArrayLike, members: ArrayLike, voxel_volume: float, num_classes: int = 4) -> FrameVolumes:
    """Count the voxels of each label.

    Args:
        mask: integer labels (*S).
        members: integer labels (K, *S); K may be 0.
        voxel_volume: of one voxel, in mm^3.
        num_classes: C; labels are 0 to C - 1.

    Raises:
        InputError: for members of another shape, labels out of range, or a voxel volume that is not positive.
    """
    combined, each = np.asarray(mask), np.asarray(members)
    if each.shape[1:] != combined.shape:
        raise InputError(
            f"members of shape {each.shape} do not fit a mask of shape {combined.shape}",
            remedy="Give members as (K, X, Y, Z)",
        )
    if not 0 < voxel_volume < math.inf:
        raise InputError(f"a voxel volume of {voxel_volume} mm^3 is impossible", remedy="Correct the voxel size")
    millilitres = voxel_volume / 1000
    return FrameVolumes(
        _counts(combined, num_classes) * millilitres,
        np.array([_counts(m, num_classes) for m in each]).reshape(len(each), num_classes) * millilitres,
    )


def _counts(labels: NDArray[Any], num_classes: int) -> NDArray[np.float64]:
    if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
        raise InputError(
            f"labels run from {labels.min()} to {labels.max()}", remedy=f"Use labels from 0 to {num_classes - 1}"
        )
    return np.bincount(labels.ravel().astype(np.int64), minlength=num_classes).astype(np.float64)


# --- numbers with an interval -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A number of the combined mask and the ends of its interval; None where undefined.

    The value is what was measured, even where it is impossible (a fraction below 0, of a mask that grows where it
    can only shrink). The ends are possible values, so such a value lies outside its interval.
    """

    value: float | None
    lower: float | None = None
    upper: float | None = None

    @property
    def width(self) -> float | None:
        """Length of the interval."""
        return None if self.lower is None or self.upper is None else self.upper - self.lower

    def divided_by(self, divisor: float) -> Estimate:
        """The same estimate in units of ``divisor``."""
        return Estimate(*(None if x is None else x / divisor for x in (self.value, self.lower, self.upper)))


def interval_estimate(
    value: float,
    members: ArrayLike,
    *,
    level: float = 0.9,
    widening: float = 1.0,
    margin: float = 0.0,
    floor: float = -math.inf,
    ceiling: float = math.inf,
) -> Estimate:
    """A number with the central ``level`` interval of its members.

    The ends are the members' quantiles at (1 - level) / 2 and (1 + level) / 2, linear between order statistics; where
    the value lies outside them, the interval reaches to the value. ``widening`` multiplies the distance of both ends
    from the value, and ``margin`` is added to it: fitted by conformal prediction
    (:mod:`cgdpm_med.evaluation.calibrate`) they make the coverage hold on exchangeable cases,
    1 and 0 leave the ensemble's own spread.

    Both ends are then moved into [``floor``, ``ceiling``], each to the nearest possible value. The value is not: it
    stays as found and may lie outside; the possible value nearest to it lies inside. No possible truth that the
    interval held is lost by this, so coverage is the same.

    Members that are not finite (a fraction of nothing) are left out; with fewer than two
    others there is no interval, and a value that is not finite gives no estimate.

    Raises:
        ValueError: for a level outside (0, 1), or a negative factor or margin.
    """
    if not 0 < level < 1 or not 0 <= widening < math.inf:
        raise ValueError(f"level must lie in (0, 1) and widening be at least 0, not {level} and {widening}")
    if not 0 <= margin < math.inf:
        raise ValueError(f"a margin must be at least 0, not {margin}")
    if not math.isfinite(value):
        return Estimate(None)
    finite = np.asarray(members, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if finite.size < 2:
        return Estimate(float(value))
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    lower = value - widening * max(value - float(low), 0.0) - margin
    upper = value + widening * max(float(high) - value, 0.0) + margin
    return Estimate(float(value), min(max(lower, floor), ceiling), max(min(upper, ceiling), floor))
