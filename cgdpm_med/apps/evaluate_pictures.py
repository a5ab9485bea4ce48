"""Super-resolution scored: pictures are made coarse, refined, and compared with what they were.

PSNR and SSIM on RGB in [0, 1], consistency in units of 1e-5, and on request FID, Inception Score and LPIPS by the
user's own TorchScript files. Nothing is rounded to 8 bits before it is measured. Bicubic interpolation is scored beside
the model: what does not beat it has learned nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cgdpm_med.apps.contact_sheet import contact_sheet
from cgdpm_med.apps.resolver import SuperResolver, spread
from cgdpm_med.console import CaseBar, complain
from cgdpm_med.diffusion.degradation import AreaDegradation
from cgdpm_med.files import InputError, PathLike, atomic_write
from cgdpm_med.images import area_resize, largest_centre_square, read_picture, write_picture
from cgdpm_med.inference.predictor import predictor_settings
from cgdpm_med.metrics.generation import FeatureStatistics, Inception, InceptionScore, Lpips, frechet_distance
from cgdpm_med.metrics.masks import consistency, psnr, ssim
from cgdpm_med.tables.csv_files import write_csv
from cgdpm_med.tables.numbers import format_number

ROWS_OF_A_SHEET = 8


class Quality(NamedTuple):
    """PSNR in dB, infinite for a picture reproduced exactly; SSIM; consistency in units of 1e-5."""

    psnr: float
    ssim: float
    consistency: float


@dataclass(frozen=True)
class PictureScore:
    """Scores of one picture, by what was scored.

    ``qualities`` has ``output`` (the mean of the members) and ``bicubic``, and with several members ``sample`` (the
    first of them). ``spread`` is the mean standard deviation of the members on [0, 1].
    """

    key: str
    qualities: Mapping[str, Quality]
    spread: float | None = None
    lpips: float | None = None


@dataclass
class Pairs:
    """A batch of references (B, 3, H, W) and their coarse versions (B, 3, H / factor, W / factor), in [-1, 1]."""

    items: list[Mapping[str, Any]]
    fine: Tensor
    coarse: Tensor


def evaluate_super_resolution(
    resolver: SuperResolver,
    datalist: Sequence[Mapping[str, Any]],
    output: PathLike | None = None,
    *,
    size: int,
    inception: PathLike | None = None,
    real: PathLike | None = None,
    lpips: PathLike | None = None,
    sheets: int = 24,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Score a resolver on pictures whose truth is known; write ``pictures.csv``, ``summary.json`` and contact sheets.

    The largest centre square of each picture is area-averaged to ``size`` x ``size`` and, for the input, once more by
    the resolver's factor. A picture that cannot be used is reported, counted under ``failed`` and left out.

    Args:
        datalist: items with ``image`` (a file), ``key``, and ``class`` where the network needs one; see
            :func:`~cgdpm_med.image_datalist` and :func:`~cgdpm_med.imagenet_datalist`.
        output: folder to write; None writes nothing.
        size: side of the references, in pixels, a multiple of the resolver's factor.
        inception: TorchScript file for FID and Inception Score, which are taken of the first member of each picture: a
            mean of members is no sample.
        real: .npz of feature statistics to compare with, such as ADM's reference batches; by default those of the
            references themselves.
        lpips: TorchScript file for the LPIPS of the output.
        sheets: how many pictures the contact sheets show: input, bicubic, output, reference.
        batch_size: pictures refined together; the results do not depend on it.

    Returns:
        ``pictures``, ``means`` (:class:`Quality` by what was scored), ``exact`` (pictures reproduced exactly, whose
        infinite PSNR the mean leaves out), ``spread``, ``lpips``, ``fid``, ``inception_score``, ``failed`` and
        ``settings``.

    Raises:
        InputError: when no picture could be scored, or for a size or an Inception or LPIPS file that cannot be used.
    """
    if size < 1 or size % resolver.factor:
        raise InputError(
            f"a size of {size} is no multiple of the factor {resolver.factor}",
            remedy=f"Give a multiple of {resolver.factor}",
        )
    perceptual = None if lpips is None else Lpips(lpips, resolver.device)
    as_sets = None if inception is None else SetScores(Inception(inception, resolver.device), real)
    scores: list[PictureScore] = []
    shown: list[dict[str, Tensor]] = []
    failed: dict[str, str] = {}
    with CaseBar("evaluating", [item["key"] for item in datalist]) as bar:
        for pairs in read_pairs(datalist, size, resolver.factor, batch_size, failed, bar):
            members = _refined(resolver, pairs, bar)
            for b, item in enumerate(pairs.items):
                scores.append(score_picture(item["key"], members[:, b], pairs.fine[b], pairs.coarse[b], perceptual))
            if as_sets is not None:
                as_sets.update(members[0], pairs.fine)
            if sum(len(part["input"]) for part in shown) < sheets:
                shown.append(_columns(members, pairs))
    if not scores:
        raise InputError("no picture could be scored", remedy="Correct the errors above")
    summary = summarise_pictures(scores) | (as_sets.compute() if as_sets is not None else {})
    summary |= {"failed": failed, "settings": _settings(resolver, size)}
    if output is not None:
        write_scores(scores, summary, Path(output))
        write_sheets(shown, sheets, Path(output))
    return summary


