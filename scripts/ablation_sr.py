"""The paper's ablation (table 5) and its baselines on a folder of faces: every row trained with one budget and scored.

python scripts/ablation_sr.py --dataset-dir TRAIN --test-dir TEST --output OUT [--iterations 6000] [--lpips FILE]

Rows: regression, SR3, B1 to B5; B5 is B4 of the same seed with a guidance network. The target is the bundle's residual;
``--settings configs/sr_8_64.yaml configs/paper_target.yaml`` takes the paper's own. Writes ablation.csv, ablation.md
and sheet.png, after every row. The same command continues a run that was stopped: finished rows are kept, and a row in
work goes on from its last epoch. So rows can be trained by several processes, and ``--finished`` with all seeds writes
the table. Differences of rows come with 95 % bootstrap intervals over the test pictures.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigWorkflow
from torch import Tensor

from cgdpm_med import InputError, SuperResolver, bundle_path, image_datalist
from cgdpm_med.apps.contact_sheet import contact_sheet
from cgdpm_med.apps.evaluate_pictures import bicubic, evaluate_super_resolution, read_reference
from cgdpm_med.diffusion.degradation import AreaDegradation
from cgdpm_med.evaluation.paired_statistics import paired_difference
from cgdpm_med.files import atomic_write
from cgdpm_med.images import write_picture
from cgdpm_med.tables.csv_files import csv_text

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# row -> heading, and the paper's PSNR and SSIM (faces, 16 -> 128)
ROWS = {
    "regression": ("Regression", 23.96, 0.69),
    "sr3": ("SR3", 23.04, 0.65),
    "b1": ("B1 bottleneck", 22.84, 0.59),
    "b2": ("B2 dual encoder", 23.10, 0.65),
    "b3": ("B3 encoder and decoder", 23.24, 0.66),
    "b4": ("B4 encoder", 23.51, 0.68),
    "b5": ("B5 = B4 with guidance", 23.74, 0.71),
}
MEASURES = {"psnr": 2, "ssim": 3, "consistency": 2}  # and the digits they are told with
CLAIMS = (("b4", "b1"), ("b4", "b2"), ("b4", "b3"), ("b5", "b4"))  # the paper's: the first is better
SHOWN = 8  # pictures on the sheet
Result = dict[str, Any]


def main() -> None:
    arguments = parse_arguments()
    results: dict[str, list[Result]] = {}
    for seed in arguments.seeds:
        for row in arguments.rows:
            if arguments.finished and not (place(row, seed, arguments) / "result.json").exists():
                continue
            print(f"== {ROWS[row][0]}, seed {seed}", flush=True)
            results.setdefault(row, []).append(run_row(row, seed, arguments))
            write_table(results, arguments.output)
            write_sheet(results, arguments)
    print((arguments.output / "ablation.md").read_text(encoding="utf-8"))


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-dir", type=Path, nargs="+", required=True, help="folders of pictures to train on")
    parser.add_argument("--test-dir", type=Path, required=True, help="folder of pictures to score")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=6000, help="training steps of each row")
    parser.add_argument("--guidance-iterations", type=int, help="of B5's guidance network; a quarter of the others'")
    parser.add_argument("--epoch", type=int, default=250, help="training steps between checkpoints")
    parser.add_argument("--steps", type=int, default=20, help="of the sampler; regression has one pass")
    parser.add_argument("--settings", type=Path, nargs="+", default=[CONFIGS / "sr_8_64.yaml"], help="sizes, networks")
    parser.add_argument("--bundle", default="face_sr_16_128")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--test-pictures", type=int, help="score the first so many pictures only")
    parser.add_argument("--finished", action="store_true", help="train nothing: write the table of the finished rows")
    parser.add_argument("--lpips", type=Path, help="LPIPS as TorchScript, scored too")
    arguments = parser.parse_args(words)
    if arguments.guidance_iterations is None:
        arguments.guidance_iterations = max(1, arguments.iterations // 4)
    if "b5" in arguments.rows and "b4" not in arguments.rows[: arguments.rows.index("b5")]:
        parser.error("b5 guides the network of b4: put b4 before it")
    return arguments


# --- one row ----------------------------------------------------------------------------------------------------------


def run_row(row: str, seed: int, arguments: argparse.Namespace) -> Result:
    """Train and score one row, or read what was found before."""
    folder = place(row, seed, arguments)
    made_with = {
        "dataset": [folder.name for folder in arguments.dataset_dir],
        "test": arguments.test_dir.name,
        "iterations": arguments.iterations,
        "guidance_iterations": arguments.guidance_iterations if row == "b5" else 0,
        "steps": arguments.steps,
        "test_pictures": arguments.test_pictures,
        "settings": [path.name for path in arguments.settings],
    }
    file = folder / "result.json"
    if file.exists():
        found: Result = json.loads(file.read_text(encoding="utf-8"))
        if found["made_with"] != made_with:
            raise InputError("was made with other settings", path=file, remedy="Delete its folder, or give another")
        return found
    train_row(row, seed, folder, arguments)
    resolver = resolver_of(row, seed, arguments)
    result = {"made_with": made_with, "parameters": parameters(resolver), **score(resolver, folder, arguments)}
    with atomic_write(file) as stream:
        stream.write(json.dumps(result, indent=2).encode())
    return result


def place(row: str, seed: int, arguments: argparse.Namespace) -> Path:
    return arguments.output / f"seed{seed}" / row


def train_row(row: str, seed: int, folder: Path, arguments: argparse.Namespace) -> None:
    stages, budget = ["train"], arguments.iterations
    extra: dict[str, Any] = {}
    if row == "b5":
        stages, budget = ["train", "train_guidance"], arguments.guidance_iterations
        weights = place("b4", seed, arguments) / "model_last.pt"
        extra = {"denoiser_weights": str(weights), "learning_rate": 2e-4}
    epoch = min(arguments.epoch, budget)
    epochs = max(1, round(budget / epoch))
    flow = workflow(
        "train",
        stages,
        [*arguments.settings, CONFIGS / f"{row}.yaml"],
        arguments,
        dataset_dir=[str(folder) for folder in arguments.dataset_dir],
        output_dir=str(folder),
        seed=seed,
        epochs=epochs,
        iterations=epoch,
        val_interval=max(1, epochs // 8),
        **extra,
    )
    flow.run()


def resolver_of(row: str, seed: int, arguments: argparse.Namespace) -> SuperResolver:
    """The averaged weights of the end of training: none are chosen by their score."""
    weights = place("b4" if row == "b5" else row, seed, arguments) / "model_last.pt"
    steps = 1 if row == "regression" else arguments.steps
    overrides: dict[str, Any] = {"weights": str(weights), "members": 1, "seed": seed, "steps": steps}
    if row == "b5":
        overrides["guidance_weights"] = str(place(row, seed, arguments) / "guidance_last.pt")
        overrides["guidance_scale"] = 1.0
    flow = workflow("infer", ["inference"], [], arguments, dataset_dir=str(arguments.test_dir), **overrides)
    resolver: SuperResolver = flow.parser.get_parsed_content("resolver")
    return resolver


def workflow(
    kind: str, stages: Sequence[str], changes: Sequence[Path], arguments: argparse.Namespace, **overrides: Any
) -> ConfigWorkflow:
    root = bundle_path(arguments.bundle)
    files = [*(root / "configs" / f"{stage}.yaml" for stage in stages), *changes]
    flow = ConfigWorkflow(
        [str(file) for file in files],
        str(root / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        bundle_root=str(root),
        **overrides,
    )
    flow.initialize()
    return flow


def parameters(resolver: SuperResolver) -> int:
    return sum(p.numel() for p in resolver.predictor.parameters())


def score(resolver: SuperResolver, folder: Path, arguments: argparse.Namespace) -> Result:
    """Means over the test pictures, of the model and of bicubic interpolation; a few outputs are kept for the sheet."""
    size = resolver.window
    assert size is not None
    datalist = image_datalist(arguments.test_dir)[: arguments.test_pictures]
    places = {"output": folder / "evaluation", "lpips": arguments.lpips}
    summary = evaluate_super_resolution(resolver, datalist, size=size, batch_size=16, **places)
    with (folder / "evaluation" / "pictures.csv").open(encoding="utf-8", newline="") as file:
        scores = list(csv.DictReader(file))
    fine = references(arguments, size)
    shown = resolver(AreaDegradation(resolver.factor).degrade(fine), [item["key"] for item in datalist[:SHOWN]])[0]
    with atomic_write(folder / "shown.pt") as stream:
        torch.save(shown, stream)
    return {
        "pictures": summary["pictures"],
        "size": size,
        "factor": resolver.factor,
        "device": str(resolver.device),
        "output": summary["means"]["output"],
        "bicubic": summary["means"]["bicubic"],
        "lpips": summary["lpips"],
        "of_pictures": {name: [float(score[f"{name}_output"]) for score in scores] for name in ("psnr", "ssim")},
    }


def references(arguments: argparse.Namespace, size: int) -> Tensor:
    """The first test pictures, (SHOWN, 3, size, size)."""
    items = image_datalist(arguments.test_dir)[: arguments.test_pictures][:SHOWN]
    return torch.stack([read_reference(item["image"], size) for item in items])


# --- results ----------------------------------------------------------------------------------------------------------


def write_table(results: Mapping[str, Sequence[Result]], folder: Path) -> None:
    """ablation.csv with a row for each method and seed, ablation.md with the means beside the paper's numbers."""
    columns = ["row", "run", *MEASURES, "lpips", "parameters", "pictures", "paper_psnr", "paper_ssim"]
    rows = []
    for row, runs in results.items():
        published = [str(value) for value in ROWS[row][1:]]  # with the paper's own digits
        for index, run in enumerate(runs):
            values = [run["output"][measure] for measure in MEASURES]
            rows.append([row, index, *values, run["lpips"], run["parameters"], run["pictures"], *published])
    with atomic_write(folder / "ablation.csv") as file:
        file.write(csv_text(columns, rows).encode())
    with atomic_write(folder / "ablation.md") as file:
        file.write(table(results).encode())


