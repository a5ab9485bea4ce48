"""Images that are there more than once: exact copies, and slices that were acquired again."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from cgdpm_med.files import InputError
from cgdpm_med.volumes.dicom.clocks import CLOCKS
from cgdpm_med.volumes.dicom.groups import ImageGroup, Slices
from cgdpm_med.volumes.dicom.headers import DicomImage
from cgdpm_med.volumes.dicom.pixels import read_pixels

_STILL = 50.0
"""Milliseconds between trigger times within which two still images show the same phase."""


def without_copies(images: Sequence[DicomImage]) -> tuple[list[DicomImage], list[DicomImage]]:
    """The images, each once, and those that repeat one: same instance UID, place, time and pixels.

    An instance UID alone is no proof, since de-identification may give all images the same.
    """
    by_instance: dict[tuple[str, str, int], list[DicomImage]] = defaultdict(list)
    for image in images:
        by_instance[image.patient, image.instance_uid, image.frame].append(image)
    kept: list[DicomImage] = []
    copies: list[DicomImage] = []
    for (_, uid, _), same in by_instance.items():
        if uid and len(same) > 1:
            once, again = _once(same)
            kept += once
            copies += again
        else:
            kept += same
    return kept, copies


def _once(images: Iterable[DicomImage]) -> tuple[list[DicomImage], list[DicomImage]]:
    """The first of equal images, and the others."""
    first: dict[object, DicomImage] = {}
    again = []
    for image in sorted(images, key=lambda image: (image.path, image.frame)):
        if first.setdefault(_fingerprint(image), image) is not image:
            again.append(image)
    return list(first.values()), again


def _fingerprint(image: DicomImage) -> tuple[object, ...]:
    """Equal for images that show the same in the same place at the same time."""
    place = None if image.position is None else tuple(np.round(image.position, 3))
    directions = None if image.directions is None else tuple(np.round(image.directions.ravel(), 4))
    times = tuple(sorted((name, time) for name, time in image.times.items() if name != "InstanceNumber"))
    return place, directions, times, image.acquired, image.contrast, _pixel_digest(image)


def _pixel_digest(image: DicomImage) -> str:
    try:
        return hashlib.sha256(read_pixels(image).tobytes()).hexdigest()
    except InputError:  # whoever reads the stack says so; as files they may still be equal
        return hashlib.sha256(image.path.read_bytes()).hexdigest()


def latest_of_each(group: ImageGroup, slices: Slices) -> tuple[Slices, list[str]]:
    """Slices of which each acquisition but the last is left out, and notes that say so.

    A slice counts as repeated where it has two or more times as many images as most slices have.

    Raises:
        InputError: nothing says which acquisition is the later.
    """
    counts = Counter(len(of_slice) for of_slice in slices)
    usual = min(counts, key=lambda count: (-counts[count], count))
    notes: list[str] = []
    chosen: Slices = []
    for number, of_slice in enumerate(slices, start=1):
        kept, note = _latest(group, number, of_slice, usual) if len(of_slice) > usual else (of_slice, "")
        chosen.append(kept)
        notes += [note] if note else []
    return chosen, notes


def _latest(group: ImageGroup, number: int, of_slice: list[DicomImage], usual: int) -> tuple[list[DicomImage], str]:
    once, again = _once(of_slice)
    if len(once) <= usual and again:
        return once, f"slice {number} holds copies of {len(again)} images, which are left out"
    if len(of_slice) % usual:
        return of_slice, ""  # a phase too many is no acquisition
    acquisitions = _acquisitions(of_slice, usual)
    if acquisitions is None:
        times = len(of_slice) // usual
        what = f"holds slice {number} {times} times, and nothing says which acquisition is the later"
        raise group.error(what, "Move the files of one acquisition elsewhere, or choose its series with --series")
    return acquisitions[-1], f"slice {number} was acquired {len(acquisitions)} times; the last acquisition is taken"


def repeated_throughout(group: ImageGroup, slices: Slices) -> tuple[Slices, list[str]] | None:
    """Where every slice was acquired equally often, told by clocks that hold each value so many times: the last.

    None where no clock says so, or nothing tells the acquisitions apart.
    """
    times = next((times for clock in CLOCKS if (times := _repetitions(clock.keyword, slices)) > 1), 1)
    if times == 1:
        return None
    found = [_acquisitions(of_slice, len(of_slice) // times) for of_slice in slices]
    if any(acquisitions is None for acquisitions in found):
        return None
    latest = [acquisitions[-1] for acquisitions in found if acquisitions is not None]
    return latest, [f"all slices were acquired {times} times; the last acquisition of each is taken"]


def _repetitions(keyword: str, slices: Slices) -> int:
    """How often each value of a clock occurs in every slice; 1 where that differs, or there is one value alone."""
    counts = [Counter(image.times.get(keyword) for image in of_slice) for of_slice in slices]
    times = {count for of_slice in counts for count in of_slice.values()}
    several = all(None not in of_slice and len(of_slice) > 1 for of_slice in counts)
    return times.pop() if len(times) == 1 and several else 1


# --- telling acquisitions apart ---------------------------------------------------------------------------------------

_MARKS: tuple[Callable[[DicomImage], object], ...] = (
    lambda image: (image.series_uid, image.series),
    lambda image: image.acquired[0],
    lambda image: image.acquired[1],
    lambda image: image.path.parent,
)
"""What all images of one acquisition may share and those of another do not."""


def _acquisitions(images: Sequence[DicomImage], phases: int) -> list[list[DicomImage]] | None:
    """The acquisitions of a slice in the order of time, or None where they cannot be told apart."""
    for parts in _partitions(images, phases):
        if all(len(part) == phases for part in parts) and _same_phases(parts):
            ordered = _in_order(parts)
            if ordered is not None:
                return ordered
    return None


def _partitions(images: Sequence[DicomImage], phases: int) -> Iterator[list[list[DicomImage]]]:
    for mark in _MARKS:
        by_mark: dict[object, list[DicomImage]] = defaultdict(list)
        for image in images:
            by_mark[mark(image)].append(image)
        yield list(by_mark.values())
    if any(all(clock.keyword in image.times for image in images) for clock in CLOCKS if clock.relative):
        numbers = {image.instance for image in images}
        if None not in numbers and len(numbers) == len(images):
            ordered = sorted(images, key=lambda image: image.instance or 0)
            yield [ordered[start : start + phases] for start in range(0, len(ordered), phases)]


def _same_phases(parts: Sequence[Sequence[DicomImage]]) -> bool:
    """Whether relative clocks, where there are any, do not say that the parts are different phases of one beat."""
    if len(parts) < 2:
        return False
    for clock in CLOCKS:
        rows = [[image.times[clock.keyword] for image in part if clock.keyword in image.times] for part in parts]
        if not clock.relative or not all(rows):
            continue
        spans = [max(row) - min(row) for row in rows]
        step = float(np.median(spans)) / max(len(rows[0]) - 1, 1) if len(rows[0]) > 1 else _STILL
        if np.ptp([min(row) for row in rows]) > step or max(spans) > 1.6 * min(spans) + 1e-9:
            return False
    return True


def _in_order(parts: list[list[DicomImage]]) -> list[list[DicomImage]] | None:
    """By the first of acquisition time and number, series and instance number that differs among all of them."""
    marks: tuple[Callable[[DicomImage], float | None], ...] = (
        lambda image: image.acquired[1],
        lambda image: image.acquired[0],
        lambda image: image.series,
        lambda image: image.instance,
    )
    for mark in marks:
        values = [[mark(image) for image in part] for part in parts]
        if any(None in row for row in values):
            continue
        rows = [sorted(value for value in row if value is not None) for row in values]
        order = sorted(range(len(parts)), key=lambda k: rows[k])
        if all(rows[a][-1] < rows[b][0] for a, b in pairwise(order)):
            return [parts[k] for k in order]
    return None


def note_of_copies(copies: Sequence[DicomImage]) -> list[str]:
    """One line for each folder that holds copies."""
    counts = Counter(image.path.parent for image in copies)
    note = "images are there more than once; each is taken once"
    return [f"{folder}: {count} {note}" for folder, count in counts.items()]
