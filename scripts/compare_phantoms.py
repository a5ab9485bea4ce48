"""Two made-up methods on synthetic patients, compared: the example of docs/scoring.md.

python scripts/compare_phantoms.py OUT

Both repeat the known masks with some slices shifted by a voxel, the second more of them. Masks go to OUT/ref,
OUT/first and OUT/second; the tables of `cgdpm-med compare` to OUT/tables.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from cgdpm_med import compare_methods, read_labels, write_phantom_dataset
from cgdpm_med.evaluation.compare_files import format_comparison
from cgdpm_med.volumes import write_on_grid

SHIFTED = {"first": 0.3, "second": 0.6}  # fraction of the slices


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUT")
    parser.add_argument("--patients", type=int, default=12)
    arguments = parser.parse_args()
    write_methods(arguments.output, arguments.patients)
    methods = {name: arguments.output / name for name in SHIFTED}
    print(format_comparison(compare_methods(arguments.output / "ref", methods, arguments.output / "tables")))


def write_methods(folder: Path, patients: int) -> None:
    write_phantom_dataset(folder / "ref", patients=patients, shape=(96, 96, 8), spacing=(3.0, 3.0, 12.0))
    rng = np.random.default_rng(0)
    for file in sorted((folder / "ref").rglob("*_gt.nii.gz")):
        reference = read_labels(file)
        for name, fraction in SHIFTED.items():
            mask = reference.data.copy()
            for k in np.flatnonzero(rng.random(mask.shape[2]) < fraction):
                mask[..., k] = np.roll(mask[..., k], 1, axis=int(rng.integers(2)))
            write_on_grid(mask, reference.grid, folder / name / file.name.replace("_gt", ""))


if __name__ == "__main__":
    main()
