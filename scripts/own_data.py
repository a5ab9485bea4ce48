"""Data sets of known truth, and what ``cgdpm-med train`` reaches on them.

python scripts/own_data.py KIND FOLDER [--cases 60] [--size 64] [--iterations 1500] [--hours H] [--set NAME=VALUE]
    [--rival]

KIND is one of
pictures   grey pictures with one or two bright ellipses on a cloudy background
blobs      colour pictures whose blobs differ from the background by hue, not by brightness
volumes    thick slices of noise with ellipsoids of two classes
ellipsoids volumes of many slices, 2.5 times as thick as pixels, with an ellipsoid of each of two classes in noise
channels   pictures of two channels: the structure is where both are bright; each has decoys of its own
readers    pictures that one of two readers drew, by chance: the second draws a rim more; what docs/own_data.md
           advises for readers who disagree is set, unless --set says otherwise

The set is written to FOLDER/data, trained on in FOLDER/run, and the scores on the test part are printed: Dice,
calibration error (ECE), Brier score and energy distance (GED). With --rival a plain U-Net of the same widths is trained
in FOLDER/rival, on the same examples for as many steps, and scored, too. Of readers the members are compared with what
both readers drew of each test picture; so are the U-Net's mask, and as many masks drawn from its probabilities pixel
by pixel.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from cgdpm_med.apps.evaluate_slices import evaluate_part
from cgdpm_med.apps.segment_slices import SliceSegmenter, load_segmenter
from cgdpm_med.apps.train import Wishes, train
from cgdpm_med.apps.train_stages import run_configuration
from cgdpm_med.datasets.loading import Loaded, load_example
from cgdpm_med.datasets.run import Run
from cgdpm_med.datasets.split import of_part
from cgdpm_med.metrics.masks import generalised_energy_distance

Array = NDArray[Any]
SPACING = (1.4, 1.4, 8.0)
SLICES = 6
READERS = ("reader_1", "reader_2")
ADVISED = {"readers": ("scale=0.4", "dice_weight=0", "timesteps=999,900,800,700", "members=16")}
"""Settings by kind."""


def disc(size: int, centre: Array, radii: Array, angle: float = 0.0) -> Array:
    """(size, size) relative distance from the centre of an ellipse, 1 on its edge."""
    x, y = np.mgrid[:size, :size] - centre[:, None, None]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return np.hypot(along / radii[0], across / radii[1])


def drawn_disc(rng: np.random.Generator, size: int) -> Array:
    """An ellipse of chance, not across the border."""
    radii = rng.uniform(0.08, 0.18, 2) * size
    return disc(size, rng.uniform(0.22, 0.78, 2) * size, radii, rng.uniform(0, np.pi))


def clouds(rng: np.random.Generator, size: int, width: float) -> Array:
    """Smooth noise of mean 0 and deviation 1."""
    field = gaussian_filter(rng.standard_normal((size, size)), width * size)
    return np.asarray((field - field.mean()) / field.std())


def grey_levels(values: Array) -> Array:
    """As 8 bits."""
    return np.asarray(values.clip(0, 255).round().astype(np.uint8))


def write_picture(folder: Path, name: str, image: Array, mask: Array) -> None:
    """Of an image folder: images/ and masks/, masks of 0 and 255."""
    for part, array in (("images", image), ("masks", 255 * mask.astype(np.uint8))):
        write_png(folder / part / f"{name}.png", array)


def write_png(file: Path, array: Array) -> None:
    """As PNG, in a folder that may be new."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file)


def write_case(folder: Path, name: str, channels: Sequence[Array], label: Array, spacing: Sequence[float]) -> None:
    """Of an nnU-Net raw data set."""
    affine = np.diag([*spacing, 1.0])
    files = [("imagesTr", f"{name}_{n:04d}", np.asarray(channel, np.float32)) for n, channel in enumerate(channels)]
    for part, stem, array in [*files, ("labelsTr", name, label.astype(np.uint8))]:
        (folder / part).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, affine), folder / part / f"{stem}.nii.gz")  # type: ignore[attr-defined,no-untyped-call]


def write_description(folder: Path, channels: Sequence[str], labels: Sequence[str], cases: int) -> None:
    """nnU-Net's dataset.json."""
    content = {
        "channel_names": {str(n): name for n, name in enumerate(channels)},
        "labels": {name: n for n, name in enumerate(["background", *labels])},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))


# --- kinds ------------------------------------------------------------------------------------------------------------


def pictures(folder: Path, rng: np.random.Generator, cases: int, size: int) -> None:
    """Bright ellipses, contrast three times the noise, on clouds half as strong."""
    for n in range(cases):
        mask = np.min([drawn_disc(rng, size) for _ in range(rng.integers(1, 3))], axis=0) < 1
        image = 90 + 45 * mask + 20 * clouds(rng, size, 0.05) + rng.normal(0, 15, mask.shape)
        write_picture(folder, f"p{n:04d}", grey_levels(image), mask)


