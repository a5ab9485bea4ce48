"""The page of a study and the page of a cohort."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from cgdpm_med import __version__
from cgdpm_med.apps.cardiac import (
    MEASURES,
    MYOCARDIAL_DENSITY,
    CardiacFunction,
    Estimate,
    FrameVolumes,
    interval_estimate,
    volume_curve,
)
from cgdpm_med.apps.info import sha256_of
from cgdpm_med.apps.labels import ACDC, Labels
from cgdpm_med.apps.quality import Quality
from cgdpm_med.apps.report.charts import ejection_chart, volume_chart
from cgdpm_med.apps.report.page import bullets, figures, folded, page, pill, section, table
from cgdpm_med.apps.report.pictures import contour_key, doubt_key, heart_window, slice_tiles
from cgdpm_med.apps.segment import Segmentation
from cgdpm_med.apps.study import StudyResult
from cgdpm_med.volumes import atomic_write

HEADLINES = ("lv_ef", "lv_edv", "lv_esv", "rv_ef", "myo_mass")
_DASH = "–"


@dataclass(frozen=True)
class Provenance:
    """What a result depends on besides its image: software, settings (with the seed), weights by file name and hash."""

    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    weights: Mapping[str, str]


def provenance(settings: Mapping[str, Any], *weights: str | Path) -> Provenance:
    """The versions in use, the settings given, and the SHA-256 of each weights file (its name without the folder).

    Args:
        settings: for example what :func:`~cgdpm_med.apps.evaluate.settings` returns.
    """
    versions = {"cgdpm_med": __version__, "python": platform.python_version()}
    for name in ("torch", "monai", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return Provenance(versions, settings, {Path(path).name: sha256_of(Path(path)) for path in weights})


def write_report(html: str, path: str | Path) -> Path:
    """Write a page, whole or not at all; returns the path."""
    with atomic_write(path) as file:
        file.write(html.encode("utf-8"))
    return Path(path)


# --- one study --------------------------------------------------------------------------------------------------------


def case_report(result: StudyResult, frames: Mapping[str, Segmentation], origin: Provenance) -> str:
    """The page of one study.

    It shows numbers, voxels and the study's key, and nothing of a file's name, place or header.

    Args:
        result: from :meth:`~cgdpm_med.Study.result`.
        frames: what to draw, by name: :meth:`~cgdpm_med.Study.key_frames`.
        origin: how it was made.
    """
    spoken = {"pass": "no check asks for a review", "review": "please look at this study before using its numbers"}
    head = (
        f"<header><h1>{escape(result.key)}</h1>{pill(result.quality.status)}"
        f"<p>{_subject(result.labels)}: {spoken[result.quality.status]}.</p></header>"
    )
    body = [
        head,
        _headlines(result.function),
        section("Quality", _quality(result.quality, result.labels)),
        section("Volumes over the cardiac cycle", _curve(result)),
        _function(result),
        section("Segmentation", _tiles(frames, result.labels)),
        section("How this was made", _origin(origin)),
    ]
    return page(f"{result.key}: {_title(result.labels)}", "\n".join(part for part in body if part))


def _subject(labels: Labels) -> str:
    return "Cardiac MRI segmentation" if labels.cardiac else "Segmentation"


def _title(labels: Labels) -> str:
    return "cardiac segmentation" if labels.cardiac else "segmentation"


def _headlines(function: CardiacFunction | None) -> str:
    if function is None:
        return ""
    items = []
    for name in HEADLINES:
        measure, estimate = MEASURES[name], function.measures[name]
        short = measure.title.replace("ejection fraction", "EF").replace("volume", "").strip()
        value = _DASH if estimate.value is None else f"{estimate.value:.0f} {measure.unit}"
        items.append((short, value, _interval(estimate, digits=0)))
    return figures(items)


def _quality(quality: Quality, labels: Labels) -> str:
    remarks = bullets([finding.reason for finding in quality.findings if not finding.review], "notes")
    verdict = bullets(quality.reasons) or "<p>No check asks for a review.</p>"
    if not quality.predicted_dice:
        return verdict + remarks
    rows = [
        [escape(frame), *(f"{dice[label]:.3f}" for label in labels.by_number)]
        for frame, dice in quality.predicted_dice.items()
    ]
    heading = "<h3>Dice predicted from the members' agreement</h3>"
    return verdict + remarks + heading + table(["Frame", *labels.names], rows)


def _curve(result: StudyResult) -> str:
    if len(result.volumes) < 3 or not result.labels.cardiac:
        return ""
    level = 0.9 if result.function is None else result.function.level
    chart = volume_chart(volume_curve(result.volumes, level=level), result.ed, result.es)
    return chart + f'<p class="note">Bands: central {100 * level:g} % of the members, not widened.</p>'


def _function(result: StudyResult) -> str:
    if result.function is None:
        if len(result.volumes) > 1 and result.labels.cardiac:
            return ""
        return section("Volumes", *(_frame_table(number, v, result.labels) for number, v in result.volumes.items()))
    function, indexed = result.function, result.function.indexed()
    interval = f"{'calibrated ' if function.calibrated else ''}{100 * function.level:g} % interval"
    head = ["Measure", "Value", interval]
    head += ["per m² body surface", interval] if indexed else []
    rows = []
    for name, measure in MEASURES.items():
        row = [escape(measure.title), *_cells(function.measures[name], measure.unit)]
        row += (_cells(indexed[name], f"{measure.unit}/m²") if name in indexed else ["", ""]) if indexed else []
        rows.append(row)
    surface = (
        f" Body surface {function.body_surface:.2f} m² (Mosteller: √(height · weight / 3600), cm and kg)."
        if function.body_surface is not None
        else ""
    )
    note = (
        f"End-diastole is frame {result.ed}, end-systole frame {result.es}. Values are those of the fused mask. "
        f"{_interval_note(function.members, function.calibrated)} "
        f"Mass is {MYOCARDIAL_DENSITY} g/ml times the myocardium at end-diastole; "
        f"papillary muscles count as cavity.{surface}"
    )
    return section("Cardiac function", table(head, rows), f'<p class="note">{escape(note)}</p>')


def _interval_note(members: int, calibrated: bool = False) -> str:
    if members < 2:
        return "One member gives no intervals."
    origin = f"Intervals come from the {members} members, each measured by itself"
    if not calibrated:
        return f"{origin}; they are not calibrated, and usually too short."
    return f"{origin}, widened so as to cover the truth that often in patients who were measured by hand."


def _frame_table(number: int, volumes: FrameVolumes, labels: Labels) -> str:
    rows = [
        [escape(name), *_cells(interval_estimate(volumes.fused[label], volumes.members[:, label], floor=0.0), "ml")]
        for label, name in labels.by_number.items()
    ]
    note = f'<p class="note">{_interval_note(len(volumes.members))}</p>'
    return table([f"Frame {number}", "Volume", "90 % interval"], rows) + note


def _cells(estimate: Estimate, unit: str) -> list[str]:
    value = _DASH if estimate.value is None else f"{estimate.value:.1f} {unit}"
    return [escape(value), escape(_interval(estimate) or _DASH)]


def _interval(estimate: Estimate, digits: int = 1) -> str:
    if estimate.lower is None or estimate.upper is None:
        return ""
    return f"{estimate.lower:.{digits}f} to {estimate.upper:.{digits}f}"


def _tiles(frames: Mapping[str, Segmentation], labels: Labels) -> str:
    if not frames:
        return ""
    seen = {name: segmentation.in_view() for name, segmentation in frames.items()}
    window = heart_window(seen.values())
    contours: list[str] = []
    doubts: list[str] = []
    for name, segmentation in seen.items():
        tiles, numbers = slice_tiles(segmentation, window), frames[name].slice_numbers()
        for found, what, sources in (
            (contours, "contours", [t.contours for t in tiles]),
            (doubts, "uncertainty", [t.doubt for t in tiles]),
        ):
            pictures = "".join(
                f'<figure><img src="{source}" alt="{escape(name)}, slice {numbers[t.index]}, {what}">'
                f"<figcaption>slice {numbers[t.index]}</figcaption></figure>"
                for t, source in zip(tiles, sources, strict=True)
            )
            found.append(f'<h3>{escape(name)}: {what}</h3>\n<div class="tiles">{pictures}</div>')
    return "\n".join([contour_key(labels), *contours, doubt_key(), *doubts])


def _origin(origin: Provenance) -> str:
    rows = [[escape(name), escape(text)] for name, text in origin.versions.items()]
    rows += [[escape(name.replace("_", " ")), escape(_spoken(value))] for name, value in origin.settings.items()]
    rows += [
        [f"weights {escape(name)}", f'<span class="hash">sha256 {escape(digest)}</span>']
        for name, digest in origin.weights.items()
    ]
    return table(["What", "Value"], rows, words=(1,), plain=True)


def _spoken(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " to ".join(str(part) for part in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


# --- a cohort ---------------------------------------------------------------------------------------------------------


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
    links = links or {}
    labels = results[0].labels if results else ACDC
    reviews = sum(result.quality.status == "review" for result in results)
    head = (
        f"<header><h1>{escape(title)}</h1>"
        f"<p>{_subject(labels)} of {len(results)} {'study' if len(results) == 1 else 'studies'}.</p></header>"
    )
    ef = [(r.key, r.function.measures["lv_ef"]) for r in results if r.function is not None]
    known = [e.value for _, e in ef if e.value is not None]
    body = [
        head,
        figures(
            [
                ("Studies", str(len(results)), ""),
                ("Pass", str(len(results) - reviews), ""),
                ("Review", str(reviews), ""),
                *([("Median LV EF", f"{median(known):.0f} %" if known else _DASH, "")] if labels.cardiac else []),
            ]
        ),
        section("Left-ventricular ejection fraction", ejection_chart(ef)) if labels.cardiac else "",
        section("Studies", _cohort_table(results, links, labels)),
        section("How this was made", _origin(origin)),
    ]
    return page(f"{title}: {_title(labels)}", "\n".join(part for part in body if part))


def _cohort_table(results: Sequence[StudyResult], links: Mapping[str, str], labels: Labels) -> str:
    measured = [f"{_short(name)} ({MEASURES[name].unit})" for name in HEADLINES]
    columns = measured if labels.cardiac else [f"{name} (ml)" for name in labels.names]
    head = ["Study", "Verdict", *columns, "Reasons"]
    rows = []
    for result in results:
        name = escape(result.key)
        linked = f'<a href="{escape(links[result.key])}">{name}</a>' if result.key in links else name
        numbers = _measures(result) if labels.cardiac else _volumes(result)
        rows.append([linked, pill(result.quality.status), *numbers, folded(result.quality.reasons)])
    return table(head, rows, words=(1, len(head) - 1))


def _measures(result: StudyResult) -> list[str]:
    return [_compact(None if result.function is None else result.function.measures[name]) for name in HEADLINES]


def _volumes(result: StudyResult) -> list[str]:
    """Of each label in the first frame."""
    first = result.volumes[min(result.volumes)]
    return [f"{ml:.1f}" for ml in first.fused[1:]]


def _short(name: str) -> str:
    chamber, _, what = name.partition("_")
    return "Mass" if name == "myo_mass" else f"{chamber.upper()} {what.upper()}"


def _compact(estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None:
        return _DASH
    interval = _interval(estimate, digits=0)
    return f"{estimate.value:.0f}" + (f"<br><small>{interval}</small>" if interval else "")
