"""What tells the contrast of one image from that of another: numbers with a tolerance, and names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")

_TOLERANCE: dict[str, tuple[str, float, float]] = {
    "echo": ("echo time", 0.05, 0.1),
    "repetition": ("repetition time", 0.2, 0.25),  # follows the heart rate where it counts whole segments
    "flip": ("flip angle", 2.0, 0.2),  # lowered where the energy limit asks for it
    "inversion": ("inversion time", 5.0, 0.1),
}
"""Name in messages, and below which difference two values are the same: absolute, and relative to the smaller."""

_NAMES = {"component": "image component", "sequence": "sequence", "protocol": "protocol", "purpose": "description"}
_PHASE = {"P", "PHASE", "PHASE MAP", "PHASE_MAP", "P_FFE", "P_PCA", "VELOCITY", "VELOCITY MAP", "VELOCITY_MAP"}
_PURPOSES = {
    "tagging": r"\btag|spamm",
    "flow": r"flow|venc|velocity|phase.?contrast",
    "late enhancement": r"\blate\b|delayed|\blge\b|psir|viab",
    "perfusion": r"perf|first.?pass",
    "mapping": r"molli|\bt[12]\b|map(ping|s)?\b",
    "localiser": r"scout|locali[sz]er|survey",
}
_PARTS = {
    "R": "real",
    "I": "imaginary",
    "REAL": "real",
    "IMAGINARY": "imaginary",
    "R_FFE": "real",
    "I_FFE": "imaginary",
}


@dataclass(frozen=True)
class Contrast:
    """How an image was made.

    Attributes:
        component: the third value of ImageType, or ComplexImageComponent: magnitude, phase and the like.
        echo, repetition, inversion: EchoTime, RepetitionTime, InversionTime in ms; None where absent.
        flip: FlipAngle in degrees.
        sequence, protocol: names; " " where absent.
        purpose: of :func:`purpose_of`.
    """

    component: str
    echo: float | None
    repetition: float | None
    flip: float | None
    inversion: float | None
    sequence: str
    protocol: str
    purpose: str = ""

    @property
    def no_magnitude(self) -> str | None:
        """Which part of a complex image it shows, unless that is its magnitude."""
        return "phase" if self.component in _PHASE else _PARTS.get(self.component)


def purpose_of(description: str) -> str:
    """What a series is for other than the heart's motion, as far as a few words of its description tell; else ""."""
    text = description.lower().replace("_", " ")
    return next((purpose for purpose, words in _PURPOSES.items() if re.search(words, text)), "")


def by_contrast(
    items: Sequence[Item], contrast_of: Callable[[Item], Contrast], *, own_names: bool = False
) -> list[list[Item]]:
    """Items apart by contrast, in order of their first; what a few do not say is taken as what most say.

    Args:
        items: images, or series.
        contrast_of: the contrast of one item.
        own_names: whether a name says nothing where each of three or more items has its own, as of slices that are
            numbered or called after their level.
    """
    contrasts = [contrast_of(item) for item in items]
    columns = [labels for _, labels in _labelled(contrasts, own_names)]
    classes: dict[tuple[object, ...], list[Item]] = {}
    for item, *labels in zip(items, *columns, strict=True):
        classes.setdefault(tuple(labels), []).append(item)
    return list(classes.values())


def differing(contrasts: Sequence[Contrast]) -> list[str]:
    """What differs among them, in words: "echo time", "protocol"; never a name itself."""
    return [name for name, labels in _labelled(contrasts, False) if len(set(labels)) > 1]


def _labelled(contrasts: Sequence[Contrast], own_names: bool) -> list[tuple[str, list[object]]]:
    labelled: list[tuple[str, list[object]]] = []
    for field, (name, absolute, relative) in _TOLERANCE.items():
        values = [getattr(contrast, field) for contrast in contrasts]
        labelled.append((name, _completed(_levels(values, absolute, relative))))
    for field, name in _NAMES.items():
        words = [_plain(getattr(contrast, field)) or None for contrast in contrasts]
        unique = own_names and len(words) > 2 and len(set(words)) == len(words)
        labelled.append((name, [None] * len(words) if unique else _completed(words)))
    return labelled


def _levels(values: Sequence[float | None], absolute: float, relative: float) -> list[float | None]:
    """The smallest of the values each lies close to, one close to the next."""
    start: dict[float, float] = {}
    previous: float | None = None
    for value in sorted({value for value in values if value is not None}):
        apart = previous is None or value - previous > absolute + relative * abs(previous)
        start[value] = value if apart or previous is None else start[previous]
        previous = value
    return [None if value is None else start[value] for value in values]


def _completed(labels: Sequence[object]) -> list[object]:
    """None becomes what is most frequent, unless most say nothing: what few say then sets them apart."""
    known = Counter(label for label in labels if label is not None)
    usual = known.most_common(1)[0][0] if 2 * known.total() >= len(labels) > 0 else None
    return [usual if label is None else label for label in labels]


def _plain(name: str) -> str:
    """A name without its numbers, which count slices, segments or repetitions."""
    return re.sub(r"[\W\d_]+", " ", name).strip().lower()
