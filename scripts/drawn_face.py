"""A face drawn from ellipses, 16 x 16 pixels, of nobody: something to refine where no photograph may be shown.

python scripts/drawn_face.py OUT.png [--size 128]

It is drawn at the fine size, and averaged over 8 x 8 pixels: ``cgdpm-med super-resolve OUT.png FINER --bundle
face_sr_16_128`` makes it fine again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]
FACTOR = 8
SKIN, HAIR, LIPS = (0.86, 0.66, 0.55), (0.24, 0.15, 0.10), (0.72, 0.35, 0.34)
COAT, WALL = (0.20, 0.26, 0.38), (0.55, 0.60, 0.62)
# what is painted, back to front: colour, centre (down, across), radii, softness of the edge; units of the picture
SHAPES = (
    (COAT, (1.08, 0.50), (0.26, 0.46), 0.02),
    (HAIR, (0.44, 0.50), (0.42, 0.33), 0.03),
    ((0.66, 0.48, 0.40), (0.80, 0.50), (0.20, 0.13), 0.02),
    (SKIN, (0.52, 0.50), (0.33, 0.245), 0.02),
    (HAIR, (0.19, 0.46), (0.13, 0.27), 0.05),
    (HAIR, (0.425, 0.395), (0.014, 0.065), 0.01),
    (HAIR, (0.425, 0.605), (0.014, 0.065), 0.01),
    ((0.95, 0.93, 0.92), (0.48, 0.395), (0.022, 0.045), 0.008),
    ((0.95, 0.93, 0.92), (0.48, 0.605), (0.022, 0.045), 0.008),
    ((0.17, 0.12, 0.10), (0.48, 0.395), (0.022, 0.022), 0.008),
    ((0.17, 0.12, 0.10), (0.48, 0.605), (0.022, 0.022), 0.008),
    ((0.70, 0.50, 0.41), (0.615, 0.50), (0.02, 0.045), 0.02),
    (LIPS, (0.715, 0.50), (0.028, 0.085), 0.012),
)


def drawn_face(size: int = 128) -> Array:
    """(size, size, 3) in [0, 1], lit from the left."""
    down, across = (np.mgrid[:size, :size] + 0.5) / size
    picture = np.broadcast_to(np.array(WALL), (size, size, 3)) * (1.1 - 0.3 * down[..., None])
    for colour, centre, radii, soft in SHAPES:
        distance = np.hypot((down - centre[0]) / radii[0], (across - centre[1]) / radii[1])
        cover = 1 / (1 + np.exp(np.clip((distance - 1) * min(radii) / soft * 4, -50, 50)))
        picture = picture + cover[..., None] * (np.array(colour) - picture)
    return np.asarray(np.clip(picture * (1.12 - 0.28 * across[..., None]), 0, 1))


def coarse(picture: Array, factor: int = FACTOR) -> Array:
    """The mean of each block of pixels."""
    side = len(picture) // factor
    return np.asarray(picture.reshape(side, factor, side, factor, 3).mean(axis=(1, 3)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=128, help="pixels at which it is drawn")
    given = parser.parse_args()
    Image.fromarray((255 * coarse(drawn_face(given.size))).round().astype(np.uint8)).save(given.out)
    print(given.out)


if __name__ == "__main__":
    main()
