"""A compact copy of ACDC, for training on a machine that little can be carried to.

python scripts/pack_acdc.py --dataset-dir DIR --output OUT                      # training and validation patients
python scripts/recipes.py --dataset-dir OUT --settings configs/packed.yaml …

The copy has ACDC's layout. Images are what the bundle's preprocessing makes of their intensities (first to 99th
percentile of the whole volume), in 8 bits; images and masks are cropped to a square around the centre, a little wider
than what the network sees. configs/packed.yaml says that the intensities are scaled already. A third of the size: 32 MB
for the 80 patients. Info.cfg keeps the frames and the group alone.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cgdpm_med import acdc_datalist, read_labels, read_volume
from cgdpm_med.console import CaseBar
from cgdpm_med.data.acdc import SECTIONS, read_acdc_patient
from cgdpm_med.files import atomic_write
from cgdpm_med.volumes import Grid, write_on_grid
from cgdpm_med.volumes.grid import with_shape

PERCENTILES = (1, 99)  # of train.yaml and inference.yaml


def main() -> None:
    arguments = parse_arguments()
    items = [item for section in arguments.sections for item in acdc_datalist(arguments.dataset_dir, section)]
    with CaseBar("packing", [item["key"] for item in items]) as bar:
        for item in items:
            pack(item, arguments.dataset_dir, arguments.output, arguments.width)
            bar.update(item["key"], 1)
    size = sum(file.stat().st_size for file in arguments.output.rglob("*") if file.is_file())
    print(f"{len(items)} volumes, {size / 2**20:.1f} MB in {arguments.output}")


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=("train", "validation"))
    parser.add_argument("--width", type=float, default=246.0, help="mm kept in plane; the network sees 240")
    arguments = parser.parse_args(words)
    if arguments.output.resolve() == arguments.dataset_dir.resolve():
        parser.error("--output must be another folder than --dataset-dir: the copy would replace the originals")
    return arguments


def pack(item: dict[str, str], source: Path, target: Path, width: float) -> None:
    """One volume and its mask, and the patient's Info.cfg."""
    image = read_volume(item["image"])
    label = read_labels(item["label"], like=image.grid)
    cut = tuple(slice(k, n - k) for k, n in zip(margins(image.grid, width), image.grid.spatial_shape, strict=True))
    grid = cropped(image.grid, cut)
    for array, name in ((eight_bits(image.data), "image"), (label.data, "label")):
        write_on_grid(array[cut], grid, target / Path(item[name]).relative_to(source))
    patient = read_acdc_patient(Path(item["image"]).parent)
    info = {"ED": patient.ed, "ES": patient.es, "Group": patient.group, "NbFrame": patient.frames}
    lines = [f"{name}: {value}\n" for name, value in info.items() if value is not None]
    with atomic_write(target / patient.patient / "Info.cfg") as file:
        file.write("".join(lines).encode())


def eight_bits(data: NDArray[np.floating]) -> NDArray[np.uint8]:
    """The range between the percentiles as 0 … 255, what lies outside at its ends."""
    low, high = np.percentile(data, PERCENTILES)
    return np.round(255 * np.clip((data - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)


def margins(grid: Grid, width: float) -> tuple[int, int, int]:
    """Voxels to cut from both ends of each axis, as many from one as from the other: the centre stays."""
    x, y, _ = ((n - math.ceil(width / step)) // 2 for n, step in zip(grid.spatial_shape, grid.spacing, strict=True))
    return max(0, x), max(0, y), 0


def cropped(grid: Grid, cut: tuple[slice, ...]) -> Grid:
    """The grid of ``array[cut]``; every voxel stays where it lies in the patient."""
    start = np.array([part.start for part in cut])
    shape = tuple(part.stop - part.start for part in cut)
    affine, header_affine = grid.affine.copy(), grid.header_affine.copy()
    affine[:3, 3] += affine[:3, :3] @ start
    header_affine[:3, 3] = affine[:3, 3]  # the true place, also where the header's voxels have another size
    header = with_shape(grid.header, shape)
    for axis, place in zip("xyz", affine[:3, 3], strict=True):
        header[f"qoffset_{axis}"] = header[f"srow_{axis}"][3] = place
    return replace(grid, shape=shape, affine=affine, header=header, header_affine=header_affine)


if __name__ == "__main__":
    main()
