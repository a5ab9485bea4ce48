"""The page of a study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cgdpm_med.heart.function import (
    MEASURES,
    MYOCARDIAL_DENSITY,
    CardiacFunction,
    Estimate,
    FrameVolumes,
    interval_estimate,
    volume_curve,
)
from cgdpm_med.inference.labels import Labels, colour_of
from cgdpm_med.inference.quality import Quality
from cgdpm_med.inference.segmenter import Segmentation
from cgdpm_med.report.charts import volume_chart
from cgdpm_med.report.headlines import HEADLINES, page_title, subject
from cgdpm_med.report.pictures import MOST_ENTROPY, entropy_colours, heart_window, slice_tiles
from cgdpm_med.report.rendering import render_page
from cgdpm_med.studies.outputs import Provenance
from cgdpm_med.studies.study import StudyResult
from cgdpm_med.tables.numbers import MISSING, format_interval, format_number

_VERDICTS = {"pass": "no check asks for a review", "review": "please look at this study before using its numbers"}

Section = dict[str, Any]
"""Its title, and tables of a head, rows of text and a note."""


def case_report(result: StudyResult, frames: Mapping[str, Segmentation], origin: Provenance) -> str:
    """The page of one study.

    It shows numbers, voxels and the study's key, and nothing of a file's name, place or header.

    Args:
        result: from :meth:`~cgdpm_med.studies.study.Study.result`.
        frames: what to draw, by name: :meth:`~cgdpm_med.studies.study.Study.key_frames`.
        origin: how it was made.
    """
    quality, labels = result.quality, result.labels
    return render_page(
        "case.html.j2",
        title=page_title(result.key, labels),
        key=result.key,
        status=quality.status,
        subject=subject(labels),
        verdict=_VERDICTS[quality.status],
        headlines=_headlines(result.function),
        reasons=quality.reasons,
        remarks=[finding.reason for finding in quality.findings if not finding.review],
        predicted_dice=_predicted_dice(quality, labels),
        curve=_curve(result),
        measurements=_measurements(result),
        pictures=_pictures(frames),
        structures=[(colour_of(label), name) for label, name in labels.by_number.items()],
        entropy_colours=entropy_colours(),
        most_entropy=f"{MOST_ENTROPY:g}",
        origin=origin,
    )


def _headlines(function: CardiacFunction | None) -> list[tuple[str, str, str]]:
    if function is None:
        return []
    return [_headline(name, function.measures[name]) for name in HEADLINES]


def _headline(name: str, estimate: Estimate) -> tuple[str, str, str]:
    measure = MEASURES[name]
    short = measure.title.replace("ejection fraction", "EF").replace("volume", "").strip()
    interval = format_interval(estimate.lower, estimate.upper, digits=0)
    return short, format_number(estimate.value, 0, unit=measure.unit), interval


def _predicted_dice(quality: Quality, labels: Labels) -> dict[str, Any]:
    rows = [
        [frame, *(format_number(dice[label], 3) for label in labels.by_number)]
        for frame, dice in quality.predicted_dice.items()
    ]
    return {"head": ["Frame", *labels.names], "rows": rows}


def _curve(result: StudyResult) -> dict[str, str] | None:
    if len(result.volumes) < 3 or not result.labels.cardiac:
        return None
    level = 0.9 if result.function is None else result.function.level
    chart = volume_chart(volume_curve(result.volumes, level=level), result.ed, result.es)
    return {"chart": chart, "percent": f"{100 * level:g}"}


def _measurements(result: StudyResult) -> list[Section]:
    """Cardiac function; volumes where it is not defined, except of a beat whose ED and ES were not found."""
    if result.function is not None:
        return [{"title": "Cardiac function", "tables": [_function_table(result, result.function)]}]
    if len(result.volumes) > 1 and result.labels.cardiac:
        return []
    tables = [_volume_table(number, volumes, result.labels) for number, volumes in result.volumes.items()]
    return [{"title": "Volumes", "tables": tables}]


def _function_table(result: StudyResult, function: CardiacFunction) -> dict[str, Any]:
    indexed = function.indexed()
    interval = f"{'calibrated ' if function.calibrated else ''}{100 * function.level:g} % interval"
    head = ["Measure", "Value", interval]
    head += ["per m² body surface", interval] if indexed else []
    rows = []
    for name, measure in MEASURES.items():
        row = [measure.title, *_cells(function.measures[name], measure.unit)]
        row += (_cells(indexed[name], f"{measure.unit}/m²") if name in indexed else ["", ""]) if indexed else []
        rows.append(row)
    return {"head": head, "rows": rows, "note": _function_note(result, function)}


def _function_note(result: StudyResult, function: CardiacFunction) -> str:
    surface = (
        f" Body surface {function.body_surface:.2f} m² (Mosteller: √(height · weight / 3600), cm and kg)."
        if function.body_surface is not None
        else ""
    )
    return (
        f"End-diastole is frame {result.ed}, end-systole frame {result.es}. Values are those of the combined mask. "
        f"{_interval_note(function.members, function.calibrated)} "
        f"Mass is {MYOCARDIAL_DENSITY} g/ml times the myocardium at end-diastole; "
        f"papillary muscles count as cavity.{surface}"
    )


def _interval_note(members: int, calibrated: bool = False) -> str:
    if members < 2:
        return "One member gives no intervals."
    origin = f"Intervals come from the {members} members, each measured by itself"
    if not calibrated:
        return f"{origin}; they are not calibrated, and usually too short."
    return f"{origin}, widened so as to cover the truth that often in patients who were measured by hand."


def _volume_table(number: int, volumes: FrameVolumes, labels: Labels) -> dict[str, Any]:
    rows = [
        [name, *_cells(interval_estimate(volumes.combined[label], volumes.members[:, label], floor=0.0), "ml")]
        for label, name in labels.by_number.items()
    ]
    head = [f"Frame {number}", "Volume", "90 % interval"]
    return {"head": head, "rows": rows, "note": _interval_note(len(volumes.members))}


def _cells(estimate: Estimate, unit: str) -> list[str]:
    interval = format_interval(estimate.lower, estimate.upper)
    return [format_number(estimate.value, 1, unit=unit), interval or MISSING]


def _pictures(frames: Mapping[str, Segmentation]) -> dict[str, list[dict[str, Any]]]:
    """By frame: the number of each slice in the file, and its two pictures as data addresses."""
    shown = {name: segmentation.in_view() for name, segmentation in frames.items()}
    if not shown:
        return {}
    window = heart_window(shown.values())
    pictures = {}
    for name, segmentation in shown.items():
        numbers = frames[name].slice_numbers()
        pictures[name] = [
            {"number": numbers[tile.index], "contours": tile.contours, "uncertainty": tile.doubt}
            for tile in slice_tiles(segmentation, window)
        ]
    return pictures
