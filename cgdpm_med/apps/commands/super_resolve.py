"""``cgdpm-med super-resolve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cgdpm_med.apps.commands.options import (
    AsJson,
    Device,
    GuidanceScale,
    Method,
    Precision,
    SpacingText,
    exit_code,
    print_json,
    voxel_size,
)


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
    as_json: AsJson = False,
) -> None:
    """Make pictures, or the slices of a volume, finer: images of any size, in joint overlapping windows.

    Volumes need no option; pictures need --bundle. The detail is synthetic: a network draws it. Each input gets <name>,
    the mean of its samples, <name>.html with before, after and doubt, and <name>.json. Several samples (--members 8)
    also give <name>_sample<k> (of a volume <name>_samples) and <name>_std, their standard deviation at each pixel;
    --steps 1 is the fast mean, for which one sample is enough.
    """
    from cgdpm_med.apps.load_resolver import load_resolvers
    from cgdpm_med.apps.super_resolve import find_images
    from cgdpm_med.apps.super_resolve import super_resolve as run

    voxels = voxel_size(spacing)
    resolvers = load_resolvers(
        find_images(source, exclude=out),
        weights,
        bundle,
        class_index=class_index,
        window=window,
        device=device,
        members=members,
        steps=steps,
        method=method and method.value,
        seed=seed,
        guidance_scale=guidance_scale,
        guidance_weights=guidance_weights and str(guidance_weights),
        project=project,
        precision=precision and precision.value,
    )
    if resolvers.alike_members:
        note = "note: one step makes almost the same image each time, and their spread says nothing: give more --steps"
        typer.secho(note, fg=typer.colors.YELLOW, err=True)
    result = run(resolvers, source, out, spacing=voxels)
    if as_json:
        print_json(result)
    else:
        typer.echo(f"{len(result['cases'])} super-resolved, {len(result['failed'])} failed; results in {out}")
    exit_code(result["failed"])
