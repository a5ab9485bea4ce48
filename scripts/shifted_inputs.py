"""What becomes of the masks when the images change: Dice, doubt and the quality flag for each of a dozen shifts.

python scripts/shifted_inputs.py --dataset-dir DIR --output OUT                  # validation patients
python scripts/shifted_inputs.py --dataset-dir DIR --output OUT --section test

Every shift of cgdpm_med.evaluation.shifts is applied to the images and to their reference masks, the shifted images are
segmented as cgdpm-med segment does, and scored against the shifted references. Writes shifted_inputs.csv (a row for
each shift), volumes.csv (a row for each shift and volume) and shifted_inputs.md after every shift, and at the end
shifted_inputs.png. The same command continues a run that was stopped.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from cgdpm_med import Segmenter, acdc_datalist, keep_freed_memory, read_labels, read_volume
from cgdpm_med.data.acdc import ACDC_LABELS
from cgdpm_med.diffusion.ensemble import key_seed
from cgdpm_med.evaluation.shifts import SHIFTS, Shift
from cgdpm_med.files import atomic_write
from cgdpm_med.inference.segmenter import choose_device, ensemble_settings
from cgdpm_med.metrics.masks import dice_per_structure, foreground_region, mean_pairwise_dice
from cgdpm_med.models.weights import weights_digest
from cgdpm_med.studies.study import Study
from cgdpm_med.tables.csv_files import write_csv
from cgdpm_med.tables.markdown import markdown_table
from cgdpm_med.tables.numbers import format_number
from cgdpm_med.tables.rows import Row, kept_row, write_text
from cgdpm_med.volumes import Volume

PLAIN = "none"
MARGIN = 15.0  # mm in plane around the reference; a slice above and below
COLLAPSE = 0.7  # average Dice of a volume below which its mask is of no use
FALL = 0.02  # of the average Dice, from which on something should be noticed


def main() -> None:
    arguments = parse_arguments()
    keep_freed_memory()
    overrides = {name: getattr(arguments, name) for name in ("weights", "members", "steps", "seed")}
    overrides = {name: value for name, value in overrides.items() if value is not None}
    segmenter = Segmenter.from_bundle(arguments.bundle, device=choose_device(arguments.device), **overrides)
    patients = by_patient(acdc_datalist(arguments.dataset_dir, arguments.section))
    patients = dict(list(patients.items())[:: arguments.every])
    made_with = {
        **ensemble_settings(segmenter),
        "weights": {file.name: weights_digest(file) for file in segmenter.weights},
        "dataset": arguments.dataset_dir.name,
        "section": arguments.section,
        "every": arguments.every,
    }
    cohort = f"{len(patients)} {arguments.section} patients"
    console = Console()
    results: dict[str, Row] = {}
    for name in [PLAIN, *(name for name in arguments.shifts if name != PLAIN)]:
        folder = arguments.output / "shifts" / re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        results[name] = kept_row(folder, made_with, partial(score_shift, segmenter, patients, name))
        console.print(f"{name}: Dice {summary(results[name])['dice']:.3f}", highlight=False)
        write_tables(results, cohort, arguments.output)
    plot(results, cohort, arguments.output / "shifted_inputs.png")
    console.print((arguments.output / "shifted_inputs.md").read_text(encoding="utf-8"), highlight=False)


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--section", choices=("train", "validation", "test"), default="validation")
    parser.add_argument("--shifts", nargs="+", choices=list(SHIFTS), default=list(SHIFTS), metavar="SHIFT")
    parser.add_argument("--every", type=int, default=1, help="take every n-th patient only")
    parser.add_argument("--bundle", default="acdc_segmentation")
    parser.add_argument("--weights", help="instead of the bundle's")
    parser.add_argument("--members", type=int, help="instead of the bundle's")
    parser.add_argument("--steps", type=int, help="instead of the bundle's")
    parser.add_argument("--seed", type=int, help="of the members and of the shifts")
    parser.add_argument("--device", default="auto")
    return parser.parse_args(words)


def by_patient(datalist: Sequence[Mapping[str, str]]) -> dict[str, list[Mapping[str, str]]]:
    patients: dict[str, list[Mapping[str, str]]] = {}
    for item in datalist:
        patients.setdefault(item["patient"], []).append(item)
    return patients


# --- scores -----------------------------------------------------------------------------------------------------------


def score_shift(segmenter: Segmenter, patients: Mapping[str, Sequence[Mapping[str, str]]], name: str) -> Row:
    """Scores of every volume under one shift, and the verdict of the quality checks on every patient."""
    volumes: list[Row] = []
    for patient, items in patients.items():
        study = Study(patient, known={"ED": 1, "ES": 2})
        for number, item in enumerate(items, start=1):
            image, label = shifted(
                item, SHIFTS[name], key_seed(segmenter.predictor.sampling.seed, "shift", name, item["key"])
            )
            segmentation = segmenter(image, item["key"])
            study.add(number, segmentation)
            dice = dice_per_structure(segmentation.mask, label.data)
            region = foreground_region(label.data, margins(label.grid.spacing))
            members = segmentation.members
            volumes.append(
                {
                    "case": item["key"],
                    "patient": patient,
                    "group": item["group"],
                    "phase": item["frame"],
                    "dice": statistics.fmean(dice.values()),
                    **{structure.lower(): dice[value] for value, structure in ACDC_LABELS.items()},
                    "entropy": float(segmentation.entropy[region].mean()),
                    "predicted_dice": mean_pairwise_dice(members) if len(members) > 1 else None,
                }
            )
        quality = study.result().quality
        for volume in volumes[-len(items) :]:
            volume |= {"review": quality.status == "review", "reasons": "; ".join(quality.reasons)}
    return {"volumes": volumes}


def shifted(item: Mapping[str, str], shift: Shift, seed: int) -> tuple[Volume, Volume]:
    image = read_volume(item["image"])
    label = read_labels(item["label"], like=image.grid)
    return shift(image, label, np.random.Generator(np.random.Philox(key=seed)))


def margins(spacing: Sequence[float]) -> tuple[int, int, int]:
    """The region's margin in voxels: of one size in mm, whatever the resolution."""
    return math.ceil(MARGIN / spacing[0]), math.ceil(MARGIN / spacing[1]), 1


