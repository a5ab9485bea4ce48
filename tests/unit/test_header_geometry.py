"""Headers that contradict themselves, as scanners, converters and other tools leave them: right, or one error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import shared_path
from directed import SEGMENTER
from nifti_files import ACDC_SFORM, LABELS, OBLIQUE, RAMP, nifti, only_error, raw_header, save

from cgdpm_med.files import InputError
from cgdpm_med.inference.segmenter import Segmentation
from cgdpm_med.phantom import PhantomSpec, make_phantom
from cgdpm_med.volumes import (
    Grid,
    directions_known,
    parse_spacing,
    read_labels,
    read_volume,
    refined_grid,
    write_on_grid,
)

pytestmark = pytest.mark.usefixtures("quiet_headers")

DIRECTIONS = OBLIQUE[:3, :3] / (1.25, 1.4, 8.0)


def oblique(*lengths: float) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = DIRECTIONS * lengths, (7, -8, 9)
    return affine


def quaternion(affine: np.ndarray, code: int = 1) -> dict[str, Any]:
    """The fields that make a qform of these directions; pixdim[0] is left at 0, which stands for 1."""
    header = nib.Nifti1Header()
    header.set_qform(affine, code)
    assert header["pixdim"][0] == 1
    return {name: header[name] for name in header if name.startswith(("qoffset", "quatern", "qform"))}


def grid_of(folder: Path, content: bytes, **options: Any) -> Grid:
    return read_volume(save(folder / "v.nii", content), **options).grid


TURNED = OBLIQUE @ np.diag([-1.0, -1, 1, 1])  # right-handed, as a quaternion without qfac is
Q = quaternion(TURNED)


# --- lengths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pixdim",
    [(1.25, 1.4, 6.4), (1.25, 1.4, 1.0), (1.25, 1.4, 0.0), (1.25, 1.4, np.nan), (1.25, 1.4, -6.0), (2.5, 1.4, 8.0)],
    ids=str,
)
def test_a_full_affine_keeps_its_directions_in_a_conflict_of_lengths(tmp_path: Path, pixdim: Any) -> None:
    grid = grid_of(tmp_path, nifti(sform=OBLIQUE, pixdim=pixdim))
    assert grid.spacing == pytest.approx((1.25, 1.4, 8.0), rel=1e-6)
    np.testing.assert_allclose(grid.affine, OBLIQUE, atol=1e-5)
    assert directions_known(grid)
    assert grid.note is not None
    assert "--spacing pixdim" in grid.note


def test_a_unit_sform_gives_what_directions_it_has(tmp_path: Path) -> None:
    along = grid_of(tmp_path, nifti(sform=ACDC_SFORM, sform_code=2))
    turned = grid_of(tmp_path, nifti(sform=oblique(1, 1, 1), sform_code=2))
    assert along.spacing == turned.spacing == pytest.approx((1.25, 1.4, 8.0))
    assert (directions_known(along), directions_known(turned)) == (False, True)
    np.testing.assert_allclose(turned.affine, oblique(1.25, 1.4, 8), atol=1e-5)


NO_SIZE: dict[str, tuple[bytes, str]] = {
    "unit sform, no thickness": (nifti(sform=ACDC_SFORM, pixdim=(1.5, 1.5, 0.0)), "no voxel spacing"),
    "unit sform, NaN": (nifti(sform=ACDC_SFORM, pixdim=(1.5, np.nan, 8.0)), "no voxel spacing"),
    "unit sform, nothing": (nifti(sform=ACDC_SFORM, pixdim=(0.0, 0.0, 0.0)), "no voxel spacing"),
    "unit oblique sform, infinite": (nifti(sform=oblique(1, 1, 1), pixdim=(1.5, 1.5, np.inf)), "no voxel spacing"),
    "no form, no thickness": (nifti(pixdim=(1.5, 1.5, 0.0)), "no voxel spacing"),
    "qform, no thickness": (nifti(pixdim=(1.5, 1.5, 0.0), **Q), "no voxel spacing"),
    "slices of length 1": (nifti(sform=oblique(1.25, 1.4, 1)), "some axes only"),
    "slices of length 1, pixdim 0": (nifti(sform=oblique(1.25, 1.4, 1), pixdim=(1.25, 1.4, 0)), "some axes only"),
    "unit in the plane": (nifti(sform=oblique(1, 1, 8)), "some axes only"),
    "template": (nifti(sform=oblique(1.5, 1.7, 9.6), sform_code=4), "template"),
    "template, one length": (nifti(sform=oblique(1.25, 1.4, 8), sform_code=3, pixdim=(1.25, 1.4, 6)), "template"),
    "affine in metres": (nifti(sform=oblique(0.00125, 0.0014, 0.008)), "two units"),
    "pixdim in metres": (nifti(sform=OBLIQUE, pixdim=(0.00125, 0.0014, 0.008), xyzt_units=1), "two units"),
    "millimetres called metres": (nifti(sform=OBLIQUE, xyzt_units=1), "its unit is metres"),
    "immense": (nifti(sform=oblique(1.25, 1.4, 800), pixdim=(1.25, 1.4, 800.0)), "implausible"),
}


@pytest.mark.parametrize("case", NO_SIZE)
def test_what_may_be_either_is_one_error_and_its_remedy_helps(case: str, tmp_path: Path) -> None:
    content, complaint = NO_SIZE[case]
    path = save(tmp_path / "v.nii", content)
    text = only_error(lambda: read_volume(path), path)
    assert complaint in text
    assert "--spacing 1.5,1.5,8" in text
    grid = read_volume(path, spacing=parse_spacing("1.5,1.5,8")).grid
    assert grid.spacing == (1.5, 1.5, 8.0)
    np.testing.assert_allclose(np.linalg.norm(grid.affine[:3, :3], axis=0), (1.5, 1.5, 8), rtol=1e-6)
    assert directions_known(grid) == ("oblique" in case or ("no form" not in case and "unit sform" not in case))


@pytest.mark.parametrize("sform", [np.zeros((4, 4)), OBLIQUE * np.nan], ids=["zeros", "NaN"])
def test_without_an_affine_of_use_the_remedy_reads_lengths_alone(tmp_path: Path, sform: np.ndarray) -> None:
    path = save(tmp_path / "v.nii", nifti(sform=sform))
    assert "--spacing pixdim" in only_error(lambda: read_volume(path), path)
    grid = read_volume(path, spacing="pixdim").grid
    assert grid.spacing == pytest.approx((1.25, 1.4, 8.0))
    assert not directions_known(grid)
    with pytest.raises(InputError):
        read_volume(path, spacing="affine")


@pytest.mark.parametrize(
    ("units", "sform", "pixdim"),
    [
        (3, oblique(1250, 1400, 8000), (1250.0, 1400.0, 6400.0)),
        (3, oblique(1, 1, 1), (1250.0, 1400.0, 8000.0)),
        (1, oblique(0.00125, 0.0014, 0.008), (0.00125, 0.0014, 0.001)),
    ],
)
def test_the_rule_holds_in_other_units(tmp_path: Path, units: int, sform: np.ndarray, pixdim: Any) -> None:
    grid = grid_of(tmp_path, nifti(sform=sform, pixdim=pixdim, xyzt_units=units))
    assert grid.spacing == pytest.approx((1.25, 1.4, 8.0), rel=1e-5)
    assert directions_known(grid)


def test_a_spacing_by_hand_keeps_directions_and_is_noted(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, nifti(sform=OBLIQUE), spacing=(1.25, 1.4, 10))
    np.testing.assert_allclose(grid.affine[:3, :3], DIRECTIONS * (1.25, 1.4, 10), atol=1e-5)
    assert directions_known(grid)
    assert grid.note is not None
    assert "10 mm was given" in grid.note
    assert grid_of(tmp_path, nifti(sform=OBLIQUE), spacing=(1.25, 1.4, 8)).note is None


def test_a_header_of_ones_is_remarked_upon(tmp_path: Path) -> None:
    for content in (nifti(sform=np.eye(4), pixdim=(1.0, 1.0, 1.0)), nifti(pixdim=(1.0, 1.0, 1.0))):
        assert "never filled in" in str(grid_of(tmp_path, content).note)


# --- sform and qform --------------------------------------------------------------------------------------------------


def test_a_template_yields_to_the_scanners_qform(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, nifti(sform=np.diag([-1.5, 1.7, 9.6, 1]), sform_code=4, **Q))
    assert grid.spacing == pytest.approx((1.25, 1.4, 8.0))
    np.testing.assert_allclose(grid.affine, TURNED, atol=1e-5)
    assert "template" in str(grid.note)
    same = grid_of(tmp_path, nifti(sform=TURNED, sform_code=4, **Q))
    assert same.note is None


@pytest.mark.parametrize("sform", [np.zeros((4, 4)), TURNED * np.nan, np.diag([1.0, 1, 0, 1])], ids=str)
def test_a_qform_stands_in_for_an_sform_of_no_use(tmp_path: Path, sform: np.ndarray) -> None:
    grid = grid_of(tmp_path, nifti(sform=sform, **Q))
    np.testing.assert_allclose(grid.affine, TURNED, atol=1e-5)
    assert directions_known(grid)
    assert "qform is taken" in str(grid.note)


def test_a_qform_knows_more_than_a_nominal_sform(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, nifti(sform=ACDC_SFORM, sform_code=2, **Q))
    np.testing.assert_allclose(grid.affine, TURNED, atol=1e-5)
    assert directions_known(grid)
    nominal = grid_of(tmp_path, nifti(sform=ACDC_SFORM, sform_code=2, qform_code=1))  # it knows no more
    assert not directions_known(nominal)


def test_the_sform_is_taken_where_both_could_be(tmp_path: Path) -> None:
    apart = grid_of(tmp_path, nifti(sform=OBLIQUE, **Q))
    np.testing.assert_allclose(apart.affine, OBLIQUE, atol=1e-5)
    assert "180 degrees" in str(apart.note)
    assert grid_of(tmp_path, nifti(sform=TURNED, **Q)).note is None


def test_masks_lie_on_the_grid_of_their_image_whatever_was_settled(tmp_path: Path) -> None:
    for number, content in enumerate(
        (
            nifti(sform=OBLIQUE, pixdim=(1.25, 1.4, 6.0)),
            nifti(sform=ACDC_SFORM, **Q),
            nifti(sform=np.diag([-1.5, 1.7, 9.6, 1]), sform_code=4, **Q),
        )
    ):
        image = read_volume(save(tmp_path / f"{number}.nii", content))
        write_on_grid(LABELS, image.grid, tmp_path / f"{number}_mask.nii")
        read_labels(tmp_path / f"{number}_mask.nii", like=image.grid)
        fine = refined_grid(image.grid, (2, 2, 1))
        assert fine.voxel_volume == pytest.approx(image.grid.voxel_volume / 4, rel=1e-5)
        assert directions_known(fine)


# --- trailing axes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ones", [1, 2, 4])
@pytest.mark.parametrize("frames", [None, 3])
def test_trailing_axes_of_one_are_read_and_written_again(tmp_path: Path, ones: int, frames: int | None) -> None:
    data = RAMP if frames is None else np.stack([RAMP + k for k in range(frames)], axis=-1)
    ones = min(ones, 7 - data.ndim)
    path = save(tmp_path / "v.nii.gz", nifti(data.reshape(data.shape + (1,) * ones), sform=OBLIQUE))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.data, data)
    mask = (data % 4).astype(np.uint8)
    write_on_grid(mask, volume.grid, tmp_path / "mask.nii.gz")
    assert raw_header(tmp_path / "mask.nii.gz")["dim"].tolist() == raw_header(path)["dim"].tolist()
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.nii.gz", like=volume.grid).data, mask)
    assert volume.grid.frame().shape == (4, 5, 3)


# --- what the user may say --------------------------------------------------------------------------------------------


def test_spacing_as_the_command_takes_it() -> None:
    assert parse_spacing("1.5,1.5, 8") == (1.5, 1.5, 8.0)
    assert (parse_spacing("pixdim"), parse_spacing("affine"), parse_spacing(None)) == ("pixdim", "affine", "auto")


@pytest.mark.parametrize(
    "text", ["", "1.5", "1.5,1.5", "1,2,3,4", "1.5x1.5x8", "1.5,1.5,-8", "1.5,1.5,nan", "0,1,1", "header"]
)
def test_any_other_spacing_is_one_error(text: str) -> None:
    with pytest.raises(InputError, match=r"1\.5,1\.5,8") as caught:
        parse_spacing(text)
    assert "\n" not in str(caught.value)


# --- one heart in every form ------------------------------------------------------------------------------------------

PLAIN = np.diag([-2.0, -2.0, 20.0, 1.0])
UPRIGHT = quaternion(PLAIN)
FORMS: dict[str, dict[str, Any]] = {
    "unit sform": {"sform": ACDC_SFORM, "sform_code": 2, "pixdim": (2.0, 2.0, 20.0)},
    "thickness in pixdim": {"sform": PLAIN, "pixdim": (2.0, 2.0, 16.0)},
    "1 in pixdim": {"sform": PLAIN, "pixdim": (2.0, 2.0, 1.0)},
    "0 in pixdim": {"sform": PLAIN, "pixdim": (2.0, 2.0, 0.0)},
    "qform alone": {"pixdim": (2.0, 2.0, 20.0), **UPRIGHT},
    "no form": {"pixdim": (2.0, 2.0, 20.0)},
    "negative pixdim": {"sform": ACDC_SFORM, "pixdim": (-2.0, 2.0, 20.0)},
    "zeros in the sform": {"sform": np.zeros((4, 4)), "pixdim": (2.0, 2.0, 20.0), **UPRIGHT},
    "template": {"sform": np.diag([2.5, 2.5, 24, 1]), "sform_code": 4, "pixdim": (2.0, 2.0, 20.0), **UPRIGHT},
    "micrometres": {"sform": np.diag([-2e3, -2e3, 2e4, 1]), "pixdim": (2e3, 2e3, 2e4), "xyzt_units": 3},
}


def test_one_heart_has_one_mask_and_one_volume(tmp_path: Path) -> None:
    """The bundle's transforms around a predictor that knows left from right, top from bottom and base from apex."""
    heart = make_phantom(PhantomSpec.small(seed=1, spacing=(2.0, 2.0, 20.0), affine="plain")).images[1]

    def segmented(data: np.ndarray, **header: Any) -> Segmentation:
        return SEGMENTER(read_volume(save(tmp_path / "v.nii", nifti(data.astype(np.float32), **header))), "v")

    plain = segmented(heart, sform=PLAIN, pixdim=(2.0, 2.0, 20.0))
    assert all(plain.millilitres(label) > 10 for label in (1, 2, 3))
    for name, header in FORMS.items():
        found = segmented(heart, **header)
        np.testing.assert_array_equal(found.mask, plain.mask, err_msg=name)
        assert found.millilitres(3) == pytest.approx(plain.millilitres(3), rel=1e-4), name
    found = segmented(heart[..., None, None], sform=PLAIN, pixdim=(2.0, 2.0, 20.0))
    np.testing.assert_array_equal(found.mask, plain.mask)


# --- real files -------------------------------------------------------------------------------------------------------


def test_files_of_acdc_have_lengths_of_pixdim_and_no_directions() -> None:
    for number in (1, 50, 100):
        folder = shared_path("data", "acdc", "training", f"patient{number:03d}")
        path = sorted(folder.glob("*_frame01.nii.gz"))[0]
        grid = read_volume(path).grid
        assert grid.spacing == pytest.approx(raw_header(path)["pixdim"][1:4].tolist())
        assert not directions_known(grid)
