"""Patients in ACDC's layout that nobody looks into."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path


def write_cohort(root: Path, names: Iterable[str], group_of: Callable[[str], str] = lambda name: "NOR") -> Path:
    """Patients with their diagnostic groups; their images are empty files."""
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "Info.cfg").write_text(f"ED: 1\nES: 9\nGroup: {group_of(name)}\n", encoding="utf-8")
        for frame in (1, 9):
            for ending in ("", "_gt"):
                (root / name / f"{name}_frame{frame:02d}{ending}.nii.gz").touch()
    return root
