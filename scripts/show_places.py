"""A denoiser that is shown the place of each slice in its stack, too, made from one that is not.

python scripts/show_places.py bundles/acdc_segmentation/models/denoiser/model.pt OUT.pt

The new channels' weights are zero: the network predicts what it did, until it is trained on (configs/recipes/
slice_places.yaml, with OUT.pt as --initial-weights of scripts/recipes.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cgdpm_med import ConditionalUNet, VolumeInput, load_model, save_model
from cgdpm_med.files import InputError
from cgdpm_med.models.description import ModelDescription


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a model file whose input is of volumes")
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    try:
        show_places(arguments.source, arguments.target)
    except InputError as error:
        parser.exit(2, f"error: {error}\n")


def show_places(source: Path, target: Path) -> None:
    """Write the wider network.

    Raises:
        InputError: for a file that shows no volumes, shows their places already, or is of another network than a
            denoiser's in 2D; or where ``target`` is ``source``.
    """
    if source.resolve() == target.resolve():
        raise InputError("is the file to widen", path=target, remedy="Give another place for the result")
    model = load_model(source)
    if not isinstance(model.input, VolumeInput) or model.input.places:
        raise InputError("shows no volumes, or the places of their slices already", path=source, remedy="Give another")
    if not isinstance(model.network, ConditionalUNet) or model.network.spatial_dims != 2 or model.walk:
        what = "is no ConditionalUNet of slices that serves every walk"
        raise InputError(what, path=source, remedy="Give a denoiser that is not distilled")
    seen, shown = len(model.input.channels), replace(model.input, places=True)
    network: dict[str, Any] = {**model.description.network}
    network["arguments"] = {**network["arguments"], "cond_channels": len(shown.channels)}
    description = replace(model.description, network=network, input=shown, precision="float32", rounded_from=None)
    save_model(target, widened(model.network.state_dict(), description, seen), description)


def widened(tensors: Mapping[str, Tensor], description: ModelDescription, seen: int) -> dict[str, Tensor]:
    """The same weights, with zeros for the channels that follow the ``seen`` ones wherever the image comes in."""
    of_image = {
        name
        for name, tensor in tensors.items()
        if name.startswith("cond_") and tensor.ndim == 4 and tensor.shape[1] == seen
    }
    added = description.network["arguments"]["cond_channels"] - seen
    return {
        name: F.pad(tensor, (0, 0, 0, 0, 0, added)) if name in of_image else tensor for name, tensor in tensors.items()
    }


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
