"""From a picture file to a finer one, with the spread of several samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cgdpm_med.apps.input_notes import notes_on_picture
from cgdpm_med.apps.refined import Disagreement, Refined, fresh, record_file
from cgdpm_med.apps.resolver import SuperResolver, spread
from cgdpm_med.files import InputError
from cgdpm_med.images import read_picture, write_picture
from cgdpm_med.report.refined import View

KEPT_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff")


def super_resolve_picture(
    resolver: SuperResolver,
    path: Path,
    folder: Path,
    key: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> Refined:
    """Refine one picture file.

    Writes ``<name><suffix>``, in the input's format (PNG for formats other than PNG, JPEG and TIFF). With several
    members that is their mean, and beside it lie ``<name>_sample<k><suffix>`` and ``<name>_std.png``, 16-bit grey: the
    standard deviation over members at each pixel, 65535 being the full range of intensities.

    Raises:
        InputError: for a file that cannot be read, or that would be overwritten.
    """
    suffix = path.suffix if path.suffix.lower() in KEPT_SUFFIXES else ".png"
    target = fresh(folder / f"{path.stem}{suffix}", path)
    if resolver.predictor.sampling.members > 1:
        for name in (*(f"sample{k}" for k in range(resolver.predictor.sampling.members)), "std"):
            _refuse_a_result(target.with_name(f"{path.stem}_{name}{suffix}"), path)
    picture = read_picture(path)
    images = picture.pixels[None]
    batch = resolver(images, [key or path.stem], progress)
    disagreement = Disagreement.of(resolver.disagreement(batch, images))
    members = batch[:, 0]
    if picture.grey:
        members = members.mean(dim=1, keepdim=True)
    files = [write_picture(members.mean(dim=0), target, picture)]
    deviation = None
    if len(members) > 1:
        for k, member in enumerate(members):
            files.append(write_picture(member, folder / f"{path.stem}_sample{k}{suffix}", picture))
        deviation = spread(members) / 2  # of [-1, 1] to [0, 1]
        files.append(write_picture(2 * deviation[None] - 1, folder / f"{path.stem}_std.png", bits=16))
    after = _shown(members.mean(dim=0))
    return Refined(
        files,
        None if deviation is None else float(deviation.mean()),
        disagreement,
        [View("picture", _shown(picture.pixels), after, None if deviation is None else deviation.numpy())],
        {"size": list(after.shape[1::-1])},
        notes_on_picture(resolver, picture),
    )


def _refuse_a_result(sample: Path, source: Path) -> None:
    if record_file(sample).exists():
        what = f"has a sample or spread that would take the place of {sample.name}, the result of another picture"
        raise InputError(what, path=source, remedy="Give another output folder")


def _shown(pixels: Tensor) -> NDArray[np.float32]:
    """(1 or 3, H, W) in [-1, 1] to (H, W, 3) in [0, 1]."""
    shown: NDArray[np.float32] = ((pixels + 1) / 2).expand(3, -1, -1).movedim(0, -1).numpy()
    return shown
