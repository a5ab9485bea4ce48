"""The front door for type checkers, which cannot follow lazy imports; a test compares the two lists."""

from cgdpm_med.apps.bundles import bundle_path as bundle_path, list_bundles as list_bundles
from cgdpm_med.apps.calibrate import calibrate as calibrate
from cgdpm_med.apps.calibration_file import (
    Calibration as Calibration,
    find_calibration as find_calibration,
    read_calibration as read_calibration,
)
from cgdpm_med.apps.cardiac import (
    CardiacFunction as CardiacFunction,
    Estimate as Estimate,
    cardiac_function as cardiac_function,
    frame_volumes as frame_volumes,
    volume_curve as volume_curve,
    write_cohort_csv as write_cohort_csv,
)
from cgdpm_med.apps.cases import Case as Case, Subject as Subject, find_cases as find_cases, pair_masks as pair_masks
from cgdpm_med.apps.compare import compare_methods as compare_methods
from cgdpm_med.apps.console import require_success as require_success
from cgdpm_med.apps.contact_sheet import contact_sheet as contact_sheet
from cgdpm_med.apps.demo import run_demo as run_demo
from cgdpm_med.apps.evaluate import evaluate_acdc as evaluate_acdc, evaluate_segmenter as evaluate_segmenter
from cgdpm_med.apps.evaluate_case import evaluate_segmentation as evaluate_segmentation
from cgdpm_med.apps.evaluate_files import format_summary as format_summary
from cgdpm_med.apps.evaluate_masks import evaluate_folders as evaluate_folders, evaluate_pairs as evaluate_pairs
from cgdpm_med.apps.evaluate_pictures import (
    evaluate_super_resolution as evaluate_super_resolution,
    format_picture_summary as format_picture_summary,
)
from cgdpm_med.apps.keep import KeepingSegmenter as KeepingSegmenter
from cgdpm_med.apps.label_names import LabelSet as LabelSet, parse_labels as parse_labels
from cgdpm_med.apps.labels import channel_names as channel_names
from cgdpm_med.apps.outputs import save_segmentation as save_segmentation
from cgdpm_med.apps.overlay import draw_overlay as draw_overlay
from cgdpm_med.apps.pipeline import (
    Options as Options,
    segment as segment,
    segment_all as segment_all,
    segment_cases as segment_cases,
)
from cgdpm_med.apps.quality import (
    Quality as Quality,
    QualityLimits as QualityLimits,
    assess_frame as assess_frame,
    assess_function as assess_function,
)
from cgdpm_med.apps.records import collect_cohort as collect_cohort
from cgdpm_med.apps.report import (
    Provenance as Provenance,
    case_report as case_report,
    cohort_report as cohort_report,
    provenance as provenance,
    write_report as write_report,
)
from cgdpm_med.apps.segment import Segmentation as Segmentation, Segmenter as Segmenter
from cgdpm_med.apps.staple import fuse_staple as fuse_staple, staple as staple
from cgdpm_med.apps.study import Study as Study, StudyResult as StudyResult, write_cohort as write_cohort
from cgdpm_med.apps.super_resolve import (
    SuperResolver as SuperResolver,
    find_images as find_images,
    super_resolve as super_resolve,
)
from cgdpm_med.apps.training_patients import record_split as record_split, training_data as training_data
from cgdpm_med.augment import SliceAugment as SliceAugment
from cgdpm_med.calibration import (
    conformal_factor as conformal_factor,
    fit_temperature as fit_temperature,
    temper as temper,
)
from cgdpm_med.data import (
    AcdcPatient as AcdcPatient,
    acdc_datalist as acdc_datalist,
    acdc_patients as acdc_patients,
    load_split as load_split,
)
from cgdpm_med.diffusion.baselines import (
    ConditionOnly as ConditionOnly,
    Mirrored as Mirrored,
    NoiseLevelConditioned as NoiseLevelConditioned,
    Regression as Regression,
)
from cgdpm_med.diffusion.degradation import AreaDegradation as AreaDegradation
from cgdpm_med.diffusion.ensemble import KeyedNoise as KeyedNoise, sample_ensemble as sample_ensemble
from cgdpm_med.diffusion.guidance import (
    Replay as Replay,
    ScaledGuide as ScaledGuide,
    guidance_weighting as guidance_weighting,
    guided as guided,
)
from cgdpm_med.diffusion.losses import (
    DiffusionLoss as DiffusionLoss,
    GuidanceLoss as GuidanceLoss,
    NoisyTimesteps as NoisyTimesteps,
)
from cgdpm_med.diffusion.sampling import Sampling as Sampling, sample as sample, trajectory as trajectory
from cgdpm_med.diffusion.schedule import NoiseSchedule as NoiseSchedule
from cgdpm_med.diffusion.targets import (
    ImageTarget as ImageTarget,
    MaskDenoiser as MaskDenoiser,
    MaskTarget as MaskTarget,
    ResidualTarget as ResidualTarget,
    Target as Target,
)
from cgdpm_med.engines import (
    BestWeights as BestWeights,
    DiffusionUpdate as DiffusionUpdate,
    TargetPrepareBatch as TargetPrepareBatch,
    TrainingState as TrainingState,
    WarmupCosine as WarmupCosine,
)
from cgdpm_med.generation_metrics import (
    FeatureStatistics as FeatureStatistics,
    Inception as Inception,
    InceptionScore as InceptionScore,
    Lpips as Lpips,
    frechet_distance as frechet_distance,
    generation_scores as generation_scores,
)
from cgdpm_med.guidance_training import (
    ReplayLoader as ReplayLoader,
    examples_prepare_batch as examples_prepare_batch,
    guide_from_denoiser as guide_from_denoiser,
    load_guide as load_guide,
)
from cgdpm_med.handlers import Progress as Progress, SampleGrid as SampleGrid
from cgdpm_med.images import (
    AppendClassd as AppendClassd,
    AugmentedPictures as AugmentedPictures,
    CentreSquared as CentreSquared,
    LoadPictured as LoadPictured,
    Picture as Picture,
    SavePictured as SavePictured,
    area_resize as area_resize,
    class_indices as class_indices,
    hold_out as hold_out,
    image_datalist as image_datalist,
    imagenet_datalist as imagenet_datalist,
    read_class_map as read_class_map,
    read_picture as read_picture,
    readable_pictures as readable_pictures,
    write_picture as write_picture,
)
from cgdpm_med.inferers import (
    RegionInferer as RegionInferer,
    SliceEnsembleInferer as SliceEnsembleInferer,
    WindowedDenoiser as WindowedDenoiser,
)
from cgdpm_med.metrics import (
    SurfaceDistances as SurfaceDistances,
    VolumeScore as VolumeScore,
    brier as brier,
    calibration_error as calibration_error,
    calibration_table as calibration_table,
    consistency as consistency,
    dice_per_structure as dice_per_structure,
    error_uncertainty_auroc as error_uncertainty_auroc,
    expected_calibration_error as expected_calibration_error,
    foreground_region as foreground_region,
    generalised_energy_distance as generalised_energy_distance,
    interval_coverage as interval_coverage,
    mean_pairwise_dice as mean_pairwise_dice,
    pairwise_dice as pairwise_dice,
    predicted_true_dice_correlation as predicted_true_dice_correlation,
    psnr as psnr,
    score_volume as score_volume,
    ssim as ssim,
    summarise as summarise,
    surface_distances as surface_distances,
)
from cgdpm_med.models import (
    ModelDescription as ModelDescription,
    PictureInput as PictureInput,
    VolumeInput as VolumeInput,
    describe as describe,
    guidance_beside as guidance_beside,
    load_model as load_model,
    load_weights as load_weights,
    save_model as save_model,
    save_weights as save_weights,
)
from cgdpm_med.networks.adm import load_adm_upsampler as load_adm_upsampler
from cgdpm_med.networks.classes import ClassConditioned as ClassConditioned, append_class as append_class
from cgdpm_med.networks.denoiser import Denoiser as Denoiser
from cgdpm_med.networks.unet import ConditionFeatures as ConditionFeatures, ConditionalUNet as ConditionalUNet
from cgdpm_med.phantom import (
    PhantomSpec as PhantomSpec,
    make_phantom as make_phantom,
    write_phantom_dataset as write_phantom_dataset,
    write_phantom_patient as write_phantom_patient,
)
from cgdpm_med.predictor import DiffusionPredictor as DiffusionPredictor
from cgdpm_med.runtime.allocator import keep_freed_memory as keep_freed_memory
from cgdpm_med.runtime.autocast import Autocast as Autocast
from cgdpm_med.runtime.layers import optimise as optimise
from cgdpm_med.runtime.precision import autocast_dtype as autocast_dtype
from cgdpm_med.runtime.processes import leave_process_group as leave_process_group
from cgdpm_med.slices import EpochSampler as EpochSampler, SliceDataset as SliceDataset, slice_stack as slice_stack
from cgdpm_med.transforms import (
    Degraded as Degraded,
    FuseMembersd as FuseMembersd,
    LoadVolumed as LoadVolumed,
    LoneSpacingd as LoneSpacingd,
    RandDegraded as RandDegraded,
    SaveOnGridd as SaveOnGridd,
    ShortAxisd as ShortAxisd,
)
from cgdpm_med.volumes import (
    Grid as Grid,
    InputError as InputError,
    ShortAxisView as ShortAxisView,
    Volume as Volume,
    find_dicom as find_dicom,
    read_dicom as read_dicom,
    read_labels as read_labels,
    read_volume as read_volume,
    refined_grid as refined_grid,
    short_axis_view as short_axis_view,
    view_of as view_of,
    write_on_grid as write_on_grid,
)

__version__: str
__all__: list[str]
