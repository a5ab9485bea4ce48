"""scripts/toy_upsampler.py: its closed form, and that the recipe reads every key it is given."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import load_script
from monai.bundle import ConfigParser
from numpy.typing import NDArray

from cgdpm_med import DiffusionPredictor, ImageTarget, InputError, NoiseSchedule, Sampling, bundle_path


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
        np.testing.assert_allclose(pictures.coarse(image), y, atol=1e-12)
        mean = pictures.posterior_mean(y, 1)
        np.testing.assert_allclose(pictures.coarse(mean), y, atol=1e-9)
        errors.extend((image - mean).reshape(3, -1))
        seen.extend(y.reshape(3, -1))
    correlation = np.corrcoef(np.array(errors), np.array(seen), rowvar=False)[:256, 256:]
    assert np.abs(correlation).max() < 5 / np.sqrt(len(errors))
    assert np.square(errors).mean() == pytest.approx(pictures.v, rel=0.05)


def test_pictures_stay_in_range_and_mirroring_keeps_their_class(script: ModuleType) -> None:
    pictures = script.GaussianPictures()
    rng = np.random.default_rng(0)
    drawn = np.stack([pictures.draw(n % 2, rng) for n in range(200)])
    assert (np.abs(drawn) > 1).mean() < 1e-4
    stripes = pictures.mean(0).reshape(pictures.size, -1)
    np.testing.assert_array_equal(stripes[:, ::-1], stripes)  # from left to right, as the recipe mirrors
    np.testing.assert_array_equal(pictures.mean(1), -pictures.mean(0))


@pytest.mark.parametrize(("w", "steps", "spread"), [(0.0, 250, 1.0), (1.0, 10, 0.0)])
def test_perfect_networks_show_the_closed_form(script: ModuleType, w: float, steps: int, spread: float) -> None:
    """Samples of the posterior without guidance, and E[s_0 | y] with it; a wrong class is seen."""
    pictures, schedule = script.GaussianPictures(), NoiseSchedule()
    denoiser, guide = script.PerfectUpsampler(pictures, schedule), script.PerfectGuide(pictures, schedule)
    target = ImageTarget(3, 4, learn_sigma=True, project=True)
    dials = Sampling(method="ddpm", steps=steps, members=8, guidance_scale=w)
    predictor = DiffusionPredictor(denoiser, guide if w else None, schedule, target, dials, precision="float32")
    truth = script.drawn(pictures, 1, np.random.default_rng(0))
    sample, bias, deviation = script.measure(predictor, truth, pictures).values()
    left = pictures.v**0.5
    assert deviation == pytest.approx(spread * left, abs=0.12 * left)  # 250 steps are not all
    assert sample == pytest.approx(left * (1 + spread) ** 0.5, rel=0.12)  # two pictures
    assert bias < 0.2 * left  # 8 members leave .1 where there is none
    if w:
        told_wrong = script.measure(predictor, truth, pictures, swapped=True)
        assert list(told_wrong.values())[1] > left


def test_the_closed_form_is_that_of_posterior_samples(script: ModuleType) -> None:
    pictures = script.GaussianPictures()
    samples, average = (list(row.values())[1:] for row in script.closed_form(pictures))
    assert samples == pytest.approx([(2 * pictures.v) ** 0.5, 0, pictures.v**0.5])
    assert average == pytest.approx([pictures.v**0.5, 0, 0])


@pytest.mark.parametrize("files", [("train",), ("train", "train_guidance")])
def test_every_key_is_one_the_recipe_has(script: ModuleType, files: tuple[str, ...], tmp_path: Path) -> None:
    """MONAI takes keys that nothing reads without a word."""
    arguments = script.parse_arguments(["--output", str(tmp_path)])
    settings = {**script.shared_keys(tmp_path, script.GaussianPictures(), arguments), **script.epochs_of(9, 9)}
    settings |= {"initial_weights": ""} | ({"fusion": ""} if len(files) == 1 else {"chain_steps": 0})
    parser = ConfigParser()
    parser.read_config([str(bundle_path(script.RECIPE) / "configs" / f"{name}.yaml") for name in files])
    assert [name for name in settings if name not in parser] == []


@pytest.mark.parametrize(
    ("steps", "in_a_pass", "found"), [(3000, 250, (12, 250)), (3000, 62, (49, 62)), (9, 250, (1, 9))]
)
def test_no_pass_over_the_pictures_cuts_the_training_short(
    script: ModuleType, steps: int, in_a_pass: int, found: tuple[int, int]
) -> None:
    settings = script.epochs_of(steps, in_a_pass)
    assert (settings["epochs"], settings["iterations"]) == found
    assert settings["iterations"] <= in_a_pass


def test_a_failed_stage_names_its_log_and_other_settings_are_refused(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"log\.txt: train failed"):
        script.run(("train",), {"initial_weights": tmp_path / "missing.pt"}, tmp_path / "new")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "made_with.json").write_text('{"seed": 1}')
    with pytest.raises(InputError, match="made with other settings"):
        script.main(["--output", str(tmp_path)])
