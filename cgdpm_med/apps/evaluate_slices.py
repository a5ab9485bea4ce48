"""Scores of a run's network on one part of its split, on the images' own pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgdpm_med.apps.segment_slices import SliceSegmenter
from cgdpm_med.datasets.loading import load_example
from cgdpm_med.datasets.run import Run
from cgdpm_med.datasets.split import of_part
from cgdpm_med.files import InputError
from cgdpm_med.metrics.masks import (
    brier,
    calibration_error,
    calibration_table,
    dice_per_structure,
    foreground_region,
    generalised_energy_distance,
)
from cgdpm_med.studies.outputs import write_json


@dataclass(frozen=True, eq=False)
class SliceScore:
    """One image: Dice by class, whether image or prediction has the class, and what the ensemble's doubt is worth."""

    case: str
    dice: Mapping[int, float]
    present: Mapping[int, bool]
    brier: float
    ged: float
    calibration: NDArray[np.float64]


def evaluate_part(
    segmenter: SliceSegmenter, run: str | Path, source: str | Path, part: str, out: str | Path
) -> dict[str, Any]:
    """Dice of each class on one part of a run's split, written as ``PART.json``.

    An image and a prediction without a class score 1 and are counted in ``empty``. Around the structures (see
    :func:`~cgdpm_med.metrics.masks.foreground_region`) ``ece`` and ``brier`` tell how far probabilities are right;
    ``ged`` is the generalised energy distance of the members, mean over images.

    Raises:
        InputError: the part is unknown or empty, or its files changed.
    """
    task = Run(Path(run), Path(source))
    if part not in task.parts or not task.parts[part]:
        raise InputError(f"has no patients in part {part!r}", path=Path(run), remedy="Choose train, validation or test")
    examples = of_part(task.dataset, task.parts, part)
    scores = [_score(segmenter, task, example) for example in examples]
    content = summarised(scores, task.labels) | {"part": part, "calibrated": segmenter.calibration is not None}
    write_json(content, Path(out) / f"{part}.json")
    return {name: value for name, value in content.items() if name != "cases"}


def _score(segmenter: SliceSegmenter, task: Run, example: Any) -> SliceScore:
    loaded = load_example(task.dataset, example, len(task.task["channels"]))
    assert loaded.label is not None
    truth = loaded.view.undo(loaded.label)
    found = segmenter(loaded, example.key)
    numbers, region = range(1, task.classes), foreground_region(truth)
    return SliceScore(
        example.key,
        dice_per_structure(found.mask, truth, numbers),
        {n: bool((truth == n).any() or (found.mask == n).any()) for n in numbers},
        brier(found.probabilities, truth, region),
        generalised_energy_distance(found.members, truth, numbers),
        calibration_table(found.probabilities, truth, region=region),
    )


def summarised(scores: Sequence[SliceScore], labels: Sequence[str]) -> dict[str, Any]:
    """Means over images by the names of the classes, and a row for each image."""
    by_name = dict(enumerate(labels, start=1))
    dice = {name: float(np.mean([score.dice[n] for score in scores])) for n, name in by_name.items()}
    return {
        "images": len(scores),
        "mean_dice": float(np.mean(list(dice.values()))),
        "dice": dice,
        "empty": {name: sum(not score.present[n] for score in scores) for n, name in by_name.items()},
        "ece": calibration_error(np.sum([score.calibration for score in scores], axis=0)),
        "brier": float(np.mean([score.brier for score in scores])),
        "ged": float(np.mean([score.ged for score in scores])),
        "cases": [{"case": s.case, **{name: s.dice[n] for n, name in by_name.items()}} for s in scores],
    }
