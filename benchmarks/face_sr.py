"""face_sr_16_128, or another bundle for pictures, where their truth is known: distortion against perception, and doubt.

Pictures are made coarse and refined with few and many steps, with and without guidance. PSNR, SSIM, consistency and
LPIPS of one sample are told for each, bicubic interpolation beside them. On some of the pictures several samples are
drawn: their standard deviation is held against the true error of their mean. A stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cgdpm_med import SuperResolver, hold_out, image_datalist, readable_pictures
from cgdpm_med.apps.evaluate_pictures import evaluate_super_resolution, format_picture_summary, read_pairs
from cgdpm_med.apps.resolver import spread
from cgdpm_med.console import CaseBar
from cgdpm_med.images import write_picture
from cgdpm_med.inference.bundles import bundle_folder
from cgdpm_med.metrics.masks import error_uncertainty_auroc
from cgdpm_med.models.weights import weights_digest

from .harness import Claim, Journal, Result, Table, console

BUNDLE = "face_sr_16_128"
COLUMNS = ("psnr", "ssim", "consistency", "lpips")
DEFAULT_STEPS = 6
"""Of the bundle."""
LARGE = 0.1
"""An error is large where it is among this share of the greatest of its picture."""
Item = Mapping[str, Any]
Row = Mapping[str, float | None]


@dataclass(frozen=True)
class Setting:
    """Of one row: sampling steps, w of the guidance network, and the scale of the noise that samples start from."""

    steps: int
    guidance: float = 0.0
    noise: float = 1.0

    @property
    def name(self) -> str:
        """As the tables print it."""
        plural = "step" if self.steps == 1 else "steps"
        guided = f", w = {self.guidance:g}" if self.guidance else ""
        return f"{self.steps} {plural}{guided}" + (f", noise {self.noise:g}" if self.noise != 1 else "")

    def resolver(self, arguments: argparse.Namespace, members: int = 1) -> SuperResolver:
        """The bundle, set so."""
        own = {
            name: str(value)
            for name in ("weights", "guidance_weights")
            if (value := getattr(arguments, name)) is not None
        }
        dials = {"steps": self.steps, "guidance_scale": self.guidance, "noise_scale": self.noise, "members": members}
        return SuperResolver.from_bundle(arguments.bundle, **own, **dials, device=arguments.device)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", default=BUNDLE)
    parser.add_argument("--size", type=int, default=128, help="side of the references: centre squares, area-averaged")
    parser.add_argument("--dataset-dir", type=Path, nargs="+", help="folders of pictures; --quick draws two")
    parser.add_argument("--held-out", type=int, help="of these pictures, those that a training on them holds out")
    parser.add_argument("--held-out-of", nargs="*", default=[], help="names of the folders that they are held out of")
    parser.add_argument("--pictures", type=int, help="of the folder, evenly chosen; all by default")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 4, DEFAULT_STEPS, 10, 20, 50])
    parser.add_argument("--guidance", type=float, nargs="*", default=[], help="w of the guidance network")
    parser.add_argument("--guidance-steps", type=int, default=DEFAULT_STEPS, help="of the guided rows")
    parser.add_argument("--noise", type=float, nargs="*", default=[], help="scales of the noise they start from")
    parser.add_argument("--noise-steps", type=int, default=20, help="of the rows with such a scale")
    parser.add_argument("--doubt-pictures", type=int, default=40, help="of which several samples are drawn; 0 for none")
    parser.add_argument("--doubt-members", type=int, default=8)
    parser.add_argument("--doubt-steps", type=int, default=DEFAULT_STEPS)
    parser.add_argument("--weights", type=Path, help="instead of the bundle's")
    parser.add_argument("--guidance-weights", type=Path, help="instead of the bundle's")
    parser.add_argument("--lpips", type=Path, help="TorchScript file")
    parser.add_argument("--plot", type=Path, help="picture of LPIPS against PSNR")
    parser.add_argument("--sheets", type=int, default=0, help="pictures on contact sheets, a folder for each setting")


def run(arguments: argparse.Namespace) -> Result:
    if not arguments.quick:
        if arguments.dataset_dir is None:
            raise SystemExit("give --dataset-dir, or --quick")
        return compare(arguments, arguments.dataset_dir)
    with TemporaryDirectory() as folder:
        draw_pictures(Path(folder), 2)
        arguments.steps, arguments.doubt_steps, arguments.doubt_members = [1, 2], 2, 2
        return compare(arguments, [Path(folder)])


def draw_pictures(folder: Path, number: int) -> None:
    """Generated pictures of 128 x 128 pixels: soft discs, not so bright that they would be clipped."""
    rng = np.random.default_rng(0)
    x, y = np.mgrid[-1:1:128j, -1:1:128j]
    for n in range(number):
        radii = rng.uniform(0.3, 0.8, (3, 1, 1))
        write_picture(
            torch.as_tensor(0.6 * np.tanh(8 * (radii - np.hypot(x, y))), dtype=torch.float32), folder / f"{n}.png"
        )


def pictures_of(arguments: argparse.Namespace, folders: Sequence[Path]) -> Sequence[Item]:
    """Test pictures, or those of the training's folders by which settings are chosen."""
    found = image_datalist([str(folder) for folder in folders])
    if arguments.held_out is None:
        return found
    kept = readable_pictures(found, min_side=arguments.size).kept
    return hold_out(kept, arguments.held_out, arguments.held_out_of).validation


