"""What DICOM headers say of the place and time of each image, and nothing of the patient that could be read again."""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.uid import UID

from cgdpm_med.files import InputError
from cgdpm_med.volumes.dicom.contrast import Contrast, purpose_of
from cgdpm_med.volumes.dicom.multiframe import frames_of
from cgdpm_med.volumes.dicom.values import (
    UNREADABLE,
    number_of,
    numbers_of,
    positive_of,
    seconds_of,
    text_of,
    whole_of,
    without_remarks,
)

_DIRECTORY = "1.2.840.10008.1.3.10"  # the table of contents of a disc
_DEFLATED = "1.2.840.10008.1.2.1.99"
_PIXEL_CLASSES = "1.2.840.10008.5.1.4.1.1."
_WITHOUT_PICTURES = ("4.2", "9.", "11.", "30", "66", "67", "68.", "88.", "104.", "481.")
"""Below it: spectra, waveforms, presentation states, maps, raw data and segmentations, reports, documents, plans."""

_IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_PICTURE = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated")
_GEOMETRY = (
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
)
_CONTRAST = (
    "ImageType",
    "ComplexImageComponent",
    "EchoTime",
    "RepetitionTime",
    "FlipAngle",
    "InversionTime",
    "SequenceName",
    "ScanningSequence",
    "ProtocolName",
    "SeriesDescription",
)
_TIME = (
    "TriggerTime",
    "TemporalPositionIdentifier",
    "NominalCardiacTriggerDelayTime",
    "AcquisitionDate",
    "AcquisitionTime",
    "AcquisitionDateTime",
    "ContentTime",
    "AcquisitionNumber",
)
_NUMBERS = ("PatientID", "SeriesNumber", "InstanceNumber", "RescaleSlope", "RescaleIntercept")
_FRAMES = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_READ = [*_IDENTITY, *_PICTURE, *_GEOMETRY, *_CONTRAST, *_TIME, *_NUMBERS, *_FRAMES]


@dataclass(frozen=True, eq=False, repr=False)
class DicomImage:
    """The header of one image, which is a file or a frame of one, as far as it says where and when the image lies.

    Attributes:
        path: the file.
        frame: index of the image within its file.
        frames: how many frames the file holds.
        loose: whether the file holds several frames and does not say where each of them lies.
        syntax: TransferSyntaxUID; "" where absent.
        sop_class, instance_uid, study_uid, series_uid, frame_of_reference: UIDs; "" where absent.
        patient: a digest of PatientID, for comparing in memory only; "" where absent.
        series, instance: SeriesNumber and InstanceNumber; of a frame, InstanceNumber x frames + its index.
        stack_id: StackID of a frame; "" where absent.
        size: (columns, rows).
        grey: whether there is one channel in which larger is brighter.
        spacing: mm between columns and between rows.
        directions: (2, 3) unit vectors along which the column index and the row index grow, in LPS+.
        position: (3,) centre of the first pixel in mm, LPS+.
        thickness, between: SliceThickness and SpacingBetweenSlices in mm; distances come from positions.
        rescale: slope and intercept.
        times: what the clocks of :mod:`~cgdpm_med.volumes.dicom.clocks` say, by keyword; ms, or seconds of the day.
        acquired: AcquisitionNumber, and seconds at which the acquisition began, where they are known.
        contrast: what tells echoes, inversion times, sequences, magnitude and phase apart.
    """

    path: Path
    frame: int
    frames: int
    loose: bool
    syntax: str
    sop_class: str
    instance_uid: str
    study_uid: str
    series_uid: str
    frame_of_reference: str
    patient: str
    series: int | None
    instance: int | None
    stack_id: str
    size: tuple[int, int]
    grey: bool
    spacing: tuple[float, float] | None
    directions: NDArray[np.float64] | None
    position: NDArray[np.float64] | None
    thickness: float | None
    between: float | None
    rescale: tuple[float, float]
    times: Mapping[str, float]
    acquired: tuple[float | None, float | None]
    contrast: Contrast


@dataclass(frozen=True)
class NotAnImage:
    """A DICOM file without pictures: a report, a presentation state, a segmentation."""

    path: Path


