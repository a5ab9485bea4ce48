"""What is learned: the conditional U-Net, and published weights read into it. Needs torch alone."""

from .adm import load_adm_upsampler
from .classes import ClassConditioned, append_class
from .denoiser import Denoiser
from .unet import FUSIONS, ConditionalUNet, ConditionFeatures

__all__ = [
    "FUSIONS",
    "ClassConditioned",
    "ConditionFeatures",
    "ConditionalUNet",
    "Denoiser",
    "append_class",
    "load_adm_upsampler",
]
