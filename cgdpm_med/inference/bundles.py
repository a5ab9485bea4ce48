"""Where the bundles and recipes lie, inside the installed package or at the top of a checkout, and what they build."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cgdpm_med.console import input_error_behind
from cgdpm_med.files import InputError

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
) -> Any:
    """What an entry of a bundle's inference configuration builds.

    Args:
        bundle: name of a bundle, or its folder.
        overrides: keys of ``configs/inference.yaml``, with other values.
        example: of a bundle that has the entry, for the error where it has none.
        unknown: the remedy for a key that the configuration lacks, given it and those there are.

    Raises:
        InputError: for an unknown bundle, entry or key, or whatever the configuration cannot build.
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
    for name, value in overrides.items():
        parser[name] = value
    try:
        return parser.get_parsed_content(entry)
    except Exception as error:  # MONAI wraps whatever a configuration raises
        raise input_error_behind(error) or unusable(config, error) from error


def unusable(config: Path, error: BaseException) -> InputError:
    """The innermost complaint about a configuration; MONAI's own run over many lines."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    what = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"cannot be used: {what[:300]}", path=config, remedy="Correct the configuration or the option")
