"""What the left ventricle's volume over a beat says of the phases that were given, and of broken frames."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cgdpm_med.heart.limits import HeartLimits
from cgdpm_med.inference.quality import Finding

FEWEST_FRAMES = 10
"""Of a beat in which one frame can be told from its neighbours."""


def check_phases(lv: Mapping[int, float], phases: Mapping[str, int], limits: HeartLimits) -> tuple[Finding, ...]:
    """Frames that are larger than ED or smaller than ES: the phases were given, and are not those of these volumes.

    Args:
        lv: volume of the left ventricle in ml, by the frame's number.
        phases: numbers of ED and ES.
    """
    others = {number: ml for number, ml in lv.items() if number not in phases.values()}
    if not others:
        return ()
    ed, es = lv[phases["ED"]], lv[phases["ES"]]
    largest, smallest = max(others, key=others.__getitem__), min(others, key=others.__getitem__)
    slack, findings = limits.phase_slack * ed, []
    for phase, number, apart, than in (
        ("ED", largest, others[largest] - ed, "more"),
        ("ES", smallest, es - others[smallest], "less"),
    ):
        if apart > slack:
            given = f"frame {phases[phase]}, taken as {phase} ({lv[phases[phase]]:.1f} ml)"
            findings.append(Finding("phases", f"frame {number} holds {lv[number]:.1f} ml of LV, {than} than {given}"))
    return tuple(findings)


def check_beat(lv: Mapping[int, float], limits: HeartLimits) -> tuple[Finding, ...]:
    """Frames whose left ventricle lies far from the middle of the frames before and after; the beat is a circle.

    Args:
        lv: volume of the left ventricle in ml, by the frame's number.
    """
    if len(lv) < FEWEST_FRAMES:
        return ()
    numbers = sorted(lv)
    ml = np.array([lv[number] for number in numbers])
    apart = np.abs(ml - (np.roll(ml, 1) + np.roll(ml, -1)) / 2)
    usual = float(np.median(apart))
    worst = int(apart.argmax())  # its neighbours are drawn to it
    if apart[worst] <= max(limits.jump * ml.max(), limits.jump_ratio * usual):
        return ()
    beside = " and ".join(f"{ml[place]:.1f}" for place in (worst - 1, (worst + 1) % len(ml)))
    reason = f"the LV of frame {numbers[worst]} ({ml[worst]:.1f} ml) jumps away from its neighbours ({beside} ml)"
    return (Finding("beat", f"{reason}; look at that image"),)
