"""``cgdpm-med evaluate`` and ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cgdpm_med.apps.commands.options import (
    AsJson,
    Dask,
    DaskConfig,
    IgnoreGeometry,
    LabelNames,
    ReferenceLabels,
    SpacingText,
    chosen_bundle,
    exit_code,
    opened_engine,
    print_json,
    reachable,
    voxel_size,
)


def _labels(text: str | None, option: str) -> Any:
    from cgdpm_med.evaluation.label_names import parse_labels
    from cgdpm_med.files import InputError

    try:
        return None if text is None else parse_labels(text, option)
    except InputError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def _by_method(texts: list[str], methods: list[str]) -> dict[str, Any]:
    """Labels by method; those given without a method's name hold for all others."""
    option, found = "--prediction-labels", {}
    for text in texts:
        named = [method for method in methods if text.startswith(f"{method}:")]
        name = max(named, key=len, default="")  # a method's name may hold a colon
        if not name and ":" in text:
            raise typer.BadParameter(f"there is no method {text.partition(':')[0]!r}", param_hint=option)
        found[name] = _labels(text.removeprefix(f"{name}:"), option)
    return {name: found.get(name, found.get("")) for name in methods}


def _methods(texts: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise typer.BadParameter(f"{text!r} is not NAME=FOLDER", param_hint="A=DIR")
        if name in found:
            raise typer.BadParameter(f"{name!r} is given twice", param_hint="A=DIR")
        found[name] = Path(folder)
    if len(found) < 2:
        raise typer.BadParameter("two methods at least are compared", param_hint="A=DIR B=DIR")
    return found


def _to_stderr(lines: list[str]) -> None:
    for line in lines:
        typer.secho(line, fg=typer.colors.YELLOW, err=True)


def _runs(bundles: list[str]) -> list[str]:
    heart, runs = chosen_bundle(bundles)
    if heart:
        raise typer.BadParameter(f"{heart!r} is no run of train: leave it out", param_hint="--bundle")
    return runs


def evaluate(
    predictions: Annotated[Path, typer.Argument(metavar="PRED", help="Predicted masks: a folder, or one file.")],
    references: Annotated[Path, typer.Argument(metavar="REF", help="Reference masks: a folder, or one file.")],
    out: Annotated[Path | None, typer.Option(help="Folder for cases.csv, summary.json and left_out.csv.")] = None,
    labels: LabelNames = None,
    reference_labels: ReferenceLabels = None,
    prediction_labels: Annotated[
        str | None,
        typer.Option(help="Names of the predictions' label values, where the two differ.", show_default="--labels"),
    ] = None,
    ignore_geometry: IgnoreGeometry = False,
    spacing: SpacingText = None,
    bundle: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", help="Run of train that made the masks: its names, none of its training patients."),
    ] = None,
    dask: Dask = None,
    dask_config: DaskConfig = None,
    as_json: AsJson = False,
) -> None:
    """Score masks against references: Dice, HD95 and ASSD for each structure, volume by volume.

    Masks are volumes or pictures. Files pair by name; the endings _gt (ACDC) and _0000 (nnU-Net) do not count. 4D masks
    are scored frame by frame, those that the reference does not draw left out. Structures that no reference holds are
    named and left out.
    """
    from cgdpm_med.evaluation.files import format_summary, notes
    from cgdpm_med.evaluation.masks import evaluate_folders

    how: Any = {
        "labels": _labels(labels, "--labels"),
        "prediction_labels": _labels(prediction_labels, "--prediction-labels"),
        "reference_labels": _labels(reference_labels, "--reference-labels"),
        "ignore_geometry": ignore_geometry,
        "spacing": voxel_size(spacing),
    }
    runs = _runs(bundle) if bundle else []
    with opened_engine(dask, dask_config) as engine:
        sides = reachable(predictions, dask), reachable(references, dask)
        if runs:
            from cgdpm_med.apps.evaluate_masks_of_runs import evaluate_masks_of_runs

            summary = evaluate_masks_of_runs(*sides, runs, output=out, engine=engine, **how)
        else:
            summary = evaluate_folders(*sides, output=out, engine=engine, **how)
    if as_json:
        print_json(summary)
        _to_stderr(notes(summary))
    else:
        typer.echo(format_summary(summary))
    exit_code(summary["failed"])


def compare(
    references: Annotated[Path, typer.Argument(metavar="REF", help="Folder of reference masks.")],
    methods: Annotated[
        list[str], typer.Argument(metavar="A=DIR B=DIR ...", help="Two or more methods: a name and its masks.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for the tables: CSV, Markdown, LaTeX, JSON.")] = None,
    labels: LabelNames = None,
    reference_labels: ReferenceLabels = None,
    prediction_labels: Annotated[
        list[str] | None,
        typer.Option(
            help="Names of the label values of all methods, or NAME:1=LV,... of one; may be repeated.",
            show_default="--labels",
        ),
    ] = None,
    patient_pattern: Annotated[
        str | None,
        typer.Option(help="Regular expression: its first group in a case's key is the patient."),
    ] = None,
    ignore_geometry: IgnoreGeometry = False,
    spacing: SpacingText = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the bootstrap.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Compare methods on the same cases: paired differences of Dice, HD95 and ASSD, with patients as the unit.

    Means and differences over patients, BCa bootstrap intervals that draw patients, Wilcoxon's signed-rank test with
    Holm's correction over all tests of the table. A case that one method lacks is named and left out for all.
    """
    from cgdpm_med.evaluation.compare import compare_methods
    from cgdpm_med.evaluation.compare_files import comparison_notes, format_comparison

    named = _methods(methods)
    comparison = compare_methods(
        references,
        named,
        out,
        labels=_labels(labels, "--labels"),
        reference_labels=_labels(reference_labels, "--reference-labels"),
        prediction_labels=_by_method(prediction_labels or [], list(named)),
        patient_pattern=patient_pattern,
        ignore_geometry=ignore_geometry,
        spacing=voxel_size(spacing),
        seed=seed,
    )
    if as_json:
        print_json(comparison)
        _to_stderr(comparison_notes(comparison))
    else:
        typer.echo(format_comparison(comparison))
    exit_code(comparison["failed"])
