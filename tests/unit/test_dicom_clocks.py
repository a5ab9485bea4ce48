"""The order of a cine's phases: clocks on which the slices agree, and never one that shuffles them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="pydicom is not installed: pip install cgdpm-med")

from dicom_scans import Scan, save

from cgdpm_med import InputError
from cgdpm_med.volumes.dicom.clocks import CLOCKS, doubt
from cgdpm_med.volumes.dicom.finding import DicomWarning, find_dicom, read_dicom
from cgdpm_med.volumes.dicom.stack import DicomStack

SLICES, PHASES = 5, 6
RANDOM = np.random.default_rng(7)
NUMBERS = RANDOM.permutation(SLICES * PHASES).reshape(SLICES, PHASES) + 1
SHUFFLED = np.array([RANDOM.permutation(PHASES) for _ in range(SLICES)])
CLOCK = {clock.keyword: clock for clock in CLOCKS}

Tags = Callable[[int, int], dict[str, Any]]


def write(folder: Path, tags: Tags) -> Scan:
    """A cine whose images have no clock but what ``tags(k, t)`` gives, and random instance numbers."""
    scan = Scan(slices=SLICES, phases=PHASES, size=(6, 5))
    for k, t, ds in scan.images():
        del ds.TriggerTime
        ds.InstanceNumber = int(NUMBERS[k, t])
        for keyword, value in tags(k, t).items():
            setattr(ds, keyword, value)
        save(ds, folder / f"{NUMBERS[k, t]}.dcm")
    return scan


def stack_below(folder: Path) -> DicomStack:
    (found,) = find_dicom(folder)
    assert found.stack is not None, found.error
    return found.stack


def time_of_day(seconds: float) -> str:
    seconds %= 86400
    return f"{int(seconds // 3600):02d}{int(seconds // 60 % 60):02d}{seconds % 60:09.6f}"


ORDERED: dict[str, Tags] = {
    "heart rates differ": lambda k, t: {"TriggerTime": 12 + (40 + 3 * k) * t},
    "triggers begin a little later": lambda k, t: {"TriggerTime": 5 * k + 40 * t},
    "triggers from the start of the scan": lambda k, t: {"TriggerTime": 1000 * ((3 * k) % 5) + 40 * t},
    "trigger in seconds": lambda k, t: {"TriggerTime": 0.04 * t},
    "trigger delay": lambda k, t: {"NominalCardiacTriggerDelayTime": 40.0 * t},
    "temporal position": lambda k, t: {"TriggerTime": 0, "TemporalPositionIdentifier": t + 1},
    "random triggers, temporal position": lambda k, t: {
        "TriggerTime": 7.5 * int(NUMBERS[k, t]),
        "TemporalPositionIdentifier": t + 1,
    },
    "triggers restart in a second beat": lambda k, t: {
        "TriggerTime": 40 * (t % 3),
        "AcquisitionTime": time_of_day(36000 + 60 * k + 0.04 * t),
    },
    "triggers in one slice alone": lambda k, t: {
        **({"TriggerTime": 40 * (5 - t)} if k == 1 else {}),
        "ContentTime": time_of_day(36000 + 60 * k + t),
    },
    "one slice in seconds": lambda k, t: {
        "TriggerTime": 40 * t / (1000 if k == 2 else 1),
        "TemporalPositionIdentifier": t + 1,
    },
    "one slice shifted": lambda k, t: {
        "TriggerTime": 40 * ((t + 3) % 6) + (500 if k == 2 else 0),
        "TemporalPositionIdentifier": t + 1,
    },
    "breath-holds across midnight": lambda k, t: {"AcquisitionTime": time_of_day(86400 - 30 + 14.9 * k + 0.1 * t)},
    "numbered slice by slice": lambda k, t: {"InstanceNumber": 100 + k * PHASES + t},
    "numbered phase by phase": lambda k, t: {"InstanceNumber": t * SLICES + k},
    "slices numbered interleaved": lambda k, t: {"InstanceNumber": [0, 3, 1, 4, 2][k] * PHASES + t},
    "numbered in steps": lambda k, t: {"InstanceNumber": 40 * k + 3 * t},
    "numbered anew in each slice": lambda k, t: {"InstanceNumber": t + 1},
    "permuted triggers outvoted": lambda k, t: {
        "TriggerTime": 40 * int(SHUFFLED[k, t]),
        "TemporalPositionIdentifier": t + 1,
        "InstanceNumber": k * PHASES + t + 1,
    },
    "triggers beside numbers that begin elsewhere": lambda k, t: {
        "TriggerTime": 40 * t,
        "InstanceNumber": k * PHASES + (t + k) % PHASES,
    },
}


@pytest.mark.parametrize("name", ORDERED)
@pytest.mark.filterwarnings("ignore::cgdpm_med.volumes.dicom.finding.DicomWarning")
def test_phases_in_order(tmp_path: Path, name: str) -> None:
    scan = write(tmp_path, ORDERED[name])
    np.testing.assert_array_equal(stack_below(tmp_path).read().data, scan.voxels)


def test_reversed_numbers_reverse_all_slices_alike(tmp_path: Path) -> None:
    scan = write(tmp_path, lambda k, t: {"InstanceNumber": 100 - k * PHASES - t})
    np.testing.assert_array_equal(stack_below(tmp_path).read().data, scan.voxels[..., ::-1])


def test_another_order_of_all_slices_alike_is_noted(tmp_path: Path) -> None:
    order = [2, 0, 3, 1, 5, 4]
    scan = write(tmp_path, lambda k, t: {"TriggerTime": 40 * t, "TemporalPositionIdentifier": order[t]})
    with pytest.warns(DicomWarning, match="temporal position would order"):
        stack = stack_below(tmp_path)
    np.testing.assert_array_equal(stack.read().data, scan.voxels)


UNORDERED: dict[str, Tags] = {
    "nothing but random numbers": lambda k, t: {},
    "random triggers": lambda k, t: {"TriggerTime": 7.5 * int(NUMBERS[k, t])},
    "random acquisition times": lambda k, t: {"AcquisitionTime": time_of_day(36000 + int(NUMBERS[k, t]))},
    "constant triggers": lambda k, t: {"TriggerTime": 0, "ContentTime": "120000"},
    "a trigger is missing": lambda k, t: {} if (k, t) == (1, 2) else {"TriggerTime": 40 * t},
    "a slice is shifted": lambda k, t: {"TriggerTime": 40 * t + (500 if k == 2 else 0)},
    "a slice in seconds": lambda k, t: {"TriggerTime": 40 * t / (1000 if k == 2 else 1)},
    "two clocks that contradict each other": lambda k, t: {
        "TriggerTime": 40 * int(SHUFFLED[k, t]),
        "TemporalPositionIdentifier": t + 1,
    },
}


@pytest.mark.parametrize("name", UNORDERED)
def test_no_order_is_one_error(tmp_path: Path, name: str) -> None:
    write(tmp_path, UNORDERED[name])
    (found,) = find_dicom(tmp_path)
    assert found.stack is None
    assert "trigger time" in str(found.error)
    if "contradict" not in name:
        assert all(clock.name in str(found.error) for clock in CLOCKS)  # each was read, and why it is not believed
    with pytest.raises(InputError):
        read_dicom(tmp_path)


def test_what_contradicts_the_order_is_noted(tmp_path: Path) -> None:
    write(tmp_path, ORDERED["permuted triggers outvoted"])
    with pytest.warns(DicomWarning, match="phases follow temporal position; trigger time"):
        stack = stack_below(tmp_path)
    assert "trigger time" in (stack.grid().note or "")


def test_seconds_between_phases(tmp_path: Path) -> None:
    write(tmp_path / "ms", lambda k, t: {"TriggerTime": 40 * t})
    write(tmp_path / "s", lambda k, t: {"TriggerTime": 0.04 * t})
    assert stack_below(tmp_path / "ms").seconds == pytest.approx(0.04)
    with pytest.warns(DicomWarning, match="taken as seconds"):
        assert stack_below(tmp_path / "s").seconds == pytest.approx(0.04)


@pytest.mark.parametrize(("slices", "phases"), [(4, 3), (3, 6), (10, 20)])
def test_random_values_are_hardly_ever_believed(slices: int, phases: int) -> None:
    random = np.random.default_rng(0)
    believed = 0
    for _ in range(300):
        values = random.permutation(slices * phases).reshape(slices, phases).astype(float).tolist()
        believed += sum(doubt(CLOCK[keyword], values) is None for keyword in ("TriggerTime", "InstanceNumber"))
    assert believed == 0


def test_heart_rates_may_differ_by_half() -> None:
    even = [[(25.0 + 2 * k) * t for t in range(20)] for k in range(8)]
    assert doubt(CLOCK["TriggerTime"], even) is None
    late = [*even[:-1], [value + 300 for value in even[-1]]]
    assert "slice 8" in (doubt(CLOCK["TriggerTime"], late) or "")
