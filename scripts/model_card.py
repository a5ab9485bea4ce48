r"""The model card of the acdc bundle, from the files that an evaluation of the test patients left.

In the bundle's folder, then in the repository:

python -m monai.bundle run --bundle_root . --dataset_dir ACDC --output_dir OUT --config_file \
  "['configs/inference.yaml','configs/evaluate.yaml','configs/keep_masks.yaml']"
python scripts/model_card.py --evaluation OUT --dataset-dir ACDC

Reads OUT/cases.csv, OUT/summary.json and the masks below OUT, and of ACDC every Info.cfg and reference mask; the output
of scripts/cohort_acdc.py --section test serves as well. --baseline takes the same evaluation of the plain U-Net,
--shifted the output of scripts/shifted_inputs.py. Every number of the card comes from these files, the paper's apart.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgdpm_med import InputError, acdc_datalist, bundle_path, read_labels
from cgdpm_med.data.acdc import ACDC_GROUPS, ACDC_LABELS, load_split
from cgdpm_med.heart.function import MEASURES
from cgdpm_med.metrics.masks import dice_per_structure
from cgdpm_med.models.weights import weights_digest
from cgdpm_med.tables.markdown import markdown_table
from cgdpm_med.tables.numbers import format_number
from cgdpm_med.tables.rows import write_text
from cgdpm_med.volumes import view_of

# average, RV, myocardium, LV in percent: table 4 of the paper, on a random split of its own
PAPER = {
    "R50-U-Net": (87.55, 87.10, 80.63, 94.92),
    "R50-ViT-CUP": (87.57, 86.07, 81.88, 94.75),
    "UNETR": (88.61, 85.29, 86.52, 94.02),
    "nnU-Net": (91.20, 89.30, 89.09, 95.20),
    "CG-DPM": (89.34, 87.63, 85.26, 95.13),
}
THIRDS = ("basal", "middle", "apical")
STRUCTURES = tuple(ACDC_LABELS.values())


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation wrote.

    Attributes:
        folder: where.
        cases: rows of cases.csv, numbers as such, None for an empty field; with ``average``, the structures' mean Dice.
        summary: of summary.json.
    """

    folder: Path
    cases: list[dict[str, Any]]
    summary: dict[str, Any]

    def settings(self) -> Mapping[str, Any]:
        """What the numbers were made with, as far as the files say."""
        found: Mapping[str, Any] = self.summary.get("settings", {})
        beside = self.folder / "statistics.json"
        return found or (json.loads(beside.read_text(encoding="utf-8"))["made_with"] if beside.is_file() else {})


def main() -> None:
    arguments = parse_arguments()
    evaluation = read_evaluation(arguments.evaluation)
    baseline = None if arguments.baseline is None else read_evaluation(arguments.baseline)
    references = {item["key"]: item for item in acdc_datalist(arguments.dataset_dir, "all")}
    check_cases(evaluation, references)
    shifted = None if arguments.shifted is None else (arguments.shifted / "shifted_inputs.md").read_text("utf-8")
    text = card(evaluation, references, baseline, shifted, arguments.weights, arguments.worst)
    write_text(arguments.output, text)
    print(f"{arguments.output}: {len(evaluation.cases)} volumes")


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    bundle = bundle_path("acdc_segmentation")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluation", type=Path, required=True, help="folder with cases.csv and summary.json")
    parser.add_argument("--dataset-dir", type=Path, required=True, help="ACDC, with its references")
    parser.add_argument("--baseline", type=Path, help="evaluation of the plain U-Net")
    parser.add_argument("--shifted", type=Path, help="output folder of shifted_inputs.py")
    parser.add_argument("--weights", type=Path, default=bundle / "models" / "model.pt", help="the file evaluated")
    parser.add_argument("--worst", type=int, default=5, help="how many cases are described")
    parser.add_argument("--output", type=Path, default=bundle / "docs" / "model_card.md")
    return parser.parse_args(words)


# --- files ------------------------------------------------------------------------------------------------------------


def read_evaluation(folder: Path) -> Evaluation:
    """Raises InputError where a file is missing."""
    table, summary = folder / "cases.csv", folder / "summary.json"
    for path in (table, summary):
        if not path.is_file():
            raise InputError("is missing", path=path, remedy="Run the evaluation first")
    with table.open(encoding="utf-8", newline="") as file:
        cases: list[dict[str, Any]] = [
            {name: text if name in ("case", "phase", "group") else _number(text) for name, text in row.items()}
            for row in csv.DictReader(file)
        ]
    for case in cases:
        case["average"] = statistics.fmean(case[f"dice_{name}"] for name in STRUCTURES)
    return Evaluation(folder, cases, json.loads(summary.read_text(encoding="utf-8")))


