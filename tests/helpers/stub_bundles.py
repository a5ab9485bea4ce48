"""Bundles whose segmenter is a stub, which thus stands in whatever process builds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]


def stub_bundle(folder: Path, target: str, /, **arguments: Any) -> Path:
    """A bundle that calls ``target``, such as ``stubs.Thresholder``."""
    content = {"bundle_root": ".", "device": "cpu", "segmenter": {"_target_": target, **arguments}}
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "inference.yaml").write_text(yaml.safe_dump(content))
    return folder
