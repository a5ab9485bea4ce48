"""Cases of a remedy followed to the letter, and what they share.

A case is a generator. What it yields first is a command line that must fail with the words the case is marked with;
then it does what the remedy says, and yields the command line that must succeed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from nifti_files import OBLIQUE, nifti, save

Words: TypeAlias = list[Any]
Attempts: TypeAlias = Iterator[Words]
CASES: dict[str, tuple[str, Callable[[Path], Attempts]]] = {}
QUIET = ["--no-report", "--device", "cpu"]


def says(words: str) -> Callable[[Callable[[Path], Attempts]], Callable[[Path], Attempts]]:
    """Registers a case, whose first error must contain these words."""

    def register(case: Callable[[Path], Attempts]) -> Callable[[Path], Attempts]:
        CASES[case.__name__] = words, case
        return case

    return register


def segment(source: Path, *options: Any, out: str = "out") -> Words:
    return ["segment", source, source.parent / out, *QUIET, *options]


def folder(tmp: Path, **files: bytes) -> Path:
    """A folder of a good image and these; ``__`` in a name stands for a dot."""
    (tmp / "in").mkdir()
    save(tmp / "in" / "good.nii", nifti(sform=OBLIQUE))
    for name, content in files.items():
        save(tmp / "in" / name.replace("__", "."), content)
    return tmp / "in"


def elsewhere(path: Path, tmp: Path) -> None:
    (tmp / "elsewhere").mkdir(exist_ok=True)
    path.rename(tmp / "elsewhere" / path.name)
