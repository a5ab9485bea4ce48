"""What a phantom can be asked for, and the population averages of the five groups."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

AffineKind = Literal["acdc", "oblique", "plain"]

MIN_STACK_MM = 70.0
"""A lower stack of slices cannot hold a heart."""


@dataclass(frozen=True)
class Population:
    """Mean and standard deviation within a group: volumes in ml, ejection fractions as ratios.

    ``septum`` thickens the wall next to the right ventricle, ``infarct`` thins it around one place, ``flattening``
    presses the septum towards the left; all three are ratios.
    """

    edv: tuple[float, float]
    ef: tuple[float, float]
    myocardium: tuple[float, float]
    rv_edv: tuple[float, float]
    rv_ef: tuple[float, float]
    septum: float = 0.0
    infarct: float = 0.0
    flattening: float = 0.0


POPULATIONS = {
    "DCM": Population((260, 25), (0.20, 0.05), (160, 18), (175, 25), (0.32, 0.06)),
    "HCM": Population((130, 18), (0.67, 0.04), (165, 20), (125, 18), (0.58, 0.04), septum=0.35),
    "MINF": Population((172, 25), (0.32, 0.05), (118, 12), (125, 20), (0.50, 0.05), infarct=0.35),
    "NOR": Population((130, 18), (0.60, 0.04), (98, 12), (152, 20), (0.55, 0.04)),
    "RV": Population((115, 12), (0.54, 0.05), (80, 10), (195, 22), (0.33, 0.05), flattening=0.08),
}
GROUPS = tuple(POPULATIONS)
"""Pathology groups, with ACDC's names."""


@dataclass(frozen=True)
class PhantomSpec:
    """What to draw. Equal specifications give equal bytes.

    Args:
        seed: keys every random choice.
        group: one of :data:`GROUPS`; sets volumes, ejection fraction and wall shape.
        shape: voxels along x, y and slices.
        spacing: voxel size in mm; the stack must be at least 70 mm tall.
        affine: ``"acdc"`` (sform diag(-1, -1, 1) of code 2, qform of code 0, the spacing in pixdim alone),
            ``"oblique"`` (sform and qform agree on a rotated grid of the true spacing) or ``"plain"`` (both
            axis-aligned).
        num_frames: frames in the cardiac cycle; frame 1 is end-diastole.
        noise: standard deviation of the Rician noise, as a ratio to the blood signal.
        bias: strength of the receive-coil shading; 0 switches it off.

    Raises:
        ValueError: a value no phantom can be drawn with.
    """

    seed: int = 0
    group: str = "NOR"
    shape: tuple[int, int, int] = (216, 256, 10)
    spacing: tuple[float, float, float] = (1.5, 1.5, 10.0)
    affine: AffineKind = "acdc"
    num_frames: int = 30
    noise: float = 0.03
    bias: float = 1.0

    def __post_init__(self) -> None:
        if self.group not in POPULATIONS:
            raise ValueError(f"phantom group {self.group!r} is unknown; choose one of {', '.join(GROUPS)}")
        if self.affine not in ("acdc", "oblique", "plain"):
            raise ValueError(f"phantom affine {self.affine!r} is unknown; choose acdc, oblique or plain")
        if self.seed < 0:
            raise ValueError(f"phantom seed must not be negative, got {self.seed}")
        if len(self.shape) != 3 or min(self.shape) < 2:
            raise ValueError(f"phantom shape must be three axes of two voxels or more, got {self.shape}")
        if len(self.spacing) != 3 or not all(0 < d < float("inf") for d in self.spacing):
            raise ValueError(f"phantom spacing must be three positive lengths in mm, got {self.spacing}")
        if self.stack_mm < MIN_STACK_MM:
            raise ValueError(f"a stack of {self.stack_mm:g} mm cannot hold a heart; give {MIN_STACK_MM:g} mm or more")
        if self.num_frames < 3:
            raise ValueError(f"a phantom cine needs 3 frames or more, got num_frames={self.num_frames}")
        if not (self.noise >= 0 and self.bias >= 0):
            raise ValueError(f"phantom noise and bias must not be negative, got {self.noise} and {self.bias}")

    @classmethod
    def small(cls, seed: int = 0, **changes: Any) -> PhantomSpec:
        """A coarse phantom of 64 x 56 x 4 voxels, quick to draw, for tests."""
        coarse = cls(seed=seed, shape=(64, 56, 4), spacing=(2.8, 2.8, 22.0), num_frames=6)
        return replace(coarse, **changes)

    @property
    def stack_mm(self) -> float:
        """Height of the stack of slices."""
        return self.shape[2] * self.spacing[2]

    @property
    def es_frame(self) -> int:
        """1-based number of the end-systolic frame."""
        return 1 + max(1, round(0.36 * self.num_frames))


def keyed_rng(*key: int | str) -> np.random.Generator:
    """Random numbers that depend on the key alone."""
    return np.random.default_rng([part if isinstance(part, int) else zlib.crc32(part.encode()) for part in key])
