"""From a cardiac MRI volume to an ensemble of masks with its uncertainty, on the input's own grid."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgdpm_med.apps.bundles import bundle_path
from cgdpm_med.apps.cases import OUTPUTS, Case, find_cases
from cgdpm_med.apps.console import CaseBar, complain, input_error_behind
from cgdpm_med.predictor import DiffusionPredictor
from cgdpm_med.transforms import case_name
from cgdpm_med.volumes import Grid, InputError, Volume, atomic_write, read_volume, write_on_grid

WRITTEN = ("mask", "entropy", "disagreement")
"""What is written unless asked otherwise."""


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

    def member_millilitres(self, label: int) -> list[float]:
        """Volume of one label in each member's own mask."""
        return [float(np.count_nonzero(m == label)) * self.grid.voxel_volume / 1000 for m in self.members]


class Segmenter:
    """Preprocess, sample, invert, fuse: what bundles and the command line share.

    Args:
        preprocessing: invertible MONAI transform over ``{"image": Volume, "key": str}``.
        inferer: ``inferer(image (1, 1, X, Y, Z), predictor, progress=None) -> members (1, K * C, X, Y, Z)``; tells
            ``progress``, if given, how many slice fields it has done.
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
        try:
            return parser.get_parsed_content("segmenter")
        except Exception as error:  # MONAI wraps whatever a configuration raises
            raise input_error_behind(error) or error from None

    @torch.inference_mode()
    def __call__(
        self, volume: Volume, key: str | None = None, progress: Callable[[float], None] | None = None
    ) -> Segmentation:
        """Segment one three-dimensional volume.

        Args:
            volume: as read by :func:`~cgdpm_med.read_volume`.
            key: of the noise; by default the file name without extensions.
            progress: called with the fraction of the sampling that is done, about.

        Raises:
            InputError: for a series of frames.
        """
        key = case_name(volume.path) if key is None else key
        data = dict(self.preprocessing({"image": volume, "key": key}))
        image = data["image"]
        count = None if progress is None else _as_fraction(progress, of=image.shape[-1] * self.predictor.members)
        data["pred"] = self.inferer(image[None].to(self.device), self.predictor, progress=count)[0].cpu()
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


def _as_fraction(progress: Callable[[float], None], of: int) -> Callable[[int], None]:
    done = 0

    def count(fields: int) -> None:
        nonlocal done
        done += fields
        progress(min(done / of, 1.0))  # finding the heart first may take a few fields more

    return count


# --- running it over many inputs --------------------------------------------------------------------------------------


def choose_device(name: str = "auto") -> torch.device:
    """The device called ``name``: "auto" (CUDA where there is one, else the CPU), "cpu", "cuda", "cuda:1" or "mps".

    Raises:
        InputError: for an unknown name, or a device that this machine or this build of PyTorch does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    count = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }.get(kind)
    if count is None or (index and not index.isdigit()):
        raise InputError(f"there is no device called {name!r}", remedy="Devices: auto, cpu, cuda, cuda:1, mps")
    if int(index or 0) >= count:
        found = f"{count} of them" if count else "none"
        raise InputError(f"device {name!r} was asked for, but PyTorch finds {found} here", remedy="Use --device auto")
    return torch.device(name)


def segment(
    source: str | Path,
    output: str | Path,
    *,
    bundle: str | Path = "acdc_segmentation",
    device: str = "auto",
    write: Sequence[str] = WRITTEN,
    **settings: Any,
) -> dict[str, Any]:
    """Segment whatever lies at ``source`` with a bundle: what ``cgdpm-med segment`` does.

    Args:
        source: see :func:`~cgdpm_med.find_cases`.
        output: folder for the results.
        device: see :func:`choose_device`.
        write: names of :data:`~cgdpm_med.apps.cases.OUTPUTS`.
        settings: keys of the bundle's inference configuration; None keeps the bundle's own value.

    Returns:
        See :func:`segment_all`.

    Raises:
        InputError: when nothing can be segmented at all.
    """
    check_outputs(write)
    chosen = choose_device(device)
    cases = find_cases(source, exclude=output)
    changes = {name: value for name, value in settings.items() if value is not None}
    segmenter = Segmenter.from_bundle(bundle, device=chosen, **changes)
    return segment_all(segmenter, cases, output, write=write)


