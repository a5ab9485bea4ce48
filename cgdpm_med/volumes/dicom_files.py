"""What one DICOM file says of its place in a scan, and nothing of the patient.

Headers and pixels are read by GDCM through SimpleITK, which also applies the rescale slope and decodes JPEG, JPEG-LS,
JPEG 2000 and RLE. Geometry is taken from the attributes themselves (PS3.3, C.7.6.2); GDCM guesses where one is absent.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgdpm_med.volumes.files import InputError

_NAMED_DICOM = (".dcm", ".dicom", ".ima")
_DIRECTORY = "1.2.840.10008.1.3.10"  # the table of contents of a disc
_PIXEL_CLASSES = "1.2.840.10008.5.1.4.1.1."
_WITHOUT_PICTURES = ("4.2", "9.", "11.", "30", "66", "67", "68.", "88.", "104.", "481.")
"""Below it: spectra, waveforms, presentation states, maps, raw data and segmentations, reports, documents, plans."""

_COMPRESSION = {
    "1.2.840.10008.1.2.4.5": "JPEG",
    "1.2.840.10008.1.2.4.7": "JPEG",
    "1.2.840.10008.1.2.4.8": "JPEG-LS",
    "1.2.840.10008.1.2.4.9": "JPEG 2000",
    "1.2.840.10008.1.2.4.10": "MPEG",
    "1.2.840.10008.1.2.4.11": "JPEG XL",
    "1.2.840.10008.1.2.4.20": "high-throughput JPEG 2000",
    "1.2.840.10008.1.2.5": "RLE",
}
"""By the beginning of the transfer syntax UID; the longest that fits counts."""


@dataclass(frozen=True, eq=False, repr=False)
class DicomImage:
    """The header of a single-frame image, as far as it says where and when the image lies.

    Attributes:
        path: the file.
        sop_class, instance_uid, study_uid, series_uid, frame_of_reference: UIDs; "" where absent.
        series, instance: SeriesNumber and InstanceNumber.
        size: (columns, rows).
        frames: how many the file holds.
        grey: whether there is one channel in which larger is brighter.
        spacing: mm between columns and between rows.
        directions: (2, 3) unit vectors along which the column index and the row index grow, in LPS+.
        position: (3,) centre of the first pixel in mm, LPS+.
        thickness: SliceThickness in mm, for the record; distances come from positions.
        trigger, temporal: TriggerTime in ms and TemporalPositionIdentifier.
        contrast: what tells echoes, inversion times, magnitude and phase apart.
    """

    path: Path
    sop_class: str
    instance_uid: str
    study_uid: str
    series_uid: str
    frame_of_reference: str
    series: int | None
    instance: int | None
    size: tuple[int, int]
    frames: int
    grey: bool
    spacing: tuple[float, float] | None
    directions: NDArray[np.float64] | None
    position: NDArray[np.float64] | None
    thickness: float | None
    trigger: float | None
    temporal: int | None
    contrast: tuple[str, ...]


@dataclass(frozen=True)
class NotAnImage:
    """A DICOM file without pictures: a report, a presentation state, a segmentation."""

    path: Path


def dicom_files(folder: Path, exclude: Path | None = None) -> list[Path]:
    """Every DICOM file below a folder but discs' tables of contents, sorted; links to folders are not followed.

    A file counts if it bears DICOM's mark after 128 bytes, or an ending of DICOM files. Hidden files, whatever lies
    below ``exclude``, and names that end in .nii or .nii.gz do not count.
    """
    found = []
    for parent, folders, names in os.walk(folder):
        if exclude is not None and Path(os.path.realpath(parent)).is_relative_to(os.path.realpath(exclude)):
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(parent, name) for name in sorted(names) if not name.startswith("."))
        found += [path for path in paths if is_dicom_file(path)]
    return found


def is_dicom_file(path: Path) -> bool:
    """Whether a regular file looks like DICOM from outside; a disc's table of contents does not count."""
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")) or name == "dicomdir" or not path.is_file():
        return False
    if name.endswith(_NAMED_DICOM):
        return True
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_header(path: Path) -> DicomImage | NotAnImage | None:
    """The header of a DICOM file; None for a disc's table of contents.

    Raises:
        InputError: for an image that is damaged, or encoded in a way that is unknown here.
    """
    try:
        with _quiet(), open(path, "rb"):  # opened so that what the operating system refuses says so
            reader = _reader(path)
            reader.ReadImageInformation()
    except OSError as error:
        raise InputError("cannot be read: permission or disk", path=path, remedy="Check the file") from error
    except (RuntimeError, TypeError) as error:  # TypeError: a name that is not UTF-8
        sop_class, syntax = _file_meta(path)
        if sop_class == _DIRECTORY:
            return None
        if sop_class and not _holds_pictures(sop_class):
            return NotAnImage(path)
        what = f"is damaged, or compressed in a way unknown here ({compression(syntax)})"
        if compression(syntax) == "not compressed":
            what = "is truncated, damaged or no DICOM image"
        raise InputError(what, path=path, remedy="Export the series again, uncompressed") from error
    image = _header(reader, path)
    return image if _holds_pictures(image.sop_class) else NotAnImage(path)


