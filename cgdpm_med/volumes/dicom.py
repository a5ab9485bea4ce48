"""DICOM series as volumes: single-frame images grouped into slices x phases, with geometry from their positions.

A *stack* is what one volume or cine is made of: images of one orientation at evenly spaced positions, with the same
number of phases at each. Scanners store it as one series, or, which is common for cines, as one series for each slice;
both are put together here. What does not make a stack is refused with one error a series, and the others go on.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from cgdpm_med.volumes.dicom_files import DicomImage, NotAnImage, dicom_files, read_header
from cgdpm_med.volumes.dicom_stack import DicomStack, Lot, directions_of, slices_of, spacing_of, stack_of
from cgdpm_med.volumes.files import InputError, PathLike, listed
from cgdpm_med.volumes.nifti import Volume

Item = TypeVar("Item")


class DicomWarning(UserWarning):
    """DICOM files that are passed over because they hold no pictures."""


@dataclass(frozen=True)
class DicomFinding:
    """What was found of one volume: the stack, or the error why there is none.

    Attributes:
        folder: the deepest folder that holds its files.
        series: SeriesNumbers, in order.
    """

    folder: Path
    series: tuple[int, ...]
    stack: DicomStack | None = None
    error: InputError | None = None


def read_dicom(folder: PathLike) -> Volume:
    """Read the one stack that lies below a folder; see :func:`find_dicom`.

    Raises:
        InputError: there is none, or several, or what there is cannot be used.
    """
    folder = Path(folder)
    findings = find_dicom(folder)
    if len(findings) != 1:
        what = f"holds {len(findings)} DICOM volumes" if findings else "holds no DICOM image"
        raise InputError(what, path=folder, remedy="Give the folder of one series")
    (found,) = findings
    if found.error is not None:
        raise found.error
    assert found.stack is not None
    return found.stack.read()


def find_dicom(folder: PathLike, *, exclude: PathLike | None = None) -> list[DicomFinding]:
    """Group the DICOM files below a folder into volumes and cines, sorted by folder and series.

    Series are told apart by SeriesInstanceUID, and within a series the orientations. Slices follow their position along
    the normal; their distance is that of the positions, whatever SliceThickness says. Phases follow TriggerTime, else
    TemporalPositionIdentifier, else InstanceNumber: the first of them that all images have and that differs among the
    images of a slice. Series of one slice each become one stack where study, frame of reference, orientation, pixel
    spacing and size agree; they must then have the same number of phases.

    Refused with one error for a series: sizes or pixel spacings that differ, colour, multi-frame objects, no position,
    a single slice, slices that are missing, unevenly spaced, there twice or shifted sideways, numbers of phases that
    differ, images that differ in more than their phase (echoes, magnitude and phase), and series beside which an image
    cannot be read, since that may be one of theirs. Objects without pictures (reports, segmentations) are passed over
    with a :class:`DicomWarning`, or refused where there is nothing else. Errors name folders, series numbers and
    slices, counted from 1 along the normal; never what identifies a patient or an examination.

    Args:
        folder: searched recursively.
        exclude: a folder that is left out.
    """
    folder = Path(folder)
    images, damaged, others = _read_headers(dicom_files(folder, None if exclude is None else Path(exclude)))
    findings = _beside_damaged(_group(images), damaged)
    nothing_else = not findings
    for parent, count in Counter(path.parent for path in others).items():
        what = f"holds {count} DICOM objects that are no images (reports, segmentations or the like)"
        if nothing_else:
            error = InputError(what, path=parent, remedy="Give the folder of a short-axis series")
            findings.append(DicomFinding(parent, (), error=error))
        else:
            warnings.warn(f"{parent}: {what}; they are passed over", DicomWarning, stacklevel=2)
    return sorted(findings, key=lambda found: (found.folder, found.series))


def _read_headers(files: Iterable[Path]) -> tuple[list[DicomImage], dict[Path, InputError], list[Path]]:
    images: list[DicomImage] = []
    damaged: dict[Path, InputError] = {}
    others: list[Path] = []
    for path in files:
        try:
            header = read_header(path)
        except InputError as error:
            damaged[path] = error
            continue
        if isinstance(header, DicomImage):
            images.append(header)
        elif isinstance(header, NotAnImage):
            others.append(path)
    return images, damaged, others


def _beside_damaged(findings: list[DicomFinding], damaged: dict[Path, InputError]) -> list[DicomFinding]:
    """Refuse what lies beside a file that cannot be read: the end of a stack would be lost without a trace."""
    counts = Counter(path.parent for path in damaged)
    errors: dict[Path, InputError] = {}
    for path, error in damaged.items():
        others = counts[path.parent] - 1
        what = f"{error.what}; so are {others} more files there" if others else error.what
        errors.setdefault(path.parent, InputError(what, path=path, remedy=error.remedy))
    checked: list[DicomFinding] = []
    named: set[Path] = set()
    for found in findings:
        folders = {path.parent for path in found.stack.files} if found.stack else {found.folder}
        touched = sorted(folders & errors.keys())
        named |= set(touched)
        checked.append(DicomFinding(found.folder, found.series, error=errors[touched[0]]) if touched else found)
    return checked + [DicomFinding(path, (), error=error) for path, error in errors.items() if path not in named]


# --- from images to stacks --------------------------------------------------------------------------------------------


def _group(images: Iterable[DicomImage]) -> list[DicomFinding]:
    by_series: dict[tuple[str, str], list[DicomImage]] = defaultdict(list)
    for image in images:
        by_series[image.study_uid, image.series_uid].append(image)
    findings: list[DicomFinding] = []
    levels: list[Lot] = []  # series of one slice
    for lot in map(Lot, by_series.values()):
        try:
            _require_alike(lot)
        except InputError as error:
            findings.append(DicomFinding(lot.folder, lot.series, error=error))
            continue
        views = [Lot(view) for view in _classes(lot.images, _same_view)]
        single = [view for view in views if len(slices_of(view)) == 1]
        findings += [_stacked(view) for view in views if view not in single]
        if len(views) == 1:
            levels += single
        elif single:
            findings.append(
                _refused(lot, f"holds {len(single)} views of one slice each", "Give the short-axis series alone")
            )
    return findings + [_merged(same) for same in _classes(levels, _one_stack)]


def _stacked(lot: Lot) -> DicomFinding:
    """The stack of these images, or why there is none."""
    try:
        return DicomFinding(lot.folder, lot.series, stack=stack_of(lot))
    except InputError as error:
        return DicomFinding(lot.folder, lot.series, error=error)


def _refused(lot: Lot, what: str, remedy: str) -> DicomFinding:
    return DicomFinding(lot.folder, lot.series, error=lot.error(what, remedy))


def _require_alike(lot: Lot) -> None:
    """Raises InputError unless the images of a series could lie on one grid."""
    alone = "Give the short-axis series alone"
    if any(image.frames > 1 for image in lot.images):
        raise lot.error("is a multi-frame object", "Convert it to NIfTI, for example with dcm2niix, and give that")
    if not all(image.grey for image in lot.images):
        raise lot.error("holds colour or inverted images", alone)
    if any(image.position is None or image.directions is None for image in lot.images):
        raise lot.error("does not say where its images lie (ImagePositionPatient, ImageOrientationPatient)", alone)
    if any(image.spacing is None for image in lot.images):
        raise lot.error("does not say how large its pixels are (PixelSpacing)", "Export it again with its headers")
    sizes = Counter(f"{columns} x {rows}" for columns, rows in (image.size for image in lot.images))
    if len(sizes) > 1:
        raise lot.error(f"mixes images of {listed(f'{size} ({n} images)' for size, n in sizes.items())} pixels", alone)
    spacings = [spacing_of(image) for image in lot.images]
    if not np.allclose(spacings, spacings[0], rtol=1e-4, atol=0):
        low, high = np.min(spacings, axis=0), np.max(spacings, axis=0)
        raise lot.error(
            f"mixes pixel spacings from {low[0]:.4g} x {low[1]:.4g} to {high[0]:.4g} x {high[1]:.4g} mm", alone
        )


def _merged(lots: Sequence[Lot]) -> DicomFinding:
    """Series of one slice each as one stack."""
    whole = Lot([image for lot in lots for image in lot.images])
    if len(lots) == 1:
        what, remedy = "shows a single slice", "Give a short-axis stack, or leave this series out"
        return _refused(whole, what, remedy)
    phases: dict[int, list[int]] = defaultdict(list)
    for lot in lots:
        phases[len(lot.images)] += lot.series
    if len(phases) > 1:
        counts = "; ".join(f"{count} in series {listed(sorted(numbers))}" for count, numbers in sorted(phases.items()))
        return _refused(whole, f"have different numbers of phases: {counts}", "Leave out the series that do not belong")
    if len(slices_of(whole)) == 1:
        return _refused(whole, "show the same slice", "Give a short-axis stack, or leave these series out")
    return _stacked(whole)


def _classes(items: Iterable[Item], same: Callable[[Item, Item], bool]) -> list[list[Item]]:
    """Items that are the same as the first of their class."""
    classes: list[list[Item]] = []
    for item in items:
        for members in classes:
            if same(members[0], item):
                members.append(item)
                break
        else:
            classes.append([item])
    return classes


def _same_view(a: DicomImage, b: DicomImage) -> bool:
    near = np.allclose(directions_of(a), directions_of(b), rtol=0, atol=1e-3)
    return near and a.frame_of_reference == b.frame_of_reference


def _one_stack(a: Lot, b: Lot) -> bool:
    """Whether two series of one slice may belong together; a still image and a cine do not."""
    first, second = a.images[0], b.images[0]
    return (
        first.study_uid == second.study_uid
        and first.size == second.size
        and (len(a.images) > 1) == (len(b.images) > 1)
        and np.allclose(spacing_of(first), spacing_of(second), rtol=1e-4, atol=0)
        and _same_view(first, second)
    )
