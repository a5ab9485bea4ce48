"""The demonstration: a synthetic patient of known volumes, segmented with the shipped weights and compared."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cgdpm_med.console import CaseBar
from cgdpm_med.data.acdc import ACDC_LABELS, acdc_patients
from cgdpm_med.files import atomic_write, check_folder
from cgdpm_med.heart.structures import LV
from cgdpm_med.inference.segmenter import Segmentation, Segmenter, choose_device
from cgdpm_med.metrics.masks import dice_per_structure
from cgdpm_med.phantom import write_phantom_dataset
from cgdpm_med.report.overlay import draw_overlay
from cgdpm_med.studies.cases import find_cases
from cgdpm_med.studies.outputs import save_segmentation
from cgdpm_med.volumes import HeaderWarning, read_labels, read_volume

DEMO_PATIENT = 4
"""Drawn from the group of normal hearts."""


def run_demo(
    out: str | Path,
    *,
    bundle: str | Path = "acdc_segmentation",
    device: str = "auto",
    patient: int = DEMO_PATIENT,
    report: Callable[[str], None] = print,
    **settings: Any,
) -> dict[str, Any]:
    """Write a phantom patient, segment end-diastole and end-systole, and compare with the phantom's own truth.

    Below ``out`` appear ``phantom/`` (images and true masks), ``segmentation/`` (masks and uncertainty maps), one
    ``overlay_*.png`` for each phase and ``demo.json``, what is returned.

    Args:
        patient: number of the phantom patient; the same number is the same patient.
        settings: keys of the bundle's inference configuration; None keeps the bundle's own value.

    Returns:
        ``dice`` by phase and structure, and ``left_ventricle``: for EDV and ESV in ml and EF in percent the true value,
        the combined mask's, and the lowest and highest of the members'.

    Raises:
        InputError: missing weights, an absent device, or a folder that cannot be written.
    """
    chosen = choose_device(device)
    out = Path(out)
    check_folder(out)
    report("A synthetic cine study: a drawing with known answers, not a patient.")
    write_phantom_dataset(out / "phantom", patients=[patient])
    changes = {name: value for name, value in settings.items() if value is not None}
    segmenter = Segmenter.from_bundle(bundle, device=chosen, **changes)
    (study,) = [p for p in acdc_patients(out / "phantom") if p.patient == f"patient{patient:03d}"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HeaderWarning)  # the phantom copies ACDC's headers on purpose
        results = _segment(segmenter, study.folder, out / "segmentation")
    frames = {"ED": study.ed, "ES": study.es}
    truth = {phase: read_labels(study.label(frame)).data for phase, frame in frames.items()}
    found = {phase: results[study.key(frame)] for phase, frame in frames.items()}
    overlays = [
        draw_overlay(found[phase], out / f"overlay_{phase}.png", truth[phase], title=f"Phantom, {phase}")
        for phase in frames
    ]
    result = {
        "dice": {
            phase: {ACDC_LABELS[i]: d for i, d in dice_per_structure(found[phase].mask, truth[phase]).items()}
            for phase in frames
        },
        "left_ventricle": compare_volumes(
            found["ED"],
            found["ES"],
            *(float(np.count_nonzero(truth[p] == LV)) * found[p].grid.voxel_volume / 1000 for p in frames),
        ),
        "overlays": [str(path) for path in overlays],
        "output": str(out),
    }
    with atomic_write(out / "demo.json") as file:
        file.write(json.dumps(result, indent=2).encode())
    report(format_demo(result))
    return result


def _segment(segmenter: Segmenter, source: Path, output: Path) -> dict[str, Segmentation]:
    results: dict[str, Segmentation] = {}
    cases = find_cases(source)
    with CaseBar("segmenting", [case.key for case in cases]) as bar:
        for case in cases:
            if case.error is not None:
                raise case.error
            volume = read_volume(case.image)
            results[case.key] = segmenter(volume, case.key, partial(bar.update, case.key))
            save_segmentation(results[case.key], output / case.folder)
            bar.note(f"segmented {case.key}")
    return results


def compare_volumes(ed: Segmentation, es: Segmentation, true_edv: float, true_esv: float) -> dict[str, dict[str, Any]]:
    """EDV and ESV in ml and EF in percent: true, from the combined mask, and the range over the members.

    Each member is measured by itself: EF of member k is that of its own two masks. An empty end-diastole has no EF.
    """
    edv, esv = (np.array(s.member_millilitres(LV)) for s in (ed, es))
    combined = (ed.millilitres(LV), es.millilitres(LV))
    beating = edv > 0
    return {
        "EDV": _row(true_edv, combined[0], edv),
        "ESV": _row(true_esv, combined[1], esv),
        "EF": _row(
            ejection_fraction(true_edv, true_esv),
            ejection_fraction(*combined),
            100 * (edv[beating] - esv[beating]) / edv[beating],
        ),
    }


def ejection_fraction(edv: float, esv: float) -> float | None:
    """Percent; None without an end-diastolic volume."""
    return 100 * (edv - esv) / edv if edv > 0 else None


def _row(true: float | None, predicted: float | None, members: np.ndarray) -> dict[str, Any]:
    span = [float(members.min()), float(members.max())] if len(members) else None
    return {"true": true, "predicted": predicted, "members": span}


def format_demo(result: dict[str, Any]) -> str:
    """What the demonstration prints at its end."""
    phases = list(result["dice"])
    lines = ["", "Dice against the phantom's truth", f"  {'':8}" + "".join(f"{phase:>8}" for phase in phases)]
    for name in ACDC_LABELS.values():
        lines.append(f"  {name:8}" + "".join(f"{result['dice'][phase][name]:>8.3f}" for phase in phases))
    lines += ["", "Left ventricle", f"  {'':8}{'true':>10}{'predicted':>12}   members"]
    for name, row in result["left_ventricle"].items():
        unit = "%" if name == "EF" else "ml"
        true, predicted = (_with_unit(row[which], unit) for which in ("true", "predicted"))
        low, high = row["members"] or (None, None)
        lines.append(f"  {name:8}{true:>10}{predicted:>12}   {_with_unit(low)} to {_with_unit(high, unit)}")
    out = result["output"]
    lines += ["", "Look at", *(f"  {path}" for path in result["overlays"])]
    lines += [f"  {out}/segmentation   masks and uncertainty maps (NIfTI), beside {out}/phantom"]
    return "\n".join(lines)


def _with_unit(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.1f} {unit}".rstrip()
