"""A cohort to look through in a browser: one file with pictures, filters and a table that sorts."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cgdpm_med.files import read_failure
from cgdpm_med.report.cohort import cohort_values
from cgdpm_med.report.records import VIEW, finished_studies, links_below
from cgdpm_med.report.rendering import render_page, template_text, write_report
from cgdpm_med.studies.outputs import Provenance
from cgdpm_med.studies.result import StudyResult

_CONTOURS = re.compile(r'<img src="(data:image/png;base64,[A-Za-z0-9+/=]+)" alt="([^"]*), slice \d+, contours"')


def write_view(folder: str | Path) -> dict[str, Any]:
    """Write ``view.html`` of all finished studies below a folder.

    Returns:
        ``studies``, their keys; ``without_picture``, those whose page was not written; ``file``.

    Raises:
        InputError: when there is no finished study, or not all were made with the same settings.
    """
    folder = Path(folder)
    finished = finished_studies(folder)
    pictures = {key: picture for key, page in finished.pages.items() if (picture := middle_picture(page)) is not None}
    html = view_page(finished.results, finished.origin, links_below(folder, finished.pages), pictures)
    file = write_report(html, folder / f"{VIEW}.html")
    keys = sorted(result.key for result in finished.results)
    return {"studies": keys, "without_picture": [key for key in keys if key not in pictures], "file": str(file)}


def middle_picture(page: Path) -> str | None:
    """The middle slice of the first frame with its contours, as a study's own page shows it; None where it shows none.

    Raises:
        InputError: for a page that cannot be read.
    """
    try:
        found = _CONTOURS.findall(page.read_text(encoding="utf-8"))
    except OSError as error:
        raise read_failure(page, error) from error
    first = [picture for picture, frame in found if frame == found[0][1]]
    return str(first[len(first) // 2]) if first else None


def view_page(
    results: Sequence[StudyResult], origin: Provenance, links: Mapping[str, str], pictures: Mapping[str, str]
) -> str:
    """The page.

    Args:
        links: relative address of a study's own page, by its key.
        pictures: data addresses, likewise.
    """
    results = sorted(results, key=lambda result: result.key)
    script = template_text("view.js")
    values = cohort_values(results, origin, "Cohort", links)
    for row, result in zip(values["studies"], results, strict=True):
        row |= {"picture": pictures.get(result.key), "flags": flags_of(result)}
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return render_page("view.html.j2", **values, filters=filters_of(results), script=script, script_digest=digest)


def flags_of(result: StudyResult) -> list[str]:
    """The verdict, and the checks that ask for a review."""
    checks = {finding.check for finding in result.quality.findings if finding.review}
    return [result.quality.status, *sorted(checks)]


def filters_of(results: Sequence[StudyResult]) -> list[tuple[str, str, int]]:
    """Name, text and number of studies of each filter: all, both verdicts, and every check that found something."""
    counts = Counter(flag for result in results for flag in flags_of(result))
    verdicts = [(name, name.capitalize(), counts.pop(name, 0)) for name in ("pass", "review")]
    checks = [(name, name.replace("_", " "), count) for name, count in sorted(counts.items())]
    return [("", "All", len(results)), *verdicts, *checks]
