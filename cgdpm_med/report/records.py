"""Studies as JSON: what a finished study leaves on disk, so that tables can be made of it later and elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from cgdpm_med.files import InputError, listed
from cgdpm_med.inference.labels import DEFAULT_LABELS, Labels
from cgdpm_med.inference.quality import Finding, Quality
from cgdpm_med.metrics.volumetry import Estimate, FrameVolumes
from cgdpm_med.studies.measures import Measurements
from cgdpm_med.studies.outputs import Provenance, todays_settings
from cgdpm_med.studies.result import StudyResult
from cgdpm_med.studies.study import write_cohort
from cgdpm_med.studies.task import Task, task_of

COHORT, VIEW = "cohort", "view"
"""Stems of a cohort's files, which no case may bear."""


def study_record(result: StudyResult) -> dict[str, Any]:
    """Everything of a result as plain values; :func:`read_study_record` is its inverse."""
    function, task = result.function, task_of(result.labels)
    return {
        "key": result.key,
        **{f"{phase.lower()}_frame": result.phases.get(phase) for phase in task.phases},
        "quality": {
            "status": result.quality.status,
            "findings": [{"check": f.check, "reason": f.reason, "review": f.review} for f in result.quality.findings],
            "predicted_dice": {
                frame: {str(label): dice for label, dice in by_label.items()}
                for frame, by_label in result.quality.predicted_dice.items()
            },
        },
        "function": None if function is None else _function_record(function, task),
        "labels": list(result.labels.names),
        **_own_colours(result.labels),
        "volumes_ml": {
            str(frame): {"mask": volumes.combined.tolist(), "members": volumes.members.tolist()}
            for frame, volumes in result.volumes.items()
        },
    }


def _own_colours(labels: Labels) -> dict[str, list[str]]:
    """Where they are not the usual ones."""
    return {} if labels == Labels(labels.names) else {"colours": list(labels.colours)}


def _function_record(function: Measurements, task: Task) -> dict[str, Any]:
    return {
        "measures": {
            name: {"value": e.value, "lower": e.lower, "upper": e.upper, "unit": task.measures[name].unit}
            for name, e in function.measures.items()
        },
        "members": function.members,
        "level": function.level,
        "widening": dict(function.widening),
        "margin": dict(function.margin),
        "calibrated": function.calibrated,
        "body_surface_m2": function.body_surface,
    }


def read_study_record(record: Mapping[str, Any]) -> StudyResult:
    """The result that :func:`study_record` described.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: for anything else.
    """
    function, quality = record["function"], record["quality"]
    names = record.get("labels", DEFAULT_LABELS.names)  # version 0.1 knew no others
    labels = Labels(tuple(str(name) for name in names), tuple(str(c) for c in record.get("colours", ())))
    frames = {phase: record[f"{phase.lower()}_frame"] for phase in task_of(labels).phases}
    return StudyResult(
        key=record["key"],
        volumes={
            int(frame): FrameVolumes(np.array(v["mask"], dtype=np.float64), np.array(v["members"], dtype=np.float64))
            for frame, v in record["volumes_ml"].items()
        },
        quality=Quality(
            tuple(Finding(f["check"], f["reason"], f["review"]) for f in quality["findings"]),
            {
                frame: {int(label): dice for label, dice in by_label.items()}
                for frame, by_label in quality["predicted_dice"].items()
            },
        ),
        phases={phase: number for phase, number in frames.items() if number is not None},
        function=None
        if function is None
        else Measurements(
            measures={name: Estimate(m["value"], m["lower"], m["upper"]) for name, m in function["measures"].items()},
            members=function["members"],
            level=function["level"],
            widening=function["widening"],
            margin=function["margin"],
            body_surface=function["body_surface_m2"],
        ),
        labels=labels,
    )


def read_record(path: Path) -> dict[str, Any] | None:
    """The content of a study's JSON, or None where the file is absent or is anything else."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        read_study_record(record["study"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if isinstance(record, dict) else None


def is_anothers(path: Path) -> bool:
    """Whether a JSON or HTML file is there that no run wrote; what cannot be read may be the rest of a run's."""
    if not path.is_file():
        return False
    try:
        content = path.read_bytes()
        if path.suffix != ".json":
            return b"cgdpm" not in content
        found = json.loads(content)
    except (OSError, ValueError):
        return False
    return bool(found) and not (isinstance(found, dict) and {"study", "case"} & found.keys())


