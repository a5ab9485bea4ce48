"""What is learned: the conditional U-Net. Needs torch alone."""

from .unet import FUSIONS, ConditionalUNet, ConditionFeatures

__all__ = ["FUSIONS", "ConditionFeatures", "ConditionalUNet"]
