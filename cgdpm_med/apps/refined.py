"""What a refined input leaves: the value that is passed on, its JSON and its page."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from cgdpm_med.apps.resolver import SuperResolver
from cgdpm_med.files import InputError
from cgdpm_med.inference.predictor import predictor_settings
from cgdpm_med.report.refined import View
from cgdpm_med.studies.outputs import Provenance, provenance, write_json
from cgdpm_med.tables.numbers import format_number

SYNTHETIC = (
    "What is finer than the pixels of the input was drawn by a network and not measured. "
    "It shows what may be there; do not base a finding on it."
)
HEADER_REMARK = "SYNTHETIC DETAIL (super-resolution), not measured"
"""For the 79 bytes of a NIfTI header's descrip."""


@dataclass(frozen=True)
class Disagreement:
    """|result made coarse again - input| as fractions of the input's range of intensities."""

    largest: float
    mean: float

    @classmethod
    def of(cls, difference: Tensor) -> Disagreement:
        """Of every pixel's."""
        return cls(float(difference.max()), float(difference.mean()))

    @classmethod
    def over(cls, parts: Sequence[Disagreement]) -> Disagreement:
        """Of parts of equal size."""
        return cls(max(part.largest for part in parts), sum(part.mean for part in parts) / len(parts))


@dataclass(frozen=True)
class Refined:
    """What was made of one input.

    Attributes:
        files: written; the refined image comes first.
        mean_spread: mean standard deviation of the samples as a fraction of the full range; None for a single one.
        disagreement: with the input; the largest of all samples.
        views: for the page.
        facts: further plain values for the JSON.
        notes: what a reader must know of this input.
    """

    files: list[Path]
    mean_spread: float | None
    disagreement: Disagreement
    views: Sequence[View] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


def fresh(target: Path, source: Path) -> Path:
    """``target``, where no result would take the place of what was given.

    Raises:
        InputError: where it is ``source`` itself, or where a JSON or page of something else bears its name.
    """
    remedy = "Give another output folder"
    if target.resolve() == source.resolve():
        raise InputError("would be overwritten by its result", path=source, remedy=remedy)
    record = record_file(target)
    if record.exists() and not _is_record(record):
        raise InputError("would be overwritten by a result's JSON", path=record, remedy=remedy)
    return target


def record_file(image: Path) -> Path:
    """The JSON beside a refined image."""
    return image.with_name(f"{_stem(image)}.json")


def _stem(image: Path) -> str:
    return image.name.removesuffix(".nii.gz") if image.name.endswith(".nii.gz") else image.stem


def _is_record(path: Path) -> bool:
    return bool(_content(path))


def _content(path: Path) -> Mapping[str, Any]:
    """Of a record; {} of anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and "synthetic_detail" in content else {}


_OF_MEMBERS = re.compile(r"(.+)_(?:sample\d+|std)")


def is_result(image: Path) -> bool:
    """Whether the JSON of a run says that it made this file."""
    return image.name in {_content(record_file(image)).get("image"), *_beside(image)}


def of_members(name: str) -> str | None:
    """Whose sample or spread a name says it is: "a" of "a_sample0" and "a_std", else None."""
    found = _OF_MEMBERS.fullmatch(name)
    return None if found is None else found[1]


def _beside(image: Path) -> Sequence[str]:
    """Files that lie with the result whose sample or spread this would be."""
    first = of_members(_stem(image))
    return () if first is None else _content(image.with_name(f"{first}.json")).get("files", ())


def origin_of(resolver: SuperResolver) -> Provenance:
    """Versions, settings and weights."""
    settings = {"factor": resolver.factor, "window": resolver.window}
    settings |= predictor_settings(resolver.predictor, resolver.device)
    return provenance(settings, *([resolver.weights] if resolver.weights is not None else []))


def write_record(resolver: SuperResolver, refined: Refined, key: str) -> list[Path]:
    """Write ``<name>.html`` and last ``<name>.json`` beside the refined image; returns both."""
    from cgdpm_med.report.refined import refined_report  # templates, which a result alone does not need
    from cgdpm_med.report.rendering import write_report

    image, *others = refined.files
    origin, record = origin_of(resolver), record_file(image)
    html = refined_report(key, refined.views, _facts(refined), refined.notes, SYNTHETIC, origin)
    page = write_report(html, record.with_suffix(".html"))
    content = {
        "case": _stem(image),
        "image": image.name,
        "files": [path.name for path in (*others, page)],
        "synthetic_detail": SYNTHETIC,
        **refined.facts,
        "disagreement_with_input": {"largest": refined.disagreement.largest, "mean": refined.disagreement.mean},
        "mean_std": refined.mean_spread,
        "notes": list(refined.notes),
        "made_with": {"versions": origin.versions, "settings": origin.settings, "weights": origin.weights},
    }
    return [page, write_json(content, record)]


def _facts(refined: Refined) -> list[tuple[str, str]]:
    """In words, for the page."""
    d = refined.disagreement
    made_coarse = f"at most {_percent(d.largest)}, {_percent(d.mean)} on average"
    facts = [("Made coarse again, it differs from the input by", made_coarse)]
    if refined.mean_spread is not None:
        facts.append(("Mean standard deviation of the samples", _percent(refined.mean_spread)))
    return facts


def _percent(fraction: float) -> str:
    digits = 2 if fraction >= 1e-3 else 5
    percent = "less than 0.00001" if 0 < fraction < 5e-8 else format_number(100 * fraction, digits)
    return f"{percent} % of the range of intensities"
