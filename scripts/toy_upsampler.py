"""The paper's ImageNet recipe where the truth is known: a small upsampler in ADM's format, and guidance trained on it.

    python scripts/toy_upsampler.py --output OUT

Pictures of two classes are drawn from a Gaussian whose mean and covariance are known, so the average of all pictures
that a coarse one allows, E[s_0 | y], and the spread around it have a closed form. The trainings are the recipe's own
commands:

1. ``configs/train.yaml`` trains an upsampler of ADM's architecture, small, on such pictures.
2. It is written by the names of ADM's files.
3. ``configs/train_guidance.yaml`` trains the guidance network on that file, frozen.
4. New pictures are refined with several scales w, and held against the closed form.

An exact sampler is 2 v from the truth on average, v being the mean variance that the coarse picture leaves; the average
of all answers is v from it. With w = 1 guidance (reverse coupling) moves every sample there.

Writes toy_upsampler.md and toy_upsampler.csv. A finished stage is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgdpm_med import DiffusionPredictor, InputError, bundle_path, load_upsampler
from cgdpm_med.images import write_picture
from cgdpm_med.models.files import Model, load_model
from cgdpm_med.networks.adm import AdmTopology, adm_network, adm_tensors
from cgdpm_med.networks.classes import append_class
from cgdpm_med.networks.unet import ConditionalUNet
from cgdpm_med.tables.csv_files import write_csv
from cgdpm_med.tables.markdown import markdown_table

RECIPE = "imagenet_sr_64_256"
FACTOR = 4
SIZE = 32
CLASSES = {"n00000001": 0, "n00000002": 1}
HEADS = 1
TOPOLOGY = AdmTopology(
    image_channels=3,
    channels=(48, 96),
    num_res_blocks=1,
    attention_levels=(False, True),
    num_classes=len(CLASSES),
    learn_sigma=True,
)
SCALES = (0.0, 0.5, 1.0)
COLUMNS = ("w", "a sample from the truth", "their mean from E[s_0 | y]", "spread of samples")
Array = NDArray[np.float64]


@dataclass(frozen=True)
class GaussianPictures:
    """Pictures mean(class) + sum_k z_k a_k phi_k, z standard normal and independent in every colour.

    phi_k are products of cosines along both sides, ``waves`` of them along each; those with more waves than the coarse
    picture can hold are what has to be made up. Values lie in [-1, 1] but for rare ones.
    """

    size: int = SIZE
    factor: int = FACTOR
    waves: int = 12
    level: float = 0.14

    @cached_property
    def basis(self) -> Array:
        """a_k phi_k, (size * size, waves * waves)."""
        places = (np.arange(self.size) + 0.5) / self.size
        cosines = np.cos(np.pi * places[:, None] * np.arange(self.waves))
        u, v = np.indices((self.waves, self.waves))
        amplitudes = self.level / (1 + (u**2 + v**2) / 16)
        return np.einsum("xu,yv,uv->xyuv", cosines, cosines, amplitudes).reshape(self.size**2, -1)

    @cached_property
    def averaging(self) -> Array:
        """Area averages as a matrix, (coarse * coarse, size * size)."""
        one = np.kron(np.eye(self.size // self.factor), np.full(self.factor, 1 / self.factor))
        return np.asarray(np.kron(one, one), dtype=np.float64)

    def mean(self, index: int) -> Array:
        """Of a class, (size * size,): a slope from left to right, or back."""
        slope = np.linspace(-0.2, 0.2, self.size) * (1 if index else -1)
        return np.tile(slope, self.size)

    def draw(self, index: int, rng: np.random.Generator) -> Array:
        """One picture of a class, (3, size, size)."""
        z = rng.standard_normal((3, self.basis.shape[1]))
        return (self.mean(index) + z @ self.basis.T).reshape(3, self.size, self.size)

    @cached_property
    def gain(self) -> Array:
        """What a coarse picture's deviation from its mean says of the fine one, (size * size, coarse * coarse)."""
        seen = self.averaging @ self.basis
        return self.basis @ seen.T @ np.linalg.pinv(seen @ seen.T, rcond=1e-9)

    def posterior_mean(self, y: Array, index: int) -> Array:
        """E[s_0 | y]: the average of all pictures of a class that a coarse one (3, coarse, coarse) allows."""
        mean = self.mean(index)
        deviation = y.reshape(3, -1) - self.averaging @ mean
        return (mean + deviation @ self.gain.T).reshape(3, self.size, self.size)

    @cached_property
    def left(self) -> float:
        """v: the mean variance of a pixel around E[s_0 | y]."""
        rest = self.basis - self.gain @ self.averaging @ self.basis
        return float((rest**2).sum(axis=1).mean())


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(words)
    output, pictures = arguments.output.resolve(), GaussianPictures()
    data = output / "data"
    if not (data / "val").exists():
        write_pictures(pictures, data, arguments.pictures, arguments.seed)
    upsampler = trained_upsampler(output, data, arguments)
    guidance = run(
        output / "guidance" / "guidance_last.pt",
        ("train", "train_guidance"),
        {**budget(arguments, data, arguments.guidance_iterations), "initial_weights": upsampler},
    )
    model = load_upsampler(upsampler, window=SIZE, num_heads=HEADS, project=True)
    truth = drawn(pictures, arguments.tested, np.random.default_rng(arguments.seed + 1))
    rows = [closed_form(pictures)]
    rows += [measure(model, guidance, w, truth, pictures, arguments) for w in SCALES]
    write_csv(output / "toy_upsampler.csv", rows, number_format=".4f")
    cells = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row.values()] for row in rows]
    text = markdown_table(COLUMNS, cells)
    (output / "toy_upsampler.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=2000, help="of each class, to train on")
    parser.add_argument("--iterations", type=int, default=3000, help="training steps of the upsampler")
    parser.add_argument("--guidance-iterations", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tested", type=int, default=16, help="new pictures of each class")
    parser.add_argument("--members", type=int, default=8, help="samples of each")
    parser.add_argument("--steps", type=int, default=50, help="of the sampler (DDPM)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(words)


# --- what a user would bring ------------------------------------------------------------------------------------------


def write_pictures(pictures: GaussianPictures, folder: Path, count: int, seed: int) -> None:
    """Folders as ImageNet has them, of 8-bit pictures."""
    rng = np.random.default_rng(seed)
    for section, number in (("train", count), ("val", 8)):
        for wnid, index in CLASSES.items():
            place = folder / section / wnid
            place.mkdir(parents=True, exist_ok=True)
            for i in range(number):
                write_picture(torch.as_tensor(pictures.draw(index, rng)).clamp(-1, 1).float(), place / f"{i}.png")


def trained_upsampler(output: Path, data: Path, arguments: argparse.Namespace) -> Path:
    """A file in ADM's format, as its authors would publish it."""
    begun, finished = output / "untrained.pt", output / "upsampler.pt"
    if finished.exists():
        return finished
    torch.manual_seed(arguments.seed)
    torch.save(adm_tensors(adm_network(TOPOLOGY, cond_scale=FACTOR, num_heads=HEADS), TOPOLOGY), begun)
    settings = {**budget(arguments, data, arguments.iterations), "initial_weights": begun, "fusion": "input"}
    network = load_model(run(output / "upsampler" / "model_last.pt", ("train",), settings)).network.network
    assert isinstance(network, ConditionalUNet)
    torch.save(adm_tensors(network, TOPOLOGY), finished)
    return finished


def budget(arguments: argparse.Namespace, data: Path, iterations: int) -> dict[str, Any]:
    """Keys of both trainings that are of this size."""
    epochs = max(1, round(iterations / 250))
    return {
        "dataset_dir": data,
        "classes": CLASSES,
        "size": SIZE,
        "factor": FACTOR,
        "num_heads": HEADS,
        "epochs": epochs,
        "iterations": math.ceil(iterations / epochs),
        "batch_size": arguments.batch,
        "learning_rate": 1.0e-3,
        "warmup": min(100, iterations // 2),
        "ema_momentum": 0.01,
        "val_interval": epochs,
        "held_out": 8,
        "validation_steps": 10,
        "workers": 0,
        "seed": arguments.seed,
    }


def run(result: Path, configurations: Sequence[str], settings: dict[str, Any]) -> Path:
    """One of the recipe's commands, unless its result is there.

    Raises:
        InputError: when it failed.
    """
    if result.exists():
        return result
    files = [f"'configs/{name}.yaml'" for name in configurations]
    words = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", ".", "--output_dir", str(result.parent)]
    words += ["--config_file", "[" + ",".join(files) + "]"]
    for name, value in settings.items():
        words += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    result.parent.mkdir(parents=True, exist_ok=True)
    log = result.parent / "log.txt"
    print(f"{' and '.join(configurations)}: see {log}", flush=True)
    with log.open("w", encoding="utf-8") as file:
        status = subprocess.run(words, cwd=bundle_path(RECIPE), stdout=file, stderr=file, check=False).returncode
    if status:
        raise InputError(f"{' and '.join(configurations)} failed", path=log, remedy="Read its end")
    return result


# --- against the closed form ------------------------------------------------------------------------------------------


def drawn(pictures: GaussianPictures, count: int, rng: np.random.Generator) -> list[tuple[int, Array]]:
    """New pictures with their class."""
    return [(index, pictures.draw(index, rng)) for index in CLASSES.values() for _ in range(count)]


def closed_form(pictures: GaussianPictures) -> dict[str, Any]:
    """What an exact sampler would show."""
    v = pictures.left
    return dict(zip(COLUMNS, ("exact", math.sqrt(2 * v), 0.0, math.sqrt(v)), strict=True))


def measure(
    model: Model,
    guidance: Path,
    w: float,
    truth: Sequence[tuple[int, Array]],
    pictures: GaussianPictures,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Root mean squares over the pixels, which lie in [-1, 1]; of the mean of members their own noise is taken out."""
    predictor = DiffusionPredictor(
        model.target.denoiser(model.network),
        model.guide(guidance) if w else None,
        model.schedule,
        model.target,
        method="ddpm",
        steps=arguments.steps,
        members=arguments.members,
        guidance_scale=w,
        seed=arguments.seed,
    )
    coarse = [pictures.averaging @ image.reshape(3, -1).T for _, image in truth]
    coarse = [y.T.reshape(3, SIZE // FACTOR, -1) for y in coarse]
    classes = torch.tensor([index for index, _ in truth])
    images = append_class(torch.as_tensor(np.stack(coarse), dtype=torch.float32), classes)
    samples = predictor.ensemble(images, keys=list(range(len(truth)))).double()
    means = [pictures.posterior_mean(y, index) for y, (index, _) in zip(coarse, truth, strict=True)]
    fine, exact = (torch.as_tensor(np.stack(found)) for found in ([image for _, image in truth], means))
    variance = float(samples.var(dim=0).mean())
    bias = float((samples.mean(dim=0) - exact).square().mean()) - variance / arguments.members
    values = (f"{w:g}", _root((samples - fine).square()), math.sqrt(max(bias, 0.0)), math.sqrt(variance))
    return dict(zip(COLUMNS, values, strict=True))


def _root(squares: Tensor) -> float:
    return math.sqrt(float(squares.mean()))


if __name__ == "__main__":
    main()