def _number(text: str) -> float | None:
    return float(text) if text else None


def check_cases(evaluation: Evaluation, references: Mapping[str, Mapping[str, str]]) -> None:
    """Raises InputError for cases the data set lacks, of another group there, or of other patients than the test's."""
    test = set(load_split()["test"])
    for case in evaluation.cases:
        key = case["case"]
        if key not in references:
            raise InputError(f"holds {key}, which the data set does not", path=evaluation.folder / "cases.csv")
        item = references[key]
        if (case["group"], case["phase"]) != (item["group"], item["frame"]):
            what = f"says {case['group']} {case['phase']} of {key}, its Info.cfg {item['group']} {item['frame']}"
            raise InputError(what, path=evaluation.folder / "cases.csv", remedy="Evaluate again")
        if item["patient"] not in test:
            remedy = "A card reports the test patients: evaluate that section"
            raise InputError(f"holds {item['patient']}, no test patient", path=evaluation.folder, remedy=remedy)


# --- the card ---------------------------------------------------------------------------------------------------------


def card(
    evaluation: Evaluation,
    references: Mapping[str, Mapping[str, str]],
    baseline: Evaluation | None = None,
    shifted: str | None = None,
    weights: Path | None = None,
    worst: int = 5,
) -> str:
    """The whole text."""
    parts = [
        INTRODUCTION,
        DATA,
        protocol(evaluation, references, weights),
        "## Results\n",
        comparison(evaluation, baseline),
        structures(evaluation),
        groups(evaluation),
        function(evaluation),
        "## Uncertainty\n",
        doubt(evaluation, baseline),
        "## Worst cases\n",
        worst_cases(evaluation, references, worst),
        *([f"## Shifted inputs\n\n{shifted}"] if shifted else []),
        LIMITS,
    ]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def protocol(evaluation: Evaluation, references: Mapping[str, Mapping[str, str]], weights: Path | None) -> str:
    """What was measured, on whom and how; every setting the files state."""
    patients = {references[case["case"]]["patient"] for case in evaluation.cases}
    made_with = ", ".join(f"{name} {value}" for name, value in evaluation.settings().items() if value is not None)
    file = ""
    if weights is not None and weights.is_file():
        file = f"`{weights.name}`, digest of the tensors {weights_digest(weights)[:16]}"
    failed = evaluation.summary.get("failed", {})
    return f"""## Protocol

{len(patients)} of the {len(load_split()["test"])} test patients, {len(evaluation.cases)} volumes (end-diastole and
end-systole apart), {len(failed)} failed. Dice for each structure and volume on the native grid, averaged over volumes;
the average is the mean of the structures' means. HD95 and ASSD in mm with the voxel spacing. A structure that both
masks lack has Dice 1, one that a single mask lacks Dice 0; in both cases its distances are missing, and counted.
Calibration is measured inside the reference's bounding box grown by 10 voxels.

Weights: {file or "not stated"}. Settings: {made_with or "not stated"}.
"""


def comparison(evaluation: Evaluation, baseline: Evaluation | None) -> str:
    rows = [[f"{name} (paper)", *(f"{value:.2f}" for value in values)] for name, values in PAPER.items()]
    if baseline is not None:
        rows.append(["plain U-Net (`baseline_unet.yaml`)", *_dice_cells(baseline.summary)])
    rows.append(["**this model**", *_dice_cells(evaluation.summary)])
    return (
        "Dice in percent. The paper's rows are on a random 70/10/20 split of its own, others on the committed one.\n\n"
        + markdown_table(["", "average", *STRUCTURES], rows)
        + "\n"
    )


def _dice_cells(part: Mapping[str, Any]) -> list[str]:
    return [
        format_number(scores["dice"], 2, 100) for scores in (part["average"], *map(part["structures"].get, STRUCTURES))
    ]


def structures(evaluation: Evaluation) -> str:
    rows = [
        [
            name,
            f"{format_number(s['dice'], 2, 100)} ± {format_number(s['dice_std'], 2, 100)}",
            format_number(s["hd95"]),
            format_number(s["assd"]),
            *(str(s[count]) for count in ("missed", "invented", "both_empty")),
        ]
        for name, s in ((name, evaluation.summary["structures"][name]) for name in STRUCTURES)
    ]
    average = evaluation.summary["average"]
    rows.append(
        [
            "average",
            format_number(average["dice"], 2, 100),
            format_number(average["hd95"]),
            format_number(average["assd"]),
            *[""] * 3,
        ]
    )
    return markdown_table(["", "Dice %", "HD95 mm", "ASSD mm", "missed", "invented", "absent in both"], rows) + "\n"


