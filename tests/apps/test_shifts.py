"""Shifted inputs: every shift against values by hand, places in the patient kept, and the program's verdicts."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import load_script
from scipy.spatial.transform import Rotation
from segmentations import segmentation_of
from stubs import Stub

from cgdpm_med import InputError, Segmenter, Volume, read_labels, read_volume
from cgdpm_med import write_phantom_dataset as write_phantoms
from cgdpm_med.evaluation import shifts
from cgdpm_med.evaluation.shifts import SHIFTS, Pair
from cgdpm_med.inference.segmenter import Segmentation
from cgdpm_med.volumes import directions_known, write_on_grid

GEOMETRIC = ("half resolution", "double resolution", "every second slice", "quarter turn")
FIELDS = ("half field, centred", "half field, in a corner")
INTENSITY = ("intensity 3x + 200", "gamma 0.5", "gamma 2", "Rician noise 5 %", "Rician noise 10 %")


def pair_of(folder: Path, image: np.ndarray, label: np.ndarray, affine: np.ndarray | None = None) -> Pair:
    """Two volumes read from files with this affine in sform and qform."""
    affine = np.diag([1.5, 1.25, 8.0, 1.0]) if affine is None else affine
    for name, data in (("image", image.astype(np.float32)), ("label", label.astype(np.uint8))):
        file = nib.Nifti1Image(data, affine)
        file.set_qform(affine, 1)
        file.set_sform(affine, 1)
        file.header["xyzt_units"] = 2
        nib.save(file, folder / f"{name}.nii")
    return read_volume(folder / "image.nii"), read_labels(folder / "label.nii")


def oblique() -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (20, -35, 50), degrees=True).as_matrix() * (1.5, 1.25, 8.0)
    affine[:3, 3] = (-30, 12, 55)
    return affine


def world(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """World coordinates (3, X, Y, Z) of all voxel centres."""
    index = np.stack([*np.indices(shape), np.ones(shape)])
    return np.einsum("ij,jxyz->ixyz", affine[:3], index)


# --- places -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["none", *GEOMETRIC, *FIELDS])
def test_voxels_keep_their_places_in_the_patient(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    shape = (9, 12, 5)
    label = np.zeros(shape)
    label[3:6, 5:8, 1:3] = 2
    for coordinate in range(3):
        # linear interpolation and means keep a linear function, such as a world coordinate, exactly
        image, truth = pair_of(tmp_path, world(oblique(), shape)[coordinate], label, oblique())
        shown, mask = SHIFTS[name](image, truth, rng)
        assert shown.data.shape == mask.data.shape == shown.grid.spatial_shape == mask.grid.spatial_shape
        assert shown.data.dtype == np.float32
        assert mask.data.dtype == np.uint8
        here = world(shown.grid.affine, shown.data.shape)[coordinate]
        inside = np.s_[1:-1, 1:-1] if name == "double resolution" else np.s_[:]  # outermost pixels have no neighbour
        np.testing.assert_allclose(shown.data[inside], here[inside], atol=2e-5)
        assert np.allclose(shown.grid.affine, mask.grid.affine)
        assert np.allclose(np.linalg.norm(shown.grid.affine[:3, :3], axis=0), shown.grid.spacing)


@pytest.mark.parametrize("name", [*GEOMETRIC, *FIELDS])
def test_a_shifted_volume_reads_back_with_its_grid(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    data = rng.normal(size=(8, 10, 4))
    shown, _ = SHIFTS[name](*pair_of(tmp_path, data, data > 1, oblique()), rng)
    write_on_grid(shown.data, shown.grid, tmp_path / "again.nii.gz", dtype=np.float32)
    again = read_volume(tmp_path / "again.nii.gz")
    assert again.grid.note is None
    np.testing.assert_allclose(again.grid.affine, shown.grid.affine, atol=1e-5)
    assert directions_known(again.grid)
    assert directions_known(shown.grid)


@pytest.mark.parametrize("name", [*GEOMETRIC, *FIELDS])
def test_a_header_without_directions_does_not_learn_them(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    write_phantoms(tmp_path, [1], shape=(24, 20, 4), spacing=(6.0, 6.0, 22.0), num_frames=6)
    image = read_volume(tmp_path / "patient001" / "patient001_frame01.nii.gz")
    label = read_labels(tmp_path / "patient001" / "patient001_frame01_gt.nii.gz")
    assert not directions_known(image.grid)  # as in ACDC's files
    assert not directions_known(SHIFTS[name](image, label, rng)[0].grid)


# --- resolution -------------------------------------------------------------------------------------------------------


def test_half_resolution_by_hand(tmp_path: Path, rng: np.random.Generator) -> None:
    image = np.arange(20.0).reshape(5, 4, 1)  # the last row is odd
    label = np.array([[1, 1, 0, 2], [1, 0, 2, 2], [3, 3, 0, 0], [0, 0, 0, 3], [3, 3, 3, 3]]).reshape(5, 4, 1)
    coarse, mask = shifts.half_resolution(*pair_of(tmp_path, image, label), rng)
    assert coarse.data[..., 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert mask.data[..., 0].tolist() == [[1, 2], [0, 0]]  # three of four twice; two of each: the first; three of four
    assert coarse.grid.spacing == pytest.approx((3.0, 2.5, 8.0))


def test_double_resolution_by_hand(tmp_path: Path, rng: np.random.Generator) -> None:
    image, label = pair_of(tmp_path, np.array([[[0.0]], [[4.0]]]), np.array([[[0]], [[3]]]))
    fine, mask = shifts.double_resolution(image, label, rng)
    assert fine.data[..., 0].tolist() == [[0, 0], [1, 1], [3, 3], [4, 4]]
    assert mask.data[..., 0].tolist() == [[0, 0], [0, 0], [3, 3], [3, 3]]
    for before, after in ((label, mask),):
        millilitres = [np.count_nonzero(v.data == 3) * v.grid.voxel_volume for v in (before, after)]
        assert millilitres[0] == pytest.approx(millilitres[1])


def test_every_second_slice_by_hand(tmp_path: Path, rng: np.random.Generator) -> None:
    slices = np.arange(5.0).reshape(1, 1, 5)
    thick, mask = shifts.every_second_slice(*pair_of(tmp_path, slices, slices > 2), rng)
    assert thick.data.ravel().tolist() == [0, 2, 4]
    assert mask.data.ravel().tolist() == [0, 0, 1]
    assert thick.grid.spacing == pytest.approx((1.5, 1.25, 16.0))


# --- intensities ------------------------------------------------------------------------------------------------------


def test_intensities_by_hand(tmp_path: Path, rng: np.random.Generator) -> None:
    image, label = pair_of(tmp_path, np.array([10.0, 11.0, 14.0]).reshape(3, 1, 1), np.array([[[0]], [[1]], [[2]]]))
    for name, expected in (
        ("none", [10, 11, 14]),
        ("intensity 3x + 200", [230, 233, 242]),
        ("gamma 0.5", [10, 12, 14]),  # (1 / 4) ** 0.5 of 4
        ("gamma 2", [10, 10.25, 14]),
    ):
        shown, mask = SHIFTS[name](image, label, rng)
        np.testing.assert_allclose(shown.data.ravel(), expected, rtol=1e-6)
        assert mask is label
        assert shown.grid is image.grid
        assert image.data.ravel().tolist() == [10, 11, 14]  # the input stays


def test_rician_noise_has_its_moments(tmp_path: Path, rng: np.random.Generator) -> None:
    data = np.zeros((64, 64, 4))
    data[:32] = 200.0
    image, label = pair_of(tmp_path, data, data > 0)
    noisy, _ = SHIFTS["Rician noise 5 %"](image, label, rng)
    sigma, n = 10.0, data.size // 2  # 5 % of the 99th percentile
    air, tissue = noisy.data[32:].astype(np.float64), noisy.data[:32].astype(np.float64)
    # without signal a Rayleigh distribution; with 20 sigma nearly a normal one around sqrt(200^2 + sigma^2)
    assert air.mean() == pytest.approx(sigma * math.sqrt(math.pi / 2), abs=4 * 0.655 * sigma / math.sqrt(n))
    assert (air**2).mean() == pytest.approx(2 * sigma**2, abs=4 * 2 * sigma**2 / math.sqrt(n))
    assert tissue.mean() == pytest.approx(math.hypot(200, sigma), abs=4 * sigma / math.sqrt(n))
    assert tissue.std() == pytest.approx(sigma, rel=4 / math.sqrt(2 * n))
    again, _ = SHIFTS["Rician noise 5 %"](image, label, np.random.default_rng(0))
    assert np.array_equal(noisy.data, again.data)


# --- field of view ----------------------------------------------------------------------------------------------------


def test_half_fields_by_hand(tmp_path: Path, rng: np.random.Generator) -> None:
    data = np.arange(20.0 * 9).reshape(20, 9, 1)
    label = np.zeros((20, 9, 1))
    label[8:12, 6:8] = 1
    image, truth = pair_of(tmp_path, data, label)
    centred, mask = SHIFTS["half field, centred"](image, truth, rng)
    # rows 5 to 14 around 8 to 11; columns 4 to 8 of nine, where the image ends
    assert np.array_equal(centred.data, data[5:15, 4:9])
    assert np.array_equal(mask.data, label[5:15, 4:9])
    corner, mask = SHIFTS["half field, in a corner"](image, truth, rng)
    assert np.array_equal(corner.data, data[6:16, 4:9])
    assert np.count_nonzero(mask.data) == 8


def test_a_quarter_turn_by_hand(tmp_path: Path, rng: np.random.Generator) -> None:
    image, label = pair_of(tmp_path, np.array([[1.0, 2, 3], [4, 5, 6]])[..., None], np.array([[[0], [0], [1]]] * 2))
    turned, mask = shifts.quarter_turn(image, label, rng)
    assert turned.data[..., 0].tolist() == [[3, 6], [2, 5], [1, 4]]
    assert mask.data[..., 0].tolist() == [[1, 1], [0, 0], [0, 0]]
    assert turned.grid.spacing == pytest.approx((1.25, 1.5, 8.0))


# --- the program ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return load_script("shifted_inputs")


def volume_row(dice: float, entropy: float = 0.1, review: bool = False, **more: Any) -> dict[str, Any]:
    scores = {"dice": dice, "rv": dice, "myo": dice, "lv": dice, "entropy": entropy, "predicted_dice": 0.9}
    return {**scores, "patient": "a", "review": review, **more}


def test_a_summary_counts_patients_and_collapses(program: ModuleType) -> None:
    volumes = [
        volume_row(0.9),
        volume_row(0.6),  # collapsed, and the patient passes
        volume_row(0.5, entropy=0.3, patient="b", review=True, predicted_dice=0.4),
        volume_row(0.8, patient="b", review=True),
    ]
    row = program.summary({"volumes": volumes})
    assert (row["dice"], row["lowest"], row["entropy"]) == pytest.approx((0.7, 0.5, 0.15))
    assert (row["predicted_dice"], row["review"]) == pytest.approx((0.775, 0.5))
    assert (row["collapsed"], row["unnoticed"]) == (2, 1)


def test_what_notices_a_fall(program: ModuleType) -> None:
    plain = program.summary({"volumes": [volume_row(0.9)]})

    def verdict(**of_volume: Any) -> str:
        word: str = program.noticed(program.summary({"volumes": [volume_row(**of_volume)]}), plain)
        return word

    assert verdict(dice=0.89, entropy=0.5) == "–"
    assert verdict(dice=0.7) == "**no**"
    assert verdict(dice=0.7, entropy=0.2) == "entropy"
    assert verdict(dice=0.7, predicted_dice=0.8, review=True) == "predicted Dice, review"
    assert verdict(dice=0.7, predicted_dice=None, entropy=0.05) == "**no**"


class Resampler(Stub):
    """Looks the reference up where the header says that the voxels lie; the second member has no right ventricle."""

    def __call__(self, volume: Volume, key: str, progress: Callable[[float], None] | None = None) -> Segmentation:
        self.seen.append(key)
        truth = read_labels(volume.path.with_name(volume.path.name.replace(".nii", "_gt.nii")))
        there = world(np.linalg.inv(truth.grid.affine) @ volume.grid.affine, volume.data.shape)
        i, j, k = (
            np.clip(np.rint(c - 1e-6), 0, n - 1).astype(int) for c, n in zip(there, truth.data.shape, strict=True)
        )
        labels = truth.data[i, j, k]
        return segmentation_of(np.stack([labels, np.where(labels == 1, 0, labels), labels]), volume, key)


def test_one_command_scores_every_shift_where_its_voxels_lie(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_phantoms(tmp_path / "data", [1], seed=1, shape=(64, 56, 4), spacing=(2.8, 2.8, 22.0), num_frames=6)
    stub = Resampler(members=3)
    given: dict[str, Any] = {}

    def from_bundle(bundle: str, **overrides: Any) -> Resampler:
        given.update(overrides)
        return stub

    monkeypatch.setattr(Segmenter, "from_bundle", from_bundle)
    out = tmp_path / "out"
    command = ["shifted_inputs.py", "--dataset-dir", str(tmp_path / "data"), "--output", str(out), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*command, "--members", "3"])
    program.main()
    assert {name: given[name] for name in given if name != "device"} == {"members": 3}
    with (out / "shifted_inputs.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["shift"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(SHIFTS)
    for name, row in rows.items():
        if name == "half resolution":  # the resampler takes a corner of each block, the reference the majority
            assert 0.85 < float(row["dice"]) < 1
        else:
            assert float(row["dice"]) == 1, name
        # three pairs of members: one agrees, two lack the right ventricle in one of both
        assert float(row["predicted_dice"]) == pytest.approx((1 / 3 + 1 + 1) / 3, abs=1e-5)
        assert float(row["review"]) == 1  # for the right ventricle's predicted Dice of a third
    with (out / "volumes.csv").open(encoding="utf-8", newline="") as file:
        volumes = list(csv.DictReader(file))
    assert len(volumes) == 2 * len(SHIFTS)
    assert "predicted Dice of RV is 0.333" in volumes[0]["reasons"]
    table = (out / "shifted_inputs.md").read_text(encoding="utf-8")
    assert "| none | 100.00 |  | 100.00 | 100.00 | 100.00 | 100.00 |" in table
    assert "1 validation patients" in table
    assert (out / "shifted_inputs.png").read_bytes()[:4] == b"\x89PNG"

    calls = len(stub.seen)
    program.main()
    assert len(stub.seen) == calls  # every row was kept
    monkeypatch.setattr(sys, "argv", [*command, "--section", "test"])
    with pytest.raises(InputError, match="no patient here belongs to section 'test'"):
        program.main()