def read_pixels(image: DicomImage) -> NDArray[np.float32]:
    """(columns, rows) float32 with the rescale slope and intercept applied.

    Raises:
        InputError: the pixels cannot be decoded.
    """
    import SimpleITK as sitk

    try:
        with _quiet():
            reader = _reader(image.path)
            reader.SetOutputPixelType(sitk.sitkFloat32)
            pixels: NDArray[np.float32] = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        how = compression(_file_meta(image.path)[1])
        raise InputError(
            f"holds pixels that cannot be decoded ({how})",
            path=image.path,
            remedy="Decompress the series first, for example with gdcmconv --raw, or export it uncompressed",
        ) from error
    return pixels[0].T


def compression(syntax: str) -> str:
    """A transfer syntax in words."""
    if syntax in ("", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"):
        return "not compressed"
    families = sorted((start for start in _COMPRESSION if syntax.startswith(start)), key=len)
    return f"{_COMPRESSION[families[-1]]}, transfer syntax {syntax}" if families else f"transfer syntax {syntax}"


def _holds_pictures(sop_class: str) -> bool:
    return sop_class == "" or (
        sop_class.startswith(_PIXEL_CLASSES) and not sop_class[len(_PIXEL_CLASSES) :].startswith(_WITHOUT_PICTURES)
    )


def _reader(path: Path) -> Any:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    return reader


@contextmanager
def _quiet() -> Iterator[None]:
    """Without ITK's own warnings, which may quote the header."""
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


def _header(reader: Any, path: Path) -> DicomImage:
    def text(tag: str) -> str:
        return str(reader.GetMetaData(tag)).strip(" \0") if reader.HasMetaDataKey(tag) else ""

    def numbers(tag: str, count: int) -> list[float] | None:
        try:
            values = [float(part) for part in text(tag).split("\\")]
        except ValueError:
            return None
        return values if len(values) == count and np.isfinite(values).all() else None

    def number(tag: str) -> float | None:
        values = numbers(tag, 1)
        return None if values is None else values[0]

    def whole(tag: str) -> int | None:
        value = number(tag)
        return None if value is None else int(value)

    between = numbers("0028|0030", 2)  # PixelSpacing: between rows, then between columns
    position = numbers("0020|0032", 3)
    columns, rows = (int(size) for size in reader.GetSize()[:2])
    kind = [*text("0008|0008").split("\\"), "", "", ""][2]  # ImageType: some vendors put magnitude or phase here
    return DicomImage(
        path=path,
        sop_class=text("0008|0016"),
        instance_uid=text("0008|0018"),
        study_uid=text("0020|000d"),
        series_uid=text("0020|000e"),
        frame_of_reference=text("0020|0052"),
        series=whole("0020|0011"),
        instance=whole("0020|0013"),
        size=(columns, rows),
        frames=whole("0028|0008") or 1,
        grey=text("0028|0004") in ("MONOCHROME2", "") and reader.GetNumberOfComponents() == 1,
        spacing=None if between is None or min(between) <= 0 else (between[1], between[0]),
        directions=_directions(numbers("0020|0037", 6)),
        position=None if position is None else np.array(position),
        thickness=number("0018|0050"),
        trigger=number("0018|1060"),
        temporal=whole("0020|0100"),
        contrast=(kind, text("0018|0081"), text("0018|0082")),  # EchoTime, InversionTime
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


def _file_meta(path: Path) -> tuple[str, str]:
    """SOP class and transfer syntax from the group before the data set (PS3.10, 7.1); "" where they are not found."""
    try:
        with open(path, "rb") as file:
            block = file.read(4096)
    except OSError:
        return "", ""
    found, at = {0x0002: "", 0x0010: ""}, 132
    while at + 12 <= len(block):
        group, element, kind, length = struct.unpack_from("<HH2sH", block, at)
        at += 8
        if group != 2:
            break
        if kind in (b"OB", b"OW", b"UN", b"UT"):  # two reserved bytes, then a length of four
            (length,) = struct.unpack_from("<I", block, at)
            at += 4
        if element in found:
            found[element] = block[at : at + length].decode("ascii", "replace").strip(" \0")
        at += length
    return found[0x0002], found[0x0010]
