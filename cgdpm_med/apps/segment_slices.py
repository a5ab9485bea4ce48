"""Images of any data set to ensembles of masks, by one network that ``cgdpm-med train`` made, or by those of folds."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from numpy.typing import NDArray
from torch import Tensor

from cgdpm_med.data.transforms import CombineMembersd
from cgdpm_med.datasets.json_files import read_json
from cgdpm_med.datasets.loading import Loaded, load_image
from cgdpm_med.datasets.prepare import back, prepare
from cgdpm_med.datasets.prepare_volumes import prepare_volume, volume_back
from cgdpm_med.datasets.run import TASK
from cgdpm_med.diffusion.ensemble import entropy
from cgdpm_med.diffusion.sampling import Sampling
from cgdpm_med.evaluation.calibration_file import Calibration, find_calibration
from cgdpm_med.files import InputError
from cgdpm_med.inference.bundles import built_from_bundle
from cgdpm_med.inference.inferers import RegionInferer, SliceEnsembleInferer
from cgdpm_med.inference.labels import Labels
from cgdpm_med.inference.patches import PatchEnsembleInferer
from cgdpm_med.inference.predictor import DiffusionPredictor, predictor_settings
from cgdpm_med.metrics.calibration import temper
from cgdpm_med.models.description import PatchInput, SliceInput
from cgdpm_med.models.files import Model


@dataclass(frozen=True, eq=False)
class Mask:
    """An image's segmentation, as its file lies.

    Attributes:
        mask: (X, Y, Z) uint8, classes.
        entropy: float32 in [0, 1], of the combined probabilities.
        disagreement: float32, fraction of members outside the majority.
        probabilities: (C, X, Y, Z) float32.
        members: (K, X, Y, Z) uint8, each member's own mask.
        temperature, doubt: of the calibration behind ``probabilities`` and ``entropy``, or None and 0.
    """

    mask: NDArray[np.uint8]
    entropy: NDArray[np.float32]
    disagreement: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    members: NDArray[np.uint8]
    temperature: float | None = None
    doubt: float = 0.0

    def calibrated(self, temperature: float, doubt: float = 0.0) -> Mask:
        """The same with calibrated probabilities and their entropy; mask and members are untouched."""
        p = temper(self.probabilities, temperature, doubt)
        unsure = entropy(torch.from_numpy(p)).numpy()
        return replace(self, probabilities=p, entropy=unsure, temperature=temperature, doubt=doubt)


class SliceSegmenter:
    """Prepares, samples, brings back and combines.

    Args:
        model: with a :class:`~cgdpm_med.models.description.SliceInput`, or a
            :class:`~cgdpm_med.models.description.PatchInput` where its network is a 3D one.
        predictor: its network and how members are drawn.
        weights: files the networks were read from.
    """

    def __init__(
        self,
        model: Model,
        predictor: DiffusionPredictor,
        device: torch.device | str = "cpu",
        weights: Sequence[str | Path] = (),
    ) -> None:
        self.model, self.device = model, torch.device(device)
        self.predictor = predictor.to(self.device)
        self.weights = tuple(Path(file) for file in weights)
        self.calibration: Calibration | None = None
        self.pictures: bool | None = None

    def loaded(self, files: Sequence[Path]) -> Loaded:
        """The channels of an image together, once it is sure that they are of the kind that was trained on.

        Raises:
            InputError: as :func:`~cgdpm_med.datasets.loading.load_image`; for a volume where the network knows
                pictures, or the other way round: nobody would know the size of a pixel.
        """
        image = load_image(files, len(self.input.names))
        if self.pictures is not None and self.pictures != (image.grid is None):
            kind = "picture" if image.grid is None else "volume"
            known, remedy = (
                ("pictures", "Save its slices as PNG") if self.pictures else ("volumes", "Give NIfTI volumes")
            )
            raise InputError(f"is a {kind}, the network was trained on {known}", path=files[0], remedy=remedy)
        return image

    @property
    def labels(self) -> Labels:
        """Names and colours of the classes 1, 2, …."""
        said = self.model.description.labels
        return Labels(tuple(label.name for label in said), tuple(label.colour for label in said))

    @property
    def input(self) -> SliceInput | PatchInput:
        """What the network sees."""
        seen = self.model.input
        assert isinstance(seen, (SliceInput, PatchInput))
        return seen

    @property
    def inferer(self) -> Inferer:
        """Slice by slice, or in windows of a 3D network's patch.

        Where slices are shown in part (``input.region``), structures are found there first, and the ensemble is drawn
        in a field around them of the size that the network was trained on.
        """
        if isinstance(self.input, PatchInput):
            return PatchEnsembleInferer(self.input.patch)
        by_slice = SliceEnsembleInferer(neighbours=self.input.neighbours)
        if not (self.input.region and self.input.patch):
            return by_slice
        return RegionInferer(by_slice, smallest=self.input.patch, multiple=self.model.multiple)

    @property
    def settings(self) -> dict[str, Any]:
        """All that the masks depend on besides weights and image."""
        mean = {"combine": "mean", "one_body": False, "staple": False, "keep_largest": False}
        return predictor_settings(self.predictor, self.device) | mean

    def __call__(self, loaded: Loaded, key: str) -> Mask:
        """Segment one image; the noise depends on its key and the seed."""
        members = self.drawn(loaded, key, range(self.predictor.sampling.members))
        return combined(members, loaded, self.predictor.out_channels, self.calibration)

    @torch.inference_mode()
    def drawn(self, loaded: Loaded, key: str, member_ids: Sequence[int]) -> Tensor:
        """These members on the image's own pixels, (K * channels, X, Y, Z)."""
        image = MetaTensor(self.prepared(loaded)[None].to(self.device), meta={"key": key})
        members = self.inferer(image, _Some(self.predictor, member_ids))  # type: ignore[arg-type]
        return self.returned(torch.as_tensor(members)[0].cpu().as_subclass(Tensor), loaded)

    def prepared(self, loaded: Loaded) -> Tensor:
        """The image as the network sees it, (C, X', Y', Z)."""
        bare = replace(loaded, label=None)
        if isinstance(self.input, PatchInput):
            return prepare_volume(bare, self.input, self.predictor.out_channels, padded=True)["image"]
        return prepare(bare, self.input, self.predictor.out_channels, multiple=self.model.multiple)["image"]

    def returned(self, members: Tensor, loaded: Loaded) -> Tensor:
        """What the network made of :meth:`prepared`, on the image's own pixels."""
        if isinstance(self.input, PatchInput):
            return volume_back(members, loaded, self.input)
        return back(members, loaded, self.input, self.predictor.out_channels)


