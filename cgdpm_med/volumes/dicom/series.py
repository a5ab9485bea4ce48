"""Images by series, before geometry joins them: what UIDs, numbers and folders say where they say something.

De-identification may blank a UID, give all files the same, or each file one of its own. A UID that is blank or borne by
one image alone says nothing; a series whose folders repeat instance numbers, or places and times, is one for each.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cgdpm_med.files import InputError, listed
from cgdpm_med.volumes.dicom.contrast import by_contrast
from cgdpm_med.volumes.dicom.groups import ImageGroup, classes_of, same_orientation, same_raster, spacing_of
from cgdpm_med.volumes.dicom.headers import DicomImage

_MOST_CONTRASTS = 4
"""More of them in one series are steps of a measurement (inversion times), not pictures to be told apart."""


@dataclass(frozen=True)
class SeriesKey:
    """What the images of one series share; "" and None where nothing is said."""

    patient: str
    study: str
    series: str
    number: int | None
    stack: str
    folder: Path | None


def group_by_series(images: Sequence[DicomImage]) -> list[tuple[SeriesKey, ImageGroup]]:
    """Images by what says which series they are of."""
    patient = _meaning(images, lambda image: image.patient)
    study = _meaning(images, lambda image: image.study_uid)
    series = _meaning(images, lambda image: image.series_uid)
    studies = {image.study_uid for n, image in enumerate(images) if study[n]}
    number = _meaning(
        images,
        lambda image: (image.patient, image.study_uid in studies and image.study_uid, image.path.parent, image.series),
    )
    groups: dict[SeriesKey, list[DicomImage]] = defaultdict(list)
    for n, image in enumerate(images):
        key = SeriesKey(
            patient=image.patient if patient[n] else "",
            study=image.study_uid if study[n] else "",
            series=image.series_uid if series[n] else "",
            number=image.series if series[n] or number[n] else None,
            stack=image.stack_id,
            folder=None if series[n] else image.path.parent,
        )
        groups[key].append(image)
    return [apart for key, members in groups.items() for apart in _by_folder(key, members)]


def _meaning(images: Sequence[DicomImage], mark: Callable[[DicomImage], Hashable]) -> list[bool]:
    """For each image, whether others bear the same mark; a blank one says nothing."""
    counts = Counter(mark(image) for image in images)
    return [bool(mark(image)) and counts[mark(image)] > 1 for image in images]


def _by_folder(key: SeriesKey, images: list[DicomImage]) -> list[tuple[SeriesKey, ImageGroup]]:
    """One group, or one a folder where folders repeat what no series does."""
    marks: dict[Path, set[Hashable]] = defaultdict(set)
    for image in images:
        if image.frames == 1:
            marks[image.path.parent].add(_only_once(image))
    repeated = Counter(mark for folder in marks.values() for mark in folder if mark is not None)
    if len(marks) < 2 or max(repeated.values(), default=0) < 2:
        return [(key, ImageGroup(images))]
    folders: dict[Path, list[DicomImage]] = defaultdict(list)
    for image in images:
        folders[image.path.parent].append(image)
    return [(key, ImageGroup(members)) for members in folders.values()]


def _only_once(image: DicomImage) -> Hashable:
    """What a series has once: an instance number, or without it a place at a time; None where neither is known."""
    if image.instance is not None:
        return image.instance
    if image.position is None or not image.times:
        return None
    return tuple(np.round(image.position, 3)), tuple(sorted(image.times.items()))


# --- views of a series ------------------------------------------------------------------------------------------------


def views_of(key: SeriesKey, group: ImageGroup) -> list[ImageGroup]:
    """A series apart by contrast and orientation; where no UID makes it one, also by everything else that cannot mix.

    Raises:
        InputError: the images of a series that is one could not lie on one grid, or have too many contrasts.
    """
    if key.series:
        require_alike(group)
        alike = [group.images]
    else:
        alike = classes_of(group.images, _could_mix)
    contrasts = [part for members in alike for part in by_contrast(members, lambda image: image.contrast)]
    if len(contrasts) > max(_MOST_CONTRASTS, len(alike)):
        raise group.error(f"mixes {len(contrasts)} contrasts (echoes, inversion times or the like)", _ALONE)
    return [ImageGroup(view) for part in contrasts for view in classes_of(part, _same_view)]


_ALONE = "Give the short-axis images alone, or choose another series with --series"


def _could_mix(a: DicomImage, b: DicomImage) -> bool:
    """Whether two images are alike in what images of one stack must share."""
    if (a.grey, a.size, a.loose) != (b.grey, b.size, b.loose):
        return False
    complete = [
        image.position is not None and image.directions is not None and image.spacing is not None for image in (a, b)
    ]
    return complete[0] == complete[1] and (not complete[0] or same_raster(a, b))


def _same_view(a: DicomImage, b: DicomImage) -> bool:
    """Also for images that do not say how they lie, which are one view that will be refused."""
    if a.directions is None or b.directions is None:
        return a.directions is b.directions
    return same_orientation(a, b)


def require_alike(group: ImageGroup) -> None:
    """Raises InputError unless the images of a series could lie on one grid."""
    complaint = _complaint(group)
    if complaint is not None:
        raise complaint


def _complaint(group: ImageGroup) -> InputError | None:
    images = group.images
    if any(image.loose for image in images):
        what = "is a multi-frame object that does not say where each of its frames lies"
        return group.error(what, "Export it as Enhanced MR or as single images, or convert it to NIfTI and give that")
    if not all(image.grey for image in images):
        return group.error(
            "holds colour or inverted images", "Export them as MONOCHROME2, or choose another series with --series"
        )
    if any(image.position is None or image.directions is None for image in images):
        what = "does not say where its images lie (ImagePositionPatient, ImageOrientationPatient)"
        return group.error(what, "Export it again with its headers, or choose another series with --series")
    if any(image.spacing is None for image in images):
        what = "does not say how large its pixels are (PixelSpacing)"
        return group.error(what, "Export it again with its headers, or choose another series with --series")
    return _complaint_of_rasters(group)


def _complaint_of_rasters(group: ImageGroup) -> InputError | None:
    sizes = Counter(f"{columns} x {rows}" for columns, rows in (image.size for image in group.images))
    if len(sizes) > 1:
        mixed = listed(f"{size} ({n} images)" for size, n in sizes.items())
        return group.error(f"mixes images of {mixed} pixels", _ALONE)
    spacings = [spacing_of(image) for image in group.images]
    if np.allclose(spacings, spacings[0], rtol=1e-4, atol=0):
        return None
    low, high = np.min(spacings, axis=0), np.max(spacings, axis=0)
    what = f"mixes pixel spacings from {low[0]:.4g} x {low[1]:.4g} to {high[0]:.4g} x {high[1]:.4g} mm"
    return group.error(what, _ALONE)


def all_series(images: Iterable[DicomImage]) -> tuple[int, ...]:
    """The SeriesNumbers of images, in order."""
    return tuple(sorted({image.series for image in images if image.series is not None}))
