"""Dictionary transforms: reading volumes on their true grid, members to masks, saving.

Spaces: ``image`` and ``label`` are (1, X, Y, Z) MetaTensors whose affine has the true voxel spacing (see ``volumes``).
Members of an ensemble travel as one (K * C, X, Y, Z) tensor, member by member, so that MONAI's ``Invertd`` brings all
of them back to the native grid in one pass; probabilities are inverted with linear interpolation, then decoded.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, Randomizable, Spacingd
from monai.utils import TraceKeys
from torch import Tensor

from cgdpm_med.diffusion.degradation import AreaDegradation
from cgdpm_med.diffusion.ensemble import combine_majority, combine_mean, disagreement, entropy, labels_of
from cgdpm_med.files import InputError
from cgdpm_med.volumes import (
    Spacing,
    Volume,
    directions_known,
    read_labels,
    read_volume,
    short_axis_view,
    write_on_grid,
)
from cgdpm_med.volumes.formats import volume_stem

COMBINATIONS = ("mean", "majority")
SUM_TOLERANCE = 0.02  # of a member's probabilities in lower precision


class LoadVolumed(MapTransform):
    """Read NIfTI volumes with the spacing conflict of their headers settled (``volumes.read_volume``).

    Args:
        keys: of file paths.
        label_keys: those among ``keys`` that hold label maps; checked against ``labels`` and the first image's grid.
        labels: allowed label values.
        spacing: which part of the header to believe; "auto" unless the user knows better.

    Each path becomes a float32 MetaTensor (1, X, Y, Z), its affine the RAS+ world affine with the true spacing; so does
    a ``Volume`` already read, or a MetaTensor with an affine, which applications hand over. Its metadata holds
    ``filename_or_obj``; ``spatial_shape`` and ``original_affine`` of the file's voxels at their true spacing, with
    which MONAI's applications write results; ``directions_known`` and ``flip_slices``, for :class:`ShortAxisd`; and
    ``key``, the case key of the keyed noise: the item's ``key`` if it has one, else the file name without extensions.

    Raises:
        InputError: for anything wrong with a file, labels off their image's grid, or a file of several time frames.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_keys: Sequence[str] = ("label",),
        labels: Sequence[int] = (0, 1, 2, 3),
        spacing: Spacing = "auto",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_keys = tuple(label_keys)
        self.labels = frozenset(labels)
        self.spacing = spacing

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        image_grid = None
        for key in sorted(self.key_iterator(out), key=lambda key: key in self.label_keys):  # images first
            source = out[key]
            if isinstance(source, torch.Tensor | np.ndarray):
                out[key] = _in_memory(source, data.get("key"))
                continue
            if isinstance(source, Volume):
                volume = source
            elif key in self.label_keys:
                volume = read_labels(source, allowed=self.labels, like=image_grid, spacing=self.spacing)
            else:
                volume = read_volume(source, spacing=self.spacing)
            if key not in self.label_keys:
                image_grid = image_grid or volume.grid
            if volume.data.ndim == 4:
                raise InputError(
                    f"holds {volume.data.shape[3]} time frames", path=volume.path, remedy="Give one frame, as (x, y, z)"
                )
            out[key] = MetaTensor(
                torch.from_numpy(np.ascontiguousarray(volume.data, dtype=np.float32))[None],
                affine=torch.tensor(volume.grid.affine),
                meta={
                    "filename_or_obj": str(volume.path),
                    "key": str(data.get("key", case_name(volume.path))),
                    "spatial_shape": np.array(volume.grid.spatial_shape),
                    "original_affine": np.array(volume.grid.affine),
                    "directions_known": directions_known(volume.grid),
                    "flip_slices": volume.grid.flip_slices,
                },
            )
        return out


def _in_memory(image: Any, key: Any) -> MetaTensor:
    """A volume that an application read itself, (X, Y, Z) or (1, X, Y, Z), as :class:`LoadVolumed` leaves one."""
    shape = tuple(image.shape[1:] if image.ndim == 4 and image.shape[0] == 1 else image.shape)
    if not isinstance(image, MetaTensor) or len(shape) != 3:
        what = f"an image of shape {tuple(image.shape)} is no volume that states its place"
        raise InputError(what, remedy="Give a file, or a MetaTensor (X, Y, Z) with an affine")
    key = key or image.meta.get("key") or case_name(str(image.meta.get("filename_or_obj", "image")))
    about = {"filename_or_obj": str(image.meta.get("filename_or_obj", key)), "key": str(key), "flip_slices": False}
    about |= {"spatial_shape": np.array(shape), "original_affine": image.affine.numpy(), "directions_known": True}
    voxels = image.as_tensor().to(torch.float32).reshape(1, *shape)
    return MetaTensor(voxels, affine=image.affine.to(torch.float64), meta=about)


