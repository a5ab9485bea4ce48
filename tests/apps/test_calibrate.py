"""Calibration from end to end: fitted to phantoms, kept beside the weights, applied to what it fits and no more."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from calibrations import example
from monai.bundle import ConfigParser
from overconfident import Overconfident
from studies import study

from cgdpm_med import (
    InputError,
    Options,
    acdc_datalist,
    bundle_path,
    evaluate_folders,
    find_cases,
    format_summary,
    read_labels,
    read_volume,
    segment_all,
)
from cgdpm_med.apps.calibrate_slices import KnownPixels
from cgdpm_med.data.acdc import load_split
from cgdpm_med.evaluation.calibrate import (
    MARGINS,
    calibrate,
    calibration_items,
    calibration_path,
    fit_intervals,
    fit_voxels,
    format_calibration,
)
from cgdpm_med.evaluation.calibration_file import (
    CALIBRATION,
    find_calibration,
    read_calibration,
    write_calibration,
)
from cgdpm_med.evaluation.segmenter import evaluate_segmenter
from cgdpm_med.heart.function import MEASURES, MYOCARDIAL_DENSITY
from cgdpm_med.inference.segmenter import Segmenter, ensemble_settings
from cgdpm_med.metrics.calibration import fit_probabilities, fit_temperature, interval_score, temper
from cgdpm_med.metrics.masks import expected_calibration_error, foreground_region
from cgdpm_med.models.weights import sha256_of
from cgdpm_med.phantom import write_phantom_dataset

SMALL: dict[str, Any] = {"shape": (64, 56, 4), "spacing": (2.8, 2.8, 22.0), "num_frames": 6}
NUMBERS = range(901, 912)
SPLIT = {
    "train": [],
    "validation": [f"patient{n}" for n in NUMBERS[:-1]],
    "test": [f"patient{n}" for n in NUMBERS[-1:]],
}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantom_dataset(folder, patients=list(NUMBERS), **SMALL)
    return folder


@pytest.fixture
def segmenter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Overconfident:
    stub = Overconfident(tmp_path / "models")
    monkeypatch.setattr(Segmenter, "from_bundle", lambda *bundle, **settings: stub)
    return stub


@pytest.fixture(scope="module")
def fit_once(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    stub = Overconfident(tmp_path_factory.mktemp("fit"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Segmenter, "from_bundle", lambda *bundle, **settings: stub)
        return calibrate(phantoms, split=SPLIT, device="cpu"), stub.weights[0].with_name(CALIBRATION)


@pytest.fixture
def fitted(segmenter: Overconfident, fit_once: tuple[dict[str, Any], Path]) -> dict[str, Any]:
    """What the fit said; its file lies beside the segmenter's weights."""
    result, file = fit_once
    shutil.copy(file, segmenter.weights[0].parent)
    return result


# --- the fit ----------------------------------------------------------------------------------------------------------


