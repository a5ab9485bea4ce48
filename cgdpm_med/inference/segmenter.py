"""From a volume to an ensemble of masks with its uncertainty, on the input's own grid."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgdpm_med.data.transforms import case_name
from cgdpm_med.files import InputError
from cgdpm_med.inference.bundles import built_from_bundle, bundle_folder
from cgdpm_med.inference.deep_ensemble import DeepEnsemble
from cgdpm_med.inference.labels import Labels, channel_names, labels_of
from cgdpm_med.inference.predictor import DiffusionPredictor, predictor_settings
from cgdpm_med.models.description import VolumeInput
from cgdpm_med.volumes import Grid, Volume, reoriented_grid, view_of


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Ensemble of masks for one volume, on its native grid.

    Attributes:
        key: case key; the noise of every member depends on it and the seed alone.
        mask: (X, Y, Z) uint8, the combined labels.
        probabilities: (C, X, Y, Z) float32, combined; they sum to one.
        entropy: (X, Y, Z) float32 in [0, 1], of the combined probabilities.
        disagreement: (X, Y, Z) float32, fraction of members outside the majority.
        members: (K, X, Y, Z) uint8, each member's own labels.
        volume: the input.
        temperature, doubt: of the calibration that made ``probabilities`` and ``entropy`` from the ensemble's own, or
            None and 0.
        channel_names, channel_colours: of the classes, see :func:`~cgdpm_med.inference.labels.labels_of`.
        removed_voxels: by label, how many were taken out of the mask because they lay apart; None where none were
            looked for.
    """

    key: str
    mask: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    entropy: NDArray[np.float32]
    disagreement: NDArray[np.float32]
    members: NDArray[np.uint8]
    volume: Volume
    temperature: float | None = None
    channel_names: Mapping[str, str] | None = None
    channel_colours: Mapping[str, str] | None = None
    doubt: float = 0.0
    removed_voxels: Mapping[int, int] | None = None

    @property
    def labels(self) -> Labels:
        """Names and colours of the structures."""
        return labels_of(self.channel_names, len(self.probabilities), self.channel_colours)

    @property
    def grid(self) -> Grid:
        """Of the input and of every output."""
        return self.volume.grid

    def in_view(self) -> Segmentation:
        """The same in the short-axis view, for whatever looks at slices; the arrays are views of these."""
        view = view_of(self.grid)
        volume = Volume(view.apply(self.volume.data), reoriented_grid(self.grid, view), self.volume.path)
        return replace(
            self,
            mask=view.apply(self.mask),
            entropy=view.apply(self.entropy),
            disagreement=view.apply(self.disagreement),
            probabilities=view.apply(self.probabilities, first=1),
            members=view.apply(self.members, first=1),
            volume=volume,
        )

    def slice_numbers(self) -> list[int]:
        """For each slice of :meth:`in_view` its number in the file, from 1."""
        return view_of(self.grid).slice_numbers(self.grid.spatial_shape)

    def millilitres(self, label: int) -> float:
        """Volume of one label in the combined mask."""
        return float(np.count_nonzero(self.mask == label)) * self.grid.voxel_volume / 1000

    def member_millilitres(self, label: int) -> list[float]:
        """Volume of one label in each member's own mask."""
        return [float(np.count_nonzero(m == label)) * self.grid.voxel_volume / 1000 for m in self.members]


