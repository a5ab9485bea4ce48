"""Whether a file can be a short-axis stack at all: voxel size, length, axes, and slices that are really frames.

A wrong length in a header makes every millilitre wrong and leaves the ejection fraction as it was, so nothing else
shows it. These checks look at the grid and the image alone; :mod:`cgdpm_med.heart.checks` looks at the mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgdpm_med.heart.limits import HeartLimits
from cgdpm_med.inference.quality import Finding

_SAME = 0.02  # two exports of one study round their spacing by less
_REMEDY = "check the voxel size in the header"


def assess_stack(
    image: NDArray[Any],
    spacing: Sequence[float],
    *,
    limits: HeartLimits | None = None,
) -> tuple[Finding, ...]:
    """Sizes and axes that no short-axis stack has, each with its number.

    Args:
        image: (X, Y, Z) in the short-axis view, slices last.
        spacing: of its voxels along the same axes, in mm.
    """
    limits = limits or HeartLimits()
    return (
        *_voxel_findings(spacing, limits),
        *_extent_findings(image.shape, spacing, limits),
        *_axis_findings(image.shape, spacing),
        *_likeness_findings(image, spacing[2], limits),
    )


def compare_grids(spacings: Mapping[str, Sequence[float]]) -> tuple[Finding, ...]:
    """Whether the frames of one heart have voxels of one size; ``spacings`` in mm, by the name of the frame."""
    (first, size), *others = spacings.items()
    return tuple(
        Finding("voxel size", f"voxels measure {_by(size)} mm at {first} and {_by(other)} mm at {name}")
        for name, other in others
        if not np.allclose(size, other, rtol=_SAME, atol=0)
    )


def outside(value: float, limits: tuple[float, float]) -> bool:
    """Whether a value lies beyond its limits."""
    return not limits[0] <= value <= limits[1]


# --- measurements -----------------------------------------------------------------------------------------------------


def slice_likeness(image: NDArray[Any]) -> float | None:
    """Median correlation of neighbouring slices of an image (X, Y, Z), in [-1, 1]; None for fewer than three slices.

    Slices without any contrast are left out.
    """
    slices = np.moveaxis(np.asarray(image, dtype=np.float64), 2, 0).reshape(image.shape[2], -1)
    slices = slices - slices.mean(axis=1, keepdims=True)
    size = np.linalg.norm(slices, axis=1)
    drawn = size > 0
    if np.count_nonzero(drawn) < 3:
        return None
    unit = slices[drawn] / size[drawn, None]
    return float(np.median((unit[1:] * unit[:-1]).sum(axis=1)))


# --- checks -----------------------------------------------------------------------------------------------------------


def _voxel_findings(spacing: Sequence[float], limits: HeartLimits) -> list[Finding]:
    x, y, z = spacing
    findings = []
    if outside(min(x, y), limits.pixel) or outside(max(x, y), limits.pixel):
        reason = f"pixels measure {x:.3g} x {y:.3g} mm, outside {_span(limits.pixel)} mm: {_REMEDY}"
        findings.append(Finding("voxel size", reason))
    if max(x, y) > limits.pixel_ratio * min(x, y):
        reason = f"pixels of {x:.3g} x {y:.3g} mm are far from square: the axes may be swapped"
        findings.append(Finding("axes", reason))
    if outside(z, limits.slice_distance):
        reason = f"slices lie {z:.3g} mm apart, outside {_span(limits.slice_distance)} mm: {_REMEDY}"
        findings.append(Finding("voxel size", reason))
    return findings


def _extent_findings(shape: Sequence[int], spacing: Sequence[float], limits: HeartLimits) -> list[Finding]:
    findings = []
    if shape[2] < limits.slices:
        number = "1 slice" if shape[2] == 1 else f"{shape[2]} slices"
        reason = f"the stack has {number}, fewer than {limits.slices}: its volumes are not those of a whole heart"
        findings.append(Finding("few slices", reason))
    elif outside(length := shape[2] * spacing[2], limits.stack):
        of = f"{shape[2]} slices {spacing[2]:.3g} mm apart make a stack of {length:.3g} mm"
        reason = f"{of}, outside {_span(limits.stack)} mm: check the slice distance in the header"
        findings.append(Finding("stack length", reason))
    width, height = (shape[axis] * spacing[axis] for axis in (0, 1))
    if outside(min(width, height), limits.picture) or outside(max(width, height), limits.picture):
        reason = f"the picture measures {width:.3g} x {height:.3g} mm, outside {_span(limits.picture)} mm: {_REMEDY}"
        findings.append(Finding("picture size", reason))
    return findings


def _axis_findings(shape: Sequence[int], spacing: Sequence[float]) -> list[Finding]:
    x, y, z = (size * length for size, length in zip(shape, spacing, strict=True))
    if z <= min(x, y) and shape[2] <= min(shape[:2]):
        return []
    stack = f"the stack of {shape[2]} slices ({z:.3g} mm)"
    picture = f"a picture of {shape[0]} x {shape[1]} pixels ({x:.3g} x {y:.3g} mm)"
    return [Finding("axes", f"{stack} is longer than {picture} is wide: the axes look swapped")]


def _likeness_findings(image: NDArray[Any], distance: float, limits: HeartLimits) -> list[Finding]:
    if distance < limits.alike_distance or (alike := slice_likeness(image)) is None or alike <= limits.alike:
        return []
    found = f"neighbouring slices, {distance:.3g} mm apart, look alike"
    reason = f"{found} (correlation {alike:.3f}, above {limits.alike:g}): they may be the frames of a cine"
    return [Finding("slices alike", reason)]


def _span(limits: tuple[float, float]) -> str:
    return f"{limits[0]:g} to {limits[1]:g}"


def _by(lengths: Sequence[float]) -> str:
    return " x ".join(f"{length:.3g}" for length in lengths)
