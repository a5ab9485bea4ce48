"""How close generated pictures are to real ones as sets: FID, Inception Score, and LPIPS between pairs.

The networks behind these numbers are the user's own TorchScript files; nothing is downloaded. Scores of different
Inception files, numbers of pictures or reference sets must not be compared. Pictures are RGB in [0, 1], (B, 3, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.metrics.fid import compute_frechet_distance
from torch import Tensor

from cgdpm_med.files import InputError, PathLike, atomic_write

ADM_SPLIT_SIZE = 5000


# --- statistics -------------------------------------------------------------------------------------------------------


class FeatureStatistics:
    """Mean and covariance of feature vectors, in float64, from any number of batches in a fixed amount of memory."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Add features, (B, D).

        Raises:
            InputError: for another number of features than before, or values that are not finite.
        """
        batch = features.detach().to(torch.float64).cpu()
        if batch.ndim != 2 or (self.count and batch.shape[1] != len(self.mean)):
            raise InputError(f"features of shape {tuple(batch.shape)}", remedy="Give (B, D), with one D throughout")
        if not bool(batch.isfinite().all()):
            raise InputError("features are not finite", remedy="Check the pictures and the Inception file")
        if not self.count and len(batch):
            self.mean = torch.zeros(batch.shape[1], dtype=torch.float64)
            self._scatter = torch.zeros(batch.shape[1], batch.shape[1], dtype=torch.float64)
        if not len(batch):
            return
        # Chan, Golub & LeVeque (1983): exact merge of two sums of squares about their own means
        mean = batch.mean(dim=0)
        centred = batch - mean
        total = self.count + len(batch)
        shift = mean - self.mean
        self._scatter += centred.T @ centred + torch.outer(shift, shift) * (self.count * len(batch) / total)
        self.mean = self.mean + shift * (len(batch) / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """Unbiased, (D, D), float64; raises InputError for fewer than two vectors."""
        if self.count < 2:
            raise InputError(f"a covariance of {self.count} feature vectors", remedy="Give more pictures")
        return self._scatter / (self.count - 1)

    def save(self, path: PathLike) -> None:
        """Write ``mu``, ``sigma`` and ``count`` as .npz, the names ADM's reference batches have."""
        with atomic_write(path) as file:
            np.savez(file, mu=self.mean.numpy(), sigma=self.covariance.numpy(), count=self.count)

    @classmethod
    def load(cls, path: PathLike) -> FeatureStatistics:
        """Read what :meth:`save` wrote, or another .npz with ``mu`` and ``sigma``, as of ADM's reference batches.

        Raises:
            InputError: for a file of anything else.
        """
        path = Path(path)
        remedy = "Give an .npz file with mu and sigma"
        try:
            with np.load(path, allow_pickle=False) as arrays:
                mean, covariance = (torch.from_numpy(np.asarray(arrays[k], np.float64)) for k in ("mu", "sigma"))
                count = int(arrays["count"]) if "count" in arrays else 2  # the count plays no part in the distance
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(f"cannot be read as feature statistics ({error})", path=path, remedy=remedy) from error
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            what = f"mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)} do not belong together"
            raise InputError(what, path=path, remedy=remedy)
        statistics = cls()
        statistics.count, statistics.mean, statistics._scatter = count, mean, covariance * (count - 1)
        return statistics


def frechet_distance(generated: FeatureStatistics, real: FeatureStatistics) -> float:
    """Frechet distance of two Gaussians (Heusel et al., 2017): |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), by MONAI.

    The FID, where the features are Inception's. It falls as pictures are added, so compare equal numbers, and only
    where there are more pictures than features (2048): with fewer, the covariances are singular.

    Raises:
        InputError: for different numbers of features, or fewer than two pictures.
    """
    if len(generated.mean) != len(real.mean):
        what = f"{len(generated.mean)} features of generated pictures and {len(real.mean)} of real ones"
        raise InputError(what, remedy="Use one Inception file for both")
    distance = compute_frechet_distance(generated.mean, generated.covariance, real.mean, real.covariance)
    return max(float(distance), 0.0)  # of equal sets, rounding can leave a little less than zero


