"""The page of a cohort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from cgdpm_med.heart.function import MEASURES, Estimate
from cgdpm_med.inference.labels import ACDC, Labels
from cgdpm_med.report.charts import ejection_chart
from cgdpm_med.report.headlines import HEADLINES, page_title, subject
from cgdpm_med.report.rendering import render_page
from cgdpm_med.studies.outputs import Provenance
from cgdpm_med.studies.study import StudyResult
from cgdpm_med.tables.numbers import MISSING, format_interval, format_number


def cohort_report(
    results: Sequence[StudyResult],
    origin: Provenance,
    *,
    title: str = "Cohort",
    links: Mapping[str, str] | None = None,
) -> str:
    """The page of a cohort: verdicts, ejection fractions, a table.

    Args:
        links: relative address of a study's own page, by its key.
    """
    labels = results[0].labels if results else ACDC
    ejection_fractions = [(r.key, r.function.measures["lv_ef"]) for r in results if r.function is not None]
    return render_page(
        "cohort.html.j2",
        title=page_title(title, labels),
        heading=title,
        subject=subject(labels),
        headlines=_headlines(results, ejection_fractions, labels),
        chart=ejection_chart(ejection_fractions) if labels.cardiac else "",
        columns=_columns(labels),
        studies=[_row(result, labels, (links or {}).get(result.key)) for result in results],
        origin=origin,
    )


def _headlines(
    results: Sequence[StudyResult], ejection_fractions: Sequence[tuple[str, Estimate]], labels: Labels
) -> list[tuple[str, str, str]]:
    reviews = sum(result.quality.status == "review" for result in results)
    counts = {"Studies": len(results), "Pass": len(results) - reviews, "Review": reviews}
    headlines = [(name, str(count), "") for name, count in counts.items()]
    if labels.cardiac:
        known = [e.value for _, e in ejection_fractions if e.value is not None]
        headlines.append(("Median LV EF", format_number(median(known) if known else None, 0, unit="%"), ""))
    return headlines


def _columns(labels: Labels) -> list[str]:
    if labels.cardiac:
        return [f"{_short_name(name)} ({MEASURES[name].unit})" for name in HEADLINES]
    return [f"{name} (ml)" for name in labels.names]


def _short_name(measure: str) -> str:
    chamber, _, what = measure.partition("_")
    return "Mass" if measure == "myo_mass" else f"{chamber.upper()} {what.upper()}"


def _row(result: StudyResult, labels: Labels, link: str | None) -> dict[str, Any]:
    return {
        "key": result.key,
        "link": link,
        "status": result.quality.status,
        "numbers": _measures(result) if labels.cardiac else _volumes(result),
        "reasons": result.quality.reasons,
    }


def _measures(result: StudyResult) -> list[tuple[str, str]]:
    """Values and intervals of the columns."""
    if result.function is None:
        return [(MISSING, "")] * len(HEADLINES)
    estimates = [result.function.measures[name] for name in HEADLINES]
    return [
        (format_number(e.value, 0), "" if e.value is None else format_interval(e.lower, e.upper, digits=0))
        for e in estimates
    ]


def _volumes(result: StudyResult) -> list[tuple[str, str]]:
    """Of each label in the first frame, without intervals."""
    first = result.volumes[min(result.volumes)]
    return [(format_number(ml, 1), "") for ml in first.combined[1:]]
