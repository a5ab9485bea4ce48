"""The ``cgdpm-med`` command: it reads arguments, calls one function of an application module, and reports errors.

Application modules are imported inside the commands, so that ``--help`` answers at once.
Exit codes: 0 if every input succeeded, 1 if one failed, 2 if the command line itself was wrong.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="cgdpm-med",
    help="Conditional guided diffusion for medical images. For research; not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, for machines.")]


def main() -> None:
    """Run the command line; a bad input or a file error ends in one line on standard error and exit code 1.

    With ``CGDPM_DEBUG=1`` in the environment the traceback is shown instead.
    """
    try:
        app()
    except Exception as error:
        if os.environ.get("CGDPM_DEBUG") == "1" or not _is_users_to_mend(error):
            raise
        typer.secho("error: " + " ".join(str(error).splitlines()), fg=typer.colors.RED, err=True)
        sys.exit(1)


def _is_users_to_mend(error: Exception) -> bool:
    from cgdpm_med.volumes import InputError

    return isinstance(error, (InputError, OSError))


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def _print_version(wanted: bool) -> None:
    if wanted:
        from cgdpm_med import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def info(as_json: AsJson = False) -> None:
    """Versions, device, bundles and the hashes of their weights."""
    from cgdpm_med.apps.info import collect_info, info_lines

    collected = collect_info()
    if as_json:
        _print_json(collected)
    else:
        typer.echo("\n".join(info_lines(collected)))


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write; made if absent.")],
    patients: Annotated[int, typer.Option(min=1, max=999, help="How many synthetic patients.")] = 1,
    seed: Annotated[int, typer.Option(help="The same seed writes the same patients.")] = 0,
    cine: Annotated[bool, typer.Option("--cine", help="Write the 4D cine of each patient as well.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write synthetic short-axis cine studies, with their masks, in ACDC's folder layout."""
    from cgdpm_med.phantom import write_phantom_dataset

    folders = [str(folder) for folder in write_phantom_dataset(out, patients=patients, seed=seed, cine=cine)]
    if as_json:
        _print_json({"patients": folders})
    else:
        typer.echo("\n".join(folders))


if __name__ == "__main__":
    main()
