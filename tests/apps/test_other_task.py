"""A model file of other structures than the heart's does all that needs no anatomy; a task of its own adds the rest."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import REPO
from pages import ORIGIN
from segmentations import segmentation_of

from cgdpm_med import (
    ConditionalUNet,
    MaskTarget,
    NoiseSchedule,
    Options,
    Segmenter,
    VolumeInput,
    acdc_datalist,
    describe,
    evaluate_folders,
    read_volume,
    save_model,
    segment,
)
from cgdpm_med.evaluation.calibrate import calibrate, format_calibration
from cgdpm_med.evaluation.calibration_file import find_calibration
from cgdpm_med.evaluation.label_names import parse_labels
from cgdpm_med.evaluation.segmenter import evaluate_segmenter
from cgdpm_med.inference.labels import COLOURS, Labels
from cgdpm_med.inference.segmenter import Segmentation, ensemble_settings
from cgdpm_med.metrics.volumetry import Estimate, FrameVolumes
from cgdpm_med.models.description import Label
from cgdpm_med.phantom import write_phantom_dataset
from cgdpm_med.report.case import case_report
from cgdpm_med.report.records import read_study_record, study_record
from cgdpm_med.studies import task as tasks
from cgdpm_med.studies.measures import Measure, Measurements
from cgdpm_med.studies.result import StudyResult
from cgdpm_med.studies.study import Study
from cgdpm_med.studies.task import Task, task_of
from cgdpm_med.tables.numbers import format_number

LIVER, TUMOUR = Label("liver", "#8b4513"), Label("tumour", "#00ced1")
OF_THE_HEART = re.compile(r"cardiac|heart|ventric|myocard|ejection|diasto|systol|\bLV\b|\bRV\b|\bMyo\b|_ef_|edv", re.I)
NUMBERS = range(901, 912)
SPLIT = {
    "train": [],
    "validation": [f"patient{n}" for n in NUMBERS[:-1]],
    "test": [f"patient{n}" for n in NUMBERS[-1:]],
}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patients with references of two structures, in the layout that is read as a datalist."""
    folder = tmp_path_factory.mktemp("scans")
    write_phantom_dataset(folder, patients=list(NUMBERS), shape=(32, 28, 3), spacing=(5.6, 5.6, 28.0), num_frames=4)
    for file in folder.rglob("*_gt.nii*"):
        image = nib.load(file)
        labels = np.array([0, 0, 1, 2], dtype=np.uint8)[np.asanyarray(image.dataobj).astype(int)]
        nib.Nifti1Image(labels, image.affine, image.header).to_filename(file)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped configuration beside a small network whose model file names a liver and a tumour."""
    folder = tmp_path_factory.mktemp("liver") / "bundle"
    (folder / "configs").mkdir(parents=True)
    shipped = (REPO / "bundles" / "acdc_segmentation" / "configs" / "inference.yaml").read_text(encoding="utf-8")
    for name, value in {"members": 2, "steps": 1}.items():
        shipped = re.sub(rf"(?m)^{name}: \S.*$", f"{name}: {value}", shipped)
    (folder / "configs" / "inference.yaml").write_text(shipped, encoding="utf-8")
    torch.manual_seed(0)
    network = ConditionalUNet(
        2, 3, 3, 3, channels=(8, 16), num_res_blocks=1, attention_levels=(False, False), patch_size=2
    )
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.5)
    description = describe(
        network,
        MaskTarget(3),
        NoiseSchedule(schedule="cosine", prediction_type="sample"),
        VolumeInput(spacing=2.5, field=32, neighbours=1),
        [vars(LIVER), vars(TUMOUR)],
    )
    save_model(folder / "models" / "model.pt", network, description)
    return folder


@pytest.fixture(scope="module")
def segmenter(bundle: Path) -> Segmenter:
    return Segmenter.from_bundle(bundle, device="cpu", precision="float32")


def readable(page: str) -> str:
    """A page without its style and pictures."""
    return re.sub(r"base64,[^\"]*", "", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))


def test_names_and_colours_are_those_of_the_model_file(segmenter: Segmenter) -> None:
    assert segmenter.labels == Labels(("liver", "tumour"), (LIVER.colour, TUMOUR.colour))
    assert type(task_of(segmenter.labels)) is Task


def test_a_colour_that_is_left_open_is_the_usual_one() -> None:
    labels = Labels(("a", "b", "c"), ("", "#123456"))
    assert labels.colours == (COLOURS[1], "#123456", COLOURS[3])
    assert labels.colour_of(4) == COLOURS[4]


def test_scans_are_segmented_reported_and_scored(bundle: Path, scans: Path, tmp_path: Path) -> None:
    for patient in ("patient901", "patient902"):
        shutil.copytree(scans / patient, tmp_path / "in" / patient)
    out, options = tmp_path / "out", Options(write=("mask", "probabilities", "members"))
    result = segment(
        tmp_path / "in", out, bundle=bundle, device="cpu", precision="float32", options=options, label_table=True
    )
    assert not result["failed"]
    pages = [file.read_text(encoding="utf-8") for file in sorted(out.rglob("*.html"))]
    assert len(pages) == 3  # of two patients, and of both
    for page in pages:
        assert not OF_THE_HEART.search(readable(page))
        assert {"liver", "tumour"} <= set(re.findall(r"\w+", page))
    assert all(colour in pages[-1] for colour in (LIVER.colour, TUMOUR.colour))
    assert COLOURS[1] not in "".join(pages)
    assert not OF_THE_HEART.search((out / "cohort.csv").read_text(encoding="utf-8"))
    table = next(Path(file) for file in result["label_tables"] if file.endswith(".ctbl"))
    assert table.read_text(encoding="utf-8").splitlines()[-1].split()[1:5] == ["tumour", "0", "206", "209"]
    record = json.loads(next(out.rglob("patient901.json")).read_text(encoding="utf-8"))["study"]
    assert record["colours"] == [LIVER.colour, TUMOUR.colour]
    assert study_record(read_study_record(record)) == record

    found = evaluate_folders(out, tmp_path / "in", labels=parse_labels("1=liver,2=tumour"))
    assert list(found["structures"]) == ["liver", "tumour"]
    assert (found["function"], found["failed"]) == (None, {})
    assert 0 <= found["ensemble"]["ged"] <= 2


def test_evaluation_and_calibration(bundle: Path, segmenter: Segmenter, scans: Path) -> None:
    fitted = calibrate(scans, split=SPLIT, bundle=bundle, device="cpu", precision="float32")
    assert (fitted["widening"], fitted["margin"]) == ({}, {})
    assert fitted["data"]["patients"] == 10
    assert fitted["after"]["nll"] <= fitted["before"]["nll"]
    assert not OF_THE_HEART.search(format_calibration(fitted))
    calibration, _ = find_calibration(
        segmenter.weights, {**ensemble_settings(segmenter), "staple": False, "keep_largest": False}
    )
    assert calibration is not None
    assert calibration.temperature == fitted["temperature"]
    summary = evaluate_segmenter(segmenter, acdc_datalist(scans, "test", split=SPLIT))
    assert list(summary["structures"]) == ["liver", "tumour"]
    assert summary["function"] is None
    assert summary["ensemble"]["brier"] > 0


# --- a task of one's own ----------------------------------------------------------------------------------------------


class Growth(Task):
    """How a tumour grows from the first scan to the last: the example of docs/architecture.md."""

    phases = ("before", "after")
    measures: ClassVar[Mapping[str, Measure]] = {"growth": Measure("Tumour growth", "ml", indexed=False)}

    @classmethod
    def is_among(cls, labels: Labels) -> bool:
        return "tumour" in labels.names

    def kept(self, volumes: Mapping[int, FrameVolumes], known: Mapping[str, int]) -> set[int]:
        return {min(volumes), max(volumes)}

    def find_phases(self, key: str, volumes: Mapping[int, FrameVolumes], known: Mapping[str, int]) -> Mapping[str, int]:
        return {"before": min(volumes), "after": max(volumes)}

    def measure(self, frames: Mapping[str, FrameVolumes], **of_intervals: Any) -> Measurements:
        tumour = self.labels.names.index("tumour") + 1
        before, after = (frames[phase].combined[tumour] for phase in self.phases)
        return Measurements({"growth": Estimate(float(after - before))}, 0, 0.9, {})

    def headlines(self, result: StudyResult) -> list[tuple[str, str, str]]:
        grown = None if result.function is None else result.function.measures["growth"].value
        return [("Tumour growth", format_number(grown, 1, unit="ml"), "")]


@pytest.fixture
def growth(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("growth_of_tumours")
    module.TASK = Growth  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(tasks, "PLUGINS", [*tasks.PLUGINS, module.__name__])


def scan(tumour_voxels: int, folder: Path) -> Segmentation:
    """Of voxels of 1 ml, two members that agree."""
    mask = np.zeros((8, 8, 3), dtype=np.uint8)
    mask[2, :, :] = 1
    mask[4, 1 : 1 + tumour_voxels, 1] = 2
    image = np.random.default_rng(0).normal(size=mask.shape).astype(np.float32)
    nib.Nifti1Image(image, np.diag([10.0, 10.0, 10.0, 1.0])).to_filename(folder / "scan.nii.gz")
    found = segmentation_of(np.stack([mask, mask]), read_volume(folder / "scan.nii.gz"))
    return replace(found, channel_names={"1": "liver", "2": "tumour", "3": "vessel"})


@pytest.mark.usefixtures("growth")
def test_a_task_of_its_own_is_switched_on_by_its_labels(tmp_path: Path) -> None:
    study = Study("a")
    for number, voxels in ((1, 2), (2, 3), (5, 6)):
        study.add(number, scan(voxels, tmp_path))
    result = study.result()
    assert result.phases == {"before": 1, "after": 5}
    assert result.function is not None
    assert result.function.measures["growth"].value == pytest.approx(4.0)
    page = readable(case_report(result, study.key_frames(), ORIGIN))
    assert "4.0 ml" in page
    assert not OF_THE_HEART.search(page)
    again = read_study_record(json.loads(json.dumps(study_record(result))))
    assert (again.phases, again.function, again.labels) == (result.phases, result.function, result.labels)


def test_without_it_the_same_labels_have_volumes_alone(tmp_path: Path) -> None:
    study = Study("a")
    study.add(1, scan(2, tmp_path))
    study.add(2, scan(3, tmp_path))
    assert (study.result().phases, study.result().function) == ({}, None)
