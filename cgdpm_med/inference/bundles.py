"""Where the bundles and recipes lie: inside the installed package, or at the top of a checkout."""

from __future__ import annotations

from pathlib import Path

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
