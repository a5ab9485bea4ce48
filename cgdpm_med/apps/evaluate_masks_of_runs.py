"""Masks that runs of ``train`` made, scored with the runs' names of classes, and never on their training patients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cgdpm_med.datasets.run import SPLIT, Run
from cgdpm_med.evaluation.find_labels import RunLabels
from cgdpm_med.evaluation.label_names import label_set
from cgdpm_med.evaluation.masks import evaluate_folders
from cgdpm_med.evaluation.training_patients import seen_in_training
from cgdpm_med.files import InputError, listed
from cgdpm_med.models.files import guidance_beside
from cgdpm_med.studies.mask_pairs import MaskPair


def evaluate_masks_of_runs(
    predictions: str | Path,
    references: str | Path,
    runs: Sequence[str | Path],
    output: str | Path | None = None,
    **how: Any,
) -> dict[str, Any]:
    """:func:`~cgdpm_med.evaluate_folders` with what the runs say of their classes.

    Raises:
        InputError: as there; and where a mask is that of a patient whom one of the networks was trained on.
    """
    tasks = [Run(Path(run), Path(run)) for run in runs]
    names = label_set(dict(enumerate(tasks[0].labels, start=1)), "the run's")
    return evaluate_folders(
        predictions,
        references,
        output,
        run=RunLabels(names, tasks[0].stored),
        check=lambda pairs: check_pairs(pairs, tasks),
        **how,
    )


def check_pairs(pairs: Sequence[MaskPair], tasks: Sequence[Run]) -> None:
    """Refuse pairs of training patients.

    Raises:
        InputError: naming the patients, and where the run keeps the names of others.
    """
    for task in tasks:
        weights = task.folder / "models" / "model.pt"
        files = [file for file in (weights, guidance_beside(weights)) if file.is_file()]
        patients = {pair.patient for pair in pairs if pair.patient} | {task.patient_of(pair.key) for pair in pairs}
        if seen := seen_in_training(patients, files):
            what = f"{listed(seen, 5)} trained the network, so a score on them says nothing of new ones"
            remedy = "Score patients of the list test in this file, or new ones: leave the masks of the others away"
            raise InputError(what, path=task.folder / SPLIT, remedy=remedy)
