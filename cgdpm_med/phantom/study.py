"""A whole study: its frames, its truth, and its files in ACDC's layout."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from cgdpm_med.files import atomic_write
from cgdpm_med.phantom.anatomy import Array, Heart, contours_at, draw_heart, labels_of, pose_at
from cgdpm_med.phantom.painting import Canvas, paint_chest, paint_frame
from cgdpm_med.phantom.spec import GROUPS, PhantomSpec, keyed_rng

MYOCARDIAL_DENSITY = 1.05
"""g/ml."""


@dataclass(frozen=True)
class PhantomTruth:
    """What a perfect segmentation measures: label voxels times the voxel volume.

    The two targets are the closed-form cavity volumes that the voxels sample.
    """

    edv_ml: float
    esv_ml: float
    ef_percent: float
    rv_edv_ml: float
    rv_esv_ml: float
    rv_ef_percent: float
    myo_mass_g: float
    spacing_mm: tuple[float, float, float]
    target_edv_ml: float
    target_esv_ml: float


@dataclass(frozen=True)
class Phantom:
    """A drawn study. Images (int16) and labels (uint8) are arrays of ``spec.shape``, keyed by 1-based frame number.

    ``papillaries`` marks the label-3 voxels that lie in papillary muscle.
    """

    spec: PhantomSpec
    images: dict[int, NDArray[np.int16]]
    labels: dict[int, NDArray[np.uint8]]
    papillaries: dict[int, NDArray[np.bool_]]
    ed_frame: int
    es_frame: int
    truth: PhantomTruth


# --- public functions ----------------------------------------------------------------------------------------------


def _contraction(spec: PhantomSpec, frame: int) -> float:
    """0 at end-diastole, 1 at end-systole; a smooth squeeze followed by a slower release."""
    systole, cycle = spec.es_frame - 1, spec.num_frames
    step = frame - 1
    phase = step / systole if step <= systole else 1 + (step - systole) / (cycle - systole)
    return float(np.sin(np.pi / 2 * phase) ** 2)


def make_phantom(spec: PhantomSpec, *, cine: bool = False) -> Phantom:
    """Draw a study: end-diastole and end-systole, or with ``cine`` every frame of the cycle."""
    canvas, heart = Canvas.of(spec), draw_heart(spec)
    frames = range(1, spec.num_frames + 1) if cine else (1, spec.es_frame)
    chest = paint_chest(spec, canvas, heart)
    images, labels, papillaries = {}, {}, {}
    for frame in frames:
        pose = pose_at(heart, _contraction(spec, frame))
        images[frame] = paint_frame(spec, canvas, heart, pose, chest, frame)
        sections = [contours_at(heart, pose, canvas.x, canvas.y, z) for z in canvas.z]
        labels[frame] = np.stack([labels_of(c) for c in sections], axis=-1)
        papillaries[frame] = np.stack([c.papillary > 0 for c in sections], axis=-1) & (labels[frame] == 3)
    truth = _truth(spec, heart, labels[1], labels[spec.es_frame])
    return Phantom(spec, images, labels, papillaries, 1, spec.es_frame, truth)


def _truth(spec: PhantomSpec, heart: Heart, ed: NDArray[np.uint8], es: NDArray[np.uint8]) -> PhantomTruth:
    voxel_ml = float(np.prod(spec.spacing)) / 1000
    (_, rv_ed, myocardium, lv_ed), (_, rv_es, _, lv_es) = (
        np.bincount(label.ravel(), minlength=4) * voxel_ml for label in (ed, es)
    )
    return PhantomTruth(
        edv_ml=float(lv_ed),
        esv_ml=float(lv_es),
        ef_percent=float(100 * (lv_ed - lv_es) / lv_ed),
        rv_edv_ml=float(rv_ed),
        rv_esv_ml=float(rv_es),
        rv_ef_percent=float(100 * (rv_ed - rv_es) / rv_ed),
        myo_mass_g=float(MYOCARDIAL_DENSITY * myocardium),
        spacing_mm=spec.spacing,
        target_edv_ml=heart.lv_volume[0] / 1000,
        target_esv_ml=heart.lv_volume[1] / 1000,
    )


# patients of ACDC end at 150
FIRST_NUMBER = 901


def write_phantom_patient(
    folder: str | os.PathLike[str], number: int, spec: PhantomSpec, *, cine: bool = False
) -> Path:
    """Write ``patientXXX`` below ``folder`` as ACDC lays it out; returns the patient's folder.

    The files are both key frames, their ``_gt`` labels, ``Info.cfg`` and, with ``cine``, ``patientXXX_4d.nii.gz``.
    Existing files of those names are replaced.
    """
    if not 1 <= number <= 999:
        raise ValueError(f"a phantom patient's number must lie in 1 … 999, got {number}")
    name = f"patient{number:03d}"
    patient = Path(folder) / name
    patient.mkdir(parents=True, exist_ok=True)
    phantom = make_phantom(spec, cine=cine)
    for frame in (phantom.ed_frame, phantom.es_frame):
        stem = f"{name}_frame{frame:02d}"
        _write_nifti(patient / f"{stem}.nii.gz", phantom.images[frame], spec)
        _write_nifti(patient / f"{stem}_gt.nii.gz", phantom.labels[frame], spec)
    if cine:
        stack = np.stack([phantom.images[frame] for frame in sorted(phantom.images)], axis=-1)
        _write_nifti(patient / f"{name}_4d.nii.gz", stack, spec)
    _replace_file(patient / "Info.cfg", _info(phantom).encode())
    return patient


def write_phantom_dataset(
    folder: str | os.PathLike[str],
    patients: int | Sequence[int] = 5,
    seed: int = 0,
    cine: bool = False,
    **spec: Any,
) -> list[Path]:
    """Write several patients, cycling through :data:`GROUPS`, and return their folders.

    Args:
        patients: how many (numbered from 901, where no patient of ACDC is, so that the committed split never takes
            them for real ones), or their numbers. A patient depends on its number and ``seed`` alone.
        spec: fields of :class:`PhantomSpec` to fix; otherwise shape and spacing vary as in ACDC.
    """
    numbers: Iterable[int] = range(FIRST_NUMBER, FIRST_NUMBER + patients) if isinstance(patients, int) else patients
    return [write_phantom_patient(folder, number, _varied_spec(seed, number, spec), cine=cine) for number in numbers]


def _varied_spec(seed: int, number: int, fixed: dict[str, Any]) -> PhantomSpec:
    rng = keyed_rng(seed, "patient", number)
    grids = (((216, 256, 10), (1.5, 10.0)), ((208, 248, 12), (1.6, 9.0)), ((232, 256, 13), (1.4, 8.0)))
    shape, (in_plane, between) = grids[int(rng.integers(len(grids)))]
    varied = PhantomSpec(
        seed=int(rng.integers(2**31)),
        group=GROUPS[(number - 1) % len(GROUPS)],
        shape=shape,
        spacing=(in_plane, in_plane, between),
        noise=round(float(rng.uniform(0.015, 0.04)), 4),
    )
    return replace(varied, **fixed)


# --- files ---------------------------------------------------------------------------------------------------------


def _affine(spec: PhantomSpec) -> Array:
    """Voxel to world, in mm; the world's origin lies at the middle of the volume.

    The drawing is ACDC's view: the first axis runs to the patient's left, the second to the back; turned, the slices
    run to the left and front, as towards an apex.
    """
    turn = np.diag([-1.0, -1.0, 1.0])
    if spec.affine == "oblique":
        degrees = keyed_rng(spec.seed, "affine").uniform((-35, -30, 15), (-20, -15, 40))
        turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ turn
    affine = np.eye(4)
    affine[:3, :3] = turn * np.asarray(spec.spacing)
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(spec.shape) - 1) / 2)
    return affine


def _write_nifti(path: Path, voxels: NDArray[Any], spec: PhantomSpec) -> None:
    header = nib.Nifti1Header()
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    if spec.affine == "acdc":
        header.set_sform(np.diag([-1.0, -1.0, 1.0, 1.0]), code=2)
        header["quatern_d"] = 1.0
        header["pixdim"][1:4] = spec.spacing
    else:
        header["pixdim"][1:4] = spec.spacing
        header.set_xyzt_units("mm", "sec")
        header.set_sform(_affine(spec), code=1)
        header.set_qform(_affine(spec), code=1)
    content = nib.Nifti1Image(voxels, None, header).to_bytes()
    _replace_file(path, gzip.compress(content, mtime=0))


def _replace_file(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)


def _info(phantom: Phantom) -> str:
    spec = phantom.spec
    rng = keyed_rng(spec.seed, "body")
    height, weight = round(rng.uniform(158, 188)), round(rng.uniform(58, 96))
    return (
        f"ED: {phantom.ed_frame}\nES: {phantom.es_frame}\nGroup: {spec.group}\nHeight: {height:.1f}\n"
        f"NbFrame: {spec.num_frames}\nWeight: {weight:.1f}\n"
    )
