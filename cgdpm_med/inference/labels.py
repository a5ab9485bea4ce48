"""Names and colours of the structures that a network segments, as its model file or its bundle's metadata says."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cgdpm_med.data.structure_names import DEFAULT_NAMES, short_names

COLOURS = {
    1: "#4aa3ff",
    2: "#59d66f",
    3: "#ff5a4f",
    4: "#ffd23f",
    5: "#c678ff",
    6: "#3fe0d0",
    7: "#ff9a3f",
    8: "#ff7ac6",
}
"""Of the first labels; :func:`colour_of` has more."""


def colour_of(label: int) -> str:
    """``#rrggbb`` of a label from 1; each has one of its own."""
    if (chosen := COLOURS.get(label)) is not None:
        return chosen
    hue = 0.618034 * label % 1  # the golden section: far from those just before
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.55, 0.95))
    return f"#{red:02x}{green:02x}{blue:02x}"


@dataclass(frozen=True)
class Labels:
    """The structures of a mask: names and colours (``#rrggbb``) of labels 1, 2, …; 0 is the background.

    A colour that is missing or "" is that of :func:`colour_of`.
    """

    names: tuple[str, ...]
    colours: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given = [*self.colours, *[""] * len(self.names)][: len(self.names)]
        object.__setattr__(self, "colours", tuple(c or colour_of(label) for label, c in enumerate(given, start=1)))

    def colour_of(self, label: int) -> str:
        """``#rrggbb`` of a label from 1; one that has no name has one, too."""
        return self.colours[label - 1] if label <= len(self.colours) else colour_of(label)

    @property
    def by_number(self) -> dict[int, str]:
        """Name by label."""
        return dict(enumerate(self.names, start=1))


DEFAULT_LABELS = Labels(tuple(DEFAULT_NAMES))
"""Of four classes that nothing names: version 0.1 knew no others."""


def labels_of(names: Mapping[str, str] | None, num_classes: int, colours: Mapping[str, str] | None = None) -> Labels:
    """The labels of a network.

    Args:
        names: of its channels by their number, as :func:`channel_names` reads them. Labels without one are called by
            their number; None takes four classes for :data:`DEFAULT_LABELS`. The only name of two classes is the
            foreground's.
        num_classes: C, with the background.
        colours: ``#rrggbb`` of its channels by their number, where they have one of their own.
    """
    if names is None and num_classes == len(DEFAULT_LABELS.names) + 1:
        return replace(DEFAULT_LABELS, colours=_colours(colours, num_classes))
    known = dict(names or {})
    if num_classes == 2 and list(known) == ["0"]:
        known = {"1": known["0"]}
    found = [known.get(str(label)) or f"label {label}" for label in range(1, num_classes)]
    return Labels(short_names(found), _colours(colours, num_classes))


def _colours(given: Mapping[str, str] | None, num_classes: int) -> tuple[str, ...]:
    return tuple((given or {}).get(str(label), "") for label in range(1, num_classes))


def channel_names(bundle_root: str | Path) -> dict[str, str]:
    """Names of a network's output channels by their number, from its bundle's ``metadata.json``; {} without any."""
    try:
        metadata = json.loads((Path(bundle_root) / "configs" / "metadata.json").read_text(encoding="utf-8"))
        names = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
        return {str(number): str(name) for number, name in names.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
