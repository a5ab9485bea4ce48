"""What a result was made with: software, settings, weights."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cgdpm_med import __version__
from cgdpm_med.models.weights import weights_digest


@dataclass(frozen=True)
class Provenance:
    """What a result depends on besides its image: software, settings (with the seed), weights by file name and hash."""

    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    weights: Mapping[str, str]


def provenance(settings: Mapping[str, Any], *weights: str | Path) -> Provenance:
    """The versions in use, the settings given, and the SHA-256 of each weights file (its name without the folder).

    Args:
        settings: for example what :func:`~cgdpm_med.inference.predictor.predictor_settings` returns.
    """
    versions = {"cgdpm_med": __version__, "python": platform.python_version()}
    for name in ("torch", "monai", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return Provenance(versions, settings, {Path(path).name: weights_digest(path) for path in weights})
