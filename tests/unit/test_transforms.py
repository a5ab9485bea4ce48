"""Volumes to targets and back: geometry round trips, members to masks by hand, files on their input's grid."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import AsDiscreted, Compose, GaussianSmooth, Invertd, ResizeWithPadOrCropd, Spacingd

from cgdpm_med.data.transforms import (
    CombineMembersd,
    Degraded,
    LoadVolumed,
    RandDegraded,
    SaveOnGridd,
    case_name,
    source_path,
)
from cgdpm_med.diffusion.degradation import AreaDegradation
from cgdpm_med.files import InputError
from cgdpm_med.phantom import PhantomSpec, write_phantom_patient
from cgdpm_med.volumes import read_labels, read_volume

# unequal axes, thick slices, a rotated grid, and ACDC's unit sform with the spacing in pixdim alone
AWKWARD = {
    "oblique, resampled up": {"shape": (62, 54, 5), "spacing": (2.6, 2.9, 18.0), "affine": "oblique"},
    "acdc header, resampled up": {"shape": (90, 70, 4), "spacing": (1.8, 2.2, 20.0), "affine": "acdc"},
    "acdc header, same spacing": {"shape": (110, 90, 4), "spacing": (1.5, 1.5, 20.0), "affine": "acdc"},
    "plain, resampled down": {"shape": (128, 104, 4), "spacing": (1.25, 1.25, 20.0), "affine": "plain"},
}


@pytest.fixture(scope="module", params=AWKWARD, ids=lambda name: name.replace(" ", "_"))
def awkward(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Image and label of an end-diastolic phantom."""
    folder = tmp_path_factory.mktemp("phantom")
    patient = write_phantom_patient(folder, 1, PhantomSpec.small(seed=3, **AWKWARD[request.param]))
    stem = patient / "patient001_frame01"
    return {"image": f"{stem}.nii.gz", "label": f"{stem}_gt.nii.gz"}


def to_working_grid(field: int, spacing: float) -> Compose:
    """The geometry of the segmentation bundle."""
    return Compose(
        [
            LoadVolumed(["image", "label"]),
            AsDiscreted("label", to_onehot=4),
            Spacingd(["image", "label"], (spacing, spacing, -1), mode="bilinear", padding_mode="border"),
            ResizeWithPadOrCropd(["image", "label"], (field, field, -1)),
        ]
    )


def dice_per_structure(mask: np.ndarray, truth: np.ndarray) -> list[float]:
    return [2 * ((mask == c) & (truth == c)).sum() / ((mask == c).sum() + (truth == c).sum()) for c in (1, 2, 3)]


def there_and_back(item: dict[str, str], *, members: int, harden: bool, spacing: float = 1.5) -> dict[Any, Any]:
    """True labels to the working grid, as the probabilities of ``members`` equal members back to the native grid."""
    forth = to_working_grid(field=128, spacing=spacing)
    data = forth({"image": item["image"], "label": item["label"]})
    p = data["label"]
    if harden:  # what a network that is right in every working voxel would say
        p = AsDiscreted("label", argmax=True, to_onehot=4)({"label": p})["label"]
    # as SliceEnsembleInferer hands them on: K * C channels with the image's metadata
    data["pred"] = MetaTensor(torch.as_tensor(p).as_subclass(torch.Tensor).repeat(members, 1, 1, 1))
    back = Compose([Invertd("pred", forth, orig_keys="image", nearest_interp=False), CombineMembersd(num_classes=4)])
    return back(data)


# --- geometry ---------------------------------------------------------------------------------------------------------


def test_labels_survive_encode_resample_invert_decode(awkward: dict[str, str]) -> None:
    truth = read_labels(awkward["label"]).data
    result = there_and_back(awkward, members=2, harden=False)
    assert result["members"].shape == (2, *truth.shape)
    assert torch.equal(result["members"][0], result["members"][1])
    for mask in (result["mask"][0], result["members"][0]):
        assert min(dice_per_structure(np.asarray(mask), truth)) >= 1 - 0.005
    torch.testing.assert_close(result["probabilities"].sum(dim=0), torch.ones(truth.shape), rtol=0, atol=1e-6)


def test_hard_labels_survive_a_working_grid_no_coarser_than_the_native_one(awkward: dict[str, str]) -> None:
    """The ceiling of a network trained on labels of the working grid; coarser working voxels lower it (1.25 mm voxels
    at 1.5 mm: about .97 in the myocardium), whatever the interpolation."""
    truth = read_labels(awkward["label"])
    result = there_and_back(awkward, members=1, harden=True, spacing=min(1.5, truth.grid.spacing[0]))
    assert min(dice_per_structure(np.asarray(result["mask"][0]), truth.data)) >= 1 - 0.005


