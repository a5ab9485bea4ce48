"""DICOM series as volumes: geometry, grouping, and what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="pydicom is not installed: pip install 'cgdpm-med[dicom]'")

from dicom_scans import DOWN, NORMAL, PATIENT, Scan, save
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from cgdpm_med.files import InputError
from cgdpm_med.studies.cases import find_cases
from cgdpm_med.volumes import VOXEL_LIMIT, read_volume, write_on_grid
from cgdpm_med.volumes.dicom.finding import DicomWarning, find_dicom, read_dicom
from cgdpm_med.volumes.dicom.pixels import compression
from cgdpm_med.volumes.formats import is_dicom_file

TO_RAS = np.array([-1.0, -1.0, 1.0])


def refusal(folder: Path) -> str:
    """The text of the one error for everything below a folder."""
    (found,) = find_dicom(folder)
    assert found.stack is None
    assert found.error is not None
    text = str(found.error)
    assert text.startswith(str(folder))
    assert not [value for value in PATIENT.values() if value in text]
    assert "1.2.826" not in text  # no UID but those of compression
    return text


# --- geometry ---------------------------------------------------------------------------------------------------------


def test_voxels_lie_where_the_scanner_says(tmp_path: Path) -> None:
    scan = Scan()
    volume = read_dicom(scan.write(tmp_path / "scan"))
    np.testing.assert_array_equal(volume.data, scan.voxels)
    assert volume.data.dtype == np.float32
    for column, row, k in np.ndindex(*scan.size, scan.slices):
        world = (volume.grid.affine @ [column, row, k, 1])[:3]
        np.testing.assert_allclose(world, TO_RAS * scan.lps(column, row, k), atol=0.01)
    np.testing.assert_allclose(volume.grid.spacing, (1.25, 1.75, 10.5), rtol=1e-6)  # not the thickness, 8 mm
    assert volume.grid.note is None


def test_the_grid_survives_a_file(tmp_path: Path) -> None:
    volume = read_dicom(Scan().write(tmp_path / "scan"))
    write_on_grid(volume.data, volume.grid, tmp_path / "v.nii.gz", dtype=np.float32)
    again = read_volume(tmp_path / "v.nii.gz")
    assert again.grid.difference(volume.grid) is None
    np.testing.assert_allclose(again.grid.affine, volume.grid.affine, atol=1e-4)
    header = again.grid.header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 1)
    np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-3)
    assert header.get_xyzt_units() == ("mm", "sec")
    assert header["pixdim"][4] == pytest.approx(0.0355)  # between trigger times


def test_a_still_stack_is_three_dimensional(tmp_path: Path) -> None:
    scan = Scan(phases=1)
    volume = read_dicom(scan.write(tmp_path))
    np.testing.assert_array_equal(volume.data, scan.voxels[..., 0])
    assert volume.grid.shape == volume.data.shape == (7, 5, 4)


def test_slices_stepping_aside_by_the_same_amount_make_a_sheared_grid(tmp_path: Path) -> None:
    scan = Scan(phases=1)
    for k, _, ds in scan.images():
        ds.ImagePositionPatient = [f"{value:.10f}" for value in scan.lps(0, 0, k) + k * 2.5 * DOWN]
        save(ds, tmp_path / f"{k}.dcm")
    volume = read_dicom(tmp_path)
    far = TO_RAS * (scan.lps(6, 4, 3) + 3 * 2.5 * DOWN)
    np.testing.assert_allclose((volume.grid.affine @ [6, 4, 3, 1])[:3], far, atol=0.01)
    assert volume.grid.voxel_volume == pytest.approx(1.25 * 1.75 * 10.5, rel=1e-5)
    assert volume.grid.note is not None
    assert "sheared" in volume.grid.note
    assert int(volume.grid.header["qform_code"]) == 0  # which could not hold it


def test_intensities_are_rescaled(tmp_path: Path) -> None:
    scan = Scan(phases=1, extra={"RescaleSlope": 2.5, "RescaleIntercept": -3})
    np.testing.assert_allclose(read_dicom(scan.write(tmp_path)).data, scan.voxels[..., 0] * 2.5 - 3, rtol=1e-6)


# --- grouping ---------------------------------------------------------------------------------------------------------


def _by_temporal_position(ds: Dataset, k: int, t: int) -> None:
    del ds.TriggerTime
    ds.TemporalPositionIdentifier = t + 1
    ds.InstanceNumber = 100 - t


def _by_instance(ds: Dataset, k: int, t: int) -> None:
    ds.TriggerTime = 0  # says nothing
    ds.InstanceNumber = 10 * t + k


def _by_trigger(ds: Dataset, k: int, t: int) -> None:
    ds.TriggerTime = 11 + (30 + k) * t  # the heart beats a little slower in every slice
    ds.InstanceNumber = 100 - 10 * k - t


@pytest.mark.parametrize("order", [_by_trigger, _by_temporal_position, _by_instance])
def test_phases_are_ordered_in_time(tmp_path: Path, order: Callable[[Dataset, int, int], None]) -> None:
    scan = Scan(phases=4)
    for k, t, ds in scan.images():
        order(ds, k, t)
        save(ds, tmp_path / f"{k}_{9 - t}.dcm")
    np.testing.assert_array_equal(read_dicom(tmp_path).data, scan.voxels)


def test_a_series_for_each_slice_makes_one_stack(tmp_path: Path) -> None:
    scan = Scan()
    (found,) = find_dicom(scan.write_by_slice(tmp_path / "study"))
    assert found.stack is not None
    assert (found.folder, found.series) == (tmp_path / "study", (5, 6, 7, 8))
    volume = found.stack.read()
    np.testing.assert_array_equal(volume.data, scan.voxels)
    np.testing.assert_allclose((volume.grid.affine @ [6, 4, 3, 1])[:3], TO_RAS * scan.lps(6, 4, 3), atol=0.01)


def test_several_series_in_one_folder_are_several_cases(tmp_path: Path) -> None:
    first, second = Scan(), Scan(series=12, seed=3, phases=1, spacing=(2.0, 2.0))
    for n, ds in enumerate([ds for scan in (first, second) for _, _, ds in scan.images()]):
        save(ds, tmp_path / "in" / "p1" / f"{n}")  # no ending: recognised by its content
    cases = find_cases(tmp_path / "in")
    assert [(case.key, case.folder) for case in cases] == [("p1_series005", Path()), ("p1_series012", Path())]
    np.testing.assert_array_equal(cases[0].read().data, first.voxels)
    np.testing.assert_array_equal(cases[1].read().data, second.voxels[..., 0])


def test_cases_mirror_the_folders(tmp_path: Path) -> None:
    Scan().write(tmp_path / "in" / "p1" / "sax")
    Scan().write_by_slice(tmp_path / "in" / "p2")
    cases = find_cases(tmp_path / "in")
    assert [(case.key, case.folder) for case in cases] == [("p1/sax", Path("p1")), ("p2", Path())]
    assert [case.key for case in find_cases(tmp_path / "in" / "p1" / "sax")] == ["sax"]


def test_two_patients_are_never_merged(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Scan(slices=2, series=1).write_by_slice(tmp_path / name)
    assert [found.stack is not None for found in find_dicom(tmp_path)] == [True, True]


def test_views_of_one_series_are_told_apart(tmp_path: Path) -> None:
    scan = Scan()
    scan.write(tmp_path)
    for t in range(3):  # the same series holds a long-axis cine
        ds = scan.image(0, t)
        ds.ImageOrientationPatient = [f"{value:.12f}" for value in (*DOWN, *NORMAL)]
        save(ds, tmp_path / f"long{t}.dcm")
    good, bad = sorted(find_dicom(tmp_path), key=lambda found: found.stack is None)
    assert good.stack is not None
    np.testing.assert_array_equal(good.stack.read().data, scan.voxels)
    assert "series 5 holds 1 views of one slice each" in str(bad.error)


def test_what_counts_as_a_dicom_file(tmp_path: Path) -> None:
    file = save(Scan().image(0, 0), tmp_path / "image")
    assert is_dicom_file(file)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "DICOMDIR").write_bytes(file.read_bytes())
    (tmp_path / "short").write_bytes(b"DICM")
    assert not any(is_dicom_file(tmp_path / name) for name in ("notes.txt", "DICOMDIR", "short", "absent"))
    with pytest.raises(InputError, match=r"is one DICOM file\. Give the folder of its series"):
        find_cases(file)


def test_the_output_folder_may_lie_in_the_input_folder(tmp_path: Path) -> None:
    scan = Scan()
    scan.write(tmp_path / "in")
    Scan(seed=7).write(tmp_path / "in" / "out")
    volume = read_dicom(scan.write(tmp_path / "other"))
    write_on_grid(volume.data, volume.grid, tmp_path / "in" / "out" / "in.nii.gz", dtype=np.float32)
    (case,) = find_cases(tmp_path / "in", exclude=tmp_path / "in" / "out")
    np.testing.assert_array_equal(case.read().data, scan.voxels)
    with pytest.raises(InputError, match="lies inside the output folder"):
        find_cases(tmp_path / "in" / "out", exclude=tmp_path / "in")


# --- what is refused --------------------------------------------------------------------------------------------------


def _remove(*slices: int) -> Callable[[Scan, Path], None]:
    def write(scan: Scan, folder: Path) -> None:
        for n, (k, _, ds) in enumerate(scan.images()):
            if k not in slices:
                save(ds, folder / f"{n}.dcm")

    return write


def _alter(change: Callable[[Dataset, int, int], object]) -> Callable[[Scan, Path], None]:
    """Write all images after a change; those for which it returns False are left out."""

    def write(scan: Scan, folder: Path) -> None:
        for n, (k, t, ds) in enumerate(scan.images()):
            if change(ds, k, t) is not False:
                save(ds, folder / f"{n}.dcm")

    return write


def _brighter(*more: tuple[int, int], **values: object) -> Callable[[Scan, Path], None]:
    """The whole scan and the images (k, t) acquired again, brighter."""

    def write(scan: Scan, folder: Path) -> None:
        scan.write(folder)
        for k, t in more:
            ds = scan.image(k, t)
            for keyword, value in values.items():
                setattr(ds, keyword, value)
            ds.PixelData = (scan.voxels[:, :, k, t] + 5).T.tobytes()
            save(ds, folder / f"more{k}{t}.dcm")

    return write


def _compressed(syntax: str) -> Callable[[Dataset, int, int], None]:
    def change(ds: Dataset, k: int, t: int) -> None:
        ds.PixelData = encapsulate([b"these are no pixels "])
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
        ds.file_meta.TransferSyntaxUID = UID(syntax)

    return change


def _smaller(ds: Dataset, k: int, t: int) -> None:
    if k == 1:
        ds.Rows = 4
        ds.PixelData = ds.PixelData[: 4 * 7 * 2]


def _set(**values: object) -> Callable[[Dataset, int, int], None]:
    def change(ds: Dataset, k: int, t: int) -> None:
        for keyword, value in values.items():
            setattr(ds, keyword, value)

    return change


def _in_slice(number: int, **values: object) -> Callable[[Dataset, int, int], None]:
    return lambda ds, k, t: _set(**values)(ds, k, t) if k == number else None


def _drop(*keywords: str) -> Callable[[Dataset, int, int], None]:
    def change(ds: Dataset, k: int, t: int) -> None:
        for keyword in keywords:
            delattr(ds, keyword)

    return change


def _moved(k: int, along: float = 0.0, aside: float = 0.0) -> Callable[[Dataset, int, int], None]:
    place = [f"{value:.10f}" for value in Scan().lps(0, 0, k) + along * NORMAL + aside * DOWN]
    return _in_slice(k, ImagePositionPatient=place)


REFUSED: dict[str, tuple[Callable[[Scan, Path], None], str]] = {
    "missing slice": (_remove(2), "lacks 1 of its slices"),
    "uneven gaps": (_alter(_moved(1, along=2.0)), "has uneven gaps between its slices, from 8.5 to 12.5 mm"),
    "sideways": (_alter(_moved(2, aside=1.0)), "shifted sideways, slice 3 by 1 mm"),
    "phase twice": (_brighter((2, 1), InstanceNumber=77), "has different numbers of phases: 3 in slice 1, 2, 4; 4 in"),
    "phase missing": (
        _alter(lambda ds, k, t: (k, t) != (1, 2)),
        "has different numbers of phases: 2 in slice 2; 3 in slice 1, 3, 4",
    ),
    "no clock": (
        _alter(_drop("TriggerTime", "InstanceNumber")),
        "no order on which its slices agree: trigger time (absent)",
    ),
    "sizes": (_alter(_smaller), "mixes images of "),
    "pixel spacings": (_alter(_in_slice(1, PixelSpacing=[2, 2])), "mixes pixel spacings from 1.25 x 1.75 to 2 x 2 mm"),
    "phase images": (_alter(_set(ImageType=["ORIGINAL", "PRIMARY", "P"])), "shows the phase of the signal"),
    "inversion times": (_alter(lambda ds, k, t: _set(InversionTime=100 * 2 ** (k + 2 * t))(ds, k, t)), "contrasts"),
    "one slice": (_remove(1, 2, 3), "shows a single slice. Give a short-axis stack"),
    "no position": (_alter(_drop("ImagePositionPatient")), "does not say where its images lie"),
    "no orientation": (_alter(_drop("ImageOrientationPatient")), "does not say where its images lie"),
    "skewed": (_alter(_set(ImageOrientationPatient=[1, 0, 0, 1, 0, 0])), "does not say where its images lie"),
    "no pixel size": (_alter(_drop("PixelSpacing")), "does not say how large its pixels are"),
    "inverted": (_alter(_set(PhotometricInterpretation="MONOCHROME1")), "holds colour or inverted images"),
    "multi-frame": (
        lambda scan, folder: _multi_frame(scan, folder),
        "is a multi-frame object that does not say where",
    ),
    "no image": (
        lambda scan, folder: _report(scan, folder),
        "holds 1 DICOM objects that are no images",
    ),
    "truncated": (lambda scan, folder: _truncated(scan, folder), "is truncated, damaged or no DICOM image"),
}


def _multi_frame(scan: Scan, folder: Path) -> None:
    ds = scan.image(0, 0)
    ds.NumberOfFrames = 3
    ds.PixelData = ds.PixelData * 3
    save(ds, folder / "cine.dcm")


def _report(scan: Scan, folder: Path) -> None:
    ds = scan.image(0, 0)
    for keyword in ("PixelData", "Rows", "Columns", "BitsAllocated"):
        delattr(ds, keyword)
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.22"  # Enhanced SR
    ds.Modality = "SR"
    save(ds, folder / "report.dcm")


def _truncated(scan: Scan, folder: Path) -> None:
    scan.write(folder)
    (folder / "IM0000.dcm").write_bytes((folder / "IM0000.dcm").read_bytes()[:-20])


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_stack_is_one_error(tmp_path: Path, name: str) -> None:
    write, complaint = REFUSED[name]
    write(Scan(), tmp_path)
    assert complaint in refusal(tmp_path)


def test_series_of_one_slice_with_other_numbers_of_phases(tmp_path: Path) -> None:
    Scan().write_by_slice(tmp_path)
    next((tmp_path / "sax3").iterdir()).unlink()
    assert "series 5, 6, 7, 8 have different numbers of phases: 2 in series 6; 3 in series 5, 7, 8" in refusal(tmp_path)


def test_pixels_that_cannot_be_decoded(tmp_path: Path) -> None:
    for name, syntax in (("ht", "1.2.840.10008.1.2.4.201"), ("j2k", "1.2.840.10008.1.2.4.90")):
        _alter(_compressed(syntax))(Scan(), tmp_path / name)
        with pytest.raises(InputError, match="holds pixels that cannot be decoded") as caught:
            read_dicom(tmp_path / name)
        assert f"transfer syntax {syntax}). Decompress the series first" in str(caught.value)
    assert compression("1.2.840.10008.1.2.4.201").startswith("high-throughput JPEG 2000")
    assert compression("1.2.840.10008.1.2.4.80").startswith("JPEG-LS")
    assert compression("1.2.840.10008.1.2.1") == "not compressed"


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80"], ids=["RLE", "JPEG-LS"])
def test_compressed_pixels_are_decoded(tmp_path: Path, syntax: str) -> None:
    scan = Scan(phases=1, slices=3, size=(64, 48))
    for k, _, ds in scan.images():
        ds.compress(syntax)
        save(ds, tmp_path / f"{k}.dcm")
    np.testing.assert_array_equal(read_dicom(tmp_path).data, scan.voxels[..., 0])


def test_a_deflated_series_is_read(tmp_path: Path) -> None:
    scan = Scan(phases=1, slices=3)
    for k, _, ds in scan.images():
        ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        save(ds, tmp_path / f"{k}.dcm")
    np.testing.assert_array_equal(read_dicom(tmp_path).data, scan.voxels[..., 0])


def test_a_constant_series(tmp_path: Path) -> None:
    _alter(_set(PixelData=bytes(70)))(Scan(), tmp_path)
    with pytest.raises(InputError, match="series 5 is constant: every voxel is 0"):
        read_dicom(tmp_path)


def test_too_many_voxels_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = find_dicom(Scan().write(tmp_path))
    assert found.stack is not None
    monkeypatch.setattr("cgdpm_med.volumes.grid.VOXEL_LIMIT", 400)
    monkeypatch.setattr("cgdpm_med.volumes.dicom.stack.read_pixels", lambda image: pytest.fail("was read"))
    with pytest.raises(InputError, match="has 420 voxels"):
        found.stack.read()
    assert VOXEL_LIMIT > 400


def test_the_others_go_on(tmp_path: Path) -> None:
    good = Scan()
    good.write(tmp_path / "good")
    _remove(1)(Scan(series=9), tmp_path / "bad")
    _report(good, tmp_path / "good")
    with pytest.warns(DicomWarning, match="good: holds 1 DICOM objects that are no images"):
        bad, found = find_dicom(tmp_path)
    assert "bad: series 9 lacks 1 of its slices" in str(bad.error)
    assert found.stack is not None
    np.testing.assert_array_equal(found.stack.read().data, good.voxels)


def test_nothing_but_folders_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_dicom(tmp_path) == []
    with pytest.raises(InputError, match="holds no DICOM image"):
        read_dicom(tmp_path)


def test_a_spacing_by_hand_counts_and_is_noted(tmp_path: Path) -> None:
    Scan().write(tmp_path)
    (case,) = find_cases(tmp_path)
    grid = case.read((2.0, 2.0, 9.0)).grid
    stated = case.read("pixdim").grid  # DICOM says it in one place alone
    assert grid.spacing == (2.0, 2.0, 9.0)
    assert stated.spacing == pytest.approx((1.25, 1.75, 10.5))
    assert stated.note is None
    assert grid.note is not None
    assert "2 x 2 x 9 mm was given" in grid.note
    np.testing.assert_allclose(grid.affine[:3, :3] / grid.spacing, stated.affine[:3, :3] / stated.spacing, atol=1e-6)