class FoldSegmenter(SliceSegmenter):
    """Draws the members over the networks of several runs in turns: member k from network k modulo their number.

    Args:
        segmenters: of runs with the same labels and input.
        members: in all; a multiple of the networks' number gives each the same say.
    """

    def __init__(self, segmenters: Sequence[SliceSegmenter], members: int) -> None:
        first = segmenters[0]
        weights = [file for segmenter in segmenters for file in segmenter.weights]
        super().__init__(first.model, first.predictor, first.device, weights)
        self.segmenters, self.members, self.pictures = tuple(segmenters), members, first.pictures

    @property
    def settings(self) -> dict[str, Any]:
        """As of one network, with the members of all."""
        return {**super().settings, "members": self.members}

    def __call__(self, loaded: Loaded, key: str) -> Mask:
        """As of one network."""
        parts = [
            segmenter.drawn(loaded, key, range(n, self.members, len(self.segmenters)))
            for n, segmenter in enumerate(self.segmenters)
        ]
        return combined(torch.cat(parts), loaded, self.predictor.out_channels, self.calibration)


class _Some:
    """A predictor that draws some of its members; with another sampling, the first of that."""

    def __init__(self, predictor: DiffusionPredictor, member_ids: Sequence[int]) -> None:
        self.predictor, self.member_ids = predictor, member_ids

    def __copy__(self) -> _Some:
        return _Some(self.predictor, self.member_ids)

    @property
    def sampling(self) -> Sampling:
        """The predictor's, of these members."""
        return replace(self.predictor.sampling, members=len(self.member_ids))

    @sampling.setter
    def sampling(self, sampling: Sampling) -> None:
        self.predictor, self.member_ids = copy.copy(self.predictor), range(sampling.members)
        self.predictor.sampling = sampling

    def __getattr__(self, name: str) -> Any:
        return getattr(self.predictor, name)

    def ensemble(self, image: Tensor, keys: Sequence[str], **how: Any) -> Tensor:
        """As the predictor's."""
        return self.predictor.ensemble(image, keys=keys, member_ids=self.member_ids, **how)