def read_headers(path: Path) -> list[DicomImage] | NotAnImage | None:
    """The images of a DICOM file, one for each frame; None for a disc's table of contents.

    Raises:
        InputError: for an image that is damaged or cut short.
    """
    try:
        with without_remarks(), open(path, "rb") as file:
            header = _read_dataset(file)
            sop_class = text_of(header, "SOPClassUID")
            if sop_class == _DIRECTORY:
                return None
            if not _holds_pictures(sop_class):
                return NotAnImage(path)
            _require_whole_pixels(file, header)
            frames = frames_of(header)
            syntax = text_of(header.file_meta, "TransferSyntaxUID")
            return [_image(path, syntax, frame, index, len(frames)) for index, frame in enumerate(frames)]
    except OSError as error:
        raise InputError(
            "cannot be read: permission or disk",
            path=path,
            remedy="Copy the file again, or ask for permission to read it",
        ) from error
    except UNREADABLE as error:
        what = "is truncated, damaged or no DICOM image"
        raise InputError(what, path=path, remedy="Export it again, or move it elsewhere") from error


def _read_dataset(file: BinaryIO) -> Any:
    """The header up to the pixels, at which the file is left."""
    # forced, since old files lack the mark; what is no DICOM at all has no Rows and Columns either
    header = dcmread(file, stop_before_pixels=True, force=True, specific_tags=_READ)
    meta = getattr(header, "file_meta", None)
    if not text_of(header, "SOPClassUID") and meta is not None:
        header.SOPClassUID = text_of(meta, "MediaStorageSOPClassUID")
    return header


def _require_whole_pixels(file: BinaryIO, header: Any) -> None:
    """Raises ValueError unless all pixels are there that the header tells of."""
    samples, bits = int(header.get("SamplesPerPixel") or 1), int(header.BitsAllocated)
    frames = int(header.get("NumberOfFrames") or 1)
    expected = (int(header.Rows) * int(header.Columns) * samples * frames * bits + 7) // 8
    syntax = text_of(header.file_meta, "TransferSyntaxUID")
    if syntax == _DEFLATED:  # its end is found by inflating it
        return
    implicit, little = header.original_encoding
    length = _pixel_length(file, bool(implicit), "<" if little else ">")
    if length == 0xFFFFFFFF:
        _require_whole_fragments(file)
    elif length < expected or file.tell() + length > os.fstat(file.fileno()).st_size:
        raise ValueError("pixels are missing")
    elif syntax and UID(syntax).is_encapsulated:
        raise ValueError("compressed pixels that are not encapsulated")


def _pixel_length(file: BinaryIO, implicit: bool, order: str) -> int:
    """Bytes of the pixels, at the first of which the file is left."""
    group, element, kind, length = struct.unpack(f"{order}HH2sH", file.read(8))
    if (group, element) not in ((0x7FE0, 0x0010), (0x7FE0, 0x0008), (0x7FE0, 0x0009)):
        raise ValueError("no pixels")
    if implicit:
        return int(struct.unpack(f"{order}L", kind + struct.pack(f"{order}H", length))[0])
    return int(struct.unpack(f"{order}L", file.read(4))[0])


def _require_whole_fragments(file: BinaryIO) -> None:
    """Raises struct.error or ValueError unless compressed pixels end as they should (PS3.5, A.4)."""
    size = os.fstat(file.fileno()).st_size
    while True:
        group, element, length = struct.unpack("<HHL", file.read(8))
        if (group, element) == (0xFFFE, 0xE0DD):
            return
        if (group, element) != (0xFFFE, 0xE000) or file.tell() + length > size:
            raise ValueError("compressed pixels are cut short")
        file.seek(length, os.SEEK_CUR)


def _holds_pictures(sop_class: str) -> bool:
    return sop_class == "" or (
        sop_class.startswith(_PIXEL_CLASSES) and not sop_class[len(_PIXEL_CLASSES) :].startswith(_WITHOUT_PICTURES)
    )


# --- values -----------------------------------------------------------------------------------------------------------