def test_what_is_fitted(segmenter: Overconfident, phantoms: Path, fitted: dict[str, Any]) -> None:
    """Softening and factors again from the definition: voxels of the regions together, the largest of ten scores."""
    probabilities, labels, volumes = [], [], {}
    for item in acdc_datalist(phantoms, "validation", split=SPLIT):
        reference = read_labels(item["label"])
        found = segmenter(read_volume(item["image"]), item["key"])
        region = foreground_region(reference.data)
        probabilities.append(found.probabilities[:, region])
        labels.append(reference.data[region])
        count = [np.bincount(m.ravel(), minlength=4) for m in (found.mask, *found.members, reference.data)]
        volumes[item["patient"], item["frame"]] = np.array(count) * reference.grid.voxel_volume / 1000
    p, y = np.concatenate(probabilities, axis=1), np.concatenate(labels)
    softening = fitted["temperature"], fitted["doubt"]
    assert softening in (fit_probabilities(p, y), (fit_temperature(p, y), 0.0))
    assert softening[0] > 1.2
    assert fitted["before"]["ece"] == pytest.approx(expected_calibration_error(p, y))
    assert fitted["after"]["ece"] == pytest.approx(expected_calibration_error(temper(p, *softening), y))
    assert fitted["after"]["ece"] < fitted["before"]["ece"]
    assert fitted["after"]["nll"] < fitted["before"]["nll"]

    assert fitted["guarantee"]["of"] == "each measure"
    assert fitted["guarantee"]["coverage_on_average_over_fits"] == pytest.approx(10 / 11)
    assert fitted["after"]["function"]["lv_ef"]["coverage"] == 1.0
    scores: dict[str, list[float]] = {}
    for patient in SPLIT["validation"]:
        ed, es = volumes[patient, "ED"], volumes[patient, "ES"]
        measured = {"myo_mass": MYOCARDIAL_DENSITY * ed[:, 2]}
        for side, label in (("rv", 1), ("lv", 3)):
            edv, esv = ed[:, label], es[:, label]
            measured |= {f"{side}_edv": edv, f"{side}_esv": esv, f"{side}_sv": edv - esv}
            measured[f"{side}_ef"] = 100 * (1 - esv / edv)
        for name, found_and_known in measured.items():
            value, members, truth = found_and_known[0], found_and_known[1:-1], found_and_known[-1]
            low, high = np.minimum(np.quantile(members, 0.05), value), np.maximum(np.quantile(members, 0.95), value)
            reach = (value - low if truth < value else high - value) + MARGINS[MEASURES[name].unit]
            scores.setdefault(name, []).append(abs(truth - value) / reach)
    assert fitted["widening"] == pytest.approx({name: max(of_patients) for name, of_patients in scores.items()})
    assert fitted["margin"]["lv_ef"] == pytest.approx(max(scores["lv_ef"]) * MARGINS["%"])
    assert fitted["data"] == {"section": "validation", "seed": 0, "device": "cpu", "patients": 10, "volumes": 20}


def test_probabilities_that_are_calibrated_already_stay() -> None:
    """The likelihood would soften these, for what they say of the classes that are not the first."""
    p = np.tile(np.array([[0.6], [0.39], [0.01]], dtype=np.float32), 100)
    frame = KnownPixels(p, np.repeat(np.array([0, 2], dtype=np.uint8), [60, 40]))
    assert fit_probabilities(p, frame.labels) != (1.0, 0.0)
    assert fit_voxels([frame]) == (1.0, 0.0)


def test_the_file_lies_beside_the_weights_and_can_be_read(segmenter: Overconfident, fitted: dict[str, Any]) -> None:
    path = segmenter.weights[0].with_name(CALIBRATION)
    assert Path(fitted["file"]).parent.joinpath("model.pt").is_file()
    calibration = read_calibration(path)
    assert (calibration.temperature, calibration.doubt) == (fitted["temperature"], fitted["doubt"])
    assert calibration.weights == {"model.pt": sha256_of(segmenter.weights[0])}
    assert calibration.settings["members"] == 5
    assert calibration.settings["combine"] == "mean"
    assert calibration.digest == sha256_of(path)
    text = format_calibration(fitted)
    assert "fitted to 10 validation patients, 20 volumes" in text
    assert "90.9% on average over fits to 10 patients; by this one fit with more than 74%" in text


def test_test_patients_are_refused(phantoms: Path, tmp_path: Path) -> None:
    for section in ("test", "all"):
        with pytest.raises(InputError, match=f"not fitted to section '{section}'"):
            calibration_items(phantoms, section, SPLIT)
    # a split of one's own cannot make test patients of ACDC anything else
    name = load_split()["test"][3]
    write_phantom_dataset(tmp_path, patients=[int(name[7:])], **SMALL)
    with pytest.raises(InputError, match=f"{name} is a test patient"):
        calibration_items(tmp_path, "validation", {"train": [], "validation": [name], "test": []})


def test_too_few_patients_are_refused_before_any_work(phantoms: Path, segmenter: Overconfident) -> None:
    few = {"train": SPLIT["validation"][8:], "validation": SPLIT["validation"][:8], "test": SPLIT["test"]}
    with pytest.raises(InputError, match=r"section validation has 8 patients. Name nine or more"):
        calibrate(phantoms, split=few, device="cpu")
    with pytest.raises(InputError, match="cannot be written"):
        calibrate(phantoms, split=SPLIT, device="cpu", output=phantoms)
    assert segmenter.seen == []


