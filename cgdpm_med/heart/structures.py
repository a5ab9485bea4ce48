"""The structures of the heart among the labels of a mask, by their names, whatever their numbers.

Every module of this room counts them as :data:`RV`, :data:`MYO` and :data:`LV`; masks and volumes of other numbers are
brought to these first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgdpm_med.data.structure_names import plain_name
from cgdpm_med.inference.labels import Labels
from cgdpm_med.metrics.volumetry import FrameVolumes

RV, MYO, LV = 1, 2, 3
"""Numbers of right ventricle, myocardium and left ventricle in this room, which are ACDC's."""

_NAMES = ("rv", "myo", "lv")


@dataclass(frozen=True)
class HeartLabels:
    """Numbers of right ventricle, myocardium and left ventricle in the masks at hand."""

    rv: int = RV
    myo: int = MYO
    lv: int = LV

    @property
    def numbers(self) -> tuple[int, int, int]:
        """In the order of :data:`RV`, :data:`MYO`, :data:`LV`."""
        return self.rv, self.myo, self.lv

    def in_order(self, mask: NDArray[Any]) -> NDArray[np.uint8]:
        """The mask (*S) with the numbers of this room; other structures are background."""
        if self == HeartLabels() and (not mask.size or mask.max() <= LV):
            return mask
        table = np.zeros(max(*self.numbers, int(mask.max(initial=0))) + 1, dtype=np.uint8)
        table[list(self.numbers)] = RV, MYO, LV
        return table[mask]

    def volumes(self, volumes: FrameVolumes) -> FrameVolumes:
        """The columns of this room; those of other structures are left out."""
        columns = [0, *self.numbers]
        return FrameVolumes(volumes.combined[columns], volumes.members[:, columns])


def find_heart(labels: Labels) -> HeartLabels | None:
    """Where the three structures are, or None where one is missing or there twice."""
    plain = [plain_name(name) for name in labels.names]
    if any(plain.count(name) != 1 for name in _NAMES):
        return None
    return HeartLabels(*(plain.index(name) + 1 for name in _NAMES))
