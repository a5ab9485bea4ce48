"""DICOM series as volumes: images grouped into slices x phases, with geometry from their positions.

A *stack* is what one volume or cine is made of: images of one orientation and contrast at evenly spaced positions, with
the same number of phases at each. Scanners store it as one series, as one series for each slice, or as multi-frame
objects; all are read here. What does not make a stack is refused with one error, and the others go on.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cgdpm_med.files import InputError, PathLike, listed
from cgdpm_med.volumes.dicom.contrast import differing
from cgdpm_med.volumes.dicom.files import dicom_files
from cgdpm_med.volumes.dicom.groups import ImageGroup, joined
from cgdpm_med.volumes.dicom.headers import DicomImage, NotAnImage, read_headers
from cgdpm_med.volumes.dicom.joining import SHIFTED, Judged, Level, join_levels
from cgdpm_med.volumes.dicom.repeats import note_of_copies, without_copies
from cgdpm_med.volumes.dicom.series import SeriesKey, all_series, group_by_series, require_alike, views_of
from cgdpm_med.volumes.dicom.stack import DicomStack, shifted_stacks, stack_of
from cgdpm_med.volumes.nifti import Volume


class DicomWarning(UserWarning):
    """DICOM files that are passed over, or of which one of several readings was taken."""


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


def read_dicom(folder: PathLike, *, series: Collection[int] | None = None) -> Volume:
    """Read the one stack that lies below a folder; see :func:`find_dicom`.

    Series that make no stack are named in a :class:`DicomWarning` where there is one beside them.

    Raises:
        InputError: there is none, or several, or what there is cannot be used.
    """
    folder = Path(folder)
    findings = find_dicom(folder, series=series)
    stacks = [found.stack for found in findings if found.stack is not None]
    errors = [found.error for found in findings if found.error is not None]
    if len(stacks) == 1:
        for error in errors:
            warnings.warn(str(error), DicomWarning, stacklevel=2)
        return stacks[0].read()
    if len(findings) == 1:
        raise errors[0]
    what = f"holds {len(findings)} DICOM volumes" if findings else "holds no DICOM image"
    numbers = _series_of(findings)
    among = f", or choose with series= among {listed(numbers)}" if len(numbers) > 1 else ""
    remedy = f"Give the folder of one of them{among}"
    raise InputError(what, path=folder, remedy=remedy if findings else "Give the folder of a series")


def _series_of(findings: Iterable[DicomFinding]) -> list[int]:
    return sorted({number for found in findings for number in found.series})


def find_dicom(
    folder: PathLike, *, exclude: PathLike | None = None, series: Collection[int] | None = None
) -> list[DicomFinding]:
    """Group the DICOM files below a folder into volumes and cines, sorted by folder and series.

    Images are told apart by patient, study and series, as far as what stands there is not blank or borne by one image
    alone; then by contrast and orientation. Slices follow their position along the normal; their distance is that of
    the positions, whatever SliceThickness says. Phases follow the first clock on which the slices agree (TriggerTime,
    TemporalPositionIdentifier, NominalCardiacTriggerDelayTime, AcquisitionTime, ContentTime, a regular lattice of
    InstanceNumber), and never one that others contradict. Series of one slice each become one stack where they lie on
    one lattice and agree in raster, orientation and contrast; odd ones are named and left out. Of a slice that was
    acquired again the last acquisition is taken, and of copies one, with a :class:`DicomWarning`.

    Refused with one error for a series: sizes or pixel spacings that differ, colour, multi-frame objects that do not
    say where their frames lie, no position, a single slice, slices that are missing, unevenly spaced or shifted
    sideways, numbers of phases that differ, phases that nothing puts in order, images of the signal's phase, and
    series beside which an image cannot be read, since that may be one of theirs. Objects without pictures (reports,
    segmentations) are passed over with a :class:`DicomWarning`, or refused where there is nothing else. Errors name
    folders, series numbers and slices, counted from 1 along the normal; never what identifies a patient or an
    examination.

    Args:
        folder: searched recursively.
        exclude: a folder that is left out.
        series: SeriesNumbers to take; None takes all.

    Raises:
        InputError: ``series`` has a number that no image bears.
    """
    folder = Path(folder)
    images, damaged, others = _read_headers(dicom_files(folder, None if exclude is None else Path(exclude)))
    if series is not None:
        images = _chosen(images, series, folder)
    images, copies = without_copies(images)
    findings = _beside_damaged(_group(images), damaged)
    notes = [*note_of_copies(copies), *_notes_of(findings)]
    nothing_else = not findings
    for parent, count in Counter(path.parent for path in others).items():
        what = f"holds {count} DICOM objects that are no images (reports, segmentations or the like)"
        if nothing_else:
            error = InputError(what, path=parent, remedy="Give the folder of a short-axis series")
            findings.append(DicomFinding(parent, (), error=error))
        else:
            notes.append(f"{parent}: {what}; they are passed over")
    for note in notes:
        warnings.warn(note, DicomWarning, stacklevel=2)
    return sorted(findings, key=lambda found: (found.folder, found.series))


def _notes_of(findings: Iterable[DicomFinding]) -> list[str]:
    return [f"{found.folder}: {note}" for found in findings if found.stack is not None for note in found.stack.notes]


def _read_headers(files: Iterable[Path]) -> tuple[list[DicomImage], dict[Path, InputError], list[Path]]:
    images: list[DicomImage] = []
    damaged: dict[Path, InputError] = {}
    others: list[Path] = []
    for path in files:
        try:
            headers = read_headers(path)
        except InputError as error:
            damaged[path] = error
            continue
        if isinstance(headers, NotAnImage):
            others.append(path)
        elif headers is not None:
            images += headers
    return images, damaged, others


def _chosen(images: Sequence[DicomImage], series: Collection[int], folder: Path) -> list[DicomImage]:
    there = all_series(images)
    unknown = sorted(set(series) - set(there))
    if unknown:
        what = f"holds no DICOM series {listed(unknown)}"
        remedy = f"Choose among {listed(there, most=50)}" if there else "Leave out --series"
        raise InputError(what, path=folder, remedy=remedy)
    return [image for image in images if image.series in series]


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


def _group(images: Sequence[DicomImage]) -> list[DicomFinding]:
    findings: list[DicomFinding] = []
    levels: list[Level] = []
    for key, group in group_by_series(images):
        try:
            views = views_of(key, group)
        except InputError as error:
            findings.append(_refused(group, error))
            continue
        of_series, single = _judge_views(key, views)
        findings += of_series
        levels += single
    return findings + [_judged(judged) for judged in join_levels(levels)]


def _judge_views(key: SeriesKey, views: Sequence[ImageGroup]) -> tuple[list[DicomFinding], list[Level]]:
    """Findings for the views of one series that are stacks or cannot be used, and those that show one slice."""
    findings: list[DicomFinding] = []
    stacks: list[ImageGroup] = []
    single: list[ImageGroup] = []
    for view in views:
        try:
            require_alike(view)
        except InputError as error:
            findings.append(_refused(view, error))
            continue
        (single if len(view.slices) == 1 else stacks).append(view)
    names = differing([image.contrast for view in stacks for image in view.images])
    if len(stacks) > 1 and not names:
        names = ["orientation"]
    note = f"is one of several volumes of its series, which differ in {listed(names)}" if names and key.series else ""
    for view in stacks:
        parts = shifted_stacks(view, named=bool(key.series))
        notes = [note] if len(parts) == 1 else [note, SHIFTED]
        findings += [_with_notes(_stacked(part), notes) for part in parts]
    if stacks and single and key.series:
        whole = joined(single)
        what = f"holds {len(single)} views of one slice each, which are left out"
        return [*findings, _refused(whole, whole.error(what, "Give the short-axis images alone"))], []
    return findings, [Level(key, view) for view in single]


def _judged(judged: Judged) -> DicomFinding:
    if judged.error is not None:
        return _refused(judged.group, judged.error)
    return _with_notes(_stacked(judged.group), [judged.note])


def _stacked(group: ImageGroup) -> DicomFinding:
    """The stack of these images, or why there is none."""
    try:
        stack = stack_of(group)
    except InputError as error:
        return _refused(group, error)
    return DicomFinding(group.folder, stack.series, stack=stack)


def _with_notes(found: DicomFinding, notes: Iterable[str]) -> DicomFinding:
    if found.stack is None:
        return found
    return replace(found, stack=replace(found.stack, notes=(*found.stack.notes, *filter(None, notes))))


def _refused(group: ImageGroup, error: InputError) -> DicomFinding:
    return DicomFinding(group.folder, group.series, error=error)