def groups(evaluation: Evaluation) -> str:
    """Dice by phase, by group, and by both."""
    summary = evaluation.summary
    parts = [
        *summary["by_phase"].items(),
        *((g, summary["by_group"][g]) for g in ACDC_GROUPS if g in summary["by_group"]),
    ]
    rows = [
        [name, str(part["volumes"]), *_dice_cells(part), format_number(part["average"]["hd95"])] for name, part in parts
    ]
    for row in rows:
        row += [
            format_number(_mean_dice(evaluation, row[0], phase), 2, 100) if row[0] in ACDC_GROUPS else ""
            for phase in PHASES
        ]
    heading = ["", "volumes", "Dice %", *STRUCTURES, "HD95 mm", *(f"{phase} Dice %" for phase in PHASES)]
    return markdown_table(heading, rows) + "\n"


PHASES = ("ED", "ES")


def _mean_dice(evaluation: Evaluation, group: str, phase: str) -> float | None:
    values = [c["average"] for c in evaluation.cases if (c["group"], c["phase"]) == (group, phase)]
    return statistics.fmean(values) if values else None


def function(evaluation: Evaluation) -> str:
    scores = evaluation.summary.get("function")
    if scores is None:
        return "Cardiac function was not evaluated.\n"
    calibrated = scores["calibrated"] or {}
    rows = [
        [
            f"{measure.title}, {measure.unit}",
            f"{format_number(s['error_mean'])} ± {format_number(s['error_sd'])}",
            format_number(s["error_absolute"]),
            format_number(s["correlation"], 3),
            format_number(s["coverage"], 0, 100),
            format_number(s["width"], 1),
            format_number(calibrated[name]["coverage"] if name in calibrated else None, 0, 100),
            format_number(calibrated[name]["width"] if name in calibrated else None, 1),
        ]
        for name, measure in MEASURES.items()
        for s in (scores["measures"][name],)
    ]
    heading = ["", "error, mean ± sd", "mean absolute error", "correlation", "90 % interval covers %", "length"]
    heading += ["calibrated covers %", "length"]
    return f"Cardiac function of {scores['patients']} patients.\n\n{markdown_table(heading, rows)}\n"


def doubt(evaluation: Evaluation, baseline: Evaluation | None) -> str:
    """Calibration of the ensemble, as it is and calibrated, beside the baseline's softmax."""
    ensemble = evaluation.summary["ensemble"]
    plain = {} if baseline is None else baseline.summary["ensemble"]
    columns = {
        **({"U-Net's softmax": plain} if baseline is not None else {}),
        "ensemble": ensemble,
        "calibrated": {name: ensemble.get(f"{name}_calibrated") for name in ("ece", "brier", "auroc")},
    }
    correlations = {name: (values.get("predicted_true_dice") or {}).get("pearson") for name, values in columns.items()}
    rows = [
        ["expected calibration error", *(format_number(values.get("ece"), 4) for values in columns.values())],
        ["Brier score", *(format_number(values.get("brier"), 4) for values in columns.values())],
        [
            "AUROC of the entropy for wrong voxels",
            *(format_number(values.get("auroc"), 3) for values in columns.values()),
        ],
        ["correlation of predicted and true Dice", *(format_number(value, 2) for value in correlations.values())],
        ["GED", *(format_number(values.get("ged"), 3) for values in columns.values())],
    ]
    lines = [markdown_table(["", *columns], rows), "", calibrated_how(evaluation.summary)]
    if quality := evaluation.summary.get("quality"):
        lines.append(f"The quality checks send {quality['review']} of {quality['studies']} studies to review.")
    return "\n".join(lines) + "\n"


def calibrated_how(summary: Mapping[str, Any]) -> str:
    calibration = summary.get("calibration")
    if not calibration:
        return "No calibration was applied."
    return (
        f"Calibration: temperature {calibration['temperature']:.3f}, doubt {calibration.get('doubt', 0):.4f}, "
        f"fitted to {calibration['patients']} {calibration['section']} patients."
    )


# --- worst cases ------------------------------------------------------------------------------------------------------


def worst_cases(evaluation: Evaluation, references: Mapping[str, Mapping[str, str]], number: int) -> str:
    """The volumes of least average Dice, each with its weakest structure and where it is weak."""
    lines = []
    for case in sorted(evaluation.cases, key=lambda case: case["average"])[:number]:
        dice = ", ".join(f"{name} {format_number(case[f'dice_{name}'], 1, 100)}" for name in STRUCTURES)
        weakest = min(STRUCTURES, key=lambda name: case[f"dice_{name}"])
        average = format_number(case["average"], 1, 100)
        text = f"- **{case['case']}** ({case['group']}, {case['phase']}): average Dice {average} % ({dice})."
        lines.append(f"{text} {where_weak(evaluation, references[case['case']], case['case'], weakest)}")
    return "\n".join(lines) + "\n"


