"""A tiny data set for training, and a process that trains and is killed."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data_sets import picture

from cgdpm_med.apps.train import Wishes, train

SETTINGS = ("batch_size=2", "epoch=1", "widths=32,32", "validate_every=2")
"""Of a plan whose training takes seconds."""
WISHES = Wishes(
    iterations=20,
    settings=("batch_size=2", "epoch=2", "widths=32,32", "validate_every=5"),
    patients="^([^_]+)",
    guidance=True,
)
"""Two epochs of the guidance network, more of the denoiser."""
PLACES = (
    "denoiser, weights written and no checkpoint",
    "denoiser, checkpoint written",
    "guidance",
    "calibration",
    "nowhere",
)


def blobs(folder: Path, patients: int = 6, name: str = "spot") -> Path:
    """Two pictures of every patient, ``a0_0.png``; a bright square is class 1, drawn as 255."""
    rng = np.random.default_rng(0)
    for n in range(2 * patients):
        mask = np.zeros((16, 16))
        x, y = rng.integers(2, 8, 2)
        mask[x : x + 6, y : y + 6] = 255
        key = f"a{n // 2}_{n % 2}.png"
        picture(folder / "images" / key, (60 + mask / 2 + rng.normal(0, 8, mask.shape)).clip(0, 255))
        picture(folder / "masks" / key, mask)
    (folder / "labels.json").write_text(json.dumps({"background": 0, name: 255}))
    return folder


def kill(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(place: str) -> None:
    """Let this process be killed there."""
    from cgdpm_med.apps import calibrate_slices
    from cgdpm_med.training.engines import BestWeights, TrainingState
    from cgdpm_med.training.guidance import ReplayLoader

    update, save, told = BestWeights.update, TrainingState.save, ReplayLoader.set_epoch
    changes: dict[str, tuple[Any, str, Any]] = {
        PLACES[0]: (BestWeights, "update", lambda *of: (update(*of), kill())),
        PLACES[1]: (TrainingState, "save", lambda *of: (save(*of), kill())),
        PLACES[2]: (ReplayLoader, "set_epoch", lambda loader, epoch: kill() if epoch == 2 else told(loader, epoch)),
        PLACES[3]: (calibrate_slices, "observed", kill),
    }
    if place in changes:
        setattr(*changes[place])


def train_and_die(data: str, run: str) -> None:
    """Train in one child after the other, each killed at a place, and print how each ended."""
    torch.set_num_threads(1)
    for place in PLACES:  # forked, since imports take longest
        if not (child := os.fork()):
            die_at(place)
            train(data, run, WISHES, device="cpu")
            os._exit(0)
        sys.stdout.write(f"status {os.waitpid(child, 0)[1]}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    train_and_die(*sys.argv[1:])
