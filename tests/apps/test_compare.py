"""Methods compared: statistics against slow twins, cases paired, patients as the unit, tables written."""

from __future__ import annotations

import csv
import itertools
import json
import math
import warnings
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from command import run
from label_files import heart, renamed, write_labels
from numpy.typing import NDArray
from PIL import Image

from cgdpm_med import InputError, compare_methods, parse_labels
from cgdpm_med.evaluation.compare import patient_of, without_frame
from cgdpm_med.evaluation.compare_files import (
    comparison_latex,
    comparison_markdown,
    comparison_notes,
    format_comparison,
)
from cgdpm_med.evaluation.paired_statistics import (
    RESAMPLES,
    bootstrap_interval,
    holm,
    paired_difference,
    patient_means,
    signed_rank_p,
    smallest_p,
)

# --- statistics -------------------------------------------------------------------------------------------------------


def slow_holm(p_values: list[float]) -> list[float]:
    """Holm (1979): reject the smallest while p <= level / (m - rejected); the level from which on each is rejected."""
    adjusted = [0.0] * len(p_values)
    level = 0.0
    for rejected, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        level = max(level, p_values[place] * (len(p_values) - rejected))
        adjusted[place] = min(level, 1.0)
    return adjusted


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_as_its_slow_twin() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = [float(v) for v in np.round(rng.uniform(size=7) ** 3, 2)]
        assert holm(p) == pytest.approx(slow_holm(p))


def slow_rank_p(differences: list[float]) -> float:
    """Two-sided p over all 2^n signs of the ranks, for differences of unequal size."""
    n = len(differences)
    ranks = {abs(d): rank for rank, d in enumerate(sorted(differences, key=abs), 1)}
    observed = sum(ranks[abs(d)] for d in differences if d > 0)
    centre = n * (n + 1) / 4
    sums = [sum(itertools.compress(range(1, n + 1), signs)) for signs in itertools.product((0, 1), repeat=n)]
    return sum(abs(s - centre) >= abs(observed - centre) for s in sums) / 2**n


@pytest.mark.parametrize("n", [2, 5, 9])
def test_signed_ranks_as_their_slow_twin(n: int) -> None:
    differences = np.random.default_rng(n).normal(0.4, 1, n)
    assert signed_rank_p(differences) == pytest.approx(slow_rank_p(list(differences)))


def test_the_smallest_p_is_reached_by_differences_of_one_sign() -> None:
    for n in (2, 5, 6, 8):
        assert signed_rank_p(np.arange(1.0, n + 1)) == pytest.approx(smallest_p(n))
    assert smallest_p(6) < 0.05 < smallest_p(5)
    assert smallest_p(6, tests=3) == pytest.approx(3 * 2 / 64)


def slow_bca(values: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """Efron's BCa (1987, with the jackknife's acceleration) of the mean, loop by loop, from the same resamples."""
    n, rng, normal = len(values), np.random.default_rng(seed), NormalDist()
    means = sorted(float(np.mean([values[i] for i in rng.integers(0, n, n)])) for _ in range(RESAMPLES))
    mean = float(values.mean())
    below = (sum(m < mean for m in means) + sum(m <= mean for m in means)) / (2 * len(means))
    bias = normal.inv_cdf(below)
    left_out = [float(np.mean(np.delete(values, i))) for i in range(n)]
    centred = [float(np.mean(left_out)) - m for m in left_out]
    acceleration = sum(c**3 for c in centred) / (6 * sum(c**2 for c in centred) ** 1.5)
    ends = []
    for z in (normal.inv_cdf(0.025), normal.inv_cdf(0.975)):
        level = normal.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))
        ends.append(float(np.percentile(means, 100 * level)))
    return ends[0], ends[1]


def test_intervals_as_their_slow_twin() -> None:
    values = np.random.default_rng(5).exponential(1.0, 12) - 0.5  # skew: the percentile interval lies elsewhere
    assert bootstrap_interval(values, seed=7) == pytest.approx(slow_bca(values, seed=7), abs=1e-9)
    assert bootstrap_interval(values, seed=7) == bootstrap_interval(values, seed=7)


def test_equal_methods_differ_by_nothing_without_a_warning() -> None:
    values = [0.9, 0.1 + 0.2, 0.7]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = paired_difference(values, [0.9, 0.3, 0.7])  # 0.1 + 0.2 is not 0.3 in binary
    assert (found.difference, found.interval, found.p) == (0.0, (0.0, 0.0), 1.0)


