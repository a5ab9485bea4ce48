"""Tables of a study as plain text: what a page, whichever task fills it, shows of volumes."""

from __future__ import annotations

from typing import Any, TypedDict

from cgdpm_med.inference.labels import Labels
from cgdpm_med.metrics.volumetry import Estimate, FrameVolumes, interval_estimate
from cgdpm_med.studies.result import StudyResult
from cgdpm_med.tables.numbers import MISSING, format_interval, format_number


class Table(TypedDict):
    """A head, rows of text, and a note below."""

    head: list[str]
    rows: list[list[str]]
    note: str


class Section(TypedDict):
    """Part of a page: its title and tables."""

    title: str
    tables: list[Table]


class Chart(TypedDict):
    """Part of a page: its title, the drawing as HTML, and a note below."""

    title: str
    chart: str
    note: str


def volume_section(result: StudyResult) -> Section:
    """Volumes of every label in every frame."""
    tables = [_volume_table(number, volumes, result.labels) for number, volumes in result.volumes.items()]
    return {"title": "Volumes", "tables": tables}


def _volume_table(number: int, volumes: FrameVolumes, labels: Labels) -> Table:
    rows = [
        [name, *estimate_cells(interval_estimate(volumes.combined[label], volumes.members[:, label], floor=0.0), "ml")]
        for label, name in labels.by_number.items()
    ]
    head = [f"Frame {number}", "Volume", "90 % interval"]
    return {"head": head, "rows": rows, "note": interval_note(len(volumes.members))}


def estimate_cells(estimate: Estimate, unit: str) -> list[str]:
    """A value with its unit, and its interval."""
    interval = format_interval(estimate.lower, estimate.upper)
    return [format_number(estimate.value, 1, unit=unit), interval or MISSING]


def interval_note(members: int, calibrated: bool = False) -> str:
    """Where intervals come from."""
    if members < 2:
        return "One member gives no intervals."
    origin = f"Intervals come from the {members} members, each measured by itself"
    if not calibrated:
        return f"{origin}; they are not calibrated, and usually too short."
    return f"{origin}, widened so as to cover the truth that often in patients who were measured by hand."


# --- of a cohort ------------------------------------------------------------------------------------------------------


def volume_columns(labels: Labels) -> list[str]:
    """Headings of the labels."""
    return [f"{name} (ml)" for name in labels.names]


def volume_values(result: StudyResult) -> list[tuple[str, str]]:
    """Of each label in the first frame, without intervals."""
    first = result.volumes[min(result.volumes)]
    return [(format_number(ml, 1), "") for ml in first.combined[1:]]


def volume_row(result: StudyResult) -> dict[str, Any]:
    """The study in a table: volumes in the first frame, verdict and reasons."""
    combined = result.volumes[min(result.volumes)].combined
    by_name = {f"{name}_ml": float(combined[label]) for label, name in result.labels.by_number.items()}
    return {"case": result.key, "frames": len(result.volumes), **by_name, **verdict(result)}


def verdict(result: StudyResult) -> dict[str, str]:
    """Columns with the checks' verdict and reasons."""
    return {"quality": result.quality.status, "reasons": "; ".join(result.quality.reasons)}
