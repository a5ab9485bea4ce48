"""The page of a cohort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cgdpm_med.inference.labels import DEFAULT_LABELS
from cgdpm_med.report.rendering import render_page
from cgdpm_med.studies.outputs import Provenance
from cgdpm_med.studies.result import StudyResult
from cgdpm_med.studies.task import Task, task_of


def cohort_report(
    results: Sequence[StudyResult],
    origin: Provenance,
    *,
    title: str = "Cohort",
    links: Mapping[str, str] | None = None,
) -> str:
    """The page of a cohort: verdicts, what the task of the first study shows of all, a table.

    Args:
        links: relative address of a study's own page, by its key.
    """
    return render_page("cohort.html.j2", **cohort_values(results, origin, title, links or {}))


def cohort_values(
    results: Sequence[StudyResult], origin: Provenance, title: str, links: Mapping[str, str]
) -> dict[str, Any]:
    """What the template of a cohort's page asks for."""
    task = task_of(results[0].labels if results else DEFAULT_LABELS)
    return {
        "title": f"{title}: {task.title}",
        "heading": title,
        "subject": task.subject[0].upper() + task.subject[1:],
        "headlines": [*_counts(results), *task.cohort_headlines(results)],
        "chart": task.cohort_chart(results),
        "columns": task.cohort_columns(),
        "studies": [_row(result, task, links.get(result.key)) for result in results],
        "origin": origin,
        "task_stylesheet": task.stylesheet(),
    }


def _counts(results: Sequence[StudyResult]) -> list[tuple[str, str, str]]:
    reviews = sum(result.quality.status == "review" for result in results)
    counts = {"Studies": len(results), "Pass": len(results) - reviews, "Review": reviews}
    return [(name, str(count), "") for name, count in counts.items()]


def _row(result: StudyResult, task: Task, link: str | None) -> dict[str, Any]:
    return {
        "key": result.key,
        "link": link,
        "status": result.quality.status,
        "numbers": task.cohort_values(result),
        "reasons": result.quality.reasons,
    }
