"""cgdpm_med: conditional guided diffusion for medical imaging, on MONAI.

Notation used throughout code and documentation:

=============  =============================================================================
``x_0``        the diffusion target: a mask as channels at ± its scale, an image, or its residual
``y``          the condition image (cardiac MRI, or the low-resolution image)
``x_t``        the noisy target at timestep ``t``; ``t`` = 0 … T-1 indexes tables, T = 1000
``eps``        the Gaussian noise in ``x_t``, or its prediction
``beta[t]``    variance added at step ``t``; ``alpha[t] = 1 - beta[t]``
``alpha_bar``  cumulative product of ``alpha``
``s_0``        the true target in the guidance loss (eq. 10)
``F``, ``f``   guidance score and its network output, ``f = sqrt(1 - alpha_bar[t]) F``
``w``          guidance scale
=============  =============================================================================

Public names are imported on first use, so ``import cgdpm_med`` is light and never imports MONAI.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.3.0"

# name -> module that defines it; in the order of docs/architecture.md: networks, diffusion, rooms, apps
_EXPORTS: dict[str, str] = {
    # networks
    "ConditionalUNet": "networks.unet",
    "ClassConditioned": "networks.classes",
    "load_adm_upsampler": "networks.adm",
    # diffusion
    "NoiseSchedule": "diffusion.schedule",
    "Sampling": "diffusion.sampling",
    "DiffusionLoss": "diffusion.losses",
    "NoisyTimesteps": "diffusion.losses",
    "Target": "diffusion.targets",
    "MaskTarget": "diffusion.targets",
    "ImageTarget": "diffusion.targets",
    "ResidualTarget": "diffusion.targets",
    "MaskDenoiser": "diffusion.targets",
    "sample_ensemble": "runtime.batching",
    "GuidanceLoss": "diffusion.losses",
    "Replay": "diffusion.guidance",
    "ScaledGuide": "diffusion.guidance",
    "ConditionOnly": "diffusion.baselines",
    "Mirrored": "diffusion.baselines",
    "NoiseLevelConditioned": "diffusion.baselines",
    "Regression": "diffusion.baselines",
    # rooms
    "keep_freed_memory": "runtime.allocator",
    "leave_process_group": "runtime.processes",
    "LoadVolumed": "data.transforms",
    "ShortAxisd": "data.transforms",
    "LoneSpacingd": "data.transforms",
    "Degraded": "data.transforms",
    "CombineMembersd": "data.transforms",
    "SaveOnGridd": "data.transforms",
    "SliceDataset": "data.slices",
    "EpochSampler": "data.slices",
    "SliceAugment": "data.augment",
    "Autocast": "runtime.autocast",
    "DiffusionPredictor": "inference.predictor",
    "autocast_dtype": "runtime.precision",
    "RegionInferer": "inference.inferers",
    "SliceEnsembleInferer": "inference.inferers",
    "TargetPrepareBatch": "training.engines",
    "DiffusionUpdate": "training.engines",
    "BestWeights": "training.engines",
    "TrainingState": "training.engines",
    "WarmupCosine": "training.engines",
    "VolumeInput": "models",
    "describe": "models",
    "guidance_beside": "models",
    "load_model": "models",
    "load_upsampler": "models",
    "load_weights": "models",
    "save_model": "models",
    "Progress": "training.handlers",
    "guide_from_denoiser": "training.guidance",
    "guidance_weighting": "diffusion.guidance",
    "ReplayLoader": "training.guidance",
    "examples_prepare_batch": "training.guidance",
    "SampleGrid": "training.handlers",
    "InputError": "files",
    "Volume": "volumes",
    "read_labels": "volumes",
    "read_volume": "volumes",
    "find_dicom": "volumes.dicom.finding",
    "read_dicom": "volumes.dicom.finding",
    "acdc_datalist": "data.acdc",
    "AppendClassd": "images",
    "AugmentedPictures": "images",
    "CentreSquared": "images",
    "LoadPictured": "images",
    "SavePictured": "images",
    "hold_out": "images",
    "image_datalist": "images",
    "imagenet_datalist": "images",
    "readable_pictures": "images",
    "repeated": "images",
    "write_phantom_dataset": "phantom",
    # apps
    "SuperResolver": "apps.resolver",
    "super_resolve": "apps.super_resolve",
    "find_images": "apps.super_resolve",
    "evaluate_super_resolution": "apps.evaluate_pictures",
    "format_picture_summary": "apps.evaluate_pictures",
    "bundle_path": "inference.bundles",
    "list_bundles": "inference.bundles",
    "find_cases": "studies.cases",
    "require_success": "console",
    "Segmenter": "inference.segmenter",
    "KeepingSegmenter": "studies.keep",
    "segment": "apps.pipeline",
    "segment_all": "apps.pipeline",
    "evaluate_acdc": "evaluation.segmenter",
    "evaluate_folders": "evaluation.masks",
    "evaluate_pairs": "evaluation.masks",
    "format_summary": "evaluation.files",
    "parse_labels": "evaluation.label_names",
    "compare_methods": "evaluation.compare",
    "draw_overlay": "report.overlay",
    "find_calibration": "evaluation.calibration_file",
    "read_calibration": "evaluation.calibration_file",
    "calibrate": "evaluation.calibrate",
    "record_split": "evaluation.training_patients",
    "training_data": "evaluation.training_patients",
    "QualityLimits": "inference.quality",
    "staple": "inference.staple",
    "Options": "apps.segment_options",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'cgdpm_med' has no attribute {name!r}")
    value = getattr(import_module(f"cgdpm_med.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
