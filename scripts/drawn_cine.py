"""A cine of another scanner, segmented by the shipped default and compared with what experts drew.

python scripts/drawn_cine.py SERIES CONTOURS [--weights MODEL.pt]

SERIES is a DICOM cine of the Sunnybrook Cardiac Data, CONTOURS the folder of its ``IM-0001-0007-icontour-manual.txt``
(the cavity of the left ventricle) and ``…-ocontour-manual.txt`` (the epicardium): columns and rows of an outline, in
pixels of the image with that InstanceNumber. Prints Dice in percent, the mean over drawn slices.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
from matplotlib.path import Path as Polygon
from numpy.typing import NDArray

from cgdpm_med import Segmenter
from cgdpm_med.files import InputError
from cgdpm_med.volumes import frames
from cgdpm_med.volumes.dicom.finding import find_dicom

LV, MYO = 3, 2
NAMES = {"i": "LV cavity", "o": "epicardium"}


class Contour(NamedTuple):
    """Kind ("i": LV cavity, "o": epicardium), InstanceNumber, and (n, 2) points, column and row."""

    kind: str
    instance: int
    points: NDArray[np.float64]


def contours(folder: Path) -> Iterator[Contour]:
    """Those of a folder, in the order of their names."""
    for path in sorted(folder.iterdir()):
        if found := re.fullmatch(r"IM-\d{4}-(\d{4})-([io])contour-manual\.txt", path.name):
            yield Contour(found[2], int(found[1]), np.loadtxt(path))


def filled(points: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """(columns, rows): pixels whose centre lies inside a contour."""
    centres = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1).reshape(-1, 2)
    return Polygon(points).contains_points(centres).reshape(size)


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Of two masks of which one at least is not empty."""
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def compare(series: Path, drawn: Path, segmenter: Segmenter) -> dict[tuple[str, int], list[float]]:
    """Dice of every drawn slice, by kind and phase (from 1); only phases with a contour are segmented.

    Raises:
        InputError: the series is no single stack, or lacks an image of a contour.
    """
    (found,) = find_dicom(series)
    if found.stack is None:
        raise found.error or InputError("is no stack", path=series, remedy="Give one short-axis cine")
    places = {
        image.instance: (k, t) for k, of_slice in enumerate(found.stack.images) for t, image in enumerate(of_slice)
    }
    lines = list(contours(drawn))
    if missing := [line.instance for line in lines if line.instance not in places]:
        what = f"has no image of InstanceNumber {missing[0]}, in which experts drew"
        raise InputError(what, path=series, remedy="Give the series that the contours are of")
    moments = list(frames(found.stack.read()))
    masks = {t: segmenter(moments[t], f"phase{t}").mask for t in sorted({places[line.instance][1] for line in lines})}
    scores: dict[tuple[str, int], list[float]] = {}
    for kind, instance, points in lines:
        k, t = places[instance]
        mask = masks[t][:, :, k]
        structure = mask == LV if kind == "i" else (mask == LV) | (mask == MYO)
        scores.setdefault((kind, t + 1), []).append(dice(filled(points, mask.shape), structure))
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("series", type=Path)
    parser.add_argument("contours", type=Path)
    parser.add_argument("--weights", type=Path)
    arguments = parser.parse_args()
    try:
        segmenter = Segmenter.from_bundle(**({"weights": str(arguments.weights)} if arguments.weights else {}))
        scores = compare(arguments.series, arguments.contours, segmenter)
    except InputError as error:
        parser.exit(2, f"error: {error}\n")
    for (kind, phase), values in sorted(scores.items()):
        print(f"{NAMES[kind]}, phase {phase}: {100 * fmean(values):.1f} of {len(values)} slices")
    for kind, name in NAMES.items():
        print(f"{name}: {100 * fmean(v for (of, _), group in scores.items() if of == kind for v in group):.1f}")


if __name__ == "__main__":
    main()
