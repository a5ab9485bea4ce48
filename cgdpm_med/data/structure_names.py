"""What data sets, bundles and people call the structures of a mask: the usual words for one of them are one name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from cgdpm_med.data.acdc import ACDC_NAMES

_SYNONYMS = {
    "RV": """rightventricle rightventricular rvcavity rvc rvbp rvbloodpool rvendo rightventricularcavity
             rightventricularbloodpool""",
    "Myo": "myocardium lvmyo lvmyocardium lvm leftventricularmyocardium leftventriclemyocardium myocardiumlv",
    "LV": """leftventricle leftventricular lvcavity lvc lvbp lvbloodpool lvendo leftventricularcavity
             leftventricularbloodpool""",
}
_SHORT = {word: short.casefold() for short, words in _SYNONYMS.items() for word in words.split()}
_KNOWN = {name.casefold(): name for name in ACDC_NAMES}

DEFAULT_NAMES: Sequence[str] = ACDC_NAMES
"""Of labels 1, 2, 3 where nothing names them: files of version 0.1, and masks that come alone."""

EXAMPLE = ",".join(f"{value}={name}" for value, name in enumerate(reversed(DEFAULT_NAMES), start=1))
"""How values are named on the command line, where they are not the default."""


def plain_name(name: str) -> str:
    """A name without case, spaces and punctuation; words for one structure give one."""
    plain = re.sub(r"[\W_]+", "", name.casefold())
    return _SHORT.get(plain, plain)


def short_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of labels 1, 2, …: the default ones where these say the same in other words, else as they are."""
    return tuple(DEFAULT_NAMES) if [plain_name(name) for name in names] == list(_KNOWN) else tuple(names)


def number_structures(plain: Iterable[str]) -> Mapping[str, int]:
    """Numbers from 1 for structures by their plain names: the known ones first, where all of them are there."""
    shared = list(plain)
    first = list(_KNOWN) if set(_KNOWN) <= set(shared) else []
    return {name: number for number, name in enumerate([*first, *(s for s in shared if s not in first)], start=1)}
