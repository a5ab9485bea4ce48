"""DICOM inputs through the whole command: masks on their grid, segmentation objects, and nothing of the patient."""

from __future__ import annotations

import gzip
import json
import traceback
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from cgdpm_med.volumes.dicom.groups import directions_of, position_of

pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'cgdpm-med[dicom]'")

import highdicom
import pydicom
from command import run
from dicom_scans import ACROSS, DOWN, PATIENT, Scan, save
from segmentations import segmentation_of
from stubs import Stub

from cgdpm_med import InputError, Options, Volume, segment_all
from cgdpm_med.apps import dicom_seg
from cgdpm_med.apps.dicom_seg import check_dicom_seg, write_dicom_seg
from cgdpm_med.apps.segment_options import check_options
from cgdpm_med.inference.labels import COLOURS
from cgdpm_med.inference.segmenter import Segmentation, Segmenter
from cgdpm_med.studies.cases import find_cases
from cgdpm_med.volumes.dicom.finding import find_dicom, read_dicom
from cgdpm_med.volumes.dicom.stack import DicomStack

PLAIN: dict[str, Any] = {"pages": False, "write": ("mask",)}


class Bright(Stub):
    """Calls what the scans make bright left ventricle, one column of it myocardium, and a corner right ventricle."""

    def __call__(self, volume: Volume, key: str, progress: object = None) -> Segmentation:
        labels = 3 * (volume.data > 1000).astype(np.uint8)
        labels[2][labels[2] == 3] = 2
        labels[0, 0, 0] = 1
        return segmentation_of(labels[None], volume, key)


@pytest.fixture
def stack(tmp_path: Path) -> DicomStack:
    (found,) = find_dicom(Scan().write(tmp_path / "scan"))
    assert found.stack is not None
    return found.stack


@pytest.fixture
def mask(stack: DicomStack) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4, stack.shape[:3]).astype(np.uint8)


def placed(path: Path) -> dict[tuple[float, ...], np.ndarray]:
    """Pixels (columns, rows) of every frame by segment and place, read with pydicom alone."""
    ds = pydicom.dcmread(path)
    frames: dict[tuple[float, ...], np.ndarray] = {}
    for pixels, item in zip(ds.pixel_array, ds.PerFrameFunctionalGroupsSequence, strict=True):
        segment = item.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        place = item.PlanePositionSequence[0].ImagePositionPatient
        frames[(int(segment), *(round(float(value), 3) for value in place))] = pixels.T
    return frames


# --- headers as scanners write them ----------------------------------------------------------------------------------


def test_orientations_that_differ_by_their_rounding_are_one_plane(tmp_path: Path) -> None:
    scan = Scan(phases=1)
    for n, (k, _, ds) in enumerate(scan.images()):
        ds.ImageOrientationPatient = [f"{value:.6f}" if k % 2 else f"{value:.12f}" for value in (*ACROSS, *DOWN)]
        save(ds, tmp_path / "scan" / f"{n}.dcm")
    (found,) = find_dicom(tmp_path / "scan")
    assert found.stack is not None
    mask = np.full(found.stack.shape[:3], 3, np.uint8)
    assert len(placed(write_dicom_seg(mask, found.stack, tmp_path / "s.dcm"))) == 4


def test_what_the_library_says_of_a_header_is_not_passed_on(
    stack: DicomStack, mask: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: Any) -> Any:
        raise NotImplementedError(f"born on {PATIENT['PatientBirthDate']}")

    monkeypatch.setattr(dicom_seg, "_segmentation", refusing)
    with pytest.raises(InputError, match="NotImplementedError") as caught:
        write_dicom_seg(mask, stack, tmp_path / "s.dcm")
    assert PATIENT["PatientBirthDate"] not in "".join(traceback.format_exception(caught.value))


def test_a_place_that_cannot_be_written_is_no_fault_of_a_header(
    stack: DicomStack, mask: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "s.dcm").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_dicom_seg(mask, stack, tmp_path / "s.dcm")


def test_a_broken_element_that_nobody_asks_for_stays_unread(tmp_path: Path) -> None:
    (found,) = find_dicom(Scan(phases=1, extra={"AcquisitionNumber": 4711}).write(tmp_path / "scan"))
    for path in (tmp_path / "scan").iterdir():
        content = path.read_bytes()
        assert content.count(b"IS\x04\x004711") == 1
        path.write_bytes(content.replace(b"IS\x04\x004711", b"IS\x04\x00none"))
    assert found.stack is not None
    mask = np.full(found.stack.shape[:3], 3, np.uint8)
    seg = pydicom.dcmread(write_dicom_seg(mask, found.stack, tmp_path / "s.dcm", identity="identified"))
    assert seg.PatientID == PATIENT["PatientID"]