class InceptionScore:
    """Inception Score (Salimans et al., 2016): exp of the mean KL(p(class | picture) || p(class)), from batches.

    Args:
        split_size: the score is taken for every so many pictures, and its mean reported; 5000 as in ADM's evaluation.
    """

    def __init__(self, split_size: int = ADM_SPLIT_SIZE) -> None:
        if split_size < 1:
            raise ValueError(f"split_size must be at least 1, not {split_size}")
        self.split_size = split_size
        self.count = 0
        self._splits: list[float] = []
        self._start()

    def _start(self) -> None:
        self._pictures = 0
        self._marginal: Tensor | float = 0.0
        self._negative_entropy = 0.0

    def update(self, logits: Tensor) -> None:
        """Add class logits, or log-probabilities, (B, K)."""
        for part in self._up_to_the_next_split(logits.detach().double().cpu().log_softmax(dim=1)):
            p = part.exp()
            self._marginal = self._marginal + p.sum(dim=0)
            self._negative_entropy += float(torch.special.xlogy(p, p).sum())
            self._pictures += len(part)
            self.count += len(part)
            if self._pictures == self.split_size:
                self._splits.append(self._score())
                self._start()

    def _up_to_the_next_split(self, log_p: Tensor) -> Iterator[Tensor]:
        first = self.split_size - self._pictures
        if len(log_p[:first]):
            yield log_p[:first]
        yield from (part for part in log_p[first:].split(self.split_size) if len(part))

    def _score(self) -> float:
        """exp(sum p log p / n - sum_k q_k log q_k) with q the marginal: the mean KL divergence, regrouped."""
        marginal = torch.as_tensor(self._marginal) / self._pictures
        return math.exp(self._negative_entropy / self._pictures - float(torch.special.xlogy(marginal, marginal).sum()))

    def compute(self) -> tuple[float, float]:
        """Mean over the splits, the last one possibly smaller, and their standard deviation (n in the denominator).

        Raises InputError when there were no pictures.
        """
        scores = [*self._splits, self._score()] if self._pictures else self._splits
        if not scores:
            raise InputError("an Inception Score of no pictures", remedy="Give at least one batch")
        return float(np.mean(scores)), float(np.std(scores))


# --- networks ---------------------------------------------------------------------------------------------------------


class InceptionOutput(NamedTuple):
    """Features (B, D) for the FID, and class logits or log-probabilities (B, K) for the score, where there are any."""

    features: Tensor
    logits: Tensor | None


class Inception:
    """A TorchScript Inception network from a file of the user's.

    It is given pictures as uint8 (B, 3, H, W) and resizes them itself. Two kinds of file are understood: those whose
    ``forward`` has an argument ``return_features``, as the ``inception-2015-12-05.pt`` of NVIDIA's StyleGAN
    repositories, with class probabilities for output otherwise (``no_output_bias``, where there is such an argument, is
    set, as the original score has it); and those that return features, or features and logits.

    Raises:
        InputError: for a file that is missing or no TorchScript.
    """

    def __init__(self, path: PathLike, device: str | torch.device = "cpu") -> None:
        self.path, self.device = Path(path), torch.device(device)
        self.module, self.arguments = _torchscript(self.path, self.device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> InceptionOutput:
        """images: (B, 3, H, W) in [0, 1]. Raises InputError for other images, or an output of another form."""
        levels = (_rgb(images) * 255).round().to(torch.uint8).to(self.device)
        if "return_features" in self.arguments:
            unbiased = {"no_output_bias": True} if "no_output_bias" in self.arguments else {}
            features = self.module(levels, return_features=True)
            logits = self.module(levels, **unbiased).double().log()
        else:
            output = self.module(levels)
            features, logits = output if isinstance(output, tuple) else (output, None)
        if any(out is not None and (out.ndim != 2 or len(out) != len(images)) for out in (features, logits)):
            what = f"gives outputs of shape {tuple(features.shape)} for {len(images)} pictures"
            raise InputError(what, path=self.path, remedy="Give an Inception file with outputs (B, D)")
        return InceptionOutput(features, logits)


class Lpips:
    """Learned perceptual distance (Zhang et al., 2018) by a TorchScript file of the user's, mean over pairs.

    Understood are files with ``forward(a, b)`` for pictures in [-1, 1] that return a distance for each pair, (B,) or
    (B, 1, 1, 1), or for each of its pixels, (B, 1, H, W), or their mean alone; and those whose ``forward`` has an
    argument ``return_lpips``, as the ``vgg16.pt`` of NVIDIA's StyleGAN repositories: it takes pictures in [0, 255], and
    the squared distance of its outputs is the LPIPS.

    Raises:
        InputError: for a file that is missing or no TorchScript.
    """

    def __init__(self, path: PathLike, device: str | torch.device = "cpu") -> None:
        self.path, self.device = Path(path), torch.device(device)
        self.module, self.arguments = _torchscript(self.path, self.device)

    @torch.no_grad()
    def __call__(self, pred: Tensor, ref: Tensor) -> float:
        """Two batches (B, 3, H, W) in [0, 1]. Raises InputError for images of another form."""
        a, b = (_rgb(images).to(self.device) for images in (pred, ref))
        if a.shape != b.shape:
            raise InputError(
                f"images of shapes {tuple(a.shape)} and {tuple(b.shape)}", remedy="Give pairs of one shape"
            )
        if "return_lpips" in self.arguments:
            options = {"resize_images": False} if "resize_images" in self.arguments else {}
            features = [self.module(255 * x, return_lpips=True, **options) for x in (a, b)]
            distances = (features[0] - features[1]).square().flatten(1).sum(dim=1)
        else:
            distances = self.module(2 * a - 1, 2 * b - 1)
            if distances.ndim and len(distances) not in (1, len(a)):
                what = f"returns {tuple(distances.shape)} for {len(a)} pairs"
                raise InputError(what, path=self.path, remedy="Give a file that returns a distance for each pair, (B,)")
        return float(distances.double().mean())


def _torchscript(path: Path, device: torch.device) -> tuple[Any, set[str]]:
    """A module in evaluation mode, and the names of its ``forward``'s arguments."""
    remedy = "Give a TorchScript file, as torch.jit.save writes it"
    if not path.is_file():
        raise InputError("no such file", path=path, remedy=remedy)
    try:
        module = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"is no TorchScript file ({reason})", path=path, remedy=remedy) from error
    return module, {argument.name for argument in module.forward.schema.arguments}


