"""The page of a study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cgdpm_med.inference.labels import Labels
from cgdpm_med.inference.quality import Quality
from cgdpm_med.inference.segmenter import Segmentation
from cgdpm_med.report.pictures import MOST_ENTROPY, entropy_colours, slice_tiles, structure_window
from cgdpm_med.report.rendering import render_page
from cgdpm_med.studies.outputs import Provenance
from cgdpm_med.studies.result import StudyResult
from cgdpm_med.studies.task import task_of
from cgdpm_med.tables.numbers import format_number

_VERDICTS = {"pass": "no check asks for a review", "review": "please look at this study before using its numbers"}


def case_report(result: StudyResult, frames: Mapping[str, Segmentation], origin: Provenance) -> str:
    """The page of one study.

    It shows numbers, voxels and the study's key, and nothing of a file's name, place or header.

    Args:
        result: from :meth:`~cgdpm_med.studies.study.Study.result`.
        frames: what to draw, by name: :meth:`~cgdpm_med.studies.study.Study.key_frames`.
        origin: how it was made.
    """
    quality, labels, task = result.quality, result.labels, task_of(result.labels)
    return render_page(
        "case.html.j2",
        title=f"{result.key}: {task.title}",
        key=result.key,
        status=quality.status,
        subject=task.subject[0].upper() + task.subject[1:],
        verdict=_VERDICTS[quality.status],
        headlines=task.headlines(result),
        reasons=quality.reasons,
        remarks=[finding.reason for finding in quality.findings if not finding.review],
        predicted_dice=_predicted_dice(quality, labels),
        curve=task.curve(result),
        measurements=task.sections(result),
        pictures=_pictures(frames),
        structures=[(labels.colour_of(label), name) for label, name in labels.by_number.items()],
        entropy_colours=entropy_colours(),
        most_entropy=f"{MOST_ENTROPY:g}",
        origin=origin,
        task_stylesheet=task.stylesheet(),
    )


def _predicted_dice(quality: Quality, labels: Labels) -> dict[str, Any]:
    rows = [
        [frame, *(format_number(dice[label], 3) for label in labels.by_number)]
        for frame, dice in quality.predicted_dice.items()
    ]
    return {"head": ["Frame", *labels.names], "rows": rows}


def _pictures(frames: Mapping[str, Segmentation]) -> dict[str, list[dict[str, Any]]]:
    """By frame: the number of each slice in the file, and its two pictures as data addresses."""
    shown = {name: segmentation.in_view() for name, segmentation in frames.items()}
    if not shown:
        return {}
    window = structure_window(shown.values())
    pictures = {}
    for name, segmentation in shown.items():
        numbers = frames[name].slice_numbers()
        pictures[name] = [
            {"number": numbers[tile.index], "contours": tile.contours, "uncertainty": tile.doubt}
            for tile in slice_tiles(segmentation, window)
        ]
    return pictures