def where_weak(evaluation: Evaluation, item: Mapping[str, str], key: str, structure: str) -> str:
    """In words: the structure's Dice from base to apex, its volume, and slices that one mask alone has it in."""
    found = sorted(evaluation.folder.rglob(f"{key}.nii.gz"))
    if not found:
        return f"{structure} is the weakest."
    reference = read_labels(item["label"])
    mask = read_labels(found[0], like=reference.grid)
    view = view_of(reference.grid)
    label = next(value for value, name in ACDC_LABELS.items() if name == structure)
    predicted, known = (view.apply(volume.data) for volume in (mask, reference))
    numbers = view.slice_numbers(reference.grid.spatial_shape)
    by_third = ", ".join(
        f"{name} {format_number(dice, 1, 100)}"
        for name, dice in zip(THIRDS, dice_by_third(predicted, known, label), strict=True)
    )
    text = f"{structure} is the weakest: Dice in the slices of the heart, by thirds, {by_third};"
    millilitres = [np.count_nonzero(m == label) * reference.grid.voxel_volume / 1000 for m in (predicted, known)]
    text += f" {millilitres[0]:.1f} ml against {millilitres[1]:.1f} ml."
    for verb, here, there in (("Missed", known, predicted), ("Invented", predicted, known)):
        if slices := slices_of_one(here == label, there == label):
            text += f" {verb} in slice {', '.join(str(numbers[k]) for k in slices)} of {len(numbers)}."
    return text


def dice_by_third(predicted: NDArray[Any], known: NDArray[Any], label: int) -> list[float | None]:
    """Dice of a label in the basal, middle and apical third of the slices that hold any label of the reference.

    Slices run from base to apex; of n slices the first thirds get one more where n is no multiple of three. None where
    neither mask has the label, or where there is no slice.
    """
    slices = np.flatnonzero((known > 0).any(axis=(0, 1)))
    result: list[float | None] = []
    for part in np.array_split(slices, 3):
        p, k = predicted[..., part], known[..., part]
        there = (p == label).any() or (k == label).any()
        result.append(dice_per_structure(p, k, (label,))[label] if there else None)
    return result


def slices_of_one(here: NDArray[np.bool_], there: NDArray[np.bool_]) -> list[int]:
    """Indices along the last axis where the first mask has the structure and the second has not."""
    slices = here.any(axis=(0, 1)) & ~there.any(axis=(0, 1))
    return [int(k) for k in np.flatnonzero(slices)]


# --- text without numbers of an evaluation ----------------------------------------------------------------------------

INTRODUCTION = """# Model card: acdc_segmentation

Right ventricle (RV), left-ventricular myocardium (Myo) and left ventricle (LV) in short-axis cardiac MRI, by an
ensemble drawn from a conditional diffusion model; the bundle's README describes network, recipe and commands. Made by
`scripts/model_card.py`.

## Intended use

Research on segmentation and its uncertainty, on cine MRI like that of ACDC. Users are expected to look at what the
quality checks send to review. Not a medical device, and not for diagnosis or treatment; not for other views or
sequences, nor for diseases outside ACDC's groups without a look at every mask.
"""

DATA = """## Data and split

ACDC's training release: 100 patients of the University Hospital of Dijon in five groups of twenty, dilated (DCM) and
hypertrophic (HCM) cardiomyopathy, infarction (MINF), no disease (NOR) and abnormal right ventricle (RV), with one
end-diastolic (ED) and one end-systolic (ES) volume each. 70 patients are for training, 10 for validation, 20 for test,
14, 2 and 4 of every group (`cgdpm_med/splits/acdc_70_10_20.json`). Test patients took no part in training or
calibration. One choice was made with a look at them, against a second network (docs/recipes.md of the repository).
"""

LIMITS = """## Limits

- One hospital: of other scanners one patient was tried (docs/recipes.md of the repository), of other protocols the
  shifts above, if any.
- The most basal and most apical slices are the least reliable, as for human readers.
- The members' spread is the model's own doubt. It need not rise for what the model has never seen.
- References are drawn by hand: a pixel at the border is within what readers differ by.

## Licence and citation

Weights: non-commercial use, on the terms of the data they were trained on, with the citation of ACDC
(`data_license.txt`). Code and configuration: Apache-2.0 (`LICENSE`).

O. Bernard, A. Lalande, C. Zotti, F. Cervenansky, et al. "Deep Learning Techniques for Automatic MRI Cardiac
Multi-structures Segmentation and Diagnosis: Is the Problem Solved?" IEEE Transactions on Medical Imaging 37(11),
2514-2525, 2018. doi:10.1109/TMI.2018.2837502
"""


if __name__ == "__main__":
    main()
