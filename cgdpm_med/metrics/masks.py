"""The evaluation protocol: masks, ensembles of masks, super-resolved images.

Every function takes NumPy arrays or torch tensors and returns plain floats. Label maps hold whole numbers, 0 for
background; probabilities have the class axis first, and channel c belongs to label c.

Masks, locked: per volume (phases apart) on the native grid, one value per structure; means are taken over volumes
structure by structure, and the average Dice is the mean of the structures' means. A structure empty in both masks has
Dice 1, one empty in a single mask Dice 0; in either case its surface distances are missing, and counted as such. A
structure that no reference holds at all says nothing of a method: it is named and has no part in the means.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from monai.metrics import get_mask_edges, get_surface_distance
from monai.metrics.regression import compute_ssim_and_cs
from numpy.typing import NDArray
from scipy import stats

from cgdpm_med.data.structure_names import DEFAULT_NAMES
from cgdpm_med.files import InputError

Array = np.ndarray | torch.Tensor
Values = Array | Sequence[float]
Overlap = Literal["dice", "iou"]

NAMES: Mapping[int, str] = dict(enumerate(DEFAULT_NAMES, start=1))
STRUCTURES = tuple(NAMES)
"""Labels that are scored where none are given."""

VOXELS_PER_CHUNK = 1 << 22  # below 2^24, so float32 counts of voxels are exact


def _array(value: Values) -> NDArray[Any]:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value
    return np.asarray(value)


def _same_shape(first: NDArray[Any], second: NDArray[Any], names: str) -> None:
    if first.shape != second.shape:
        raise InputError(f"{names} differ in shape: {first.shape} and {second.shape}", remedy="Put both on one grid")


# --- one mask against its reference -----------------------------------------------------------------------------------


class SurfaceDistances(NamedTuple):
    """Distances in mm; None where a mask of the structure is empty."""

    hd95: float | None
    assd: float | None


@dataclass(frozen=True)
class VolumeScore:
    """Scores of one volume, by label.

    ``hd95`` and ``assd`` are in mm, None where undefined. ``present`` says which masks hold the structure:
    "both", "reference" (it was missed), "prediction" (it was invented) or "neither".
    """

    dice: dict[int, float]
    hd95: dict[int, float | None]
    assd: dict[int, float | None]
    present: dict[int, str]
    key: str = ""
    phase: str = ""
    group: str = ""


def dice_per_structure(pred: Array, ref: Array, labels: Sequence[int] = STRUCTURES) -> dict[int, float]:
    """Dice 2|P & R| / (|P| + |R|) of each label, in [0, 1]: both empty 1, one empty 0.

    ``pred`` and ``ref`` are label maps of one shape (any number of axes); other shapes raise InputError.
    """
    pred, ref = _array(pred), _array(ref)
    _same_shape(pred, ref, "prediction and reference")
    return {label: _dice(pred == label, ref == label) for label in labels}


def _dice(p: NDArray[np.bool_], r: NDArray[np.bool_]) -> float:
    total = np.count_nonzero(p) + np.count_nonzero(r)
    return 2 * np.count_nonzero(p & r) / total if total else 1.0


def surface_distances(
    pred: Array, ref: Array, spacing: Sequence[float], labels: Sequence[int] = STRUCTURES
) -> dict[int, SurfaceDistances]:
    """95th-percentile Hausdorff distance and average symmetric surface distance of each label, in mm.

    A surface is the set of voxels of the structure with a face neighbour outside it (outside the volume counts). In a
    volume of one slice every voxel would be surface: it is measured in its plane, as a 2D mask, along contours. A
    distance runs between voxel centres, from each surface voxel to the nearest one of the other mask. HD95 is the
    larger of the two directions' 95th percentiles (linear interpolation); ASSD is the mean over the voxels of both
    surfaces together.

    Args:
        pred, ref: label maps of one shape, 2D or 3D.
        spacing: voxel size in mm along each axis.

    Returns (None, None) for a label absent from either mask. Raises InputError for unequal shapes or a bad spacing.
    """
    pred, ref = _array(pred), _array(ref)
    _same_shape(pred, ref, "prediction and reference")
    size = np.asarray(spacing, dtype=np.float64)
    if size.shape != (pred.ndim,) or not (np.isfinite(size) & (size > 0)).all():
        raise InputError(f"spacing {tuple(spacing)} does not fit a {pred.ndim}D mask", remedy="Give mm along each axis")
    plane = _plane(pred.shape)
    pred, ref, size = pred.squeeze(plane), ref.squeeze(plane), np.delete(size, plane)
    return {label: _surface_distances(pred == label, ref == label, size) for label in labels}


def _plane(shape: Sequence[int]) -> tuple[int, ...]:
    """The axis across the only slice of a volume; none for a mask of another kind."""
    lone = tuple(axis for axis, size in enumerate(shape) if size == 1)
    return lone if len(shape) == 3 and len(lone) == 1 else ()


def _surface_distances(p: NDArray[np.bool_], r: NDArray[np.bool_], spacing: NDArray[np.float64]) -> SurfaceDistances:
    if not p.any() or not r.any():
        return SurfaceDistances(None, None)
    edges = get_mask_edges(p, r)
    directions = [get_surface_distance(a, b, spacing=spacing).astype(np.float64) for a, b in (edges, edges[::-1])]
    hd95 = max(float(np.percentile(d, 95)) for d in directions)
    return SurfaceDistances(hd95, float(np.concatenate(directions).mean()))


def score_volume(
    pred: Array,
    ref: Array,
    spacing: Sequence[float],
    *,
    labels: Sequence[int] = STRUCTURES,
    key: str = "",
    phase: str = "",
    group: str = "",
    path: str | Path | None = None,
) -> VolumeScore:
    """Score one predicted label map against its reference on the native grid.

    Args:
        pred, ref: label maps of one shape, holding 0 and ``labels`` only.
        spacing: voxel size in mm along each axis.
        key, phase, group: what :func:`summarise` groups by and reports carry; kept as they are.
        path: the file to name in an error.

    Raises InputError for unequal shapes, other label values, or a spacing that does not fit.
    """
    pred, ref = _array(pred), _array(ref)
    for name, mask in (("prediction", pred), ("reference", ref)):
        if (strange := mask[~np.isin(mask, (0, *labels))]).size:
            what = f"the {name} holds the value {strange[0]:g} in {strange.size} voxels"
            raise InputError(what, path=path, remedy=f"Use only 0 and {', '.join(map(str, labels))}")
    try:
        dice = dice_per_structure(pred, ref, labels)
        distances = surface_distances(pred, ref, spacing, labels)
    except InputError as error:
        raise InputError(error.what, path=path, remedy=error.remedy) from error
    return VolumeScore(
        dice=dice,
        hd95={label: distances[label].hd95 for label in labels},
        assd={label: distances[label].assd for label in labels},
        present={label: _present(pred == label, ref == label) for label in labels},
        key=key,
        phase=phase,
        group=group,
    )


def _present(p: NDArray[np.bool_], r: NDArray[np.bool_]) -> str:
    return {(True, True): "both", (False, True): "reference", (True, False): "prediction", (False, False): "neither"}[
        (bool(p.any()), bool(r.any()))
    ]


def summarise(scores: Iterable[VolumeScore], names: Mapping[int, str] = NAMES) -> dict[str, object]:
    """Means over volumes by structure, their average, and the same by phase and by group.

    Returns ``{"volumes", "structures", "average", "absent", "by_phase", "by_group"}``. A structure has ``dice``,
    ``hd95`` and ``assd`` (means, the distances over the volumes that define them, None where none does), ``dice_std``
    (over volumes, n in the denominator), and the counts ``missed`` (only the reference has it), ``invented`` (only the
    prediction has it), ``both_empty`` and ``distances_missing``, their sum. ``average`` is the mean of the structures'
    means, None where one of those is. ``absent`` are the structures that no reference holds, each with the number of
    volumes in which it was invented; they are neither under ``structures`` nor in the average. Phase and group entries
    repeat the first three keys, for the same structures; unnamed ones are left out.

    Raises InputError when there is nothing to summarise.
    """
    scores = list(scores)
    if not scores:
        raise InputError("no volumes were scored", remedy="Correct the errors above; files pair by name")
    by_phase = {phase: [s for s in scores if s.phase == phase] for phase in sorted({s.phase for s in scores} - {""})}
    by_group = {group: [s for s in scores if s.group == group] for group in sorted({s.group for s in scores} - {""})}
    held = {label: name for label, name in names.items() if _in_a_reference(scores, label)}
    absent = {name: _structure(scores, label)["invented"] for label, name in names.items() if label not in held}
    return {
        **_means(scores, held),
        "absent": absent,
        "by_phase": {phase: _means(part, held) for phase, part in by_phase.items()},
        "by_group": {group: _means(part, held) for group, part in by_group.items()},
    }


def _in_a_reference(scores: Iterable[VolumeScore], label: int) -> bool:
    return any(score.present[label] in ("both", "reference") for score in scores)


def _means(scores: Sequence[VolumeScore], names: Mapping[int, str]) -> dict[str, object]:
    structures = {name: _structure(scores, label) for label, name in names.items()}
    average = {m: _mean(s[m] for s in structures.values()) for m in ("dice", "hd95", "assd")}
    return {"volumes": len(scores), "structures": structures, "average": average}


def _structure(scores: Sequence[VolumeScore], label: int) -> dict[str, float | None]:
    dice = [s.dice[label] for s in scores]
    present = [s.present[label] for s in scores]
    return {
        "dice": float(np.mean(dice)),
        "dice_std": float(np.std(dice)),
        "hd95": _mean(s.hd95[label] for s in scores if s.present[label] == "both"),
        "assd": _mean(s.assd[label] for s in scores if s.present[label] == "both"),
        "missed": present.count("reference"),
        "invented": present.count("prediction"),
        "both_empty": present.count("neither"),
        "distances_missing": len(present) - present.count("both"),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    collected = list(values)
    known = [value for value in collected if value is not None]
    return float(np.mean(known)) if known and len(known) == len(collected) else None


# --- ensembles of masks -----------------------------------------------------------------------------------------------


def generalised_energy_distance(
    members: Array, refs: Array, labels: Sequence[int] = STRUCTURES, overlap: Overlap = "iou"
) -> float:
    """Squared generalised energy distance 2 E d(S, Y) - E d(S, S') - E d(Y, Y') between samples S and references Y.

    d = 1 - IoU (or 1 - Dice), averaged over ``labels``, with d = 0 where both masks lack the label. The expectations
    run over all pairs, a member with itself included, as in Kohl et al., "A Probabilistic U-Net for Segmentation of
    Ambiguous Images" (2018). The result is >= 0, smaller is better, and it falls as members are added even where their
    distribution stays: compare equal numbers of members.

    Args:
        members: label maps (K, *S).
        refs: label maps (R, *S), or a single one (*S).
    """
    members, refs = _array(members), _array(refs)
    refs = refs[None] if refs.ndim == members.ndim - 1 else refs
    _same_shape(members[0], refs[0], "members and references")
    cross, within_s, within_y = (
        1 - np.mean([_overlaps(a, b, label, overlap) for label in labels])
        for a, b in ((members, refs), (members, members), (refs, refs))
    )
    return float(2 * cross - within_s - within_y)


def pairwise_dice(members: Array, labels: Sequence[int] = STRUCTURES) -> dict[int, float]:
    """Mean Dice over all pairs of different members of label maps (K, *S), by label; both empty counts 1.

    High agreement predicts high accuracy: it is the ensemble's own estimate of Dice. Raises InputError when K < 2.
    """
    members = _array(members)
    if len(members) < 2:
        raise InputError("agreement needs at least two members", remedy="Sample more members")
    pairs = np.triu_indices(len(members), k=1)
    return {label: float(_overlaps(members, members, label, "dice")[pairs].mean()) for label in labels}


def mean_pairwise_dice(members: Array, labels: Sequence[int] = STRUCTURES) -> float:
    """Mean over labels of :func:`pairwise_dice`."""
    return float(np.mean(list(pairwise_dice(members, labels).values())))


def _overlaps(a: NDArray[Any], b: NDArray[Any], label: int, overlap: Overlap) -> NDArray[np.float64]:
    """(Ka, Kb) Dice or IoU of one label between all rows of a (Ka, *S) and b (Kb, *S)."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    both = np.zeros((len(a), len(b)))
    for start in range(0, a.shape[1], VOXELS_PER_CHUNK):
        chunk = slice(start, start + VOXELS_PER_CHUNK)
        in_a, in_b = a[:, chunk] == label, b[:, chunk] == label
        somewhere = in_a.any(0) | in_b.any(0)  # most voxels are background in every mask
        both += in_a[:, somewhere].astype(np.float32) @ in_b[:, somewhere].astype(np.float32).T
    total = (a == label).sum(1)[:, None] + (b == label).sum(1)[None, :]
    numerator, denominator = (2 * both, total) if overlap == "dice" else (both, total - both)
    return np.divide(numerator, denominator, out=np.ones_like(both), where=denominator > 0)


