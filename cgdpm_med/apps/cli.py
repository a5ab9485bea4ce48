"""The ``cgdpm-med`` command: its commands in their order, and how errors and interrupts end.

Application modules are imported inside the commands, so that ``--help`` answers at once.
Exit codes: 0 if every input succeeded, 1 if one failed, 2 if the command line itself was wrong.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from typing import Annotated, Any

import typer

from cgdpm_med.apps.commands.archive import archive
from cgdpm_med.apps.commands.basics import demo, info, phantom
from cgdpm_med.apps.commands.export import export
from cgdpm_med.apps.commands.scores import compare, evaluate
from cgdpm_med.apps.commands.segment import cohort, segment, view
from cgdpm_med.apps.commands.super_resolve import super_resolve
from cgdpm_med.apps.commands.train import calibrate, plan, train
from cgdpm_med.runtime.allocator import keep_freed_memory

app = typer.Typer(
    name="cgdpm-med",
    help="Conditional guided diffusion for medical images. For research; not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain text: rich's pages take as long to import as all the rest
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; a bad input or a file error ends in one line on standard error and exit code 1.

    With ``CGDPM_DEBUG=1`` in the environment the traceback is shown instead. An interrupt or a request to terminate
    ends in one line too, with the exit code that shells expect (130, 143), and leaves no partial file.
    """
    warnings.showwarning = _note_or(warnings.showwarning)
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        app()
    except Interrupted as stop:
        typer.secho(f"interrupted: what is finished is complete{_the_rest()}", err=True)
        sys.exit(stop.code)
    except Exception as error:
        if os.environ.get("CGDPM_DEBUG") == "1" or not _is_users_to_mend(error):
            raise
        typer.secho("error: " + " ".join(str(error).splitlines()), fg=typer.colors.RED, err=True)
        sys.exit(1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Interrupted(SystemExit):
    """Raised where a signal found the program, so that every file being written is cleared away."""


_THE_REST = {"segment": "; segment --continue does the rest", "train": "; the same command does the rest"}


def _the_rest() -> str:
    return "".join(_THE_REST.get(command, "") for command in sys.argv[1:2])


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted(128 + number)


def _is_users_to_mend(error: Exception) -> bool:
    from cgdpm_med.files import InputError

    return isinstance(error, (InputError, OSError))


def _note_or(show: Any) -> Any:
    """This package's own warnings in one plain line; all others as before."""

    def show_warning(message: Warning | str, category: type[Warning], *rest: Any) -> None:
        if category.__module__.startswith("cgdpm_med."):
            typer.secho(f"note: {message}", fg=typer.colors.YELLOW, err=True)
        else:
            show(message, category, *rest)

    return show_warning


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
    keep_freed_memory()


for command in (
    info,
    phantom,
    segment,
    plan,
    train,
    calibrate,
    cohort,
    view,
    archive,
    super_resolve,
    evaluate,
    compare,
    export,
    demo,
):
    app.command(short_help=(command.__doc__ or "").partition("\n\n")[0])(command)


if __name__ == "__main__":
    main()