def test_written_mask_has_the_header_of_its_image(awkward: dict[str, str], tmp_path: Path) -> None:
    result = there_and_back(awkward, members=1, harden=False)
    SaveOnGridd(["mask", "probabilities", "entropy"], tmp_path)(result)
    source = nib.load(awkward["image"])
    for name, channels, dtype in (
        ("", (), np.uint8),
        ("_probabilities", (4,), np.float32),
        ("_entropy", (), np.float32),
    ):
        written = nib.load(tmp_path / f"patient001_frame01{name}.nii.gz")
        assert written.shape == (*source.shape, *channels)
        assert written.get_data_dtype() == dtype
        np.testing.assert_array_equal(written.affine, source.affine)
        for field in ("qform_code", "sform_code", "xyzt_units", "quatern_b", "quatern_c", "quatern_d", "srow_x"):
            np.testing.assert_array_equal(written.header[field], source.header[field])
        np.testing.assert_array_equal(written.header["pixdim"][:4], source.header["pixdim"][:4])
    np.testing.assert_array_equal(
        np.asarray(nib.load(tmp_path / "patient001_frame01.nii.gz").dataobj), result["mask"][0]
    )
    stored = np.asarray(nib.load(tmp_path / "patient001_frame01_probabilities.nii.gz").dataobj)
    np.testing.assert_array_equal(np.moveaxis(stored, -1, 0), result["probabilities"])
    assert not list(tmp_path.glob(".*.tmp"))


def test_working_grid_has_the_true_spacing(awkward: dict[str, str]) -> None:
    """At 1.5 mm a structure fills area / 2.25 mm^2 pixels: an affine believed to be 1 mm would be seen here."""
    data = to_working_grid(field=128, spacing=1.5)({"image": awkward["image"], "label": awkward["label"]})
    labels = read_labels(awkward["label"])
    true_mm3 = [(labels.data == c).sum() * labels.grid.voxel_volume for c in (1, 2, 3)]
    working_mm3 = data["label"][1:].sum(dim=(1, 2, 3)) * 1.5 * 1.5 * labels.grid.spacing[2]
    np.testing.assert_allclose(working_mm3, true_mm3, rtol=0.01)
    assert data["image"].shape == (1, 128, 128, labels.data.shape[2])


def test_what_a_crop_leaves_out_is_background(awkward: dict[str, str]) -> None:
    forth = Compose([LoadVolumed("image"), ResizeWithPadOrCropd("image", (20, 24, -1), value=-1)])
    data = forth({"image": awkward["image"]})
    data["pred"] = MetaTensor(
        torch.eye(4)[3].reshape(4, 1, 1, 1).expand(4, *data["image"].shape[1:]).repeat(2, 1, 1, 1)
    )
    back = Compose([Invertd("pred", forth, orig_keys="image", nearest_interp=False), CombineMembersd(num_classes=4)])
    result = back(data)
    mask = result["mask"][0]
    inside = torch.zeros_like(mask, dtype=torch.bool)
    x, y = (mask.shape[0] - 20) // 2, (mask.shape[1] - 24) // 2
    inside[x : x + 20, y : y + 24] = True
    assert torch.equal(mask, torch.where(inside, 3, 0).to(torch.uint8))
    assert torch.equal(result["probabilities"][0], (~inside).float())
    assert result["entropy"].abs().max() == 0


# --- loading ----------------------------------------------------------------------------------------------------------


