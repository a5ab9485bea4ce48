"""The bundle cardiac_sr against zero-filling, bicubic interpolation and a regression, on patients of ACDC.

True volumes are made coarse in k-space and refined. PSNR, SSIM and LPIPS are measured; the shipped segmentation tells
how much of the Dice that coarse scans lose is won back. Settings are chosen on the validation patients; the test
patients are scored once. A stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cgdpm_med import Segmenter, SuperResolver, keep_freed_memory, write_phantom_dataset
from cgdpm_med.apps.evaluate_volumes import (
    BICUBIC,
    MEASURES,
    REFINED,
    TRUE,
    ZERO_FILLED,
    Scores,
    evaluate_acdc_volumes,
    format_volume_summary,
)
from cgdpm_med.inference.predictor import predictor_settings
from cgdpm_med.models.weights import weights_digest

from .harness import Claim, Journal, Result, Table, console

BUNDLE = "cardiac_sr"
REGRESSION = "regression"
COLUMNS = (*MEASURES, "dice")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset-dir", type=Path, help="ACDC's training folder; with --quick phantoms are drawn")
    parser.add_argument("--section", choices=("validation", "test"), default="validation")
    parser.add_argument("--volumes", type=int, help="of the section, evenly chosen; all by default")
    parser.add_argument("--patients", type=int, help="of the section, evenly chosen, with all of their volumes")
    parser.add_argument("--names", nargs="+", help="of patients of the section instead")
    parser.add_argument("--weights", type=Path, help="instead of the bundle's")
    parser.add_argument("--regression", type=Path, help="model file of a regression of equal budget")
    parser.add_argument("--lpips", type=Path, help="TorchScript file")
    parser.add_argument("--members", type=int, default=1, help="samples of each slice")
    parser.add_argument("--steps", type=int, default=1, help="of each sample")
    parser.add_argument("--no-dice", action="store_true", help="leave the segmentation out")
    parser.add_argument("--segment-members", type=int, default=2)
    parser.add_argument("--segment-steps", type=int, help="evenly spaced; by default the timesteps of its bundle")


def run(arguments: argparse.Namespace) -> Result:
    keep_freed_memory()
    if arguments.quick:
        with TemporaryDirectory() as folder:
            size: dict[str, Any] = {"shape": (64, 56, 3), "spacing": (2.8, 2.8, 24.0), "num_frames": 6}
            write_phantom_dataset(folder, patients=3, seed=0, **size)
            return compare(arguments, Path(folder))
    if arguments.dataset_dir is None:
        raise SystemExit("give --dataset-dir, or --quick")
    return compare(arguments, arguments.dataset_dir)


def compare(arguments: argparse.Namespace, root: Path) -> Result:
    """All methods on one section."""
    resolver = resolver_of(arguments.weights, arguments, steps=arguments.steps, members=arguments.members)
    rivals = {} if arguments.regression is None else {REGRESSION: resolver_of(arguments.regression, arguments)}
    segmenter = None if arguments.no_dice else segmenter_of(arguments)
    settings = settings_of(arguments, [resolver, *rivals.values()], segmenter)
    patients = arguments.names or arguments.patients
    chosen = {"section": arguments.section, "patients": patients, "volumes": arguments.volumes}
    journal = Journal(arguments.output / f".{BUNDLE}.journal.json", settings)
    rows: dict[str, Scores] = {}

    def remember(key: str, compute: Callable[[], Scores]) -> Scores:
        rows[key] = compute() if arguments.quick else journal.get(key, compute)
        return rows[key]

    summary = evaluate_acdc_volumes(
        resolver,
        root,
        arguments.section,
        most=arguments.volumes,
        patients=patients,
        rivals=rivals,
        segmenter=segmenter,
        lpips=arguments.lpips,
        remember=remember,
    )
    console.print(format_volume_summary(summary), markup=False)
    if summary["failed"]:
        raise SystemExit(f"{len(summary['failed'])} volumes failed")
    return result_of(summary, rows, {**chosen, **settings})


def result_of(summary: Mapping[str, Any], rows: Mapping[str, Scores], settings: dict[str, Any]) -> Result:
    """The means over volumes, and the Dice of each."""
    methods = summary["methods"]
    means = [[name, *(found[column] for column in COLUMNS)] for name, found in methods.items()]
    table = Table(f"{summary['volumes']} volumes, {settings['section']}", ["method", *COLUMNS], means)
    dice = {key: dice_of(scores) for key, scores in rows.items() if TRUE in scores}
    claims = [*claims_of(methods, settings["factor"]), *dice_claims(dice)]
    return Result(settings, claims, [table], {"summary": summary, "dice": dice})


def resolver_of(weights: Path | None, arguments: argparse.Namespace, **settings: Any) -> SuperResolver:
    """The bundle with these weights, in one step where nothing else is said."""
    own = {} if weights is None else {"weights": str(weights)}
    dials = {"steps": 1, "members": 1, "device": arguments.device, **settings}
    return SuperResolver.from_bundle(BUNDLE, **own, **dials)


def segmenter_of(arguments: argparse.Namespace) -> Segmenter:
    """The shipped segmentation, at its own timesteps where no number of steps is said."""
    dials = {"members": arguments.segment_members, "steps": arguments.segment_steps, "device": arguments.device}
    return Segmenter.from_bundle("acdc_segmentation", **dials)


def segmenter_settings(segmenter: Segmenter) -> dict[str, Any]:
    """What the Dice depends on."""
    made = predictor_settings(segmenter.predictor, segmenter.device)
    return {"weights": [weights_digest(file) for file in segmenter.weights], **made}


def settings_of(
    arguments: argparse.Namespace, resolvers: list[SuperResolver], segmenter: Segmenter | None
) -> dict[str, Any]:
    """What the numbers of a volume depend on."""
    digests = [None if each.weights is None else weights_digest(each.weights) for each in resolvers]
    lpips = None if arguments.lpips is None else arguments.lpips.name
    segmented = None if segmenter is None else segmenter_settings(segmenter)
    return {
        "members": arguments.members,
        "steps": arguments.steps,
        "factor": resolvers[0].factor,
        "weights": digests,
        "lpips": lpips,
        "segmenter": segmented,
    }


def claims_of(methods: Scores, factor: int) -> list[Claim]:
    """Held against the targets of a trained network in one step; 2.2 dB are wanted of four times in plane."""
    refined, zero = methods[REFINED], methods[ZERO_FILLED]
    wanted = 2.2 if factor == 4 else None
    claims = [
        Claim("PSNR above zero-filling", _less(refined["psnr"], zero["psnr"]), wanted, unit=" dB"),
        Claim("PSNR above bicubic", _less(refined["psnr"], methods[BICUBIC]["psnr"]), unit=" dB"),
        Claim("largest disagreement with the coarse scan", _number(refined["off_largest"]), 1e-3, at_most=True),
    ]
    if REGRESSION in methods:
        claims.append(
            Claim("PSNR above the regression", _less(refined["psnr"], methods[REGRESSION]["psnr"]), -0.3, unit=" dB")
        )
    return claims


def dice_of(scores: Scores) -> dict[str, float]:
    """Of one volume by method, percent."""
    return {method: _number(measures["dice"]) for method, measures in scores.items()}


def dice_claims(dice: Mapping[str, Mapping[str, float]]) -> list[Claim]:
    """What comes back of the Dice that zero-filling loses; its spread is that of leaving out one patient."""
    if not dice:
        return []
    patients = sorted({key.partition("_")[0] for key in dice})
    others = [won_back([row for key, row in dice.items() if key.partition("_")[0] != one]) for one in patients]
    spread = (min(others), max(others)) if len(patients) > 1 else None
    return [Claim("Dice won back of what zero-filling loses", won_back(list(dice.values())), 0.5, spread)]


def won_back(rows: Sequence[Mapping[str, float]]) -> float:
    """(refined - zero-filled) / (true - zero-filled), of the sums over volumes."""
    lost, won = (sum(row[method] - row[ZERO_FILLED] for row in rows) for method in (TRUE, REFINED))
    return won / lost if lost else float("nan")


def _less(a: float | None, b: float | None) -> float:
    return _number(a) - _number(b)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
