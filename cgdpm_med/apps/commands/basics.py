"""``cgdpm-med info``, ``phantom`` and ``demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cgdpm_med.apps.commands.options import AsJson, Bundle, Device, Members, Seed, Steps, Weights, print_json


def info(
    model: Annotated[Path | None, typer.Argument(help="A model file, to say what it is.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Versions, device, bundles and the digests of their weights; or what a model file says of itself."""
    from cgdpm_med.apps.info import collect_info, info_lines, model_lines
    from cgdpm_med.models.files import describe_file

    collected = collect_info() if model is None else describe_file(model)
    if as_json:
        print_json(collected)
    else:
        typer.echo("\n".join(info_lines(collected) if model is None else model_lines(collected)))


def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write; made if absent.")],
    patients: Annotated[int, typer.Option(min=1, max=99, help="How many synthetic patients.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The same seed writes the same patients.")] = 0,
    cine: Annotated[bool, typer.Option("--cine", help="Write the 4D cine of each patient as well.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write synthetic short-axis cine studies, with their masks, in ACDC's folder layout."""
    from cgdpm_med.files import check_folder
    from cgdpm_med.phantom import write_phantom_dataset

    check_folder(out)
    folders = [str(folder) for folder in write_phantom_dataset(out, patients=patients, seed=seed, cine=cine)]
    if as_json:
        print_json({"patients": folders})
    else:
        typer.echo("\n".join(folders))


def demo(
    out: Annotated[Path, typer.Argument(help="Folder to write; made if absent.")] = Path("demo_output"),
    members: Members = None,
    steps: Steps = None,
    seed: Seed = None,
    device: Device = "auto",
    weights: Weights = None,
    bundle: Bundle = "acdc_segmentation",
    as_json: AsJson = False,
) -> None:
    """Segment a synthetic patient with the shipped weights and compare with its known truth."""
    from cgdpm_med.apps.demo import run_demo

    result = run_demo(
        out,
        bundle=bundle,
        device=device,
        report=(lambda text: None) if as_json else typer.echo,
        members=members,
        steps=steps,
        seed=seed,
        weights=weights and str(weights),
    )
    if as_json:
        print_json(result)
