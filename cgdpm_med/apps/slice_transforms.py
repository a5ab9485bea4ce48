"""Dictionary transforms of a run's ``inference.yaml``: what MONAI's engines do of what ``segment`` does."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform

from cgdpm_med.apps.segment_images import save_mask
from cgdpm_med.apps.segment_slices import SliceSegmenter, combined
from cgdpm_med.console import require_success
from cgdpm_med.datasets.loading import input_files


def image_items(source: str | Path, channels: int) -> list[dict[str, Any]]:
    """A datalist of a folder: ``image``, the files of the channels, and ``key``, its name.

    Raises:
        InputError: as :func:`~cgdpm_med.datasets.loading.input_files`; and for two files of one name.
    """
    found, unnamed = input_files(Path(source), channels)
    require_success({"failed": unnamed})
    return [{"image": [str(path) for path in files], "key": key} for key, files in found.items()]


class PrepareSlicesd(MapTransform):
    """Files of an image to what the network sees, (C, X, Y, Z), with the files and the key of the noise as metadata."""

    def __init__(self, segmenter: SliceSegmenter, keys: str = "image") -> None:
        super().__init__(keys)
        self.segmenter = segmenter

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            files = [Path(file) for file in out[key]]
            prepared = self.segmenter.prepared(self.segmenter.loaded(files))
            names = json.dumps([str(file) for file in files])  # as one text, which collating leaves alone
            meta = {"filename_or_obj": str(files[0]), "files": names, "key": str(out["key"])}
            out[key] = MetaTensor(prepared, meta=meta)
        return out


class SaveSlicesd(MapTransform):
    """Members of the network, ``pred``, to the files that ``segment`` writes of an image."""

    def __init__(self, segmenter: SliceSegmenter, output_dir: str | Path, keys: str = "pred") -> None:
        super().__init__(keys)
        self.segmenter, self.output_dir = segmenter, Path(output_dir)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            meta, channels = out["image"].meta, self.segmenter.predictor.out_channels
            loaded = self.segmenter.loaded([Path(file) for file in json.loads(meta["files"])])
            plain = torch.as_tensor(out[key]).cpu().as_subclass(torch.Tensor)
            mask = combined(self.segmenter.returned(plain, loaded), loaded, channels, self.segmenter.calibration)
            save_mask(mask, loaded, self.output_dir, str(meta["key"]), self.segmenter.labels)
            out[key] = torch.as_tensor(mask.mask)[None]
        return out