def table(results: Mapping[str, Sequence[Result]]) -> str:
    """Markdown: the paper's numbers beside ours, the settings, and what was found."""
    first = next(iter(results.values()))[0]
    coarse = first["size"] // first["factor"]
    bicubic_row = [f"{first['bicubic'][measure]:.{digits}f}" for measure, digits in MEASURES.items()]
    here = f"here, {coarse} to {first['size']}: PSNR | SSIM | consistency 1e-5 | LPIPS | parameters"
    lines = [
        f"| | paper, 16 to 128: PSNR | SSIM | {here} |",
        "|---|---|---|---|---|---|---|---|",
        f"| bicubic | | | {' | '.join(bicubic_row)} | | |",
    ]
    for row, runs in results.items():
        name, psnr, ssim = ROWS[row]
        ours = [told([run["output"][measure] for run in runs], digits) for measure, digits in MEASURES.items()]
        ours += [told([run["lpips"] for run in runs], 3), f"{runs[0]['parameters'] / 1e6:.2f} M"]
        lines.append(f"| {name} | {psnr:.2f} | {ssim:.2f} | {' | '.join(ours)} |")
    return "\n".join([*lines, "", settings_line(results), "", *claims(results), ""])


def told(values: Sequence[float | None], digits: int) -> str:
    """Mean over seeds, with their standard deviation where there are several; empty for what was not measured."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    deviation = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.{digits}f}{deviation}"


def settings_line(results: Mapping[str, Sequence[Result]]) -> str:
    """What the rows were made with, in one sentence."""
    first = next(iter(results.values()))[0]
    made_with = first["made_with"]
    guided = f" and {results['b5'][0]['made_with']['guidance_iterations']} of guidance" if "b5" in results else ""
    return (
        f"{made_with['iterations']} training steps a row{guided}, {made_with['steps']} sampling steps "
        f"(regression: one pass), one sample a picture, {first['pictures']} test pictures, "
        f"{max(len(runs) for runs in results.values())} seed(s), {first['device']}; settings "
        f"{', '.join(made_with['settings'])}."
    )


def claims(results: Mapping[str, Sequence[Result]]) -> list[str]:
    """The paper's two claims, as they turned out: B4 beats B1 to B3, and B5 beats B4."""
    return [claim(results, *pair) for pair in CLAIMS if set(pair) <= results.keys()]