def summary(result: Row) -> Row:
    """Means over volumes, the share of patients that go to review, and the volumes that collapsed."""
    volumes = result["volumes"]
    patients = {volume["patient"]: volume["review"] for volume in volumes}
    predicted = [volume["predicted_dice"] for volume in volumes if volume["predicted_dice"] is not None]
    collapsed = [volume for volume in volumes if volume["dice"] < COLLAPSE]
    names = ("dice", *(name.lower() for name in ACDC_LABELS.values()), "entropy")
    return {
        **{name: statistics.fmean(volume[name] for volume in volumes) for name in names},
        "lowest": min(volume["dice"] for volume in volumes),
        "predicted_dice": statistics.fmean(predicted) if predicted else None,
        "review": sum(patients.values()) / len(patients),
        "collapsed": len(collapsed),
        "unnoticed": sum(not volume["review"] for volume in collapsed),
    }


def noticed(shift: Row, plain: Row) -> str:
    """Whether doubt or flags rise where the Dice falls; a dash where it does not fall."""
    if plain["dice"] - shift["dice"] < FALL:
        return "–"
    signs = []
    if shift["entropy"] > plain["entropy"]:
        signs.append("entropy")
    if None not in (shift["predicted_dice"], plain["predicted_dice"]) and (
        shift["predicted_dice"] < plain["predicted_dice"]
    ):
        signs.append("predicted Dice")
    if shift["review"] > plain["review"]:
        signs.append("review")
    return ", ".join(signs) or "**no**"


# --- files ------------------------------------------------------------------------------------------------------------


def write_tables(results: Mapping[str, Row], cohort: str, folder: Path) -> None:
    rows = {name: summary(result) for name, result in results.items()}
    write_csv(folder / "shifted_inputs.csv", [{"shift": name, **row} for name, row in rows.items()])
    volumes = [{"shift": name, **volume} for name, result in results.items() for volume in result["volumes"]]
    write_csv(folder / "volumes.csv", volumes)
    write_text(folder / "shifted_inputs.md", table(rows, cohort))


def table(rows: Mapping[str, Row], cohort: str) -> str:
    """Markdown: a row for each shift, the unshifted images first."""
    plain = rows[PLAIN]
    heading = ["shift", "Dice %", "change", "RV", "Myo", "LV", "lowest", "entropy", "predicted Dice %", "to review %"]
    heading += [f"volumes below {100 * COLLAPSE:.0f}", "of them passed", "noticed by"]
    cells = [
        [
            name,
            format_number(row["dice"], 2, 100),
            "" if name == PLAIN else f"{100 * (row['dice'] - plain['dice']):+.2f}",
            *(format_number(row[structure], 2, 100) for structure in ("rv", "myo", "lv", "lowest")),
            format_number(row["entropy"], 4),
            format_number(row["predicted_dice"], 2, 100),
            format_number(row["review"], 0, 100),
            str(row["collapsed"]),
            str(row["unnoticed"]),
            noticed(row, plain),
        ]
        for name, row in rows.items()
    ]
    lines = [
        markdown_table(heading, cells),
        "",
        f"{cohort}, end-diastole and end-systole. Dice against the shifted references, by volume, averaged over the "
        "structures. Entropy: "
        f"mean inside the reference's bounding box grown by {MARGIN:g} mm in plane and one slice. Predicted Dice: mean "
        "pairwise Dice of the members. To review: patients that the quality checks pass on to a person. Noticed by: "
        f"what changes in the right direction where the Dice falls by {100 * FALL:.0f} points or more.",
        "",
    ]
    return "\n".join(lines)


def plot(results: Mapping[str, Row], title: str, path: Path) -> None:
    """Dice, predicted Dice and reviews by shift; and volume by volume, predicted against true Dice."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = {name: summary(result) for name, result in results.items()}
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), constrained_layout=True)
    places = np.arange(len(rows))[::-1]
    for offset, (key, label) in zip(
        (0.25, 0, -0.25),
        (("dice", "Dice"), ("predicted_dice", "predicted Dice"), ("review", "patients to review")),
        strict=True,
    ):
        values = [100 * (row[key] if row[key] is not None else math.nan) for row in rows.values()]
        left.barh(places + offset, values, height=0.25, label=label)
    left.set(yticks=places, yticklabels=list(rows), xlabel="%", xlim=(0, 100))
    left.legend(loc="lower left")
    for index, (name, result) in enumerate(results.items()):
        points = [(v["predicted_dice"], v["dice"]) for v in result["volumes"] if v["predicted_dice"] is not None]
        if points:
            x, y = zip(*points, strict=True)
            right.scatter(x, y, s=14, color=plt.get_cmap("tab20")(index % 20), label=name)
    right.axhline(COLLAPSE, color="grey", linewidth=0.8)
    right.set(xlabel="predicted Dice (agreement of members)", ylabel="Dice", xlim=(0, 1), ylim=(0, 1))
    right.legend(fontsize=7)
    right.grid(alpha=0.3)
    figure.suptitle(title)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
