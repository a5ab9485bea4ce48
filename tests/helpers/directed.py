"""The shipped bundle's own transforms around a predictor that knows its directions, and images that show them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from conftest import REPO
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from cgdpm_med import Sampling, Segmenter

BUNDLE = REPO / "bundles" / "acdc_segmentation"


class Directed(torch.nn.Module):
    """Stands where the networks do: two members, classes by brightness and by where brightness rises."""

    sampling, precision, guide, out_channels = Sampling(members=2, steps=1), "float32", None, 4

    def infer(self, image: MetaTensor, _: object, progress: Callable[[int], None] | None = None) -> MetaTensor:
        x = torch.as_tensor(image).as_subclass(torch.Tensor)[0, 0]
        right, down, apex = (x.roll(-1, axis) - 0.4 * x for axis in range(3))
        far = torch.linspace(-1, 1, x.shape[2]).expand_as(x)
        logits = [torch.stack([0 * x, right, down + 0.2 * far, apex + k]) for k in (0.0, 0.3)]
        members = torch.cat([(3 * member).softmax(0) for member in logits])
        return MetaTensor(members[None], meta=image.meta)


def stub_segmenter(field: int = 64) -> Segmenter:
    """The bundle's preprocessing and decoding around :class:`Directed`."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.yaml"))
    parser["bundle_root"], parser["field"] = str(BUNDLE), field
    forth, back = (parser.get_parsed_content(name) for name in ("preprocessing", "decoding"))
    stub = Directed()
    return Segmenter(forth, stub.infer, stub, back)  # type: ignore[arg-type]


SEGMENTER = stub_segmenter()


def smooth_noise(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Neither constant nor symmetric, and rough at the scale of some voxels, so resampling blurs it little."""
    rng = np.random.default_rng(seed)
    coarse = torch.tensor(rng.normal(size=(1, 1, *(max(2, n // 4) for n in shape))))
    fine = torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear", align_corners=True)
    return (100 + 40 * fine[0, 0].numpy()).astype(np.float32)
