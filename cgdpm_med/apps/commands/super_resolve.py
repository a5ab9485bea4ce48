"""``cgdpm-med super-resolve``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from cgdpm_med.apps.commands.options import (
    AsJson,
    Dask,
    DaskConfig,
    Device,
    GuidanceScale,
    Method,
    Precision,
    SpacingText,
    exit_code,
    opened_engine,
    place_of_results,
    print_json,
    reachable,
    reachable_bundle,
    voxel_size,
)

ALIKE = "note: one step makes almost the same image each time, and their spread says nothing: give more --steps"
CALM = "note: samples of --noise-scale below 1 are more alike than the truth allows: their spread is too small"


def super_resolve(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN", help="A picture (PNG, JPEG, TIFF), a volume (NIfTI, NRRD, MetaImage), or a folder of them."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; made if absent.")],
    bundle: Annotated[
        str | None,
        typer.Option(
            help="Name of a super-resolution bundle (see info), or its folder; pictures need one.",
            show_default="cardiac_sr for volumes",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="Weights of the bundle, or without one an ADM upsampler's.", show_default="the bundle's"),
    ] = None,
    factor: Annotated[
        int | None,
        typer.Option(
            min=2, help="How many times finer, of a bundle with weights for several.", show_default="4 of cardiac_sr"
        ),
    ] = None,
    class_index: Annotated[
        int | None, typer.Option(min=0, help="ImageNet class of the images, for ADM weights.")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(min=1, help="Side of the network's window in pixels.", show_default="the bundle's; ADM: 256"),
    ] = None,
    members: Annotated[
        int | None,
        typer.Option(min=1, help="Number of samples; several give a map of their spread.", show_default="the bundle's"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Number of sampling steps of each sample.", show_default="the bundle's; ADM: 250"),
    ] = None,
    method: Annotated[
        Method | None, typer.Option(help="Sampling method.", show_default="the bundle's; ADM: ddpm")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The same seed gives the same samples.", show_default="the bundle's")
    ] = None,
    noise_scale: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Of the noise that samples start from: below 1 they are closer to the truth and more alike.",
            show_default="the bundle's",
        ),
    ] = None,
    guidance_scale: GuidanceScale = None,
    guidance_weights: Annotated[
        Path | None,
        typer.Option(help="Weights of the bundle's guidance network.", show_default="guidance.pt beside --weights"),
    ] = None,
    project: Annotated[
        bool | None,
        typer.Option(
            help="Make samples of ADM's networks agree with their input.", show_default="the bundle's; ADM: off"
        ),
    ] = None,
    device: Device = "auto",
    precision: Annotated[
        Precision | None, typer.Option(help="Numerical precision of the network.", show_default="the bundle's")
    ] = None,
    spacing: SpacingText = None,
    dask: Dask = None,
    dask_config: DaskConfig = None,
    as_json: AsJson = False,
) -> None:
    """Make pictures, or the slices of a volume, finer: images of any size, in joint overlapping windows.

    Volumes need no option; pictures need --bundle. The detail is synthetic: a network draws it. Each input gets <name>,
    the mean of its samples, <name>.html with before, after and doubt, and <name>.json. Several samples (--members 8)
    also give <name>_sample<k> (of a volume <name>_samples) and <name>_std, their standard deviation at each pixel;
    --steps 1 is the fast mean, for which one sample is enough.
    """
    from cgdpm_med.apps.load_resolver import kinds_of, load_resolvers
    from cgdpm_med.apps.super_resolve import find_images, super_resolve_with

    voxels = voxel_size(spacing)
    load = partial(
        load_resolvers,
        kinds_of(find_images(reachable(source, dask), exclude=out)),
        weights and reachable(weights, dask),
        bundle and reachable_bundle(bundle, dask),
        factor=factor,
        class_index=class_index,
        window=window,
        device=device,
        members=members,
        steps=steps,
        method=method and method.value,
        seed=seed,
        noise_scale=noise_scale,
        guidance_scale=guidance_scale,
        guidance_weights=guidance_weights and str(reachable(guidance_weights, dask)),
        project=project,
        precision=precision and precision.value,
    )
    with opened_engine(dask, dask_config) as engine:
        resolvers = engine.once(load)
        if note := engine.ask(partial(_note_on_spread, resolvers)):
            typer.secho(note, fg=typer.colors.YELLOW, err=True)
        result = super_resolve_with(engine, resolvers, reachable(source, dask), reachable(out, dask), spacing=voxels)
    if as_json:
        print_json(result)
    else:
        typer.echo(f"{len(result['cases'])} super-resolved, {len(result['failed'])} failed{place_of_results(out)}")
    exit_code(result["failed"])


def _note_on_spread(resolvers: Any) -> str:
    """What the spread of several samples does not say, or ""; asked where the networks are."""
    found = resolvers()
    return ALIKE if found.alike_members else CALM if found.calm_members else ""