def read_study(path: Path) -> StudyResult | None:
    """The study of :func:`read_record`."""
    record = read_record(path)
    return None if record is None else read_study_record(record["study"])


# --- cohorts ----------------------------------------------------------------------------------------------------------


def save_cohort(
    results: Sequence[StudyResult], folder: Path, origin: Provenance, pages: Mapping[str, Path]
) -> list[Path]:
    """Write ``cohort.csv`` and ``cohort.html``, which links to the studies' own ``pages`` below the folder."""
    from cgdpm_med.report.cohort import cohort_report  # templates and charts, which a record alone does not need
    from cgdpm_med.report.rendering import write_report

    results = sorted(results, key=lambda result: result.key)
    settings = {name: value for name, value in origin.settings.items() if name != "device"}  # there may be several
    origin = replace(origin, settings=settings)
    links = links_below(folder, pages)
    table, page = folder / f"{COHORT}.csv", folder / f"{COHORT}.html"
    write_cohort(results, table)
    write_report(cohort_report(results, origin, links=links), page)
    return [table, page]


def links_below(folder: Path, pages: Mapping[str, Path]) -> dict[str, str]:
    """Relative addresses of studies' pages, by key."""
    return {key: quote(page.relative_to(folder).as_posix()) for key, page in pages.items()}


def collect_cohort(folder: str | Path) -> dict[str, Any]:
    """Make the cohort's files of all finished studies below a folder, whichever run or machine segmented them.

    Returns:
        ``studies``, their keys; ``files``, what was written.

    Raises:
        InputError: when there is no finished study, or not all were made with the same settings.
    """
    finished = finished_studies(Path(folder))
    files = save_cohort(finished.results, Path(folder), finished.origin, finished.pages)
    return {"studies": sorted(result.key for result in finished.results), "files": [str(path) for path in files]}


class Finished(NamedTuple):
    """Studies of one folder, how they were made, and the page of each that has one, by key.

    A key is the study's, or, where two studies have the same, the place of every study below the folder.
    """

    results: list[StudyResult]
    origin: Provenance
    pages: dict[str, Path]


def finished_studies(folder: Path) -> Finished:
    """All finished studies below a folder.

    Raises:
        InputError: when there is none, or not all were made with the same settings.
    """
    if not folder.is_dir():
        raise InputError("there is no such folder", path=folder, remedy="Give the output folder of cgdpm-med segment")
    found = {path: record for path in sorted(folder.rglob("*.json")) if (record := read_record(path)) is not None}
    if not found:
        raise InputError("holds no finished study", path=folder, remedy="Run cgdpm-med segment first")
    (first, record), *others = found.items()
    for path, other in others:
        if made_with(other) != made_with(record):
            differing = listed(_differing(made_with(record), made_with(other)))
            what = f"was made with other settings than {first.relative_to(folder).as_posix()} ({differing})"
            remedy = "Segment all of them alike, or keep them in separate folders"
            raise InputError(what, path=path, remedy=remedy)
    results = [read_study_record(record["study"]) for record in found.values()]
    if len({result.key for result in results}) < len(results):  # as where each site numbers its patients from 1
        places = [path.relative_to(folder).with_suffix("").as_posix() for path in found]
        results = [replace(result, key=place) for result, place in zip(results, places, strict=True)]
    pages = {
        result.key: page
        for path, result in zip(found, results, strict=True)
        if (page := path.with_suffix(".html")).is_file()
    }
    return Finished(results, Provenance(**record["made_with"]), pages)


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the settings, versions and weights that two studies do not share."""
    names = []
    for part in dict.fromkeys((*one, *other)):
        mine, theirs = one.get(part) or {}, other.get(part) or {}
        names += [name for name in dict.fromkeys((*mine, *theirs)) if mine.get(name) != theirs.get(name)]
    return names


def made_with(record: Mapping[str, Any]) -> dict[str, Any]:
    """How a study was made, its settings as they would be said today."""
    made = record.get("made_with")
    return {**made, "settings": todays_settings(made.get("settings", {}))} if isinstance(made, dict) else {}