def _image(path: Path, syntax: str, header: Any, frame: int, frames: int) -> DicomImage:
    between = numbers_of(header, "PixelSpacing", 2)  # between rows, then between columns
    position = numbers_of(header, "ImagePositionPatient", 3)
    patient = text_of(header, "PatientID")
    instance = whole_of(header, "InstanceNumber")
    if frames > 1:
        instance = (instance or 0) * frames + frame
    slope, intercept = number_of(header, "RescaleSlope"), number_of(header, "RescaleIntercept")
    return DicomImage(
        path=path,
        frame=frame,
        frames=frames,
        loose=frames == 1 and (whole_of(header, "NumberOfFrames") or 1) > 1,
        syntax=syntax,
        sop_class=text_of(header, "SOPClassUID"),
        instance_uid=text_of(header, "SOPInstanceUID"),
        study_uid=text_of(header, "StudyInstanceUID"),
        series_uid=text_of(header, "SeriesInstanceUID"),
        frame_of_reference=text_of(header, "FrameOfReferenceUID"),
        patient=hashlib.sha256(patient.encode()).hexdigest() if patient else "",
        series=whole_of(header, "SeriesNumber"),
        instance=instance,
        stack_id=text_of(header, "StackID"),
        size=(int(header.Columns), int(header.Rows)),
        grey=text_of(header, "PhotometricInterpretation") in ("MONOCHROME2", "")
        and (whole_of(header, "SamplesPerPixel") or 1) == 1,
        spacing=None if between is None or min(between) <= 0 else (between[1], between[0]),
        directions=_directions(numbers_of(header, "ImageOrientationPatient", 6)),
        position=None if position is None else np.array(position),
        thickness=positive_of(header, "SliceThickness"),
        between=positive_of(header, "SpacingBetweenSlices"),
        rescale=(1.0 if slope is None else slope, 0.0 if intercept is None else intercept),
        times=_times(header, instance),
        acquired=(number_of(header, "AcquisitionNumber"), _acquired_at(header)),
        contrast=_contrast(header),
    )


def _times(header: Any, instance: int | None) -> dict[str, float]:
    at = seconds_of(text_of(header, "AcquisitionTime"))
    times = {
        **{keyword: number_of(header, keyword) for keyword in _TIME[:3]},
        "AcquisitionTime": seconds_of(text_of(header, "AcquisitionDateTime")) if at is None else at,
        "ContentTime": seconds_of(text_of(header, "ContentTime")),
        "InstanceNumber": instance,
    }
    return {keyword: float(value) for keyword, value in times.items() if value is not None}


def _acquired_at(header: Any) -> float | None:
    """Seconds from some day on, where both date and time are known; else seconds of the day."""
    stamp = text_of(header, "AcquisitionDateTime")
    date, time = text_of(header, "AcquisitionDate"), text_of(header, "AcquisitionTime")
    seconds = seconds_of(time if time else stamp)
    date = date or stamp[:8]
    if seconds is None or not re.fullmatch(r"\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])", date):
        return seconds
    try:
        return 86400.0 * float(np.datetime64(f"{date[:4]}-{date[4:6]}-{date[6:]}").astype(int)) + seconds
    except ValueError:  # the 31st of a short month
        return seconds


def _contrast(header: Any) -> Contrast:
    image_type = [*text_of(header, "ImageType").split("\\"), "", "", ""][2]  # some put magnitude or phase here
    return Contrast(
        component=(text_of(header, "ComplexImageComponent") or image_type).upper(),
        echo=number_of(header, "EchoTime"),
        repetition=number_of(header, "RepetitionTime"),
        flip=number_of(header, "FlipAngle"),
        inversion=number_of(header, "InversionTime"),
        sequence=f"{text_of(header, 'ScanningSequence')} {text_of(header, 'SequenceName')}",
        protocol=f"{text_of(header, 'ProtocolName')} {text_of(header, 'Tagging')}",
        purpose=purpose_of(text_of(header, "SeriesDescription")),
    )


def _directions(cosines: list[float] | None) -> NDArray[np.float64] | None:
    """ImageOrientationPatient as two unit vectors, or None unless they are perpendicular."""
    if cosines is None:
        return None
    pair = np.array(cosines).reshape(2, 3)
    lengths = np.linalg.norm(pair, axis=1, keepdims=True)
    if not (np.abs(lengths - 1) < 0.01).all() or abs(pair[0] @ pair[1]) > 0.01:
        return None
    return pair / lengths