def blobs(folder: Path, rng: np.random.Generator, cases: int, size: int) -> None:
    """Red and green change places inside."""
    for n in range(cases):
        mask = drawn_disc(rng, size) < 1
        bright = 120 + 20 * clouds(rng, size, 0.08)
        hue = np.where(mask, 25, -25)
        planes = [bright + hue, bright - hue, 90 + 0 * bright]
        image = np.stack(planes, axis=-1) + rng.normal(0, 12, (size, size, 3))
        write_picture(folder, f"p{n:04d}", grey_levels(image), mask)


def volumes(folder: Path, rng: np.random.Generator, cases: int, size: int) -> None:
    """A bright ellipsoid with a darker core, whose slices shrink towards both ends."""
    for n in range(cases):
        centre, radii = rng.uniform(0.35, 0.65, 2) * size, rng.uniform(0.2, 0.28, 2) * size
        image, label = np.zeros((size, size, SLICES)), np.zeros((size, size, SLICES), np.uint8)
        for z in range(SLICES):
            height = 1 - (2 * (z + 0.5) / SLICES - 1) ** 2
            distance = disc(size, centre, radii * np.sqrt(height))
            label[..., z] = (distance < 1).astype(np.uint8) + (distance < 0.6)
            levels = np.array([0.0, 60.0, 25.0])[label[..., z]]
            image[..., z] = 100 + levels + 10 * clouds(rng, size, 0.06) + rng.normal(0, 12, (size, size))
        write_case(folder, f"case_{n:03d}", [image], label, SPACING)
    write_description(folder, ["MR"], ["wall", "core"], cases)