def test_one_patient_has_a_difference_and_no_test() -> None:
    found = paired_difference([0.5], [0.75])
    assert (found.difference, found.interval, found.p) == (0.25, None, None)


def test_a_patient_counts_once() -> None:
    values = {"a1": 1.0, "a2": 0.5, "b1": 0.0}
    assert patient_means(values, {"a1": "a", "a2": "a", "b1": "b"}) == {"a": 0.75, "b": 0.0}


# --- patients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "patient"),
    [
        ("patient101_frame01", "patient101"),
        ("001_SA_ED", "001"),
        ("001_LA_ES", "001"),
        ("1234567/sa_ES", "1234567"),
        ("A0S9V9_sa/frame007", "A0S9V9"),
        ("patient007_4d/frame003", "patient007"),
        ("case_001", "case_001"),  # a number alone may be the patient's
        ("sa_ED", "sa"),
        ("reduced", "reduced"),
    ],
)
def test_names_without_frame_and_phase(key: str, patient: str) -> None:
    assert patient_of(key, {}) == without_frame(key) == patient


def test_a_pattern_finds_the_patient_or_says_so() -> None:
    assert patient_of("site1_p7_scan2", {"site1_p7_scan2": "x"}, r"(p\d+)_") == "p7"
    assert patient_of("p7_2", {}, r"^p\d+") == "p7"
    with pytest.raises(InputError, match="finds no patient"):
        patient_of("q7", {}, r"(p\d+)")
    with pytest.raises(InputError, match="regular expression"):
        patient_of("q7", {}, "(")


# --- folders ----------------------------------------------------------------------------------------------------------


def longer(extra: int) -> NDArray[np.uint8]:
    """Label 1 has 4 voxels; so many more in its row: Dice 8 / (8 + extra)."""
    mask = heart()
    mask[5 : 5 + extra, 1, 0] = 1
    return mask


def write_cases(folder: Path, masks: dict[str, NDArray]) -> Path:
    for name, mask in masks.items():
        write_labels(folder / f"{name}.nii.gz", mask)
    return folder


@pytest.fixture
def cohort(tmp_path: Path) -> dict[str, Path]:
    """Seven patients, two volumes each; method b has one voxel of label 1 too many at ED, two at ES."""
    keys = [f"p{n}_{phase}" for n in range(7) for phase in ("ED", "ES")]
    return {
        "ref": write_cases(tmp_path / "ref", dict.fromkeys(keys, heart())),
        "a": write_cases(tmp_path / "a", dict.fromkeys(keys, heart())),
        "b": write_cases(tmp_path / "b", {key: longer(1 if key.endswith("ED") else 2) for key in keys}),
    }


def row_of(comparison: dict[str, Any], structure: str, metric: str, second: str = "b") -> dict[str, Any]:
    (row,) = [
        row
        for row in comparison["rows"]
        if (row["structure"], row["metric"], row["second"]) == (structure, metric, second)
    ]
    return row


def test_a_comparison_worked_out_by_hand(cohort: dict[str, Path]) -> None:
    comparison = compare_methods(cohort["ref"], {"a": cohort["a"], "b": cohort["b"]})
    assert (comparison["cases"], comparison["patients"], comparison["tests"]) == (14, 7, 12)
    assert comparison["failed"] == {}
    rv = row_of(comparison, "RV", "dice")
    dice = (8 / 9 + 8 / 10) / 2
    assert (rv["mean_first"], rv["mean_second"]) == (1.0, pytest.approx(dice))
    assert rv["difference"] == rv["low"] == rv["high"] == pytest.approx(dice - 1)
    assert rv["p"] == pytest.approx(2 / 2**7)
    # six tests (RV and average, three metrics each) have this p, six have 1: Holm multiplies by 12 and keeps the order
    assert rv["p_holm"] == pytest.approx(12 * 2 / 2**7)
    assert row_of(comparison, "average", "dice")["difference"] == pytest.approx((dice - 1) / 3)
    assd = (2 / 9 + (2 + 4) / 10) / 2  # mm: voxels of 2 mm, one and two steps from the row's end
    assert row_of(comparison, "RV", "assd")["difference"] == pytest.approx(assd)
    lv = row_of(comparison, "LV", "hd95")
    assert (lv["difference"], lv["p"], lv["p_holm"]) == (0.0, 1.0, 1.0)


