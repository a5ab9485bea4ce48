"""How often 90 % intervals of phantoms hold the truth, which is known: 200 of them by default.

python scripts/phantom_coverage.py OUT

Writes OUT/statistics.md and OUT/statistics.json. Run again, it goes on where it stopped. Three kinds of interval: the
members' own spread; calibrated by the file beside the weights, if it fits (fitted to patients, which phantoms are not:
nothing is promised); and calibrated on one half of the phantoms for the other, where the promise must hold.

A phantom is a few thick slices, so that 200 are affordable; --slices 9 makes them as thin as a patient's.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cgdpm_med.apps.pipeline import segment_all
from cgdpm_med.apps.segment_options import Options
from cgdpm_med.data.acdc import acdc_patients
from cgdpm_med.evaluation.calibrate import fit_intervals
from cgdpm_med.evaluation.files import format_function
from cgdpm_med.evaluation.function_scores import (
    FrameTruth,
    KnownStudy,
    compare_function,
    compare_records,
    known_studies,
    true_volumes,
)
from cgdpm_med.evaluation.statistics_page import function_table, statistics_page
from cgdpm_med.files import atomic_write
from cgdpm_med.inference.segmenter import Segmenter, choose_device
from cgdpm_med.phantom import write_phantom_dataset
from cgdpm_med.report.records import read_study
from cgdpm_med.studies.cases import find_cases
from cgdpm_med.studies.measures import Measurements
from cgdpm_med.studies.result import StudyResult
from cgdpm_med.volumes import HeaderWarning, read_labels

FIRST, IN_A_SEED = 901, 50
"""Numbers of the phantoms, and how many each seed gives: ten of every group."""

SEED = 1000
"""Of the first fifty; far from the seeds of demonstration and training."""

SIDE, PIXEL, STACK = 160, 1.5, 72.0
"""Pixels of a side, mm of a pixel, mm of the stack of slices."""


def main() -> None:
    arguments = parse_arguments()
    warnings.simplefilter("ignore", HeaderWarning)  # phantoms copy ACDC's headers on purpose
    segmenter = Segmenter.from_bundle(
        arguments.bundle,
        device=choose_device(arguments.device),
        members=arguments.members,
        steps=arguments.steps,
    )
    shape, spacing = (SIDE, SIDE, arguments.slices), (PIXEL, PIXEL, STACK / arguments.slices)
    studies: list[KnownStudy] = []
    records: dict[str, StudyResult] = {}
    failed: dict[str, str] = {}
    for seed, numbers in numbers_by_seed(arguments.count).items():
        images, masks = (arguments.output / kind / f"seed{seed}" for kind in ("phantoms", "segmentations"))
        missing = [n for n in numbers if not (images / f"patient{n}" / "Info.cfg").is_file()]
        write_phantom_dataset(images, patients=missing, seed=seed, shape=shape, spacing=spacing)
        cases = [case for case in find_cases(images) if int(case.study.key[-3:]) in numbers]
        options = Options(write=("mask",), pages=False)
        failed |= segment_all(segmenter, cases, masks, options=options, resume=True)["failed"]
        for patient in acdc_patients(images):
            record = read_study(masks / patient.patient / f"{patient.patient}.json")
            if record is None or record.function is None:
                continue
            key = f"seed{seed}/{patient.patient}"
            frames = [
                FrameTruth(key, phase, record.volumes[n], truth_of(patient.label(n)))
                for phase, n in (("ED", patient.ed), ("ES", patient.es))
            ]
            studies += known_studies(frames)
            records[key] = replace(record, key=key)
    summary = compare_records(studies, records)
    halves = compare_function(studies, cross_calibrated(studies)) if len(studies) >= 20 else None
    facts = {
        "data": f"{len(studies)} phantoms of {shape} voxels, {spacing} mm, {len(failed)} failed",
        "members": arguments.members,
        "steps": arguments.steps,
        "device": str(segmenter.device),
    }
    page = statistics_page("Intervals of phantoms", facts, summary)
    if halves is not None:
        page += f"\n## Calibrated on the other half of the phantoms\n\n{function_table(halves)}\n"
    with atomic_write(arguments.output / "statistics.json") as file:
        content = {"made_with": facts, **summary, "halves": halves, "failed": failed}
        file.write(json.dumps(content, indent=2).encode())
    with atomic_write(arguments.output / "statistics.md") as file:
        file.write(page.encode())
    for compared in (summary["function"], halves):
        print("\n".join(format_function(compared)))


def numbers_by_seed(count: int) -> dict[int, list[int]]:
    """The phantoms as numbers by seed: fifty of each, the groups in turn."""
    by_seed: dict[int, list[int]] = {}
    for index in range(count):
        by_seed.setdefault(SEED + index // IN_A_SEED, []).append(FIRST + index % IN_A_SEED)
    return by_seed


def truth_of(mask: Path) -> Any:
    reference = read_labels(mask)
    return true_volumes(reference.data, reference.grid.voxel_volume)


def cross_calibrated(studies: Sequence[KnownStudy]) -> list[Measurements]:
    """Function of every study with intervals fitted to those of the other half; each half has all groups."""
    groups = 5
    halves = [[s for i, s in enumerate(studies) if i // groups % 2 == half] for half in (0, 1)]
    fits = [fit_intervals(half) for half in halves]
    return [study.found(*fits[1 - i // groups % 2]) for i, study in enumerate(studies)]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUT")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--slices", type=int, default=3)
    parser.add_argument("--bundle", default="acdc_segmentation")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    main()