class ShortAxisd(MapTransform, InvertibleTransform):
    """Volumes in the short-axis view, however their files store them: see
    :func:`~cgdpm_med.volumes.orientation.short_axis_view`.

    Each (1, X, Y, Z) MetaTensor is permuted and flipped, and its affine with it; ``Invertd`` brings predictions back.
    Metadata without ``directions_known`` mean that the affine is to be believed, without ``flip_slices`` entirely.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            stored = out[key]
            stated = stored.meta.get
            view = short_axis_view(
                stored.affine,
                directions=bool(stated("directions_known", True)),
                flip_slices=bool(stated("flip_slices", False)),
            )
            order, flips = view.order(4, first=1), view.flipped(first=1)
            shown = stored.permute(order).flip(flips)
            self.push_transform(
                shown,
                affine=view.stored_from_shown(stored.shape[1:]),
                extra_info={"order": order, "flips": flips, "affine": stored.affine.tolist()},
            )
            out[key] = shown
        return out

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            done = self.pop_transform(out[key])[TraceKeys.EXTRA_INFO]
            back = [int(axis) for axis in np.argsort(done["order"])]
            stored = out[key].flip(done["flips"]).permute(back)
            stored.affine = torch.tensor(done["affine"], dtype=torch.float64)
            out[key] = stored
        return out


class LoneSpacingd(Spacingd):
    """MONAI's ``Spacingd``, shown its own keys alone.

    MONAI 1.6.1 takes every other key that begins with ``<key>_`` for a dictionary of metadata, and fails where one is
    not: MONAI Label's items hold a path under ``image_path``.
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        alone = {key: data[key] for key in self.key_iterator(dict(data))}
        return {**data, **super().__call__(alone, lazy=lazy)}


class CombineMembersd(MapTransform):
    """Members on the native grid to one mask with its uncertainty.

    From ``pred`` (K * channels, *S), probabilities of K members, writes to the item

    * ``members``        (K, *S) uint8, each member's own mask,
    * ``probabilities``  (C, *S) float32, combined; they sum to one,
    * ``mask``           (1, *S) uint8,
    * ``entropy``        (1, *S) float32 in [0, 1], of the combined probabilities,
    * ``disagreement``   (1, *S) float32, fraction of members outside the majority,

    and removes ``pred``. Where inverting a crop left no probability at all, the class is background.

    Args:
        num_classes: C; 1 is a foreground without a channel for its background.
        combine: "mean" of the probabilities, or "majority" vote.
        channels: of each member in ``pred``, by default ``num_classes``. Of two classes a member has one channel, the
            foreground's, or two, and nothing but this tells.

    Raises:
        ValueError: for an unknown combination, a number of channels that the classes cannot have, two classes without
            ``channels``; at the call, for ``pred`` of no whole number of members, or whose members' channels sum to
            more than one.
    """

    def __init__(
        self,
        keys: KeysCollection = ("pred",),
        num_classes: int = 4,
        combine: str = "mean",
        channels: int | None = None,
    ) -> None:
        super().__init__(keys)
        if combine not in COMBINATIONS:
            raise ValueError(f"combine must be one of {', '.join(COMBINATIONS)}, not {combine!r}")
        if num_classes == 2 and channels is None:
            raise ValueError("members of two classes have one channel or two: give channels=1 or channels=2")
        self.num_classes, self.combine = num_classes, combine
        self.channels = num_classes if channels is None else channels
        if self.channels != num_classes and (self.channels, num_classes) != (1, 2):
            raise ValueError(f"members of {num_classes} classes cannot have {channels} channels")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            p = self._members(torch.as_tensor(out.pop(key)))
            combined = combine_mean(p) if self.combine == "mean" else combine_majority(p)
            out["members"] = labels_of(p, channel_dim=1)[:, 0]
            out["probabilities"] = combined
            out["mask"] = labels_of(combined, channel_dim=0)
            out["entropy"] = entropy(combined)[None]
            out["disagreement"] = disagreement(p)[None]
        return out

    def _members(self, pred: Tensor) -> Tensor:
        """(K * channels, *S) -> (K, C, *S), the background being what the other classes leave."""
        if not len(pred) or len(pred) % self.channels:
            raise ValueError(f"{len(pred)} channels are no whole number of members of {self.channels} each")
        p = pred.unflatten(0, (-1, self.channels)).clamp(0, 1)
        if self.num_classes == 1:
            return p
        if self.channels == 1:
            return torch.cat([1 - p, p], dim=1)
        if float(p.sum(dim=1).max()) > 1 + SUM_TOLERANCE:
            raise ValueError(
                f"channels that sum to more than one are no probabilities of {self.num_classes} classes; "
                "members of one channel are num_classes=2, channels=1"
            )
        p[:, 0] = (1 - p[:, 1:].sum(dim=1)).clamp(0, 1)
        return p


