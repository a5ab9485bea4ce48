"""Options that several commands share, how their texts are read, and how results are printed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer


class Method(str, Enum):
    """Samplers."""

    ddim = "ddim"
    ddpm = "ddpm"
    dpmpp_2m = "dpmpp_2m"


class Combination(str, Enum):
    """How the members' masks become one."""

    mean = "mean"
    majority = "majority"
    staple = "staple"


class Identity(str, Enum):
    """Whether DICOM segmentations name the patient."""

    deidentified = "deidentified"
    identified = "identified"


class Precision(str, Enum):
    """Numerical precision of the network."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


Members = Annotated[
    int | None, typer.Option(min=1, help="Number of masks in the ensemble.", show_default="the bundle's")
]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Number of sampling steps of each mask.", show_default="the bundle's")
]
Timesteps = Annotated[
    str | None,
    typer.Option(metavar="T,T,…", help="Timesteps to visit instead, such as 999,666,333.", show_default="the bundle's"),
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(min=0, help="Weight w of the guidance network; 0 turns it off.", show_default="the bundle's"),
]
AllPieces = Annotated[
    bool,
    typer.Option("--all-pieces", help="Keep what lies apart from the rest of the heart; by default it is counted."),
]
Seed = Annotated[
    int | None, typer.Option(min=0, help="The same seed gives the same masks.", show_default="the bundle's")
]
Device = Annotated[str, typer.Option(help="auto (the first there is of CUDA, MPS, CPU), cpu, cuda, cuda:1 or mps.")]
LabelNames = Annotated[
    str | None,
    typer.Option(
        metavar="1=LV,2=Myo,3=RV",
        help="Names of the label values.",
        show_default="a dataset.json with them, else ACDC's",
    ),
]
ReferenceLabels = Annotated[
    str | None,
    typer.Option(help="Names of the references' label values, where the two differ.", show_default="--labels"),
]
IgnoreGeometry = Annotated[
    bool, typer.Option("--ignore-geometry", help="Pair voxels as stored, on the reference's grid; shapes must agree.")
]
Weights = Annotated[Path | None, typer.Option(help="Weights to use.", show_default="the bundle's")]
Bundle = Annotated[str, typer.Option(help="Name of a bundle (see info), or its folder.")]
Bundles = Annotated[
    list[str] | None,
    typer.Option(
        "--bundle",
        help="Name of a bundle (see info), or its folder; of runs of train, several draw the members together.",
        show_default="acdc_segmentation",
    ),
]
SpacingText = Annotated[
    str | None,
    typer.Option(
        "--spacing",
        help="Voxel size: x,y,z in mm such as 1.5,1.5,8, or, of NIfTI, the header's pixdim or affine.",
        show_default="the header's, by a rule",
    ),
]
Dask = Annotated[
    str | None,
    typer.Option(
        "--dask",
        metavar="CLUSTER",
        help="Workers of Dask do the work: local:2 for two processes, tcp://HOST:PORT of a scheduler, or slurm.",
    ),
]
DaskConfig = Annotated[
    Path | None, typer.Option("--dask-config", help="YAML file with jobs and cluster, for --dask slurm.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, for machines.")]


def exit_code(failed: Any) -> None:
    """End with exit code 1 if anything failed."""
    if failed:
        raise typer.Exit(1)


def place_of_results(out: Path) -> str:
    """Where they lie, as the end of a line; "" where nothing was written."""
    return f"; results in {out}" if out.exists() else ""


@contextmanager
def opened_engine(dask: str | None, config: Path | None) -> Iterator[Any]:
    """What ``--dask`` names, until the work is done; this process where it is not given."""
    from cgdpm_med.runtime.engines import InProcess

    if dask is None:
        if config is not None:
            raise typer.BadParameter("is for --dask slurm", param_hint="--dask-config")
        yield InProcess()
        return
    from cgdpm_med.apps.cluster import open_cluster

    with open_cluster(dask, config, say=lambda line: typer.echo(line, err=True)) as engine:
        yield engine


def reachable(path: Path, dask: str | None) -> Path:
    """As workers with other working folders see it."""
    return path.absolute() if dask else path


def reachable_bundle(bundle: str, dask: str | None) -> str:
    """The same, where it is a folder and no name."""
    return str(reachable(Path(bundle), dask)) if Path(bundle).is_dir() else bundle


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(value, indent=2))


def chosen_bundle(bundles: list[str] | None) -> tuple[str, list[str]]:
    """The bundle that is no run of train, or ""; and the runs. Both are never given.

    Raises:
        typer.BadParameter: several bundles that are not all runs.
    """
    from cgdpm_med.apps.segment_slices import is_run

    named = bundles or ["acdc_segmentation"]
    runs = [bundle for bundle in named if is_run(bundle)]
    if not runs and len(named) == 1:
        return named[0], []
    if others := [bundle for bundle in named if bundle not in runs]:
        raise typer.BadParameter(
            f"{others[0]!r} is no run of train, and only those are combined", param_hint="--bundle"
        )
    return "", runs


def refuse_others(context: typer.Context, known: set[str]) -> None:
    """Refuse options that were given and are not for a bundle that train wrote."""
    for name in context.params:
        given = str(getattr(context.get_parameter_source(name), "name", "")) == "COMMANDLINE"
        if given and name not in known:
            option = next(p.opts[0] for p in context.command.params if p.name == name)
            raise typer.BadParameter("is not for a bundle that train wrote: leave it out", param_hint=option)


def voxel_size(text: str | None) -> Any:
    """``--spacing`` as :func:`~cgdpm_med.volumes.parse_spacing` reads it, or the end with exit code 2."""
    from cgdpm_med.files import InputError
    from cgdpm_med.volumes import parse_spacing

    try:
        return parse_spacing(text)
    except InputError as error:
        typer.secho(f"error: --spacing: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(2) from error


def guidance_timesteps(text: str) -> list[int]:
    """``LOW:HIGH`` as two numbers."""
    low, colon, high = text.partition(":")
    if not (colon and low.isdigit() and high.isdigit()):
        raise typer.BadParameter(f"{text!r} is not LOW:HIGH, such as 200:1000", param_hint="--guidance-interval")
    return [int(low), int(high)]


def visited_timesteps(text: str | None, steps: int | None) -> list[int] | None:
    """``T,T,…`` as numbers; ``--steps`` beside it is refused."""
    if text is None:
        return None
    if steps is not None:
        raise typer.BadParameter("they say how many steps there are: leave out --steps", param_hint="--timesteps")
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise typer.BadParameter(f"{text!r} are no timesteps, such as 999,666,333", param_hint="--timesteps")
    return [int(word) for word in words]
