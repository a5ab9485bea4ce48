"""Dictionary transforms for pictures: read, cut the largest centre square, resample by exact area averaging."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from cgdpm_med.diffusion.degradation import AreaDegradation
from cgdpm_med.files import InputError
from cgdpm_med.images.pictures import PICTURE_SUFFIXES, read_picture, write_picture
from cgdpm_med.networks.classes import append_class


class LoadPictured(MapTransform):
    """Read picture files: each path becomes an RGB tensor (3, H, W), float32 in [-1, 1].

    Plain tensors, because MetaTensors are slow in training loops; an item keeps its name under ``key``.

    Raises:
        InputError: for a file that cannot be read; see ``readable_pictures`` for sorting those out beforehand.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = read_picture(out[key]).pixels
        return out


class CentreSquared(MapTransform):
    """The largest centre square of a picture, area-averaged to ``size`` x ``size``; (C, H, W) -> (C, size, size).

    Raises:
        InputError: for a picture whose shorter side is below ``size``; see ``min_side`` of ``readable_pictures``.
    """

    def __init__(self, keys: KeysCollection, size: int, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        if size < 1:
            raise ValueError(f"the size must be at least 1, not {size}")
        self.size = size

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            square = largest_centre_square(torch.as_tensor(out[key]))
            if square.shape[-1] < self.size:
                what = f"a picture of {tuple(out[key].shape[1:])} pixels is smaller than {self.size} x {self.size}"
                raise InputError(what, path=out.get("key"), remedy="Leave it out, or choose a smaller size")
            out[key] = area_resize(square[None], (self.size, self.size))[0]
        return out


class AppendClassd(MapTransform):
    """Append the class index of an item to its condition image, as a network inside ``ClassConditioned`` expects.

    Args:
        keys: of condition images, (C, H, W) -> (C + 1, H, W).
        class_key: of the class index.
    """

    def __init__(self, keys: KeysCollection = ("condition",), class_key: str = "class") -> None:
        super().__init__(keys)
        self.class_key = class_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = append_class(out[key][None], torch.tensor([out[self.class_key]]))[0]
        return out


class SavePictured(MapTransform):
    """Write pictures of an item, (3, H, W) or (1, H, W) in [-1, 1], as PNG files of 8 bits.

    A file is named ``<folder>/<name>.png`` by the item's ``key``, which may hold folders and the suffix of a picture.

    Args:
        keys: of the pictures; with several, all but the first get ``_<key>`` behind their name.
        output_dir: folder, made when needed.
        name_key: of the name.
    """

    def __init__(self, keys: KeysCollection, output_dir: str | Path, name_key: str = "key") -> None:
        super().__init__(keys)
        self.output_dir, self.name_key = Path(output_dir), name_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        name = str(out[self.name_key])
        if name.lower().endswith(PICTURE_SUFFIXES):
            name = name[: name.rindex(".")]
        for key in self.key_iterator(out):
            ending = "" if key == self.keys[0] else f"_{key}"
            write_picture(torch.as_tensor(out[key]), self.output_dir / f"{name}{ending}.png")
        return out


def largest_centre_square(image: Tensor) -> Tensor:
    """(…, H, W) -> (…, n, n) with n = min(H, W); an odd margin leaves its extra pixel at the end."""
    height, width = image.shape[-2:]
    n = min(height, width)
    top, left = (height - n) // 2, (width - n) // 2
    return image[..., top : top + n, left : left + n]


def area_resize(image: Tensor, size: Sequence[int]) -> Tensor:
    """Shrink (B, C, H, W) to (B, C, *size): each pixel is the mean over the area it covers, parts of pixels included.

    Exact for any ratio, where ``F.interpolate(mode="area")`` and Pillow's BOX filter round the area to whole pixels.

    Raises:
        ValueError: for a size larger than the image's.
    """
    old, new = tuple(image.shape[2:]), tuple(size)
    if any(n > o for o, n in zip(old, new, strict=True)):
        raise ValueError(f"area averaging shrinks an image: {old} cannot become {new}")
    factors = {o // n if o % n == 0 else 0 for o, n in zip(old, new, strict=True)}
    if len(factors) == 1 and 0 not in factors:
        return AreaDegradation(factors.pop()).degrade(image)
    rows, columns = (_area_weights(o, n).to(image) for o, n in zip(old, new, strict=True))
    return rows @ image @ columns.T


def _area_weights(n_in: int, n_out: int) -> Tensor:
    """(n_out, n_in): the share of each input pixel in each output pixel; rows sum to one."""
    edges = torch.arange(n_out + 1, dtype=torch.float64) * n_in / n_out
    start = torch.arange(n_in, dtype=torch.float64)
    upper = torch.minimum(edges[1:, None], start + 1)
    lower = torch.maximum(edges[:-1, None], start)
    return (upper - lower).clamp(min=0) * n_out / n_in
