"""Data sets of known truth, and what ``cgdpm-med train`` reaches on them.

python scripts/own_data.py KIND FOLDER [--cases 60] [--size 64] [--iterations 1500] [--hours H] [--set NAME=VALUE]

KIND is one of
pictures   grey pictures with one or two bright ellipses on a cloudy background
blobs      colour pictures whose blobs differ from the background by hue, not by brightness
volumes    thick slices of noise with ellipsoids of two classes
ellipsoids volumes of many slices, 2.5 times as thick as pixels, with an ellipsoid of each of two classes in noise
channels   pictures of two channels: the structure is where both are bright; each has decoys of its own
readers    pictures that one of two readers drew, by chance: the second draws a rim more

The set is written to FOLDER/data, trained on in FOLDER/run, and the scores on the test part are printed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

Array = NDArray[Any]
SPACING = (1.4, 1.4, 8.0)
SLICES = 6


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
        (folder / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / part / f"{name}.png")


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
    """The second reader draws half as far again."""
    for n in range(cases):
        distance = disc(size, rng.uniform(0.35, 0.65, 2) * size, rng.uniform(0.14, 0.2, 2) * size)
        image = 90 + 60 * (distance < 1) + 30 * (distance < 1.5) + rng.normal(0, 10, distance.shape)
        write_picture(folder, f"p{n:04d}", grey_levels(image), distance < (1.5 if rng.random() < 0.5 else 1.0))


KINDS: Mapping[str, Callable[[Path, np.random.Generator, int, int], None]] = {
    kind.__name__: kind for kind in (pictures, blobs, volumes, ellipsoids, channels, readers)
}


def write_set(kind: str, folder: Path, cases: int = 60, size: int = 64, seed: int = 0) -> Path:
    """A data set of a kind; the same for the same seed."""
    KINDS[kind](folder, np.random.default_rng(seed), cases, size)
    return folder


def main(words: Sequence[str] | None = None) -> int:
    from cgdpm_med.apps.train import Wishes, train

    given = parsed(words)
    data = write_set(given.kind, given.folder / "data", given.cases, given.size, given.seed)
    wishes = Wishes(given.hours, None if given.hours else given.iterations, given.settings, seed=given.seed)
    begin, cpu = time.perf_counter(), time.process_time()
    test = train(data, given.folder / "run", wishes, device="cpu", say=print)["test"]
    print(f"{time.perf_counter() - begin:.0f} s, of which a CPU worked {time.process_time() - cpu:.0f} s")
    print(json.dumps(test))
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
    return parser.parse_args(words)


if __name__ == "__main__":
    raise SystemExit(main())
