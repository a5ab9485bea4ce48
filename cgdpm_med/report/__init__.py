"""Reports as single HTML files that need no network: pictures and style are inside, and scripts are not used.

``templates`` holds the pages and their style, ``rendering`` fills them in; ``case`` and ``cohort`` gather what stands
on the page of a study and of a cohort, ``pictures`` the slices with contours and uncertainty, ``charts`` the curves.
"""

from __future__ import annotations

from pathlib import Path

from cgdpm_med.files import atomic_write
from cgdpm_med.report.case import case_report
from cgdpm_med.report.cohort import cohort_report
from cgdpm_med.report.origin import Provenance, provenance

__all__ = ["Provenance", "case_report", "cohort_report", "provenance", "write_report"]


def write_report(html: str, path: str | Path) -> Path:
    """Write a page, whole or not at all; returns the path."""
    with atomic_write(path) as file:
        file.write(html.encode("utf-8"))
    return Path(path)
