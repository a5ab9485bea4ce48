"""The archive's command against a real server: Orthanc with its DICOMweb plug-in, started here on loopback."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("dicomweb_client", reason="the extra 'archive' is not installed")
hd = pytest.importorskip("highdicom", reason="the extra 'archive' is not installed")

from command import run  # noqa: E402
from dicom_scans import PATIENT, Scan  # noqa: E402
from dicomweb_client.api import DICOMwebClient  # noqa: E402
from stubs import Thresholder  # noqa: E402

from cgdpm_med.inference.segmenter import Segmenter  # noqa: E402
from cgdpm_med.volumes.dicom.finding import read_dicom  # noqa: E402

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
USER, SECRET = "reader", "only-on-loopback"
SR, SEG = "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.66.4"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = shutil.which("Orthanc")
    if program is None or not PLUGIN.exists():
        pytest.skip("no Orthanc with DICOMweb here: apt-get install orthanc orthanc-dicomweb")
    folder, port = tmp_path_factory.mktemp("orthanc"), _free_port()
    settings = {
        "Name": "TEST",
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": port,
        "HttpServerEnabled": True,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: SECRET},
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        _wait_for(f"http://127.0.0.1:{port}/system", server, folder / "log")
        yield f"http://127.0.0.1:{port}/dicom-web"
    finally:
        server.terminate()
        server.wait(timeout=60)


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(url, timeout=5)
        except urllib.error.HTTPError:
            return  # it wants credentials: it is there
        except OSError:
            assert server.poll() is None, log.read_text(errors="replace")[-2000:]
            time.sleep(0.1)
        else:
            return
    pytest.fail("Orthanc did not answer within a minute")


@pytest.fixture
def client(orthanc: str) -> DICOMwebClient:
    import requests

    session = requests.Session()
    session.auth = (USER, SECRET)
    return DICOMwebClient(orthanc, session=session)


def test_a_study_of_an_archive_is_segmented_once(
    orthanc: str,
    client: DICOMwebClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scan = Scan(phases=3)
    images = [image for _, _, image in scan.images()]
    for image in images:
        image.preamble = bytes(128)  # without which Orthanc keeps and gives back files that are none
    client.store_instances(images)
    monkeypatch.setattr(Segmenter, "from_bundle", lambda *_, **__: Thresholder())
    monkeypatch.setenv("CGDPM_ARCHIVE_USER", USER)
    monkeypatch.setenv("CGDPM_ARCHIVE_PASSWORD", SECRET)
    arguments = ("archive", orthanc, "--study-date", PATIENT["StudyDate"], "--description", "sax*", "--json")

    assert run(monkeypatch, *arguments) == 0
    out, err = capsys.readouterr()
    assert list(json.loads(out)["stored"].values()) == [4]
    for text in (out, err):
        assert not any(value in text for value in (*PATIENT.values(), scan.study, scan.uid))

    # a SEG for each phase and one report, found beside the images
    segs = _objects(client, scan.study, SEG)
    (report,) = _objects(client, scan.study, SR)
    volume = read_dicom(scan.write(tmp_path / "files")).data
    assert len(segs) == 3
    for t, ds in enumerate(sorted(segs, key=lambda ds: ds.InstanceNumber)):
        bright = volume[..., t] > np.median(volume[..., t])
        np.testing.assert_array_equal(_drawn(ds, client, scan, t, volume.shape[:3]) == 3, bright)
    for ds in (*segs, report):
        assert ds.PatientIdentityRemoved == "YES"
        assert not any(value in str(ds) for value in PATIENT.values())

    # again: nothing is done
    before = _everything(client, scan.study)
    assert run(monkeypatch, *arguments) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["stored"], len(again["skipped"])) == ({}, 1)
    assert _everything(client, scan.study) == before


def test_wrong_credentials_are_one_error(
    orthanc: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Segmenter, "from_bundle", lambda *_, **__: Thresholder())
    monkeypatch.setenv("CGDPM_ARCHIVE_USER", USER)
    monkeypatch.setenv("CGDPM_ARCHIVE_PASSWORD", "a guess")
    assert run(monkeypatch, "archive", orthanc, "--description", "*") == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "CGDPM_ARCHIVE_USER" in line


def _objects(client: DICOMwebClient, study: str, kind: str) -> list[Any]:
    found = client.search_for_instances(study, fields=["SOPClassUID", "SeriesInstanceUID"])
    uids = [(e["0020000E"]["Value"][0], e["00080018"]["Value"][0]) for e in found if e["00080016"]["Value"][0] == kind]
    return [client.retrieve_instance(study, series, uid) for series, uid in uids]


def _everything(client: DICOMwebClient, study: str) -> set[str]:
    return {entry["00080018"]["Value"][0] for entry in client.search_for_instances(study)}


def _drawn(ds: Any, client: DICOMwebClient, scan: Scan, t: int, shape: tuple[int, ...]) -> Any:
    """The labels of a SEG on the voxels of its source, slice by slice."""
    seg = hd.seg.Segmentation.from_dataset(ds)
    entries = client.search_for_instances(scan.study, scan.uid, fields=["InstanceNumber"])
    sources = {int(entry["00200013"]["Value"][0]): entry["00080018"]["Value"][0] for entry in entries}
    mask = np.zeros(shape, dtype=np.uint8)
    for k in range(shape[2]):
        uid = sources[1 + k * scan.phases + t]
        mask[:, :, k] = seg.get_pixels_by_source_instance(
            [uid], combine_segments=True, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
        )[0].T
    return mask
