"""What is in a data set: sizes, spacings, intensities, how often and how large its structures are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cgdpm_med.datasets.dataset import DataSet
from cgdpm_med.datasets.loading import Loaded, check_channels, load_example
from cgdpm_med.files import InputError

SAMPLES = 4096
"""Intensities taken of each channel of an example."""


@dataclass(frozen=True)
class Fingerprint:
    """A data set in numbers.

    Attributes:
        examples, patients, unlabelled: how many; patients of labelled examples.
        pictures: the images are pictures, not volumes.
        channels: names.
        slices: labelled ones in all.
        sizes: (least, median, greatest) along X, Y and slices.
        spacing: (25th percentile, median) in mm in plane, (25th percentile, median) between slices; 1 for pictures.
        extent: median in plane in mm (X, Y).
        reach: sides in mm (X, Y) of a rectangle about the centre that holds the structures of 95 % of the examples.
        farthest: the same of all examples.
        intensities: of each channel the percentiles 1, 50, 99 of all voxels.
        foreground: of each channel the percentiles 0.5 and 99.5 inside the structures.
        labels: names.
        fractions: of all voxels, by label.
        present: in how many examples each label is.
        diameter: median in mm of a structure's piece in one slice, as a disc of its area.
        pieces: mean number of pieces in a slice that has any.
    """

    examples: int
    patients: int
    unlabelled: int
    pictures: bool
    channels: tuple[str, ...]
    slices: int
    sizes: tuple[tuple[int, int, int], ...]
    spacing: tuple[tuple[float, float], tuple[float, float]]
    extent: tuple[float, float]
    reach: tuple[float, float]
    farthest: tuple[float, float]
    intensities: tuple[tuple[float, float, float], ...]
    foreground: tuple[tuple[float, float], ...]
    labels: tuple[str, ...]
    fractions: tuple[float, ...]
    present: tuple[int, ...]
    diameter: float
    pieces: float


def fingerprint(dataset: DataSet, progress: Callable[[int], None] = lambda done: None) -> Fingerprint:
    """Read every labelled example once, which checks them all.

    Raises:
        InputError: for the first file that is bad, or label maps that are all empty.
    """
    seen: list[_Seen] = []
    channels: dict[Path, int] = {}
    for done, example in enumerate(dataset.labelled, start=1):
        loaded = load_example(dataset, example, len(dataset.channels) or None)
        channels[example.images[0]] = len(loaded.image)
        seen.append(_look(loaded, len(dataset.labels)))
        progress(done)
    usual = Counter(channels.values()).most_common(1)[0][0]
    for path, count in channels.items():
        check_channels(path, count, usual)
    if not sum(sum(item.counts) for item in seen):
        what = "has label maps that are all empty"
        raise InputError(what, path=dataset.root, remedy="Give label maps in which the structures are marked")
    return _summary(dataset, seen)


@dataclass(frozen=True)
class _Seen:
    """One example in numbers."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    reach: tuple[float, float] | None
    samples: NDArray[np.float32]
    inside: NDArray[np.float32]
    counts: tuple[int, ...]
    diameters: tuple[float, ...]
    filled: int


def _look(loaded: Loaded, labels: int) -> _Seen:
    label = loaded.label
    assert label is not None
    flat, marked = loaded.image.reshape(len(loaded.image), -1), label.reshape(-1)
    shape = (label.shape[0], label.shape[1], label.shape[2])
    diameters, filled = piece_diameters(label, loaded.spacing)
    return _Seen(
        shape,
        loaded.spacing,
        centred_reach(label, loaded.spacing),
        _thinned(flat),
        _thinned(flat[:, marked > 0]),
        tuple(int(n) for n in np.bincount(marked, minlength=labels + 1)[1:]),
        diameters,
        filled,
    )


