"""Pictures: reading and writing files of any kind, datalists of folders and of ImageNet, dictionary transforms.

Inside the package a picture is an RGB tensor (3, H, W), float32 in [-1, 1], upright. ``pictures`` holds the files,
``datalists`` the folder layouts, ``transforms`` what a data pipeline does with them, ``training`` what a training run
draws.
"""

from __future__ import annotations

from cgdpm_med.images.datalists import (
    Readable,
    class_indices,
    image_datalist,
    imagenet_datalist,
    read_class_map,
    readable_pictures,
)
from cgdpm_med.images.pictures import PICTURE_SUFFIXES, Picture, read_picture, write_picture
from cgdpm_med.images.training import AugmentedPictures, HeldOut, hold_out, repeated
from cgdpm_med.images.transforms import (
    AppendClassd,
    CentreSquared,
    LoadPictured,
    SavePictured,
    area_resize,
    largest_centre_square,
)

__all__ = [
    "PICTURE_SUFFIXES",
    "AppendClassd",
    "AugmentedPictures",
    "CentreSquared",
    "HeldOut",
    "LoadPictured",
    "Picture",
    "Readable",
    "SavePictured",
    "area_resize",
    "class_indices",
    "hold_out",
    "image_datalist",
    "imagenet_datalist",
    "largest_centre_square",
    "read_class_map",
    "read_picture",
    "readable_pictures",
    "repeated",
    "write_picture",
]
