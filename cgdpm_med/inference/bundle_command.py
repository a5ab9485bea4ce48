"""What ``python -m monai.bundle run`` lacks for a user: refusing mistyped overrides, and errors in one line."""

from __future__ import annotations

import difflib
import inspect
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from cgdpm_med.console import input_error_behind
from cgdpm_med.files import InputError

_PROGRAM = ("monai", "bundle", "__main__.py")
_SUBCOMMANDS = ("run", "run_workflow")


def check_command() -> None:
    """For a configuration's ``initialize``; does nothing where another program runs it.

    From here on a bad input ends the process with one line, its last, on standard error; ``CGDPM_DEBUG=1`` shows the
    traceback. Other errors show theirs, and end in the line of what caused them.

    Raises:
        InputError: an override, on the command line or in ``args_file``, names a key that the configuration lacks, or
            is the text true or false.
    """
    if Path(sys.argv[0]).parts[-3:] == _PROGRAM and sys.argv[1:2] and sys.argv[1] in _SUBCOMMANDS:
        sys.excepthook = _last_line
        arguments = given_arguments(sys.argv[2:])
        refuse_unknown(arguments)
        refuse_words(arguments)


def given_arguments(words: Sequence[str]) -> dict[str, Any]:
    """The arguments of a ``monai.bundle`` command by name, those of ``args_file`` behind its own.

    Args:
        words: behind the name of the command: ``--name value`` and ``--name=value``.
    """
    from monai.bundle import ConfigParser

    named = dict(_named(words))
    if "args_file" not in named:
        return named
    return {**ConfigParser.load_config_files(named["args_file"]), **named}


def _named(words: Sequence[str]) -> Iterator[tuple[str, Any]]:
    # what monai.bundle itself reads them with
    from fire.parser import DefaultParseValue, SeparateFlagArgs  # type: ignore[import-untyped]

    words = SeparateFlagArgs(list(words))[0]
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            yield name.replace("-", "_"), DefaultParseValue(value if equals else following)


def refuse_unknown(arguments: Mapping[str, Any]) -> None:
    """Raise InputError for the first of a command's arguments that is neither its own nor a key of the configuration.

    A key below an entry with ``_target_`` is an argument of what is called there, which refuses it itself.
    """
    from monai.bundle import ConfigParser

    if not arguments.get("config_file"):
        return
    content = ConfigParser.load_config_files(arguments["config_file"])
    for name in sorted(arguments.keys() - _own_arguments()):
        if (unknown := _lacking(content, name.replace("::", "#").split("#"))) is not None:
            raise unknown


def refuse_words(arguments: Mapping[str, Any]) -> None:
    """Raise InputError for the words true and false: MONAI reads True and False alone, and any text counts as true."""
    for name, value in sorted(arguments.items()):
        if isinstance(value, str) and value.lower() in ("true", "false"):
            raise InputError(f"{name} {value} is a text, which counts as true", remedy=f"Write {value.capitalize()}")


def _own_arguments() -> set[str]:
    """Names that MONAI takes itself, those of its experiment tracking among them."""
    from monai.bundle import ConfigWorkflow, run
    from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

    parameters = {*inspect.signature(run).parameters, *inspect.signature(ConfigWorkflow).parameters}
    return {*parameters, "workflow_name", "save_execute_config", *DEFAULT_MLFLOW_SETTINGS["configs"]}


def _lacking(content: Any, path: Sequence[str], above: str = "") -> InputError | None:
    """What is wrong with a key's path; None where it does not leave the configuration."""
    if not path or not isinstance(content, Mapping):
        return None  # a list's place, or what stands behind a reference: MONAI judges these
    if path[0] in content:
        return _lacking(content[path[0]], path[1:], f"{above}{path[0]}#")
    return None if "_target_" in content else _unknown(above, path[0], [key for key in content if key[0] != "_"])


def _unknown(above: str, name: str, keys: Sequence[str]) -> InputError:
    close = difflib.get_close_matches(name, keys, n=2, cutoff=0.5)
    among = [above + key for key in close or keys]
    remedy = f"Did you mean {' or '.join(among)}" if close else f"Choose among {', '.join(among)}"
    return InputError(f"the configuration has no key '{above}{name}'", remedy=remedy)


def _last_line(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    known = input_error_behind(error)
    if known is None or os.environ.get("CGDPM_DEBUG") == "1":
        sys.__excepthook__(kind, error, traceback)
    cause = known or _first_cause(error)
    what = str(cause) if isinstance(cause, InputError) else f"{type(cause).__name__}: {cause}"
    sys.stderr.write("error: " + " ".join(what.splitlines()) + "\n")


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