class SaveOnGridd(MapTransform):
    """Write arrays of an item as NIfTI on the grid of its input file, atomically.

    Files are named ``<folder>/<case>_<key>.nii.gz``; the mask itself ``<folder>/<case>.nii.gz``. A single channel is
    dropped, several become the last axis.

    Args:
        keys: what to write.
        output_dir: folder, made when needed.
        source: key of the file path in MetaTensor metadata, or a path.
        spacing: as given to :class:`LoadVolumed`.
    """

    def __init__(
        self, keys: KeysCollection, output_dir: str | Path, source: str = "image", spacing: Spacing = "auto"
    ) -> None:
        super().__init__(keys)
        self.output_dir, self.source, self.spacing = Path(output_dir), source, spacing

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        path = source_path(out[self.source])
        grid = read_volume(path, spacing=self.spacing).grid
        for key in self.key_iterator(out):
            array = torch.as_tensor(out[key]).cpu().numpy()
            array = array[0] if array.shape[0] == 1 else np.moveaxis(array, 0, -1)
            name = case_name(path) + ("" if key == "mask" else f"_{key}") + ".nii.gz"
            write_on_grid(array, grid, self.output_dir / name, dtype=array.dtype)
        return out


def source_path(item: Any) -> Path:
    """The file an item came from: a path, or a MetaTensor that remembers it."""
    name = item.meta["filename_or_obj"] if isinstance(item, MetaTensor) else item
    return Path(name[0] if isinstance(name, list) else name)


def case_name(path: str | Path) -> str:
    """File name without the suffix of a volume (.nii, .nii.gz, .nrrd and so on), in any case."""
    return volume_stem(path)


class Degraded(MapTransform):
    """High resolution to low resolution by area averaging: keeps ``key`` and writes ``condition_key``.

    Args:
        factor: integer down-sampling factor of every spatial axis.
    """

    def __init__(self, keys: KeysCollection, factor: int, condition_key: str = "condition") -> None:
        super().__init__(keys)
        self.degradation, self.condition_key = AreaDegradation(factor), condition_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[self.condition_key] = self.degradation.degrade(torch.as_tensor(out[key])[None])[0]
        return out


class RandDegraded(Randomizable, MapTransform):
    """Low-resolution condition with a random extra blur: draws sigma, then delegates to :class:`Degraded`.

    Args:
        factor: down-sampling factor.
        sigma_range: of the Gaussian blur before averaging, in high-resolution pixels.
        prob: probability of blurring at all.
    """

    def __init__(
        self,
        keys: KeysCollection,
        factor: int,
        condition_key: str = "condition",
        sigma_range: tuple[float, float] = (0.0, 1.0),
        prob: float = 0.5,
    ) -> None:
        MapTransform.__init__(self, keys)
        self.degrade = Degraded(keys, factor, condition_key)
        self.sigma_range, self.prob = sigma_range, prob
        self.sigma = 0.0

    def randomize(self, data: Any = None) -> None:
        self.sigma = self.R.uniform(*self.sigma_range) if self.R.rand() < self.prob else 0.0

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        from monai.transforms import GaussianSmooth

        self.randomize()
        out = dict(data)
        for key in self.key_iterator(out):
            sharp = out[key]
            blurred = GaussianSmooth(self.sigma)(sharp) if self.sigma > 0 else sharp
            out = self.degrade({**out, key: blurred})
            out[key] = sharp
        return out