def write(path: Path, array: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> str:
    image = nib.Nifti1Image(array, np.diag([*spacing, 1.0]))
    nib.save(image, path)
    return str(path)


def test_loading_keeps_values_affine_name_and_key(tmp_path: Path) -> None:
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    path = write(tmp_path / "Case A.nii.gz", voxels, (1.25, 1.5, 8.0))
    image = LoadVolumed("image")({"image": path})["image"]
    np.testing.assert_array_equal(image[0], voxels)
    assert image.dtype == torch.float32
    np.testing.assert_array_equal(image.affine, np.diag([1.25, 1.5, 8.0, 1.0]))
    assert source_path(image) == Path(path)
    assert image.meta["key"] == "Case A"
    assert LoadVolumed("image")({"image": path, "key": "given"})["image"].meta["key"] == "given"
    again = LoadVolumed("image")({"image": read_volume(path)})["image"]
    assert torch.equal(again, image)
    assert source_path(again) == Path(path)


@pytest.mark.parametrize("keys", [["image", "label"], ["label", "image"]])
def test_labels_off_the_grid_of_their_image_are_refused(tmp_path: Path, keys: list[str]) -> None:
    item: dict[Hashable, Any] = {
        "image": write(tmp_path / "i.nii.gz", np.arange(24, dtype=np.int16).reshape(2, 3, 4)),
        "label": write(tmp_path / "l.nii.gz", np.zeros((2, 3, 5), np.uint8)),
    }
    with pytest.raises(InputError, match=r"l\.nii\.gz: is not on its image's grid: shape 2 x 3 x 5"):
        LoadVolumed(keys)(item)


def test_errors_name_the_file(tmp_path: Path) -> None:
    image = write(tmp_path / "image.nii.gz", np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    wrong = write(tmp_path / "wrong.nii.gz", np.full((2, 3, 4), 9, np.uint8))
    frames = write(tmp_path / "frames.nii.gz", np.arange(48, dtype=np.int16).reshape(2, 3, 4, 2))
    truncated = tmp_path / "truncated.nii.gz"
    truncated.write_bytes(Path(image).read_bytes()[:-20])
    items: list[tuple[dict[Hashable, Any], str]] = [
        ({"image": str(tmp_path / "none.nii.gz")}, r"none\.nii\.gz: cannot be read"),
        ({"image": str(truncated)}, r"truncated\.nii\.gz: is truncated"),
        ({"image": image, "label": wrong}, r"wrong\.nii\.gz: holds label values 9"),
        ({"image": frames}, r"frames\.nii\.gz: holds 2 time frames"),
    ]
    for item, text in items:
        with pytest.raises(InputError, match=text):
            LoadVolumed(["image", "label"], allow_missing_keys=True)(item)


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/b.nii.gz", "b"), ("a/b.nii", "b"), ("B.NII.GZ", "B"), ("a.b.gz", "a.b.gz"), ("x.nii.gz.nii", "x.nii.gz")],
)
def test_case_name(path: str, name: str) -> None:
    assert case_name(path) == name


# --- members to masks -------------------------------------------------------------------------------------------------

# three members, three voxels in a row, classes background / a / b; mean and majority disagree in the first voxel
MEMBERS = torch.tensor(
    [
        [[0.55, 0.0, 0.0], [0.45, 1.0, 0.2], [0.0, 0.0, 0.8]],
        [[0.55, 0.0, 0.0], [0.45, 1.0, 0.2], [0.0, 0.0, 0.8]],
        [[0.00, 0.0, 0.0], [1.00, 1.0, 1.0], [0.0, 0.0, 0.0]],
    ]
)  # (K, C, voxel)


def combined(combine: str) -> dict[Any, Any]:
    pred = MEMBERS.flatten(0, 1)[:, :, None].repeat(1, 1, 3)  # (K * C, 3, 3)
    before = pred.clone()
    result = CombineMembersd(num_classes=3, combine=combine)({"pred": pred, "image": "kept"})
    assert torch.equal(pred, before)
    assert "pred" not in result
    assert result["image"] == "kept"
    return result


def test_mean_of_members_by_hand() -> None:
    result = combined("mean")
    expected = torch.tensor([[1.1 / 3, 0.0, 0.0], [1.9 / 3, 1.0, 1.4 / 3], [0.0, 0.0, 1.6 / 3]])
    torch.testing.assert_close(result["probabilities"][:, :, 0], expected)
    assert result["mask"][0, :, 0].tolist() == [1, 1, 2]
    a, b = 1.1 / 3, 1.9 / 3
    h0 = -(a * np.log(a) + b * np.log(b)) / np.log(3)
    c, d = 1.4 / 3, 1.6 / 3
    h2 = -(c * np.log(c) + d * np.log(d)) / np.log(3)
    np.testing.assert_allclose(result["entropy"][0, :, 1], [h0, 0.0, h2], atol=1e-6)


def test_majority_of_members_by_hand() -> None:
    result = combined("majority")
    expected = torch.tensor([[2 / 3, 0.0, 0.0], [1 / 3, 1.0, 1 / 3], [0.0, 0.0, 2 / 3]])
    torch.testing.assert_close(result["probabilities"][:, :, 2], expected)
    assert result["mask"][0, :, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("combine", ["mean", "majority"])
def test_members_and_disagreement_by_hand(combine: str) -> None:
    result = combined(combine)
    assert result["members"].dtype == torch.uint8
    assert result["members"][:, :, 0].tolist() == [[0, 1, 2], [0, 1, 2], [1, 1, 1]]
    torch.testing.assert_close(result["disagreement"][0, :, 0], torch.tensor([1 / 3, 0.0, 1 / 3]))
    assert all(result[name].shape == (1, 3, 3) for name in ("mask", "entropy", "disagreement"))


def test_missing_probability_is_background() -> None:
    """Half of the mass lost at the border of an inverted crop counts for the background, not for the largest rest."""
    pred = torch.tensor([0.0, 0.3, 0.2, 0.0] + [0.0] * 4).reshape(8, 1, 1, 1)
    result = CombineMembersd(num_classes=4)({"pred": pred})
    torch.testing.assert_close(result["probabilities"].flatten(), torch.tensor([0.75, 0.15, 0.1, 0.0]))
    assert result["members"].flatten().tolist() == [0, 0]


def test_binary_members() -> None:
    pred = torch.tensor([[0.9, 0.2], [0.4, 0.4], [0.4, 0.1]])[:, :, None]  # (K * 1, 2, 1)
    mean = CombineMembersd(num_classes=1)({"pred": pred})
    assert mean["mask"].flatten().tolist() == [1, 0]
    torch.testing.assert_close(mean["probabilities"].flatten(), torch.tensor([1.7 / 3, 0.7 / 3]))
    majority = CombineMembersd(num_classes=1, combine="majority")({"pred": pred})
    assert majority["mask"].flatten().tolist() == [0, 0]
    torch.testing.assert_close(majority["disagreement"].flatten(), torch.tensor([1 / 3, 0.0]))


def test_unknown_fusion() -> None:
    with pytest.raises(ValueError, match="mean, majority, not 'staple'"):
        CombineMembersd(combine="staple")


# --- degradation ------------------------------------------------------------------------------------------------------


def test_area_average_by_hand() -> None:
    image = torch.arange(16.0).reshape(1, 4, 4)
    out = Degraded("image", factor=2)({"image": image})
    assert torch.equal(out["condition"], torch.tensor([[[2.5, 4.5], [10.5, 12.5]]]))
    assert out["image"] is image
    cube = torch.arange(8.0).reshape(1, 1, 2, 2, 2)
    assert AreaDegradation(2).degrade(cube).item() == 3.5


def test_degradation_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match=r"\(4, 5\) must be divisible by the factor 2"):
        AreaDegradation(2).degrade(torch.zeros(1, 1, 4, 5))
    with pytest.raises(ValueError, match="at least 1, not 0"):
        Degraded("image", factor=0)


def test_random_degradation_draws_then_degrades(generator: torch.Generator) -> None:
    image = torch.rand(1, 8, 8, generator=generator)
    always = RandDegraded("image", factor=2, sigma_range=(0.5, 1.5), prob=1.0).set_random_state(seed=5)
    first = always({"image": image})
    assert 0.5 <= always.sigma <= 1.5
    expected = AreaDegradation(2).degrade(GaussianSmooth(always.sigma)(image)[None])[0]
    torch.testing.assert_close(first["condition"], expected)
    assert torch.equal(first["image"], image)
    again = RandDegraded("image", factor=2, sigma_range=(0.5, 1.5), prob=1.0).set_random_state(seed=5)({"image": image})
    assert torch.equal(again["condition"], first["condition"])
    never = RandDegraded("image", factor=2, prob=0.0)({"image": image})
    assert torch.equal(never["condition"], AreaDegradation(2).degrade(image[None])[0])


def test_members_of_one_channel_with_two_classes() -> None:
    """Eight members, half at .9: no pairs of channels, although each pair would sum to one."""
    pred = torch.tensor([0.9, 0.1] * 4)[:, None, None]
    result = CombineMembersd(num_classes=2, channels=1)({"pred": pred})
    assert result["members"].flatten().tolist() == [1, 0] * 4
    torch.testing.assert_close(result["probabilities"].flatten(), torch.tensor([0.5, 0.5]))
    assert float(result["disagreement"]) == 0.5
    pairs = CombineMembersd(num_classes=2, channels=2)({"pred": pred})
    torch.testing.assert_close(pairs["probabilities"].flatten(), torch.tensor([0.9, 0.1]))


@pytest.mark.parametrize("arguments", [{"num_classes": 2}, {"num_classes": 4, "channels": 1}, {"channels": 2}])
def test_channels_that_do_not_tell_the_members_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="channels"):
        CombineMembersd(**arguments)


@pytest.mark.parametrize(("classes", "pred"), [(4, [0.9, 0.1] * 4), (3, [0.9, 0.1] * 3), (3, [0.2] * 8), (4, [])])
def test_members_of_one_channel_are_not_read_as_classes(classes: int, pred: list[float]) -> None:
    with pytest.raises(ValueError, match="channels"):
        CombineMembersd(num_classes=classes)({"pred": torch.tensor(pred)[:, None, None]})
