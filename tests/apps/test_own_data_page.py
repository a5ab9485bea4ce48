"""The commands of docs/own_data.md, on sets as the page describes them, with a few steps of a tiny network."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO
from data_sets import picture, volume
from typer.testing import CliRunner

from cgdpm_med.apps.cli import app

pytestmark = [pytest.mark.usefixtures("leaves_no_determinism"), pytest.mark.slow]
PAGE = (REPO / "docs" / "own_data.md").read_text(encoding="utf-8")
FEW = ["--iterations", "2", *(f"--set={name}" for name in ("batch_size=2", "epoch=1", "widths=32,32"))]


def commands(heading: str) -> list[list[str]]:
    """The commands of a section of the page, hours told as a few steps."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    found = []
    for line in block.strip().splitlines():
        words = shlex.split(re.sub(r"--hours \d+", " ".join(FEW), line))
        assert words[0] == "cgdpm-med"
        quick = ["--members", "2", "--steps", "1"] if words[1] == "segment" else []
        where = ["--device", "cpu"] if words[1] != "evaluate" else []
        found.append([*words[1:], *quick, *where])
    return found


def nnunet(
    root: Path,
    channels: dict[str, str],
    labels: dict[str, int],
    slices: int = 3,
    spacing: tuple[float, float, float] = (1, 1, 5),
) -> None:
    rng, ending = np.random.default_rng(0), ".nii.gz"
    for n in range(6):
        part = "Tr" if n < 5 else "Ts"
        mask = np.zeros((16, 16, slices), np.uint8)
        for value in labels.values():
            x = int(rng.integers(0, 6))
            mask[x : x + 5, 6 * value - 4 : 6 * value + 1, : slices // 2 + 1] = value if value else 0
        for channel in range(len(channels)):
            image = (mask * (channel + 1) + rng.normal(0, 0.3, mask.shape)).astype(np.float32)
            volume(root / f"images{part}" / f"c{n}_{channel:04d}{ending}", image, spacing)
        if part == "Tr":
            volume(root / "labelsTr" / f"c{n}{ending}", mask, spacing)
    content = {"channel_names": channels, "labels": labels, "numTraining": 5, "file_ending": ending}
    (root / "dataset.json").write_text(json.dumps(content))


def cells(images: Path, masks: Path, names: list[str]) -> None:
    rng = np.random.default_rng(1)
    for name in names:
        mask = np.zeros((16, 16))
        x, y = rng.integers(2, 8, 2)
        mask[x : x + 6, y : y + 6] = 255
        grey = 60 + mask / 2 + rng.normal(0, 8, mask.shape)
        picture(images / f"{name}.png", np.dstack([grey, grey / 2, 255 - grey]).clip(0, 255))
        picture(masks / f"{name}.png", mask)


def run_all(heading: str) -> None:
    for words in commands(heading):
        found = CliRunner().invoke(app, words)
        assert found.exit_code == 0, (words, found.output, found.exception)


def test_volumes_with_two_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    labels = {"background": 0, "liver": 1, "tumour": 2}
    nnunet(tmp_path / "Dataset007_Liver", {"0": "CT"}, labels)
    run_all("Volumes with two classes, as nnU-Net keeps them")
    assert (tmp_path / "masks_liver" / "c5.nii.gz").is_file()
    assert json.loads((tmp_path / "run_liver" / "configs" / "plan.json").read_text())["intensity"] == "fixed"


def test_colour_pictures_with_one_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells(tmp_path / "cells" / "images", tmp_path / "cells" / "masks", [f"p{n // 2}_{n % 2}" for n in range(10)])
    cells(tmp_path / "new_pictures", tmp_path / "new_masks", ["q1_0", "q2_0"])
    run_all("Colour pictures with one class")
    assert (tmp_path / "masks_cells" / "q1_0_doubt.npz").is_file()
    assert (tmp_path / "run_cells" / "models" / "guidance" / "guidance.pt").is_file()


def test_volumes_of_two_channels_in_two_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nnunet(tmp_path / "prostate", {"0": "T2", "1": "ADC"}, {"background": 0, "gland": 1}, 24, (1, 1, 2.5))
    run_all("Volumes of two channels in 3D, in two folds")
    assert json.loads((tmp_path / "run_0" / "configs" / "plan.json").read_text())["dimensions"] == "3D"
    record = json.loads((tmp_path / "masks_prostate" / "segmentation.json").read_text())
    assert len(record["weights"]) == 2
    assert record["labels"] == {"1": "gland"}
