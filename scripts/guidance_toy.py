"""What guidance does to two equally likely answers: x_0 in {-1, +1}, no condition image.

    python scripts/guidance_toy.py --output docs/images

Trains a small guidance network for each coupling, once on the exact denoiser and once on one that believes the answers
to be -0.7 and +0.7, and samples at several scales w. Writes guidance_two_modes.png and guidance_two_modes.csv; half a
minute on one CPU thread.

Columns: std of the samples; rms distance of a sample to the nearest true answer; expected squared error against an
independently drawn truth, E (s_0 - x_0)^2 = 1 + E x_0^2, which is what rewards an answer between the two.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from cgdpm_med.diffusion.guidance import Replay, ScaledGuide, guided
from cgdpm_med.diffusion.losses import GuidanceLoss
from cgdpm_med.diffusion.sampling import sample
from cgdpm_med.diffusion.schedule import NoiseSchedule
from cgdpm_med.files import atomic_write
from cgdpm_med.tables.csv_files import write_csv

SCHEDULE = NoiseSchedule(prediction_type="sample")
SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)
MODES = {"exact": 1.0, "biased": 0.7}
Denoise = Callable[[Tensor, Tensor, Any], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("guidance_toy"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=1500, help="training steps of each guidance network")
    arguments = parser.parse_args()
    samples = {}
    for name, mode in MODES.items():
        for coupling in ("reverse", "forward"):
            print(f"training: {name} denoiser, {coupling} coupling")
            guide = train(two_modes(mode), coupling, arguments.iterations, arguments.seed)
            for w in SCALES:
                samples[name, coupling, w] = draw(guided(two_modes(mode), guide, SCHEDULE, scale=w), arguments.seed)
    rows = [measure(x_0, *key) for key, x_0 in samples.items()]
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_csv(arguments.output / "guidance_two_modes.csv", rows, number_format=".4f")
    plot(arguments.output / "guidance_two_modes.png", samples, rows)
    for row in rows:
        print("  ".join(f"{value:.3f}" if isinstance(value, float) else f"{value:8}" for value in row.values()))


def two_modes(mode: float) -> Denoise:
    """The exact denoiser of x_0 uniform on {-mode, +mode}: E[x_0 | x_t]."""

    def denoise(x_t: Tensor, t: Tensor, context: Any) -> Tensor:
        ab = SCHEDULE.at("alpha_bar", t, x_t)
        return mode * torch.tanh(mode * ab.sqrt() * x_t / (1 - ab))

    return denoise


class Network(nn.Module):
    """A scalar function of x_t and log-SNR."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )

    def forward(self, x_t: Tensor, t: Tensor, context: Any) -> Tensor:
        log_snr = SCHEDULE.at("log_snr", t, x_t)
        snr_part = torch.sigmoid(2 * log_snr)
        return self.layers(torch.cat([x_t, log_snr / 4, snr_part, x_t * snr_part], dim=1))


def pairs() -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of 256 true targets, half of each answer, with an empty condition."""
    while True:
        yield torch.tensor([[-1.0], [1.0]]).repeat(128, 1), torch.empty(256, 0)


def train(denoiser: Denoise, coupling: str, iterations: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    guide = ScaledGuide(Network(), SCHEDULE)
    generator = torch.Generator().manual_seed(seed)
    replay = Replay(denoiser, SCHEDULE, generator=generator, capacity=12_800, coupling=coupling, chains=1, steps=25)
    loss = GuidanceLoss(SCHEDULE, "bounded")
    optimiser = torch.optim.Adam(guide.parameters(), lr=1e-2)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    for _, examples in zip(range(iterations), replay.batches(pairs(), batch_size=1024), strict=False):
        optimiser.zero_grad()
        loss(guide, *examples).backward()
        optimiser.step()
        decay.step()
    return guide.requires_grad_(False)


def draw(denoiser: Denoise, seed: int) -> Tensor:
    x_T = torch.randn(8192, 1, generator=torch.Generator().manual_seed(seed))
    return sample(denoiser, x_T, None, SCHEDULE, steps=50)[:, 0]


def measure(x_0: Tensor, denoiser: str, coupling: str, w: float) -> dict[str, Any]:
    return {
        "denoiser": denoiser,
        "coupling": coupling,
        "w": w,
        "std": float(x_0.std()),
        "distance_to_nearest_answer": float((x_0.abs() - 1).square().mean().sqrt()),
        "expected_squared_error": 1 + float(x_0.square().mean()),
    }


def plot(path: Path, samples: dict[tuple[str, str, float], Tensor], rows: Sequence[dict[str, Any]]) -> None:
    """A row per denoiser: samples under each coupling at three scales, and the spread against w."""
    figure, axes = plt.subplots(2, 3, figsize=(11, 5.6), layout="constrained", sharex="col")
    for (name, mode), (*histograms, spread) in zip(MODES.items(), axes, strict=True):
        for coupling, axis in zip(("reverse", "forward"), histograms, strict=True):
            for w, colour in ((0.0, "0.6"), (0.5, "C0"), (1.0, "C3")):
                x_0 = samples[name, coupling, w].clamp(-1.5, 1.5).numpy()
                axis.hist(
                    x_0, bins=61, range=(-1.5, 1.5), histtype="step", color=colour, linewidth=1.4, label=f"w = {w:g}"
                )
            for truth in (-1, 1):
                axis.axvline(truth, color="0.5", linestyle=":", linewidth=1)
            axis.set(
                title=f"{coupling}, {name} denoiser (answers ±{mode:g})",
                yscale="log",
                ylim=(0.7, 2e4),
                ylabel="samples of 8192",
            )
            axis.legend(fontsize=7)
        for coupling, colour in (("reverse", "C1"), ("forward", "C2")):
            curve = [row for row in rows if (row["denoiser"], row["coupling"]) == (name, coupling)]
            spread.plot(
                [r["w"] for r in curve], [r["std"] for r in curve], "o-", color=colour, label=f"{coupling}, trained"
            )
        spread.plot(SCALES, [mode * (1 - w) for w in SCALES], ":", color="C1", label="reverse, exact F*")
        spread.axhline(1, color="0.5", linestyle=":", linewidth=1, label="true spread")
        spread.set(title=f"spread, {name} denoiser", ylabel="std of samples", ylim=(0, 1.1))
        spread.legend(fontsize=7)
    for axis, label in zip(axes[-1], ("sample", "sample", "guidance scale w"), strict=True):
        axis.set_xlabel(label)
    with atomic_write(path) as stream:
        figure.savefig(stream, format="png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