def predicted_true_dice_correlation(predicted: Values, true: Values) -> dict[str, float | None]:
    """Pearson and Spearman correlation between the Dice an ensemble predicts of itself and the Dice it has.

    One pair per volume. Both are None for fewer than three pairs, or where either side is constant.
    """
    x, y = _array(predicted).astype(np.float64), _array(true).astype(np.float64)
    _same_shape(x, y, "predicted and true Dice")
    if x.size < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return {"pearson": None, "spearman": None}
    return {"pearson": float(stats.pearsonr(x, y).statistic), "spearman": float(stats.spearmanr(x, y).statistic)}


def interval_coverage(lower: Values, upper: Values, truth: Values) -> float:
    """Fraction of closed intervals [lower, upper] that hold the truth, in [0, 1].

    One interval per case, for instance 90 % intervals of a volume. Report the mean width beside it.
    """
    low, high, value = (_array(v).astype(np.float64) for v in (lower, upper, truth))
    _same_shape(low, high, "lower and upper ends")
    _same_shape(low, value, "intervals and truths")
    if not value.size or (low > high).any():
        raise InputError("the intervals are empty or reversed", remedy="Give at least one, with lower <= upper")
    return float(np.mean((low <= value) & (value <= high)))


# --- calibration and uncertainty, voxel by voxel ----------------------------------------------------------------------


