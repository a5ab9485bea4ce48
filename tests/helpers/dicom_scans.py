"""Short-axis scans as DICOM files, written by the tests themselves: oblique, thick slices, a patient in the header."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: pip install 'cgdpm-med[dicom]'")

from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid  # noqa: E402

PATIENT = {
    "PatientName": "Quagmire^Zebulon",
    "PatientID": "ZQ4711007",
    "PatientBirthDate": "19480229",
    "PatientAddress": "Elderberry Lane",
    "OtherPatientIDs": "SSN900113",
    "StudyDate": "20230817",
    "SeriesDate": "20230818",
    "AcquisitionDate": "20230819",
    "ContentDate": "20230820",
    "StudyTime": "134711.250",
    "AccessionNumber": "ACC55121",
    "StudyID": "STUDY8821",
    "ReferringPhysicianName": "Oppenheimer^Ludmilla",
    "InstitutionName": "Saint Crispin Infirmary",
    "SeriesDescription": "sax of Quagmire",
    "DeviceSerialNumber": "SERIAL66310",
}
"""Every value occurs nowhere else, so it can be searched for."""

# rows of a rotation: along the columns' index and along the rows' index, LPS+
_C, _S = np.cos(0.6), np.sin(0.6)
ACROSS = np.array([_C, _S * 0.8, -_S * 0.6])
DOWN = np.array([0.0, 0.6, 0.8])
NORMAL = np.cross(ACROSS, DOWN)
ORIGIN = np.array([-101.5, -62.25, 33.125])


@dataclass
class Scan:
    """A stack of slices x phases; ``voxels`` (columns, rows, slices, phases) are what the files hold.

    Gap and thickness differ on purpose, and so do the pixel's sides.
    """

    slices: int = 4
    phases: int = 3
    size: tuple[int, int] = (7, 5)
    spacing: tuple[float, float] = (1.25, 1.75)
    gap: float = 10.5
    thickness: float = 8.0
    series: int = 5
    seed: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        self.voxels = random.integers(0, 900, (*self.size, self.slices, self.phases)).astype(np.uint16)
        # a bright block that grows and shrinks, for whoever looks for a cavity
        for t in range(self.phases):
            self.voxels[2 : 4 + t % 2, 1:4, 1:3, t] += 2000
        self.study, self.uid, self.place = generate_uid(), generate_uid(), generate_uid()

    def lps(self, column: float, row: float, k: float) -> np.ndarray:
        """Where a voxel lies."""
        across, down = ACROSS * self.spacing[0], DOWN * self.spacing[1]
        return ORIGIN + column * across + row * down + k * self.gap * NORMAL

    def image(self, k: int, t: int) -> Dataset:
        """The file of slice k in phase t."""
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, generate_uid()
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = self.study, self.uid, self.place
        for keyword, value in PATIENT.items():
            setattr(ds, keyword, value)
        ds.Modality, ds.SeriesNumber = "MR", self.series
        ds.InstanceNumber = 1 + k * self.phases + t
        ds.Columns, ds.Rows = self.size
        ds.PixelSpacing = [self.spacing[1], self.spacing[0]]
        ds.SliceThickness = self.thickness
        ds.ImageOrientationPatient = [f"{value:.12f}" for value in (*ACROSS, *DOWN)]
        ds.ImagePositionPatient = [f"{value:.10f}" for value in self.lps(0, 0, k)]
        ds.TriggerTime = 20.0 + 35.5 * t
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.PixelData = self.voxels[:, :, k, t].T.tobytes()
        for keyword, value in self.extra.items():
            setattr(ds, keyword, value)
        return ds

    def images(self) -> Iterator[tuple[int, int, Dataset]]:
        """All files, slices and phases in a shuffled order, so that no reader may rely on it."""
        order = np.random.default_rng(self.seed + 1).permutation(self.slices * self.phases)
        for n in order:
            k, t = divmod(int(n), self.phases)
            yield k, t, self.image(k, t)

    def write(self, folder: Path) -> Path:
        """The series as files whose names say nothing of their order."""
        for n, (_, _, ds) in enumerate(self.images()):
            save(ds, folder / f"IM{n:04d}.dcm")
        return folder

    def write_by_slice(self, folder: Path) -> Path:
        """One series for each slice, in folders of their own, as many scanners store a cine."""
        uids = [generate_uid() for _ in range(self.slices)]
        for n, (k, _, ds) in enumerate(self.images()):
            ds.SeriesInstanceUID, ds.SeriesNumber = uids[k], self.series + k
            save(ds, folder / f"sax{self.slices - k}" / f"{n}.dcm")
        return folder


def save(ds: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not ds.SOPInstanceUID:  # which the file's own header cannot lack
        ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, generate_uid()
    ds.save_as(path, enforce_file_format=True)
    return path


def item(**values: Any) -> Dataset:
    """A dataset of these values."""
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def as_multi_frame(images: list[Dataset], *, instance: int = 1, stack: str = "1") -> Dataset:
    """Single images as one Enhanced MR object, a frame each in the given order, as its standard says (PS3.3, A.36).

    Orientation and pixel measures are of each frame, since those of single images may differ in their last digit.
    """
    first = images[0]
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = EnhancedMRImageStorage, generate_uid()
    copied = ("PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "Modality")
    raster = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel")
    for keyword in (*copied, *raster, "FrameOfReferenceUID", "PhotometricInterpretation"):
        if keyword in first:
            setattr(ds, keyword, first[keyword].value)
    ds.InstanceNumber, ds.NumberOfFrames = instance, len(images)
    ds.AcquisitionDateTime = "20230819134711.25"
    ds.SharedFunctionalGroupsSequence = [
        item(
            MRTimingAndRelatedParametersSequence=[item(RepetitionTime=3.8, FlipAngle=45)],
            MREchoSequence=[item(EffectiveEchoTime=1.7)],
            MRImageFrameTypeSequence=[item(FrameType=["ORIGINAL", "PRIMARY", "M", "NONE"])],
        )
    ]
    ds.PerFrameFunctionalGroupsSequence = [_frame(image, stack) for image in images]
    ds.PixelData = b"".join(image.PixelData for image in images)
    return ds


def _frame(image: Dataset, stack: str) -> Dataset:
    return item(
        FrameContentSequence=[item(StackID=stack)],
        PlanePositionSequence=[item(ImagePositionPatient=image.ImagePositionPatient)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=image.ImageOrientationPatient)],
        PixelMeasuresSequence=[item(PixelSpacing=image.PixelSpacing, SliceThickness=image.SliceThickness)],
        CardiacSynchronizationSequence=[item(NominalCardiacTriggerDelayTime=float(image.TriggerTime))],
        PixelValueTransformationSequence=[
            item(
                RescaleSlope=image.get("RescaleSlope", 1),
                RescaleIntercept=image.get("RescaleIntercept", 0),
                RescaleType="US",
            )
        ],
    )
