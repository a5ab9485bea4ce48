"""The paper's ImageNet recipe where the truth is known: a small upsampler in ADM's format, and guidance trained on it.

    python scripts/toy_upsampler.py --output OUT

Pictures of two classes are drawn from a Gaussian whose mean and covariance are known, so the average of all pictures
that a coarse one allows, E[s_0 | y], and the spread around it have a closed form. The trainings are the recipe's own
commands:

1. ``configs/train.yaml`` trains an upsampler of ADM's architecture, small, on such pictures.
2. It is written by the names of ADM's files.
3. ``configs/train_guidance.yaml`` trains the guidance network on that file, frozen.
4. New pictures are refined with several scales w, by the trained networks and by perfect ones, which have a closed
   form, too: a sampler of few steps is not exact.

Let v be the mean variance that a coarse picture leaves. An exact sample lies sqrt(2 v) from the truth, root mean
square, and E[s_0 | y] sqrt(v). With w = 1 guidance (reverse coupling) moves every sample to E[s_0 | y].

Writes toy_upsampler.md and toy_upsampler.csv. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cgdpm_med import DiffusionPredictor, InputError, NoiseSchedule, Sampling, bundle_path, load_upsampler
from cgdpm_med.diffusion.degradation import AreaDegradation
from cgdpm_med.files import atomic_write
from cgdpm_med.images import write_picture
from cgdpm_med.models.files import load_model
from cgdpm_med.networks.adm import AdmTopology, adm_network, adm_tensors
from cgdpm_med.networks.classes import append_class
from cgdpm_med.networks.denoiser import Denoiser, per_member
from cgdpm_med.networks.unet import ConditionalUNet
from cgdpm_med.tables.csv_files import write_csv
from cgdpm_med.tables.markdown import markdown_table
from cgdpm_med.tables.rows import Row, kept_row, write_text

RECIPE = "imagenet_sr_64_256"
CLASSES = {"n00000001": 0, "n00000002": 1}
HEADS = 1
TOPOLOGY = AdmTopology(
    image_channels=3,
    channels=(32, 64),
    num_res_blocks=1,
    attention_levels=(False, True),
    num_classes=len(CLASSES),
    learn_sigma=True,
)
SCALES = (0.0, 0.5, 1.0)
OPTIONS = {
    "data": ("pictures", "seed"),
    "upsampler": ("iterations", "batch"),
    "guidance": ("guidance_iterations", "steps"),
    "rows": ("tested", "members"),
}
"""What each stage depends on, besides what the stages before it depend on."""
MEASURES = ("a sample from the truth", "their mean from E[s_0 | y]", "spread of samples")
Array = NDArray[np.float64]


@dataclass(frozen=True)
class GaussianPictures:
    """Pictures mean(class) + sum_k z_k a_k phi_k, z standard normal and independent in every colour.

    phi_k are products of cosines along both sides, ``waves`` of them along each; those with more waves than the coarse
    picture can hold are what has to be made up. Of 100,000 values five lie outside of [-1, 1].
    """

    size: int = 32
    factor: int = 4
    waves: int = 12
    level: float = 0.07

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
        pixels = torch.eye(self.size**2, dtype=torch.float64).view(-1, 1, self.size, self.size)
        return AreaDegradation(self.factor).degrade(pixels).flatten(1).T.numpy()

    def mean(self, index: int) -> Array:
        """Of a class, (size * size,): stripes, too fine for the coarse picture; the other class has their negative."""
        places = (np.arange(self.size) + 0.5) / self.size
        stripes = 0.1 * np.cos(np.pi * places * (self.size // self.factor + 1))
        return np.repeat(-stripes if index else stripes, self.size)

    def draw(self, index: int, rng: np.random.Generator) -> Array:
        """One picture of a class, (3, size, size)."""
        z = rng.standard_normal((3, self.basis.shape[1]))
        return (self.mean(index) + z @ self.basis.T).reshape(3, self.size, self.size)

    def coarse(self, image: Array) -> Array:
        """Area averages: (3, size, size) -> (3, coarse, coarse)."""
        side = self.size // self.factor
        return (image.reshape(3, -1) @ self.averaging.T).reshape(3, side, side)

    @cached_property
    def gain(self) -> Array:
        """What a coarse picture's deviation from its mean says of the fine one, (size * size, coarse * coarse)."""
        seen = self.averaging @ self.basis
        return self.basis @ seen.T @ np.linalg.pinv(seen @ seen.T, rcond=1e-9)

    @cached_property
    def left(self) -> Array:
        """R, of a size as ``basis``: given y, pictures are E[s_0 | y] + R z."""
        return self.basis - self.gain @ self.averaging @ self.basis

    @property
    def v(self) -> float:
        """The mean variance of a pixel around E[s_0 | y]."""
        return float((self.left**2).sum(axis=1).mean())

    def posterior_mean(self, y: Array, index: int) -> Array:
        """E[s_0 | y]: the average of all pictures of a class that a coarse one (3, coarse, coarse) allows."""
        mean = self.mean(index)
        deviation = y.reshape(3, -1) - self.averaging @ mean
        return (mean + deviation @ self.gain.T).reshape(3, self.size, self.size)


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(words)
    output, pictures = arguments.output.resolve(), GaussianPictures()
    stages = {"data": write_pictures, "upsampler": train_upsampler, "guidance": train_guidance, "rows": measured}
    made_with: dict[str, Any] = {}
    found: Row = {}
    for name, stage in stages.items():
        made_with |= {option: getattr(arguments, option) for option in OPTIONS[name]}
        found = kept_row(output / name, made_with, partial(stage, output, pictures, arguments))
    rows: list[Row] = found["rows"]
    write_csv(output / "toy_upsampler.csv", rows, number_format=".4f")
    cells = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row.values()] for row in rows]
    text = markdown_table(("", *MEASURES), cells)
    write_text(output / "toy_upsampler.md", text + "\n")
    print(text)


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=2000, help="of each class, to train on")
    parser.add_argument("--iterations", type=int, default=3000, help="training steps of the upsampler")
    parser.add_argument("--guidance-iterations", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tested", type=int, default=4, help="new pictures of each class")
    parser.add_argument("--members", type=int, default=8, help="samples of each")
    parser.add_argument("--steps", type=int, default=50, help="of the sampler (DDPM)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(words)


# --- stages -----------------------------------------------------------------------------------------------------------


def write_pictures(output: Path, pictures: GaussianPictures, arguments: argparse.Namespace) -> Row:
    """Folders as ImageNet has them, of 8-bit pictures."""
    rng = np.random.default_rng([arguments.seed, 0])
    for section, number in (("train", arguments.pictures), ("val", 8)):
        for wnid, index in CLASSES.items():
            place = output / "data" / section / wnid
            place.mkdir(parents=True, exist_ok=True)
            for i in range(number):
                write_picture(torch.as_tensor(pictures.draw(index, rng)).clamp(-1, 1).float(), place / f"{i}.png")
    return {"pictures": arguments.pictures * len(CLASSES)}


def train_upsampler(output: Path, pictures: GaussianPictures, arguments: argparse.Namespace) -> Row:
    """A file in ADM's format, as its authors would publish it."""
    folder = output / "upsampler"
    torch.manual_seed(arguments.seed)
    network = adm_network(TOPOLOGY, cond_scale=pictures.factor, num_heads=HEADS)
    save(adm_tensors(network, TOPOLOGY), folder / "untrained.pt")
    settings = {
        **shared_keys(output, pictures, arguments),
        **epochs_of(arguments.iterations, arguments.pictures * len(CLASSES) // arguments.batch),
        "initial_weights": folder / "untrained.pt",
        "fusion": "input",
    }
    run(("train",), settings, folder)
    trained = load_model(folder / "model_last.pt").network.network
    assert isinstance(trained, ConditionalUNet)
    save(adm_tensors(trained, TOPOLOGY), folder / "upsampler.pt")
    return {"file": "upsampler.pt"}


def train_guidance(output: Path, pictures: GaussianPictures, arguments: argparse.Namespace) -> Row:
    """The paper's second network, on the file of the first."""
    settings = {
        **shared_keys(output, pictures, arguments),
        **epochs_of(arguments.guidance_iterations, arguments.guidance_iterations),  # its batches come from a buffer
        "initial_weights": output / "upsampler" / "upsampler.pt",
        "chain_steps": arguments.steps,
    }
    run(("train", "train_guidance"), settings, output / "guidance")
    return {"file": "guidance_last.pt"}


def save(tensors: dict[str, Tensor], path: Path) -> None:
    with atomic_write(path) as file:
        torch.save(tensors, file)


def shared_keys(output: Path, pictures: GaussianPictures, arguments: argparse.Namespace) -> dict[str, Any]:
    """Of both trainings, what is of this size."""
    return {
        "dataset_dir": output / "data",
        "classes": CLASSES,
        "size": pictures.size,
        "factor": pictures.factor,
        "num_heads": HEADS,
        "batch_size": arguments.batch,
        "learning_rate": 1.0e-3,
        "warmup": 100,
        "ema_momentum": 0.01,
        "held_out": 8,
        "validation_steps": 10,
        "workers": 0,
        "seed": arguments.seed,
    }


def epochs_of(steps: int, in_a_pass: int) -> dict[str, int]:
    """So many training steps in epochs of 250 at most, each within one pass over the pictures; validated at the end."""
    iterations = min(250, in_a_pass, steps)
    epochs = math.ceil(steps / iterations)
    return {"epochs": epochs, "iterations": iterations, "val_interval": epochs}


def run(configurations: Sequence[str], settings: dict[str, Any], folder: Path) -> None:
    """One of the recipe's commands; it resumes by itself.

    Raises:
        InputError: when it failed.
    """
    files = [f"'configs/{name}.yaml'" for name in configurations]
    words = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", ".", "--output_dir", str(folder)]
    words += ["--config_file", "[" + ",".join(files) + "]"]
    for name, value in settings.items():
        words += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    print(f"{' and '.join(configurations)}: see {log}", flush=True)
    with log.open("w", encoding="utf-8") as file:
        status = subprocess.run(words, cwd=bundle_path(RECIPE), stdout=file, stderr=file, check=False).returncode
    if status:
        raise InputError(f"{' and '.join(configurations)} failed", path=log, remedy="Read its end")


# --- perfect networks -------------------------------------------------------------------------------------------------


class PerfectUpsampler(Denoiser):
    """E[eps | x_t, y] and the posterior variance: what ADM's network of these pictures learns in the end.

    Given y pictures are E[s_0 | y] + R z, and E[x_0 | x_t, y] is linear in x_t, with a gain for each direction of R.
    """

    def __init__(self, pictures: GaussianPictures, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.pictures, self.schedule = pictures, schedule
        directions, deviations, _ = np.linalg.svd(pictures.left, full_matrices=False)
        self.directions = torch.as_tensor(directions, dtype=torch.float32)
        self.deviations = torch.as_tensor(deviations, dtype=torch.float32)

    def networks(self) -> tuple[Any, ...]:
        """None: the coarse picture itself is needed at every step."""
        return ()

    def posterior_mean(self, features: Tensor) -> Tensor:
        """E[s_0 | y] of coarse pictures with their class as last channel, (B, 3, size, size)."""
        means = [self.pictures.posterior_mean(y[:3].double().numpy(), int(y[3, 0, 0])) for y in features]
        return torch.as_tensor(np.stack(means), dtype=torch.float32)

    def estimate(self, x_t: Tensor, t: Tensor, features: Tensor) -> Tensor:
        """E[x_0 | x_t, y]."""
        ab = self.schedule.at("alpha_bar", t, x_t)
        mean = self.posterior_mean(per_member(features, len(x_t)))
        seen = (x_t - ab.sqrt() * mean).flatten(2) @ self.directions
        squares = self.deviations**2
        gains = ab.sqrt().flatten(2) * squares / (ab.flatten(2) * squares + 1 - ab.flatten(2))
        return mean + ((seen * gains) @ self.directions.T).view_as(x_t)

    def forward(self, x_t: Tensor, t: Tensor, features: Tensor) -> Tensor:
        """-> eps and v, (B, 6, size, size)."""
        ab = self.schedule.at("alpha_bar", t, x_t)
        eps = (x_t - ab.sqrt() * self.estimate(x_t, t, features)) / (1 - ab).sqrt()
        return torch.cat([eps, torch.full_like(eps, -1.0)], dim=1)  # -1 is the posterior variance


class PerfectGuide(PerfectUpsampler):
    """f of eq. (10) under the reverse coupling: sqrt(SNR) (E[s_0 | y] - E[x_0 | x_t, y])."""

    def forward(self, x_t: Tensor, t: Tensor, features: Tensor) -> Tensor:
        """-> f, (B, 3, size, size)."""
        ab = self.schedule.at("alpha_bar", t, x_t)
        error = self.posterior_mean(per_member(features, len(x_t))) - self.estimate(x_t, t, features)
        return (ab / (1 - ab)).sqrt() * error


# --- measures ---------------------------------------------------------------------------------------------------------


def measured(output: Path, pictures: GaussianPictures, arguments: argparse.Namespace) -> Row:
    """The closed form, perfect networks and the trained ones with each w, and the trained ones told the wrong class."""
    model = load_upsampler(output / "upsampler" / "upsampler.pt", window=pictures.size, num_heads=HEADS, project=True)
    guidance = model.guide(output / "guidance" / "guidance_last.pt")
    perfect = (PerfectUpsampler(pictures, model.schedule), PerfectGuide(pictures, model.schedule))
    truth = drawn(pictures, arguments.tested, np.random.default_rng([arguments.seed, 1]))
    rows = closed_form(pictures)
    for who, (denoiser, guide) in {"perfect networks": perfect, "trained": (model.network, guidance)}.items():
        for w in SCALES:
            dials = Sampling(
                method="ddpm",
                steps=arguments.steps,
                members=arguments.members,
                guidance_scale=w,
                seed=arguments.seed,
            )
            predictor = DiffusionPredictor(
                denoiser, guide if w else None, model.schedule, model.target, dials, precision="float32"
            )
            rows.append({"": f"{who}, w = {w:g}", **measure(predictor, truth, pictures)})
            if who == "trained" and not w:
                swapped = measure(predictor, truth, pictures, swapped=True)
                rows.append({"": "trained, w = 0, told the other class", **swapped})
    return {"rows": rows}


def drawn(pictures: GaussianPictures, count: int, rng: np.random.Generator) -> list[tuple[int, Array]]:
    """New pictures with their class."""
    return [(index, pictures.draw(index, rng)) for index in CLASSES.values() for _ in range(count)]


def closed_form(pictures: GaussianPictures) -> list[Row]:
    """What an exact sampler would show, and the average of all it could draw."""
    deviation = math.sqrt(pictures.v)
    exact = dict(zip(MEASURES, (math.sqrt(2) * deviation, 0.0, deviation), strict=True))
    average = dict(zip(MEASURES, (deviation, 0.0, 0.0), strict=True))
    return [{"": "exact samples", **exact}, {"": "E[s_0 | y]", **average}]


def measure(
    predictor: nn.Module,
    truth: Sequence[tuple[int, Array]],
    pictures: GaussianPictures,
    *,
    swapped: bool = False,
) -> dict[str, float]:
    """Root mean squares over pixels and pictures; of the mean of members the noise that they leave in it is taken out.

    Args:
        swapped: the network is told the other class.
    """
    coarse = [pictures.coarse(image) for _, image in truth]
    told = torch.tensor([1 - index if swapped else index for index, _ in truth])
    images = append_class(torch.as_tensor(np.stack(coarse), dtype=torch.float32), told)
    samples: Tensor = predictor.ensemble(images, keys=list(range(len(truth)))).double()  # type: ignore[operator]
    means = [pictures.posterior_mean(y, index) for y, (index, _) in zip(coarse, truth, strict=True)]
    fine, exact = (torch.as_tensor(np.stack(found)) for found in ([image for _, image in truth], means))
    variance = float(samples.var(dim=0).mean())
    bias = float((samples.mean(dim=0) - exact).square().mean()) - variance / len(samples)
    squares = (float((samples - fine).square().mean()), max(bias, 0.0), variance)
    return dict(zip(MEASURES, map(math.sqrt, squares), strict=True))


if __name__ == "__main__":
    main()
