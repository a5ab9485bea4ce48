"""Patients that trained a network do not judge it: what a run leaves, what is refused, and that remedies lead on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cohorts import write_cohort
from conftest import REPO

import cgdpm_med.evaluation.segmenter as evaluate
from cgdpm_med import InputError, evaluate_acdc, record_split
from cgdpm_med.data.acdc import acdc_datalist, load_split
from cgdpm_med.evaluation.calibrate import calibration_items
from cgdpm_med.evaluation.training_patients import check_unseen, training_record

OWN = [f"own{n:02d}" for n in range(30)]
SHIPPED = REPO / "bundles" / "acdc_segmentation" / "models"


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    return write_cohort(tmp_path / "data", OWN)


def trained(folder: Path, cohort: Path, split: Any = None, started_from: Sequence[Path] = ()) -> Path:
    """Weights of a run on the section train."""
    record_split(folder, cohort, acdc_datalist(cohort, "train", split=split), split, started_from)
    torch.save({"w": torch.zeros(1)}, folder / "model.pt")  # which does not say itself who trained it
    return folder / "model.pt"


def split_of(train: Sequence[str], validation: Sequence[str], test: Sequence[str] = ()) -> dict[str, list[str]]:
    return {"train": list(train), "validation": list(validation), "test": list(test)}


def test_a_run_leaves_its_sections_and_its_patients(tmp_path: Path, cohort: Path) -> None:
    weights = trained(tmp_path / "run", cohort)
    content = json.loads(weights.with_name("split.json").read_text())
    assert content["trained_on"] == OWN[:21]  # the first 70 % in sorted order
    again = load_split(weights.with_name("split.json"))
    assert (again["validation"][-3:], again["test"][-6:]) == (tuple(OWN[21:24]), tuple(OWN[24:]))
    assert set(load_split()["test"]) < set(again["test"])
    assert training_record(weights) is not None


def test_a_run_on_a_split_of_ones_own(tmp_path: Path, cohort: Path) -> None:
    split = split_of(OWN[:5], OWN[5:20], OWN[20:])
    weights = trained(tmp_path / "run", cohort, split)
    assert check_unseen(OWN[5:], [weights], "validation") is None
    with pytest.raises(InputError, match="own03, own04 trained the network"):
        check_unseen(OWN[3:6], [weights], "validation")
    with pytest.raises(InputError, match="own00, own01, own02, own03, own04 trained"):
        check_unseen(OWN, [weights], "validation")


def test_what_the_start_was_trained_on_counts(tmp_path: Path, cohort: Path) -> None:
    first = trained(tmp_path / "first", cohort, split_of(OWN[:9], OWN[9:20], OWN[20:]))
    second = trained(tmp_path / "second", cohort, split_of(OWN[9:12], OWN[:9], OWN[12:]), [first])
    with pytest.raises(InputError, match=r"own00, .* and 4 more trained") as error:
        check_unseen(OWN[:9], [second], "validation")
    assert "--split" in str(error.value.remedy)
    # a run that goes on with another split has seen both
    third = split_of(OWN[12:15], OWN[15:], OWN[:12])
    record_split(second.parent, cohort, acdc_datalist(cohort, "train", split=third), third)
    record = training_record(second)
    assert record is not None
    assert record.patients == set(OWN[:15])


def test_the_remedy_leads_to_a_calibration(tmp_path: Path, cohort: Path) -> None:
    weights = trained(tmp_path / "run", cohort, split_of(OWN[:15], OWN[15:25], OWN[25:]))
    other = split_of(OWN[10:15], OWN[:10], OWN[15:])
    chosen = {item["patient"] for item in calibration_items(cohort, "validation", other)}
    with pytest.raises(InputError) as error:
        check_unseen(chosen, [weights], "validation")
    assert error.value.path is not None
    followed = calibration_items(cohort, "validation", error.value.path)
    assert check_unseen({item["patient"] for item in followed}, [weights], "validation") is None
    assert {item["patient"] for item in followed} == set(OWN[15:25])


def test_remedies_of_sections_lead_to_a_calibration(tmp_path: Path) -> None:
    few = write_cohort(tmp_path / "few", OWN[:9])
    for section, source in (("validation", None), ("train", split_of([], [], OWN[:9]))):
        with pytest.raises(InputError) as error:
            calibration_items(few, section, source)
        assert f"list {section} of a JSON file" in str(error.value.remedy)
        assert "all" not in str(error.value.remedy).split()
    (tmp_path / "mine.json").write_text(json.dumps(split_of([], OWN[:9])))
    assert len(calibration_items(few, "validation", tmp_path / "mine.json")) == 18


def test_a_test_patient_goes_into_the_list_test(tmp_path: Path) -> None:
    name = load_split()["test"][0]
    cohort = write_cohort(tmp_path / "data", [*OWN[:9], name])
    with pytest.raises(InputError, match="list test"):
        calibration_items(cohort, "validation", split_of([], [*OWN[:9], name]))
    assert len(calibration_items(cohort, "validation", split_of([], OWN[:9], [name]))) == 18


def test_weights_without_a_record_leave_a_note(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "model.pt")  # of version 0.1
    note = check_unseen(OWN, [tmp_path / "model.pt"], "validation")
    assert note is not None
    assert "not known" in note
    (tmp_path / "split.json").write_text(json.dumps(split_of(OWN, [])))  # a plain split says nothing of the weights
    assert check_unseen(OWN, [tmp_path / "model.pt"], "validation") == note


def test_the_shipped_weights_know_the_committed_split(tmp_path: Path) -> None:
    files = [SHIPPED / name for name in ("denoiser/model.pt", "denoiser/guidance/guidance.pt", "model.pt")]
    committed = load_split()
    for file in files:
        record = training_record(file)
        assert record is not None
        drawn = {f"patient{number}" for number in range(911, 915)}
        assert record.patients == {*committed["train"], *drawn}
    assert check_unseen([*committed["validation"], *committed["test"]], files, "validation") is None
    with pytest.raises(InputError, match="patient002 trained"):
        check_unseen(["patient001", "patient002"], files, "validation")
    # wherever they lie, and whatever lies beside them
    (tmp_path / "split.json").write_text(json.dumps({**split_of([], OWN), "trained_on": OWN}))
    moved = shutil.copyfile(SHIPPED / "model.pt", tmp_path / "model.pt")
    assert check_unseen(committed["validation"], [moved], "validation") is None
    with pytest.raises(InputError, match="patient002 trained"):
        check_unseen(["patient001", "patient002"], [moved], "validation")


def test_a_damaged_record_is_an_error(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "model.pt")
    (tmp_path / "split.json").write_text(json.dumps({**split_of([], []), "trained_on": "everyone"}))
    with pytest.raises(InputError, match="trained on"):
        training_record(tmp_path / "model.pt")


@pytest.mark.parametrize("section", ["validation", "test"])
def test_evaluation_refuses_training_patients(
    section: Any, tmp_path: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter: Any = SimpleNamespace(
        weights=[trained(tmp_path / "run", cohort, split_of(OWN[:9], OWN[9:18], OWN[18:]))]
    )
    seen: list[Any] = []
    monkeypatch.setattr(evaluate, "evaluate_segmenter", lambda *given, **named: seen.append((given, named)))
    swapped = split_of([], OWN[:20], OWN[20:]) if section == "validation" else split_of([], OWN[20:], OWN[:20])
    with pytest.raises(InputError, match="own00") as error:
        evaluate_acdc(segmenter, cohort, section, split=swapped)
    assert seen == []
    evaluate_acdc(segmenter, cohort, section, split=error.value.path)  # the remedy, followed
    assert {item["patient"] for item in seen[0][0][1]} == set(OWN[9:18] if section == "validation" else OWN[18:])
    assert seen[0][1]["notes"] == []


def test_evaluation_of_everybody_says_who_was_seen(
    tmp_path: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter: Any = SimpleNamespace(
        weights=[trained(tmp_path / "run", cohort, split_of(OWN[:9], OWN[9:18], OWN[18:]))]
    )
    said: list[Any] = []
    monkeypatch.setattr(evaluate, "evaluate_segmenter", lambda *given, **named: said.append(named["notes"]))
    evaluate_acdc(segmenter, cohort, "all")
    assert "9 of 30" in said[0][0]
