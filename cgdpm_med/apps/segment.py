"""From a cardiac MRI volume to an ensemble of masks with its uncertainty, on the input's own grid."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgdpm_med.apps.bundles import bundle_path
from cgdpm_med.data import acdc_patient_folders, read_acdc_patient
from cgdpm_med.predictor import DiffusionPredictor
from cgdpm_med.transforms import case_name
from cgdpm_med.volumes import Grid, InputError, Volume, atomic_write, read_volume, write_on_grid

OUTPUTS = ("mask", "probabilities", "entropy", "disagreement", "members")


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Ensemble of masks for one volume, on its native grid.

    Attributes:
        key: case key; the noise of every member depends on it and the seed alone.
        mask: (X, Y, Z) uint8, the fused labels.
        probabilities: (C, X, Y, Z) float32, fused; they sum to one.
        entropy: (X, Y, Z) float32 in [0, 1], of the fused probabilities.
        disagreement: (X, Y, Z) float32, fraction of members outside the majority.
        members: (K, X, Y, Z) uint8, each member's own labels.
        volume: the input.
    """

    key: str
    mask: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    entropy: NDArray[np.float32]
    disagreement: NDArray[np.float32]
    members: NDArray[np.uint8]
    volume: Volume

    @property
    def grid(self) -> Grid:
        """Of the input and of every output."""
        return self.volume.grid

    def millilitres(self, label: int) -> float:
        """Volume of one label in the fused mask."""
        return float(np.count_nonzero(self.mask == label)) * self.grid.voxel_volume / 1000


class Segmenter:
    """Preprocess, sample, invert, fuse: what bundles and the command line share.

    Args:
        preprocessing: invertible MONAI transform over ``{"image": Volume, "key": str}``.
        inferer: ``inferer(image (1, 1, X, Y, Z), predictor) -> members (1, K * C, X, Y, Z)``.
        predictor: the network with its sampling settings.
        postprocessing: transform over ``{"image", "pred"}`` that brings members to the native grid and fuses them.
        device: where the network runs.
    """

    def __init__(
        self,
        preprocessing: Callable[[dict[str, Any]], Any],
        inferer: Callable[..., Tensor],
        predictor: DiffusionPredictor,
        postprocessing: Callable[[dict[str, Any]], Any],
        device: torch.device | str = "cpu",
    ) -> None:
        self.preprocessing, self.inferer, self.postprocessing = preprocessing, inferer, postprocessing
        self.device = torch.device(device)
        self.predictor = predictor.to(self.device)

    @classmethod
    def from_bundle(cls, bundle: str | Path = "acdc_segmentation", **overrides: Any) -> Segmenter:
        """Build it from a bundle's inference configuration.

        Args:
            bundle: name of a bundle, or its folder.
            overrides: keys of ``configs/inference.yaml``, for example ``members=16, steps=5, weights="model.pt"``.

        Raises:
            InputError: for an unknown bundle or key, or weights that do not fit.
        """
        from monai.bundle import ConfigParser

        root = Path(bundle) if Path(bundle).is_dir() else bundle_path(str(bundle))
        parser = ConfigParser()
        parser.read_config(str(root / "configs" / "inference.yaml"))
        parser["bundle_root"] = str(root)
        for name, value in overrides.items():
            if name not in parser:
                raise InputError(
                    f"the configuration has no key {name!r}",
                    path=root / "configs" / "inference.yaml",
                    remedy=f"Keys: {', '.join(key for key in parser.get() if not key.startswith('_'))}",
                )
            parser[name] = value
        return parser.get_parsed_content("segmenter")

    @torch.inference_mode()
    def __call__(self, volume: Volume, key: str | None = None) -> Segmentation:
        """Segment one three-dimensional volume.

        Args:
            volume: as read by :func:`~cgdpm_med.read_volume`.
            key: of the noise; by default the file name without extensions.
        """
        key = case_name(volume.path) if key is None else key
        data = dict(self.preprocessing({"image": volume, "key": key}))
        image = data["image"]
        data["pred"] = self.inferer(image[None].to(self.device), self.predictor)[0].cpu()
        data = self.postprocessing(data)
        if tuple(data["mask"].shape[1:]) != volume.data.shape:
            raise RuntimeError(f"postprocessing left {tuple(data['mask'].shape[1:])} voxels of {volume.data.shape}")

        def array(name: str) -> NDArray[Any]:
            return torch.as_tensor(data[name]).cpu().numpy()

        return Segmentation(
            key=key,
            mask=array("mask")[0],
            probabilities=array("probabilities"),
            entropy=array("entropy")[0],
            disagreement=array("disagreement")[0],
            members=array("members"),
            volume=volume,
        )


@dataclass(frozen=True)
class Case:
    """One input: its file, its key, and where below the output folder its results go."""

    image: Path
    key: str
    folder: Path = Path()


