"""Studies fetched from an archive, segmented and stored there: against a small server of the tests' own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("dicomweb_client", reason="the extra 'archive' is not installed")
hd = pytest.importorskip("highdicom", reason="the extra 'archive' is not installed")

from dicom_scans import PATIENT, Scan  # noqa: E402
from dicomweb_server import FakeArchive, serving  # noqa: E402
from pydicom import Dataset, dcmread  # noqa: E402
from rich.console import Console  # noqa: E402
from stubs import Thresholder  # noqa: E402
from studies import volumes  # noqa: E402

from cgdpm_med.apps.archive import ArchiveRun, questions  # noqa: E402
from cgdpm_med.apps.dicomweb import Archive, Wanted, digest, read_uids  # noqa: E402
from cgdpm_med.apps.segment_options import Options  # noqa: E402
from cgdpm_med.apps.structured_report import write_report_object  # noqa: E402
from cgdpm_med.apps.study_run import model_of  # noqa: E402
from cgdpm_med.console import CaseBar  # noqa: E402
from cgdpm_med.files import InputError  # noqa: E402
from cgdpm_med.inference.quality import Finding, Quality  # noqa: E402
from cgdpm_med.studies.result import StudyResult  # noqa: E402
from cgdpm_med.studies.task import task_of  # noqa: E402
from cgdpm_med.volumes.dicom.finding import find_dicom, read_dicom  # noqa: E402

ALL = [Wanted()]


@pytest.fixture
def archive() -> Iterator[FakeArchive]:
    with serving() as found:
        yield found


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders go, so that a test sees what is left of them."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def upload(archive: FakeArchive, *scans: Scan, **values: Any) -> None:
    for scan in scans:
        for _, _, image in scan.images():
            for keyword, value in values.items():
                setattr(image, keyword, value)
            image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
            image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
            archive.add(image)


def runner(archive: FakeArchive, identity: Any = "deidentified", seconds: float = 60, **environment: str) -> ArchiveRun:
    server = Archive(archive.url, seconds=seconds, tries=3, pause=0.01, environment=environment)
    model = model_of(Thresholder(), Options(write=("mask",), pages=False, dicom_seg=identity))
    return ArchiveRun(server, model, identity, CaseBar("segmenting", [], Console(stderr=True)))


def stored(archive: FakeArchive, modality: str) -> list[Dataset]:
    return archive.of(Modality=modality)


def test_a_measurement_names_the_images_of_its_phase(tmp_path: Path) -> None:
    (found,) = find_dicom(Scan(phases=3).write(tmp_path / "scan"))
    stack = found.stack
    assert stack is not None
    of_phase = [{of_slice[t].instance_uid for of_slice in stack.images} for t in range(3)]
    result = StudyResult(
        "a", {n: volumes(lv) for n, lv in ((1, 90.0), (2, 60.0), (3, 40.0))}, Quality(), {"ED": 1, "ES": 3}
    )
    result = replace(result, function=task_of(result.labels).measure({"ED": volumes(90.0), "ES": volumes(40.0)}))
    report = hd.sr.ComprehensiveSR.from_dataset(dcmread(write_report_object(result, stack, tmp_path / "sr.dcm")))
    cited = {}
    for group in report.content.get_image_measurement_groups():
        images = {item.value[1] for item in group if item.value_type == hd.sr.ValueTypeValues.IMAGE}
        cited[group.tracking_identifier] = images or {
            item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
            for item in group[0].ContentSequence
            if item.ValueType == "IMAGE"
        }
    said = [evaluation.value.meaning for evaluation in group.get_qualitative_evaluations()]
    assert said == ["no check complains"]
    assert cited["LV ED"] == of_phase[0]
    assert cited["LV ES"] == of_phase[2]
    assert cited["function"] == of_phase[0] | of_phase[2]


def test_no_number_stands_without_its_verdict(tmp_path: Path) -> None:
    (found,) = find_dicom(Scan(phases=2).write(tmp_path / "scan"))
    stack = found.stack
    assert stack is not None
    quality = Quality(
        (Finding("ejection fraction", "LV ejection fraction of -50.0 % lies outside"), Finding("n", "", False))
    )
    result = StudyResult("a", {1: volumes(90.0), 2: volumes(40.0)}, quality, {"ED": 1, "ES": 2})
    report = hd.sr.ComprehensiveSR.from_dataset(dcmread(write_report_object(result, stack, tmp_path / "sr.dcm")))
    groups = report.content.get_image_measurement_groups()
    assert len(groups) == 6
    for group in groups:
        said = [evaluation.value.meaning for evaluation in group.get_qualitative_evaluations()]
        assert said == ["to be looked at by a person", "ejection fraction"]
    other = dcmread(write_report_object(replace(result, quality=Quality()), stack, tmp_path / "other.dcm"))
    assert other.SOPInstanceUID != report.SOPInstanceUID


# --- what is stored ---------------------------------------------------------------------------------------------------


def test_masks_and_measures_come_to_lie_beside_their_images_once(
    archive: FakeArchive, tmp_path: Path, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, other = Scan(phases=3), Scan(phases=1, seed=3, series=9)
    upload(archive, scan, other)
    run = runner(archive)
    run.once(ALL)
    assert run.outcome.failed == {}
    assert run.outcome.stored == {digest(scan.study): 4, digest(other.study): 2}

    # the masks are those of the images, frame by frame
    segs = sorted(archive.of(Modality="SEG", StudyInstanceUID=scan.study), key=lambda ds: ds.InstanceNumber)
    volume = read_dicom(scan.write(tmp_path / "files")).data
    for t, ds in enumerate(segs):
        seg = hd.seg.Segmentation.from_dataset(ds)
        drawn = np.zeros(volume.shape[:3], dtype=np.uint8)
        bright = volume[..., t] > np.median(volume[..., t])
        for k in range(volume.shape[2]):
            uid = next(i.SOPInstanceUID for i in archive.of(InstanceNumber=1 + k * 3 + t, StudyInstanceUID=scan.study))
            found = seg.get_pixels_by_source_instance([uid], combine_segments=True, ignore_spatial_locations=True)
            drawn[:, :, k] = found[0].T
        np.testing.assert_array_equal(drawn == 3, bright)

    # the report has the volumes of the phases and the function
    (report,) = archive.of(Modality="SR", StudyInstanceUID=scan.study)
    content = hd.sr.ComprehensiveSR.from_dataset(report).content
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    names = {m.name.meaning: m.value for g in content.get_image_measurement_groups() for m in g.get_measurements()}
    assert names["Left Ventricular ED Volume"] >= names["Left Ventricular ES Volume"] > 0

    # a second run does nothing, and nothing is left on disk or was said of the patient
    before = dict(archive.objects)
    again = runner(archive)
    again.once(ALL)
    assert sorted(again.outcome.skipped) == sorted([digest(scan.study), digest(other.study)])
    assert (again.outcome.stored, archive.objects) == ({}, before)
    assert not any(path == "POST" for path, _ in archive.asked[-6:])
    assert list(scratch.iterdir()) == []
    said = "".join(capsys.readouterr())
    assert not any(text in said for text in (*PATIENT.values(), scan.study, scan.uid))


@pytest.mark.parametrize("identity", ["deidentified", "identified"])
def test_what_is_stored_names_the_patient_only_if_asked(archive: FakeArchive, identity: str) -> None:
    upload(archive, Scan(phases=1))
    runner(archive, identity).once(ALL)
    (seg,), (report,) = stored(archive, "SEG"), stored(archive, "SR")
    for ds in (seg, report):
        text = str(ds)
        assert (PATIENT["PatientID"] in text) == (PATIENT["PatientName"] in text) == (identity == "identified")
        assert not any(value in text for value in (PATIENT["InstitutionName"], PATIENT["SeriesDescription"]))
        if identity == "deidentified":
            assert not any(value in text for value in PATIENT.values())
            assert ds.PatientIdentityRemoved == "YES"
    other = runner(archive, "identified" if identity == "deidentified" else "deidentified")
    other.once(ALL)
    assert list(other.outcome.stored.values()) == [2]  # these are other objects


def test_series_are_found_by_day_description_and_uid(archive: FakeArchive, tmp_path: Path) -> None:
    days = ("20230101", "20230615", "20231231")
    scans = [Scan(phases=1, seed=n, slices=3) for n in range(3)]
    for day, scan in zip(days, scans, strict=True):
        upload(archive, scan, StudyDate=day, SeriesDescription=f"cine sax {day}")
    server = Archive(archive.url, environment={})

    def found(**wanted: str) -> set[str]:
        return {entry.study for entry in server.search(Wanted(**wanted))}

    first, second, third = (scan.study for scan in scans)
    assert found() == {first, second, third}
    assert found(date="20230615") == {second}
    assert found(date="20230101-20230701") == {first, second}
    assert found(description="*sax*1231") == {third}
    assert found(study=second) == found(study=second, series=scans[1].uid) == {second}

    table = tmp_path / "uids.csv"
    table.write_text(f"StudyInstanceUID,SeriesInstanceUID\n{second},\n{third},{scans[2].uid}\n1.2.3,\n")
    run = runner(archive)
    run.once(questions(None, None, read_uids(table)))
    assert set(run.outcome.stored) == {digest(second), digest(third)}
    assert list(run.outcome.failed) == ["line 4"]


@pytest.mark.parametrize("text", ["", "StudyInstanceUID\n", "Study\n1.2\n", "StudyInstanceUID\nDoe\n", "\xff"])
def test_a_table_without_uids(text: str, tmp_path: Path) -> None:
    (tmp_path / "uids.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"uids\.csv"):
        read_uids(tmp_path / "uids.csv")


# --- faults -----------------------------------------------------------------------------------------------------------


def at(method: str, ending: str, fault: str, times: int = 99) -> Any:
    """The fault at requests of this method whose path ends so."""
    left = [times]

    def asked(of: str, path: str) -> str | None:
        if of != method or not path.endswith(ending) or left[0] == 0:
            return None
        left[0] -= 1
        return fault

    return asked


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("401", "credentials"),
        ("403", "credentials"),
        ("404", "404"),
        ("503", "busy"),
        ("500", "500"),
        ("drop", "lost"),
        ("nonsense", "not DICOM"),
    ],
)
def test_a_search_that_fails(archive: FakeArchive, fault: str, says: str) -> None:
    upload(archive, Scan(phases=1))
    archive.fault = at("GET", "/series", fault)
    run = runner(archive)
    run.once(ALL)
    assert says in run.outcome.failed["search"]
    assert len([path for path in archive.asked if path == ("GET", "/series")]) <= 3


def test_a_server_that_is_busy_for_a_moment(archive: FakeArchive) -> None:
    scan = Scan(phases=1)
    upload(archive, scan)
    archive.fault = at("GET", "/series", "503", times=2)
    run = runner(archive)
    run.once(ALL)
    assert (run.outcome.failed, run.outcome.stored) == ({}, {digest(scan.study): 2})


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("401", "credentials"),
        ("404", "404"),
        ("503", "busy"),
        ("drop", "lost"),
        ("slow", "slow"),
        ("other study", "another study"),
        ("one less", "1 of 4 images"),
    ],
)
def test_one_study_that_cannot_be_fetched(archive: FakeArchive, fault: str, says: str, scratch: Path) -> None:
    bad, good = Scan(phases=1), Scan(phases=1, seed=1)
    upload(archive, bad, good)
    archive.fault = at("GET", f"/series/{bad.uid}", fault)
    run = runner(archive, seconds=1 if fault == "slow" else 60)
    run.once(ALL)
    assert list(run.outcome.failed) == [digest(bad.study)]
    assert says in run.outcome.failed[digest(bad.study)]
    assert bad.study not in run.outcome.failed[digest(bad.study)]
    assert run.outcome.stored == {digest(good.study): 2}
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("401", "credentials"),
        ("404", "404"),
        ("503", "busy"),
        ("drop", "lost"),
        ("drop half taken", "lost"),
        ("drop once stored", "lost"),
        ("slow", "slow"),
        ("refuse", "refused 1 of 1"),
    ],
)
@pytest.mark.parametrize("moment", [0, 1], ids=["masks", "report"])
def test_a_store_that_fails_is_done_again_by_the_next_run(
    archive: FakeArchive, fault: str, says: str, moment: int
) -> None:
    scan = Scan(phases=1)
    upload(archive, scan)
    posts = [0]

    def asked(method: str, path: str) -> str | None:
        posts[0] += method == "POST"
        return fault if method == "POST" and posts[0] > moment else None

    archive.fault = asked
    run = runner(archive, seconds=2 if fault == "slow" else 60)
    run.once(ALL)
    assert says in run.outcome.failed[digest(scan.study)]
    assert len(stored(archive, "SR")) == (fault == "drop once stored" and moment == 1)
    archive.fault = lambda method, path: None
    again = runner(archive)
    again.once(ALL)
    assert again.outcome.failed == {}
    assert (len(stored(archive, "SEG")), len(stored(archive, "SR"))) == (1, 1)


def test_a_search_that_is_answered_with_another_study(archive: FakeArchive, tmp_path: Path) -> None:
    asked, other = Scan(phases=1), Scan(phases=1, seed=1)
    upload(archive, asked, other)
    archive.fault = at("GET", f"/studies/{asked.study}/series", "other series")
    run = runner(archive)
    run.once([Wanted(study=asked.study, name="line 2"), Wanted(study=other.study, name="line 3")])
    assert list(run.outcome.failed) == ["line 2"]
    assert "another study" in run.outcome.failed["line 2"]
    assert run.outcome.stored == {digest(other.study): 2}


def test_credentials_come_from_the_environment(archive: FakeArchive) -> None:
    scan = Scan(phases=1)
    upload(archive, scan)
    archive.user = "reader:secret"
    wrong = runner(archive, CGDPM_ARCHIVE_USER="reader", CGDPM_ARCHIVE_PASSWORD="guess")
    wrong.once(ALL)
    assert "CGDPM_ARCHIVE_TOKEN" in wrong.outcome.failed["search"]
    assert "guess" not in wrong.outcome.failed["search"]
    right = runner(archive, CGDPM_ARCHIVE_USER="reader", CGDPM_ARCHIVE_PASSWORD="secret")
    right.once(ALL)
    assert right.outcome.stored == {digest(scan.study): 2}


@pytest.mark.parametrize("url", ["localhost:8042", "ftp://host", "http://", "http://me:secret@host/dicom-web"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(InputError):
        Archive(url, environment={})


# --- watching ---------------------------------------------------------------------------------------------------------


def test_a_watch_waits_until_a_study_is_complete(archive: FakeArchive) -> None:
    scan = Scan(phases=1, slices=4)
    images = [image for _, _, image in scan.images()]
    upload(archive, scan)
    whole = list(archive.objects.items())
    archive.objects = dict(whole[:2])
    arrivals = [dict(whole[:3]), dict(whole), {}, {}]

    def sleep(seconds: float) -> None:
        assert stored(archive, "SR") == [] or len(arrivals) < 2
        archive.objects |= arrivals.pop(0)

    run = runner(archive)
    run.watch(ALL, polls=5, seconds=60, sleep=sleep)
    assert len(images) == 4
    assert run.outcome.stored == {digest(scan.study): 2}
    assert run.outcome.failed == {}


def test_a_watch_tries_what_fails_three_times(archive: FakeArchive) -> None:
    scan = Scan(phases=1)
    upload(archive, scan)
    archive.fault = at("GET", f"/series/{scan.uid}", "404")
    run = runner(archive)
    run.watch(ALL, polls=8, seconds=1, sleep=lambda seconds: None)
    assert len([path for method, path in archive.asked if path.endswith(f"/series/{scan.uid}")]) == 3
    assert list(run.outcome.failed) == [digest(scan.study)]
