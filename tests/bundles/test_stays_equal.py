"""What the shipped weights and seeded runs gave when ``recorded.py`` was last run, they give still.

To the last bit on the kind of machine that recorded; elsewhere, where convolutions add in another order, to 1e-4.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from recorded import RECORD, RECORDED, differences, kind_of_machine

pytestmark = pytest.mark.usefixtures("leaves_no_determinism")


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads(RECORD.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDED)
def test_recorded_results_stay(name: str, record: dict[str, Any], tmp_path: Path) -> None:
    if name == "dicom":
        pytest.importorskip("pydicom", reason="pydicom is not installed: pip install 'cgdpm-med[dicom]'")
    exact = kind_of_machine() == record["machine"]
    found = json.loads(json.dumps(RECORDED[name](tmp_path)))
    assert list(differences(found, record[name], exact=exact)) == []


@pytest.mark.parametrize(("change", "noticed"), [(2e-3, True), (5e-5, False)])
def test_the_comparison_elsewhere_notices_what_counts(change: float, noticed: bool) -> None:
    was = {"a": {"digest": "1", "mean": 0.5, "quantiles": [0.0, 1.0]}, "b": 3}
    now = {"a": {"digest": "2", "mean": 0.5 + change, "quantiles": [0.0, 1.0]}, "b": 3}
    assert bool(list(differences(now, was, exact=False))) == noticed
    assert len(list(differences(now, was, exact=True))) == 2


def test_a_mask_may_differ_in_one_voxel_of_a_thousand_elsewhere() -> None:
    was = {"digest": "1", "counts": [9000, 1000]}
    assert not list(differences({"digest": "2", "counts": [8995, 1005]}, was, exact=False))
    assert list(differences({"digest": "2", "counts": [8900, 1100]}, was, exact=False))
