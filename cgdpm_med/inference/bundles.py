"""Where the bundles lie: inside the installed package, or at the top of a checkout."""

from __future__ import annotations

from pathlib import Path

from cgdpm_med.files import InputError

_PACKAGE = Path(__file__).resolve().parents[1]


def bundles_folder(package: Path = _PACKAGE) -> Path:
    """Folder that holds all bundles: ``cgdpm_med/bundles`` when installed, else ``bundles`` beside the package."""
    installed = package / "bundles"
    return installed if installed.is_dir() else package.parent / "bundles"


def list_bundles(folder: Path | None = None) -> list[str]:
    """Names of the bundles below ``folder`` (default: the ones that came with this package), in alphabetical order.

    A bundle is a folder with ``configs/metadata.json``.
    """
    folder = folder or bundles_folder()
    return sorted(metadata.parents[1].name for metadata in folder.glob("*/configs/metadata.json"))


def bundle_path(name: str) -> Path:
    """Folder of the bundle called ``name``, for example ``"acdc_segmentation"``.

    Raises:
        InputError: no bundle has this name; the message lists the names there are.
    """
    names = list_bundles()
    if name not in names:
        remedy = f"Use {', '.join(names)}, or a bundle's folder" if names else "Give the folder of a bundle"
        raise InputError(f"there is no bundle named {name!r}", remedy=remedy)
    return bundles_folder() / name