def _rgb(images: Tensor) -> Tensor:
    images = torch.as_tensor(images).detach().float()
    if images.ndim != 4 or images.shape[1] != 3:
        raise InputError(f"images of shape {tuple(images.shape)}", remedy="Give RGB batches (B, 3, H, W)")
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise InputError("image values leave [0, 1]", remedy="Scale to [0, 1] and clip before measuring")
    return images


# --- scores of a set --------------------------------------------------------------------------------------------------


class GenerationScores(NamedTuple):
    """FID, mean and standard deviation of the Inception Score (None without logits), and the number of pictures."""

    fid: float
    inception_score: float | None
    inception_score_std: float | None
    pictures: int


def feature_statistics(
    batches: Iterable[Tensor],
    inception: Callable[[Tensor], InceptionOutput],
    score: InceptionScore | None = None,
    progress: Callable[[int], None] | None = None,
) -> FeatureStatistics:
    """Statistics of all pictures in ``batches`` of (B, 3, H, W) in [0, 1]; logits go to ``score`` where there are any.

    Args:
        progress: called with the number of pictures in each batch just seen.
    """
    statistics = FeatureStatistics()
    for images in batches:
        features, logits = inception(images)
        statistics.update(features)
        if score is not None and logits is not None:
            score.update(logits)
        if progress is not None:
            progress(len(images))
    return statistics


def generation_scores(
    generated: Iterable[Tensor],
    real: Iterable[Tensor] | FeatureStatistics,
    inception: Callable[[Tensor], InceptionOutput],
    *,
    split_size: int = ADM_SPLIT_SIZE,
    progress: Callable[[int], None] | None = None,
) -> GenerationScores:
    """FID and Inception Score of generated pictures, both sets streamed.

    Args:
        generated, real: batches (B, 3, H, W) in [0, 1]; of the real ones, statistics taken earlier will do.
        inception: an :class:`Inception`, or any function like it.
        split_size: of the :class:`InceptionScore`.
        progress: called with the number of pictures in each batch just seen.

    Raises:
        InputError: for images of another form, or fewer than two of either kind.
    """
    if not isinstance(real, FeatureStatistics):
        real = feature_statistics(real, inception, progress=progress)
    score = InceptionScore(split_size)
    statistics = feature_statistics(generated, inception, score, progress)
    mean, std = score.compute() if score.count else (None, None)
    return GenerationScores(frechet_distance(statistics, real), mean, std, statistics.count)