def find_cases(source: str | Path, *, exclude: Path | None = None) -> list[Case]:
    """The volumes at ``source``: a NIfTI file, an ACDC-layout folder (ED and ES of each patient), or any folder.

    Folders are searched recursively for .nii and .nii.gz; reference masks (``_gt``) and whatever lies below
    ``exclude`` are left out. Results mirror the folders of the inputs.

    Raises:
        InputError: when there is nothing to segment.
    """
    source = Path(source)
    if source.is_file():
        return [Case(source, case_name(source))]
    if not source.is_dir():
        raise InputError("there is no such file or folder", path=source, remedy="Check the path")
    acdc = _acdc_cases(source)
    if acdc:
        return acdc
    files = sorted(path for path in source.rglob("*.nii*") if path.name.endswith((".nii", ".nii.gz")))
    files = [path for path in files if not case_name(path).endswith("_gt")]
    if exclude is not None:
        files = [path for path in files if not path.resolve().is_relative_to(exclude.resolve())]
    if not files:
        raise InputError("holds no .nii or .nii.gz file", path=source, remedy="Give a NIfTI file or a folder of them")
    return [Case(path, str(path.relative_to(source).parent / case_name(path)), _parent(path, source)) for path in files]


def _parent(path: Path, source: Path) -> Path:
    return path.relative_to(source).parent


def _acdc_cases(source: Path) -> list[Case]:
    try:
        folders = acdc_patient_folders(source)
    except InputError:
        return []
    cases = []
    for folder in folders:
        patient = read_acdc_patient(folder)
        for frame in (patient.ed, patient.es):
            cases.append(Case(patient.image(frame), patient.key(frame), Path(patient.patient)))
    return cases


def segment_cases(
    segmenter: Segmenter,
    cases: Iterable[Case],
    output: str | Path,
    *,
    write: Sequence[str] = ("mask", "entropy", "disagreement"),
    report: Callable[[Case, Segmentation | InputError], None] = lambda case, result: None,
) -> dict[str, str]:
    """Segment every case and write its results; a bad input is reported and the others go on.

    Args:
        write: names of :data:`OUTPUTS`.
        report: called after each case with the result or the error.

    Returns:
        The error of each failed case, by key; empty when all went well.
    """
    output, failed = Path(output), {}
    for case in cases:
        result: Segmentation | InputError
        try:
            volume = read_volume(case.image)
            if volume.data.ndim != 3:
                raise InputError(
                    f"has {volume.data.ndim} dimensions, a single frame was expected",
                    path=case.image,
                    remedy="Extract the frames first",
                )
            result = segmenter(volume, key=case.key)
            save_segmentation(result, output / case.folder, write)
        except InputError as error:
            result = error
            failed[case.key] = str(error)
        report(case, result)
    return failed


def save_segmentation(segmentation: Segmentation, folder: Path, write: Sequence[str]) -> list[Path]:
    """Write the chosen outputs as NIfTI on the input's grid, and a JSON beside them; returns the files.

    The mask is ``<case>.nii.gz``, everything else ``<case>_<output>.nii.gz``; several channels are the last axis.
    """
    unknown = set(write) - set(OUTPUTS)
    if unknown:
        raise InputError(f"there is no output {sorted(unknown)[0]!r}", remedy=f"Outputs: {', '.join(OUTPUTS)}")
    folder.mkdir(parents=True, exist_ok=True)
    name = case_name(segmentation.volume.path)
    files = []
    for output in write:
        array: NDArray[Any] = getattr(segmentation, output)
        if array.ndim == 4:
            array = np.moveaxis(array, 0, -1)
        path = folder / (f"{name}.nii.gz" if output == "mask" else f"{name}_{output}.nii.gz")
        write_on_grid(array, segmentation.grid, path, dtype=array.dtype)
        files.append(path)
    summary = folder / f"{name}.json"
    with atomic_write(summary) as file:
        file.write(json.dumps(describe(segmentation), indent=2).encode())
    return [*files, summary]


def describe(segmentation: Segmentation) -> Mapping[str, Any]:
    """What the JSON of a case says: geometry, volumes, uncertainty."""
    classes = range(1, segmentation.probabilities.shape[0])
    foreground = segmentation.probabilities[1:].sum(axis=0) > 0.05
    return {
        "case": segmentation.key,
        "shape": list(segmentation.mask.shape),
        "spacing_mm": [round(float(s), 6) for s in segmentation.grid.spacing],
        "header_note": segmentation.grid.note,
        "members": int(segmentation.members.shape[0]),
        "volume_ml": {str(label): round(segmentation.millilitres(label), 3) for label in classes},
        "member_volume_ml": {
            str(label): [
                round(float(np.count_nonzero(m == label)) * segmentation.grid.voxel_volume / 1000, 3)
                for m in segmentation.members
            ]
            for label in classes
        },
        "mean_entropy_in_foreground": round(float(segmentation.entropy[foreground].mean()), 6)
        if foreground.any()
        else None,
    }