def test_the_largest_of_nine_scores_is_the_factor_of_each_measure() -> None:
    # cavities of 100 ml whose members reach from 91 to 109, nine truths at 99, 98, … 91 and in one case 130
    studies = [study(str(k), 100, 50, 100 - k, 50) for k in range(1, 9)] + [study("9", 100, 50, 130, 50)]
    factors, margins = fit_intervals(studies)
    assert factors["lv_edv"] == pytest.approx(30 / (9 + 5))
    assert margins["lv_edv"] == pytest.approx(5 * 30 / (9 + 5))
    assert factors["lv_esv"] == 0  # right every time
    assert factors["rv_edv"] == 0


def test_together_no_measure_waits_for_its_worst_patient() -> None:
    studies = [study(str(k), 100, 50, 100 - k, 50) for k in range(1, 9)] + [study("9", 100, 50, 130, 50)]
    factors, margins = fit_intervals(studies, together=True)
    scores = sorted(
        interval_score(found.value, found.lower, found.upper, truth, MARGINS[MEASURES[name].unit])
        for each in studies
        for name, found in each.found(possible=False).measures.items()
        if (truth := each.truth()[name]) is not None
        and found.value is not None
        and found.lower is not None
        and found.upper is not None
    )
    assert len(scores) == 81
    assert factors == pytest.approx(dict.fromkeys(MEASURES, scores[73]))  # number ceil(0.9 x 82)
    assert margins["lv_edv"] == pytest.approx(5 * scores[73])
    assert factors["lv_edv"] < 30 / (9 + 5)


def test_what_is_promised_of_all_measures_together(phantoms: Path, segmenter: Overconfident, tmp_path: Path) -> None:
    fitted = calibrate(phantoms, split=SPLIT, device="cpu", output=tmp_path / "c.json", together=True)
    assert len(set(fitted["widening"].values())) == 1
    covered = [score["coverage"] for score in fitted["after"]["function"].values()]
    assert np.mean(covered) == pytest.approx(82 / 90)  # number 82 = ceil(0.9 x 91) of all scores
    assert fitted["guarantee"] == {
        "of": "all measures together",
        "coverage_on_average_over_fits": pytest.approx(82 / 99),
    }
    assert "82.8% on average over fits to 10 patients and over all measures, or more" in format_calibration(fitted)


def test_a_measure_without_intervals_cannot_be_fitted() -> None:
    studies = [study(str(k), 100, 50, 100, 50) for k in range(8)] + [study("8", 0, 0, 100, 50)]
    with pytest.raises(InputError, match="LV ejection fraction has no interval in 1 of 9 patients"):
        fit_intervals(studies)


