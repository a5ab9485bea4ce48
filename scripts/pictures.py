#!/usr/bin/env python3
"""Makes the pictures of the documents anew: those of pages need Chromium, all together an hour on two CPU cores.

python scripts/pictures.py                 # every picture, but for the sweeps
python scripts/pictures.py report.png      # one

The curves of docs/sweeps are drawn by scripts/sweep.py, which needs ACDC, as it measures: they fit the tables beside
them.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from cgdpm_med.phantom import PhantomSpec, make_phantom, write_phantom_patient

REPO = Path(__file__).resolve().parents[1]
IMAGES = REPO / "docs" / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def main() -> None:
    """Make the pictures named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PICTURES))
    names = parser.parse_args().names or list(PICTURES)
    if unknown := [name for name in names if name not in PICTURES]:
        parser.error(f"there is no picture {unknown[0]}: choose from {', '.join(PICTURES)}")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            PICTURES[name](Path(folder), IMAGES / name)
        print(IMAGES / name)


def command(*words: str) -> None:
    """``cgdpm-med …``, or a script."""
    subprocess.run([sys.executable, *words], check=True, cwd=REPO)


def report(folder: Path, picture: Path) -> None:
    """The page of a synthetic cine of 8 frames and 7 slices, with the shipped weights and 8 members."""
    spec = PhantomSpec(seed=3, shape=(144, 160, 7), spacing=(1.6, 1.6, 11.0), affine="plain", num_frames=8)
    cine = write_phantom_patient(folder / "in", 901, spec, cine=True) / "patient901_4d.nii.gz"
    command("-m", "cgdpm_med.apps.cli", "segment", str(cine), str(folder / "out"))
    (page,) = (folder / "out").glob("*.html")
    screenshot(page, picture, width=900, height=1900)


def refined_face(folder: Path, picture: Path) -> None:
    """The page of a drawn face, made eight times finer by 8 members."""
    command("scripts/drawn_face.py", str(folder / "face.png"))
    refine(folder, folder / "face.png", picture, "--bundle", "face_sr_16_128", "--members", "8")


def refined_heart(folder: Path, picture: Path) -> None:
    """The page of a small synthetic heart, made two times finer by 8 members in 4 steps."""
    drawn = make_phantom(PhantomSpec.small(seed=1))
    scan = nib.Nifti1Image(drawn.images[1], np.diag([-2.8, -2.8, 22.0, 1.0]))  # type: ignore[attr-defined,no-untyped-call]
    scan.to_filename(folder / "heart.nii.gz")
    refine(folder, folder / "heart.nii.gz", picture, "--members", "8", "--factor", "2")


def refine(folder: Path, image: Path, picture: Path, *options: str) -> None:
    """``super-resolve`` one image; the page that it leaves."""
    command("-m", "cgdpm_med.apps.cli", "super-resolve", str(image), str(folder / "out"), *options)
    (page,) = (folder / "out").glob("*.html")
    screenshot(page, picture, width=1100, height=760)


def guidance(folder: Path, picture: Path) -> None:
    """Samples of the two-mode toy, with their table."""
    command("scripts/guidance_toy.py", "--output", str(picture.parent))


def demo(folder: Path, picture: Path) -> None:
    """One slice of the demonstration's patient."""
    command("-m", "cgdpm_med.apps.cli", "demo", str(folder))
    shutil.copy(sorted(folder.rglob("*.png"))[0], picture)


def memory(folder: Path, picture: Path) -> None:
    """Memory over a hundred volumes, with its table."""
    command("scripts/memory_volumes.py", "--output", str(picture.parent))


def scaling(folder: Path, picture: Path) -> None:
    """Seconds against members, steps, slices and pixels, on this machine."""
    command("-m", "benchmarks", "scale", "--output", str(folder), "--plot", str(picture))


def screenshot(page: Path, picture: Path, *, width: int, height: int) -> None:
    """A page as a browser shows it, in CSS pixels.

    Raises:
        SystemExit: where no Chromium is installed.
    """
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"error: a picture of a page needs a browser: install one of {', '.join(BROWSERS)}")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    wanted = [f"--window-size={width},{height}", f"--screenshot={picture}", page.resolve().as_uri()]
    subprocess.run([browser, *flags, *wanted], check=True, capture_output=True)


PICTURES: dict[str, Callable[[Path, Path], None]] = {
    "report.png": report,
    "refined_face.png": refined_face,
    "refined_heart.png": refined_heart,
    "guidance_two_modes.png": guidance,
    "demo.png": demo,
    "memory_volumes.png": memory,
    "scaling.png": scaling,
}


if __name__ == "__main__":
    main()