def _thinned(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values at random places, the same ones again for the same size: a stride may walk along a single slice."""
    count = values.shape[1]
    if count <= SAMPLES:
        return values
    return values[:, np.random.default_rng(0).integers(0, count, SAMPLES)]


def centred_reach(label: NDArray[np.uint8], spacing: Sequence[float]) -> tuple[float, float] | None:
    """Sides in mm of the least rectangle about the image's centre that holds every structure; None of an empty map."""
    sides = []
    for axis in range(2):
        hits = np.flatnonzero(label.any(axis=tuple({0, 1, 2} - {axis})))
        if not len(hits):
            return None
        size = label.shape[axis]
        sides.append(float(max(size - 2 * hits[0], 2 * (hits[-1] + 1) - size) * spacing[axis]))
    return sides[0], sides[1]


def piece_diameters(label: NDArray[np.uint8], spacing: Sequence[float]) -> tuple[tuple[float, ...], int]:
    """Of each connected piece in each slice the diameter in mm of a disc of its area; and how many slices have any."""
    found: list[float] = []
    filled = [z for z in range(label.shape[2]) if label[..., z].any()]
    for z in filled:
        pieces, count = ndimage.label(label[..., z] > 0)
        areas = np.bincount(pieces.ravel())[1 : count + 1] * spacing[0] * spacing[1]
        found += [float(2 * np.sqrt(area / np.pi)) for area in areas]
    return tuple(found), len(filled)


def _summary(dataset: DataSet, seen: Sequence[_Seen]) -> Fingerprint:
    shapes = np.array([item.shape for item in seen])
    plane = [np.sqrt(item.spacing[0] * item.spacing[1]) for item in seen]
    between = [item.spacing[2] for item in seen]
    extents = np.array([[n * s for n, s in zip(item.shape[:2], item.spacing[:2], strict=True)] for item in seen])
    reaches = np.array([item.reach for item in seen if item.reach is not None])
    counts = np.array([item.counts for item in seen])
    samples = np.concatenate([item.samples for item in seen], axis=1)
    inside = np.concatenate([item.inside for item in seen], axis=1)
    diameters = [diameter for item in seen for diameter in item.diameters]
    return Fingerprint(
        examples=len(dataset.examples),
        patients=len({example.patient for example in dataset.labelled}),
        unlabelled=len(dataset.examples) - len(dataset.labelled),
        pictures=dataset.labelled[0].is_picture,
        channels=_channel_names(dataset, len(samples)),
        slices=int(shapes[:, 2].sum()),
        sizes=tuple((int(c.min()), int(np.median(c)), int(c.max())) for c in shapes.T),
        spacing=(_quarter_and_median(plane), _quarter_and_median(between)),
        extent=(float(np.median(extents[:, 0])), float(np.median(extents[:, 1]))),
        reach=(float(np.percentile(reaches[:, 0], 95)), float(np.percentile(reaches[:, 1], 95))),
        farthest=_pair(reaches.max(axis=0)),
        intensities=tuple(_triple(np.percentile(c, [1, 50, 99])) for c in samples),
        foreground=tuple(_pair(np.percentile(c, [0.5, 99.5])) for c in inside),
        labels=dataset.labels,
        fractions=tuple(float(n) for n in counts.sum(axis=0) / shapes.prod(axis=1).sum()),
        present=tuple(int(n) for n in (counts > 0).sum(axis=0)),
        diameter=float(np.median(diameters)),
        pieces=len(diameters) / sum(item.filled for item in seen),
    )


def _channel_names(dataset: DataSet, count: int) -> tuple[str, ...]:
    if dataset.channels:
        return dataset.channels
    return {1: ("grey",), 3: ("red", "green", "blue")}.get(count, tuple(f"channel {n}" for n in range(count)))


def _quarter_and_median(values: Sequence[float]) -> tuple[float, float]:
    return _pair(np.percentile(values, [25, 50]))


def _pair(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(values[0]), float(values[1])


def _triple(values: NDArray[np.float64]) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])
