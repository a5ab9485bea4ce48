"""A folder of images to files of masks and doubt, by the network of a run: what ``segment --bundle RUN`` does."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cgdpm_med.apps.segment_slices import Mask, SliceSegmenter
from cgdpm_med.apps.slice_page import SlicePage
from cgdpm_med.console import CaseBar, complain
from cgdpm_med.datasets.loading import Loaded, input_files
from cgdpm_med.files import InputError, atomic_write, check_place
from cgdpm_med.inference.labels import Labels
from cgdpm_med.metrics.masks import pairwise_dice
from cgdpm_med.models.weights import digests_by_name
from cgdpm_med.studies.outputs import write_json
from cgdpm_med.volumes import write_on_grid

RECORD, PAGE, LABELS = "segmentation.json", "report.html", "labels.json"
CERTAIN = 0.05
"""Probability of all classes but the background below which a pixel's doubt does not count."""


@dataclass(frozen=True)
class Done:
    """What a folder gave: the record of each image, and the error of each that failed."""

    cases: list[dict[str, Any]]
    failed: dict[str, str]


def segment_folder(
    segmenter: SliceSegmenter,
    source: str | Path,
    out: str | Path,
    *,
    pages: bool = True,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Segment every image; a bad one is reported and the others go on.

    A volume gets ``NAME.nii.gz`` and ``NAME_entropy.nii.gz``; a picture ``NAME.png``, its classes as a palette,
    ``NAME_doubt.png``, the entropy from black to white, and ``NAME_doubt.npz`` with entropy, disagreement and
    probabilities. ``labels.json`` names the classes, ``segmentation.json`` tells of every image, ``report.html`` shows
    those of most doubt.

    Args:
        pages: write the page.
        notes: lines to print first.

    Returns:
        ``labels``, ``settings``, ``weights``, ``temperature``, ``doubt``; ``cases``: of each image its files, the share
        of its pixels in each class, and how sure the ensemble is; ``failed``: errors by name.

    Raises:
        InputError: there are no images, or the output folder holds them or cannot be written.
    """
    source, out = Path(source), Path(out)
    found, unnamed = input_files(source, len(segmenter.input.names))
    if any(out.resolve() == path.resolve().parent for files in found.values() for path in files):
        raise InputError("holds the images themselves", path=out, remedy="Give another output folder")
    check_place(out)
    page = SlicePage(segmenter.labels)
    done = _segment_all(segmenter, found, unnamed, out, page, notes)
    record = {
        "labels": {str(number): name for number, name in segmenter.labels.by_number.items()},
        "settings": segmenter.settings,
        "weights": digests_by_name(segmenter.weights),
        "temperature": None if segmenter.calibration is None else segmenter.calibration.temperature,
        "doubt": 0.0 if segmenter.calibration is None else segmenter.calibration.doubt,
        "cases": done.cases,
        "failed": done.failed,
        "skipped": [],
    }
    write_json({"background": 0, **{name: n for n, name in segmenter.labels.by_number.items()}}, out / LABELS)
    write_json(record, out / RECORD)
    if pages and done.cases:
        page.write(record, out / PAGE)
    return record


def _segment_all(
    segmenter: SliceSegmenter,
    found: Mapping[str, Sequence[Path]],
    unnamed: Mapping[str, InputError],
    out: Path,
    page: SlicePage,
    notes: Sequence[str],
) -> Done:
    done = Done([], {key: str(error) for key, error in unnamed.items()})
    with CaseBar("segmenting", list(found)) as bar:
        for line in notes:
            bar.line(line)
        for error in unnamed.values():
            complain(error, bar)
        for key, files in found.items():
            bar.update(key, 0)
            try:
                done.cases.append(_segment_one(segmenter, key, files, out, page))
            except InputError as error:
                done.failed[key] = str(error)
                complain(error, bar)
            else:
                bar.note(f"segmented {key}")
    return done


def _segment_one(
    segmenter: SliceSegmenter, key: str, files: Sequence[Path], out: Path, page: SlicePage
) -> dict[str, Any]:
    loaded = segmenter.loaded(files)
    mask = segmenter(loaded, key)
    record: dict[str, Any] = {"case": key, "files": save_mask(mask, loaded, out, key, segmenter.labels)}
    record |= described(mask, loaded, segmenter.labels)
    page.add(key, record["doubt"], loaded, mask)
    return record


def described(mask: Mask, loaded: Loaded, labels: Labels) -> dict[str, Any]:
    """Of one image by class: ``share`` of the pixels, ``volume_ml`` of volumes and ``pixels`` of pictures, and
    ``expected_dice``, how well the members agree; ``doubt``, the mean entropy where something may be.
    """
    counts = {name: int(np.count_nonzero(mask.mask == n)) for n, name in labels.by_number.items()}
    somewhere = 1 - mask.probabilities[0] > CERTAIN
    agreement = pairwise_dice(mask.members, list(labels.by_number)) if len(mask.members) > 1 else {}
    size: dict[str, Any] = {"pixels": counts}
    if loaded.grid is not None:
        voxel = loaded.grid.voxel_volume / 1000
        size = {"volume_ml": {name: round(count * voxel, 4) for name, count in counts.items()}}
    return {
        "share": {name: count / mask.mask.size for name, count in counts.items()},
        **size,
        "expected_dice": {labels.by_number[n]: round(value, 4) for n, value in agreement.items()},
        "doubt": round(float(mask.entropy[somewhere].mean()), 6) if somewhere.any() else 0.0,
    }


# --- files ------------------------------------------------------------------------------------------------------------


def save_mask(mask: Mask, loaded: Loaded, out: Path, key: str, labels: Labels) -> list[str]:
    """The files of one image, see :func:`segment_folder`."""
    if loaded.grid is not None:
        paths = [out / f"{key}.nii.gz", out / f"{key}_entropy.nii.gz"]
        write_on_grid(mask.mask, loaded.grid, paths[0])
        write_on_grid(mask.entropy, loaded.grid, paths[1], dtype=np.float32)
        return [str(path) for path in paths]
    paths = [out / f"{key}.png", out / f"{key}_doubt.png", out / f"{key}_doubt.npz"]
    _write_png(mask.mask[..., 0], paths[0], palette(labels))
    _write_png((255 * mask.entropy[..., 0]).round().astype(np.uint8), paths[1])
    maps = {name: getattr(mask, name)[..., 0] for name in ("entropy", "disagreement", "probabilities")}
    with atomic_write(paths[2]) as file:
        np.savez_compressed(file, **maps)
    return [str(path) for path in paths]


def palette(labels: Labels) -> list[int]:
    """Red, green and blue of 256 values of a mask; the background is black."""
    colours = [bytes.fromhex(labels.colour_of(n)[1:]) for n in range(1, 256)]
    return [0, 0, 0, *(value for colour in colours for value in colour)]


def _write_png(values: NDArray[np.uint8], path: Path, colours: list[int] | None = None) -> None:
    image, content = Image.fromarray(values), io.BytesIO()
    if colours is not None:
        image.putpalette(colours)
    image.save(content, "PNG")
    with atomic_write(path) as file:
        file.write(content.getvalue())
