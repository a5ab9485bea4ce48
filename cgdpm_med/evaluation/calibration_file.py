"""What a calibration leaves beside the weights, and which segmentations it fits.

A calibration describes one ensemble: these weights, this many members, these steps. It is applied to that ensemble and
to no other; everything else stays as the ensemble itself says, and is called not calibrated.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cgdpm_med.diffusion.ensemble import entropy
from cgdpm_med.diffusion.sampling import Sampling
from cgdpm_med.files import InputError, atomic_write
from cgdpm_med.inference.bundles import bundle_path
from cgdpm_med.inference.segmenter import Segmentation
from cgdpm_med.metrics.calibration import temper, untemper
from cgdpm_med.models.weights import digests_by_name, sha256_of
from cgdpm_med.studies.outputs import todays_settings
from cgdpm_med.studies.task import are_measures

CALIBRATION = "calibration.json"
"""Name of the file, in the folder of the weights."""

SETTINGS = (
    *(dial.name for dial in fields(Sampling) if dial.name != "seed"),
    "combine",
    "one_body",
    "staple",
    "keep_largest",
)
"""What must be as it was in the fit, besides the weights. Seed, device and precision need not."""

OTHER_WEIGHTS = "other weights"
_REFIT = "Fit it again with cgdpm-med calibrate"
_ASKED = {
    "members": "--members",
    "steps": "--steps",
    "timesteps": "--timesteps",
    "method": "--method",
    "guidance_scale": "--guidance-scale",
    "one_body": "--all-pieces",
}  # options of calibrate


@dataclass(frozen=True)
class Calibration:
    """Temperature and doubt for probabilities, and what turns the members' spread into intervals that cover.

    Attributes:
        temperature, doubt: of the combined probabilities, see :func:`~cgdpm_med.metrics.calibration.temper`.
        level: nominal coverage of the intervals.
        widening, margin: by measure, see :meth:`~cgdpm_med.studies.task.Task.measure`.
        weights: digest of the tensors of every weights file by its name.
        settings: those of :data:`SETTINGS`.
        data: what it was fitted to: section, patients, volumes, seed.
        numbers: "before" and "after" on that data, and what is guaranteed elsewhere.
        digest: SHA-256 of the file.
    """

    temperature: float
    level: float
    widening: Mapping[str, float]
    margin: Mapping[str, float]
    weights: Mapping[str, str]
    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    numbers: Mapping[str, Any]
    digest: str = ""
    doubt: float = 0.0

    def apply(self, segmentation: Segmentation) -> Segmentation:
        """The same segmentation with calibrated probabilities and their entropy; mask and members are untouched."""
        return calibrated(segmentation, self.temperature, self.doubt)

    def intervals(self) -> dict[str, Any]:
        """Arguments of :meth:`~cgdpm_med.studies.task.Task.measure`."""
        return {"level": self.level, "widening": self.widening, "margin": self.margin}

    def misfit(self, hashes: Mapping[str, str], settings: Mapping[str, Any]) -> str | None:
        """What was otherwise in the fit, in words; None where nothing was."""
        if sorted(hashes.values()) != sorted(self.weights.values()):
            return OTHER_WEIGHTS
        return self.in_words(self.differing(settings)) or None

    def in_words(self, names: Sequence[str]) -> str:
        """Settings of the fit."""
        return ", ".join(f"{name.replace('_', ' ')} {self.settings[name]}" for name in names)

    def differing(self, settings: Mapping[str, Any]) -> list[str]:
        """Names of the settings that were otherwise in the fit."""
        wanted = plain(settings)
        return [name for name in SETTINGS if self.settings[name] != wanted[name]]

    def remedy(self, settings: Mapping[str, Any], further: Sequence[str] = ()) -> str:
        """What makes it fit again, with ``further`` options; not every setting of ``segment`` is one of a fit."""
        differing = self.differing(settings)
        if not set(differing) <= _ASKED.keys():
            return "Segment with the settings of the fit, or with --no-calibration"
        return " ".join([_REFIT, *further, *_options(differing, settings)])


def _options(differing: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """Those of a fit that would agree; timesteps are said one by one or, evenly spaced, by their number."""
    timesteps = settings.get("timesteps")
    values = {name: settings[name] for name in differing if name not in ("steps", "timesteps", "one_body")}
    if timesteps is not None and "timesteps" in differing:
        values["timesteps"] = ",".join(map(str, timesteps))
    elif {"steps", "timesteps"} & set(differing):
        values["steps"] = settings["steps"]
    flags = [_ASKED["one_body"]] if "one_body" in differing and not settings["one_body"] else []
    return [*(f"{_ASKED[name]} {value}" for name, value in values.items()), *flags]


def calibrated(segmentation: Segmentation, temperature: float, doubt: float = 0.0) -> Segmentation:
    """:func:`~cgdpm_med.metrics.calibration.temper` of the combined probabilities, and the entropy of the result."""
    probabilities = temper(segmentation.probabilities, temperature, doubt)
    return _with_probabilities(segmentation, probabilities, temperature, doubt)


def uncalibrated(segmentation: Segmentation) -> Segmentation:
    """The ensemble's own probabilities, from calibrated ones."""
    if segmentation.temperature is None:
        return segmentation
    probabilities = untemper(segmentation.probabilities, segmentation.temperature, segmentation.doubt)
    return _with_probabilities(segmentation, probabilities, None, 0.0)


