"""What is measured of a study besides the volumes of its labels: definitions, and estimates with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from cgdpm_med.metrics.volumetry import Estimate


@dataclass(frozen=True)
class Measure:
    """A number of the report.

    Attributes:
        title: its name.
        unit: "ml", "g" or "%".
        floor, ceiling: the range of its possible values.
        indexed: whether dividing by body surface makes sense.
        figure: a shorter name, above a large number; the title by default.
        column: a name for a narrow column; the title by default.
    """

    title: str
    unit: str
    floor: float = 0.0
    ceiling: float = math.inf
    indexed: bool = True
    figure: str = ""
    column: str = ""

    def __post_init__(self) -> None:
        for name in ("figure", "column"):
            object.__setattr__(self, name, getattr(self, name) or self.title)


@dataclass(frozen=True)
class Measurements:
    """The measures of one study.

    Attributes:
        measures: an estimate for every measure of the task, by its name.
        members: how many members the intervals come from.
        level: nominal coverage of the intervals.
        widening, margin: the factor of each measure's interval, and what was added at each end, in its unit.
        body_surface: in m^2, or None.
    """

    measures: Mapping[str, Estimate]
    members: int
    level: float
    widening: Mapping[str, float]
    body_surface: float | None = None
    margin: Mapping[str, float] = field(default_factory=dict)

    @property
    def calibrated(self) -> bool:
        """Whether any interval is more than the members' own spread."""
        return any(factor != 1 for factor in self.widening.values()) or any(self.margin.values())

    def indexed(self, definitions: Mapping[str, Measure]) -> dict[str, Estimate]:
        """Those that ``definitions`` call indexed, per m^2 of body surface; empty where that is unknown."""
        if self.body_surface is None:
            return {}
        names = (name for name, measure in definitions.items() if measure.indexed)
        return {name: self.measures[name].divided_by(self.body_surface) for name in names}