def read_pairs(
    datalist: Sequence[Mapping[str, Any]],
    size: int,
    factor: int,
    batch_size: int,
    failed: dict[str, str],
    bar: CaseBar,
) -> Iterator[Pairs]:
    """Batches of references with their coarse versions; bad pictures go to ``failed`` and to standard error."""
    for start in range(0, len(datalist), batch_size):
        items, references = [], []
        for item in datalist[start : start + batch_size]:
            try:
                references.append(read_reference(item["image"], size))
            except InputError as error:
                failed[item["key"]] = str(error)
                complain(error, bar)
            else:
                items.append(item)
        if items:
            fine = torch.stack(references)
            yield Pairs(items, fine, AreaDegradation(factor).degrade(fine))


def read_reference(path: PathLike, size: int) -> Tensor:
    """The largest centre square of a picture, area-averaged; (3, size, size) in [-1, 1].

    Raises:
        InputError: for a file that cannot be read, or a picture that is too small.
    """
    square = largest_centre_square(read_picture(path).pixels)
    if square.shape[-1] < size:
        what = f"its shorter side has {square.shape[-1]} pixels, below {size}"
        raise InputError(what, path=path, remedy="Leave it out, or evaluate at a smaller size")
    return area_resize(square[None], (size, size))[0]


def bicubic(coarse: Tensor, factor: int) -> Tensor:
    """(B, 3, H, W) -> (B, 3, factor H, factor W), clipped to [-1, 1]."""
    return F.interpolate(coarse, scale_factor=float(factor), mode="bicubic", align_corners=False).clamp(-1, 1)


def _refined(resolver: SuperResolver, pairs: Pairs, bar: CaseBar) -> Tensor:
    keys = [item["key"] for item in pairs.items]
    classes = [item["class"] for item in pairs.items if "class" in item]
    return resolver(
        pairs.coarse,
        keys,
        lambda fraction: bar.update(keys[0], fraction * len(keys)),
        classes=classes if len(classes) == len(keys) else None,
    )


# --- scores -----------------------------------------------------------------------------------------------------------


def score_picture(
    key: str, members: Tensor, fine: Tensor, coarse: Tensor, perceptual: Lpips | None = None
) -> PictureScore:
    """Score the members (K, 3, H, W) of one picture against its reference ``fine`` (3, H, W), all in [-1, 1]."""
    factor = fine.shape[-1] // coarse.shape[-1]
    outputs = {"output": members.mean(dim=0), "bicubic": bicubic(coarse[None], factor)[0]}
    if len(members) > 1:
        outputs["sample"] = members[0]
    return PictureScore(
        key,
        {name: picture_quality(image, fine, coarse) for name, image in outputs.items()},
        float(spread(members).mean() / 2) if len(members) > 1 else None,
        None if perceptual is None else perceptual(_unit(outputs["output"])[None], _unit(fine)[None]),
    )