def segment_all(
    segmenter: Segmenter, cases: Sequence[Case], output: str | Path, *, write: Sequence[str] = WRITTEN
) -> dict[str, Any]:
    """:func:`segment_cases` with a progress bar and one line on standard error for each bad input.

    Returns:
        ``cases``, for each its :func:`describe` and its ``files``; ``failed``, the error of each failed case by key.
    """
    described: list[dict[str, Any]] = []

    def finish(case: Case, result: Segmentation | InputError) -> None:
        if isinstance(result, InputError):
            complain(result, bar)
        else:
            files = [str(path) for path in output_files(result, Path(output) / case.folder, write)]
            described.append({**describe(result), "input": str(case.image), "files": files})
            bar.note(f"segmented {case.key}")

    with CaseBar("segmenting", [case.key for case in cases]) as bar:
        failed = segment_cases(segmenter, cases, output, write=write, report=finish, progress=bar.update)
    return {"cases": described, "failed": failed}


def segment_cases(
    segmenter: Segmenter,
    cases: Sequence[Case],
    output: str | Path,
    *,
    write: Sequence[str] = WRITTEN,
    report: Callable[[Case, Segmentation | InputError], None] = lambda case, result: None,
    progress: Callable[[str, float], None] = lambda key, fraction: None,
) -> dict[str, str]:
    """Segment every case and write its results; a bad input is reported and the others go on.

    Args:
        write: names of :data:`~cgdpm_med.apps.cases.OUTPUTS`.
        report: called after each case with the result or the error.
        progress: called with the key of the case in work and the fraction of it that is done.

    Returns:
        The error of each failed case, by key; empty when all went well.
    """
    check_outputs(write)
    output, failed = Path(output), {}
    for case in cases:
        result: Segmentation | InputError
        progress(case.key, 0.0)
        try:
            result = _segment_case(segmenter, case, output / case.folder, write, progress)
        except InputError as error:
            result = error
            failed[case.key] = str(error)
        report(case, result)
        progress(case.key, 1.0)
    return failed


def _segment_case(
    segmenter: Segmenter, case: Case, folder: Path, write: Sequence[str], progress: Callable[[str, float], None]
) -> Segmentation:
    if case.error is not None:
        raise case.error
    if (folder / f"{case_name(case.image)}.nii.gz").resolve() == case.image.resolve():
        raise InputError("would be overwritten by its mask", path=case.image, remedy="Give another output folder")
    result = segmenter(read_volume(case.image), case.key, lambda fraction: progress(case.key, fraction))
    save_segmentation(result, folder, write)
    return result


# --- what is written --------------------------------------------------------------------------------------------------


def check_outputs(write: Sequence[str]) -> None:
    """Raises InputError when an output is unknown."""
    unknown = sorted(set(write) - set(OUTPUTS))
    if unknown:
        raise InputError(f"there is no output {unknown[0]!r}", remedy=f"Outputs: {', '.join(OUTPUTS)}")


def output_files(segmentation: Segmentation, folder: Path, write: Sequence[str]) -> list[Path]:
    """The files :func:`save_segmentation` writes: one for each output, and the JSON."""
    name = case_name(segmentation.volume.path)
    endings = ["" if output == "mask" else f"_{output}" for output in write]
    return [*(folder / f"{name}{ending}.nii.gz" for ending in endings), folder / f"{name}.json"]


def save_segmentation(segmentation: Segmentation, folder: Path, write: Sequence[str] = WRITTEN) -> list[Path]:
    """Write the chosen outputs as NIfTI on the input's grid, and a JSON beside them; returns the files.

    The mask is ``<case>.nii.gz``, everything else ``<case>_<output>.nii.gz``; several channels are the last axis.
    """
    check_outputs(write)
    folder.mkdir(parents=True, exist_ok=True)
    *images, summary = files = output_files(segmentation, folder, write)
    for output, path in zip(write, images, strict=True):
        array: NDArray[Any] = getattr(segmentation, output)
        if array.ndim == 4:
            array = np.moveaxis(array, 0, -1)
        write_on_grid(array, segmentation.grid, path, dtype=array.dtype)
    with atomic_write(summary) as file:
        file.write(json.dumps(describe(segmentation), indent=2).encode())
    return files


def describe(segmentation: Segmentation) -> Mapping[str, Any]:
    """What the JSON of a case says: geometry, volumes in ml by label, uncertainty."""
    labels = range(1, segmentation.probabilities.shape[0])
    foreground = segmentation.probabilities[1:].sum(axis=0) > 0.05
    doubt = float(segmentation.entropy[foreground].mean()) if foreground.any() else None
    return {
        "case": segmentation.key,
        "shape": list(segmentation.mask.shape),
        "spacing_mm": [round(float(s), 6) for s in segmentation.grid.spacing],
        "header_note": segmentation.grid.note,
        "members": len(segmentation.members),
        "volume_ml": {str(label): round(segmentation.millilitres(label), 3) for label in labels},
        "member_volume_ml": {
            str(label): [round(ml, 3) for ml in segmentation.member_millilitres(label)] for label in labels
        },
        "mean_entropy_in_foreground": None if doubt is None else round(doubt, 6),
    }