def test_volumes_without_a_distance_leave_its_row_alone(cohort: dict[str, Path]) -> None:
    write_labels(cohort["b"] / "p0_ED.nii.gz", np.where(heart() == 3, 0, heart()))
    comparison = compare_methods(cohort["ref"], {"a": cohort["a"], "b": cohort["b"]})
    dice, hd95 = row_of(comparison, "LV", "dice"), row_of(comparison, "LV", "hd95")
    assert dice["difference"] == pytest.approx(-0.5 / 7)  # 0 for 1 in one of two volumes of one of seven patients
    assert (dice["volumes"], dice["undefined"]) == (14, 0)
    assert (hd95["volumes"], hd95["undefined"], hd95["patients"]) == (13, 1, 7)
    assert any("no distances" in line for line in comparison_notes(comparison))


def test_a_case_that_one_method_lacks_is_named_and_left_out_for_all(
    cohort: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cohort["b"] / "p3_ED.nii.gz").unlink()
    write_labels(cohort["a"] / "p4_ES.nii.gz", renamed(heart(), 0, 1, 2, 9))
    comparison = compare_methods(cohort["ref"], {"a": cohort["a"], "b": cohort["b"]}, tmp_path / "out")
    assert comparison["left_out"]["cases"] == {"p3_ED": "no score of b", "p4_ES": "no score of a"}
    assert list(comparison["failed"]) == ["a: p4_ES", "b: p3_ED"]
    assert comparison["cases"] == 12
    assert row_of(comparison, "RV", "dice")["volumes"] == 12
    assert "p4_ES" in capsys.readouterr().err
    with (tmp_path / "out" / "left_out.csv").open(encoding="utf-8", newline="") as file:
        assert {(row["what"], row["name"]) for row in csv.DictReader(file)} >= {("case", "p3_ED"), ("case", "p4_ES")}


def test_few_patients_are_said_to_be_few(cohort: dict[str, Path]) -> None:
    for path in [path for side in cohort.values() for path in side.iterdir() if path.name[1] > "2"]:
        path.unlink()
    comparison = compare_methods(cohort["ref"], {"a": cohort["a"], "b": cohort["b"]})
    assert comparison["patients"] == 3
    assert any("3 patients" in line for line in comparison_notes(comparison))


def test_one_patient_is_said_to_be_one(cohort: dict[str, Path]) -> None:
    for path in [path for side in cohort.values() for path in side.iterdir() if "p1_" not in path.name]:
        path.unlink()
    comparison = compare_methods(cohort["ref"], {"a": cohort["a"], "b": cohort["b"]})
    assert (comparison["patients"], comparison["tests"]) == (1, 0)
    assert any("one patient" in line for line in comparison_notes(comparison))


def test_labels_of_one_method_and_methods_of_fewer_structures(cohort: dict[str, Path], tmp_path: Path) -> None:
    c = write_cases(tmp_path / "c", {p.name[:-7]: renamed(heart(), 0, 2, 1, 0) for p in cohort["ref"].iterdir()})
    comparison = compare_methods(
        cohort["ref"], {"b": cohort["b"], "c": c}, prediction_labels={"c": parse_labels("1=myocardium,2=RV")}
    )
    assert {row["structure"] for row in comparison["rows"]} == {"RV", "Myo", "average"}
    assert row_of(comparison, "Myo", "dice", "c")["mean_second"] == 1.0
    assert any(name.startswith("LV") for name in comparison["left_out"]["structures"])


def test_swapped_labels_of_a_method_are_noticed(cohort: dict[str, Path], tmp_path: Path) -> None:
    c = write_cases(tmp_path / "c", {p.name[:-7]: renamed(heart(), 0, 3, 2, 1) for p in cohort["ref"].iterdir()})
    comparison = compare_methods(cohort["ref"], {"a": cohort["a"], "c": c})
    assert comparison["label_hints"]["a"] == []
    assert "swapped" in format_comparison(comparison)


def test_three_methods_in_their_own_folders(cohort: dict[str, Path], tmp_path: Path) -> None:
    """Every two are compared; a folder more on one side does not matter."""
    deep = write_cases(tmp_path / "c", {f"x/{path.name[:-7]}": heart() for path in cohort["ref"].iterdir()})
    comparison = compare_methods(cohort["ref"], {"a": cohort["a"], "b": cohort["b"], "c_2|x": deep})
    assert comparison["tests"] == 36
    assert {(row["first"], row["second"]) for row in comparison["rows"]} == {("a", "b"), ("a", "c_2|x"), ("b", "c_2|x")}
    assert r"c_2\|x" in comparison_markdown(comparison)
    latex = comparison_latex(comparison)
    assert r"c\_2|x" in latex
    body = latex[latex.index(r"\midrule") : latex.index(r"\bottomrule")].splitlines()[1:]
    assert {line.count("&") for line in body} == {9}
    assert len(body) == 36