class Segmenter:
    """Preprocess, sample, invert, combine: what bundles and the command line share.

    Args:
        preprocessing: invertible MONAI transform over ``{"image": Volume, "key": str}``.
        inferer: ``inferer(image (1, 1, X, Y, Z), predictor, progress=None) -> members (1, K * C, X, Y, Z)``; tells
            ``progress``, if given, how many slice fields it has done.
        predictor: the network with its sampling settings.
        postprocessing: transform over ``{"image", "pred"}`` that brings members to the native grid and combines them.
        device: where the network runs.
        weights: files the networks were read from: a calibration beside the first is for these files only.
        combine: how ``postprocessing`` combines the members, where that is known; a calibration is for one kind only.
        one_body: whether ``postprocessing`` reduces masks to one body, see
            :class:`~cgdpm_med.inference.components.OneBodyd`; a calibration is for the one or the other.
        channel_names, channel_colours: of the network's classes by number, which masks and reports are labelled with;
            see :func:`~cgdpm_med.inference.labels.labels_of`.
    """

    def __init__(
        self,
        preprocessing: Callable[[dict[str, Any]], Any],
        inferer: Callable[..., Tensor],
        predictor: DiffusionPredictor | DeepEnsemble,
        postprocessing: Callable[[dict[str, Any]], Any],
        device: torch.device | str = "cpu",
        weights: Sequence[str | Path] = (),
        combine: str | None = None,
        channel_names: Mapping[str, str] | None = None,
        channel_colours: Mapping[str, str] | None = None,
        one_body: bool = False,
    ) -> None:
        self.preprocessing, self.inferer, self.postprocessing = preprocessing, inferer, postprocessing
        self.device = torch.device(device)
        self.predictor = predictor.to(self.device)
        self.weights = tuple(Path(file) for file in weights)
        self.combine, self.one_body = combine, one_body
        self.channel_names, self.channel_colours = channel_names, channel_colours

    @property
    def labels(self) -> Labels:
        """Names and colours of the structures."""
        return labels_of(self.channel_names, max(self.predictor.out_channels, 2), self.channel_colours)

    @classmethod
    def from_bundle(cls, bundle: str | Path = "acdc_segmentation", **overrides: Any) -> Segmenter:
        """Build it from a bundle's inference configuration.

        Args:
            bundle: name of a bundle, or its folder.
            overrides: keys of ``configs/inference.yaml``, for example ``members=16, steps=5, weights="model.pt"``.

        Raises:
            InputError: for an unknown bundle or key, or weights that do not fit.
        """
        segmenter: Segmenter = built_from_bundle(
            bundle,
            "segmenter",
            overrides,
            example="acdc_segmentation",
            unknown=lambda name, known: f"Choose among {', '.join(known)}",
            inputs=(VolumeInput,),
        )
        if segmenter.channel_names is None:
            segmenter.channel_names = channel_names(bundle_folder(bundle))
        return segmenter

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
            InputError: for a series of frames, or where the network's answer is not finite.
        """
        if volume.data.ndim != 3:
            remedy = "Give one frame at a time; see cgdpm_med.volumes.frames"
            raise InputError(f"is a series of {volume.data.shape[-1]} frames", path=volume.path, remedy=remedy)
        key = case_name(volume.path) if key is None else key
        data = dict(self.preprocessing({"image": volume, "key": key}))
        image = data["image"]
        count = (
            None if progress is None else _as_fraction(progress, of=image.shape[-1] * self.predictor.sampling.members)
        )
        data["pred"] = self.inferer(image[None].to(self.device), self.predictor, progress=count)[0].cpu()
        data = self.postprocessing(data)
        if tuple(data["mask"].shape[1:]) != volume.data.shape:
            raise RuntimeError(f"postprocessing left {tuple(data['mask'].shape[1:])} voxels of {volume.data.shape}")

        if not torch.isfinite(torch.as_tensor(data["probabilities"])).all():
            raise InputError(
                "the network's answer is not finite", path=volume.path, remedy="Use precision float32, or other weights"
            )

        def array(name: str) -> NDArray[Any]:
            return torch.as_tensor(data[name]).cpu().numpy()

        return Segmentation(
            key=key,
            mask=array("mask")[0],
            probabilities=_with_background(array("probabilities")),
            entropy=array("entropy")[0],
            disagreement=array("disagreement")[0],
            members=array("members"),
            volume=volume,
            channel_names=self.channel_names,
            channel_colours=self.channel_colours,
            removed_voxels=data.get("removed_voxels"),
        )


def ensemble_settings(segmenter: Segmenter) -> dict[str, Any]:
    """What the predictor's numbers depend on, and what the segmenter itself adds."""
    made = predictor_settings(segmenter.predictor, segmenter.device)
    return made | {"combine": segmenter.combine, "one_body": segmenter.one_body}


def _with_background(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of two classes where a network gives the foreground alone."""
    return probabilities if len(probabilities) > 1 else np.concatenate([1 - probabilities, probabilities])


def _as_fraction(progress: Callable[[float], None], of: int) -> Callable[[int], None]:
    done = 0

    def count(fields: int) -> None:
        nonlocal done
        done += fields
        progress(min(done / of, 1.0))  # finding the region first may take a few fields more

    return count


def load_segmenter(bundle: str | Path, device: str, changes: Mapping[str, Any]) -> Segmenter:
    """That of a bundle, on a device of this machine."""
    return Segmenter.from_bundle(bundle, device=choose_device(device), **changes)


# --- where it runs ----------------------------------------------------------------------------------------------------


def choose_device(name: str = "auto") -> torch.device:
    """The device called ``name``: "auto" (the first there is of CUDA, MPS, CPU), "cpu", "cuda", "cuda:1" or "mps".

    Where torchrun started several processes on one machine, "auto" gives each the CUDA device of its LOCAL_RANK.

    Raises:
        InputError: for an unknown name, or a device that this machine or this build of PyTorch does not have.
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
        rank = os.environ.get("LOCAL_RANK", "")
        return torch.device(f"cuda:{int(rank) % torch.cuda.device_count()}" if rank.isdigit() else "cuda")
    kind, _, index = name.partition(":")
    count = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }.get(kind)
    if count is None or (index and not index.isdigit()):
        raise InputError(f"there is no device called {name!r}", remedy="Use auto, cpu, cuda, cuda:1 or mps")
    if int(index or 0) >= count:
        found = f"{count} of them" if count else "none"
        raise InputError(f"device {name!r} was asked for, but PyTorch finds {found} here", remedy="Use device auto")
    return torch.device(name)
