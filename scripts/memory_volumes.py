"""Does memory stay flat over many volumes? Segments small phantoms in one process and records its memory after each.

    python scripts/memory_volumes.py --output docs/images

Twice, each time in a new process: volumes of one size, and volumes of changing sizes whose hearts, and so the fields
that the network sees, differ too. What runs is what ``cgdpm-med segment`` runs: reading, ensemble, maps, page, record
of each study. Writes memory_volumes.csv and memory_volumes.png, and prints one line for each series. Reads /proc, so
Linux only; twice 100 volumes with two members of two steps take about six minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np

from cgdpm_med import InputError, Options, Segmenter, find_cases, keep_freed_memory
from cgdpm_med.apps.pipeline import segment_cases
from cgdpm_med.files import atomic_write
from cgdpm_med.phantom import PhantomSpec, make_phantom
from cgdpm_med.tables.csv_files import csv_text

SHAPES = {"one size": ((64, 56, 3),), "changing sizes": ((64, 56, 3), (60, 68, 3), (56, 60, 4))}
FIELDS = {"one size": 96, "changing sizes": 160}
"""Sides of the network's field: at 96 the region around the heart is always the whole field."""

SPACING = (2.8, 2.8, 24.0)
COLOURS = {"one size": "#1f78d1", "changing sizes": "#d93a30"}
MB = 1e6

Row = tuple[int, float, float]
"""Volumes done, resident MB, most MB resident so far."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("memory_volumes"))
    parser.add_argument("--volumes", type=int, default=100)
    parser.add_argument("--bundle", default="acdc_segmentation")
    parser.add_argument("--members", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.volumes < 20:
        parser.error("a slope needs at least 20 volumes")
    series = {}
    for name in SHAPES:
        settings = {"members": arguments.members, "steps": arguments.steps, "field": FIELDS[name]}
        with multiprocessing.get_context("spawn").Pool(1) as fresh:
            series[name] = fresh.apply(record, (name, arguments.volumes, arguments.bundle, settings))
        print(verdict(name, series[name]), flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_csv(arguments.output / "memory_volumes.csv", series)
    plot(arguments.output / "memory_volumes.png", series)


def record(name: str, volumes: int, bundle: str, settings: Mapping[str, int]) -> list[Row]:
    """Segment ``volumes`` phantoms of one series; the first row is before any."""
    keep_freed_memory()  # as the command does
    segmenter = Segmenter.from_bundle(bundle, device="cpu", **settings)
    with tempfile.TemporaryDirectory() as folder:
        write_volumes(Path(folder) / "in", volumes, SHAPES[name])
        rows = [(0, resident(), peak())]

        def report(_: str, error: InputError | None) -> None:
            if error is not None:
                raise error
            rows.append((len(rows), resident(), peak()))

        segment_cases(
            segmenter, find_cases(Path(folder) / "in"), Path(folder) / "out", report=report, options=Options()
        )
    return rows


def write_volumes(folder: Path, count: int, shapes: Sequence[tuple[int, int, int]]) -> None:
    """``count`` end-diastolic phantoms as NIfTI files, their shapes in turn."""
    folder.mkdir(parents=True)
    for n in range(count):
        spec = PhantomSpec(seed=n, shape=shapes[n % len(shapes)], spacing=SPACING, num_frames=3)
        image = nib.Nifti1Image(make_phantom(spec).images[1], np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0]))
        image.to_filename(folder / f"phantom{n:03d}.nii.gz")


def resident() -> float:
    """Of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MB


def peak() -> float:
    """The most that was resident at any time, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB


def slope(rows: Sequence[Row]) -> float:
    """Least squares of resident MB against the volume's number, over the second half."""
    half = np.array(rows[len(rows) // 2 :])
    return float(np.polyfit(half[:, 0], half[:, 1], 1)[0])


def verdict(name: str, rows: Sequence[Row]) -> str:
    """One line: slope over the second half of the volumes, and the peak at its beginning and end."""
    middle, last = rows[len(rows) // 2], rows[-1]
    return (
        f"{name}: {slope(rows):+.3f} MB a volume from volume {middle[0]} to {last[0]}, "
        f"peak {middle[2]:.0f} MB at {middle[0]}, {last[2]:.0f} MB at {last[0]}"
    )


def write_csv(path: Path, series: Mapping[str, Sequence[Row]]) -> None:
    rows = ((name, *row) for name, of_series in series.items() for row in of_series)
    text = csv_text(["series", "volume", "resident_mb", "peak_mb"], rows, number_format=".1f")
    with atomic_write(path) as file:
        file.write(text.encode())


def plot(path: Path, series: Mapping[str, Sequence[Row]]) -> None:
    figure, axis = plt.subplots(figsize=(7, 3.6), constrained_layout=True)
    for name, rows in series.items():
        volumes, now, most = np.array(rows).T
        axis.plot(volumes, now, color=COLOURS[name], label=f"{name}, after each volume")
        axis.plot(volumes, most, color=COLOURS[name], linewidth=1, linestyle="--", label=f"{name}, peak")
    axis.set(xlabel="volumes segmented by one process", ylabel="resident memory (MB)", xlim=(0, volumes[-1]))
    axis.set_ylim(0, 1.1 * max(row[2] for rows in series.values() for row in rows))
    axis.legend(frameon=False, loc="lower right", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
