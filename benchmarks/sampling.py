"""What a setting of the sampler buys and costs on ACDC's validation patients: the one to ship is chosen here.

The settings take turns, patient by patient. Seconds are CPU seconds of this process. Calibrated numbers of a patient
are those of a calibration that was fitted to the other patients.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cgdpm_med import Segmenter, acdc_datalist, keep_freed_memory
from cgdpm_med.evaluation.calibrate import KnownFrame
from cgdpm_med.evaluation.case import CaseResult, evaluate_segmentation
from cgdpm_med.evaluation.function_scores import FrameTruth
from cgdpm_med.evaluation.reference_labels import read_reference
from cgdpm_med.files import InputError, atomic_write
from cgdpm_med.inference.labels import DEFAULT_LABELS
from cgdpm_med.inference.segmenter import Segmentation
from cgdpm_med.metrics.masks import dice_per_structure, foreground_region
from cgdpm_med.metrics.volumetry import FrameVolumes
from cgdpm_med.models.weights import weights_digest
from cgdpm_med.studies.study import Study
from cgdpm_med.volumes import read_volume

from .harness import Journal, Result, console
from .sampling_scores import claims, scores, tables

VERSION_0_1 = "version 0.1"
SHARED: Mapping[str, Any] = {"shared_first_step": True, "guidance_scale": 0.0}
GUIDED: Mapping[str, Any] = {"guidance_scale": 0.25, "guidance_interval": [0, 500]}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    VERSION_0_1: {"steps": 4, "timesteps": None, "shared_first_step": False, **GUIDED},
    "999 666 333": {"timesteps": [999, 666, 333], **SHARED},
    "999 666 333, guided": {"timesteps": [999, 666, 333], "shared_first_step": True, **GUIDED},
    "999 666, distilled": {"timesteps": [999, 666], **SHARED},
    "999 666": {"timesteps": [999, 666], "weights": "$@bundle_root + '/models/denoiser/model.pt'", **SHARED},
    "999 700": {"timesteps": [999, 700], **SHARED},
    "999 750 400": {"timesteps": [999, 750, 400], **SHARED},
    "999 850 600": {"timesteps": [999, 850, 600], **SHARED},
}
"""Keys of the cardiac bundle's inference configuration."""

QUICK = {"members": 2, "field": 96, "precision": "float32"}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset-dir", type=Path, help="ACDC's training folder")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="settings to compare")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--weights", type=Path, help="of a denoiser, in place of the bundle's")
    parser.add_argument("--further-weights", type=Path, nargs="+", default=[], help="networks that share the members")
    parser.add_argument("--all-pieces", action="store_true", help="keep what lies apart from the heart's one body")


def run(arguments: argparse.Namespace) -> Result:
    if arguments.dataset_dir is None:
        raise InputError("the validation patients are missing", remedy="Give ACDC's training folder as --dataset-dir")
    keep_freed_memory()
    patients = patients_of(acdc_datalist(arguments.dataset_dir, "validation"))  # ten: nine others calibrate each
    given: dict[str, Any] = {"weights": arguments.weights and str(arguments.weights)}
    given["further_weights"] = list(map(str, arguments.further_weights))
    changes = {key: files for key, files in given.items() if files}
    observed = observe_all({name: {**SETTINGS[name], **changes} for name in arguments.only}, patients, arguments)
    rows = {name: scores(of, frames_of(of, voxels_of(arguments.output, name))) for name, of in observed.items()}
    settings: dict[str, Any] = {
        "section": "validation",
        "members": arguments.members,
        "seed": 0,
        "patients": len(patients),
        "one_body": not arguments.all_pieces,
    }
    if changes:  # a path says nothing on another machine
        settings["digests"] = [weights_digest(path) for path in (arguments.weights, *arguments.further_weights) if path]
    return Result({**settings, **{name: SETTINGS[name] for name in rows}}, claims(rows), tables(rows), {"scores": rows})


def patients_of(datalist: Sequence[Mapping[str, str]]) -> dict[str, list[Mapping[str, str]]]:
    """The items of a datalist by patient."""
    found: dict[str, list[Mapping[str, str]]] = {}
    for item in datalist:
        found.setdefault(item["patient"], []).append(item)
    return found


