"""How a low-resolution image comes from a high-resolution one, and what is known of the way back.

A degradation D has an exact right inverse, ``degrade(fill(y)) = y``: whatever x is, ``x + fill(y - degrade(x))`` agrees
with y (null-space projection; Wang et al., 2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Degradation(Protocol):
    """D with a right inverse, and a smooth way up; all of them act on (B, C, *S) and keep B and C."""

    @property
    def factor(self) -> int:
        """Fine pixels per coarse pixel along each axis."""
        ...

    def degrade(self, x: Tensor) -> Tensor:
        """D: (B, C, *S) -> (B, C, *S / factor)."""
        ...

    def fill(self, y: Tensor) -> Tensor:
        """A fine image that D makes y of, exactly: (B, C, *S / factor) -> (B, C, *S)."""
        ...

    def upsample(self, y: Tensor) -> Tensor:
        """A good guess of the fine image: (B, C, *S / factor) -> (B, C, *S)."""
        ...


@dataclass(frozen=True)
class ByFactor:
    """What every degradation by a whole factor refuses.

    Raises:
        ValueError: for a factor below one.
    """

    factor: int

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"the down-sampling factor must be at least 1, not {self.factor}")

    def require_whole_blocks(self, x: Tensor) -> None:
        """Raise ValueError for (B, C, *S) of a size that the factor does not divide."""
        if any(n % self.factor for n in x.shape[2:]):
            raise ValueError(f"spatial size {tuple(x.shape[2:])} must be divisible by the factor {self.factor}")


@dataclass(frozen=True)
class AreaDegradation(ByFactor):
    """Area averaging: a coarse pixel is the mean of the fine ones it covers.

    Raises:
        ValueError: for a factor below one.
    """

    def degrade(self, x: Tensor) -> Tensor:
        """Mean over factor x factor (x factor) blocks; (B, C, *S) -> (B, C, *S / factor).

        Raises:
            ValueError: for a size that the factor does not divide.
        """
        self.require_whole_blocks(x)
        return (F.avg_pool2d if x.ndim == 4 else F.avg_pool3d)(x, self.factor)

    def fill(self, y: Tensor) -> Tensor:
        """Every coarse pixel repeated."""
        return F.interpolate(y, scale_factor=float(self.factor), mode="nearest")

    def upsample(self, y: Tensor) -> Tensor:
        """Bicubic, trilinear in three dimensions."""
        mode = "bicubic" if y.ndim == 4 else "trilinear"
        return F.interpolate(y, scale_factor=float(self.factor), mode=mode, align_corners=False)


@dataclass(frozen=True)
class KSpaceDegradation(ByFactor):
    """A scanner's low resolution: along every axis the n lowest of the factor n spatial frequencies are kept.

    A coarse pixel lies in the centre of the fine ones it covers, and ``fill`` is the scanner's own zero-filling: the
    trigonometric polynomial through the coarse pixels. An even n has a highest frequency whose two signs cannot be told
    apart on the coarse grid: ``fill`` divides it evenly between them, ``degrade`` adds them up, as sampling does.

    Each axis is a matrix product with real kernels of Dirichlet, which needs no complex numbers and any size.

    Raises:
        ValueError: for a factor below one.
    """

    def degrade(self, x: Tensor) -> Tensor:
        """The low frequencies on the coarse grid; (B, C, *S) -> (B, C, *S / factor).

        Raises:
            ValueError: for a size that the factor does not divide.
        """
        self.require_whole_blocks(x)
        for axis in range(2, x.ndim):
            n = x.shape[axis] // self.factor
            # at factor 1 the two signs of the highest wave are one already
            kernel = dirichlet(n, self.factor, 2.0 if self.factor > 1 else 1.0).t() / (n * self.factor)
            x = _along(x, kernel, axis)
        return x

    def fill(self, y: Tensor) -> Tensor:
        """Zero-filling; (B, C, *S / factor) -> (B, C, *S)."""
        for axis in range(2, y.ndim):
            n = y.shape[axis]
            y = _along(y, dirichlet(n, self.factor, 1.0) / n, axis)
        return y

    def upsample(self, y: Tensor) -> Tensor:
        """Zero-filling: what a scanner's console shows."""
        return self.fill(y)


@lru_cache(maxsize=64)
def dirichlet(n: int, factor: int, highest: float) -> Tensor:
    """The sum of all waves that n coarse pixels hold, around every coarse pixel: (factor n, n), float64.

    Entry (j, p) is 1 + 2 sum_k cos(2 pi k d / n) over 0 < k < n / 2, and for an even n ``highest`` cos(pi d) more. The
    distance d = (j + 1/2) / factor - p - 1/2 counts coarse pixels.
    """
    fine, coarse = torch.arange(n * factor, dtype=torch.float64), torch.arange(n, dtype=torch.float64)
    d = ((fine + 0.5) / factor)[:, None] - coarse - 0.5
    waves = torch.ones_like(d)
    for k in range(1, (n + 1) // 2):
        waves += 2 * torch.cos(2 * math.pi * k * d / n)
    return waves if n % 2 else waves + highest * torch.cos(math.pi * d)


def _along(x: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """The matrix applied to one axis."""
    return torch.tensordot(x, matrix.to(x), dims=([axis], [1])).movedim(-1, axis)


def project(x: Tensor, y: Tensor, degradation: Degradation) -> Tensor:
    """The image nearest to x that agrees with y: x + fill(y - degrade(x)).

    Args:
        x: (B, C, *S).
        y: (B, C, *S / factor).
    """
    return x + degradation.fill(y - degradation.degrade(x))
