"""Refinement of volumes scored: true volumes are made coarse, refined, and compared with what they were.

What a scanner of low resolution would have measured is made of each true volume by the degradation of the network's
target, and refined as any scan is: nothing of the true volume but its coarse version is seen. Zero-filling and bicubic
interpolation are scored beside the networks. Where a segmenter is given, it segments the true volume and every other,
with the same noise, and Dice tells how much of what a coarse scan loses is won back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cgdpm_med.apps.refined_volume import refine_frame
from cgdpm_med.apps.resolver import SuperResolver
from cgdpm_med.console import CaseBar, complain
from cgdpm_med.data.acdc import Section, Split, acdc_datalist
from cgdpm_med.diffusion.degradation import Degradation
from cgdpm_med.evaluation.training_patients import check_unseen
from cgdpm_med.files import InputError, PathLike, atomic_write
from cgdpm_med.inference.predictor import predictor_settings
from cgdpm_med.inference.segmenter import Segmenter
from cgdpm_med.metrics.generation import Lpips
from cgdpm_med.metrics.masks import dice_per_structure, ssim
from cgdpm_med.models.weights import weights_digest
from cgdpm_med.tables.csv_files import write_csv
from cgdpm_med.tables.numbers import format_number
from cgdpm_med.volumes import Volume, read_labels, read_volume, view_of
from cgdpm_med.volumes.grid import with_shape

PERCENTILES = (0.5, 99.5)
"""Of the true volume, between which PSNR, SSIM and LPIPS are measured."""

MEASURES = ("psnr", "ssim", "lpips", "off_mean", "off_largest")
TRUE, ZERO_FILLED, BICUBIC, REFINED = "true", "zero-filled", "bicubic", "refined"

T = TypeVar("T")
Array = NDArray[np.float32]
Scores = dict[str, dict[str, float | None]]
Remember = Callable[[str, Callable[[], Scores]], Scores]


@dataclass(frozen=True, eq=False)
class Pair:
    """A true volume, its sides cut to multiples of the factor, and what a coarse scan would have seen.

    Attributes:
        fine: the true one.
        coarse: (x, y, z) intensities.
        slices: the axis that is not refined.
        label: the reference mask on the grid of ``fine``, or None.
    """

    fine: Volume
    coarse: Array
    slices: int
    label: NDArray[Any] | None = None


def evaluate_acdc_volumes(
    resolver: SuperResolver,
    root: str | Path,
    section: Section = "validation",
    output: PathLike | None = None,
    *,
    split: str | Path | Split | None = None,
    most: int | None = None,
    patients: int | Sequence[str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """:func:`evaluate_volumes` on one section of a folder in ACDC's layout; see :func:`~cgdpm_med.acdc_datalist`.

    Args:
        most: volumes to score, evenly chosen; None is all.
        patients: names of some of the section, or how many, evenly chosen; with all of their volumes.
        options: of :func:`evaluate_volumes`.

    Raises:
        InputError: where patients for validation or test trained a network, a name is not of the section, or no volume
            could be scored.
    """
    items = acdc_datalist(root, section, split=split, labels=options.get("segmenter") is not None)
    resolvers = [resolver, *(options.get("rivals") or {}).values()]
    if section in ("validation", "test"):
        weights = [each.weights for each in resolvers if each.weights is not None]
        check_unseen({item["patient"] for item in items}, weights, section)
    chosen = _chosen(sorted({item["patient"] for item in items}), patients)
    theirs = [item for item in items if item["patient"] in chosen]
    return evaluate_volumes(resolver, evenly(theirs, most), output, **options)


def _chosen(names: Sequence[str], patients: int | Sequence[str] | None) -> Sequence[str]:
    if patients is None or isinstance(patients, int):
        return evenly(names, patients)
    if others := [name for name in patients if name not in names]:
        raise InputError(f"{others[0]} is not of this section", remedy=f"Choose among {', '.join(names)}")
    return patients


def evenly(things: Sequence[T], most: int | None) -> list[T]:
    """So many of them, from the first to the last; None is all."""
    chosen = np.linspace(0, len(things) - 1, min(most or len(things), len(things)))
    return [things[int(i)] for i in chosen]


def evaluate_volumes(
    resolver: SuperResolver,
    datalist: Sequence[Mapping[str, str]],
    output: PathLike | None = None,
    *,
    rivals: Mapping[str, SuperResolver] | None = None,
    segmenter: Segmenter | None = None,
    lpips: PathLike | None = None,
    remember: Remember | None = None,
) -> dict[str, Any]:
    """Score the refinement of true volumes; write ``volumes.csv`` and ``summary.json``.

    A volume that cannot be used is reported, counted under ``failed`` and left out.

    Args:
        datalist: items with ``image``, ``key`` and, for Dice, ``label``; see :func:`~cgdpm_med.acdc_datalist`.
        output: folder to write; None writes nothing.
        rivals: further networks by name, such as a regression; of the same factor.
        segmenter: segments every version of a volume.
        lpips: TorchScript file of LPIPS.
        remember: called with a volume's key and what computes its scores; may answer from an earlier run.

    Returns:
        ``methods`` (means of :data:`MEASURES` and ``dice``, by method), ``volumes``, ``failed`` and ``settings``.
        PSNR in dB and SSIM are means over slices, with percentiles 0.5 and 99.5 of the true volume at 0 and 1; PSNR is
        not clipped. ``off_mean`` and ``off_largest`` are |result made coarse - coarse| as fractions of the range of the
        coarse intensities.

    Raises:
        InputError: when no volume could be scored.
    """
    resolvers = {REFINED: resolver, **(rivals or {})}
    perceptual = None if lpips is None else Lpips(lpips, resolver.device)
    rows: dict[str, Scores] = {}
    failed: dict[str, str] = {}
    with CaseBar("evaluating", [item["key"] for item in datalist]) as bar:
        for item in datalist:
            bar.update(item["key"], 0.0)

            def scores(item: Mapping[str, str] = item) -> Scores:
                return score_volume(item, resolvers, segmenter, perceptual)

            try:
                rows[item["key"]] = remember(item["key"], scores) if remember else scores()
            except InputError as error:
                failed[item["key"]] = str(error)
                complain(error, bar)
            else:
                bar.note(f"evaluated {item['key']}: {_psnr_line(rows[item['key']])}")
    if not rows:
        raise InputError("no volume could be scored", remedy="Correct the errors above")
    settings = {name: _settings(each) for name, each in resolvers.items()}
    summary = {"volumes": len(rows), "methods": _means(rows), "failed": failed, "settings": settings}
    if output is not None:
        _write(rows, summary, Path(output))
    return summary


# --- one volume -------------------------------------------------------------------------------------------------------


def score_volume(
    item: Mapping[str, str],
    resolvers: Mapping[str, SuperResolver],
    segmenter: Segmenter | None = None,
    perceptual: Lpips | None = None,
) -> Scores:
    """Measures by method.

    Raises:
        InputError: for files that cannot be used, or a volume smaller than one coarse pixel.
    """
    operator = resolvers[REFINED].operator
    pair = read_pair(item, operator, with_label=segmenter is not None)
    versions = {
        ZERO_FILLED: _by_slice(pair.coarse, pair.slices, operator.upsample),
        BICUBIC: _by_slice(pair.coarse, pair.slices, lambda y: _bicubic(y, operator.factor)),
    }
    for name, resolver in resolvers.items():
        refined = refine_frame(resolver, pair.coarse, pair.slices, item["key"])
        versions[name] = refined.members.mean(dim=0).numpy()
    scores = {name: _measures(version, pair, operator, perceptual) for name, version in versions.items()}
    if segmenter is not None and pair.label is not None:
        for name, version in {TRUE: pair.fine.data, **versions}.items():
            scores.setdefault(name, {})["dice"] = _dice(segmenter, replace(pair.fine, data=version), item, pair.label)
    return scores


def read_pair(item: Mapping[str, str], operator: Degradation, *, with_label: bool = False) -> Pair:
    """The true volume of an item and its coarse version.

    Raises:
        InputError: for files that cannot be used, or a slice smaller than one coarse pixel.
    """
    volume = read_volume(item["image"])
    if volume.data.ndim != 3:
        raise InputError("is a series of frames", path=volume.path, remedy="Give one frame")
    slices = view_of(volume.grid).axes[2]
    part = tuple(
        slice(None) if axis == slices else _middle(n, operator.factor) for axis, n in enumerate(volume.data.shape)
    )
    data = np.ascontiguousarray(volume.data[part])
    if not data.size:
        what = f"has slices of fewer than {operator.factor} pixels"
        raise InputError(what, path=volume.path, remedy="Leave it out")
    label = read_labels(item["label"], like=volume.grid).data[part] if with_label and "label" in item else None
    grid = replace(volume.grid, shape=data.shape, header=with_shape(volume.grid.header, data.shape))
    coarse = _by_slice(data, slices, operator.degrade)
    return Pair(Volume(data, grid, volume.path), coarse, slices, label)


def _middle(n: int, factor: int) -> slice:
    """The largest multiple of the factor in the middle of n pixels; what lies where does not matter to any score."""
    kept = n // factor * factor
    return slice((n - kept) // 2, (n - kept) // 2 + kept)


def _by_slice(data: Array, slices: int, change: Callable[[Tensor], Tensor]) -> Array:
    """A function of (B, 1, H, W) applied to the slices of a volume."""
    stack = torch.from_numpy(np.ascontiguousarray(np.moveaxis(data, slices, 0)))[:, None]
    changed: Array = np.moveaxis(change(stack)[:, 0].numpy(), 0, slices)
    return changed


def _bicubic(y: Tensor, factor: int) -> Tensor:
    return F.interpolate(y, scale_factor=float(factor), mode="bicubic", align_corners=False)


def _measures(version: Array, pair: Pair, operator: Degradation, perceptual: Lpips | None) -> dict[str, float | None]:
    low, high = np.percentile(pair.fine.data, PERCENTILES)
    pred, ref = (_slices((array - low) / (high - low), pair.slices) for array in (version, pair.fine.data))
    clipped = pred.clamp(0, 1), ref.clamp(0, 1)
    off = np.abs(_by_slice(version, pair.slices, operator.degrade) - pair.coarse) / np.ptp(pair.coarse)
    lpips = None if perceptual is None else perceptual(*(x.expand(-1, 3, -1, -1).float() for x in clipped))
    return {
        "psnr": _psnr(pred, ref),
        "ssim": ssim(*clipped) if min(pred.shape[2:]) >= 11 else None,
        "lpips": lpips,
        "off_mean": float(off.mean()),
        "off_largest": float(off.max()),
    }


def _slices(data: NDArray[Any], slices: int) -> Tensor:
    """(Z, 1, H, W), float64."""
    return torch.from_numpy(np.moveaxis(data.astype(np.float64), slices, 0).copy())[:, None]


def _psnr(pred: Tensor, ref: Tensor) -> float | None:
    """Mean over the slices that are not reproduced exactly."""
    error = (pred - ref).square().mean(dim=(1, 2, 3))
    error = error[error > 0]
    return float((-10 * torch.log10(error)).mean()) if len(error) else None


def _dice(segmenter: Segmenter, volume: Volume, item: Mapping[str, str], label: NDArray[Any]) -> float:
    """Mean over the structures, percent."""
    dice = dice_per_structure(segmenter(volume, item["key"]).mask, label, tuple(segmenter.labels.by_number))
    return 100 * float(np.mean(list(dice.values())))


# --- results ----------------------------------------------------------------------------------------------------------


def _means(rows: Mapping[str, Scores]) -> dict[str, dict[str, float | None]]:
    methods = list(dict.fromkeys(name for scores in rows.values() for name in scores))
    return {
        method: {
            measure: _mean([scores.get(method, {}).get(measure) for scores in rows.values()])
            for measure in (*MEASURES, "dice")
        }
        for method in methods
    }


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None and math.isfinite(value)]
    return sum(there) / len(there) if there else None


def _settings(resolver: SuperResolver) -> dict[str, Any]:
    made = predictor_settings(resolver.predictor, resolver.device)
    digest = None if resolver.weights is None else weights_digest(resolver.weights)
    return {"factor": resolver.factor, "window": resolver.window, "weights": digest, **made}


def _psnr_line(scores: Scores) -> str:
    return ", ".join(f"{name} {format_number(s['psnr'], 2)} dB" for name, s in scores.items() if "psnr" in s)


def _write(rows: Mapping[str, Scores], summary: Mapping[str, Any], folder: Path) -> None:
    table = [
        {"volume": key, "method": method, **{m: measures.get(m) for m in (*MEASURES, "dice")}}
        for key, scores in rows.items()
        for method, measures in scores.items()
    ]
    write_csv(folder / "volumes.csv", table, number_format=".6g")
    with atomic_write(folder / "summary.json") as file:
        file.write(json.dumps(summary, indent=2).encode())


def format_volume_summary(summary: Mapping[str, Any]) -> str:
    """The means as text, a row for each method."""
    lines = [f"{'':14}{'PSNR dB':>9}{'SSIM':>8}{'LPIPS':>8}{'off mean':>11}{'off most':>11}{'Dice %':>9}"]
    for name, found in summary["methods"].items():
        numbers = [format_number(found[m], d) for m, d in (("psnr", 2), ("ssim", 3), ("lpips", 3))]
        numbers += [_short(found[m]) for m in ("off_mean", "off_largest")] + [format_number(found["dice"], 2)]
        lines.append(f"{name:14}" + "".join(f"{n:>{w}}" for n, w in zip(numbers, (9, 8, 8, 11, 11, 9), strict=True)))
    lines.append(f"volumes {summary['volumes']}, failed {len(summary['failed'])}")
    return "\n".join(lines)


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"
