"""scripts/toy_upsampler.py: its closed form, and that the recipe reads every key it is given."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import load_script
from monai.bundle import ConfigParser
from numpy.typing import NDArray

from cgdpm_med import InputError, bundle_path


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("toy_upsampler")


def test_the_average_of_what_is_allowed_agrees_and_leaves_nothing_to_learn(script: ModuleType) -> None:
    """E[s_0 | y] agrees with y, and its error is uncorrelated with y: no other function of y is nearer."""
    pictures = script.GaussianPictures(size=16, factor=4, waves=6)
    rng = np.random.default_rng(0)
    errors: list[NDArray[np.float64]] = []
    seen: list[NDArray[np.float64]] = []
    for _ in range(400):
        image = pictures.draw(1, rng)
        y = np.stack([block.reshape(4, 4, 4, 4).mean(axis=(1, 3)) for block in image])
        mean = pictures.posterior_mean(y, 1)
        again = np.stack([block.reshape(4, 4, 4, 4).mean(axis=(1, 3)) for block in mean])
        np.testing.assert_allclose(again, y, atol=1e-9)
        errors.extend((image - mean).reshape(3, -1))
        seen.extend(y.reshape(3, -1))
    correlation = np.corrcoef(np.array(errors), np.array(seen), rowvar=False)[:256, 256:]
    assert np.abs(correlation).max() < 5 / np.sqrt(len(errors))
    assert np.square(errors).mean() == pytest.approx(pictures.left, rel=0.05)


@pytest.mark.parametrize("files", [("train",), ("train", "train_guidance")])
def test_every_key_is_one_the_recipe_reads(script: ModuleType, files: tuple[str, ...], tmp_path: Path) -> None:
    """MONAI takes keys that nothing reads without a word."""
    arguments = script.parse_arguments(["--output", str(tmp_path)])
    settings = {**script.budget(arguments, tmp_path, 3000), "initial_weights": tmp_path / "adm.pt", "fusion": "input"}
    parser = ConfigParser()
    parser.read_config([str(bundle_path(script.RECIPE) / "configs" / f"{name}.yaml") for name in files])
    assert [name for name in settings if name not in parser] == []
    assert settings["epochs"] * settings["iterations"] == 3000


def test_a_finished_stage_stands_and_a_failed_one_names_its_log(script: ModuleType, tmp_path: Path) -> None:
    finished = tmp_path / "model_last.pt"
    finished.touch()
    assert script.run(finished, ("train",), {}) == finished
    with pytest.raises(InputError, match=r"log\.txt: train failed"):
        script.run(tmp_path / "new" / "model_last.pt", ("train",), {"initial_weights": tmp_path / "missing.pt"})
