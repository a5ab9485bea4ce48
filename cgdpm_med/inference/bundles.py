"""Where the bundles and recipes lie, inside the installed package or at the top of a checkout, and what they build."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgdpm_med.console import input_error_behind
from cgdpm_med.files import InputError

if TYPE_CHECKING:
    from cgdpm_med.models.description import Input

_PACKAGE = Path(__file__).resolve().parents[1]


def bundles_folder(package: Path = _PACKAGE) -> Path:
    """Folder that holds all bundles: ``cgdpm_med/bundles`` when installed, else ``bundles`` beside the package."""
    return _installed_or_beside(package, "bundles")


def recipes_folder(package: Path = _PACKAGE) -> Path:
    """Folder that holds all recipes: bundles that come without weights."""
    return _installed_or_beside(package, "recipes")


def _installed_or_beside(package: Path, name: str) -> Path:
    installed = package / name
    return installed if installed.is_dir() else package.parent / name


def list_bundles(folder: Path | None = None) -> list[str]:
    """Names of the bundles below ``folder`` (default: the ones that came with this package), in alphabetical order.

    A bundle is a folder with ``configs/metadata.json``.
    """
    folder = folder or bundles_folder()
    return sorted(metadata.parents[1].name for metadata in folder.glob("*/configs/metadata.json"))


def list_recipes() -> list[str]:
    """Names of the recipes that came with this package, in alphabetical order."""
    return list_bundles(recipes_folder())


def bundle_path(name: str) -> Path:
    """Folder of the bundle or recipe called ``name``, for example ``"acdc_segmentation"``.

    Raises:
        InputError: none has this name; the message lists the names there are.
    """
    places = {known: recipes_folder() / known for known in list_recipes()}
    places |= {known: bundles_folder() / known for known in list_bundles()}
    if name not in places:
        names = [*list_bundles(), *list_recipes()]
        remedy = f"Use {', '.join(names)}, or a bundle's folder" if names else "Give the folder of a bundle"
        raise InputError(f"there is no bundle named {name!r}", remedy=remedy)
    return places[name]


def bundle_folder(bundle: str | Path) -> Path:
    """A bundle's folder as it was given, or that of a name; raises InputError as :func:`bundle_path`."""
    return Path(bundle) if Path(bundle).is_dir() else bundle_path(str(bundle))


def built_from_bundle(
    bundle: str | Path,
    entry: str,
    overrides: Mapping[str, Any],
    *,
    example: str,
    unknown: Callable[[str, Sequence[str]], str],
    inputs: tuple[type[Input], ...] = (),
) -> Any:
    """What an entry of a bundle's inference configuration builds.

    Args:
        bundle: name of a bundle, or its folder.
        overrides: keys of ``configs/inference.yaml``, with other values.
        example: of a bundle that has the entry, for the error where it has none.
        unknown: the remedy for a key that the configuration lacks, given it and those there are.
        inputs: what the entry's networks see, to tell weights of another task where they do not fit.

    Raises:
        InputError: for an unknown bundle, entry or key, weights of another task, an override that cannot be, steps
            beside timesteps, or whatever the configuration cannot build.
    """
    from monai.bundle import ConfigParser

    root = bundle_folder(bundle)
    config = root / "configs" / "inference.yaml"
    parser = ConfigParser()
    try:
        parser.read_config(str(config))
    except Exception as error:  # a missing file, or whatever a YAML parser finds
        raise unusable(config, error) from error
    parser["bundle_root"] = str(root)
    if entry not in parser:
        raise InputError(f"has no {entry}", path=config, remedy=f"Give a bundle that has one, such as {example}")
    if missing := [name for name in overrides if name not in parser]:
        known = [key for key in parser.get() if not key.startswith("_")]
        remedy = unknown(missing[0], known)
        raise InputError(f"the configuration has no key {missing[0]!r}", path=config, remedy=remedy)
    for name, value in _walk_once(overrides, parser).items():
        parser[name] = value
    try:
        return parser.get_parsed_content(entry)
    except Exception as error:  # MONAI wraps whatever a configuration raises
        of_weights = _of_another_task(overrides.get("weights"), inputs)
        plain = of_weights or input_error_behind(error) or _of_override(overrides, error)
        raise plain or unusable(config, error) from error


def _walk_once(overrides: Mapping[str, Any], known: Container[str]) -> Mapping[str, Any]:
    """Steps take the place of timesteps that the configuration names; said together they contradict each other."""
    if overrides.get("steps") is None or "timesteps" not in known:
        return overrides
    if overrides.get("timesteps") is not None:
        raise InputError("steps and timesteps cannot both be given", remedy="Leave out one of them")
    return {**overrides, "timesteps": None}


def _of_another_task(weights: str | Path | None, inputs: tuple[type[Input], ...]) -> InputError | None:
    """What to say of a model file whose network sees something else than ``inputs``; None where that is not known."""
    from cgdpm_med.models.description import INPUTS, ModelDescription  # torch, which the names of bundles do not need
    from cgdpm_med.models.weights import read_content

    if weights is None or not inputs:
        return None
    try:
        content = read_content(weights)[1]
        if content is None or isinstance(seen := ModelDescription.from_dict(content, weights).input, inputs):
            return None
    except InputError:  # it has said so already
        return None
    kind = next(name for name, chosen in INPUTS.items() if isinstance(seen, chosen))
    what = f"is of another task: its network sees the input {kind!r}"
    wanted = " or ".join(repr(name) for name, chosen in INPUTS.items() if chosen in inputs)
    return InputError(what, path=weights, remedy=f"Give weights whose input is {wanted}, or leave them out")


def _of_override(overrides: Mapping[str, Any], error: BaseException) -> InputError | None:
    """A complaint that begins with the name of what was given in place of the configuration's own."""
    what = _innermost(error)
    given = {name: re.match(rf"(the )?{name.replace('_', '[ _]')} must\b", what) for name in overrides}
    named = next((name for name, found in given.items() if found), None)
    return None if named is None else InputError(what, remedy=f"Give another value of {named}, or leave it out")


def unusable(config: Path, error: BaseException) -> InputError:
    """The innermost complaint about a configuration; MONAI's own run over many lines."""
    what = f"cannot be used: {_innermost(error)}"
    return InputError(what, path=config, remedy="Correct the configuration or the option")


def _innermost(error: BaseException) -> str:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return " ".join(str(error).split())[:300] or type(error).__name__