def compare(arguments: argparse.Namespace, folders: Sequence[Path]) -> Result:
    """All settings on the same pictures."""
    datalist = evenly(pictures_of(arguments, folders), arguments.pictures)
    settings = settings_of(arguments)
    remember = (
        at_once if arguments.quick else Journal(arguments.output / f".{arguments.bundle}.journal.json", settings).get
    )
    rows: dict[str, Row] = {}
    for each in dials_of(arguments):
        summary = remember(each.name, partial(score, each, arguments, datalist))
        rows.setdefault("bicubic", {**summary["means"]["bicubic"], "lpips": None})
        rows[each.name] = {**summary["means"]["output"], "lpips": summary["lpips"]}
    claims = claims_of(rows) if arguments.bundle == BUNDLE else gains(rows)
    if arguments.doubt_pictures:
        doubted = evenly(datalist, arguments.doubt_pictures)
        found = remember(f"doubt of {len(doubted)}", partial(doubt, arguments, doubted))
        claims += [Claim(f"doubt and error of {len(doubted)} pictures: {name}", value) for name, value in found.items()]
    if arguments.plot is not None:
        plot(rows, arguments.plot)
    cells = [[name, *(row[column] for column in COLUMNS)] for name, row in rows.items()]
    return Result(settings, claims, [Table(f"{len(datalist)} pictures", ["", *COLUMNS], cells)])


def at_once(_: str, compute: Callable[[], Any]) -> Any:
    """What a journal does that forgets."""
    return compute()


