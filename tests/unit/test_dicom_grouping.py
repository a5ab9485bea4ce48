"""Which images make one stack: what UIDs and folders still say, contrast, lattices, copies and repeated slices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="pydicom is not installed: pip install cgdpm-med")

from command import run
from dicom_scans import ACROSS, DOWN, NORMAL, PATIENT, Scan, save
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import generate_uid

from cgdpm_med import InputError
from cgdpm_med.studies.cases import find_cases
from cgdpm_med.volumes.dicom.contrast import Contrast, by_contrast, purpose_of
from cgdpm_med.volumes.dicom.finding import DicomFinding, DicomWarning, find_dicom, read_dicom
from cgdpm_med.volumes.dicom.lattice import lattices

Change = Callable[[Dataset, int, int], None]


def write(scan: Scan, folder: Path, change: Change = lambda ds, k, t: None, *, name: str = "") -> Scan:
    """All images after a change."""
    for n, (k, t, ds) in enumerate(scan.images()):
        change(ds, k, t)
        save(ds, folder / f"{name}{n}")
    return scan


def write_by_slice(scan: Scan, folder: Path, change: Change = lambda ds, k, t: None) -> Scan:
    """One series for each slice, numbered from that of the scan on."""
    uids = [generate_uid() for _ in range(scan.slices)]

    def split(ds: Dataset, k: int, t: int) -> None:
        ds.SeriesInstanceUID, ds.SeriesNumber = uids[k], scan.series + k
        change(ds, k, t)

    return write(scan, folder, split, name=f"s{scan.series}_")


def sets(**values: Any) -> Change:
    def change(ds: Dataset, k: int, t: int) -> None:
        for keyword, value in values.items():
            setattr(ds, keyword, value() if callable(value) else value)

    return change


def good(folder: Path) -> list[NDArray[np.float32]]:
    """The voxels of all stacks below a folder; errors name nobody."""
    found = find_dicom(folder)
    for text in (str(finding.error) for finding in found if finding.error):
        assert not [value for value in PATIENT.values() if value in text]
    return [finding.stack.read().data for finding in found if finding.stack is not None]


def errors(folder: Path) -> list[DicomFinding]:
    return [found for found in find_dicom(folder) if found.error is not None]


# --- UIDs, patients and folders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uid", ["FrameOfReferenceUID", "SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID", "all"]
)
@pytest.mark.parametrize("value", [lambda: "", generate_uid, "1.2.3"], ids=["blank", "new for each", "constant"])
@pytest.mark.parametrize("layout", [write, write_by_slice])
def test_uids_that_say_nothing(tmp_path: Path, uid: str, value: Any, layout: Any) -> None:
    every = ("FrameOfReferenceUID", "SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID")
    scan = layout(Scan(), tmp_path, sets(**dict.fromkeys(every if uid == "all" else [uid], value)))
    (data,) = good(tmp_path)
    np.testing.assert_array_equal(data, scan.voxels)


@pytest.mark.parametrize("value", [lambda: "", generate_uid, "1.2.3"], ids=["blank", "new for each", "constant"])
@pytest.mark.parametrize("patients", [("a", "b"), ("", ""), ("same", "same")])
def test_two_patients_stay_two(tmp_path: Path, value: Any, patients: tuple[str, str]) -> None:
    gone = dict.fromkeys(("FrameOfReferenceUID", "SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID"), value)
    scans = [
        write(Scan(seed=n), tmp_path / str(n), sets(PatientID=patient, **gone)) for n, patient in enumerate(patients)
    ]
    first, second = good(tmp_path)
    np.testing.assert_array_equal(first, scans[0].voxels)
    np.testing.assert_array_equal(second, scans[1].voxels)


def test_two_patients_in_one_folder_stay_two(tmp_path: Path) -> None:
    for n in (1, 2):
        change = sets(PatientID=f"p{n}", SeriesInstanceUID="1.2", StudyInstanceUID="1.3")
        write(Scan(seed=n), tmp_path, change, name=f"p{n}_")
    assert len(good(tmp_path)) == 2


def test_two_patients_with_one_series_a_slice_stay_two(tmp_path: Path) -> None:
    for n in (1, 2):
        write_by_slice(Scan(seed=n), tmp_path / str(n), sets(StudyInstanceUID="1.3", PatientID="anonymous"))
    assert [data.shape for data in good(tmp_path)] == [(7, 5, 4, 3)] * 2


def test_a_folder_for_each_slice_without_uids(tmp_path: Path) -> None:
    scan = Scan()
    for k, t, ds in scan.images():
        ds.StudyInstanceUID = ds.SeriesInstanceUID = ds.FrameOfReferenceUID = ds.SOPInstanceUID = ""
        save(ds, tmp_path / f"level{k}" / f"{9 - t}")
    (data,) = good(tmp_path)
    np.testing.assert_array_equal(data, scan.voxels)


def test_orientation_that_differs_in_its_last_digit(tmp_path: Path) -> None:
    def jitter(ds: Dataset, k: int, t: int) -> None:
        ds.ImageOrientationPatient = [float(value) + 1e-6 * k for value in ds.ImageOrientationPatient]

    scan = write_by_slice(Scan(), tmp_path, jitter)
    (data,) = good(tmp_path)
    np.testing.assert_array_equal(data, scan.voxels)


# --- contrast ---------------------------------------------------------------------------------------------------------

USUAL = {
    "EchoTime": 1.2,
    "RepetitionTime": 3.0,
    "FlipAngle": 45,
    "InversionTime": 0,
    "ScanningSequence": "GR",
    "ProtocolName": "cine 1",
}
OTHER: list[dict[str, Any]] = [
    {"EchoTime": 3.9},
    {"RepetitionTime": 40},
    {"FlipAngle": 10},
    {"InversionTime": 300},
    {"ScanningSequence": "SE"},
    {"ProtocolName": "tagging"},
]


@pytest.mark.parametrize("other", OTHER, ids=[next(iter(other)) for other in OTHER])
@pytest.mark.parametrize("level", [1, 4], ids=["inside", "beyond"])
def test_an_odd_series_is_named_and_left_out(tmp_path: Path, other: dict[str, Any], level: int) -> None:
    scan = write_by_slice(Scan(extra=USUAL), tmp_path)
    odd = Scan(slices=5, series=40, extra={**USUAL, **other})
    odd.study, odd.place = scan.study, scan.place
    for t in range(3):
        save(odd.image(level, t), tmp_path / f"odd{t}")
    (data,) = good(tmp_path)
    np.testing.assert_array_equal(data, scan.voxels)
    (left,) = errors(tmp_path)
    assert left.series == (40,)
    with pytest.warns(DicomWarning, match="series 40"):
        np.testing.assert_array_equal(read_dicom(tmp_path).data, scan.voxels)


@pytest.mark.parametrize(
    "other",
    [{"FlipAngle": 10}, {"SequenceName": "*fl2d5"}, {"ProtocolName": "grid"}, {"SeriesDescription": "SA_tagging"}],
)
def test_what_an_odd_series_alone_says_sets_it_apart(tmp_path: Path, other: dict[str, Any]) -> None:
    scan = write_by_slice(Scan(), tmp_path)
    odd = Scan(slices=5, series=40, extra=other)
    odd.study, odd.place = scan.study, scan.place
    for t in range(3):
        save(odd.image(4, t), tmp_path / f"odd{t}")
    (data,) = good(tmp_path)
    np.testing.assert_array_equal(data, scan.voxels)
    (left,) = errors(tmp_path)
    assert left.series == (40,)
    name = {"SequenceName": "sequence", "FlipAngle": "flip angle", "ProtocolName": "protocol"}.get(next(iter(other)))
    assert (name or "description") in str(left.error)


def test_values_that_vary_as_scanners_do_are_one_contrast(tmp_path: Path) -> None:
    def vary(ds: Dataset, k: int, t: int) -> None:
        ds.EchoTime, ds.RepetitionTime, ds.FlipAngle = 1.2 + 0.01 * k, 40 + 2 * k, 50 - 2 * k
        ds.ProtocolName, ds.SequenceName = f"sax {k + 1}", f"*tfi2d1_{14 + k}"

    scan = write_by_slice(Scan(), tmp_path, vary)
    (data,) = good(tmp_path)
    np.testing.assert_array_equal(data, scan.voxels)


def test_two_echoes_of_one_series_are_two_volumes(tmp_path: Path) -> None:
    first, second = Scan(extra={"EchoTime": 1.2}), Scan(seed=4, extra={"EchoTime": 4.6})
    second.study, second.uid, second.place = first.study, first.uid, first.place
    write(first, tmp_path, name="a")
    write(second, tmp_path, name="b")
    with pytest.warns(DicomWarning, match="echo time"):
        assert len(good(tmp_path)) == 2


def test_numbers_are_compared_with_a_tolerance_and_absent_ones_not_at_all() -> None:
    def contrast(echo: float | None, protocol: str = "") -> Contrast:
        return Contrast("M", echo, None, None, None, "", protocol)

    items = [contrast(1.20), contrast(1.25), contrast(None), contrast(4.6)]
    assert [len(part) for part in by_contrast(items, lambda item: item)] == [3, 1]
    named = [contrast(1.2, name) for name in ("base", "mid", "apex")]
    assert len(by_contrast(named, lambda item: item)) == 3
    assert len(by_contrast(named, lambda item: item, own_names=True)) == 1
    few = [contrast(None), contrast(None), contrast(4.6)]
    assert [len(part) for part in by_contrast(few, lambda item: item)] == [2, 1]


@pytest.mark.parametrize(
    ("description", "purpose"),
    [
        ("cine_sax stage 2", ""),
        ("SA lateral overview", ""),
        ("sax_TAG_15", "tagging"),
        ("PSIR_sax", "late enhancement"),
        ("T1_map", "mapping"),
        ("Survey BH", "localiser"),
    ],
)
def test_what_a_description_tells(description: str, purpose: str) -> None:
    assert purpose_of(description) == purpose


# --- lattices ---------------------------------------------------------------------------------------------------------


def test_lattices() -> None:
    def parts(*along: float) -> list[list[float]]:
        return [[along[k] for k in part] for part in lattices(np.array(along))]

    assert parts(0, 10, 20, 30) == [[0, 10, 20, 30]]
    assert parts(0, 10, 15, 20, 30, 40) == [[0, 10, 20, 30, 40], [15]]
    assert parts(0, 3, 10, 13, 20, 23, 30, 33) == [[0, 10, 20, 30], [3, 13, 23, 33]]
    assert parts(0, 5, 10, 15, 20, 25, 30, 40, 50) == [[0, 10, 20, 30, 40, 50], [5, 15, 25]]
    assert parts(0, 10, 20, 40, 50) == [[0, 10, 20, 40, 50]]  # one is missing: whoever makes the stack says so


@pytest.mark.parametrize("thickness", [8.0, None])
def test_a_stack_shifted_by_half_a_gap_is_not_interleaved(tmp_path: Path, thickness: float | None) -> None:
    first, second = Scan(), Scan(seed=3, series=20)
    second.study, second.place = first.study, first.place

    def shift(ds: Dataset, k: int, t: int) -> None:
        ds.ImagePositionPatient = [f"{value:.10f}" for value in second.lps(0, 0, k) + 5.25 * NORMAL]
        thin(ds, k, t)

    def thin(ds: Dataset, k: int, t: int) -> None:
        if thickness is None:
            del ds.SliceThickness

    write_by_slice(first, tmp_path, thin)
    write_by_slice(second, tmp_path, shift)
    a, b = good(tmp_path)
    np.testing.assert_array_equal(a, first.voxels)
    np.testing.assert_array_equal(b, second.voxels)


def test_slices_acquired_in_turns_are_one_stack(tmp_path: Path) -> None:
    scan = Scan(slices=6)
    write_by_slice(scan, tmp_path, lambda ds, k, t: setattr(ds, "SeriesNumber", [5, 8, 6, 9, 7, 10][k]))
    (data,) = good(tmp_path)
    np.testing.assert_array_equal(data, scan.voxels)


def test_slices_acquired_in_turns_in_one_series_are_one_stack(tmp_path: Path) -> None:
    def in_turns(ds: Dataset, k: int, t: int) -> None:
        ds.InstanceNumber = [4, 1, 5, 2, 6, 3][k] * 3 + t
        del ds.SliceThickness

    scan = write(Scan(slices=6), tmp_path, in_turns)
    (data,) = good(tmp_path)
    np.testing.assert_array_equal(data, scan.voxels)


@pytest.mark.parametrize("upwards", [True, False])
def test_a_stated_distance_does_not_part_slices_numbered_in_sequence(tmp_path: Path, upwards: bool) -> None:
    def number(ds: Dataset, k: int, t: int) -> None:
        ds.SpacingBetweenSlices = 21
        ds.InstanceNumber = (k if upwards else 3 - k) * 3 + t

    scan = write(Scan(), tmp_path, number)
    (data,) = good(tmp_path)
    np.testing.assert_array_equal(data, scan.voxels)


def test_views_of_one_series_that_are_turned_are_noted(tmp_path: Path) -> None:
    def turn(ds: Dataset, k: int, t: int) -> None:
        if k % 2:
            ds.ImageOrientationPatient = [f"{v:.12f}" for v in (*-ACROSS, *-DOWN)]

    write(Scan(slices=6), tmp_path, turn)
    with pytest.warns(DicomWarning, match="differ in orientation"):
        assert [data.shape[2] for data in good(tmp_path)] == [3, 3]


def test_one_slice_acquired_again_last_does_not_make_two_stacks(tmp_path: Path) -> None:
    def again(ds: Dataset, k: int, t: int) -> None:
        ds.SeriesNumber = [5, 40, 7, 8][k]
        del ds.SliceThickness

    scan = write_by_slice(Scan(), tmp_path, again)
    (data,) = good(tmp_path)
    np.testing.assert_array_equal(data, scan.voxels)


@pytest.mark.parametrize("along", [0.0, 5.25, 42.0], ids=["in the same places", "between", "beyond"])
@pytest.mark.parametrize("layout", [write, write_by_slice])
def test_two_time_points_in_two_folders_stay_two(tmp_path: Path, layout: Any, along: float) -> None:
    first, second = Scan(), Scan(seed=3)  # the same patient, study and numbers
    second.study, second.place = first.study, first.place

    def move(ds: Dataset, k: int, t: int) -> None:
        ds.ImagePositionPatient = [f"{value:.10f}" for value in second.lps(0, 0, k) + along * NORMAL]

    layout(first, tmp_path / "a")
    layout(second, tmp_path / "b", move)
    a, b = good(tmp_path)
    np.testing.assert_array_equal(a, first.voxels)
    np.testing.assert_array_equal(b, second.voxels)


def test_folders_that_repeat_places_and_times_stay_apart(tmp_path: Path) -> None:
    first, second = Scan(), Scan(seed=3)
    second.study, second.uid, second.place = first.study, first.uid, first.place
    write(first, tmp_path / "a", sets(InstanceNumber=None))
    write(second, tmp_path / "b", sets(InstanceNumber=None))
    a, b = good(tmp_path)
    np.testing.assert_array_equal(a, first.voxels)
    np.testing.assert_array_equal(b, second.voxels)


def test_instance_numbers_that_begin_anew_tell_two_stacks_apart_without_uids(tmp_path: Path) -> None:
    first, second = Scan(), Scan(seed=3)
    gone = sets(StudyInstanceUID="", SeriesInstanceUID="", SeriesNumber=None)

    def shift(ds: Dataset, k: int, t: int) -> None:
        ds.ImagePositionPatient = [f"{value:.10f}" for value in second.lps(0, 0, k) + 5.25 * NORMAL]
        gone(ds, k, t)

    write(first, tmp_path, gone, name="a")
    write(second, tmp_path, shift, name="b")
    with pytest.warns(DicomWarning, match="two stacks"):
        a, b = good(tmp_path)
    np.testing.assert_array_equal(a, first.voxels)
    np.testing.assert_array_equal(b, second.voxels)


def test_series_numbers_tell_series_apart_where_every_uid_is_new(tmp_path: Path) -> None:
    new = sets(StudyInstanceUID=generate_uid, SeriesInstanceUID=generate_uid, FrameOfReferenceUID=generate_uid)
    first = write(Scan(), tmp_path, new, name="a")
    second = write(Scan(seed=3, series=6), tmp_path, new, name="b")
    a, b = good(tmp_path)
    np.testing.assert_array_equal(a, first.voxels)
    np.testing.assert_array_equal(b, second.voxels)


def test_a_second_cine_in_the_same_places_with_fewer_phases_is_a_stack(tmp_path: Path) -> None:
    first, second = Scan(phases=4), Scan(seed=3, series=20)
    second.study, second.place = first.study, first.place
    write_by_slice(first, tmp_path)
    write_by_slice(second, tmp_path)
    a, b = good(tmp_path)
    np.testing.assert_array_equal(a, first.voxels)
    np.testing.assert_array_equal(b, second.voxels)


@pytest.mark.parametrize(("along", "aside"), [(5.0, 0.0), (0.0, 30.0)], ids=["between", "sideways"])
def test_a_series_off_the_stack_is_left_out(tmp_path: Path, along: float, aside: float) -> None:
    scan = write_by_slice(Scan(slices=5), tmp_path)
    for t in range(3):
        ds = scan.image(2, t)
        ds.SeriesInstanceUID, ds.SeriesNumber = "1.2.3", 40
        ds.ImagePositionPatient = [f"{v:.10f}" for v in scan.lps(0, 0, 2) + along * NORMAL + aside * DOWN]
        save(ds, tmp_path / f"odd{t}")
    (data,) = good(tmp_path)
    np.testing.assert_array_equal(data, scan.voxels)
    assert [found.series for found in errors(tmp_path)] == [(40,)]


# --- copies and repeated slices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("uid", [None, ""], ids=["its own UID", "blank UID"])
def test_copies_are_taken_once(tmp_path: Path, uid: str | None) -> None:
    scan = write(Scan(), tmp_path, lambda ds, k, t: None if uid is None else setattr(ds, "SOPInstanceUID", uid))
    for name in ("3", "7"):
        (tmp_path / f"copy{name}").write_bytes((tmp_path / name).read_bytes())
    with pytest.warns(DicomWarning, match="more than once|copies"):
        (data,) = good(tmp_path)
    np.testing.assert_array_equal(data, scan.voxels)


def test_a_copy_of_the_whole_folder(tmp_path: Path) -> None:
    scan = write(Scan(), tmp_path / "a")
    for path in (tmp_path / "a").iterdir():
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / path.name).write_bytes(path.read_bytes())
    with pytest.warns(DicomWarning, match="12 images are there more than once"):
        (data,) = good(tmp_path)
    np.testing.assert_array_equal(data, scan.voxels)


LATER: dict[str, dict[str, Any]] = {
    "acquisition time": {"AcquisitionTime": "110000"},
    "acquisition number": {"AcquisitionNumber": 9},
    "series": {"SeriesInstanceUID": "1.2.3", "SeriesNumber": 40},
    "instance number": {},
}


LAYOUTS = [(layout, by) for by in LATER for layout in (write, write_by_slice) if (layout, by) != (write, "series")]


@pytest.mark.parametrize("phases", [3, 1])
@pytest.mark.parametrize(("layout", "by"), LAYOUTS)
def test_of_a_repeated_slice_the_later_acquisition_is_taken(tmp_path: Path, layout: Any, by: str, phases: int) -> None:
    scan = Scan(phases=phases)
    layout(scan, tmp_path, sets(AcquisitionNumber=1, AcquisitionTime="100000") if "acq" in by else sets())
    for t in range(phases):
        ds = scan.image(1, t)
        if layout is write_by_slice:
            ds.SeriesNumber, ds.SeriesInstanceUID = 30, "1.2.9"
        ds.AcquisitionNumber, ds.AcquisitionTime = (1, "100000") if "acq" in by else (None, None)
        ds.InstanceNumber = 100 + t
        sets(**LATER[by])(ds, 1, t)
        ds.PixelData = (scan.voxels[:, :, 1, t] + 5).T.tobytes()
        save(ds, tmp_path / f"again{t}")
    expected = scan.voxels.copy()
    expected[:, :, 1] += 5
    with pytest.warns(DicomWarning, match="slice 2 was acquired 2 times"):
        (data,) = good(tmp_path)
    np.testing.assert_array_equal(data.reshape(expected.shape), expected)


def test_a_repeated_slice_without_an_order_is_one_error(tmp_path: Path) -> None:
    scan = write(Scan(), tmp_path, lambda ds, k, t: setattr(ds, "InstanceNumber", 1))
    for t in range(3):
        ds = scan.image(1, t)
        ds.InstanceNumber, ds.PixelData = 1, (scan.voxels[:, :, 1, t] + 5).T.tobytes()
        save(ds, tmp_path / f"again{t}")
    (left,) = errors(tmp_path)
    assert "slice 2 2 times" in str(left.error)
    for t in range(3):  # its remedy, followed
        (tmp_path / f"again{t}").unlink()
    np.testing.assert_array_equal(read_dicom(tmp_path).data, scan.voxels)


def test_a_slice_in_a_series_of_its_own_beside_a_whole_stack_is_left_out(tmp_path: Path) -> None:
    scan = write(Scan(), tmp_path)
    for t in range(3):
        ds = scan.image(1, t)
        ds.SeriesInstanceUID, ds.SeriesNumber, ds.PixelData = "1.2.3", 40, bytes(70)
        save(ds, tmp_path / f"again{t}")
    (data,) = good(tmp_path)
    np.testing.assert_array_equal(data, scan.voxels)
    assert [found.series for found in errors(tmp_path)] == [(40,)]


# --- choosing a series ------------------------------------------------------------------------------------------------


def test_series_are_chosen_by_number(tmp_path: Path) -> None:
    scans = [write(Scan(series=number, seed=number), tmp_path, name=f"{number}_") for number in (5, 7, 9)]
    np.testing.assert_array_equal(read_dicom(tmp_path, series=[7]).data, scans[1].voxels)
    assert [found.series for found in find_dicom(tmp_path, series=[9, 5])] == [(5,), (9,)]
    with pytest.raises(InputError, match=r"series 6, 8\. Choose among 5, 7, 9"):
        find_dicom(tmp_path, series=[5, 6, 8])
    assert len(find_cases(tmp_path, series=[5, 7])) == 2
    with pytest.raises(InputError, match="DICOM"):
        find_cases(tmp_path / "5_0", series=[5])


def test_the_option_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write(Scan(phases=1), tmp_path / "in")
    for words in (("--series", "6"), ("--series", "5,6"), ("--series", "5", "--series", "6")):
        assert run(monkeypatch, "segment", str(tmp_path / "in"), str(tmp_path / "out"), *words) == 1
        assert "holds no DICOM series 6. Choose among 5" in capfd.readouterr().err
    assert run(monkeypatch, "segment", str(tmp_path / "in"), str(tmp_path / "out"), "--series", "five") == 2
    assert not (tmp_path / "out").exists()
