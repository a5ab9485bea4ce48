"""What a sampling setting buys on one section of ACDC: accuracy, spread, calibration, seconds. Choose on validation.

python scripts/sweep.py guidance --dataset-dir DIR --output docs/sweeps     # scale and interval of the guidance network
python scripts/sweep.py steps --dataset-dir DIR --output docs/sweeps        # steps of the three samplers
python scripts/sweep.py start --dataset-dir DIR --output docs/sweeps        # truncated chains, from noise at a timestep

Each writes <name>.csv, a row per setting, and <name>.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cgdpm_med import acdc_datalist, keep_freed_memory
from cgdpm_med.evaluation.sweep import sweep

INTERVALS = [[0, 1000], [0, 500], [500, 1000], [200, 800]]  # all, late steps, early ones, the middle
STARTS = [999, 900, 800, 700, 600, 500, 400]
PANELS = {
    "dice": "Dice % of the ensemble",
    "member_dice": "Dice % of a member",
    "pairwise_dice": "agreement of members",
    "ged": "GED",
    "ece": "ECE",
    "seconds": "seconds a volume",
}


def main() -> None:
    arguments = parse_arguments()
    keep_freed_memory()
    datalist = acdc_datalist(arguments.dataset_dir, arguments.section)[:: arguments.every]
    common = {"members": arguments.members, "seed": arguments.seed}
    common |= {key: value for key in ("weights", "guidance_weights") if (value := getattr(arguments, key))}
    if arguments.what == "guidance":
        varied: list[dict[str, Any]] = [
            {"guidance_scale": scale, "guidance_interval": interval, "steps": arguments.steps[0]}
            for interval in arguments.intervals
            for scale in arguments.scales
            if scale > 0 or interval == arguments.intervals[0]
        ]
        x, lines = "guidance_scale", "guidance_interval"
    elif arguments.what == "start":
        varied = [{"start": start, "steps": n} for n in arguments.steps for start in arguments.starts]
        x, lines = "start", "steps"
    else:
        varied = [{"method": m, "steps": n} for m in ("ddim", "ddpm", "dpmpp_2m") for n in arguments.steps]
        varied += [{"method": method, "steps": steps} for method, steps in arguments.also]
        x, lines = "steps", "method"
    console = Console()
    console.print(f"{len(varied)} settings on {len(datalist)} volumes of the {arguments.section} patients")

    def report(row: Mapping[str, Any]) -> None:
        text = ", ".join(f"{n} {v:.4g}" if isinstance(v, float) else f"{n} {v}" for n, v in row.items())
        console.print(text, highlight=False)

    settings = [{**v, **common} for v in varied]
    table = arguments.output / f"{arguments.what}.csv"
    rows = sweep(settings, datalist, table, arguments.bundle, report, arguments.resume)
    title = f"{arguments.section}, {len(datalist)} volumes, {arguments.members} members, seed {arguments.seed}"
    plot(rows, x, lines, title, arguments.output / f"{arguments.what}.png")


def parse_arguments() -> argparse.Namespace:
    def interval(text: str) -> list[int]:
        low, high = text.split(":")
        return [int(low), int(high)]

    def sampler(text: str) -> tuple[str, int]:
        method, steps = text.split(":")
        return method, int(steps)

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("guidance", "steps", "start"))
    parser.add_argument("--dataset-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--bundle", default="acdc_segmentation")
    parser.add_argument("--weights", help="denoiser instead of the bundle's")
    parser.add_argument("--guidance-weights", help="guidance network instead of the bundle's")
    parser.add_argument("--section", default="validation")
    parser.add_argument("--every", type=int, default=1, help="take every n-th volume only")
    parser.add_argument("--scales", type=float, nargs="+", default=[0, 0.25, 0.5, 1.0])
    parser.add_argument("--intervals", type=interval, nargs="+", default=INTERVALS, help="such as 0:1000")
    parser.add_argument("--steps", type=int, nargs="+", default=[4], help="of the sweep, or (guidance) every setting")
    parser.add_argument(
        "--also", type=sampler, nargs="+", default=[], help="further settings of the steps, such as ddpm:1000"
    )
    parser.add_argument("--starts", type=int, nargs="+", default=STARTS, help="first timesteps")
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--continue", dest="resume", action="store_true", help="keep the rows of an interrupted sweep")
    return parser.parse_args()


def plot(rows: Sequence[Mapping[str, Any]], x: str, lines: str, title: str, path: Path) -> None:
    """The scores against ``x``, a line for each value of ``lines``; an unguided setting belongs to every line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(11, 6), constrained_layout=True)
    values = list(dict.fromkeys(str(row[lines]) for row in rows))
    for axis, (score, label) in zip(axes.flat, PANELS.items(), strict=True):
        for value in values:
            points = sorted((r[x], r[score]) for r in rows if str(r[lines]) == value or r.get("guidance_scale") == 0)
            axis.plot(*zip(*points, strict=True), marker="o", label=value)
        axis.set(xlabel=x.replace("_", " "), ylabel=label)
        if x == "steps":
            axis.set_xscale("log")
            axis.set_xticks(steps := sorted({row[x] for row in rows}), [str(n) for n in steps])
            axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes.flat[0].legend(title=lines.replace("_", " "))
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
