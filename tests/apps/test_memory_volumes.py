"""The memory benchmark: its slope and its line of words, its files, and that one small volume goes through it."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import load_script
from stubs import Thresholder

from cgdpm_med import read_volume
from cgdpm_med.inference.segmenter import Segmenter

ROWS = [(n, 500.0 + max(0, n - 4) * 0.5, 600.0 + (n > 6)) for n in range(11)]


@pytest.fixture(scope="module")
def memory() -> ModuleType:
    return load_script("memory_volumes")


def test_the_slope_is_that_of_the_second_half(memory: ModuleType) -> None:
    assert memory.slope(ROWS) == pytest.approx(0.5)
    line = memory.verdict("one size", ROWS)
    assert line == "one size: +0.500 MB a volume from volume 5 to 10, peak 600 MB at 5, 601 MB at 10"


def test_its_files(memory: ModuleType, tmp_path: Path) -> None:
    memory.write_csv(tmp_path / "m.csv", {"one size": ROWS, "changing sizes": ROWS[:3]})
    memory.plot(tmp_path / "m.png", {"one size": ROWS, "changing sizes": ROWS})
    with (tmp_path / "m.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 14
    assert rows[10] == {"series": "one size", "volume": "10", "resident_mb": "503.0", "peak_mb": "601.0"}
    assert (tmp_path / "m.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_it_records_every_volume(memory: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = Thresholder()
    monkeypatch.setattr(Segmenter, "from_bundle", lambda *_, **__: stub)
    rows = memory.record("changing sizes", 3, "acdc_segmentation", {})
    assert [row[0] for row in rows] == [0, 1, 2, 3]
    assert stub.seen == ["phantom000", "phantom001", "phantom002"]
    assert all(50 < now < most + 5 for _, now, most in rows)  # the kernel counts the peak a little late
    assert rows[0][2] <= rows[-1][2]


def test_its_volumes_change_their_sizes_in_turn(memory: ModuleType, tmp_path: Path) -> None:
    memory.write_volumes(tmp_path / "in", 4, memory.SHAPES["changing sizes"])
    shapes = [read_volume(path).data.shape for path in sorted((tmp_path / "in").iterdir())]
    assert shapes == [*memory.SHAPES["changing sizes"], memory.SHAPES["changing sizes"][0]]
