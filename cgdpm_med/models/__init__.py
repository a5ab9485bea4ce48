"""The model file: weights that know how they were trained, and how to use them.

``description`` is what a file says beside its tensors, ``rebuild`` turns objects into plain values and back,
``weights`` reads and writes tensors, ``files`` is the whole: :func:`save_model`, :func:`load_model`.
"""

from __future__ import annotations

from cgdpm_med.models.adm import load_upsampler
from cgdpm_med.models.description import Label, ModelDescription, PictureInput, TrainingData, VolumeInput
from cgdpm_med.models.files import Model, describe, describe_file, guidance_beside, load_model, save_model
from cgdpm_med.models.weights import load_weights, save_weights, weights_digest

__all__ = [
    "Label",
    "Model",
    "ModelDescription",
    "PictureInput",
    "TrainingData",
    "VolumeInput",
    "describe",
    "describe_file",
    "guidance_beside",
    "load_model",
    "load_upsampler",
    "load_weights",
    "save_model",
    "save_weights",
    "weights_digest",
]