def test_a_file_of_other_settings_is_not_lost(
    fitted: Any, segmenter: Overconfident, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = segmenter.weights[0].with_name(CALIBRATION)
    content = json.loads(path.read_text())
    content["settings"]["members"] = 17
    path.write_text(json.dumps(content))
    monkeypatch.setattr("cgdpm_med.evaluation.calibrate.load_segmenter", lambda *_: segmenter)
    with pytest.raises(InputError, match="was fitted to members 17, and runs with these would lose it") as refused:
        calibrate(phantoms, split=SPLIT)
    assert "--output" in str(refused.value)
    assert json.loads(path.read_text()) == content
    calibrate(phantoms, split=SPLIT, output=tmp_path / "mine.json")
    assert read_calibration(tmp_path / "mine.json").settings["members"] == segmenter.predictor.sampling.members


def test_a_place_that_cannot_be_made_is_told_first(segmenter: Overconfident, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Give a file in a folder of yours as --output"):
        calibration_path(tmp_path / "file" / "deep" / "mine.json", segmenter.weights)


# --- what it changes --------------------------------------------------------------------------------------------------


def image_of(folder: Path, number: int) -> Path:
    return folder / f"patient{number}" / f"patient{number}_frame01.nii.gz"


def test_probabilities_change_and_the_mask_does_not(segmenter: Overconfident, phantoms: Path) -> None:
    found = segmenter(read_volume(image_of(phantoms, 903)), "patient903_frame01")
    calibrated = example(segmenter.weights[0]).apply(found)
    assert calibrated.mask is found.mask
    assert calibrated.members is found.members
    np.testing.assert_array_equal(calibrated.probabilities.argmax(axis=0), found.mask)
    np.testing.assert_array_equal(calibrated.probabilities, temper(found.probabilities, 1.5))
    p = calibrated.probabilities.astype(np.float64)
    np.testing.assert_allclose(calibrated.entropy, -(p * np.log(p)).sum(axis=0) / np.log(4), atol=1e-6)
    assert (calibrated.temperature, found.temperature) == (1.5, None)


PLAIN = Options(write=("mask", "probabilities", "members"), pages=False)


def run(segmenter: Overconfident, phantoms: Path, out: Path, **options: Any) -> dict[str, Any]:
    cases = [case for case in find_cases(phantoms) if case.study.key in ("patient901", "patient911")]
    return segment_all(segmenter, cases, out, options=replace(PLAIN, **options))  # type: ignore[arg-type]


@pytest.mark.usefixtures("fitted")
def test_a_run_is_calibrated_unless_told_otherwise(
    segmenter: Overconfident, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibration = read_calibration(segmenter.weights[0].with_name(CALIBRATION))
    with_it = run(segmenter, phantoms, tmp_path / "with")
    without = run(segmenter, phantoms, tmp_path / "without", calibrate=False)
    assert "ignored" not in capsys.readouterr().err
    for one, other in zip(with_it["studies"], without["studies"], strict=True):
        assert (one["function"]["calibrated"], other["function"]["calibrated"]) == (True, False)
        assert one["quality"] == other["quality"]
        for name, measure in MEASURES.items():
            new, old = one["function"]["measures"][name], other["function"]["measures"][name]
            assert new["value"] == old["value"]
            reach = calibration.widening[name] * (old["value"] - old["lower"]) + calibration.margin[name]
            assert new["lower"] == pytest.approx(max(old["value"] - reach, measure.floor))
    for case, described in zip(("patient901_frame01", "patient901_frame03"), with_it["cases"][:2], strict=True):
        assert described["calibrated"] is True
        assert (described["temperature"], described["doubt"]) == (calibration.temperature, calibration.doubt)
        files = [tmp_path / kind / "patient901" / f"{case}.nii.gz" for kind in ("with", "without")]
        assert files[0].read_bytes() == files[1].read_bytes()
        tempered, plain = (nib.load(f.with_name(f"{case}_probabilities.nii.gz")).get_fdata() for f in files)
        expected = temper(np.moveaxis(plain, -1, 0), calibration.temperature, calibration.doubt)
        np.testing.assert_allclose(np.moveaxis(tempered, -1, 0), expected, atol=1e-6)
    assert without["cases"][0]["calibrated"] is False
    assert without["cases"][0]["temperature"] is None
    record = json.loads((tmp_path / "with" / "patient901" / "patient901.json").read_text())
    assert record["made_with"]["settings"]["calibration"] == calibration.digest
    assert ",0.9,yes," in (tmp_path / "with" / "cohort.csv").read_text()
    assert ",0.9,no," in (tmp_path / "without" / "cohort.csv").read_text()


@pytest.mark.usefixtures("fitted")
def test_a_misfit_is_said_once_and_leaves_the_ensemble_alone(
    segmenter: Overconfident, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(segmenter, phantoms, tmp_path / "out", keep_largest=True)
    lines = [line for line in capsys.readouterr().err.splitlines() if "calibration" in line]
    (line,) = lines
    assert line.startswith("note: calibration.json was fitted to keep largest False and is ignored")
    assert "--no-calibration" in line  # fitting it again would not help: a fit keeps every piece
    assert [study["function"]["calibrated"] for study in result["studies"]] == [False, False]
    with pytest.raises(InputError, match="was fitted to keep largest False"):
        run(segmenter, phantoms, tmp_path, keep_largest=True, calibration=segmenter.weights[0].with_name(CALIBRATION))


@pytest.mark.usefixtures("fitted")
def test_continue_makes_again_what_another_calibration_made(
    segmenter: Overconfident, phantoms: Path, tmp_path: Path
) -> None:
    cases = [case for case in find_cases(phantoms) if case.study.key == "patient901"]
    segment_all(segmenter, cases, tmp_path / "out", options=PLAIN)
    assert segment_all(segmenter, cases, tmp_path / "out", options=PLAIN, resume=True)["skipped"] == ["patient901"]
    path = segmenter.weights[0].with_name(CALIBRATION)
    write_calibration(replace(read_calibration(path), temperature=1.01), path)
    again = segment_all(segmenter, cases, tmp_path / "out", options=PLAIN, resume=True)
    assert (again["skipped"], again["cases"][0]["temperature"]) == ([], 1.01)


# --- evaluation -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fitted")
def test_evaluation_reports_before_and_after_from_memory_and_from_files_alike(
    segmenter: Overconfident, phantoms: Path, tmp_path: Path
) -> None:
    calibration = read_calibration(segmenter.weights[0].with_name(CALIBRATION))
    names = ("patient901", "patient911")
    items = [item for item in acdc_datalist(phantoms, "all") if item["patient"] in names]
    summary = evaluate_segmenter(segmenter, items, tmp_path / "scores")
    assert summary["calibration"]["temperature"] == calibration.temperature
    before, after = summary["function"]["measures"]["lv_ef"], summary["function"]["calibrated"]["lv_ef"]
    assert (before["n"], before["error_mean"]) == (after["n"], after["error_mean"]) == (2, before["error_mean"])
    assert after["width"] > before["width"]
    assert summary["ensemble"]["ece_calibrated"] != summary["ensemble"]["ece"]
    assert "calibrated cover" in format_summary(summary)

    run(segmenter, phantoms, tmp_path / "out")
    for name in names:  # references of these two patients only
        shutil.copytree(phantoms / name, tmp_path / "ref" / name)
    from_files = evaluate_folders(tmp_path / "out", tmp_path / "ref")
    assert from_files["failed"] == {}
    for name, value in summary["ensemble"].items():
        assert from_files["ensemble"][name] == pytest.approx(value, rel=1e-3, abs=1e-5)
    for kind in ("measures", "calibrated"):
        for name in MEASURES:
            assert from_files["function"][kind][name] == pytest.approx(summary["function"][kind][name], nan_ok=True)
    assert from_files["quality"]["studies"] == 2


def test_a_record_of_other_masks_does_not_count(segmenter: Overconfident, phantoms: Path, tmp_path: Path) -> None:
    run(segmenter, phantoms, tmp_path / "out")
    for path in (tmp_path / "out" / "patient901").glob("*_frame0?.nii.gz"):
        mask = nib.load(path)
        labels = np.asarray(mask.dataobj).copy()
        labels[:3] = 3
        nib.Nifti1Image(labels, mask.affine, mask.header).to_filename(path)
    summary = evaluate_folders(tmp_path / "out" / "patient901", phantoms / "patient901")
    assert summary["quality"] is None
    assert summary["function"]["measures"]["lv_edv"]["error_mean"] > 0


# --- what is shipped --------------------------------------------------------------------------------------------------


def test_the_shipped_calibration_fits_the_shipped_bundle() -> None:
    """After a training, `cgdpm-med calibrate` has to be run again."""
    segmenter = Segmenter.from_bundle("acdc_segmentation", device="cpu")
    made_with = ensemble_settings(segmenter)
    calibration, ignored = find_calibration(segmenter.weights, {**made_with, "staple": False, "keep_largest": False})
    assert ignored is None
    assert calibration is not None
    assert calibration.data["section"] == "validation"
    assert calibration.data["patients"] == len(load_split()["validation"])


@pytest.mark.parametrize("changes", [{}, {"guidance_scale": 0.25}], ids=["default", "guided"])
def test_a_segmenter_from_configurations_alone_finds_the_calibration_too(changes: dict[str, float]) -> None:
    """evaluate.yaml builds its segmenter with MONAI's parser, without Segmenter.from_bundle."""
    root = bundle_path("acdc_segmentation")
    parser = ConfigParser()
    parser.read_config([str(root / "configs" / name) for name in ("inference.yaml", "evaluate.yaml")])
    parser.update({"bundle_root": str(root), "device": "cpu", **changes})
    segmenter = parser.get_parsed_content("segmenter")
    made_with = ensemble_settings(segmenter)
    calibration, ignored = find_calibration(segmenter.weights, {**made_with, "staple": False, "keep_largest": False})
    if not changes:
        assert ignored is None
        assert calibration is not None
    else:  # another ensemble, of other networks
        assert [file.name for file in segmenter.weights] == ["model.pt", "guidance.pt"]
        assert calibration is None
        assert ignored is not None
        assert "other weights" in ignored