def observe_all(
    settings: Mapping[str, Mapping[str, Any]],
    patients: Mapping[str, Sequence[Mapping[str, str]]],
    arguments: argparse.Namespace,
) -> dict[str, list[dict[str, Any]]]:
    """By setting a row for each patient; the same command continues a stopped run."""
    common = {"members": arguments.members, "seed": 0, **(QUICK if arguments.quick else {})}
    common |= {"one_body": False} if arguments.all_pieces else {}
    segmenters = {name: Segmenter.from_bundle(**{**keys, **common}) for name, keys in settings.items()}
    digests = {name: [weights_digest(path) for path in each.weights] for name, each in segmenters.items()}
    journal = Journal(arguments.output / ".sampling.journal.json", {**common, "weights": digests})
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in settings}
    for patient, items in patients.items():
        for name, segmenter in segmenters.items():
            folder = voxels_of(arguments.output, name)
            row = journal.get(f"{patient} {name}", partial(observe, segmenter, items, folder))
            found[name].append(row)
            dice = np.mean([volume["dice"] for volume in row["volumes"]])
            console.print(f"  {patient}  {name}: Dice {dice:.2f}, {row['cpu_seconds'] / len(items):.1f} CPU seconds")
    return found


def voxels_of(output: Path, setting: str) -> Path:
    """Where the probabilities of a setting are kept."""
    return output / "sampling_voxels" / re.sub(r"\W+", "_", setting)


def observe(segmenter: Segmenter, items: Sequence[Mapping[str, str]], folder: Path) -> dict[str, Any]:
    """Segment the phases of a patient; the voxels go to ``folder``, what is told of them into the row."""
    patient, volumes, seconds = items[0]["patient"], [], 0.0
    study = Study(patient, known={"ED": 1, "ES": 2})
    for item in items:
        volume = read_volume(item["image"])
        start = time.process_time()
        found = segmenter(volume, item["key"])
        seconds += time.process_time() - start
        study.add(1 if item["frame"] == "ED" else 2, found)
        volumes.append(observe_volume(found, item, folder))
    quality = study.result().quality
    return {"patient": patient, "cpu_seconds": seconds, "status": quality.status, "volumes": volumes}


def observe_volume(found: Segmentation, item: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Scores and millilitres of one volume, and its voxels around the heart in a file."""
    reference = read_reference(item["label"], found.labels, like=found.grid)
    region = foreground_region(reference)
    path = folder / f"{item['key']}.npz"
    with atomic_write(path) as file:
        np.savez(file, probabilities=found.probabilities[:, region], labels=reference[region])
    result = evaluate_segmentation(found, item)
    members = [np.mean(list(dice_per_structure(member, reference).values())) for member in found.members]
    return {
        "key": item["key"],
        "frame": item["frame"],
        "dice": 100 * float(np.mean(list(result.score.dice.values()))),
        "member_dice": 100 * float(np.mean(members)),
        "hd95": distance(result),
        **{name: result.ensemble[name] for name in ("ged", "auroc")},
        **millilitres(result),
    }


def distance(result: CaseResult) -> float | None:
    """HD95 in mm, mean over the structures that have one."""
    known = [value for value in result.score.hd95.values() if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else None


def millilitres(result: CaseResult) -> dict[str, Any]:
    """Of the mask, the members and the reference."""
    assert result.volumes is not None
    pair = {"found": result.volumes.found, "truth": result.volumes.truth}
    return {name: {key: value.tolist() for key, value in asdict(of).items()} for name, of in pair.items()}


def frames_of(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[KnownFrame]:
    """What calibrations are fitted to, of all patients."""
    return [frame_of(row["patient"], volume, folder) for row in rows for volume in row["volumes"]]


def frame_of(patient: str, volume: Mapping[str, Any], folder: Path) -> KnownFrame:
    found, truth = (
        FrameVolumes(np.array(volume[name]["combined"]), np.array(volume[name]["members"]).reshape(-1, 4))
        for name in ("found", "truth")
    )
    with np.load(folder / f"{volume['key']}.npz") as voxels:
        return KnownFrame(
            FrameTruth(patient, volume["frame"], found, truth, DEFAULT_LABELS),
            voxels["probabilities"],
            voxels["labels"],
        )
