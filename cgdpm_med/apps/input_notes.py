"""Notes on inputs that are unlike what a network was trained on: they are refined all the same."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cgdpm_med.apps.resolver import SuperResolver
from cgdpm_med.images import Picture
from cgdpm_med.models.description import CoarseSliceInput
from cgdpm_med.volumes import Volume
from cgdpm_med.volumes.formats import METAIMAGE, NRRD, is_named, volume_stem

_AIR = -900
"""Below this intensity, in Hounsfield units that of air, an image is taken to be CT: signals of MR are not negative."""

_CT = re.compile(r"\b(ct|computed tomography)\b", re.IGNORECASE)
_CT_IN_TEXT = re.compile(rb"modality\W{1,4}(met_mod_)?ct\b", re.IGNORECASE)  # of a NRRD or MetaImage header


def notes_on_picture(resolver: SuperResolver, picture: Picture) -> list[str]:
    """For a picture much larger or smaller than what the network was trained on, or of another kind."""
    known = resolver.input
    if isinstance(known, CoarseSliceInput):
        return ["the network was trained on slices of MR, and this is a picture"]
    if known is None or not known.shows:
        return []
    side = known.window // resolver.factor
    height, width = picture.pixels.shape[1:]
    if 0.75 * side <= min(height, width) <= max(height, width) <= 1.5 * side:
        return []
    return [
        f"it has {width} x {height} pixels; the network was trained on {known.shows}, of {side} x {side} pixels, "
        "and knows nothing else: look at the result with care"
    ]


def notes_on_volume(resolver: SuperResolver, volume: Volume, plane: tuple[float, float]) -> list[str]:
    """For pixels of a size, or a modality, that the network was not trained on.

    Args:
        plane: mm, the size of a pixel along the two axes that are refined.
    """
    known = resolver.input
    if not isinstance(known, CoarseSliceInput):
        shown = known.shows if known is not None else ""
        return [f"the network was trained on {shown}, and this is a scan"] if shown else []
    notes = []
    if known.spacing and not _within(plane, known.spacing):
        low, high = known.spacing
        notes.append(
            f"its pixels of {plane[0]:.3g} x {plane[1]:.3g} mm lie outside the {low:.3g} to {high:.3g} mm that the "
            "network was trained to refine: detail may be wrong in kind and scale"
        )
    if reason := _is_ct(volume):
        notes.append(f"it seems to be CT ({reason}); the network was trained on MR")
    return notes


def _within(sizes: Sequence[float], known: Sequence[float]) -> bool:
    """Up to one percent, as headers round."""
    return min(sizes) >= 0.99 * known[0] and max(sizes) <= 1.01 * known[1]


def _is_ct(volume: Volume) -> str | None:
    """Why a volume is taken to be CT, or None."""
    if volume.data.min() <= _AIR:
        return f"intensities down to {np.min(volume.data):g}"
    texts = [bytes(volume.grid.header[name]).decode("latin-1") for name in ("descrip", "intent_name")]
    if any(_CT.search(text) for text in texts) or _CT_IN_TEXT.search(_text_header(volume.path)):
        return "by its header"
    return "by the JSON beside it" if _modality_beside(volume.path) == "CT" else None


def _text_header(path: Path) -> bytes:
    """The beginning of a file whose header is text."""
    if not is_named(path, (*NRRD, *METAIMAGE)):
        return b""
    with open(path, "rb") as file:
        return file.read(4096)


def _modality_beside(path: Path) -> str | None:
    """Of the JSON that converters write beside a NIfTI file."""
    try:
        content = json.loads(path.with_name(f"{volume_stem(path)}.json").read_text(encoding="utf-8"))
        return str(content["Modality"]).upper()
    except (OSError, ValueError, KeyError, TypeError):
        return None
