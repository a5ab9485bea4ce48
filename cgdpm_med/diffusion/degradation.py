"""How a low-resolution image comes from a high-resolution one, and what is known of the way back.

A degradation D has an exact right inverse, ``degrade(fill(y)) = y``: whatever x is, ``x + fill(y - degrade(x))`` agrees
with y (null-space projection; Wang et al., 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

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
class AreaDegradation:
    """Area averaging: a coarse pixel is the mean of the fine ones it covers.

    Raises:
        ValueError: for a factor below one.
    """

    factor: int

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"the down-sampling factor must be at least 1, not {self.factor}")

    def degrade(self, x: Tensor) -> Tensor:
        """Mean over factor x factor (x factor) blocks; (B, C, *S) -> (B, C, *S / factor).

        Raises:
            ValueError: for a size that the factor does not divide.
        """
        if any(n % self.factor for n in x.shape[2:]):
            raise ValueError(f"spatial size {tuple(x.shape[2:])} must be divisible by the factor {self.factor}")
        return (F.avg_pool2d if x.ndim == 4 else F.avg_pool3d)(x, self.factor)

    def fill(self, y: Tensor) -> Tensor:
        """Every coarse pixel repeated."""
        return F.interpolate(y, scale_factor=float(self.factor), mode="nearest")

    def upsample(self, y: Tensor) -> Tensor:
        """Bicubic, trilinear in three dimensions."""
        mode = "bicubic" if y.ndim == 4 else "trilinear"
        return F.interpolate(y, scale_factor=float(self.factor), mode=mode, align_corners=False)


def project(x: Tensor, y: Tensor, degradation: Degradation) -> Tensor:
    """The image nearest to x that agrees with y: x + fill(y - degrade(x)).

    Args:
        x: (B, C, *S).
        y: (B, C, *S / factor).
    """
    return x + degradation.fill(y - degradation.degrade(x))