def picture_quality(image: Tensor, fine: Tensor, coarse: Tensor) -> Quality:
    """Scores of one picture, (3, H, W) in [-1, 1]."""
    pred, ref, low = (_unit(x)[None].double() for x in (image, fine, coarse))
    down = AreaDegradation(fine.shape[-1] // coarse.shape[-1]).degrade(pred)
    return Quality(psnr(pred, ref), ssim(pred, ref), consistency(low, down.clamp(0, 1)))


def _unit(x: Tensor) -> Tensor:
    return ((x + 1) / 2).clamp(0, 1)


class SetScores:
    """FID and Inception Score of a growing set, against references or statistics taken earlier."""

    def __init__(self, inception: Inception, real: PathLike | None = None) -> None:
        self.inception = inception
        self.given = real is not None
        self.real = FeatureStatistics() if real is None else FeatureStatistics.load(real)
        self.generated, self.score = FeatureStatistics(), InceptionScore()

    def update(self, generated: Tensor, real: Tensor) -> None:
        """Add pictures, (B, 3, H, W) in [-1, 1]."""
        features, logits = self.inception(_unit(generated))
        self.generated.update(features)
        if logits is not None:
            self.score.update(logits)
        if not self.given:
            self.real.update(self.inception(_unit(real)).features)

    def compute(self) -> dict[str, float | None]:
        """``fid`` and ``inception_score``, the latter None where the file gives no classes."""
        inception_score = self.score.compute()[0] if self.score.count else None
        return {"fid": frechet_distance(self.generated, self.real), "inception_score": inception_score}


def summarise_pictures(scores: Sequence[PictureScore]) -> dict[str, Any]:
    """Means over pictures; see :func:`evaluate_super_resolution`."""
    means = {
        name: {measure: _mean(getattr(s.qualities[name], measure) for s in scores) for measure in Quality._fields}
        for name in scores[0].qualities
    }
    return {
        "pictures": len(scores),
        "means": means,
        "exact": sum(math.isinf(s.qualities["output"].psnr) for s in scores),
        "spread": _mean(s.spread for s in scores),
        "lpips": _mean(s.lpips for s in scores),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    """Over the finite ones; None without any."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    return float(np.mean(finite)) if finite else None


def _settings(resolver: SuperResolver, size: int) -> dict[str, Any]:
    made = predictor_settings(resolver.predictor, resolver.device)
    return {"size": size, "factor": resolver.factor, "window": resolver.window, **made}


# --- results ----------------------------------------------------------------------------------------------------------


def write_scores(scores: Sequence[PictureScore], summary: Mapping[str, Any], folder: Path) -> None:
    """``pictures.csv``, a row per picture with an empty field for a missing value, and ``summary.json``."""
    write_csv(folder / "pictures.csv", [_csv_row(score) for score in scores], number_format=".6g")
    with atomic_write(folder / "summary.json") as file:
        file.write(json.dumps(summary, indent=2).encode())


def _csv_row(score: PictureScore) -> dict[str, Any]:
    measured = {f"{m}_{name}": v for name, quality in score.qualities.items() for m, v in quality._asdict().items()}
    return {"picture": score.key, **measured, "spread": score.spread, "lpips": score.lpips}


def _columns(members: Tensor, pairs: Pairs) -> dict[str, Tensor]:
    factor = pairs.fine.shape[-1] // pairs.coarse.shape[-1]
    columns = {"input": pairs.coarse, "bicubic": bicubic(pairs.coarse, factor), "output": members.mean(dim=0)}
    if len(members) > 1:
        columns["sample"] = members[0]
    return {**columns, "reference": pairs.fine}


def write_sheets(shown: Sequence[Mapping[str, Tensor]], pictures: int, folder: Path) -> list[Path]:
    """``sheet_00.png`` and so on, with the first ``pictures`` rows of the batches in ``shown``."""
    if not shown:
        return []
    columns = {name: torch.cat([part[name] for part in shown])[:pictures] for name in shown[0]}
    files = []
    for start in range(0, len(columns["input"]), ROWS_OF_A_SHEET):
        rows = {name: batch[start : start + ROWS_OF_A_SHEET] for name, batch in columns.items()}
        path = folder / f"sheet_{start // ROWS_OF_A_SHEET:02d}.png"
        files.append(write_picture(contact_sheet(rows), path))
    return files


def format_picture_summary(summary: Mapping[str, Any]) -> str:
    """The table as text: what was scored in rows, then the scores of the set, failures and the settings."""
    lines = [f"{'':10}{'PSNR dB':>9}{'SSIM':>8}{'consistency 1e-5':>18}"]
    for name, q in summary["means"].items():
        numbers = (format_number(q["psnr"], 2), format_number(q["ssim"], 3), format_number(q["consistency"], 2))
        lines.append(f"{name:10}{numbers[0]:>9}{numbers[1]:>8}{numbers[2]:>18}")
    lines.append(f"pictures {summary['pictures']}, failed {len(summary['failed'])}, exact {summary['exact']}")
    further = {name: summary.get(name) for name in ("spread", "lpips", "fid", "inception_score")}
    lines.append(", ".join(f"{name} {value:.4g}" for name, value in further.items() if value is not None))
    lines.append(", ".join(f"{name} {value}" for name, value in summary["settings"].items()))
    return "\n".join(line for line in lines if line)
