"""Small studies and a model that answers at once, for scripts that try the engine rather than a network."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import torch

from cgdpm_med import Options, Sampling, Volume, find_cases
from cgdpm_med.apps.pipeline import segment_with
from cgdpm_med.apps.study_run import StudyWork, build_model
from cgdpm_med.inference.labels import DEFAULT_LABELS
from cgdpm_med.inference.segmenter import Segmentation
from cgdpm_med.runtime.engines import Engine

PLAIN = Options(pages=False)


@dataclass(frozen=True)
class StubModel:
    """Makes a model that calls the brighter half of a volume left ventricle.

    Attributes:
        seconds: that it pretends to work.
        log: folder in which each process that works leaves a file named by its number.
    """

    seconds: float = 0.0
    log: Path | None = None

    def __call__(self) -> Any:
        return _Stub(self)


class _Stub:
    def __init__(self, how: StubModel) -> None:
        self.how = how
        self.predictor = SimpleNamespace(sampling=Sampling(members=1, steps=1), precision="float32", guide=None)
        self.device, self.weights, self.combine, self.one_body = torch.device("cpu"), (), "mean", False
        self.labels = DEFAULT_LABELS

    def __call__(self, volume: Volume, key: str, progress: Callable[[float], None]) -> Segmentation:
        if self.how.log is not None:
            (self.how.log / str(os.getpid())).touch()
        time.sleep(self.how.seconds)
        mask = 3 * (volume.data > np.median(volume.data)).astype(np.uint8)
        probabilities = np.stack([mask == label for label in range(4)]).astype(np.float32)
        nothing = np.zeros(mask.shape, np.float32)
        return Segmentation(key, mask, probabilities, nothing, nothing, mask[None], volume)


def write_studies(folder: Path, count: int) -> Path:
    """Volumes of noise, each a study of its own."""
    folder.mkdir(parents=True)
    for n in range(count):
        data = np.random.default_rng(n).uniform(0, 100, (16, 14, 4)).astype(np.float32)
        nib.Nifti1Image(data, np.diag([1.5, 1.5, 8, 1])).to_filename(folder / f"study{n:05d}.nii.gz")
    return folder


def segment_by(engine: Engine, source: Path, out: Path, build: Callable[[], Any]) -> dict[str, Any]:
    """What ``segment`` would do with this model."""
    model = engine.once(partial(build_model, build, PLAIN))
    return segment_with(engine, StudyWork(model, out, PLAIN), find_cases(source))
