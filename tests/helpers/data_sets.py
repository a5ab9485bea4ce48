"""Small data sets in two layouts, as other tools write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cgdpm_med.datasets.folders import read_dataset
from cgdpm_med.datasets.loading import load_example


def picture(path: Path, array: NDArray[Any], palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array.astype(np.uint8))
    if palette:
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(path)


def volume(path: Path, array: NDArray[Any], spacing: tuple[float, ...] = (1, 1, 5)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([*spacing, 1.0])), path)


def grey(n: int = 0) -> NDArray[np.uint8]:
    return (np.arange(16 * 12).reshape(16, 12) + n).astype(np.uint8)


def square(value: int = 255, at: int = 2) -> NDArray[np.uint8]:
    mask = np.zeros((16, 12), np.uint8)
    mask[at : at + 4, 3:7] = value
    return mask


def write_pictures(folder: Path) -> Path:
    """Four grey pictures with masks of 0 and 255."""
    for n in range(4):
        picture(folder / "images" / f"p{n}.png", grey(n))
        picture(folder / "masks" / f"p{n}.png", square(at=2 + n))
    return folder


def write_nnunet(root: Path) -> Path:
    """Three cases of two channels, two classes, and one to predict."""
    for n in range(4):
        folder = "Tr" if n < 3 else "Ts"
        for channel in range(2):
            array = np.arange(8 * 7 * 3, dtype=np.float32).reshape(8, 7, 3) * (channel + 1)
            volume(root / f"images{folder}" / f"case_{n}_{channel:04d}.nii.gz", array)
        mask = np.zeros((8, 7, 3), np.uint8)
        mask[2:4, 2:4, 1], mask[5, 5, 1] = 1, 2
        if n < 3:
            volume(root / "labelsTr" / f"case_{n}.nii.gz", mask)
    content = {
        "channel_names": {"0": "T2", "1": "ADC"},
        "labels": {"background": 0, "zone": 1, "lesion": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def change(path: Path, **entries: Any) -> None:
    file = path / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def every(root: Path) -> list[Any]:
    dataset = read_dataset(root)
    return [load_example(dataset, example) for example in dataset.labelled]