def foreground_region(ref: Array, margin: int | Sequence[int] = 10) -> NDArray[np.bool_]:
    """Bounding box of a reference's foreground grown by ``margin`` voxels on each side, as a boolean mask (*S).

    Background far from them is easy and outnumbers everything else: measured over the whole volume any mask looks
    calibrated. A box is used, and not the foreground itself, because choosing single voxels by their true label would
    make a calibrated model look miscalibrated. A reference without foreground gives the whole volume.
    """
    ref = _array(ref)
    region = np.zeros(ref.shape, dtype=bool)
    found = np.argwhere(ref != 0)
    if not len(found):
        return ~region
    grown = np.broadcast_to(np.asarray(margin), (ref.ndim,))
    first, last = np.maximum(found.min(0) - grown, 0), found.max(0) + grown + 1
    region[tuple(slice(int(i), int(j)) for i, j in zip(first, last, strict=True))] = True
    return region


def _voxels(probabilities: Array, ref: Array, region: Array | None) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Probabilities (C, N) and labels (N,) of the voxels in the region."""
    p, labels = _array(probabilities), _array(ref)
    _same_shape(p[0], labels, "probabilities and reference")
    inside = np.ones(labels.shape, dtype=bool) if region is None else _array(region).astype(bool)
    _same_shape(inside, labels, "region and reference")
    labels = labels[inside].astype(np.int64)
    if not labels.size or labels.min() < 0 or labels.max() >= len(p):
        raise InputError(f"no voxels, or labels outside 0 to {len(p) - 1}", remedy="Check the region and the reference")
    return p[:, inside], labels


def calibration_table(
    probabilities: Array, ref: Array, bins: int = 15, region: Array | None = None
) -> NDArray[np.float64]:
    """(bins, 3): voxels, summed confidence and correct voxels, by equal-width bin of confidence in (0, 1].

    The confidence of a voxel is its largest class probability. Tables of several volumes add up, so calibration over a
    whole test set needs one volume in memory at a time. Arguments as in :func:`expected_calibration_error`.
    """
    p, labels = _voxels(probabilities, ref, region)
    confidence = p.max(0).astype(np.float64)
    correct = p.argmax(0) == labels
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    columns = (np.bincount(index, weights=w, minlength=bins) for w in (np.ones_like(confidence), confidence, correct))
    return np.stack(list(columns), axis=1)


def calibration_error(table: NDArray[np.float64]) -> float:
    """Expected calibration error of a :func:`calibration_table`: sum over bins of n_b/n |accuracy_b - confidence_b|."""
    count, confidence, correct = table.T
    return float(np.abs(correct - confidence).sum() / count.sum())


def expected_calibration_error(probabilities: Array, ref: Array, bins: int = 15, region: Array | None = None) -> float:
    """Top-label expected calibration error (Guo et al., "On Calibration of Modern Neural Networks", 2017), in [0, 1].

    Args:
        probabilities: (C, *S), summing to 1 over C; channel c belongs to label c.
        ref: label map (*S) with values 0 to C-1.
        bins: number of equal-width bins, closed on the right.
        region: voxels to count, boolean (*S); None is all of them. Pass :func:`foreground_region` as well as None and
            report both: the background dominates the whole volume.

    Raises InputError for unequal shapes, an empty region or labels without a channel.
    """
    return calibration_error(calibration_table(probabilities, ref, bins, region))


def brier(probabilities: Array, ref: Array, region: Array | None = None) -> float:
    """Brier score, the mean over voxels of sum_c (p_c - [label = c])^2, in [0, 2]; arguments as for calibration."""
    p, labels = _voxels(probabilities, ref, region)
    squares = sum(np.square(p[c].astype(np.float64) - (labels == c)).sum() for c in range(len(p)))
    return float(squares / labels.size)


def error_uncertainty_auroc(uncertainty: Array, error: Array, region: Array | None = None) -> float | None:
    """Chance that a wrong voxel is more uncertain than a right one, ties counting half: the area under the ROC curve.

    Args:
        uncertainty: any increasing measure of doubt, (*S).
        error: boolean (*S), True where the predicted label is wrong.
        region: voxels to count, boolean (*S); None is all of them.

    Returns None where all voxels are right or all are wrong.
    """
    doubt, wrong = _array(uncertainty), _array(error).astype(bool)
    _same_shape(doubt, wrong, "uncertainty and error")
    if region is not None:
        inside = _array(region).astype(bool)
        _same_shape(inside, wrong, "region and error")
        doubt, wrong = doubt[inside], wrong[inside]
    n_wrong = int(np.count_nonzero(wrong))
    n_right = wrong.size - n_wrong
    if not n_wrong or not n_right:
        return None
    ranks = stats.rankdata(doubt.ravel())  # average ranks: the Mann-Whitney statistic
    return float((ranks[wrong.ravel()].sum() - n_wrong * (n_wrong + 1) / 2) / (n_wrong * n_right))


# --- super-resolved images --------------------------------------------------------------------------------------------


def _images(pred: Array, ref: Array) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = (torch.as_tensor(_array(v), dtype=torch.float64) for v in (pred, ref))
    if x.shape != y.shape or x.ndim != 4:
        what = f"images of shapes {tuple(x.shape)} and {tuple(y.shape)}"
        raise InputError(what, remedy="Give two batches (B, C, H, W) of one shape")
    for image in (x, y):
        if not bool(((image >= 0) & (image <= 1)).all()):
            raise InputError("image values leave [0, 1]", remedy="Scale to [0, 1] and clip before measuring")
    return x, y


def psnr(pred: Array, ref: Array) -> float:
    """Peak signal-to-noise ratio in dB on [0, 1], mean over the images of (B, C, H, W); infinite for equal images.

    The mean squared error of an image runs over pixels and channels together.
    """
    x, y = _images(pred, ref)
    return float((-10 * torch.log10((x - y).square().mean(dim=(1, 2, 3)))).mean())


def ssim(pred: Array, ref: Array) -> float:
    """Structural similarity (Wang et al. 2004) on [0, 1], mean over images, channels and windows of (B, C, H, W).

    Gaussian window of 11 x 11 pixels and sigma 1.5, inside the image only; k1 = .01, k2 = .03. By MONAI.
    """
    x, y = _images(pred, ref)
    if min(x.shape[-2:]) < 11:
        what = f"an image of {tuple(x.shape[-2:])} pixels is smaller than the 11 x 11 window"
        raise InputError(what, remedy="Leave it out, or compare larger images")
    similarity, _ = compute_ssim_and_cs(x, y, spatial_dims=2, kernel_size=(11, 11), kernel_sigma=(1.5, 1.5))
    return float(similarity.mean())


def consistency(low: Array, downsampled: Array) -> float:
    """Mean squared error between the low-resolution input and the down-sampled output, on [0, 1], in units of 1e-5."""
    x, y = _images(low, downsampled)
    return float((x - y).square().mean() * 1e5)