@pytest.mark.parametrize("date", ["00000000", "20120000"])
def test_a_date_that_there_cannot_be_is_left_out(date: str, tmp_path: Path) -> None:
    extra = {"PatientBirthDate": "00000000", "StudyDate": date, "StudyTime": "999999"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of the values
        (found,) = find_dicom(Scan(phases=1, extra=extra).write(tmp_path / "scan"))
    assert found.stack is not None
    mask = np.full(found.stack.shape[:3], 3, np.uint8)
    seg = pydicom.dcmread(write_dicom_seg(mask, found.stack, tmp_path / "s.dcm", identity="identified"))
    assert (seg.PatientBirthDate, seg.StudyDate, seg.StudyTime) == ("", "", "")
    assert seg.PatientID == PATIENT["PatientID"]


def test_what_the_library_refuses_is_one_error_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        Scan(phases=1, seed=ord(name)).write(tmp_path / "in" / name)
    original, calls = dicom_seg._segmentation, list[None]()

    def refusing(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == 1:
            raise ValueError(f"born on {PATIENT['PatientBirthDate']}")
        return original(*arguments)

    monkeypatch.setattr(dicom_seg, "_segmentation", refusing)
    options = Options(**PLAIN, dicom_seg="deidentified")
    outcome = segment_all(Bright(), find_cases(tmp_path / "in"), tmp_path / "out", options=options)
    assert len(outcome["failed"]) == 1
    (said,) = (str(error) for error in outcome["failed"].values())
    assert "headers that no DICOM SEG can be made of (ValueError" in said
    assert PATIENT["PatientBirthDate"] not in said
    assert len(list((tmp_path / "out").rglob("*_seg.dcm"))) == 1


# --- the object -------------------------------------------------------------------------------------------------------


def test_every_frame_lies_on_its_image(tmp_path: Path, stack: DicomStack, mask: np.ndarray) -> None:
    mask[..., 3] = 0
    mask[..., 1][mask[..., 1] == 2] = 0
    frames = placed(write_dicom_seg(mask, stack, tmp_path / "s.dcm", phase=2))
    places = [tuple(round(float(v), 3) for v in position_of(of_slice[2])) for of_slice in stack.images]
    expected = {(label, *places[k]) for label in (1, 2, 3) for k in range(3) if (label, k) != (2, 1)}
    assert frames.keys() == expected
    for (label, *place), pixels in frames.items():
        np.testing.assert_array_equal(pixels, mask[..., places.index(tuple(place))] == label)
    shared = pydicom.dcmread(tmp_path / "s.dcm").SharedFunctionalGroupsSequence[0]
    directions = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    np.testing.assert_allclose(directions, directions_of(stack.images[0][0]).ravel(), atol=1e-9)
    measures = shared.PixelMeasuresSequence[0]
    assert (list(measures.PixelSpacing), measures.SliceThickness) == ([1.75, 1.25], 8)
    assert float(measures.SpacingBetweenSlices) == pytest.approx(10.5)


def test_another_library_reads_the_mask_back(tmp_path: Path, stack: DicomStack, mask: np.ndarray) -> None:
    seg = highdicom.seg.segread(write_dicom_seg(mask, stack, tmp_path / "s.dcm"))
    again = seg.get_volume(combine_segments=True)
    np.testing.assert_array_equal(np.asarray(again.array).sum(), mask.astype(int).sum())
    to_ras = np.diag([-1, -1, 1, 1])
    for column, row, k in np.ndindex(mask.shape):  # by place, whatever order of axes the library prefers
        where = np.linalg.solve(to_ras @ again.affine, stack.affine @ [column, row, k, 1])[:3]
        assert again.array[tuple(np.rint(where).astype(int))] == mask[column, row, k]


def test_names_colours_and_sources(tmp_path: Path, stack: DicomStack, mask: np.ndarray) -> None:
    ds = pydicom.dcmread(write_dicom_seg(mask, stack, tmp_path / "s.dcm", phase=1))
    assert [segment.SegmentLabel for segment in ds.SegmentSequence] == ["RV", "Myo", "LV"]
    codes = [segment.SegmentedPropertyTypeCodeSequence[0].CodeValue for segment in ds.SegmentSequence]
    assert codes == ["53085002", "49848007", "87878005"]  # right ventricle, myocardium of the left ventricle, left
    for label, segment in enumerate(ds.SegmentSequence, start=1):
        lab = highdicom.color.CIELabColor.from_dicom_value(segment.RecommendedDisplayCIELabValue)
        np.testing.assert_allclose(lab.to_rgb(), list(bytes.fromhex(COLOURS[label][1:])), atol=1)
    (series,) = ds.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == stack.images[0][0].series_uid
    referred = {instance.ReferencedSOPInstanceUID for instance in series.ReferencedInstanceSequence}
    assert referred == {of_slice[1].instance_uid for of_slice in stack.images}
    assert ds.StudyInstanceUID == stack.images[0][0].study_uid
    assert ds.FrameOfReferenceUID == stack.images[0][0].frame_of_reference
    assert (ds.SOPClassUID, ds.Modality) == ("1.2.840.10008.5.1.4.1.1.66.4", "SEG")


def test_sources_of_several_series_keep_their_series(tmp_path: Path) -> None:
    (found,) = find_dicom(Scan().write_by_slice(tmp_path / "scan"))
    assert found.stack is not None
    path = write_dicom_seg(np.ones((7, 5, 4), np.uint8), found.stack, tmp_path / "s.dcm")
    references = {
        series.SeriesInstanceUID: [instance.ReferencedSOPInstanceUID for instance in series.ReferencedInstanceSequence]
        for series in pydicom.dcmread(path).ReferencedSeriesSequence
    }
    assert references == {of_slice[0].series_uid: [of_slice[0].instance_uid] for of_slice in found.stack.images}


def test_an_empty_mask_is_written(tmp_path: Path, stack: DicomStack, mask: np.ndarray) -> None:
    ds = pydicom.dcmread(write_dicom_seg(0 * mask, stack, tmp_path / "s.dcm"))
    assert ds.pixel_array.max() == 0


def test_equal_masks_make_equal_files(tmp_path: Path, stack: DicomStack, mask: np.ndarray) -> None:
    first, second = (write_dicom_seg(mask, stack, tmp_path / name).read_bytes() for name in ("a.dcm", "b.dcm"))
    assert first == second
    # nor the date of its making, which may be that of the examination
    assert not [date for date in (f"{datetime.now():%Y%m%d}", f"{datetime.now():%Y-%m-%d}") if date.encode() in first]
    uids = [
        pydicom.dcmread(write_dicom_seg(array, stack, tmp_path / "c.dcm", phase=phase)).SOPInstanceUID
        for array, phase in ((mask, 0), (mask, 1), (3 - mask, 0))
    ]
    assert len(set(uids)) == 3


def test_patient_and_study_on_request(tmp_path: Path, stack: DicomStack, mask: np.ndarray) -> None:
    plain = pydicom.dcmread(write_dicom_seg(mask, stack, tmp_path / "plain.dcm"))
    named = pydicom.dcmread(write_dicom_seg(mask, stack, tmp_path / "named.dcm", identity="identified"))
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyDate", "StudyTime", "AccessionNumber"):
        assert str(plain[keyword].value or "") == ""
        assert str(named[keyword].value) == PATIENT[keyword]
    assert plain.PatientIdentityRemoved == "YES"
    assert plain.ContentDate == "19000101"
    assert "InstanceCreationDate" not in plain
    assert "PatientIdentityRemoved" not in named
    assert named.SeriesInstanceUID != plain.SeriesInstanceUID
    assert placed(tmp_path / "named.dcm").keys() == placed(tmp_path / "plain.dcm").keys()


def test_what_cannot_be_written(
    tmp_path: Path, stack: DicomStack, mask: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="does not lie on a stack of shape"):
        write_dicom_seg(mask[1:], stack, tmp_path / "s.dcm")
    (found,) = find_dicom(Scan(extra={"FrameOfReferenceUID": ""}).write(tmp_path / "nowhere"))
    assert found.stack is not None
    with pytest.raises(InputError, match="images without a frame of reference"):
        write_dicom_seg(mask, found.stack, tmp_path / "s.dcm")
    with pytest.raises(InputError, match="cannot be 'secret'"):
        check_dicom_seg("secret")
    with pytest.raises(InputError, match="there is no DICOM series to make a DICOM SEG of"):
        check_options(Options(dicom_seg="deidentified"), [])
    monkeypatch.setattr(dicom_seg, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs highdicom. Install it: pip install 'cgdpm-med\[dicom\]'"):
        check_dicom_seg("deidentified")
    assert not list(tmp_path.glob("*.dcm"))


# --- whole runs -------------------------------------------------------------------------------------------------------


def test_a_cine_from_folder_to_masks(tmp_path: Path) -> None:
    scan = Scan()
    scan.write(tmp_path / "in" / "p1" / "sax")
    options = Options(**PLAIN, dicom_seg="deidentified")
    result = segment_all(Bright(), find_cases(tmp_path / "in"), tmp_path / "out", options=options)
    assert result["failed"] == {}
    image = nib.load(tmp_path / "out" / "p1" / "sax.nii.gz")
    mask = np.asarray(image.dataobj)
    assert mask.shape == (7, 5, 4, 3)
    np.testing.assert_array_equal(mask == 3, (scan.voxels > 1000) & (np.arange(7) != 2)[:, None, None, None])
    np.testing.assert_allclose(image.affine, read_dicom(tmp_path / "in").grid.affine, atol=1e-4)
    (stack,) = [found.stack for found in find_dicom(tmp_path / "in")]
    assert stack is not None
    for t in range(3):
        frames = placed(tmp_path / "out" / "p1" / f"sax_frame{t + 1:03d}_seg.dcm")
        for k, of_slice in enumerate(stack.images):
            place = tuple(round(float(v), 3) for v in position_of(of_slice[t]))
            for label in (1, 2, 3):
                pixels = frames.get((label, *place), np.zeros((7, 5)))
                np.testing.assert_array_equal(pixels, mask[..., k, t] == label)
    record = json.loads((tmp_path / "out" / "p1" / "sax.json").read_text())
    assert record["files"] == ["sax.nii.gz", *(f"sax_frame{t:03d}_seg.dcm" for t in (1, 2, 3))]
    assert list(record["inputs"]) == ["sax"]


def test_continue_sees_other_files_and_other_wishes(tmp_path: Path) -> None:
    folder = Scan(phases=1).write(tmp_path / "in")

    def run_again(**options: Any) -> list[str]:
        cases = find_cases(tmp_path / "in")
        return segment_all(Bright(), cases, tmp_path / "out", options=Options(**PLAIN, **options), resume=True)[
            "skipped"
        ]

    assert run_again() == []
    assert run_again() == ["in"]
    assert run_again(dicom_seg="deidentified") == []
    assert run_again(dicom_seg="deidentified") == ["in"]
    (tmp_path / "out" / "in_seg.dcm").unlink()
    assert run_again(dicom_seg="deidentified") == []
    ds = pydicom.dcmread(folder / "IM0000.dcm")
    ds.SeriesDescription = "other bytes"
    ds.save_as(folder / "IM0000.dcm")
    assert run_again(dicom_seg="deidentified") == []


@pytest.fixture
def _bright(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Segmenter, "from_bundle", lambda *_, **__: Bright())
    for name in ("RANK", "WORLD_SIZE", "CGDPM_DEBUG"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_bright")
def test_nothing_of_the_patient_gets_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    Scan(slices=5).write(source / "good")
    Scan(series=9).write_by_slice(source / "levels")
    Scan(series=30, phases=1).write(source / "broken")
    next((source / "broken").iterdir()).unlink()
    Scan(series=40, phases=1).write(source / "cut")
    cut = next((source / "cut").iterdir())
    cut.write_bytes(cut.read_bytes()[:-9])
    everything = ("--json", "--label-table", "--write", "mask,probabilities,entropy,disagreement,members")
    command = ("segment", str(source), str(out), "--device", "cpu", "--dicom-seg", "deidentified", *everything)
    assert run(monkeypatch, *command) == 1
    printed, log = capfd.readouterr()
    assert len([line for line in log.splitlines() if line.startswith("error: ")]) == 2
    assert sorted(json.loads(printed)["failed"]) == ["broken", "cut"]
    texts = {"standard output": printed.encode(), "standard error": log.encode()}
    for path in out.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            texts[str(path.relative_to(out))] = gzip.decompress(data) if path.suffix == ".gz" else data
    assert {Path(name).suffix for name in texts} >= {".gz", ".json", ".html", ".dcm", ".csv", ".ctbl", ".label"}
    secrets = {part for value in PATIENT.values() for part in (value, *value.split("^")) if len(part) > 5}
    secrets |= {"2023-08-17", "17.08.2023", "1948-02-29"}
    leaks = {
        (name, secret)
        for name, text in texts.items()
        for secret in secrets
        if secret.lower().encode() in text.lower() or secret.encode("utf-16-le") in text
    }
    assert leaks == set()


@pytest.mark.usefixtures("_bright")
def test_identified_objects_from_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Scan(phases=1).write(tmp_path / "in")
    arguments = ("segment", str(tmp_path / "in"), str(tmp_path / "out"), "--device", "cpu", "--no-report")
    assert run(monkeypatch, *arguments, "--dicom-seg", "identified") == 0
    assert pydicom.dcmread(tmp_path / "out" / "in_seg.dcm").PatientID == PATIENT["PatientID"]
    assert not [
        path for path in (tmp_path / "out").rglob("*.json") if PATIENT["PatientID"] in path.read_text(encoding="utf-8")
    ]