def claim(results: Mapping[str, Sequence[Result]], better: str, worse: str) -> str:
    """Paired differences on the same pictures, means over the seeds that both rows have."""
    shared = list(zip(results[better], results[worse], strict=False))
    words = []
    for name, unit, digits in (("psnr", " dB", 2), ("ssim", " SSIM", 4)):
        ahead, behind = (np.array([run["of_pictures"][name] for run in runs]) for runs in zip(*shared, strict=True))
        found = paired_difference(behind.mean(axis=0).tolist(), ahead.mean(axis=0).tolist())
        low, high = found.interval or (float("nan"),) * 2
        seeds = ", ".join(f"{value:+.{digits}f}" for value in (ahead - behind).mean(axis=1))
        words.append(f"{found.difference:+.{digits}f}{unit} ({low:+.{digits}f} to {high:+.{digits}f}; by seed {seeds})")
    return f"- {better.upper()} less {worse.upper()}: {', '.join(words)}."


def write_sheet(results: Mapping[str, Sequence[Result]], arguments: argparse.Namespace) -> None:
    """Input, bicubic, every finished row of the first seed, reference."""
    first = next(iter(results.values()))[0]
    fine = references(arguments, first["size"])
    coarse = AreaDegradation(first["factor"]).degrade(fine)
    columns = {"input": coarse, "bicubic": bicubic(coarse, first["factor"])}
    for row in results:
        shown = place(row, arguments.seeds[0], arguments) / "shown.pt"
        if shown.exists():  # a result may have come without its pictures
            columns[row] = torch.load(shown, weights_only=True)
    write_picture(contact_sheet({**columns, "reference": fine}), arguments.output / "sheet.png")


if __name__ == "__main__":
    main()
