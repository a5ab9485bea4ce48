"""MONAI Deploy: the steps of its MonaiBundleInferenceOperator on the bundle, and the example application."""

from __future__ import annotations

import json
import sys
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import REPO
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform

from cgdpm_med import InputError, LoadVolumed, Segmenter, read_volume
from cgdpm_med.phantom import PhantomSpec, make_phantom

BUNDLE = REPO / "bundles" / "acdc_segmentation"
FAST: dict[str, Any] = {"members": 2, "precision": "float32", "field": 96}


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    drawn = make_phantom(PhantomSpec.small(seed=1))
    image = nib.Nifti1Image(drawn.images[1].astype(np.float32), np.diag([-2.8, -2.8, 22.0, 1]))
    image.to_filename(tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def without_files(compose: Compose) -> Compose:
    """What the operator leaves of a sequence: transforms whose class is called LoadImage… or SaveImage… go."""
    names = ("LoadImage", "SaveImage")
    kept = [each for each in compose.transforms if not any(name in type(each).__name__ for name in names)]
    compose.transforms = tuple(kept)
    assert isinstance(kept[0], MapTransform)
    return compose


@pytest.mark.slow
def test_the_operator_gives_the_voxels_of_segment(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BUNDLE)
    parser = ConfigParser()
    parser.read_meta("configs/metadata.json")
    parser.read_config("configs/inference.yaml")
    for name, value in {**FAST, "device": "$torch.device('cpu')"}.items():
        parser[name] = value
    parser.parse()
    inferer = parser.get_parsed_content("inferer")
    before, after = (without_files(parser.get_parsed_content(n)) for n in ("preprocessing", "in_memory_postprocessing"))
    network = parser.get_parsed_content("network")
    checkpoint = torch.load("models/model.pt", map_location="cpu", weights_only=True)
    network.load_state_dict(checkpoint["model"], strict=True)

    stored = nib.load(scan)
    value = np.asarray(stored.dataobj)
    meta = {"affine": stored.affine, "original_affine": stored.affine, "original_channel_dim": "no_channel"}
    image = MetaTensor.ensure_torch_and_prune_meta(value, {**meta, "key": "scan"})
    with torch.no_grad():
        inputs = before({"image": image})
        first = inputs.pop("image")
        drawn = inferer(inputs=first[None], network=network.eval())
        found = after({"pred": drawn[0], "image": first})["pred"]
    outputs = parser["_meta_"]["network_data_format"]["outputs"]["pred"]
    assert outputs["type"] == "image"  # the operator makes an image of it, not a table of names
    expected = Segmenter.from_bundle(BUNDLE, device="cpu", **FAST)(read_volume(scan), key="scan")
    assert expected.mask.any()
    assert not (BUNDLE / "segmentations").exists()
    np.testing.assert_array_equal(np.asarray(found)[0], expected.mask)


def test_an_array_without_a_place_is_refused() -> None:
    for image in (np.zeros((4, 4, 3)), MetaTensor(torch.zeros(2, 4, 4, 3))):
        with pytest.raises(InputError, match="volume"):
            LoadVolumed("image")({"image": image})


# --- the application --------------------------------------------------------------------------------------------------


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = spec_from_file_location("deploy_app", REPO / "deploy" / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "deploy_app", module)
    spec.loader.exec_module(module)
    return module


def test_the_folders_may_come_from_the_platform(app: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLOSCAN_INPUT_PATH", "/there/in")
    monkeypatch.setenv("HOLOSCAN_OUTPUT_PATH", "/there/out")
    given = app.parse_arguments([])
    assert (given.input, given.output) == (Path("/there/in"), Path("/there/out"))


def test_nothing_to_segment_is_one_line(app: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["-i", str(tmp_path / "absent"), "-o", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert str(tmp_path / "absent") in line


@pytest.mark.slow
def test_a_series_goes_in_and_a_segmentation_and_a_report_come_out(
    app: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'cgdpm-med[dicom]'")
    from dicom_scans import Scan
    from pydicom import dcmread

    shape, spacing = (64, 56, 3), (2.8, 2.8, 24.0)
    frames = make_phantom(PhantomSpec.small(7, shape=shape, spacing=spacing)).images
    scan = Scan(slices=shape[2], phases=1, size=shape[:2], spacing=spacing[:2], gap=spacing[2])
    scan.voxels = np.clip(frames[1], 0, 60000).astype(np.uint16)[..., None]
    scan.write(tmp_path / "in")
    monkeypatch.setattr(app, "segment", partial(app.segment, device="cpu", **FAST))
    assert app.main(["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out")]) == 0
    (seg,) = (tmp_path / "out").rglob("*.dcm")
    assert dcmread(seg).Modality == "SEG"
    assert len(list((tmp_path / "out").rglob("*.html"))) == 1
    (record,) = (tmp_path / "out").rglob("*.json")
    assert json.loads(record.read_text(encoding="utf-8"))
