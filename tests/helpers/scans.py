"""Small scans on an oblique grid or an upright one, and the options of runs that write no pages."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from cgdpm_med import Options

PLAIN = Options(pages=False)
AFFINE = np.array([[-1.5, 0, 0, 40.0], [0, 1.6, -4, 20], [0, 1.2, 6, 5], [0, 0, 0, 1]])


def write_image(path: Path, data: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(data.astype(np.float32), AFFINE).to_filename(path)
    return path


def scan(path: Path, seed: int = 0) -> Path:
    return write_image(path, np.random.default_rng(seed).uniform(0, 100, (5, 4, 3)))


def upright(
    path: Path, shape: tuple[int, ...] = (5, 4, 3), seed: int = 0, spacing: tuple[float, ...] = (1.5, 2.0, 8.0)
) -> Path:
    """Noise in [0, 100) along the axes of the world."""
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).uniform(0, 100, shape).astype(np.float32)
    nib.Nifti1Image(voxels, np.diag([*spacing, 1])).to_filename(path)
    return path