def _with_probabilities(
    segmentation: Segmentation, probabilities: NDArray[np.float32], temperature: float | None, doubt: float
) -> Segmentation:
    return replace(
        segmentation,
        probabilities=probabilities,
        entropy=entropy(torch.from_numpy(probabilities)).numpy(),
        temperature=temperature,
        doubt=doubt,
    )


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of :data:`SETTINGS`, as JSON holds them; None where one is not known."""
    return json.loads(json.dumps({name: settings.get(name) for name in SETTINGS}))


# --- files ------------------------------------------------------------------------------------------------------------


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Write the file, whole or not at all."""
    content = {name: value for name, value in asdict(calibration).items() if name != "digest"}
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def read_calibration(path: str | Path) -> Calibration:
    """Read what :func:`write_calibration` wrote.

    Raises:
        InputError: for a file that is missing or anything else.
    """
    path = Path(path)
    try:
        text = path.read_bytes()
        content = json.loads(text)
        content["settings"] = todays_settings(content["settings"])
        calibration = Calibration(**content, digest=hashlib.sha256(text).hexdigest())
        _check(calibration)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        remedy = f"{_REFIT}, or segment with --no-calibration"
        raise InputError(f"is no calibration ({error})", path=path, remedy=remedy) from error
    return calibration


def keep_other_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise InputError where the file that every run reads was fitted to other settings than these."""
    try:
        there = read_calibration(path)
    except InputError:  # none, or nothing that anybody could use
        return
    if differing := there.differing(settings):
        what = f"was fitted to {there.in_words(differing)}, and runs with these would lose it"
        remedy = "Give cgdpm-med calibrate another file as --output, and that to cgdpm-med segment as --calibration"
        raise InputError(what, path=path, remedy=remedy)


def _check(c: Calibration) -> None:
    if not 0 < c.temperature < math.inf or not 0 <= c.doubt < 1 or not 0 < c.level < 1:
        raise ValueError(f"temperature {c.temperature}, doubt {c.doubt}, level {c.level}")
    for by_measure in (c.widening, c.margin):
        if not are_measures(by_measure.keys()) or not all(0 <= v < math.inf for v in by_measure.values()):
            raise ValueError("a factor or margin is missing or negative")
    if not c.weights or c.settings.keys() != set(SETTINGS):
        raise ValueError("weights or settings are missing")


def _refit_beside(
    calibration: Calibration,
    settings: Mapping[str, Any],
    weights: Sequence[Path],
    path: str | Path | None,
    runs: Sequence[str],
) -> str:
    """What makes one for other settings, in a file of its own: others still run with those of the fit."""
    shipped = weights[0].resolve().is_relative_to(bundle_path("acdc_segmentation").resolve())
    further = list(runs) or ([] if shipped else [f"--weights {weights[0]}"])
    remedy = calibration.remedy(settings, [*further, f"--output {'FILE' if path is None else path}"])
    return f"{remedy}, and give it as --calibration FILE" if path is None and "--output" in remedy else remedy


def _refit_runs(runs: Sequence[str], path: str | Path | None) -> str:
    """One run's file lies beside its weights; several have none of their own."""
    if path is None and len(runs) > 1:
        return " ".join([_REFIT, *runs, "--output FILE, and give it as --calibration FILE"])
    return " ".join([_REFIT, *runs, *([] if path is None else [f"--output {path}"])])


def find_calibration(
    weights: Sequence[Path],
    settings: Mapping[str, Any],
    path: str | Path | None = None,
    *,
    runs: Sequence[str] = (),
) -> tuple[Calibration | None, str | None]:
    """The calibration of an ensemble, and in one line why one that was found does not count.

    Args:
        weights: files the networks were read from; the calibration is looked for beside the first.
        settings: of the ensemble, with all of :data:`SETTINGS`.
        path: a file to use in its place.
        runs: options of a fit that name the networks' runs, in place of weights.

    Returns:
        A calibration and None, None and a reason, or two None where there is no file.

    Raises:
        InputError: for a file that cannot be read, or one given by ``path`` that does not fit.
    """
    found = Path(path) if path is not None else weights[0].with_name(CALIBRATION) if weights else None
    if found is None or (path is None and not found.is_file()):
        return None, None
    calibration = read_calibration(found)
    misfit = calibration.misfit(digests_by_name(weights), settings)
    if misfit == OTHER_WEIGHTS:  # version 0.1 knew weights by their files' bytes
        misfit = calibration.misfit({file.name: sha256_of(file) for file in weights}, settings)
    if misfit is None:
        return calibration, None
    if misfit != OTHER_WEIGHTS:
        remedy = _refit_beside(calibration, settings, weights, path, runs)
    elif runs:
        remedy = _refit_runs(runs, path)
    elif len(weights) > 1:  # calibrate takes one network of a bundle
        remedy = "Segment with --no-calibration"
    else:
        output = [] if path is None else [f"--output {path}"]
        remedy = calibration.remedy(settings, [f"--weights {weights[0]}", *output])
    if path is not None:
        raise InputError(f"was fitted to {misfit}", path=found, remedy=remedy)
    return None, f"note: {found.name} was fitted to {misfit} and is ignored: nothing is calibrated. {remedy}"
