"""A calibration of runs' probabilities on patients that trained none of the networks: ``calibrate --bundle RUN``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgdpm_med.apps.segment_slices import SliceSegmenter, load_segmenters
from cgdpm_med.console import CaseBar
from cgdpm_med.data.acdc import load_split
from cgdpm_med.datasets.dataset import DataSet, Example
from cgdpm_med.datasets.loading import load_example
from cgdpm_med.datasets.run import SPLIT, Run
from cgdpm_med.datasets.split import of_part
from cgdpm_med.evaluation.calibrate import LEVEL, fit_voxels, voxel_scores
from cgdpm_med.evaluation.calibration_file import (
    CALIBRATION,
    Calibration,
    digests_by_name,
    plain,
    write_calibration,
)
from cgdpm_med.evaluation.training_patients import check_unseen
from cgdpm_med.files import InputError
from cgdpm_med.inference.segmenter import choose_device
from cgdpm_med.metrics.masks import foreground_region


@dataclass(frozen=True, eq=False)
class KnownPixels:
    """Probabilities (C, N) float32 of an image's pixels, and their true classes (N,) uint8."""

    probabilities: NDArray[np.float32]
    labels: NDArray[np.uint8]


MOST_PIXELS = 1 << 18
"""Of one image that the fit takes, evenly spread."""


def calibrate_runs(
    source: str | Path,
    runs: Sequence[str | Path],
    *,
    section: str = "validation",
    split: str | Path | None = None,
    device: str = "auto",
    output: str | Path | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Fit temperature and doubt to a part of the run's split, and write it beside the weights.

    Args:
        source: the data set, in any layout that ``train`` reads.
        runs: one, or several whose networks draw the members together; then ``output`` must be given, and ``split``
            name patients whom none of them has seen.
        section: "validation", or "train" of a ``split`` of patients that were not trained on.
        split: JSON with lists train, validation, test of patients; None is the run's own.
        output: file to write; ``calibration.json`` beside the weights by default.
        changes: keys of the run's inference configuration; None keeps its own value.

    Returns:
        The content of the file, and ``file``, its path.

    Raises:
        InputError: for patients that trained a network or are for testing, none at all, or an image that cannot be
            used.
    """
    task = Run(Path(runs[0]), Path(source))
    examples = calibration_examples(task, section, split)
    given = {name: value for name, value in changes.items() if value is not None}
    segmenter = load_segmenters(runs, device=f"$torch.device('{choose_device(device)}')", **given)
    note = check_unseen((example.patient for example in examples), segmenter.weights, section)
    path = _file(output, segmenter, len(runs))
    calibration = fit(segmenter, task.dataset, examples, section, [] if note is None else [note])
    write_calibration(calibration, path)
    return {
        "file": str(path),
        "temperature": calibration.temperature,
        "doubt": calibration.doubt,
        "data": dict(calibration.data),
        **calibration.numbers,
    }


def _file(output: str | Path | None, segmenter: SliceSegmenter, runs: int) -> Path:
    if output is None and runs > 1:
        raise InputError("a calibration of several runs has no place of its own", remedy="Give a file as --output")
    path = Path(output) if output is not None else segmenter.weights[0].with_name(CALIBRATION)
    if path.is_dir() or (path.parent.is_dir() and not os.access(path.parent, os.W_OK)):
        raise InputError("cannot be written", path=path, remedy="Give a file in a folder of yours as --output")
    return path


def calibration_examples(task: Run, section: str, split: str | Path | None) -> tuple[Example, ...]:
    """The labelled images of a section, patients found as the run found them.

    Raises:
        InputError: for test patients of the run or of the split, or none of the section in the data.
    """
    if section not in ("train", "validation"):
        remedy = "Use section validation; test patients must show what a calibration is worth"
        raise InputError(f"a calibration is not fitted to section {section!r}", remedy=remedy)
    parts = load_split(split if split is not None else task.folder / SPLIT)
    if split is not None:  # other patients may be in the data as well
        here = {example.patient for example in task.dataset.labelled}
        parts = {part: tuple(name for name in names if name in here) for part, names in parts.items()}
    if not parts[section]:
        what = f"holds no patient of section {section}"
        remedy = "Name its patients in the lists train, validation and test of a JSON file, given as --split"
        raise InputError(what, path=task.source, remedy=remedy)
    if taken := sorted(set(parts[section]) & {*task.parts["test"], *parts["test"]}):
        remedy = "Place it in the list test of the split: test patients must show what a calibration is worth"
        raise InputError(f"{taken[0]} is a test patient", path=task.source, remedy=remedy)
    return of_part(task.dataset, parts, section)


# --- the fit ----------------------------------------------------------------------------------------------------------


def fit(
    segmenter: SliceSegmenter, dataset: DataSet, examples: Sequence[Example], section: str, notes: Sequence[str] = ()
) -> Calibration:
    """Segment the examples, and fit temperature and doubt to all pixels around their structures."""
    frames = []
    with CaseBar("calibrating", [example.key for example in examples]) as bar:
        for line in notes:
            bar.line(line)
        for example in examples:
            bar.update(example.key, 0)
            frames.append(observed(segmenter, dataset, example))
            bar.note(f"segmented {example.key}")
    temperature, doubt = fit_voxels(frames)
    scores = partial(voxel_scores, frames)
    patients = len({example.patient for example in examples})
    return Calibration(
        temperature=temperature,
        doubt=doubt,
        level=LEVEL,
        widening={},
        margin={},
        weights=digests_by_name(segmenter.weights),
        settings=plain(segmenter.settings),
        data={
            "section": section,
            "seed": segmenter.predictor.sampling.seed,
            "device": str(segmenter.device),
            "patients": patients,
            "volumes": len(examples),
        },
        numbers={"before": {**scores(), "function": None}, "after": {**scores(temperature, doubt), "function": None}},
    )


def observed(segmenter: SliceSegmenter, dataset: DataSet, example: Example) -> KnownPixels:
    """Probabilities and true classes of an image's pixels around its structures."""
    loaded = load_example(dataset, example, len(segmenter.input.names))
    assert loaded.label is not None
    truth = loaded.view.undo(loaded.label)
    found = segmenter(loaded, example.key)
    region = foreground_region(truth)
    labels: NDArray[np.uint8] = truth[region]
    every = max(1, -(-labels.size // MOST_PIXELS))
    return KnownPixels(found.probabilities[:, region][:, ::every], labels[::every])
