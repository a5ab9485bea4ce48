"""What reference masks look like to the quality checks: where the limits of cgdpm_med.inference.quality come from.

python scripts/reference_statistics.py ACDC_FOLDER
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import asdict

import numpy as np

from cgdpm_med.data.acdc import ACDC_LABELS, acdc_datalist
from cgdpm_med.heart.checks import heart_sizes, open_cavity_fraction
from cgdpm_med.heart.function import cardiac_function
from cgdpm_med.heart.stack_checks import slice_likeness
from cgdpm_med.heart.structures import LV, MYO, RV
from cgdpm_med.inference.quality import fragment_fraction, missing_slices
from cgdpm_med.metrics.volumetry import FrameVolumes, frame_volumes
from cgdpm_med.volumes import Volume, read_labels, read_volume

Found = defaultdict[str, list[float]]


def add_stack(found: Found, image: Volume) -> None:
    """Grid and likeness of the slices."""
    size = np.array(image.grid.spatial_shape) * image.grid.spacing
    found["pixel, mm"] += image.grid.spacing[:2]
    found["slice distance, mm"].append(image.grid.spacing[2])
    found["slices"].append(image.grid.spatial_shape[2])
    found["stack, mm"].append(size[2])
    found["picture, mm"] += size[:2].tolist()
    found["slices alike"].append(slice_likeness(image.data) or float("nan"))


def add_heart(found: Found, reference: Volume, phase: str) -> None:
    """Shape and sizes of a mask."""
    for label, name in ACDC_LABELS.items():
        found[f"fragments {name}"].append(fragment_fraction(reference.data == label))
        found[f"missing slices {name}"].append(len(missing_slices(reference.data == label)))
    found["open cavity"].append(open_cavity_fraction(reference.data))
    sizes = heart_sizes(reference.data, reference.grid.spacing)
    for name, value in asdict(sizes).items():
        found[f"{phase} {name}"].append(float("nan") if value is None else value)
    if sizes.length and sizes.width:
        found[f"{phase} LV length by width"].append(sizes.length / sizes.width)


def add_function(found: Found, ed: FrameVolumes, es: FrameVolumes) -> None:
    """Both phases of a patient."""
    measures = cardiac_function(ed, es).measures
    for name in ("lv_ef", "rv_ef"):
        value = measures[name].value
        found[name].append(float("nan") if value is None else value)
    stroke = ed.combined - es.combined
    found["RV by LV at ED"].append(ed.combined[RV] / ed.combined[LV])
    found["ES by ED mass"].append(es.combined[MYO] / ed.combined[MYO])
    found["stroke volumes apart, ml"].append(abs(stroke[RV] - stroke[LV]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="in ACDC's layout")
    parser.add_argument("--section", default="train", help="of the committed split")
    options = parser.parse_args()
    found: Found = defaultdict(list)
    volumes = {}
    for item in acdc_datalist(options.folder, options.section):
        image, reference = read_volume(item["image"]), read_labels(item["label"])
        add_stack(found, image)
        add_heart(found, reference, item["frame"])
        volumes[item["patient"], item["frame"]] = frame_volumes(
            reference.data, reference.data[None], reference.grid.voxel_volume
        )
    for patient in sorted({patient for patient, _ in volumes}):
        add_function(found, volumes[patient, "ED"], volumes[patient, "ES"])
    print(f"{'':26}{'n':>5}{'smallest':>10}{'second':>10}{'median':>10}{'99 %':>10}{'largest':>10}")
    for name, values in found.items():
        ordered = np.sort(values)
        shown = (ordered[0], ordered[1], np.median(ordered), np.percentile(ordered, 99), ordered[-1])
        print(f"{name:26}{len(values):>5}" + "".join(f"{value:>10.4f}" for value in shown))


if __name__ == "__main__":
    main()
