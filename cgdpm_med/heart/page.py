"""What pages show of the heart: function, the beat as a curve, ejection fractions of a cohort."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median

from cgdpm_med.heart.charts import TEMPLATES, ejection_chart, volume_chart
from cgdpm_med.heart.function import MEASURES, MYOCARDIAL_DENSITY, volume_curve
from cgdpm_med.heart.structures import HeartLabels
from cgdpm_med.inference.labels import Labels
from cgdpm_med.metrics.volumetry import FrameVolumes
from cgdpm_med.report.rendering import render
from cgdpm_med.studies.measures import Measurements
from cgdpm_med.studies.sections import Chart, Section, Table, estimate_cells, interval_note
from cgdpm_med.tables.numbers import MISSING, format_interval, format_number

HEADLINES = ("lv_ef", "lv_edv", "lv_esv", "rv_ef", "myo_mass")
"""The measures that a reader looks for first."""

_ON_WHITE = {"#4aa3ff": "#1f78d1", "#59d66f": "#2f8f45", "#ff5a4f": "#d93a30"}
"""Darker tones of the usual contours' colours."""


# --- of a study -------------------------------------------------------------------------------------------------------


def headlines(function: Measurements) -> list[tuple[str, str, str]]:
    """Name, value and interval."""
    estimates = [(MEASURES[name], function.measures[name]) for name in HEADLINES]
    return [
        (m.figure, format_number(e.value, 0, unit=m.unit), format_interval(e.lower, e.upper, digits=0))
        for m, e in estimates
    ]


def beat(volumes: Mapping[int, FrameVolumes], phases: Mapping[str, int], level: float) -> Chart:
    """Both ventricles over the frames, with the members' intervals."""
    return {
        "title": "Volumes over the cardiac cycle",
        "chart": volume_chart(volume_curve(volumes, level=level), phases),
        "note": f"Bands: central {100 * level:g} % of the members, not widened.",
    }


def function_section(function: Measurements, phases: Mapping[str, int]) -> Section:
    """Every measure with its interval, and per body surface where that is known."""
    indexed = function.indexed(MEASURES)
    interval = f"{'calibrated ' if function.calibrated else ''}{100 * function.level:g} % interval"
    head = ["Measure", "Value", interval]
    head += ["per m² body surface", interval] if indexed else []
    rows = []
    for name, measure in MEASURES.items():
        row = [measure.title, *estimate_cells(function.measures[name], measure.unit)]
        row += (estimate_cells(indexed[name], f"{measure.unit}/m²") if name in indexed else ["", ""]) if indexed else []
        rows.append(row)
    table: Table = {"head": head, "rows": rows, "note": _function_note(function, phases)}
    return {"title": "Cardiac function", "tables": [table]}


def _function_note(function: Measurements, phases: Mapping[str, int]) -> str:
    surface = (
        f" Body surface {function.body_surface:.2f} m² (Mosteller: √(height · weight / 3600), cm and kg)."
        if function.body_surface is not None
        else ""
    )
    return (
        f"End-diastole is frame {phases['ED']}, end-systole frame {phases['ES']}. "
        f"Values are those of the combined mask. {interval_note(function.members, function.calibrated)} "
        f"Mass is {MYOCARDIAL_DENSITY} g/ml times the myocardium at end-diastole; "
        f"papillary muscles count as cavity.{surface}"
    )


# --- of a cohort ------------------------------------------------------------------------------------------------------


def median_ef(functions: Iterable[Measurements]) -> tuple[str, str, str]:
    """The left ventricle's median ejection fraction, as a headline."""
    found = [function.measures["lv_ef"].value for function in functions]
    known = [value for value in found if value is not None]
    return "Median LV EF", format_number(median(known) if known else None, 0, unit="%"), ""


def ejection_fractions(functions: Mapping[str, Measurements]) -> Chart | None:
    """The left ventricle's, by study; None where none is known."""
    chart = ejection_chart([(key, function.measures["lv_ef"]) for key, function in functions.items()])
    return {"title": "Left-ventricular ejection fraction", "chart": chart, "note": ""} if chart else None


def columns() -> list[str]:
    """Headings, with units."""
    return [f"{MEASURES[name].column} ({MEASURES[name].unit})" for name in HEADLINES]


def values(function: Measurements | None) -> list[tuple[str, str]]:
    """Values and intervals of the columns."""
    if function is None:
        return [(MISSING, "")] * len(HEADLINES)
    estimates = [function.measures[name] for name in HEADLINES]
    return [
        (format_number(e.value, 0), "" if e.value is None else format_interval(e.lower, e.upper, digits=0))
        for e in estimates
    ]


# --- style ------------------------------------------------------------------------------------------------------------


def stylesheet(heart: HeartLabels, labels: Labels) -> str:
    """Of the charts: curves have the colours of their contours, darker on white."""
    sides = {"rv": labels.colour_of(heart.rv), "lv": labels.colour_of(heart.lv)}
    return render(
        "charts.css.j2",
        TEMPLATES,
        on_white={side: _ON_WHITE.get(colour, colour) for side, colour in sides.items()},
        on_black=sides,
    )