def combined(members: Tensor, loaded: Loaded, channels: int, calibration: Calibration | None = None) -> Mask:
    """Members (K * channels, X, Y, Z) in the view as one mask with its doubt, stored as the image's file is."""
    combine = CombineMembersd(num_classes=max(channels, 2), channels=channels)
    found = combine({"pred": members})

    def stored(name: str) -> NDArray[Any]:
        return np.ascontiguousarray(loaded.view.undo(torch.as_tensor(found[name]).numpy()))

    maps = [stored(name)[0] for name in ("mask", "entropy", "disagreement")]
    mask = Mask(maps[0], maps[1], maps[2], stored("probabilities"), stored("members"))
    return mask if calibration is None else mask.calibrated(calibration.temperature, calibration.doubt)


# --- runs -------------------------------------------------------------------------------------------------------------


def is_run(bundle: str | Path) -> bool:
    """Whether a bundle is one that ``cgdpm-med train`` wrote."""
    return (Path(bundle) / TASK).is_file()


def load_segmenter(run: str | Path, **overrides: Any) -> SliceSegmenter:
    """Of a run, with keys of its ``configs/inference.yaml`` set.

    Raises:
        InputError: for an unknown key, or weights that are missing or do not fit.
    """
    segmenter: SliceSegmenter = built_from_bundle(
        run,
        "segmenter",
        overrides,
        example="one that train wrote",
        unknown=lambda name, _: "Leave it out; it is for other bundles",
        inputs=(SliceInput, PatchInput),
    )
    segmenter.pictures = read_json(Path(run) / TASK).get("fingerprint", {}).get("pictures")
    return segmenter


def load_segmenters(runs: Sequence[str | Path], **overrides: Any) -> SliceSegmenter:
    """Of one run, or of several whose networks draw the members in turns.

    Without ``members`` among the overrides every network draws the same number, no fewer in all than one would.

    Raises:
        InputError: as :func:`load_segmenter`; for runs of other labels, channels, spacing or sampling, or fewer members
            than networks.
    """
    segmenters = [load_segmenter(run, **overrides) for run in runs]
    if len(segmenters) == 1:
        return segmenters[0]
    for run, segmenter in zip(runs, segmenters, strict=True):
        if differing := _differing(segmenters[0], segmenter):
            remedy = "Combine runs of one data set, such as its folds, that sample alike"
            what = f"has {differing} than {Path(runs[0]).name}, so their masks cannot be combined"
            raise InputError(what, path=Path(run), remedy=remedy)
    count, own = len(segmenters), segmenters[0].predictor.sampling.members
    if "members" in overrides and own < count:
        what = f"{own} members cannot be drawn over {count} networks"
        raise InputError(what, remedy=f"Give --members {count} or more")
    return FoldSegmenter(segmenters, own if "members" in overrides else math.ceil(own / count) * count)


def _differing(one: SliceSegmenter, other: SliceSegmenter) -> str:
    """What two networks see or name differently, in words; "" where nothing is."""
    pairs: dict[str, list[Any]] = {
        "other labels": [each.labels.names for each in (one, other)],
        "other channels": [(each.input.names, each.predictor.out_channels) for each in (one, other)],
        "another spacing": [each.input.spacing for each in (one, other)],
        "another rule for intensities": [(each.input.intensity, each.input.window) for each in (one, other)],
        "other neighbouring slices": [each.input.neighbours for each in (one, other)],
        "other settings of the sampler": [replace(each.predictor.sampling, members=1) for each in (one, other)],
    }
    return next((name for name, (first, second) in pairs.items() if first != second), "")


def calibrate_masks(segmenter: SliceSegmenter, path: str | Path | None = None) -> str | None:
    """Let the segmenter apply the calibration beside its weights, or that at ``path``.

    Returns:
        Why one that was found does not count, in one line, or None.

    Raises:
        InputError: for a file that cannot be read, or one given by ``path`` that does not fit.
    """
    runs = [f"--bundle {file.parents[1]}" for file in segmenter.weights]
    segmenter.calibration, ignored = find_calibration(segmenter.weights, segmenter.settings, path, runs=runs)
    return ignored
