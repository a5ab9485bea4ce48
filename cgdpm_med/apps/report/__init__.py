"""Reports as single HTML files that need no network: pictures and style are inside, and scripts are not used.

``page`` is the frame and its style, ``pictures`` the slices with contours and uncertainty, ``charts`` the curves, and
``pages`` puts a study and a cohort together.
"""

from __future__ import annotations

from cgdpm_med.apps.report.pages import Provenance, case_report, cohort_report, provenance, write_report

__all__ = ["Provenance", "case_report", "cohort_report", "provenance", "write_report"]
