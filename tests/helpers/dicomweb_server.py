"""A small archive in this process: QIDO, WADO and STOW over HTTP, with faults that can be switched on."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom
from pydicom import Dataset
from pydicom.uid import generate_uid

BOUNDARY = "parts-of-a-test"
Fault = Callable[[str, str], str | None]
"""What is wrong with the answer to a request of this method and path: "401", "503", "drop", "slow", …; or nothing."""


class FakeArchive:
    """What the server holds, and how it misbehaves.

    Attributes:
        objects: files by SOPInstanceUID.
        fault: asked at each request.
        asked: method and path of each request.
        user: "name:password", or nothing for everybody.
    """

    def __init__(self) -> None:
        self.objects: dict[str, Dataset] = {}
        self.fault: Fault = lambda method, path: None
        self.asked: list[tuple[str, str]] = []
        self.user = ""
        self.url = ""

    def add(self, image: Dataset) -> None:
        self.objects[image.SOPInstanceUID] = image

    def of(self, **values: Any) -> list[Dataset]:
        """Objects with these values."""
        return [ds for ds in self.objects.values() if all(ds.get(name) == value for name, value in values.items())]

    def matching(self, study: str, series: str, query: dict[str, str]) -> list[Dataset]:
        uids = {"StudyInstanceUID": study, "SeriesInstanceUID": series}
        return [ds for ds in self.of(**{name: uid for name, uid in uids.items() if uid}) if _fits(ds, query)]


def _fits(ds: Dataset, query: dict[str, str]) -> bool:
    for keyword, wanted in query.items():
        value = str(ds.get(keyword, ""))
        first, dash, last = wanted.partition("-")
        if keyword == "StudyDate" and dash:
            if not first <= value <= last:
                return False
        elif not fnmatchcase(value, wanted):
            return False
    return True


class _Handler(BaseHTTPRequestHandler):
    archive: FakeArchive

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if self._misbehaves("GET", parts.path):
            return
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        offset, limit = int(query.pop("offset", 0)), int(query.pop("limit", 1000))
        query = {name: value for name, value in query.items() if name[0].isupper()}
        place = re.fullmatch(r"(?:/studies/(?P<study>[^/]+))?(?:/series/(?P<series>[^/]+))?(?P<rest>.*)", parts.path)
        assert place is not None
        study, series, rest = place["study"] or "", place["series"] or "", place["rest"]
        found = self.archive.matching(study, series, query)
        if rest == "/series":
            counted = [self._series(uid, found) for uid in dict.fromkeys(ds.SeriesInstanceUID for ds in found)]
            self._json(counted[offset : offset + limit])
        elif rest == "/instances":
            self._json([_header(ds, "SOPInstanceUID", "SeriesInstanceUID") for ds in found][offset : offset + limit])
        elif rest == "/metadata":
            self._json([_without_pixels(ds).to_json_dict() for ds in found])
        else:
            self._multipart(found)

    def do_POST(self) -> None:
        if self._misbehaves("POST", self.path):
            return
        answer = Dataset()
        answer.ReferencedSOPSequence = []
        for ds in self._add_all():
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
            answer.ReferencedSOPSequence.append(item)
        self._json(answer.to_json_dict())

    def _add_all(self) -> list[Dataset]:
        """The objects of a request, which the archive now holds."""
        body = self._body()
        boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])
        assert boundary is not None
        parts = body.split(b"--" + boundary[1].encode())[1:-1]
        found: list[Dataset] = [pydicom.dcmread(BytesIO(part.partition(b"\r\n\r\n")[2][:-2])) for part in parts]
        for ds in found:
            self.archive.add(ds)
        return found

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _misbehaves(self, method: str, path: str) -> bool:
        self.archive.asked.append((method, path))
        fault = self.archive.fault(method, path)
        needed = "Basic " + base64.b64encode(self.archive.user.encode()).decode()
        if self.archive.user and self.headers.get("Authorization") != needed:
            fault = "401"
        if fault is None:
            return False
        if fault.isdecimal():
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif fault == "drop":
            self._start("multipart/related", 100_000)
            self.wfile.write(b"--half an ans")
        elif fault == "slow":
            self._start("application/dicom+json", 100_000)
            for _ in range(100):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.05)
        elif fault == "nonsense":
            self._send("application/dicom+json", b"<html>welcome</html>")
        elif fault == "other study":
            other = [ds for ds in self.archive.objects.values() if ds.StudyInstanceUID not in path]
            self._multipart(other)
        elif fault == "one less":
            self._multipart(self.archive.of(SeriesInstanceUID=path.rpartition("/")[2])[1:])
        elif fault == "other series":
            others = [ds for ds in self.archive.objects.values() if ds.StudyInstanceUID not in path]
            self._json([self._series(ds.SeriesInstanceUID, [ds]) for ds in others[:1]])
        elif fault == "drop half taken":
            self.rfile.read(100)
        elif fault == "drop once stored":
            self._add_all()
        elif fault == "refuse":
            answer = Dataset()
            answer.FailedSOPSequence = [Dataset()]
            self._body()
            self._json(answer.to_json_dict())
        self.close_connection = True
        return True

    def _series(self, uid: str, found: list[Dataset]) -> dict[str, Any]:
        of_series = [ds for ds in found if ds.SeriesInstanceUID == uid]
        header = _header(of_series[0], "StudyInstanceUID", "SeriesInstanceUID", "StudyDate", "SeriesDescription")
        header |= _header(of_series[0], "Modality")
        return {**header, "00201209": {"vr": "IS", "Value": [len(of_series)]}}

    def _multipart(self, found: list[Dataset]) -> None:
        body = b""
        for ds in found:
            file = BytesIO()
            ds.save_as(file, enforce_file_format=True)
            body += f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode() + file.getvalue() + b"\r\n"
        self._send(
            f'multipart/related; type="application/dicom"; boundary={BOUNDARY}', body + f"--{BOUNDARY}--\r\n".encode()
        )

    def _json(self, value: Any) -> None:
        self._send("application/dicom+json", json.dumps(value).encode())

    def _send(self, kind: str, body: bytes) -> None:
        self._start(kind, len(body))
        self.wfile.write(body)

    def _start(self, kind: str, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.end_headers()


def _without_pixels(ds: Dataset) -> Dataset:
    bare = Dataset()
    bare.update({element.tag: element for element in ds if element.keyword != "PixelData"})
    return bare


def _header(ds: Dataset, *keywords: str) -> dict[str, Any]:
    header = Dataset()
    for keyword in keywords:
        setattr(header, keyword, ds.get(keyword, ""))
    return header.to_json_dict()


@contextmanager
def serving() -> Iterator[FakeArchive]:
    """An archive on loopback."""
    archive = FakeArchive()
    handler = type("Handler", (_Handler,), {"archive": archive})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    archive.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield archive
    finally:
        server.shutdown()
        server.server_close()


def other_study(ds: Dataset) -> Dataset:
    """The same image as another study's."""
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    return ds
