"""Masks as DICOM segmentation objects that refer to the images they were made from.

One object for each phase: viewers lay all frames of an object over one stack. Needs highdicom (``pip install
'cgdpm-med[dicom]'``).
"""

from __future__ import annotations

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cgdpm_med.files import InputError, atomic_write
from cgdpm_med.inference.labels import DEFAULT_LABELS, Labels
from cgdpm_med.studies.task import Task, task_of

if TYPE_CHECKING:
    from cgdpm_med.volumes.dicom.headers import DicomImage
    from cgdpm_med.volumes.dicom.stack import DicomStack

Identity = Literal["deidentified", "identified"]

NO_DATE, NO_TIME = "19000101", "000000"
"""Of deidentified objects."""

NOTHING_COPIED = "Nothing of patient and study was copied"
"""DeidentificationMethod."""

_TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""Attributes of patient and study that every object has, if only empty (PS3.3, type 2)."""


def check_dicom_seg(identity: str) -> None:
    """Raises InputError for an unknown ``identity``, or where highdicom is not installed."""
    if identity not in get_args(Identity):
        raise InputError(f"a DICOM SEG cannot be {identity!r}", remedy=f"Choose {' or '.join(get_args(Identity))}")
    if find_spec("highdicom") is None:
        raise InputError("DICOM SEG needs highdicom", remedy="Install it: pip install 'cgdpm-med[dicom]'")


def check_codes(labels: Labels) -> None:
    """Raises InputError for structures whose codes no task knows."""
    if not task_of(labels).codes():
        what = f"a DICOM SEG needs a code for each structure, and there is none for {', '.join(labels.names)}"
        raise InputError(what, remedy="Leave out --dicom-seg: the masks are written as NIfTI")


def seg_files(stack: DicomStack, folder: Path, name: str) -> list[Path]:
    """``<name>_seg.dcm``, or ``<name>_frame<number>_seg.dcm`` for each phase of a cine."""
    if stack.phases == 1:
        return [folder / f"{name}_seg.dcm"]
    return [folder / f"{name}_frame{number:03d}_seg.dcm" for number in range(1, stack.phases + 1)]


def write_dicom_seg(
    mask: NDArray[np.uint8],
    stack: DicomStack,
    path: str | Path,
    *,
    phase: int = 0,
    identity: Identity = "deidentified",
    labels: Labels = DEFAULT_LABELS,
) -> Path:
    """Write the labels of one phase as a binary segmentation, a segment for each structure.

    A frame is stored for each slice in which a structure occurs, at the place of the image it refers to. Names and
    colours are those of the label table.

    Args:
        mask: (columns, rows, slices), on the grid of ``stack``.
        phase: index of the images that were segmented.
        identity: "deidentified" copies nothing of patient and study but the UIDs that link the object to its images,
            and replaces the date of its making, which may be that of the examination, by 1900-01-01; the bytes are then
            a function of the arguments alone. "identified" copies patient and study, as a PACS needs.
        labels: the structures, for each of which there is a code.

    Raises:
        ValueError: the mask does not lie on the stack's grid.
        InputError: a structure has no code, highdicom is missing, the images have no frame of reference, or the file
            cannot be written.
    """
    check_dicom_seg(identity)
    check_codes(labels)
    if mask.shape != stack.shape[:3]:
        raise ValueError(f"a mask of shape {mask.shape} does not lie on a stack of shape {stack.shape}")
    images = [of_slice[phase] for of_slice in stack.images]
    require_references(images, stack)
    return write_object(
        lambda: _segmentation(mask, stack, images, phase, identity, task_of(labels)), "DICOM SEG", stack, path
    )


def write_object(make: Callable[[], Any], kind: str, stack: DicomStack, path: str | Path) -> Path:
    """Write what is made of a stack's headers, whole or not at all; nothing they say reaches warnings or errors.

    Args:
        kind: of the object, for the error.

    Raises:
        InputError: pydicom or highdicom refuses what a header says, or the file cannot be written.
    """
    content = _encoded(make, kind, stack)
    with atomic_write(path) as file:
        file.write(content)
    return Path(path)


def _encoded(make: Callable[[], Any], kind: str, stack: DicomStack) -> bytes:
    buffer = BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make().save_as(buffer, enforce_file_format=True)
            return buffer.getvalue()
    except InputError:
        raise
    except Exception as error:  # each library has its own, and their words may be the patient's
        fault = type(error).__name__
    what = f"has headers that no {kind} can be made of ({fault} in pydicom or highdicom)"
    raise InputError(what, path=stack.folder, remedy="Leave out the DICOM output, or export the series again")


def require_references(images: Sequence[DicomImage], stack: DicomStack) -> None:
    """Raises InputError unless an object can refer to each of the images, and to one place in space for all."""
    complaint = None
    if not all(image.frame_of_reference and image.study_uid for image in images):
        complaint = "images without a frame of reference or study"
    elif len({image.frame_of_reference for image in images}) > 1:
        complaint = "a frame of reference of its own for each of several images"
    elif not all(image.instance_uid and image.series_uid for image in images):
        complaint = "images without an instance UID or series UID"
    elif len({(image.instance_uid, image.frame) for image in images}) < len(images):
        complaint = "several images of one instance UID"
    if complaint:
        what = f"has {complaint}, to which no DICOM SEG can refer"
        raise InputError(what, path=stack.folder, remedy="Leave out --dicom-seg, or export the series again")


def _segmentation(
    mask: NDArray[np.uint8],
    stack: DicomStack,
    images: Sequence[DicomImage],
    phase: int,
    identity: Identity,
    task: Task,
) -> Any:
    import highdicom as hd
    from pydicom.uid import generate_uid

    from cgdpm_med import __version__

    def uid(*parts: str) -> str:
        """The same for the same images, mask and identity."""
        return generate_uid(entropy_srcs=["cgdpm_med", identity, *parts])

    first = stack.images[0][0].instance_uid
    drawn = hashlib.sha256(mask.tobytes()).hexdigest()
    sources = [_source(image, stack) for image in images]
    if identity == "identified":
        sources[0] = with_patient(sources[0], images[0].path)
    stamp: dict[str, Any] = {} if identity == "identified" else {"content_date": NO_DATE, "content_time": NO_TIME}
    seg = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=np.ascontiguousarray(mask.transpose(2, 1, 0)),  # slices, rows, columns
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_segment(label, task, __version__) for label in task.labels.by_number],
        series_instance_uid=uid("series", first),
        series_number=1000 + (stack.series[0] if stack.series else 0),
        sop_instance_uid=uid("object", _stand_in(images[0]) if images[0].frames > 1 else images[0].instance_uid, drawn),
        instance_number=phase + 1,
        manufacturer="cgdpm_med",
        manufacturer_model_name="cgdpm_med",
        software_versions=__version__,
        device_serial_number="0",
        content_label=task.content_label,
        series_description=task.series_description,
        **stamp,
    )
    seg.ReferencedSeriesSequence = references(images)
    _refer_to_frames(seg, {_stand_in(image): image for image in images if image.frames > 1})
    for item in (*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid("dimensions", images[0].instance_uid)
    if identity == "deidentified":
        del seg.InstanceCreationDate, seg.InstanceCreationTime
        for equipment in seg.ContributingEquipmentSequence:
            del equipment.ContributionDateTime
        seg.PatientIdentityRemoved = "YES"
        seg.DeidentificationMethod = NOTHING_COPIED
    return seg


def _segment(label: int, task: Task, version: str) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    return hd.seg.SegmentDescription(
        segment_number=label,
        segment_label=task.labels.by_number[label],
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=getattr(codes.SCT, task.codes()[label]),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="cgdpm_med", family=codes.cid7162.ArtificialIntelligence, version=version
        ),
        display_color=hd.color.CIELabColor.from_string(task.labels.colour_of(label)),
    )


def _source(image: DicomImage, stack: DicomStack) -> Any:
    """What the library needs to know of an image, and nothing else; all as if of one series, as it demands."""
    from pydicom.uid import MRImageStorage
    from pydicom.valuerep import DSfloat

    def decimals(values: Sequence[float] | NDArray[np.float64]) -> list[Any]:
        return [DSfloat(float(value), auto_format=True) for value in values]  # at most 16 characters

    assert image.spacing is not None
    assert stack.images[0][0].directions is not None
    assert image.position is not None
    source = blank_header()
    source.SOPClassUID, source.SOPInstanceUID = image.sop_class, image.instance_uid
    if image.frames > 1:  # as a single image, which refers to the frame in the end
        source.SOPClassUID, source.SOPInstanceUID = MRImageStorage, _stand_in(image)
    source.StudyInstanceUID, source.SeriesInstanceUID = image.study_uid, stack.images[0][0].series_uid
    source.FrameOfReferenceUID = image.frame_of_reference
    source.Modality = "MR"
    source.Columns, source.Rows = image.size
    source.PixelSpacing = decimals(image.spacing[::-1])
    # of one plane, as a stack's images are but for the rounding of their headers
    source.ImageOrientationPatient = decimals(stack.images[0][0].directions.ravel())
    source.ImagePositionPatient = decimals(image.position)
    between = float(np.linalg.norm(stack.affine[:3, 2]))
    source.SliceThickness = decimals([between if image.thickness is None else image.thickness])[0]
    source.SpacingBetweenSlices = decimals([between])[0]
    return source


def _stand_in(image: DicomImage) -> str:
    """An instance UID for one frame, which the library asks for; none of them is stored."""
    from pydicom.uid import generate_uid

    return generate_uid(entropy_srcs=["cgdpm_med", "frame", image.instance_uid, str(image.frame)])


def _refer_to_frames(seg: Any, frames: Mapping[str, DicomImage]) -> None:
    """Replace references to stand-ins by those to frames of their files (PS3.3, table 10-3)."""
    for group in seg.PerFrameFunctionalGroupsSequence if frames else ():
        for derivation in group.get("DerivationImageSequence", ()):
            for source in derivation.SourceImageSequence:
                image = frames.get(source.ReferencedSOPInstanceUID)
                if image is not None:
                    source.ReferencedSOPClassUID = image.sop_class
                    source.ReferencedSOPInstanceUID = image.instance_uid
                    source.ReferencedFrameNumber = image.frame + 1


def with_patient(source: Any, path: Path) -> Any:
    """The header of a file, with the geometry of ``source``, and without dates and times that there cannot be."""
    from pydicom import dcmread
    from pydicom.multival import MultiValue

    header = dcmread(path, stop_before_pixels=True)
    for tag in [tag for tag in header.keys() if _kind(header, tag) in _MOMENTS]:  # others may be broken, and stay
        value = header[tag].value
        moments = value if isinstance(value, MultiValue) else [value]
        if not all(_is_moment(_kind(header, tag), str(moment)) for moment in moments):
            header[tag].value = ""  # as 00000000, which some scanners write for none
    for keyword in ("NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        if keyword in header:
            delattr(header, keyword)
    for element in source:
        if element.keyword not in _TYPE_2 or element.tag not in header:
            header.add(element)
    return header


_MOMENTS = ("DA", "TM", "DT")


def _kind(header: Any, tag: Any) -> str:
    """Of an element's value, which is not decoded for that."""
    from pydicom.datadict import dictionary_has_tag, dictionary_VR

    known: str | None = header.get_item(tag).VR
    return known or (dictionary_VR(tag) if dictionary_has_tag(tag) else "UN")


def _is_moment(kind: str, text: str) -> bool:
    """Whether a date, time or both can be read; an empty one can."""
    from pydicom import valuerep

    try:
        getattr(valuerep, kind)(text)
    except ValueError:
        return False
    return True


def references(images: Sequence[DicomImage], keyword: str = "ReferencedInstanceSequence") -> list[Any]:
    """Items of a ReferencedSeriesSequence, with the series as they are.

    Args:
        keyword: of the sequence that holds the instances of a series.
    """
    from pydicom import Dataset

    by_series: dict[str, list[Any]] = defaultdict(list)
    for image in {image.instance_uid: image for image in images}.values():
        instance = Dataset()
        instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID = image.sop_class, image.instance_uid
        by_series[image.series_uid].append(instance)
    items = []
    for series_uid, instances in by_series.items():
        item = Dataset()
        item.SeriesInstanceUID = series_uid
        setattr(item, keyword, instances)
        items.append(item)
    return items


def blank_header() -> Any:
    """Patient and study without a value."""
    from pydicom import Dataset

    header = Dataset()
    for keyword in _TYPE_2:
        setattr(header, keyword, "")
    return header
