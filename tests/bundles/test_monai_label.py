"""What MONAI Label 0.8.5 does with the segmentation bundle, step by step as its BundleInferTask does it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import REPO
from monai.bundle import ConfigParser, run
from monai.transforms import Spacingd
from nifti_files import ACDC_SFORM, LABELS, OBLIQUE, RAMP, nifti
from small_networks import small_mask_denoiser, small_network

from cgdpm_med import DiffusionPredictor, LoadVolumed, LoneSpacingd, Segmenter, guidance_beside, read_volume
from cgdpm_med.models import load_model, save_model
from cgdpm_med.models.description import TrainingData
from cgdpm_med.phantom import PhantomSpec, make_phantom

BUNDLE = REPO / "bundles" / "acdc_segmentation"
SMOKE = REPO / "configs" / "smoke.yaml"


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A phantom whose file holds the slices first, as the app may be given it."""
    drawn = make_phantom(PhantomSpec.small(seed=1))
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 22.0, -2.8, -2.8, 1
    nib.Nifti1Image(drawn.images[1].transpose(2, 0, 1), affine).to_filename(tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


@pytest.mark.slow
@pytest.mark.parametrize(
    "further", [[], [str(BUNDLE / "models" / "further" / "second.pt")]], ids=["one", "two networks"]
)
def test_the_app_gets_the_masks_of_the_command(further: list[str], scan: Path, tmp_path: Path) -> None:
    config = ConfigParser()
    config.read_config(str(BUNDLE / "configs" / "inference.yaml"))
    config.config.update({"bundle_root": str(BUNDLE), "output_dir": str(tmp_path / "out")})
    config.config.update({"members": 2, "precision": "float32", "further_weights": further})
    metadata = json.loads((BUNDLE / "configs" / "metadata.json").read_text(encoding="utf-8"))
    formats = metadata["network_data_format"]
    assert (next(iter(formats["inputs"])), next(iter(formats["outputs"]))) == ("image", "pred")
    assert formats["outputs"]["pred"]["channel_def"]["3"] == "left-ventricular cavity"

    network = config.get_parsed_content("network_def", instantiate=True)
    checkpoint = torch.load(BUNDLE / "models" / "model.pt", map_location="cpu", weights_only=True)
    network.load_state_dict(checkpoint.get("model", checkpoint), strict=True)  # as its inference tasks do
    item: dict[str, Any] = {
        "image": str(scan),
        "image_path": str(scan),
        "model": "m",
        "device": "cpu",
        "model_filename": [],
    }
    for transform in config.get_parsed_content("preprocessing").transforms:
        item = transform(item)
    with torch.no_grad():
        item["pred"] = config.get_parsed_content("inferer")(item["image"][None], network.eval())[0]
    for transform in config.get_parsed_content("postprocessing").transforms:
        item = transform(item)

    given = {"members": 2, "device": "cpu", "precision": "float32", "further_weights": further}
    expected = Segmenter.from_bundle(BUNDLE, **given)(read_volume(scan))
    assert expected.mask.any()
    np.testing.assert_array_equal(item["pred"][0], expected.mask)
    # from these the app takes size and place of the file it writes
    np.testing.assert_array_equal(item["image"].meta["spatial_shape"], nib.load(scan).shape)
    np.testing.assert_array_equal(item["image"].meta["original_affine"], nib.load(scan).affine)


@pytest.mark.slow
@pytest.mark.usefixtures("leaves_no_determinism")
def test_the_app_learns_from_corrected_masks_and_uses_what_it_learned(tmp_path: Path) -> None:
    """Its training task step by step: a merged configuration, the weights in use loaded, data and epochs overridden."""
    copy = tmp_path / "acdc_segmentation"
    shutil.copytree(BUNDLE / "configs", copy / "configs")
    (copy / "models").mkdir()
    merged = ConfigParser()
    merged.read_config([str(path) for path in (*(copy / "configs" / f"{n}.yaml" for n in ("train", "label")), SMOKE)])
    ConfigParser.export_config_file(merged.get(), str(copy / "configs" / "train.json"))
    base = ConfigParser()
    base.read_config([str(copy / "configs" / "train.yaml"), str(SMOKE)])
    base["train#dataset#data"] = []
    network, said = (base.get_parsed_content(name) for name in ("network_def", "description"))
    save_model(copy / "models" / "model.pt", network, replace(said, training=TrainingData(("before",), "0" * 64)))

    items = []
    for seed in (1, 2, 3):  # what its datastore holds
        drawn = make_phantom(PhantomSpec.small(seed=seed))
        item = {name: str(tmp_path / f"{name}{seed}.nii.gz") for name in ("image", "label")}
        for name, voxels in (("image", drawn.images[1]), ("label", drawn.labels[1])):
            nib.Nifti1Image(voxels, np.diag([-2.8, -2.8, 22.0, 1])).to_filename(item[name])
        items.append(item)
    task = ConfigParser()
    task.read_config(str(copy / "configs" / "train.json"))
    handlers = task.get("train#handlers", [])
    assert not [handler for handler in handlers if handler.get("_target_") == "CheckpointLoader"]
    load = {"_target_": "CheckpointLoader", "load_path": str(copy / "models" / "model.pt"), "strict": False}
    handlers.insert(0, {**load, "load_dict": {"model": "$@network"}})
    before = torch.load(copy / "models" / "model.pt", weights_only=True)["model"]
    overrides = {"bundle_root": str(copy), "train#trainer#max_epochs": 1, "train#dataset#data": items[:2]}
    overrides |= {"device": torch.device("cpu"), "train#handlers": handlers, "validate#dataset#data": items[2:]}
    files = {"meta_file": str(copy / "configs" / "metadata.json"), "config_file": str(copy / "configs" / "train.json")}
    run(run_id="run", init_id=None, final_id=None, logging_file=False, **files, **overrides, learning_rate=1e-9)

    model = load_model(copy / "models" / "model.pt")
    after = model.network.state_dict()
    assert not all(torch.equal(before[name], after[name]) for name in after)
    # so small a rate: the training began with the weights in use, and so did their average
    assert all(torch.allclose(before[name], after[name], atol=1e-5) for name in after)
    assert model.description.training is not None
    assert model.description.training.patients == ("before", "image1", "image2")


def written_by_the_app(mask: np.ndarray, affine: np.ndarray, path: Path) -> sitk.Image:
    """As MONAI Label's Restored and write_itk do: the metadata's original affine in LPS, its columns the spacing."""
    affine = np.diag([-1, -1, 1, 1]) @ np.asarray(affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = sitk.GetImageFromArray(mask.transpose())
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    sitk.WriteImage(image, str(path))
    return sitk.ReadImage(str(path))


@pytest.mark.parametrize(
    "header",
    [
        {"sform": ACDC_SFORM, "sform_code": 2},
        {"sform": OBLIQUE},
        {"sform": OBLIQUE, "qform_code": 0, "xyzt_units": 2},
    ],
    ids=["ACDC's", "oblique", "millimetres"],
)
def test_the_app_writes_masks_on_the_grid_that_viewers_give_the_image(header: dict[str, Any], tmp_path: Path) -> None:
    """ITK, with which Slicer reads, takes the spacing of ACDC's headers from pixdim."""
    scan = tmp_path / "scan.nii"
    scan.write_bytes(nifti(RAMP, pixdim=(1.25, 1.4, 8.0), **header))
    image = LoadVolumed("image")({"image": str(scan)})["image"]
    written = written_by_the_app(LABELS, image.meta["original_affine"], tmp_path / "mask.nii.gz")
    seen = sitk.ReadImage(str(scan))
    assert written.GetSize() == seen.GetSize()
    np.testing.assert_allclose(written.GetSpacing(), (1.25, 1.4, 8.0), rtol=1e-6)
    for here, there in ((written.GetSpacing(), seen.GetSpacing()), (written.GetOrigin(), seen.GetOrigin())):
        np.testing.assert_allclose(here, there, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(written.GetDirection(), seen.GetDirection(), atol=1e-5)


def test_the_app_is_offered_one_model() -> None:
    """It lists ``models/*.pt``."""
    assert [path.name for path in (BUNDLE / "models").glob("*.pt")] == ["model.pt"]
    config = ConfigParser()
    config.read_config(str(BUNDLE / "configs" / "inference.yaml"))
    config["bundle_root"] = str(BUNDLE)
    assert config.get_parsed_content("guidance_scale") == 0  # the network is there, and off
    config["guidance_scale"] = 0.25
    assert Path(config.get_parsed_content("guidance_weights")).is_file()


def test_a_guidance_network_beside_the_weights_comes_first(tmp_path: Path) -> None:
    weights = tmp_path / "model.pt"
    assert guidance_beside(weights) == tmp_path / "guidance" / "guidance.pt"
    (tmp_path / "guidance.pt").touch()
    assert guidance_beside(weights) == tmp_path / "guidance.pt"


def test_weights_of_the_bare_network_go_where_they_belong() -> None:
    bare = small_network(seed=5).state_dict()
    predictor = DiffusionPredictor(small_mask_denoiser(seed=1))
    predictor.load_state_dict(bare)
    assert all(
        torch.equal(value, bare[name])
        for name, value in predictor.denoiser.get_submodule("network").state_dict().items()
    )
    again = DiffusionPredictor(small_network(seed=2))
    again.load_state_dict(bare)
    assert all(torch.equal(value, bare[name]) for name, value in again.denoiser.state_dict().items())
    guided = DiffusionPredictor(small_mask_denoiser(seed=1), small_network(seed=7))
    guided.load_state_dict(bare)
    assert torch.equal(guided.get_parameter("denoiser.network.head.weight"), bare["head.weight"])
    guide = small_network(seed=7).get_parameter("head.weight")
    assert torch.equal(guided.get_parameter("guide.head.weight"), guide)
    predictor.load_state_dict(DiffusionPredictor(small_mask_denoiser(seed=3)).state_dict())
    expected = small_network(seed=3).get_parameter("head.weight")
    assert torch.equal(predictor.get_parameter("denoiser.network.head.weight"), expected)
    with pytest.raises(RuntimeError, match="Missing key"):
        predictor.load_state_dict({name: value for name, value in bare.items() if "head" not in name})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        predictor.load_state_dict({**bare, "other": torch.zeros(1)})


def test_the_lone_spacing_is_monais(scan: Path) -> None:
    item = LoadVolumed("image")({"image": scan})
    settings: dict[str, Any] = {"keys": "image", "pixdim": (10.0, 1.5, -1), "mode": "bilinear"}
    expected = Spacingd(**settings)(item)["image"]
    found = LoneSpacingd(**settings)({**item, "image_path": str(scan)})
    assert torch.equal(found["image"], expected)
    assert torch.equal(found["image"].affine, expected.affine)
    assert found["image_path"] == str(scan)
    back = LoneSpacingd(**settings)
    assert back.inverse(back(item))["image"].shape == item["image"].shape
