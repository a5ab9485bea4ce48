"""Score sheets of sampling settings, against an ensemble whose every value is known."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from stubs import Oracle

from cgdpm_med import Segmenter, acdc_datalist, read_labels, write_phantom_dataset
from cgdpm_med.evaluation.sweep import score_setting, sweep


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    folder = tmp_path_factory.mktemp("sweep")
    write_phantom_dataset(folder, 1, shape=(64, 56, 4), spacing=(2.8, 2.8, 22.0), num_frames=6)
    return acdc_datalist(folder, "all")


def test_a_perfect_mask_scores_perfectly(datalist: list[dict[str, str]]) -> None:
    single = score_setting(Oracle(members=1), datalist)
    assert list(single)[:5] == ["dice", "rv", "myo", "lv", "member_dice"]
    assert single["dice"] == single["lv"] == single["member_dice"] == 100
    assert single["ged"] == pytest.approx(0)
    assert np.isnan(single["pairwise_dice"])


def test_member_dice_is_the_mean_over_members_and_structures(datalist: list[dict[str, str]]) -> None:
    expected: list[float] = []
    for item in datalist:
        truth = read_labels(item["label"]).data
        filled = np.flatnonzero((truth == 3).any(axis=(0, 1)))
        kept = {label: np.count_nonzero(truth == label) for label in (1, 2, 3)}
        last = {label: np.count_nonzero(truth[..., filled[-1]] == label) for label in (1, 2, 3)}
        without = [2 * (kept[k] - last[k]) / (2 * kept[k] - last[k]) for k in (1, 2, 3)]
        expected += [1.0, float(np.mean(without))]
    scores = score_setting(Oracle(members=2), datalist)
    assert scores["member_dice"] == pytest.approx(100 * np.mean(expected))
    assert scores["pairwise_dice"] == pytest.approx(np.mean(expected[1::2]))


def test_the_table_has_a_row_per_setting(
    datalist: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Segmenter, "from_bundle", lambda bundle, members, guidance_interval: Oracle(members))
    settings = [{"members": k, "guidance_interval": [0, 500 * k]} for k in (1, 2)]
    seen: list[object] = []
    rows = sweep(settings, datalist, tmp_path / "sheet.csv", report=seen.append)
    with open(tmp_path / "sheet.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["members"] for row in table] == ["1", "2"]
    assert [row["guidance_interval"] for row in table] == ["0:500", "0:1000"]
    assert float(table[1]["dice"]) == pytest.approx(rows[1]["dice"], abs=1e-4)
    assert seen == rows


def test_an_interrupted_sweep_keeps_its_rows(
    datalist: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def from_bundle(bundle: str, members: int, guidance_interval: list[int]) -> Oracle:
        made.append(members)
        return Oracle(members)

    monkeypatch.setattr(Segmenter, "from_bundle", from_bundle)
    settings = [{"members": k, "guidance_interval": [0, 500]} for k in (1, 2, 3)]
    first = sweep(settings[:2], datalist, tmp_path / "sheet.csv")
    both = sweep(settings, datalist, tmp_path / "sheet.csv", resume=True)
    assert made == [1, 2, 3]
    assert [row["dice"] for row in both[:2]] == pytest.approx([row["dice"] for row in first], abs=1e-4)
    sweep(settings[:1], datalist, tmp_path / "sheet.csv")
    assert made == [1, 2, 3, 1]
