"""Names and colours of the structures that a network segments, as its bundle's metadata state them."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cgdpm_med.data.acdc import ACDC_LABELS

COLOURS = {1: "#4aa3ff", 2: "#59d66f", 3: "#ff5a4f"}
"""Of ACDC's labels; :func:`colour_of` has more."""

_FURTHER = {4: "#ffd23f", 5: "#c678ff", 6: "#3fe0d0", 7: "#ff9a3f", 8: "#ff7ac6"}

_CARDIAC_NAMES = (
    {"rv", "rv cavity", "right ventricle", "right ventricular cavity", "right ventricular blood pool"},
    {"myo", "myocardium", "lv myocardium", "left ventricular myocardium"},
    {"lv", "lv cavity", "left ventricle", "left ventricular cavity", "left ventricular blood pool"},
)
"""What the metadata of bundles call ACDC's structures, in the order of its labels."""


@dataclass(frozen=True)
class Labels:
    """The structures of a mask: the names of labels 1, 2, …; 0 is the background."""

    names: tuple[str, ...]

    @property
    def by_number(self) -> dict[int, str]:
        """Name by label."""
        return dict(enumerate(self.names, start=1))

    @property
    def cardiac(self) -> bool:
        """Whether they are ACDC's, from which there is cardiac function."""
        return self == ACDC


ACDC = Labels(tuple(ACDC_LABELS.values()))


def labels_of(names: Mapping[str, str] | None, num_classes: int) -> Labels:
    """The labels of a network.

    Args:
        names: of its channels by their number, as :func:`channel_names` reads them. Labels without one are called by
            their number; None takes four classes for ACDC's. The only name of two classes is the foreground's.
        num_classes: C, with the background.
    """
    if names is None and num_classes == len(ACDC.names) + 1:
        return ACDC
    known = dict(names or {})
    if num_classes == 2 and list(known) == ["0"]:
        known = {"1": known["0"]}
    found = tuple(known.get(str(label)) or f"label {label}" for label in range(1, num_classes))
    return ACDC if _are_acdcs(found) else Labels(found)


def _are_acdcs(names: tuple[str, ...]) -> bool:
    plain = [" ".join(name.lower().replace("-", " ").replace("_", " ").split()) for name in names]
    if len(plain) != len(_CARDIAC_NAMES):
        return False
    return all(name in known for name, known in zip(plain, _CARDIAC_NAMES, strict=True))


def channel_names(bundle_root: str | Path) -> dict[str, str]:
    """Names of a network's output channels by their number, from its bundle's ``metadata.json``; {} without any."""
    try:
        metadata = json.loads((Path(bundle_root) / "configs" / "metadata.json").read_text(encoding="utf-8"))
        names = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
        return {str(number): str(name) for number, name in names.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def colour_of(label: int) -> str:
    """``#rrggbb`` of a label from 1; each has one of its own."""
    if (chosen := (COLOURS | _FURTHER).get(label)) is not None:
        return chosen
    hue = 0.618034 * label % 1  # the golden section: far from those just before
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.55, 0.95))
    return f"#{red:02x}{green:02x}{blue:02x}"
