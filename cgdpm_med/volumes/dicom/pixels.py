"""Pixels of DICOM images: pydicom reads what is not compressed, and RLE; GDCM, through SimpleITK, decodes JPEG.

GDCM covers JPEG lossless, which pydicom leaves to further packages. It is handed a file of the coded pixels alone, so
nothing of the header can stand in its messages, and the rescale slope is applied in one place, here.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from cgdpm_med.files import InputError
from cgdpm_med.volumes.dicom.headers import DicomImage
from cgdpm_med.volumes.dicom.values import UNREADABLE, without_remarks

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

_PLAIN = ("", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")
_DESCRIBING = (
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)


def compression(syntax: str) -> str:
    """A transfer syntax in words."""
    if syntax in _PLAIN:
        return "not compressed"
    families = sorted((start for start in _COMPRESSION if syntax.startswith(start)), key=len)
    return f"{_COMPRESSION[families[-1]]}, transfer syntax {syntax}" if families else f"transfer syntax {syntax}"


def read_pixels(image: DicomImage) -> NDArray[np.float32]:
    """(columns, rows) float32 with the rescale slope and intercept applied.

    Raises:
        InputError: the pixels cannot be decoded.
    """
    try:
        with without_remarks():
            stored = _decoded(image)
    except (*UNREADABLE, OSError, RuntimeError) as error:
        raise InputError(
            f"holds pixels that cannot be decoded ({compression(image.syntax)})",
            path=image.path,
            remedy="Decompress the series first, for example with gdcmconv --raw, or export it uncompressed",
        ) from error
    slope, intercept = image.rescale
    return (stored.astype(np.float64) * slope + intercept).astype(np.float32).T


def _decoded(image: DicomImage) -> NDArray[Any]:
    """(rows, columns) as stored."""
    if image.syntax == "":
        return _without_syntax(image)
    if image.syntax == DeflatedExplicitVRLittleEndian:  # pydicom finds no pixels in the file itself
        return pixel_array(dcmread(image.path), index=image.frame, raw=True)
    if image.syntax in _PLAIN or image.syntax == RLELossless:
        return pixel_array(image.path, index=image.frame, raw=True)
    return _decoded_by_gdcm(image)


def _without_syntax(image: DicomImage) -> NDArray[Any]:
    """Of a file that does not say how it is encoded, but could be read."""
    dataset = dcmread(image.path, force=True)
    dataset.file_meta.TransferSyntaxUID = (
        ImplicitVRLittleEndian if dataset.original_encoding[0] else ExplicitVRLittleEndian
    )
    return pixel_array(dataset, index=image.frame, raw=True)


def _decoded_by_gdcm(image: DicomImage) -> NDArray[Any]:
    source = dcmread(image.path, specific_tags=[*_DESCRIBING, "NumberOfFrames", "PixelData"])
    coded = get_frame(source.PixelData, image.frame, number_of_frames=int(source.get("NumberOfFrames") or 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "frame.dcm")
        _frame_alone(source, coded, image.syntax).save_as(path, enforce_file_format=True)
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(path))
        pixels: NDArray[Any] = sitk.GetArrayFromImage(reader.Execute())
    return pixels.reshape(pixels.shape[-2:])


def _frame_alone(source: Any, coded: bytes, syntax: str) -> Any:
    """One coded frame under a header that says how to decode it and nothing else."""
    alone = Dataset()
    alone.file_meta = FileMetaDataset()
    alone.file_meta.TransferSyntaxUID = UID(syntax)
    alone.SOPClassUID, alone.SOPInstanceUID = SecondaryCaptureImageStorage, "2.25.1"
    for keyword in _DESCRIBING:
        if keyword in source:
            alone.add(source[keyword])
    alone.PixelData = encapsulate([coded])
    alone["PixelData"].VR, alone["PixelData"].is_undefined_length = "OB", True
    return alone
