"""What guidance buys: accuracy, spread and calibration against its scale and interval, on one section of ACDC.

python scripts/guidance_sweep.py --dataset-dir DIR --output docs/guidance_sweep

Writes sweep.csv, a row per setting, and sweep.png. Choose w and the interval on the validation patients only.
"""

from __future__ import annotations

import argparse
import csv
import io
import time
from itertools import product
from pathlib import Path

import torch
from rich.progress import track

from cgdpm_med import Segmenter, acdc_datalist, read_volume
from cgdpm_med.apps.evaluate import evaluate_segmentation, summarise_results
from cgdpm_med.volumes import atomic_write

COLUMNS = (
    *("scale", "t_lo", "t_hi", "dice", "rv", "myo", "lv"),
    *("member_dice", "pairwise_dice", "ged", "ece", "brier", "seconds"),
)


def main() -> None:
    arguments = parse_arguments()
    datalist = acdc_datalist(arguments.dataset_dir, arguments.section)
    torch.manual_seed(0)
    settings = [(0.0, (0, 1000))]
    settings += [(w, i) for w, i in product(arguments.scales, arguments.intervals) if w > 0]
    rows = []
    for scale, interval in settings:
        segmenter = Segmenter.from_bundle(
            arguments.bundle,
            members=arguments.members,
            steps=arguments.steps,
            seed=arguments.seed,
            guidance_scale=scale,
            guidance_interval=list(interval),
            **({"weights": arguments.weights} if arguments.weights else {}),
            **({"guidance_weights": arguments.guidance_weights} if arguments.guidance_weights else {}),
        )
        rows.append(row(segmenter, datalist, scale, interval))
        print(", ".join(f"{name} {value}" for name, value in zip(COLUMNS, rows[-1], strict=True)))
        write(rows, arguments.output)
    plot(rows, arguments.output / "sweep.png", arguments)


def parse_arguments() -> argparse.Namespace:
    def interval(text: str) -> tuple[int, int]:
        low, high = text.split(":")
        return int(low), int(high)

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--bundle", default="acdc_segmentation")
    parser.add_argument("--weights", help="denoiser instead of the bundle's")
    parser.add_argument("--guidance-weights", help="guidance network instead of the bundle's")
    parser.add_argument("--section", default="validation")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.25, 0.5, 1.0])
    parser.add_argument(
        "--intervals", type=interval, nargs="+", default=[(0, 1000), (500, 1000)], help="such as 0:1000"
    )
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def row(segmenter: Segmenter, datalist: list[dict[str, str]], scale: float, interval: tuple[int, int]) -> list[str]:
    """Score one setting; ``member_dice`` is the mean Dice of single members, ``dice`` that of the ensemble."""
    from cgdpm_med.metrics import dice_per_structure
    from cgdpm_med.volumes import read_labels

    results, members, seconds = [], [], 0.0
    for item in track(datalist, f"w {scale:g}, t in [{interval[0]}, {interval[1]})"):
        volume = read_volume(item["image"])
        start = time.perf_counter()
        segmentation = segmenter(volume, key=item["key"])
        seconds += time.perf_counter() - start
        results.append(evaluate_segmentation(segmentation, item))
        reference = read_labels(item["label"]).data
        dices = [dice_per_structure(member, reference).values() for member in segmentation.members]
        members.append(sum(sum(d) / len(d) for d in dices) / len(dices))
    summary = summarise_results(results)
    structures = [100 * s["dice"] for s in summary["structures"].values()]
    ensemble = summary["ensemble"]
    spread = [ensemble["pairwise_dice"] or float("nan"), ensemble["ged"], ensemble["ece"], ensemble["brier"]]
    values = [100 * summary["average"]["dice"], *structures, 100 * sum(members) / len(members), *spread]
    return [f"{scale:g}", *map(str, interval), *(f"{v:.4f}" for v in values), f"{seconds / len(datalist):.2f}"]


def write(rows: list[list[str]], folder: Path) -> None:
    """sweep.csv, rewritten after every setting."""
    text = io.StringIO()
    csv.writer(text).writerows([COLUMNS, *rows])
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "sweep.csv") as file:
        file.write(text.getvalue().encode())


def plot(rows: list[list[str]], path: Path, arguments: argparse.Namespace) -> None:
    """Accuracy and spread against w, a line per interval."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [("dice", "ensemble Dice %"), ("member_dice", "single member Dice %"), ("pairwise_dice", "agreement"),
              ("ged", "GED"), ("ece", "ECE"), ("seconds", "seconds a volume")]  # fmt: skip
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), constrained_layout=True)
    for axis, (name, label) in zip(axes.flat, panels, strict=True):
        column = COLUMNS.index(name)
        for low, high in arguments.intervals:
            points = [
                (float(r[0]), float(r[column])) for r in rows if (r[0] == "0" or (int(r[1]), int(r[2])) == (low, high))
            ]
            axis.plot(*zip(*sorted(points), strict=True), marker="o", label=f"t in [{low}, {high})")
        axis.set(xlabel="guidance scale w", ylabel=label)
        axis.grid(alpha=0.3)
    axes.flat[0].legend()
    figure.suptitle(f"{arguments.section}: {arguments.members} members, {arguments.steps} steps, seed {arguments.seed}")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