def ellipsoids(folder: Path, rng: np.random.Generator, cases: int, size: int) -> None:
    """One is brighter than what surrounds it, one darker, by twice the noise; they stand askew and may touch."""
    shape = np.array([size, size, size // 2])
    for n in range(cases):
        image, label = np.zeros(shape), np.zeros(shape, np.uint8)
        for value, level in ((1, 40.0), (2, -40.0)):
            inside = ellipsoid(rng, shape) < 1
            image[inside], label[inside] = level, value
        image += 100 + 10 * gaussian_filter(rng.standard_normal(shape), 3) * 30 + rng.normal(0, 20, shape)
        write_case(folder, f"case_{n:03d}", [image], label, (1.0, 1.0, 2.5))
    write_description(folder, ["MR"], ["bright", "dark"], cases)


def ellipsoid(rng: np.random.Generator, shape: Array) -> Array:
    """Relative distance from a centre of chance in mm, 1 on the surface; slices are 2.5 mm thick, pixels 1 mm wide."""
    steps = np.array([1.0, 1.0, 2.5])
    extent = shape * steps
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    places = np.moveaxis(np.mgrid[tuple(slice(0, n) for n in shape)], 0, -1) * steps
    away = (places - rng.uniform(0.25, 0.75, 3) * extent) @ turn
    return np.asarray(np.linalg.norm(away / (rng.uniform(0.14, 0.25, 3) * extent[0]), axis=-1))


def channels(folder: Path, rng: np.random.Generator, cases: int, size: int) -> None:
    """Three discs: the first is bright in both channels, the others in one each."""
    for n in range(cases):
        both, one, other = (drawn_disc(rng, size) < 1 for _ in range(3))
        bright = [both | one, both | other]
        planes = [100 + 50 * plane[..., None] + rng.normal(0, 12, (size, size, 1)) for plane in bright]
        write_case(folder, f"case_{n:03d}", planes, (bright[0] & bright[1])[..., None], (1, 1, 5))
    write_description(folder, ["T2", "ADC"], ["lesion"], cases)


def readers(folder: Path, rng: np.random.Generator, cases: int, size: int) -> None:
    """The second reader draws half as far again. What each would draw is kept in reader_1/ and reader_2/."""
    for n in range(cases):
        distance = disc(size, rng.uniform(0.35, 0.65, 2) * size, rng.uniform(0.14, 0.2, 2) * size)
        image = 90 + 60 * (distance < 1) + 30 * (distance < 1.5) + rng.normal(0, 10, distance.shape)
        drawn = distance < 1.0, distance < 1.5
        write_picture(folder, f"p{n:04d}", grey_levels(image), drawn[int(rng.random() < 0.5)])
        for reader, mask in zip(READERS, drawn, strict=True):
            write_png(folder / reader / f"p{n:04d}.png", 255 * mask.astype(np.uint8))


KINDS: Mapping[str, Callable[[Path, np.random.Generator, int, int], None]] = {
    kind.__name__: kind for kind in (pictures, blobs, volumes, ellipsoids, channels, readers)
}


def write_set(kind: str, folder: Path, cases: int = 60, size: int = 64, seed: int = 0) -> Path:
    """A data set of a kind; the same for the same seed."""
    KINDS[kind](folder, np.random.default_rng(seed), cases, size)
    return folder


# --- a plain U-Net ----------------------------------------------------------------------------------------------------


def plain_unet(run: Run) -> dict[str, Any]:
    """In place of ``network_def``: MONAI's DynUNet, nnU-Net's architecture, with the plan's widths."""
    levels = len(run.plan.widths)
    network = {
        "_target_": "DynUNet",
        "spatial_dims": 2,
        "in_channels": len(run.input.channels),
        "out_channels": "$@target.channels",
        "filters": "@widths",
        "kernel_size": [3] * levels,
        "strides": [1] + [2] * (levels - 1),
        "upsample_kernel_size": [2] * (levels - 1),
        "norm_name": ["INSTANCE", {"affine": True}],
    }
    return {"_target_": "cgdpm_med.ConditionOnly", "network": network}


def train_rival(source: Path, run: Path, rival: Path) -> SliceSegmenter:
    """A U-Net instead of the run's network; all else is the run's own. Its softmax comes from one step."""
    shutil.copytree(run / "configs", rival / "configs", dirs_exist_ok=True)
    (rival / "models").mkdir(exist_ok=True)
    shutil.copy(run / "models" / "split.json", rival / "models")
    changes = {"network_def": plain_unet(Run(run, source)), "sampler_predictor#steps": 1}
    (rival / "configs" / "rival.yaml").write_text(json.dumps(changes))
    run_configuration(source, rival, torch.device("cpu"), ["train.yaml", "rival.yaml"], rival / "models" / "model.pt")
    return load_segmenter(rival, device="$torch.device('cpu')", steps=1, members=1)


# --- scores -----------------------------------------------------------------------------------------------------------

Members = Callable[[Loaded, str], Array]
"""``members(image, key)``: label maps (K, X, Y, Z)."""


def distance_of_readers(run: Run, members: Members) -> float:
    """Generalised energy distance between members and both readers' masks, mean over the test part."""
    distances = []
    for example in of_part(run.dataset, run.parts, "test"):
        files = [run.source / reader / f"{example.key}.png" for reader in READERS]
        drawn = [load_example(run.dataset, replace(example, label=file)) for file in files]
        truth = [loaded.view.undo(loaded.label) for loaded in drawn if loaded.label is not None]
        distances.append(generalised_energy_distance(members(drawn[0], example.key), np.stack(truth), [1]))
    return float(np.mean(distances))


def drawn_by_pixel(probability: Array, count: int, rng: np.random.Generator) -> Array:
    """Masks (K, *S) whose pixels are drawn independently of each other."""
    return np.asarray(rng.random((count, *probability.shape)) < probability, np.uint8)


def reader_scores(run: Run, ensemble: SliceSegmenter, rival: SliceSegmenter | None) -> dict[str, float]:
    """Distances from both readers, by who drew the masks."""
    count, rng = ensemble.predictor.sampling.members, np.random.default_rng(0)
    ways: dict[str, Members] = {"members": lambda image, key: ensemble(image, key).members}
    if rival is not None:
        ways["U-Net"] = lambda image, key: rival(image, key).mask[None]
        ways["U-Net by pixel"] = lambda image, key: drawn_by_pixel(rival(image, key).probabilities[1], count, rng)
    return {name: distance_of_readers(run, members) for name, members in ways.items()}


def main(words: Sequence[str] | None = None) -> int:
    given = parsed(words)
    source, run, rival = given.folder / "data", given.folder / "run", None
    write_set(given.kind, source, given.cases, given.size, given.seed)
    settings = [*ADVISED.get(given.kind, ()), *given.settings]  # the last of a name counts
    wishes = Wishes(given.hours, None if given.hours else given.iterations, settings, seed=given.seed)
    begin, cpu = time.perf_counter(), time.process_time()
    test = train(source, run, wishes, device="cpu", say=print)["test"]
    print(f"{time.perf_counter() - begin:.0f} s, of which a CPU worked {time.process_time() - cpu:.0f} s")
    print(json.dumps(test), flush=True)
    if given.rival:
        rival = train_rival(source, run, given.folder / "rival")
        scores = evaluate_part(rival, given.folder / "rival", source, "test", given.folder / "rival" / "evaluation")
        print("U-Net:", json.dumps(scores))
    if given.kind == "readers":
        ensemble = load_segmenter(run, device="$torch.device('cpu')")
        distances = reader_scores(Run(run, source), ensemble, rival)
        print("GED from both readers:", json.dumps(distances))
    return 0


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--size", type=int, default=64, help="pixels of a side")
    parser.add_argument("--iterations", type=int, default=1500)
    parser.add_argument("--hours", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--rival", action="store_true", help="train a plain U-Net as well")
    return parser.parse_args(words)


if __name__ == "__main__":
    raise SystemExit(main())
