"""scripts/short_runs_sr.py: what it gives the bundles, without their full-size networks."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import load_script
from monai.bundle import ConfigParser
from PIL import Image

from cgdpm_med import InputError, bundle_path


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("short_runs_sr")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys.txt"
    file.write_text("up8_32 2 6 1 1\na.weight (2, 3)\n\nup64_256 2 40 1 1\nb.weight (4, 2, 2, 2)\nb.bias (4,)\n")
    return file


def test_tensors_have_the_listed_names_and_shapes(script: ModuleType, keys: Path) -> None:
    tensors = script.random_tensors(keys, "up64_256")
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {"b.weight": (4, 2, 2, 2), "b.bias": (4,)}
    assert tensors["b.weight"].std() == pytest.approx((0.5 / 8) ** 0.5, rel=0.5)
    assert torch.equal(tensors["b.bias"], script.random_tensors(keys, "up64_256")["b.bias"])
    with pytest.raises(InputError, match="no section up128_512"):
        script.random_tensors(keys, "up128_512")


def test_pictures_and_weights_are_a_users(script: ModuleType, keys: Path, tmp_path: Path) -> None:
    given = script.inputs("imagenet_sr_64_256", tmp_path, keys)
    for section, count in (("train", 2), ("val", 1)):
        for wnid in script.WNIDS:
            assert len(list((given["dataset_dir"] / section / wnid).glob("*.png"))) == count
    assert np.asarray(Image.open(given["small"] / "0.png")).shape == (64, 64, 3)
    assert set(torch.load(given["weights"], weights_only=True)) == {"b.weight", "b.bias"}


@pytest.mark.parametrize("bundle", ["face_sr_16_128", "face_sr_64_512", "imagenet_sr_64_256", "imagenet_sr_128_512"])
@pytest.mark.parametrize("stage", ["train", "train_guidance", "inference", "evaluate"])
def test_every_key_is_one_the_configurations_read(script: ModuleType, bundle: str, stage: str, tmp_path: Path) -> None:
    """MONAI takes keys that nothing reads without a word."""
    given = {"dataset_dir": tmp_path, "small": tmp_path}
    if bundle.startswith("imagenet"):
        given |= {"weights": tmp_path / "adm.pt", "classes": script.WNIDS}
    files, settings = script.settings_of(bundle, stage, tmp_path, given)
    parser = ConfigParser()
    parser.read_config([str(bundle_path(bundle) / "configs" / f"{name}.yaml") for name in files])
    assert [name for name in settings if name not in parser] == []
    # nothing but budgets and the user's own is touched: sizes and networks are the bundle's
    assert not {"size", "window", "factor", "channels", "attention_levels", "num_res_blocks"} & set(settings)
