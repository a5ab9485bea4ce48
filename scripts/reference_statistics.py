"""What reference masks look like to the quality checks: where the limits of cgdpm_med.apps.quality come from.

python scripts/reference_statistics.py ACDC_FOLDER
"""

from __future__ import annotations

import argparse

import numpy as np

from cgdpm_med.apps.cardiac import cardiac_function, frame_volumes
from cgdpm_med.apps.quality import fragment_fraction, missing_slices, open_cavity_fraction
from cgdpm_med.data import ACDC_LABELS, acdc_datalist
from cgdpm_med.volumes import read_labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="in ACDC's layout")
    parser.add_argument("--section", default="train", help="of the committed split")
    options = parser.parse_args()
    found: dict[str, list[float]] = {}
    volumes = {}
    for item in acdc_datalist(options.folder, options.section):
        reference = read_labels(item["label"])
        volumes[item["patient"], item["frame"]] = frame_volumes(
            reference.data, reference.data[None], reference.grid.voxel_volume
        )
        for label, name in ACDC_LABELS.items():
            found.setdefault(f"fragments {name}", []).append(fragment_fraction(reference.data == label))
            found.setdefault(f"missing slices {name}", []).append(len(missing_slices(reference.data == label)))
        found.setdefault("open cavity", []).append(open_cavity_fraction(reference.data))
    for patient in sorted({patient for patient, _ in volumes}):
        function = cardiac_function(volumes[patient, "ED"], volumes[patient, "ES"])
        for name in ("lv_ef", "rv_ef"):
            found.setdefault(name, []).append(function.measures[name].value or float("nan"))
    print(f"{'':20}{'n':>5}{'smallest':>10}{'second':>10}{'median':>10}{'99 %':>10}{'largest':>10}")
    for name, values in found.items():
        ordered = np.sort(values)
        shown = (ordered[0], ordered[1], np.median(ordered), np.percentile(ordered, 99), ordered[-1])
        print(f"{name:20}{len(values):>5}" + "".join(f"{value:>10.4f}" for value in shown))


if __name__ == "__main__":
    main()
