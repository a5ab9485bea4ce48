"""End-diastole and end-systole by file names: UK Biobank's sa_ED and sa_ES, M&Ms-2's 001_SA_ED and 001_SA_ES."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

_PHASE = re.compile(r"(?<![a-z0-9])(ed|es)(?![a-z0-9])", re.IGNORECASE)
_CINE = re.compile(r"[_\-. ]*(?<![a-z0-9])(cine|4d)(?![a-z0-9])", re.IGNORECASE)


def phase_pairs(keys: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Studies of two images whose names differ in the word ED or ES alone.

    Args:
        keys: of images, such as ``1234567/sa_ED``.

    Returns:
        By the key of the study, which is theirs without the phase (``1234567/sa``), those of ED and ES.
    """
    phases: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for key in keys:
        path = PurePosixPath(key)
        found = list(_PHASE.finditer(path.name))
        if len(found) == 1:
            (match,) = found
            rest = f"{path.name[: match.start()]}*{path.name[match.end() :]}"
            phases[(path.parent / rest).as_posix()][match.group().upper()].append(key)
    return {
        _without_phase(pattern): (of["ED"][0], of["ES"][0])
        for pattern, of in phases.items()
        if len(of["ED"]) == len(of["ES"]) == 1
    }


def cine_of(key: str) -> str:
    """The key that a study of two phases would have beside this cine: ``001/001_SA`` of ``001/001_SA_CINE``."""
    path = PurePosixPath(key)
    return (path.parent / (_CINE.sub("", path.name).strip("_-. ") or path.name)).as_posix()


def _without_phase(pattern: str) -> str:
    path = PurePosixPath(pattern)
    name = re.sub(r"[_\-. ]*\*", "", path.name).strip("_-. ")
    return (path.parent / (name or "ED_ES")).as_posix()
