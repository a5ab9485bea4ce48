"""A section of ACDC through the segment pipeline, and everything it gives compared with the truth.

python scripts/cohort_acdc.py ACDC_FOLDER OUT --section validation

Masks, pages and cohort.csv go to OUT/segmentations, the comparison to OUT/statistics.md and OUT/statistics.json, scores
by volume to OUT/cases.csv. Run again, it goes on where it stopped. Calibrate first: cgdpm-med calibrate ACDC_FOLDER.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cgdpm_med.apps.pipeline import segment_all
from cgdpm_med.apps.segment_options import Options
from cgdpm_med.data.acdc import SECTIONS, acdc_datalist
from cgdpm_med.evaluation.files import format_summary
from cgdpm_med.evaluation.masks import evaluate_pairs
from cgdpm_med.evaluation.statistics_page import statistics_page
from cgdpm_med.files import atomic_write
from cgdpm_med.inference.segmenter import Segmenter, choose_device
from cgdpm_med.report.records import read_record
from cgdpm_med.studies.cases import Case, find_cases
from cgdpm_med.studies.mask_pairs import MaskPair

WRITTEN = ("mask", "probabilities", "members", "entropy")


def main() -> None:
    arguments = parse_arguments()
    changes = {name: getattr(arguments, name) for name in ("members", "steps", "seed", "weights", "guidance_scale")}
    segmenter = Segmenter.from_bundle(
        arguments.bundle,
        device=choose_device(arguments.device),
        **{name: value for name, value in changes.items() if value is not None},
    )
    items = {item["key"]: item for item in acdc_datalist(arguments.dataset_dir, arguments.section)}
    cases = [case for case in find_cases(arguments.dataset_dir) if case.key in items]
    folder = arguments.output / "segmentations"
    options = Options(write=WRITTEN, calibrate=arguments.calibrate)
    segmented = segment_all(segmenter, cases, folder, options=options, resume=True)
    pairs = [pair_of(case, items[case.key], folder) for case in cases if case.key not in segmented["failed"]]
    summary = evaluate_pairs(pairs, arguments.output)
    summary["failed"] |= segmented["failed"]
    facts = {"data": f"{len(cases)} volumes of the ACDC section {arguments.section}", **made_with(folder, cases[0])}
    with atomic_write(arguments.output / "statistics.json") as file:
        file.write(json.dumps({"made_with": facts, **summary}, indent=2).encode())
    with atomic_write(arguments.output / "statistics.md") as file:
        file.write(statistics_page(f"ACDC, {arguments.section} patients", facts, summary).encode())
    print(format_summary(summary))


def pair_of(case: Case, item: dict[str, str], folder: Path) -> MaskPair:
    mask = folder / case.folder / f"{case.name}.nii.gz"
    return MaskPair(mask, Path(item["label"]), case.key, item["frame"], item["group"], item["patient"])


def made_with(folder: Path, case: Case) -> dict[str, Any]:
    """Settings, versions and weights as the first study records them."""
    record = read_record(folder / case.folder / f"{case.study.key}.json") or {"made_with": {}, "device": None}
    origin = record["made_with"]
    weights = {f"weights {name}": f"sha256 {digest}" for name, digest in origin.get("weights", {}).items()}
    return {**origin.get("settings", {}), "device": record["device"], **weights, **origin.get("versions", {})}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_dir", type=Path, metavar="ACDC_FOLDER")
    parser.add_argument("output", type=Path, metavar="OUT")
    parser.add_argument("--section", choices=SECTIONS, default="validation", help="of the committed split")
    parser.add_argument("--bundle", default="acdc_segmentation")
    parser.add_argument("--weights", help="instead of the bundle's")
    parser.add_argument("--members", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-calibration", dest="calibrate", action="store_false")
    return parser.parse_args()


if __name__ == "__main__":
    main()
