"""``cgdpm-med plan``, ``train`` and ``calibrate``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from cgdpm_med.apps.commands.options import (
    AllPieces,
    AsJson,
    Bundles,
    Dask,
    DaskConfig,
    Device,
    GuidanceScale,
    Members,
    Method,
    Seed,
    SpacingText,
    Steps,
    Timesteps,
    Weights,
    chosen_bundle,
    opened_engine,
    print_json,
    reachable,
    reachable_bundle,
    refuse_others,
    visited_timesteps,
    voxel_size,
)

Hours = Annotated[float | None, typer.Option(min=0.001, help="How long to train; the steps are measured first.")]
Iterations = Annotated[int | None, typer.Option(min=1, help="Training steps, in place of hours.", show_default="5000")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A choice of the plan, such as spacing=1.25.")
]
Patients = Annotated[
    str | None,
    typer.Option(metavar="REGEX", help="Finds the patient in an image's name, such as ^([^_]+).", show_default="name"),
]
Folds = Annotated[int | None, typer.Option(min=2, help="Cross-validation in so many folds.")]
Fold = Annotated[int | None, typer.Option(min=0, help="Which fold validates, from 0.")]
SplitSeed = Annotated[int | None, typer.Option("--seed", min=0, help="Of split and training.", show_default="0")]
Guidance = Annotated[bool, typer.Option("--guidance", help="Train a guidance network after the denoiser, too.")]
DataSetPath = Annotated[
    Path,
    typer.Argument(
        metavar="DATA", help="A folder: nnU-Net raw, Decathlon, images/ and masks/, ACDC; or a datalist as JSON."
    ),
]


def plan(
    source: DataSetPath,
    hours: Hours = None,
    iterations: Iterations = None,
    settings: Settings = None,
    patients: Patients = None,
    folds: Folds = None,
    fold: Fold = None,
    seed: SplitSeed = None,
    guidance: Guidance = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Look at a data set, check every file, and say how it would be trained on and why."""
    from dataclasses import asdict

    from cgdpm_med.apps.train import Wishes, plan_dataset

    wishes = Wishes(hours, iterations, tuple(settings or ()), patients, folds, fold, seed, guidance)
    planned = plan_dataset(source, wishes, device=device)
    if as_json:
        print_json({"fingerprint": asdict(planned.seen), "plan": asdict(planned.plan), "split": dict(planned.parts)})
    else:
        typer.echo(planned.page)


def train(
    source: DataSetPath,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder to write: a MONAI bundle.")],
    hours: Hours = None,
    iterations: Iterations = None,
    settings: Settings = None,
    patients: Patients = None,
    folds: Folds = None,
    fold: Fold = None,
    seed: SplitSeed = None,
    guidance: Guidance = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train a segmentation of your own classes: plan, split by patient, train, calibrate, score on the test part.

    The same command with DATA and RUN alone continues a run that was stopped. Then: segment IN OUT --bundle RUN.
    """
    from cgdpm_med.apps.train import Wishes
    from cgdpm_med.apps.train import train as run_training

    wishes = Wishes(hours, iterations, tuple(settings or ()), patients, folds, fold, seed, guidance)
    result = run_training(source, run, wishes, device=device, say=lambda text: typer.echo(text, err=True))
    if as_json:
        print_json(result)
        return
    typer.echo(f"trained; weights in {result['weights']}")
    if result["test"]:
        dice = ", ".join(f"{name} {value:.4f}" for name, value in result["test"]["dice"].items())
        typer.echo(f"Dice on {result['test']['images']} test images: {dice}; ECE {result['test']['ece']:.4f}")


def calibrate(
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Folder in ACDC's layout; of runs of train, their data set.")
    ],
    section: Annotated[str, typer.Option(help="validation, or train; test patients are refused.")] = "validation",
    split: Annotated[
        Path | None,
        typer.Option(help="JSON with lists train, validation, test of patients.", show_default="the run's, or ACDC's"),
    ] = None,
    members: Members = None,
    steps: Steps = None,
    timesteps: Timesteps = None,
    method: Annotated[Method | None, typer.Option(help="Sampling method.", show_default="the bundle's")] = None,
    seed: Seed = None,
    device: Device = "auto",
    weights: Weights = None,
    guidance_scale: GuidanceScale = None,
    all_pieces: AllPieces = False,
    together: Annotated[
        bool, typer.Option("--together", help="One factor for the intervals of all measures: shorter, less promised.")
    ] = False,
    bundle: Bundles = None,
    output: Annotated[
        Path | None, typer.Option(help="File to write.", show_default="calibration.json beside the weights")
    ] = None,
    reference_labels: Annotated[
        str | None,
        typer.Option(
            metavar="1=LV,2=Myo,3=RV",
            help="Names of the references' label values.",
            show_default="a dataset.json with them, else the model's numbers",
        ),
    ] = None,
    spacing: SpacingText = None,
    dask: Dask = None,
    dask_config: DaskConfig = None,
    as_json: AsJson = False,
) -> None:
    """Fit probabilities and intervals to patients of known truth, for these weights and settings.

    Patients that trained the network are refused. Segment applies the result by default; masks and values stay as they
    are, probabilities, entropy maps and 90 % intervals change. Intervals, of hearts, need nine patients.
    """
    from cgdpm_med.evaluation.calibrate import calibrate as run
    from cgdpm_med.evaluation.calibrate import format_calibration

    heart, runs = chosen_bundle(bundle)
    changes: dict[str, Any] = {
        "members": members,
        "steps": steps,
        "timesteps": visited_timesteps(timesteps, steps),
        "method": method and method.value,
        "seed": seed,
        "weights": weights and str(reachable(weights, dask)),
        "guidance_scale": guidance_scale,
    }
    if all_pieces:
        changes["one_body"] = False
    how: Any = {"section": section, "split": split, "device": device, "output": output, **changes}
    if runs:
        refuse_others(
            context,
            {name for name in context.params if name not in ("spacing", "reference_labels", "all_pieces", "together")},
        )
        fit: Any = partial(_calibrate_runs, runs=[str(reachable(Path(name), dask)) for name in runs])
    else:
        bundled = reachable_bundle(heart, dask)
        fit = partial(
            run, bundle=bundled, spacing=voxel_size(spacing), reference_labels=reference_labels, together=together
        )
    with opened_engine(dask, dask_config) as engine:
        result = fit(reachable(source, dask), engine=engine, **how)
    if as_json:
        print_json(result)
    else:
        typer.echo(f"{format_calibration(result)}\nwritten to {result['file']}")


def _calibrate_runs(source: Path, runs: list[str], **how: Any) -> Any:
    from cgdpm_med.apps.calibrate_slices import calibrate_runs

    return calibrate_runs(source, runs, **how)
