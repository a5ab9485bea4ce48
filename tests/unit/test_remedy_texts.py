"""What remedies and notes name exists: options on the command at hand, commands, functions, bundles, keywords."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import typer

import cgdpm_med
from cgdpm_med.apps.cli import app
from cgdpm_med.inference.bundles import list_bundles, list_recipes

PACKAGE = Path(cgdpm_med.__file__).parent
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
ELSEWHERE = {"--raw", "--help", "--nthreads"}  # gdcmconv's; typer's own; dask worker's
FOLLOWED_BY = re.compile(r"\bcgdpm-med ([a-z-]+)")
MODULE_OR_NAME = re.compile(r"\bcgdpm_med(?:\.\w+)+")
KEYWORD = re.compile(r"\b(\w+)=(?= in Python)")

# where a text of a module may be read: on every one of these commands its options must exist
COMMANDS_OF = {
    "evaluation/calibrate": {"calibrate"},
    "studies/cases": {"segment"},
    "apps/cluster": {"segment", "evaluate", "calibrate", "super-resolve"},
    "apps/dicomweb": {"archive"},
    "evaluation/compare": {"compare"},
    "apps/calibrate_slices": {"calibrate"},
    "apps/dicom_seg": {"segment"},
    "evaluation/case": {"evaluate"},
    "apps/export": {"export"},
    "apps/hours": {"train", "plan"},
    "heart/checks": {"segment"},
    "evaluation/label_hint": {"evaluate", "compare"},
    "evaluation/label_names": {"evaluate", "compare"},
    "models/export": {"export"},
    "evaluation/mask_grids": {"evaluate", "compare"},
    "apps/pipeline": {"segment"},
    "apps/resume": {"segment"},
    "apps/segment_options": {"segment"},
    "apps/segment_slices": {"segment"},
    "apps/study_run": {"segment"},
    "apps/super_resolve": {"super-resolve"},
    "apps/load_resolver": {"super-resolve"},
    "apps/resolver": {"super-resolve"},
    "apps/train": {"train"},
    "apps/train_stages": {"train"},
    "datasets/": {"plan", "train"},
    "evaluation/reference_labels": {"calibrate", "evaluate", "compare"},
    "evaluation/training_patients": {"calibrate"},
    "volumes/dicom/": {"segment"},  # all modules of the folder
    "volumes/header_geometry": {"segment", "calibrate", "evaluate", "compare", "super-resolve"},
    "volumes/orientation": {"segment"},
    "volumes/spacing": {"segment", "calibrate", "evaluate", "compare", "super-resolve"},
}
SPEAKS_OF_ANOTHER = {
    "evaluation/calibration_file",
    "apps/cli",
    "apps/commands/segment",
    "evaluation/compare_files",
}  # "cgdpm-med calibrate --members 4"


class Text(NamedTuple):
    """A string of the package, with holes for what is put in, and where it stands."""

    module: str
    line: int
    text: str


def texts() -> Iterator[Text]:
    """Every string that is no docstring, those of remedies among them."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        described = {id(part) for node in ast.walk(tree) for part in _said_of(node)}
        for node in ast.walk(tree):
            if id(node) not in described and (text := _text(node)) is not None:
                yield Text(path.relative_to(PACKAGE).with_suffix("").as_posix(), node.lineno, text)  # type: ignore[attr-defined]


def _said_of(node: ast.AST) -> Iterator[ast.AST]:
    """Strings that are docstrings, and the pieces of formatted ones."""
    if isinstance(node, ast.JoinedStr):
        yield from node.values
    for part in getattr(node, "body", []) if isinstance(getattr(node, "body", None), list) else []:
        if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant):
            yield part.value


def _text(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
    return None


def remedies() -> Iterator[Text]:
    """The texts given as ``remedy``, or to a variable of that name."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (value := _remedy(node)) is None:
                continue
            for part in [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]:
                if (text := _text(part)) is not None:
                    yield Text(path.relative_to(PACKAGE).with_suffix("").as_posix(), part.lineno, text)


def _remedy(node: ast.AST) -> ast.expr | None:
    if isinstance(node, ast.keyword) and node.arg == "remedy":
        return node.value
    if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["remedy"]:
        return node.value
    return None


TEXTS, REMEDIES = list(texts()), list(remedies())


def options() -> dict[str, set[str]]:
    """Options by command, those of the program itself under ""."""
    group = typer.main.get_command(app)
    commands = group.commands  # type: ignore[attr-defined]
    names = {
        name: {o for p in command.params for o in (*p.opts, *p.secondary_opts)} for name, command in commands.items()
    }
    return names | {"": {option for parameter in group.params for option in parameter.opts}}


OPTIONS = options()


def commands_of(module: str) -> set[str] | None:
    found = [
        commands
        for name, commands in COMMANDS_OF.items()
        if module == name or (name.endswith("/") and module.startswith(name))
    ]
    return set.intersection(*found) if found else None


def test_there_are_texts_to_look_at() -> None:
    assert len(TEXTS) > 1000
    assert len(REMEDIES) > 150


def test_every_option_named_exists_where_it_is_read() -> None:
    wrong = []
    for module, line, text in TEXTS:
        for option in set(OPTION.findall(text)) - ELSEWHERE:
            known = commands_of(module)
            if known is None:
                there = any(option in names for names in OPTIONS.values())
                there = there and (module in SPEAKS_OF_ANOTHER or not _is_remedy(module, line))
            else:
                named = FOLLOWED_BY.findall(text)  # a text may write out another command
                there = all(option in OPTIONS[command] for command in known)
                there = there or any(option in OPTIONS.get(command, ()) for command in named)
            if not there:
                wrong.append(f"{module}:{line} {option}")
    assert wrong == []


def _is_remedy(module: str, line: int) -> bool:
    return any((remedy.module, remedy.line) == (module, line) for remedy in REMEDIES)


def test_every_command_named_exists() -> None:
    named = {name for text in TEXTS for name in FOLLOWED_BY.findall(text.text)}
    assert {"segment", "calibrate"} <= named
    assert named <= OPTIONS.keys()


def test_every_name_of_the_package_in_a_remedy_exists() -> None:
    for name in {name for text in REMEDIES for name in MODULE_OR_NAME.findall(text.text)}:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute)


def test_every_bundle_in_a_remedy_exists() -> None:
    named = {name for text in REMEDIES for name in re.findall(r"\b(?:acdc|imagenet|face)_\w+", text.text)}
    assert named
    assert named <= {*list_bundles(), *list_recipes()}


def test_every_keyword_in_a_remedy_is_one_of_a_public_function() -> None:
    public = [getattr(cgdpm_med, name) for name in cgdpm_med.__all__]
    parameters = {name for thing in public for function in _functions(thing) for name in _parameters(function)}
    named = {name for text in TEXTS for name in KEYWORD.findall(text.text)}
    assert {"spacing", "split", "class_index"} <= named
    assert named <= parameters


def _functions(thing: object) -> list[object]:
    return [thing, *(method for _, method in inspect.getmembers(thing, inspect.isroutine))]


def _parameters(function: object) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # it has none to look at
        return set()


def test_a_remedy_is_one_short_instruction_that_deletes_nothing() -> None:
    deletes = re.compile(r"\b(delete|remove) (it|them|this|one|the (file|folder|copies))\b", re.IGNORECASE)
    odd = [
        remedy
        for remedy in REMEDIES
        if not (remedy.text[:1].isupper() or remedy.text.startswith("{}"))
        or remedy.text.endswith(".")
        or len(remedy.text.split()) > 25
        or deletes.search(remedy.text)
    ]
    assert odd == []
