"""An archive that speaks DICOMweb: search, fetch and store, where every fault is one clear error that names nobody.

Needs dicomweb-client (``pip install 'cgdpm-med[archive]'``).
"""

from __future__ import annotations

import csv
import hashlib
import logging
import os
import queue
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from cgdpm_med.files import InputError, read_failure

Result = TypeVar("Result")

TOKEN, USER, PASSWORD = "CGDPM_ARCHIVE_TOKEN", "CGDPM_ARCHIVE_USER", "CGDPM_ARCHIVE_PASSWORD"
"""Variables of the environment by which one gives credentials."""

_FIELDS = ["StudyInstanceUID", "SeriesInstanceUID", "StudyDate", "SeriesDescription", "Modality"]
_FIELDS += ["NumberOfSeriesRelatedInstances"]
_LATER = "Try again later; what was stored is complete"


# --- what is looked for -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """Which MR series of an archive.

    Attributes:
        date: of the study, YYYYMMDD or YYYYMMDD-YYYYMMDD.
        description: of the series, with ``*`` and ``?``.
        study, series: their UIDs, where they are known.
        name: of this question in errors.
    """

    date: str | None = None
    description: str | None = None
    study: str = ""
    series: str = ""
    name: str = "search"

    def filters(self) -> dict[str, str]:
        """Of a search. Descriptions are compared here: servers differ in how they read an encoded ``*``."""
        asked = {"Modality": "MR", "StudyDate": self.date, "SeriesInstanceUID": self.series}
        return {name: value for name, value in asked.items() if value}

    def fits(self, entry: Series) -> bool:
        """Whether an answer is one to this question: servers may know no filter, and none may tell what it left out."""
        first, _, last = (self.date or "").partition("-")
        dated = not (self.date and entry.date) or (first or "0") <= entry.date <= (last or first or "9")
        described = not self.description or fnmatchcase(entry.description.lower(), self.description.lower())
        return entry.modality in ("", "MR") and dated and described


@dataclass(frozen=True)
class Series:
    """What a search tells of a series."""

    study: str
    uid: str
    date: str = ""
    description: str = ""
    modality: str = ""
    images: int = 0


def digest(uid: str) -> str:
    """What stands for a UID wherever it could be read by others: 12 digits of its SHA-256."""
    return hashlib.sha256(uid.encode()).hexdigest()[:12]


def read_uids(path: Path) -> list[Wanted]:
    """A question for each row of a CSV with the column StudyInstanceUID and, for parts of studies, SeriesInstanceUID.

    Raises:
        InputError: there is no such file, no such column, or a row without a study.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise read_failure(path, error) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError("is no CSV in UTF-8", path=path, remedy="Export it again as CSV") from error
    found = [
        Wanted(study=_text(row, _FIELDS[0]), series=_text(row, _FIELDS[1]), name=f"line {number}")
        for number, row in enumerate(rows, start=2)
    ]
    remedy = "Name the columns StudyInstanceUID and SeriesInstanceUID, and give a UID for each study"
    bad = next((row.name for row in found if not re.fullmatch(r"[0-9.]+", row.study)), None)
    bad = bad or next((row.name for row in found if not re.fullmatch(r"[0-9.]*", row.series)), None)
    if bad or not found:
        raise InputError(f"{bad} has a UID that is none" if bad else "has no rows", path=path, remedy=remedy)
    return found


def _text(row: Mapping[str, str | None], column: str) -> str:
    return (row.get(column) or "").strip()


# --- the archive ------------------------------------------------------------------------------------------------------


