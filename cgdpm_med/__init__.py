"""cgdpm_med: conditional guided diffusion for medical imaging, on MONAI.

Notation used throughout code and documentation:

=============  =============================================================================
``x_0``        the diffusion target: a mask in {-1, +1} channels, or a high-resolution image
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

__version__ = "0.1.0"

# name -> module that defines it; keep the storeys' order of DESIGN: networks, diffusion, rooms, apps
_EXPORTS: dict[str, str] = {
    # networks
    "ConditionalUNet": "networks.unet",
    "ConditionFeatures": "networks.unet",
    "Denoiser": "networks.denoiser",
    "ClassConditioned": "networks.classes",
    "append_class": "networks.classes",
    "load_adm_upsampler": "networks.adm",
    # diffusion
    "NoiseSchedule": "diffusion.schedule",
    "Sampling": "diffusion.sampling",
    "sample": "diffusion.sampling",
    "trajectory": "diffusion.sampling",
    "DiffusionLoss": "diffusion.losses",
    "NoisyTimesteps": "diffusion.losses",
    "Target": "diffusion.targets",
    "MaskTarget": "diffusion.targets",
    "ImageTarget": "diffusion.targets",
    "ResidualTarget": "diffusion.targets",
    "MaskDenoiser": "diffusion.targets",
    "AreaDegradation": "diffusion.degradation",
    "sample_ensemble": "diffusion.ensemble",
    "KeyedNoise": "diffusion.ensemble",
    "GuidanceLoss": "diffusion.losses",
    "Replay": "diffusion.guidance",
    "ScaledGuide": "diffusion.guidance",
    "guided": "diffusion.guidance",
    "ConditionOnly": "diffusion.baselines",
    "Mirrored": "diffusion.baselines",
    "NoiseLevelConditioned": "diffusion.baselines",
    "Regression": "diffusion.baselines",
    # rooms
    "keep_freed_memory": "runtime.allocator",
    "leave_process_group": "runtime.processes",
    "LoadVolumed": "transforms",
    "ShortAxisd": "transforms",
    "LoneSpacingd": "transforms",
    "Degraded": "transforms",
    "RandDegraded": "transforms",
    "FuseMembersd": "transforms",
    "SaveOnGridd": "transforms",
    "slice_stack": "slices",
    "SliceDataset": "slices",
    "EpochSampler": "slices",
    "SliceAugment": "augment",
    "Autocast": "runtime.autocast",
    "DiffusionPredictor": "predictor",
    "autocast_dtype": "runtime.precision",
    "optimise": "runtime.layers",
    "RegionInferer": "inferers",
    "SliceEnsembleInferer": "inferers",
    "WindowedDenoiser": "inferers",
    "TargetPrepareBatch": "engines",
    "DiffusionUpdate": "engines",
    "BestWeights": "engines",
    "TrainingState": "engines",
    "WarmupCosine": "engines",
    "load_weights": "engines",
    "save_weights": "engines",
    "Progress": "handlers",
    "guide_from_denoiser": "guidance_training",
    "guidance_weighting": "guidance_training",
    "guidance_beside": "guidance_training",
    "load_guide": "guidance_training",
    "ReplayLoader": "guidance_training",
    "examples_prepare_batch": "guidance_training",
    "SampleGrid": "handlers",
    "Grid": "volumes",
    "InputError": "volumes",
    "Volume": "volumes",
    "read_labels": "volumes",
    "read_volume": "volumes",
    "find_dicom": "volumes",
    "read_dicom": "volumes",
    "refined_grid": "volumes",
    "ShortAxisView": "volumes",
    "short_axis_view": "volumes",
    "view_of": "volumes",
    "write_on_grid": "volumes",
    "AcdcPatient": "data",
    "acdc_datalist": "data",
    "acdc_patients": "data",
    "load_split": "data",
    "AppendClassd": "images",
    "AugmentedPictures": "images",
    "CentreSquared": "images",
    "LoadPictured": "images",
    "Picture": "images",
    "SavePictured": "images",
    "area_resize": "images",
    "class_indices": "images",
    "hold_out": "images",
    "image_datalist": "images",
    "imagenet_datalist": "images",
    "read_class_map": "images",
    "read_picture": "images",
    "readable_pictures": "images",
    "write_picture": "images",
    "PhantomSpec": "phantom",
    "make_phantom": "phantom",
    "write_phantom_dataset": "phantom",
    "write_phantom_patient": "phantom",
    "SurfaceDistances": "metrics",
    "VolumeScore": "metrics",
    "brier": "metrics",
    "calibration_error": "metrics",
    "calibration_table": "metrics",
    "consistency": "metrics",
    "dice_per_structure": "metrics",
    "error_uncertainty_auroc": "metrics",
    "expected_calibration_error": "metrics",
    "foreground_region": "metrics",
    "generalised_energy_distance": "metrics",
    "interval_coverage": "metrics",
    "mean_pairwise_dice": "metrics",
    "pairwise_dice": "metrics",
    "predicted_true_dice_correlation": "metrics",
    "psnr": "metrics",
    "score_volume": "metrics",
    "ssim": "metrics",
    "summarise": "metrics",
    "surface_distances": "metrics",
    "FeatureStatistics": "generation_metrics",
    "Inception": "generation_metrics",
    "InceptionScore": "generation_metrics",
    "Lpips": "generation_metrics",
    "frechet_distance": "generation_metrics",
    "generation_scores": "generation_metrics",
    "conformal_factor": "calibration",
    "fit_temperature": "calibration",
    "temper": "calibration",
    # apps
    "SuperResolver": "apps.super_resolve",
    "super_resolve": "apps.super_resolve",
    "find_images": "apps.super_resolve",
    "contact_sheet": "apps.contact_sheet",
    "evaluate_super_resolution": "apps.evaluate_pictures",
    "format_picture_summary": "apps.evaluate_pictures",
    "bundle_path": "apps.bundles",
    "list_bundles": "apps.bundles",
    "Case": "apps.cases",
    "Subject": "apps.cases",
    "find_cases": "apps.cases",
    "pair_masks": "apps.cases",
    "require_success": "apps.console",
    "channel_names": "apps.labels",
    "Segmentation": "apps.segment",
    "Segmenter": "apps.segment",
    "KeepingSegmenter": "apps.keep",
    "segment": "apps.pipeline",
    "segment_all": "apps.pipeline",
    "segment_cases": "apps.pipeline",
    "save_segmentation": "apps.outputs",
    "evaluate_acdc": "apps.evaluate",
    "evaluate_folders": "apps.evaluate_masks",
    "evaluate_pairs": "apps.evaluate_masks",
    "evaluate_segmentation": "apps.evaluate_case",
    "evaluate_segmenter": "apps.evaluate",
    "format_summary": "apps.evaluate_files",
    "LabelSet": "apps.label_names",
    "parse_labels": "apps.label_names",
    "compare_methods": "apps.compare",
    "draw_overlay": "apps.overlay",
    "run_demo": "apps.demo",
    "CardiacFunction": "apps.cardiac",
    "Estimate": "apps.cardiac",
    "cardiac_function": "apps.cardiac",
    "frame_volumes": "apps.cardiac",
    "volume_curve": "apps.cardiac",
    "write_cohort_csv": "apps.cardiac",
    "Calibration": "apps.calibration_file",
    "find_calibration": "apps.calibration_file",
    "read_calibration": "apps.calibration_file",
    "calibrate": "apps.calibrate",
    "record_split": "apps.training_patients",
    "Quality": "apps.quality",
    "QualityLimits": "apps.quality",
    "assess_frame": "apps.quality",
    "assess_function": "apps.quality",
    "staple": "apps.staple",
    "fuse_staple": "apps.staple",
    "Study": "apps.study",
    "StudyResult": "apps.study",
    "write_cohort": "apps.study",
    "collect_cohort": "apps.records",
    "Options": "apps.pipeline",
    "Provenance": "apps.report",
    "case_report": "apps.report",
    "cohort_report": "apps.report",
    "provenance": "apps.report",
    "write_report": "apps.report",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'cgdpm_med' has no attribute {name!r}")
    value = getattr(import_module(f"cgdpm_med.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
