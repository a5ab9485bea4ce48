"""Label maps on disk, for tests of scoring."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

AFFINE = np.diag([2.0, 3.0, 8.0, 1.0])


def write_labels(path: Path, labels: ArrayLike, affine: NDArray[np.float64] = AFFINE) -> Path:
    """A label map, 3D or 4D, as nibabel writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.asarray(labels)
    nib.Nifti1Image(array.astype(np.uint16 if array.max() > 255 else np.uint8), affine).to_filename(path)
    return path


def heart() -> NDArray[np.uint8]:
    """(8, 6, 2): 4 voxels of label 1, 6 of label 2 and 8 of label 3, in ACDC's order."""
    mask = np.zeros((8, 6, 2), np.uint8)
    mask[1:5, 1, 0], mask[1:7, 3, 0], mask[0:8, 5, 1] = 1, 2, 3
    return mask


def renamed(mask: NDArray[np.uint8], *values: int) -> NDArray[np.uint16]:
    """Label k becomes ``values[k]``."""
    return np.array(values, np.uint16)[mask]