class Archive:
    """A DICOMweb server.

    Args:
        url: of the service, such as ``https://pacs/dicom-web``; credentials come from ``environment``.
        seconds: that one request may take, from its first byte to its last.
        tries: of a request that is answered with 503 or not at all.
        pause: in s, before the second try; it doubles with each.

    Raises:
        InputError: dicomweb-client is missing, or the address is none.
    """

    def __init__(
        self,
        url: str,
        *,
        seconds: float = 600,
        tries: int = 4,
        pause: float = 1.0,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        _check_address(url)
        if find_spec("dicomweb_client") is None:
            raise InputError("archive needs dicomweb-client", remedy="Install it: pip install 'cgdpm-med[archive]'")
        from dicomweb_client.api import DICOMwebClient

        for name in ("dicomweb_client", "urllib3", "retrying"):  # which would log addresses with UIDs in them
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        warnings.filterwarnings("ignore", module="dicomweb_client")
        self.seconds = seconds
        self.client = DICOMwebClient(
            url, session=_session(environment), timeout=min(30.0, seconds), permissive_uid=True
        )
        self.client.set_http_retry_params(max_attempts=tries, wait_exponential_multiplier=int(pause * 500))

    def search(self, wanted: Wanted) -> list[Series]:
        """Series that fit, each once, sorted by study.

        Raises:
            InputError: the server cannot be asked, or answers with another study.
        """
        entries = self._ask(
            lambda: self.client.search_for_series(
                wanted.study or None, search_filters=wanted.filters(), fields=_FIELDS, get_remaining=True
            )
        )
        found = {entry.uid: entry for entry in map(_series, entries) if wanted.fits(entry)}
        if any(wanted.study not in ("", e.study) or wanted.series not in ("", e.uid) for e in found.values()):
            raise InputError("the archive answers with another study than it was asked for", remedy=_LATER)
        return sorted(found.values(), key=lambda entry: (entry.study, entry.uid))

    def evidence(self, study: str, description: str) -> list[Any]:
        """The headers of the structured reports in series of this description.

        Raises:
            InputError: the server cannot be asked.
        """
        filters = {"Modality": "SR"}
        entries = self._ask(
            lambda: self.client.search_for_series(study, search_filters=filters, fields=_FIELDS, get_remaining=True)
        )
        headers = []
        for entry in map(_series, entries):
            if entry.modality == "SR" and entry.description == description:
                headers += self._ask(partial(self.client.retrieve_series_metadata, study, entry.uid))
        return [_dataset(header) for header in headers]

    def fetch(self, series: Series, folder: Path, first: int = 0) -> int:
        """Write the images of a series into a folder, under numbers from ``first``; returns how many.

        Raises:
            InputError: the server cannot be asked, it answers with other images, or not with all.
        """
        expected = self._ask(
            lambda: self.client.search_for_instances(
                series.study, series.uid, fields=["SOPInstanceUID"], get_remaining=True
            )
        )
        images = self._ask(
            lambda: list(self.client.iter_series(series.study, series.uid, media_types=(("application/dicom", "*"),)))
        )
        if any((image.StudyInstanceUID, image.SeriesInstanceUID) != (series.study, series.uid) for image in images):
            raise InputError("the archive answers with another study than it was asked for", remedy=_LATER)
        named = {str(_dataset(entry).SOPInstanceUID) for entry in expected}
        missing = named - {str(image.SOPInstanceUID) for image in images}
        if missing or not images:
            what = f"{len(missing) or 'no'} of {len(named)} images of a series did not come"
            raise InputError(what, remedy=_LATER)
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images, start=first):
            image.save_as(folder / f"{number:05d}.dcm", enforce_file_format=True)
        return len(images)

    def store(self, files: Sequence[Path]) -> None:
        """Store objects; those of a first try that went through are stored again, as the same objects.

        Raises:
            InputError: the server cannot be asked, or did not take each of them.
        """
        from pydicom import dcmread

        objects = [dcmread(path) for path in files]
        answer = self._ask(lambda: self.client.store_instances(objects))
        refused = len(answer.get("FailedSOPSequence") or ())
        if refused:
            remedy = "Ask whoever runs the archive whether it takes DICOM SEG and structured reports"
            raise InputError(f"the archive refused {refused} of {len(objects)} objects", remedy=remedy)

    def _ask(self, question: Callable[[], Result]) -> Result:
        with _told_plainly():
            return within(self.seconds, question)


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"{url!r} is no address of a DICOMweb service", remedy="Give https://HOST/dicom-web")
    if parts.username or parts.password:
        raise InputError(
            "an address with credentials would stand in logs", remedy=f"Set {TOKEN}, or {USER} and {PASSWORD}"
        )


def _session(environment: Mapping[str, str]) -> Any:
    import requests

    session = requests.Session()
    if environment.get(TOKEN):
        session.headers["Authorization"] = f"Bearer {environment[TOKEN]}"
    elif environment.get(USER):
        session.auth = (environment[USER], environment.get(PASSWORD, ""))
    return session


def _dataset(entry: Mapping[str, Any]) -> Any:
    from pydicom import Dataset

    return Dataset.from_json(dict(entry))


def _series(entry: Mapping[str, Any]) -> Series:
    told = _dataset(entry)
    values: list[Any] = [str(told.get(keyword) or "") for keyword in _FIELDS[:5]]
    return replace(Series(*values), images=int(told.get("NumberOfSeriesRelatedInstances") or 0))


# --- faults -----------------------------------------------------------------------------------------------------------


def within(seconds: float, work: Callable[[], Result]) -> Result:
    """What ``work`` gives, unless that takes too long: bytes that trickle in never end a socket's own patience.

    Raises:
        TimeoutError: it did; the work is left alone, and ends with the process at the latest.
    """
    answers: queue.Queue[tuple[bool, Any]] = queue.Queue()

    def run() -> None:
        try:
            answers.put((True, work()))
        except BaseException as error:
            answers.put((False, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        well, answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if not well:
        raise answer
    return answer  # type: ignore[no-any-return]


@contextmanager
def _told_plainly() -> Iterator[None]:
    """Errors of the network without their addresses, which hold UIDs."""
    import requests
    from retrying import RetryError

    try:
        yield
    except InputError:
        raise
    except requests.HTTPError as error:
        raise _refusal(0 if error.response is None else error.response.status_code) from None
    except RetryError:
        raise _refusal(503) from None
    except (TimeoutError, requests.Timeout):
        what = "the archive was too slow with an answer"
        raise InputError(what, remedy=f"Give it more with --seconds. {_LATER}") from None
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
        raise InputError("the connection to the archive was lost, or there was none", remedy=_LATER) from None
    except Exception as error:  # pydicom's and the client's own, which may quote a header
        what = f"the archive's answer is not DICOM ({type(error).__name__})"
        raise InputError(what, remedy="Check the address, and that the server speaks DICOMweb") from None


def _refusal(status: int) -> InputError:
    if status in (401, 403):
        return InputError(
            f"the archive refuses these credentials ({status})", remedy=f"Set {TOKEN}, or {USER} and {PASSWORD}"
        )
    if status == 404:
        return InputError("the archive has no such thing (404)", remedy="Check the address and the UIDs")
    if status in (408, 429, 503, 504):
        return InputError(f"the archive is busy ({status}), time after time", remedy=_LATER)
    return InputError(f"the archive answers with an error ({status})", remedy=_LATER)
