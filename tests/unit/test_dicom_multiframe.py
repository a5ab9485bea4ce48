"""Enhanced multi-frame MR: the same volume as the single images it was made of, and masks that refer to its frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'cgdpm-med[dicom]'")

import pydicom
from dicom_scans import DOWN, NORMAL, PATIENT, Scan, as_multi_frame, item, save
from highdicom.legacy import LegacyConvertedEnhancedMRImage
from pydicom.uid import EnhancedMRImageStorage, generate_uid

from cgdpm_med import InputError
from cgdpm_med.apps.dicom_seg import write_dicom_seg
from cgdpm_med.volumes.dicom.finding import find_dicom, read_dicom


def shuffled(scan: Scan) -> list[pydicom.Dataset]:
    return [ds for _, _, ds in scan.images()]


def assert_same(folder: Path, scan: Scan, tmp_path: Path) -> None:
    plain = read_dicom(scan.write(tmp_path / "plain"))
    volume = read_dicom(folder)
    np.testing.assert_array_equal(volume.data, plain.data)
    np.testing.assert_array_equal(volume.grid.affine, plain.grid.affine)


def test_one_file_is_a_cine(tmp_path: Path) -> None:
    scan = Scan(phases=4, extra={"RescaleSlope": 2, "RescaleIntercept": -3})
    save(as_multi_frame(shuffled(scan)), tmp_path / "in" / "cine")
    assert_same(tmp_path / "in", scan, tmp_path)
    (found,) = find_dicom(tmp_path / "in")
    assert found.stack is not None
    assert found.stack.files == (tmp_path / "in" / "cine",)
    assert found.stack.seconds == pytest.approx(0.0355)


@pytest.mark.parametrize("own_series", [False, True])
def test_a_file_for_each_slice(tmp_path: Path, own_series: bool) -> None:
    scan = Scan()
    for k in range(4):
        ds = as_multi_frame([scan.image(k, t) for t in (2, 0, 1)], instance=k + 1)
        if own_series:
            ds.SeriesInstanceUID, ds.SeriesNumber = generate_uid(), 10 + k
        save(ds, tmp_path / "in" / f"{9 - k}")
    assert_same(tmp_path / "in", scan, tmp_path)


def test_a_file_for_each_phase(tmp_path: Path) -> None:
    scan = Scan()
    for t in range(3):
        save(as_multi_frame([scan.image(k, t) for k in (3, 1, 0, 2)], instance=t + 1), tmp_path / "in" / f"{9 - t}")
    assert_same(tmp_path / "in", scan, tmp_path)


def test_stacks_of_one_file_are_told_apart(tmp_path: Path) -> None:
    first, second = Scan(), Scan(seed=2)
    ds = as_multi_frame([*shuffled(first), *shuffled(second)])
    for frame in ds.PerFrameFunctionalGroupsSequence[12:]:
        frame.FrameContentSequence[0].StackID = "2"
    for frame in as_multi_frame([first.image(0, t) for t in range(3)]).PerFrameFunctionalGroupsSequence:
        frame.PlaneOrientationSequence[0].ImageOrientationPatient = [f"{v:.10f}" for v in (*DOWN, *NORMAL)]
        ds.PerFrameFunctionalGroupsSequence.append(frame)
    ds.NumberOfFrames, ds.PixelData = 27, ds.PixelData + ds.PixelData[: 3 * 70]
    save(ds, tmp_path / "in" / "all")
    findings = find_dicom(tmp_path / "in")
    stacks = [found.stack.read().data for found in findings if found.stack is not None]
    assert len(stacks) == 2
    assert {bool((data == first.voxels).all()) for data in stacks} == {True, False}
    assert [found.error is not None for found in findings].count(True) == 1  # the long axis


def test_without_times_the_frames_order_the_phases(tmp_path: Path) -> None:
    scan = Scan()
    ds = as_multi_frame([scan.image(k, t) for t in range(3) for k in range(4)])
    for frame in ds.PerFrameFunctionalGroupsSequence:
        del frame.CardiacSynchronizationSequence
    save(ds, tmp_path / "in" / "cine")
    assert_same(tmp_path / "in", scan, tmp_path)


def test_temporal_positions_of_frames(tmp_path: Path) -> None:
    scan = Scan()
    order = list(scan.images())
    ds = as_multi_frame([image for _, _, image in order])
    for (_, t, _), frame in zip(order, ds.PerFrameFunctionalGroupsSequence, strict=True):
        del frame.CardiacSynchronizationSequence
        frame.FrameContentSequence[0].TemporalPositionIndex = t + 1
    save(ds, tmp_path / "in" / "cine")
    assert_same(tmp_path / "in", scan, tmp_path)


def test_actual_trigger_delays_where_the_nominal_say_nothing(tmp_path: Path) -> None:
    scan = Scan(phases=4)
    ds = as_multi_frame(shuffled(scan))
    for frame in ds.PerFrameFunctionalGroupsSequence:
        (cardiac,) = frame.CardiacSynchronizationSequence
        cardiac.ActualCardiacTriggerDelayTime = cardiac.NominalCardiacTriggerDelayTime
        cardiac.NominalCardiacTriggerDelayTime = 0.0
    save(ds, tmp_path / "in" / "cine")
    assert_same(tmp_path / "in", scan, tmp_path)


def test_compressed_frames(tmp_path: Path) -> None:
    scan = Scan(slices=3, phases=2, size=(32, 24))
    for name, syntax in (("rle", "1.2.840.10008.1.2.5"), ("jpegls", "1.2.840.10008.1.2.4.80")):
        ds = as_multi_frame(shuffled(scan))
        ds.compress(syntax)
        save(ds, tmp_path / name / "cine")
        np.testing.assert_array_equal(read_dicom(tmp_path / name).data, scan.voxels)


def test_legacy_converted(tmp_path: Path) -> None:
    scan = Scan(phases=1)
    images = [scan.image(k, 0) for k in range(4)]
    for image in images:
        image.AcquisitionTime, image.ContentTime = "134711", "134712"
        for keyword in ("PatientSex", "FrameLaterality", "Manufacturer", "PositionReferenceIndicator"):
            setattr(image, keyword, "")
        image.ImageType = ["ORIGINAL", "PRIMARY", "M"]
        for keyword in ("InstanceCreationDate", "SeriesTime", "ContentQualification"):
            image.pop(keyword, None)
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    ds = LegacyConvertedEnhancedMRImage(images, generate_uid(), 5, generate_uid(), 1)
    save(ds, tmp_path / "in" / "legacy")
    assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.4.4"
    assert_same(tmp_path / "in", scan, tmp_path)


def test_frames_that_do_not_say_where_they_lie(tmp_path: Path) -> None:
    scan = Scan()
    ds = as_multi_frame(shuffled(scan))
    for frame in ds.PerFrameFunctionalGroupsSequence:
        del frame.PlanePositionSequence
    save(ds, tmp_path / "no place" / "cine")
    ds = as_multi_frame(shuffled(scan))
    del ds.PerFrameFunctionalGroupsSequence[-1]
    save(ds, tmp_path / "too few" / "cine")
    with pytest.raises(InputError, match="ImagePositionPatient"):
        read_dicom(tmp_path / "no place")
    with pytest.raises(InputError, match="damaged"):
        read_dicom(tmp_path / "too few")


# --- segmentations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("identity", ["deidentified", "identified"])
def test_a_segmentation_refers_to_the_frames(tmp_path: Path, identity: str) -> None:
    scan = Scan()
    order = [(k, t) for t in (1, 0, 2) for k in (2, 0, 3, 1)]
    source = as_multi_frame([scan.image(k, t) for k, t in order])
    source.update(item(**{key: value for key, value in PATIENT.items() if key != "OtherPatientIDs"}))
    save(source, tmp_path / "in" / "cine")
    (found,) = find_dicom(tmp_path / "in")
    assert found.stack is not None
    mask = np.full((7, 5, 4), 3, np.uint8)
    path = write_dicom_seg(mask, found.stack, tmp_path / "s.dcm", phase=2, identity=identity)  # type: ignore[arg-type]
    seg = pydicom.dcmread(path)
    assert str(seg.PatientID) == (PATIENT["PatientID"] if identity == "identified" else "")
    (series,) = seg.ReferencedSeriesSequence
    (instance,) = series.ReferencedInstanceSequence
    assert instance.ReferencedSOPInstanceUID == source.SOPInstanceUID
    frames = {}
    for frame in seg.PerFrameFunctionalGroupsSequence:
        (reference,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert reference.ReferencedSOPClassUID == EnhancedMRImageStorage
        place = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        frames[int(reference.ReferencedFrameNumber) - 1] = place
    assert sorted(order[n] for n in frames) == [(k, 2) for k in range(4)]
    for n, place in frames.items():
        np.testing.assert_allclose(place, scan.lps(0, 0, order[n][0]), atol=1e-3)


@pytest.mark.parametrize(
    "tags",
    [{"SOPInstanceUID": ""}, {"SOPInstanceUID": "1.2.3"}, {"FrameOfReferenceUID": None}, {"SeriesInstanceUID": ""}],
    ids=["blank instance", "one instance UID for all", "a frame of reference each", "no series"],
)
def test_what_no_segmentation_can_refer_to_is_one_error(tmp_path: Path, tags: dict[str, str | None]) -> None:
    scan = Scan(phases=1)
    for k, _, ds in scan.images():
        for keyword, value in tags.items():
            setattr(ds, keyword, generate_uid() if value is None else value)
        save(ds, tmp_path / "in" / str(k))
    (found,) = find_dicom(tmp_path / "in")
    assert found.stack is not None
    with pytest.raises(InputError, match="no DICOM SEG can refer"):
        write_dicom_seg(np.ones((7, 5, 4), np.uint8), found.stack, tmp_path / "s.dcm")
    assert not (tmp_path / "s.dcm").exists()
