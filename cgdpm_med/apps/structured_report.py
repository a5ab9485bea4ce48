"""What was measured of a study as a DICOM structured report (TID 1500) beside its images.

Needs highdicom (``pip install 'cgdpm-med[archive]'``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cgdpm_med import __version__
from cgdpm_med.apps.dicom_seg import (
    NO_DATE,
    NO_TIME,
    NOTHING_COPIED,
    Identity,
    blank_header,
    check_dicom_seg,
    references,
    require_references,
    with_patient,
    write_object,
)
from cgdpm_med.studies.result import StudyResult
from cgdpm_med.studies.task import Task, task_of
from cgdpm_med.volumes.dicom.headers import DicomImage
from cgdpm_med.volumes.dicom.stack import DicomStack

DESCRIPTION = "Measurements of cgdpm_med, for research"
"""The report's SeriesDescription, by which an archive's search finds it again."""

_KNOWN = {  # in PS3.16, context groups 3833, 3835 and 12204; everything else has a code of this package's own
    "lv_edv": ("LN", "LeftVentricularEDVolume"),
    "lv_esv": ("LN", "LeftVentricularESVolume"),
    "lv_ef": ("LN", "LeftVentricularEjectionFractionByMR"),
    "rv_edv": ("LN", "RightVentricularEDVolume"),
    "rv_esv": ("LN", "RightVentricularESVolume"),
    "rv_ef": ("LN", "RightVentricularEjectionFractionByMR"),
}
_OWN = "99CGDPM"
_UNITS = {"ml": ("mL", "milliliter"), "%": ("%", "percent"), "g": ("g", "gram")}


def write_report_object(
    result: StudyResult, stack: DicomStack, path: str | Path, *, identity: Identity = "deidentified"
) -> Path:
    """Write the volumes of a study's structures, and its function where there is one.

    Volumes are those of the frames of phases, or of the only frame; with them stands what the quality checks say.
    Intervals and the checks' reasons stay in the JSON and on the page.

    Args:
        identity: as in :func:`~cgdpm_med.apps.dicom_seg.write_dicom_seg`.

    Raises:
        InputError: highdicom is missing, the images cannot be referred to, or the file cannot be written.
    """
    check_dicom_seg(identity)
    images = [of_slice[0] for of_slice in stack.images]
    require_references(images, stack)
    return write_object(lambda: _document(result, stack, images, identity), "structured report", stack, path)


def _document(result: StudyResult, stack: DicomStack, images: Sequence[DicomImage], identity: Identity) -> Any:
    import highdicom as hd
    from pydicom.uid import generate_uid

    task, first = task_of(result.labels), images[0].instance_uid
    measured = list(_measured(result, task))

    def uid(*parts: str) -> str:
        """The same for the same images, measures and identity."""
        return generate_uid(entropy_srcs=["cgdpm_med", "report", identity, *parts])

    seen = [image for of_slice in stack.images for image in of_slice]
    evidence = [_header(image) for image in {image.instance_uid: image for image in seen}.values()]
    if identity == "identified":
        evidence[0] = with_patient(evidence[0], images[0].path)
    content = hd.sr.MeasurementReport(
        observation_context=_observer(uid("observer")),
        procedure_reported=hd.sr.CodedConcept("363679005", "SCT", "Imaging procedure"),
        imaging_measurements=list(_groups(measured, stack, result, uid)),
    )
    report = hd.sr.ComprehensiveSR(
        evidence=evidence,
        content=content[0],
        series_instance_uid=uid("series", first),
        series_number=2000 + (stack.series[0] if stack.series else 0),
        sop_instance_uid=uid(
            "object", first, json.dumps([(name, value) for _, name, value, _ in measured]), json.dumps(_verdict(result))
        ),
        instance_number=1,
        manufacturer="cgdpm_med",
        manufacturer_model_name="cgdpm_med",
        software_versions=__version__,
        device_serial_number="0",
        series_description=DESCRIPTION,
        is_complete=True,
    )
    report.CurrentRequestedProcedureEvidenceSequence = _evidence(seen)
    if identity == "deidentified":
        _without_dates(report)
    return report


def _header(image: DicomImage) -> Any:
    """What a report needs to know of an image."""
    source = blank_header()
    source.SOPClassUID, source.SOPInstanceUID = image.sop_class, image.instance_uid
    source.StudyInstanceUID, source.SeriesInstanceUID = image.study_uid, image.series_uid
    return source


def _without_dates(report: Any) -> None:
    """As in a deidentified SEG: the day of its making may be that of the examination."""
    report.ContentDate, report.ContentTime = NO_DATE, NO_TIME
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
        if keyword in report:
            delattr(report, keyword)
    for equipment in report.get("ContributingEquipmentSequence", ()):
        del equipment.ContributionDateTime
    report.PatientIdentityRemoved, report.DeidentificationMethod = "YES", NOTHING_COPIED


def _observer(device: str) -> Any:
    import highdicom as hd

    attributes = hd.sr.DeviceObserverIdentifyingAttributes(uid=device, name="cgdpm_med")
    context = hd.sr.ObserverContext(observer_type=_device(), observer_identifying_attributes=attributes)
    return hd.sr.ObservationContext(observer_device_context=context)


def _device() -> Any:
    from pydicom.sr.codedict import codes

    return codes.DCM.Device


Measured = tuple[str, str, float, str]
"""Group, name, value and unit of a measurement."""


def _measured(result: StudyResult, task: Task) -> Iterator[Measured]:
    """Volumes of each structure in the frames that count, then the measures."""
    frames = result.phases or dict.fromkeys([""], min(result.volumes))
    for phase, number in frames.items():
        for label, name in result.labels.by_number.items():
            yield f"{name} {phase}".strip(), "volume", float(result.volumes[number].combined[label]), "ml"
    for name, estimate in result.function.measures.items() if result.function is not None else ():
        if estimate.value is not None:
            yield "function", name, float(estimate.value), task.measures[name].unit


def _verdict(result: StudyResult) -> list[tuple[str, str]]:
    """Pairs of code and meaning: the status, and why it is so. A meaning has at most 64 characters."""
    quality = result.quality
    status = (quality.status, "to be looked at by a person" if quality.status == "review" else "no check complains")
    reasons = dict.fromkeys(finding.check for finding in quality.findings if finding.review)
    return [status, *((re.sub(r"\W+", "_", check)[:16], check[:64]) for check in reasons)]


def _evaluations(result: StudyResult) -> list[Any]:
    """The verdict as items of a group: no number stands in an archive without it."""
    import highdicom as hd

    name = hd.sr.CodedConcept("quality", _OWN, "Quality checks")
    return [
        hd.sr.QualitativeEvaluation(name=name, value=hd.sr.CodedConcept(code, _OWN, meaning))
        for code, meaning in _verdict(result)
    ]


def _groups(measured: Sequence[Measured], stack: DicomStack, result: StudyResult, uid: Any) -> Iterator[Any]:
    """Each with the verdict, and with the images it was measured in: of its phase, of the function of all phases."""
    import highdicom as hd

    phases = result.phases
    for group in dict.fromkeys(group for group, *_ in measured):
        numbers = [number for phase, number in phases.items() if group.endswith(f" {phase}")] or phases.values() or [1]
        images = [of_slice[number - 1] for number in dict.fromkeys(numbers) for of_slice in stack.images]
        yield hd.sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=hd.sr.TrackingIdentifier(
                uid=uid("group", group, stack.images[0][0].instance_uid), identifier=group
            ),
            measurements=[
                hd.sr.Measurement(name=_code(name), value=round(value, 6), unit=_unit(unit))
                for of_group, name, value, unit in measured
                if of_group == group
            ],
            qualitative_evaluations=_evaluations(result),
            source_images=[
                hd.sr.SourceImageForMeasurementGroup(i.sop_class, i.instance_uid, _frame(i)) for i in images
            ],
        )


def _frame(image: DicomImage) -> list[int] | None:
    return [image.frame + 1] if image.frames > 1 else None


def _code(name: str) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    if name == "volume":
        return codes.SCT.Volume
    if name in _KNOWN:
        scheme, keyword = _KNOWN[name]
        return getattr(getattr(codes, scheme), keyword)
    return hd.sr.CodedConcept(name, _OWN, name.replace("_", " "))


def _unit(unit: str) -> Any:
    import highdicom as hd

    value, meaning = _UNITS.get(unit, (unit, unit))
    return hd.sr.CodedConcept(value, "UCUM", meaning)


def _evidence(images: Sequence[DicomImage]) -> list[Any]:
    """The images by study and series as they are, see :func:`~cgdpm_med.apps.dicom_seg.references`."""
    from pydicom import Dataset

    study = Dataset()
    study.StudyInstanceUID = images[0].study_uid
    study.ReferencedSeriesSequence = references(images, "ReferencedSOPSequence")
    return [study]
