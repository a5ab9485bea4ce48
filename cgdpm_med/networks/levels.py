"""Sizes of a U-Net's levels: how each is halved into the next, and how far its convolutions reach, axis by axis.

Voxels that are longer along one axis than along the others are best left whole along it until the others have caught
up: strides of 1 and kernels of 1 there say so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Axes = tuple[int, ...]


@dataclass(frozen=True)
class Levels:
    """Axis by axis.

    Attributes:
        stem: sides of the patches in which everything enters.
        strides: between one level and the next, fine to coarse.
        kernels: of the convolutions of each level.
    """

    stem: Axes
    strides: tuple[Axes, ...]
    kernels: tuple[Axes, ...]

    @property
    def divisors(self) -> Axes:
        """Sizes are multiples of these."""
        return tuple(math.prod(factors) for factors in zip(self.stem, *self.strides, strict=True))

    @property
    def stem_steps(self) -> tuple[Axes, ...]:
        """The stem as steps of at most two; an axis that takes part in fewer takes part in the last ones."""
        halvings = [side.bit_length() - 1 for side in self.stem]
        count = max(halvings)
        return tuple(tuple(2 if count - step <= h else 1 for h in halvings) for step in range(count))

    def way_down(self, steps: int) -> list[tuple[Axes, Axes]]:
        """Kernel and stride of each layer that carries an image of full size so many steps down, one layer a step.

        The first layer, before any step, keeps the size.
        """
        taken = [*self.stem_steps, *self.strides][:steps]
        first, inside = self.kernels[0], len(self.stem_steps)
        kernels = [self.kernels[max(number - inside, 0)] for number in range(len(taken))]
        return [(first, (1,) * len(self.stem)), *zip(kernels, taken, strict=True)]


def levels_of(
    spatial_dims: int,
    count: int,
    patch_size: int | Sequence[int] = 1,
    strides: Sequence[Sequence[int]] | None = None,
    kernels: Sequence[Sequence[int]] | None = None,
) -> Levels:
    """Checked; strides of 2 and kernels of 3 where nothing is given.

    Raises:
        ValueError: for lengths that disagree, or sides that no network has.
    """
    stem = (patch_size,) * spatial_dims if isinstance(patch_size, int) else tuple(patch_size)
    steps = tuple(tuple(step) for step in strides) if strides is not None else ((2,) * spatial_dims,) * (count - 1)
    reach = tuple(tuple(side) for side in kernels) if kernels is not None else ((3,) * spatial_dims,) * count
    if any(side < 1 or side & (side - 1) for side in stem):
        raise ValueError(f"patch_size must be a power of two, not {patch_size}")
    if len(steps) != count - 1 or len(reach) != count:
        raise ValueError(f"{count} levels have {count - 1} strides and {count} kernels, not {len(steps)}, {len(reach)}")
    if any(len(axes) != spatial_dims for axes in (stem, *steps, *reach)):
        raise ValueError(f"patch_size, strides and kernels have {spatial_dims} sides each")
    if any(side not in (1, 2) for step in steps for side in step) or any(n not in (1, 3) for k in reach for n in k):
        raise ValueError("strides are 1 or 2 and kernels 1 or 3 along each axis")
    return Levels(stem, steps, reach)


def anisotropic_levels(spacing: Sequence[float], sizes: Sequence[int], stem_steps: int, count: int) -> Levels:
    """Levels for voxels of a spacing: an axis takes part once its voxels are shorter than twice the shortest.

    Until then it is neither halved nor looked along. An axis that would be left with fewer than four voxels, or that is
    odd, is not halved any more, and the others do not wait for it.

    Args:
        spacing: of a voxel along each axis.
        sizes: voxels that the network shall see along each axis.
        stem_steps: halvings in the stem.
        count: of levels.
    """
    now, left = list(spacing), list(sizes)
    steps, kernels = [], [_reach(now)]
    for _ in range(stem_steps + count - 1):
        step = halved(now, left)
        now = [s * f for s, f in zip(now, step, strict=True)]
        left = [n // f for n, f in zip(left, step, strict=True)]
        steps.append(step)
        kernels.append(tuple(max(pair) for pair in zip(kernels[-1], _reach(now), strict=True)))
    stem = tuple(math.prod(factors) for factors in zip((1,) * len(now), *steps[:stem_steps], strict=True))
    return Levels(stem, tuple(steps[stem_steps:]), tuple(kernels[stem_steps:]))


LEAST = 4
"""Voxels along an axis that is not halved any more."""


def halved(spacing: Sequence[float], sizes: Sequence[int]) -> Axes:
    """Of the axes that can be halved, those whose voxels are shorter than twice the shortest."""
    able = [n % 2 == 0 and n >= 2 * LEAST for n in sizes]
    shortest = min((s for s, can in zip(spacing, able, strict=True) if can), default=0.0)
    return tuple(2 if can and s < 2 * shortest else 1 for s, can in zip(spacing, able, strict=True))


def _reach(spacing: Sequence[float]) -> Axes:
    """Kernel sizes: 3 along axes whose voxels are shorter than twice the shortest, else 1."""
    return tuple(3 if s < 2 * min(spacing) else 1 for s in spacing)
