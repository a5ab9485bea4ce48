"""The paper's figure 4 (a) and (b) on data of your own.

    python scripts/figure4.py                                   # phantom masks
    python scripts/figure4.py --data acdc:PATH --output figure4
    python scripts/figure4.py --data images:PATH

(a) Mean and standard deviation of x_T ~ q(x_T | x_0) for T from 100 to 50,000, beside Gaussian noise. Drawn, and in
    closed form: mean = sqrt(alpha_bar_T) mean(x_0), variance = alpha_bar_T var(x_0) + 1 - alpha_bar_T.
(b) KL(q(x_t | a) || q(x_t | b)) of two cases a, b against t. Both are Gaussians of the same covariance, so it is
    alpha_bar_t ||a - b||^2 / (2 (1 - alpha_bar_t)), in nats; also divided by the number of values of a case.

Both ways to choose betas for another T are shown: "linear_beta" rescales its end points by 1000 / T, so that x_T is
equally noisy for every T (what the paper's nearly constant mean suggests); "constant_beta_range" keeps them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from monai.transforms import CenterSpatialCrop, ResizeWithPadOrCrop
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cgdpm_med.data.acdc import acdc_patients
from cgdpm_med.diffusion.schedule import NoiseSchedule
from cgdpm_med.diffusion.targets import MaskTarget
from cgdpm_med.files import InputError, atomic_write
from cgdpm_med.phantom import PhantomSpec, make_phantom
from cgdpm_med.tables.csv_files import write_csv
from cgdpm_med.volumes import read_labels

LENGTHS = (100, 500, 1000, 2000, 5000, 10000, 20000, 50000)
SCHEDULES = ("linear_beta", "constant_beta_range")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="phantom", help="phantom, acdc:DIR or images:DIR")
    parser.add_argument("--output", type=Path, default=Path("figure4"), help="folder for figure4.png and two CSV files")
    parser.add_argument("--cases", type=int, default=32, help="most cases to read")
    parser.add_argument("--size", type=int, default=128, help="pixels along each axis")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        x_0 = read_cases(arguments.data, arguments.cases, arguments.size)
        a, b = first_different(x_0)
    except (InputError, OSError) as error:
        parser.error(str(error))
    ends = [*end_statistics(x_0, torch.Generator().manual_seed(arguments.seed))]
    divergence = [*divergence_of(a, b)]
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_csv(arguments.output / "figure4a.csv", ends, number_format=".6g")
    write_csv(arguments.output / "figure4b.csv", divergence, number_format=".6g")
    plot(arguments.output / "figure4.png", ends, divergence, f"{arguments.data.partition(':')[0]}, {len(x_0)} cases")
    print(f"wrote figure4.png, figure4a.csv and figure4b.csv to {arguments.output}")


# ------------------------------------------------------------------------------------------------------- the cases


def read_cases(data: str, cases: int, size: int) -> Tensor:
    """Targets in [-1, 1]: masks of the middle slice as one channel per class, or RGB images; (N, C, size, size)."""
    kind, _, folder = data.partition(":")
    readers = {"phantom": phantom_cases, "acdc": acdc_cases, "images": image_cases}
    if kind not in readers or (kind == "phantom") == bool(folder):
        raise InputError(f"--data must be phantom, acdc:DIR or images:DIR, not {data!r}")
    x_0 = list(islice(readers[kind](Path(folder), size), cases))
    if len(x_0) < 2:
        raise InputError(f"two cases are needed, found {len(x_0)}", path=folder or None)
    return torch.cat(x_0)


def phantom_cases(_: Path, size: int) -> Iterator[Tensor]:
    seed = 0
    while True:
        phantom = make_phantom(PhantomSpec.small(seed))
        yield mask_of(phantom.labels[phantom.ed_frame], size)
        seed += 1


def acdc_cases(folder: Path, size: int) -> Iterator[Tensor]:
    for patient in acdc_patients(folder):
        yield mask_of(read_labels(patient.label(patient.ed), spacing="pixdim").data, size)


def mask_of(labels: NDArray[Any], size: int) -> Tensor:
    """The middle slice of a label volume about its centre, encoded to (1, 4, size, size) in {-1, +1}."""
    middle = torch.from_numpy(np.ascontiguousarray(labels[:, :, labels.shape[2] // 2]).astype(np.int64))
    return MaskTarget(4, scale=1.0).encode(torch.as_tensor(ResizeWithPadOrCrop(size)(middle[None]))[None])


def image_cases(folder: Path, size: int) -> Iterator[Tensor]:
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES):
        with Image.open(path) as image:
            rgb = image.convert("RGB")
        square = CenterSpatialCrop([min(rgb.size)] * 2)(torch.from_numpy(np.array(rgb)).movedim(-1, 0))
        small = Image.fromarray(torch.as_tensor(square).movedim(0, -1).numpy()).resize(
            (size, size), Image.Resampling.BOX
        )
        yield torch.from_numpy(np.array(small)).movedim(-1, 0)[None].float() / 127.5 - 1


def first_different(x_0: Tensor) -> tuple[Tensor, Tensor]:
    """The first case and the first that differs from it."""
    for other in x_0[1:]:
        if not torch.equal(x_0[0], other):
            return x_0[0], other
    raise InputError("all cases are equal, so their divergence is zero")


# ----------------------------------------------------------------------------------------------------- the numbers


def end_statistics(x_0: Tensor, generator: torch.Generator) -> Iterator[dict[str, Any]]:
    """Figure 4 (a): rows of T, drawn and exact moments, and those of as much Gaussian noise."""
    mean_0, var_0 = float(x_0.double().mean()), float(x_0.double().var(correction=0))
    for name in SCHEDULES:
        for T in LENGTHS:
            # "sample": an x_T without signal would make a schedule for epsilon prediction warn
            schedule = NoiseSchedule(T, name, prediction_type="sample")
            ab = float(schedule.alpha_bar[-1])
            x_T = schedule.q_sample(x_0, T - 1, torch.randn(x_0.shape, generator=generator)).double()
            noise = torch.randn(x_0.shape, generator=generator).double()
            yield {
                "schedule": name,
                "T": T,
                "alpha_bar_T": ab,
                "mean": float(x_T.mean()),
                "std": float(x_T.std(correction=0)),
                "exact_mean": ab**0.5 * mean_0,
                "exact_std": (ab * var_0 + 1 - ab) ** 0.5,
                "noise_mean": float(noise.mean()),
                "noise_std": float(noise.std(correction=0)),
                "standard_error_of_mean": x_0.numel() ** -0.5,
            }


def divergence_of(a: Tensor, b: Tensor, T: int = 1000) -> Iterator[dict[str, Any]]:
    """Figure 4 (b): rows of t with the KL divergence in nats, whole and per value."""
    distance = float((a - b).double().square().sum())
    for t, ab in enumerate(NoiseSchedule(T).alpha_bar.tolist()):
        kl = ab * distance / (2 * (1 - ab))
        yield {"t": t, "kl": kl, "kl_per_dimension": kl / a.numel()}


# ------------------------------------------------------------------------------------------------------ the output


def plot(path: Path, ends: Sequence[dict[str, Any]], divergence: Sequence[dict[str, Any]], title: str) -> None:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    error = ends[0]["standard_error_of_mean"]
    for name, colour in zip(SCHEDULES, ("C0", "C1"), strict=True):
        rows = [row for row in ends if row["schedule"] == name]
        lengths = [row["T"] for row in rows]
        for axis, moment in ((left, "mean"), (middle, "std")):
            axis.plot(lengths, [row[f"exact_{moment}"] for row in rows], color=colour, label=f"{name}, exact")
            axis.plot(lengths, [row[moment] for row in rows], "o", color=colour, label=f"{name}, drawn")
    left.axhspan(-2 * error, 2 * error, color="0.85", label="Gaussian noise, 2 standard errors")
    middle.axhline(1, color="0.5", linestyle=":", label="Gaussian noise")
    left.set_yscale("symlog", linthresh=0.002)
    left.set(xscale="log", xlabel="T", title="(a) mean of $x_T$ (linear within ±0.002)")
    middle.set(xscale="log", xlabel="T", title="(a) standard deviation of $x_T$")
    times = [row["t"] for row in divergence]
    right.plot(times, [row["kl"] for row in divergence], label="all values together")
    right.plot(times, [row["kl_per_dimension"] for row in divergence], linestyle="--", label="per value")
    right.axhline(1, color="0.5", linestyle=":", label="1 nat")
    right.set(yscale="log", xlabel="t", ylabel="nats", title="(b) KL divergence of two cases, T = 1000")
    for axis in (left, middle, right):
        axis.legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    with atomic_write(path) as stream:
        figure.savefig(stream, format="png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
