"""Enhanced multi-frame objects as one flat header for each frame (PS3.3, C.7.6.16)."""

from __future__ import annotations

from typing import Any

from pydicom import Dataset

from cgdpm_med.volumes.dicom.values import number_of, text_of

_OTHER_NAMES = {
    "ActualCardiacTriggerDelayTime": "TriggerTime",
    "EffectiveEchoTime": "EchoTime",
    "TemporalPositionIndex": "TemporalPositionIdentifier",
    "FrameAcquisitionDateTime": "AcquisitionDateTime",
    "PulseSequenceName": "SequenceName",
}
"""Attributes of frames that single-frame images have under another name."""


def frames_of(header: Any) -> list[Any]:
    """The headers of a file's images: shared and per-frame functional groups laid over that of the file.

    A file that holds one image, or does not say where its frames lie, is its own only header.

    Raises:
        ValueError: it has more or fewer functional groups than frames.
    """
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])
    frames = int(number_of(header, "NumberOfFrames") or 1)
    if not shared and not any(len(group) for group in groups):
        return [header]
    if len(groups) not in (0, frames):
        raise ValueError(f"{len(groups)} functional groups for {frames} frames")
    return [_flat(header, [*shared, *groups[index : index + 1]]) for index in range(frames)]


def _flat(header: Any, groups: list[Any]) -> Any:
    flat = Dataset()
    for element in header:
        if element.VR != "SQ":
            flat.add(element)
    for group in groups:
        for macro in group:
            _lay_over(flat, macro)
    for given, usual in _OTHER_NAMES.items():
        if given in flat:
            setattr(flat, usual, flat[given].value)
    if "AcquisitionDateTime" in flat:  # that of the frame, before the file's
        stamp = text_of(flat, "AcquisitionDateTime")
        flat.AcquisitionDate, flat.AcquisitionTime = stamp[:8], stamp[8:].partition("+")[0].partition("-")[0]
    if "InversionTimes" in flat:
        flat.InversionTime = text_of(flat, "InversionTimes").split("\\")[0]
    flat.NumberOfFrames = 1  # each frame is an image now
    return flat


def _lay_over(flat: Any, macro: Any) -> None:
    """The attributes of one functional group's first item; private ones and nested sequences are left out."""
    if macro.VR != "SQ" or not macro.keyword or not macro.value:
        return
    for element in macro.value[0]:
        if element.keyword and element.VR != "SQ":
            flat.add(element)
    if macro.keyword == "MRImageFrameTypeSequence" and "FrameType" in macro.value[0]:
        flat.ImageType = macro.value[0].FrameType