def dials_of(arguments: argparse.Namespace) -> list[Setting]:
    """The rows: steps without guidance, then guided ones with each w, then those with each scale of noise."""
    guided = [Setting(arguments.guidance_steps, w) for w in arguments.guidance]
    calmed = [Setting(arguments.noise_steps, noise=scale) for scale in arguments.noise]
    return [*map(Setting, arguments.steps), *guided, *calmed]


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on."""
    models = bundle_folder(arguments.bundle) / "models"
    weights = arguments.weights or models / "model.pt"
    guidance = (arguments.guidance_weights or models / "guidance" / "guidance.pt") if arguments.guidance else None
    names = ("bundle", "size", "pictures", "held_out", "held_out_of", "doubt_pictures", "doubt_members", "doubt_steps")
    lpips = None if arguments.lpips is None else arguments.lpips.name
    return {
        **{name: getattr(arguments, name) for name in names},
        "weights": weights_digest(weights),
        "guidance": None if guidance is None else weights_digest(guidance),
        "lpips": lpips,
        "seed": 0,
    }


def score(setting: Setting, arguments: argparse.Namespace, datalist: Sequence[Item]) -> dict[str, Any]:
    """Summary of one sample of each picture."""
    output = arguments.output / setting.name.replace(" ", "_") if arguments.sheets else None
    summary = evaluate_super_resolution(
        setting.resolver(arguments),
        datalist,
        output,
        size=arguments.size,
        lpips=arguments.lpips,
        sheets=arguments.sheets,
    )
    console.print(f"{setting.name}\n{format_picture_summary(summary)}", markup=False)
    if summary["failed"]:
        raise SystemExit(f"{len(summary['failed'])} pictures failed")
    return summary


def doubt(arguments: argparse.Namespace, datalist: Sequence[Item]) -> dict[str, float]:
    """How the deviation of samples tells the error of their mean, a mean over pictures.

    Returns the correlation between the pixels of a picture, the area under the ROC curve of its largest errors, and the
    correlation between pictures of mean deviation and mean error.
    """
    resolver = Setting(arguments.doubt_steps).resolver(arguments, arguments.doubt_members)
    inside, areas, means = [], [], []
    with CaseBar("doubt", [item["key"] for item in datalist]) as bar:
        for pairs in read_pairs(datalist, arguments.size, resolver.factor, 4, {}, bar):
            keys = [item["key"] for item in pairs.items]
            members = resolver(pairs.coarse, keys)
            deviations = spread(members).numpy()
            errors = (members.mean(dim=0) - pairs.fine).square().mean(dim=1).sqrt().numpy()
            for key, deviation, error in zip(keys, deviations, errors, strict=True):
                inside.append(correlation(deviation, error))
                areas.append(error_uncertainty_auroc(deviation, error > np.quantile(error, 1 - LARGE)) or np.nan)
                means.append((deviation.mean(), error.mean()))
                bar.update(key, 1.0)
    return {
        "correlation of pixels": float(np.mean(inside)),
        f"AUROC of the largest {LARGE:.0%}": float(np.nanmean(areas)),
        "correlation of pictures": correlation(*np.transpose(means)),
    }


def correlation(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Of two arrays of one shape, Pearson's."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def evenly(items: Sequence[Item], number: int | None) -> list[Item]:
    """So many of them, at even distances; all where there are fewer or no number is given."""
    most = len(items) if number is None else min(number, len(items))
    return [items[int(i)] for i in np.linspace(0, len(items) - 1, most)]


def claims_of(rows: Mapping[str, Row]) -> list[Claim]:
    """Held against what the paper's networks reach, where such rows were measured."""
    samples = {"psnr": 22.8, "ssim": 0.64, "lpips": 0.22, "consistency": 0.5}
    wanted = {
        "1 step": {"psnr": 23.9, "ssim": 0.69, "consistency": 0.5},
        f"{DEFAULT_STEPS} steps": samples,
        "20 steps": samples,
        **{name: samples for name in rows if "noise" in name},
    }
    if guided := [name for name in rows if "w = " in name]:
        wanted[max(guided, key=lambda name: number(rows[name]["psnr"]))] = {"psnr": 23.6, "ssim": 0.68}
    return [
        Claim(f"{row}: {measure}", number(rows[row][measure]), target, at_most=measure in ("lpips", "consistency"))
        for row, targets in wanted.items()
        if row in rows
        for measure, target in targets.items()
        if rows[row][measure] is not None
    ]


def gains(rows: Mapping[str, Row]) -> list[Claim]:
    """Over bicubic interpolation; nothing is wanted of bundles that the paper does not have."""
    bicubic = number(rows["bicubic"]["psnr"])
    return [
        Claim(f"{name}: PSNR above bicubic", number(row["psnr"]) - bicubic, unit=" dB")
        for name, row in rows.items()
        if name != "bicubic"
    ]


def number(value: float | None) -> float:
    """NaN where there is none."""
    return float("nan") if value is None else value


def plot(rows: Mapping[str, Row], path: Path) -> None:
    """LPIPS against PSNR: lower is truer to the eye, further right is truer to the pixels."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3.6), constrained_layout=True)
    kinds = {"w = ": "guided", "noise": "from less noise", "": "by steps"}
    left = {name: row for name, row in rows.items() if row["lpips"] is not None}
    for mark, label in kinds.items():
        points = {name: (row["psnr"], row["lpips"]) for name, row in left.items() if mark in name}
        left = {name: row for name, row in left.items() if name not in points}
        if points:
            axis.plot(*zip(*points.values(), strict=True), "o-", label=label)
        for name, point in points.items():
            axis.annotate(name, point, textcoords="offset points", xytext=(5, 4), fontsize=8)
    axis.set(xlabel="PSNR in dB", ylabel="LPIPS")
    axis.margins(0.14)  # names stand beside their points
    if axis.lines:
        axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