def test_cines_are_compared_frame_by_frame(tmp_path: Path) -> None:
    reference = np.stack([heart(), heart() * 0, heart()], -1)
    keys = ("p1", "p2")
    ref = write_cases(tmp_path / "ref", dict.fromkeys(keys, reference))
    a = write_cases(tmp_path / "a", dict.fromkeys(keys, np.stack([heart()] * 3, -1)))
    comparison = compare_methods(ref, {"a": a, "again": a})
    assert (comparison["cases"], comparison["patients"]) == (4, 2)
    assert comparison["left_out"]["frames"] == {"p1": [2], "p2": [2]}


def test_methods_without_a_common_case_are_an_error(tmp_path: Path) -> None:
    ref = write_cases(tmp_path / "ref", {"x": heart(), "y": heart()})
    a, b = (write_cases(tmp_path / name, {key: heart()}) for name, key in (("a", "x"), ("b", "y")))
    with pytest.raises(InputError, match="no case"):
        compare_methods(ref, {"a": a, "b": b}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- files and command ------------------------------------------------------------------------------------------------


def test_the_command_prints_and_writes_the_tables(
    cohort: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = (f"a={cohort['a']}", f"b={cohort['b']}")
    out = tmp_path / "out"
    assert run(monkeypatch, "compare", cohort["ref"], *methods, "--out", out, "--patient-pattern", r"^p\d+") == 0
    assert "-15.56" in capsys.readouterr().out  # 100 * ((8/9 + 8/10) / 2 - 1)
    assert sorted(path.name for path in out.iterdir()) == [
        "cases.csv",
        "comparison.csv",
        "comparison.json",
        "comparison.md",
        "comparison.tex",
    ]
    with (out / "comparison.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert math.isclose(float(rows[0]["p"]), 2 / 2**7)
    assert len(rows) == 12
    with (out / "cases.csv").open(encoding="utf-8", newline="") as file:
        cases = list(csv.DictReader(file))
    assert len(cases) == 14 * 2 * 3
    assert {row["patient"] for row in cases} == {f"p{n}" for n in range(7)}
    assert run(monkeypatch, "compare", cohort["ref"], *methods, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["rows"] == json.loads((out / "comparison.json").read_text(encoding="utf-8"))["rows"]


def test_distances_of_pictures_are_in_pixels_unless_their_size_is_given(tmp_path: Path) -> None:
    masks = {"ref": (2, 2), "a": (2, 3), "b": (4, 2)}
    for name, (row, column) in masks.items():
        (tmp_path / name).mkdir()
        mask = np.zeros((12, 12), np.uint8)
        mask[row : row + 6, column : column + 6] = 1
        Image.fromarray(mask).save(tmp_path / name / "case.png")
    methods = {name: tmp_path / name for name in ("a", "b")}
    pixels = format_comparison(compare_methods(tmp_path / "ref", methods))
    assert "HD95 px" in pixels
    assert "mm" not in pixels
    assert "HD95 mm" in format_comparison(compare_methods(tmp_path / "ref", methods, spacing=(1.0, 1.0, 1.0)))


def test_names_of_methods_may_hold_anything(
    cohort: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = cohort["b"].rename(cohort["b"].with_name("b = 2"))
    methods = (f"our net:v2|x={cohort['a']}", f"our net={moved}")
    swapped = ("--prediction-labels", "our net:v2|x:3=RV,2=Myo,1=LV")
    assert run(monkeypatch, "compare", cohort["ref"], *methods, *swapped, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["methods"] == ["our net:v2|x", "our net"]
    assert "3=RV" in printed["labels"]["our net:v2|x"]["predictions"]
    assert "1=RV" in printed["labels"]["our net"]["predictions"]


def test_a_failed_case_is_exit_code_1(cohort: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    (cohort["b"] / "p0_ED.nii.gz").write_bytes(b"torn")
    assert run(monkeypatch, "compare", cohort["ref"], f"a={cohort['a']}", f"b={cohort['b']}") == 1


@pytest.mark.parametrize(
    "arguments",
    [("a=x",), ("a=x", "b"), ("a=x", "a=y"), ("a=x", "b=y", "--prediction-labels", "c:1=LV"), ()],
)
def test_a_wrong_command_line_is_exit_code_2(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "compare", "ref", *arguments) == 2
