"""The super-resolution bundles at their full size for a few steps: stage 1, guidance, inference, evaluation.

python scripts/short_runs_sr.py --adm-keys KEYS --output OUT [BUNDLE …]

Shows that the configurations run as they stand, how long a step takes and how much memory; the pictures are generated
and the networks are untrained, so nothing is said about quality. Only budgets are cut (epochs, batch, sampler steps):
sizes, widths and networks are the bundles' own. ImageNet's bundles start from ADM's weights: KEYS lists the names and
shapes of the tensors of both published files ("up64_256 …" and "up128_512 …" head lists of "name (shape)"), and a file
with random values is written in their place.

Every stage is a process of its own. Writes short_runs.csv and short_runs.md after every row; the same command goes on
where it was stopped.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cgdpm_med import InputError, bundle_path
from cgdpm_med.tables.csv_files import write_csv
from cgdpm_med.tables.markdown import markdown_table
from cgdpm_med.tables.rows import Row, kept_row, write_text

BUNDLES = ("face_sr_16_128", "face_sr_64_512", "imagenet_sr_64_256", "imagenet_sr_128_512")
STAGES = ("train", "train_guidance", "inference", "evaluate")
WNIDS = {"n01440764": 0, "n01443537": 1}
CUT: dict[str, Any] = {
    "epochs": 1,
    "iterations": 2,
    "batch_size": 1,
    "val_interval": 1,
    "validation_steps": 2,
    "held_out": 1,
    "workers": 0,
}
CUT_GUIDANCE = {**CUT, "chain_steps": 2, "capacity": 4}
COLUMNS = ("bundle", "stage", "minutes", "peak GiB", "wrote")


def main() -> None:
    arguments = parse_arguments()
    rows: list[Row] = []
    for bundle in arguments.bundles:
        folder = arguments.output / bundle
        given = inputs(bundle, folder, arguments.adm_keys)
        for stage in STAGES:
            made_with = {"bundle": bundle, "stage": stage, "torch": torch.__version__, "threads": arguments.threads}
            result = kept_row(
                folder / "rows" / stage,
                made_with,
                partial(run, bundle, stage, folder, given, arguments.threads),
            )
            rows.append({"bundle": bundle, "stage": stage, **result})
            write_csv(arguments.output / "short_runs.csv", rows)
            cells = [
                [row["bundle"], row["stage"], f"{row['seconds'] / 60:.1f}", f"{row['peak_gib']:.1f}", row["wrote"]]
                for row in rows
            ]
            write_text(arguments.output / "short_runs.md", markdown_table(COLUMNS, cells) + "\n")
            print(f"{bundle} {stage}: {result}", flush=True)


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", default=BUNDLES, metavar="BUNDLE", help="all, by default")
    parser.add_argument("--adm-keys", type=Path, help="names and shapes of ADM's tensors; for ImageNet's bundles")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args(words)
    if unknown := set(arguments.bundles) - set(BUNDLES):
        parser.error(f"no such bundle: {', '.join(sorted(unknown))}. There are {', '.join(BUNDLES)}")
    if arguments.adm_keys is None and any(bundle.startswith("imagenet") for bundle in arguments.bundles):
        parser.error("ImageNet's bundles need --adm-keys")
    return arguments


# --- what a user would bring ------------------------------------------------------------------------------------------


def inputs(bundle: str, folder: Path, adm_keys: Path | None) -> dict[str, Any]:
    """Pictures and weights for one bundle, made once; settings that name them."""
    size = int(bundle.rsplit("_", 1)[1])
    data, small = folder / "data", folder / "small"
    low = int(bundle.rsplit("_", 2)[1])
    write_pictures(small, 1, (low, low))
    if bundle.startswith("face"):
        write_pictures(data, 3, (size + 20, size + 8))
        return {"dataset_dir": data, "small": small}
    for wnid in WNIDS:
        write_pictures(data / "train" / wnid, 2, (size + 20, size + 8))
        write_pictures(data / "val" / wnid, 1, (size + 20, size + 8))
    weights = folder / f"{low}_{size}_upsampler.pt"
    if not weights.exists():
        assert adm_keys is not None
        torch.save(random_tensors(adm_keys, f"up{low}_{size}"), weights)
    return {"dataset_dir": data, "small": small, "weights": weights, "classes": WNIDS}


def write_pictures(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Smooth colours with a little texture."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(40, 216, (6, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC)).astype(int)
        pixels = (smooth + rng.integers(-8, 9, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def random_tensors(keys: Path, section: str) -> dict[str, torch.Tensor]:
    """Tensors of a section's names and shapes, each scaled by its fan-in so that activations stay in range.

    Raises:
        InputError: when the file has no such section.
    """
    found: dict[str, torch.Tensor] = {}
    inside = False
    generator = torch.Generator().manual_seed(0)
    for line in keys.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"(\S+) (\(.*\))", line.strip()):
            if inside:
                shape = ast.literal_eval(match[2])
                fan_in = max(1, int(np.prod(shape[1:])))
                found[match[1]] = torch.randn(shape, generator=generator) * (0.5 / fan_in) ** 0.5
        elif line.strip():
            inside = line.split()[0] == section
    if not found:
        raise InputError(f"has no section {section}", path=keys, remedy="Give the list of both published files")
    return found


# --- stages -----------------------------------------------------------------------------------------------------------


def run(bundle: str, stage: str, folder: Path, given: dict[str, Any], threads: int) -> Row:
    """One stage in a process of its own: seconds, peak memory, and what it left."""
    output = folder / stage
    files, settings = settings_of(bundle, stage, folder, given)
    words = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", ".", "--output_dir", str(output.resolve())]
    words += ["--config_file", "[" + ",".join(f"'configs/{name}.yaml'" for name in files) + "]"]
    for name, value in settings.items():
        words += [f"--{name}", str(value.resolve()) if isinstance(value, Path) else str(value)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    log = folder / f"{stage}.log"
    start = time.perf_counter()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(words, cwd=bundle_path(bundle), env=environment, stdout=file, stderr=file)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise InputError(f"{bundle}: {stage} failed", path=log, remedy="Read its end")
    left = sorted(path.name for path in output.rglob("*") if path.is_file() and "tfevents" not in path.name)
    return {"seconds": seconds, "peak_gib": usage.ru_maxrss / 2**20, "wrote": ", ".join(left)}


def settings_of(bundle: str, stage: str, folder: Path, given: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Configuration files and keys of a stage."""
    face = bundle.startswith("face")
    data = {"dataset_dir": given["dataset_dir"]}
    trained = folder / "train" / "model_last.pt"
    if stage.startswith("train"):
        data |= {} if face else {"initial_weights": given["weights"], "classes": given["classes"]}
        stage1 = {"denoiser_weights": trained} if face else {}
        chosen = (("train",), CUT) if stage == "train" else (("train", "train_guidance"), {**stage1, **CUT_GUIDANCE})
        return chosen[0], {**data, **chosen[1]}
    weights = {"weights": trained} if face else {"weights": given["weights"]}
    guide = {"guidance_weights": folder / "train_guidance" / "guidance_last.pt", "guidance_scale": 1.0}
    common = {**data, **weights, **guide, "steps": 2, "max_batch": 1}
    if stage == "inference":
        of_class = {} if face else {"class_index": 0}
        return ("inference",), {**common, **of_class, "dataset_dir": given["small"]}
    classes = {} if face else {"datalist#classes": given["classes"]}
    return ("inference", "evaluate"), {**common, **classes, "sheets": 1}


if __name__ == "__main__":
    main()
