"""A calibration of runs' probabilities on patients that trained none of the networks: ``calibrate --bundle RUN``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
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
from cgdpm_med.evaluation.calibrate import (
    LEVEL,
    SegmenterFacts,
    calibration_path,
    fit_voxels,
    observe_all,
    voxel_scores,
)
from cgdpm_med.evaluation.calibration_file import (
    Calibration,
    keep_other_settings,
    plain,
    write_calibration,
)
from cgdpm_med.evaluation.training_patients import check_unseen
from cgdpm_med.files import InputError
from cgdpm_med.inference.segmenter import choose_device
from cgdpm_med.metrics.masks import foreground_region
from cgdpm_med.models.weights import digests_by_name
from cgdpm_med.runtime.engines import Engine, InProcess, Progress


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
    engine: Engine | None = None,
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
        engine: who segments, by default this process; see :func:`~cgdpm_med.apps.cluster.open_cluster`.
        changes: keys of the run's inference configuration; None keeps its own value.

    Returns:
        The content of the file, and ``file``, its path.

    Raises:
        InputError: for patients that trained a network or are for testing, none at all, an image that cannot be
            used, or a file beside the weights that was fitted to other settings.
    """
    task = Run(Path(runs[0]), Path(source))
    examples = calibration_examples(task, section, split)
    given = {name: value for name, value in changes.items() if value is not None}
    engine = engine or InProcess()
    segmenter = engine.once(partial(_load, runs, device, given))
    facts = engine.ask(partial(_facts_of, segmenter))
    note = check_unseen((example.patient for example in examples), facts.weights, section)
    if output is None and len(runs) > 1:
        raise InputError("a calibration of several runs has no place of its own", remedy="Give a file as --output")
    path = calibration_path(output, facts.weights)
    if output is None:
        keep_other_settings(path, facts.settings)
    pixels = _observe(engine, _Observing(segmenter, replace(task.dataset, examples=())), examples, note)
    calibration = fit(pixels, facts, section, len({example.patient for example in examples}))
    write_calibration(calibration, path)
    return {
        "file": str(path),
        "temperature": calibration.temperature,
        "doubt": calibration.doubt,
        "data": dict(calibration.data),
        **calibration.numbers,
    }


def _load(runs: Sequence[str | Path], device: str, changes: Mapping[str, Any]) -> SliceSegmenter:
    return load_segmenters(runs, device=f"$torch.device('{choose_device(device)}')", **changes)


def _facts_of(segmenter: Callable[[], SliceSegmenter]) -> SegmenterFacts:
    held = segmenter()
    seed = held.predictor.sampling.seed
    return SegmenterFacts(held.weights, held.labels, held.settings, seed, str(held.device))


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


def _observe(engine: Engine, work: _Observing, examples: Sequence[Example], note: str | None) -> list[KnownPixels]:
    with CaseBar("calibrating", [example.key for example in examples]) as bar:
        if note is not None:
            bar.line(note)
        return observe_all(engine, work, examples, attrgetter("key"), bar)


def fit(frames: Sequence[KnownPixels], facts: SegmenterFacts, section: str, patients: int) -> Calibration:
    """Temperature and doubt for all pixels around the structures of all images."""
    temperature, doubt = fit_voxels(frames)
    scores = partial(voxel_scores, frames)
    return Calibration(
        temperature=temperature,
        doubt=doubt,
        level=LEVEL,
        widening={},
        margin={},
        weights=digests_by_name(facts.weights),
        settings=plain(facts.settings),
        data={
            "section": section,
            "seed": facts.seed,
            "device": facts.device,
            "patients": patients,
            "volumes": len(frames),
        },
        numbers={"before": {**scores(), "function": None}, "after": {**scores(temperature, doubt), "function": None}},
    )


@dataclass(frozen=True)
class _Observing:
    """:func:`observed` with a segmenter that the process makes once.

    Attributes:
        dataset: its classes and values, without the examples, which would travel with each of them.
    """

    segmenter: Callable[[], SliceSegmenter]
    dataset: DataSet

    def __call__(self, example: Example, progress: Progress) -> KnownPixels:
        progress(example.key, 0)
        return observed(self.segmenter(), self.dataset, example)


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
