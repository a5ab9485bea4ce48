"""``cgdpm-med segment`` and ``cohort``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cgdpm_med.apps.commands.options import (
    AllPieces,
    AsJson,
    Bundles,
    Combination,
    Dask,
    DaskConfig,
    Device,
    GuidanceScale,
    Identity,
    Members,
    Method,
    Precision,
    Seed,
    SpacingText,
    Steps,
    Timesteps,
    Weights,
    chosen_bundle,
    exit_code,
    guidance_timesteps,
    opened_engine,
    place_of_results,
    print_json,
    reachable,
    reachable_bundle,
    refuse_others,
    visited_timesteps,
    voxel_size,
)


def _series_numbers(texts: list[str] | None) -> list[int] | None:
    if not texts:
        return None
    words = [word.strip() for text in texts for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise typer.BadParameter(f"{','.join(texts)!r} are no series numbers, such as 5,7", param_hint="--series")
    return [int(word) for word in words]


def segment(
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="A NIfTI file, a DICOM series, a folder of them, or ACDC's layout.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; made if absent.")],
    members: Members = None,
    steps: Steps = None,
    timesteps: Timesteps = None,
    method: Annotated[Method | None, typer.Option(help="Sampling method.", show_default="the bundle's")] = None,
    seed: Seed = None,
    device: Device = "auto",
    precision: Annotated[
        Precision | None, typer.Option(help="Numerical precision of the network.", show_default="the bundle's")
    ] = None,
    weights: Weights = None,
    guidance_scale: GuidanceScale = None,
    guidance_interval: Annotated[
        str | None,
        typer.Option(help="Timesteps LOW:HIGH at which guidance acts.", show_default="the bundle's"),
    ] = None,
    bundle: Bundles = None,
    write: Annotated[
        str,
        typer.Option(help="What to write, separated by commas: mask, probabilities, entropy, disagreement, members."),
    ] = "mask,entropy,disagreement",
    combine: Annotated[
        Combination | None,
        typer.Option(help="How the members become one mask.", show_default="the bundle's"),
    ] = None,
    keep_largest: Annotated[
        bool, typer.Option("--keep-largest", help="Keep the largest piece of each structure; the rest is counted.")
    ] = False,
    all_pieces: AllPieces = False,
    ed: Annotated[int | None, typer.Option(min=1, help="End-diastolic frame of a cine, from 1.")] = None,
    es: Annotated[int | None, typer.Option(min=1, help="End-systolic frame of a cine, from 1.")] = None,
    height: Annotated[
        float | None, typer.Option(min=1, help="Height of the patient in cm, to index by body surface.")
    ] = None,
    weight: Annotated[
        float | None, typer.Option(min=0.1, help="Weight of the patient in kg, to index by body surface.")
    ] = None,
    spacing: SpacingText = None,
    flip_slices: Annotated[
        bool,
        typer.Option("--flip-slices", help="Slices run from apex to base, or against what the header says of them."),
    ] = False,
    pages: Annotated[bool, typer.Option("--report/--no-report", help="Write an HTML page of each study.")] = True,
    label_table: Annotated[
        bool, typer.Option("--label-table", help="Write names and colours for 3D Slicer and ITK-SNAP.")
    ] = False,
    dicom_seg: Annotated[
        Identity | None,
        typer.Option(help="Write DICOM SEG of DICOM inputs, without or with what identifies the patient."),
    ] = None,
    series: Annotated[
        list[str] | None,
        typer.Option(metavar="N", help="DICOM series to segment, by number: --series 5,7 or --series 5 --series 7."),
    ] = None,
    calibrated: Annotated[
        bool,
        typer.Option("--calibrate/--no-calibration", help="Apply the calibration beside the weights, if it fits."),
    ] = True,
    calibration: Annotated[
        Path | None,
        typer.Option(help="A file that calibrate wrote.", show_default="calibration.json beside the weights"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--continue", help="Leave out studies that are complete and made the same way.")
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(help="Do part i of n, such as 2/8.", show_default="torchrun's RANK and WORLD_SIZE"),
    ] = None,
    dask: Dask = None,
    dask_config: DaskConfig = None,
    as_json: AsJson = False,
) -> None:
    """Segment cardiac MRI: masks with uncertainty maps on the grid of each input, function, checks and a report.

    Each volume or cine gets <name>.nii.gz (0 background, 1 RV, 2 myocardium, 3 LV), <name>_entropy.nii.gz,
    <name>_disagreement.nii.gz, <name>.html and <name>.json; several studies get cohort.csv and cohort.html.
    """
    heart, runs = chosen_bundle(bundle)
    dials = {
        "members": members,
        "steps": steps,
        "timesteps": visited_timesteps(timesteps, steps),
        "method": method and method.value,
        "seed": seed,
        "precision": precision and precision.value,
        "weights": weights and str(weights),
        "guidance_scale": guidance_scale,
        "guidance_interval": guidance_interval and guidance_timesteps(guidance_interval),
        "one_body": False if all_pieces else None,
    }
    if runs:
        refuse_others(context, _OF_RUNS)
        result = _segment_slices(source, out, runs, device, dials, calibrated, calibration, pages)
        _report_segmented(result, out, as_json)
        return
    from cgdpm_med.apps.pipeline import segment as run
    from cgdpm_med.apps.resume import find_shard
    from cgdpm_med.apps.segment_options import Options

    options = Options(
        write=tuple(output.strip() for output in write.split(",")),
        staple=combine is Combination.staple,
        keep_largest=keep_largest,
        ed=ed,
        es=es,
        height=height,
        weight=weight,
        pages=pages,
        dicom_seg=None if dicom_seg is None else dicom_seg.value,
        calibrate=calibrated,
        calibration=calibration and reachable(calibration, dask),
        spacing=voxel_size(spacing),
        flip_slices=flip_slices,
    )
    if dask and shard is not None:
        raise typer.BadParameter("deals out all studies itself: leave out --shard", param_hint="--dask")
    if weights is not None:
        dials["weights"] = str(reachable(weights, dask))
    with opened_engine(dask, dask_config) as engine:
        result = run(
            reachable(source, dask),
            reachable(out, dask),
            bundle=reachable_bundle(heart, dask),
            device=device,
            options=options,
            resume=resume,
            shard=None if dask else find_shard(shard),
            engine=engine,
            label_table=label_table,
            series=_series_numbers(series),
            combine=None if combine is None or combine is Combination.staple else combine.value,
            **dials,
        )
    _report_segmented(result, out, as_json)


def _report_segmented(result: Any, out: Path, as_json: bool) -> None:
    if as_json:
        print_json(result)
    else:
        count = len(result["skipped"])
        skipped = f", {count} {'study' if count == 1 else 'studies'} complete before" if count else ""
        typer.echo(f"{len(result['cases'])} segmented, {len(result['failed'])} failed{skipped}{place_of_results(out)}")
    exit_code(result["failed"])


_OF_RUNS = {
    *("source", "out", "bundle", "members", "steps", "timesteps", "method", "seed", "device", "precision", "weights"),
    *("guidance_scale", "guidance_interval", "calibrated", "calibration", "pages", "as_json"),
}


def _segment_slices(
    source: Path,
    out: Path,
    runs: list[str],
    device: str,
    dials: dict[str, Any],
    calibrated: bool,
    calibration: Path | None,
    pages: bool,
) -> Any:
    from cgdpm_med.apps.segment_images import segment_folder
    from cgdpm_med.apps.segment_slices import calibrate_masks, load_segmenters
    from cgdpm_med.inference.segmenter import choose_device

    if dials["weights"] and len(runs) > 1:
        raise typer.BadParameter("are those of one run: leave them out", param_hint="--weights")
    given = {name: value for name, value in dials.items() if value is not None}
    segmenter = load_segmenters(runs, device=f"$torch.device('{choose_device(device)}')", **given)
    note = calibrate_masks(segmenter, calibration) if calibrated else None
    return segment_folder(segmenter, source, out, pages=pages, notes=[note] if note else [])


def cohort(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder that segment wrote.")], as_json: AsJson = False
) -> None:
    """Make cohort.csv and cohort.html of all finished studies in a folder, after its parts were done apart."""
    from cgdpm_med.report.records import collect_cohort

    result = collect_cohort(out)
    if as_json:
        print_json(result)
    else:
        typer.echo(f"{len(result['studies'])} studies in {', '.join(result['files'])}")


def view(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder that segment wrote.")],
    opened: Annotated[bool, typer.Option("--open/--no-open", help="Open it in the browser.")] = True,
    as_json: AsJson = False,
) -> None:
    """Look through the finished studies of a folder: one page with pictures, filters and a table that sorts.

    The page is OUT/view.html, complete in itself. Pictures come from the studies' own pages.
    """
    from cgdpm_med.report.view import write_view

    made = write_view(out)
    if as_json:
        print_json(made)
    else:
        typer.echo(made["file"])
        if missing := made["without_picture"]:
            typer.secho(f"{len(missing)} studies without a picture: they were segmented with --no-report", err=True)
    if opened and not as_json:
        typer.launch(Path(made["file"]).resolve().as_uri())
