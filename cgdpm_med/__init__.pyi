"""The front door for type checkers, which cannot follow lazy imports; a test compares the two lists."""

from cgdpm_med.apps.evaluate_pictures import (
    evaluate_super_resolution as evaluate_super_resolution,
    format_picture_summary as format_picture_summary,
)
from cgdpm_med.apps.pipeline import segment as segment, segment_all as segment_all
from cgdpm_med.apps.resolver import SuperResolver as SuperResolver
from cgdpm_med.apps.segment_options import Options as Options
from cgdpm_med.apps.super_resolve import find_images as find_images, super_resolve as super_resolve
from cgdpm_med.console import require_success as require_success
from cgdpm_med.data.acdc import acdc_datalist as acdc_datalist
from cgdpm_med.data.augment import SliceAugment as SliceAugment
from cgdpm_med.data.slices import EpochSampler as EpochSampler, SliceDataset as SliceDataset
from cgdpm_med.data.transforms import (
    CombineMembersd as CombineMembersd,
    Degraded as Degraded,
    LoadVolumed as LoadVolumed,
    LoneSpacingd as LoneSpacingd,
    SaveOnGridd as SaveOnGridd,
    ShortAxisd as ShortAxisd,
)
from cgdpm_med.diffusion.baselines import (
    ConditionOnly as ConditionOnly,
    Mirrored as Mirrored,
    NoiseLevelConditioned as NoiseLevelConditioned,
    Regression as Regression,
)
from cgdpm_med.diffusion.guidance import (
    Replay as Replay,
    ScaledGuide as ScaledGuide,
    guidance_weighting as guidance_weighting,
)
from cgdpm_med.diffusion.losses import (
    DiffusionLoss as DiffusionLoss,
    GuidanceLoss as GuidanceLoss,
    NoisyTimesteps as NoisyTimesteps,
)
from cgdpm_med.diffusion.sampling import Sampling as Sampling
from cgdpm_med.diffusion.schedule import NoiseSchedule as NoiseSchedule
from cgdpm_med.diffusion.targets import (
    ImageTarget as ImageTarget,
    MaskDenoiser as MaskDenoiser,
    MaskTarget as MaskTarget,
    ResidualTarget as ResidualTarget,
    Target as Target,
)
from cgdpm_med.evaluation.calibrate import calibrate as calibrate
from cgdpm_med.evaluation.calibration_file import (
    find_calibration as find_calibration,
    read_calibration as read_calibration,
)
from cgdpm_med.evaluation.compare import compare_methods as compare_methods
from cgdpm_med.evaluation.files import format_summary as format_summary
from cgdpm_med.evaluation.label_names import parse_labels as parse_labels
from cgdpm_med.evaluation.masks import evaluate_folders as evaluate_folders, evaluate_pairs as evaluate_pairs
from cgdpm_med.evaluation.segmenter import evaluate_acdc as evaluate_acdc
from cgdpm_med.evaluation.training_patients import record_split as record_split, training_data as training_data
from cgdpm_med.files import InputError as InputError
from cgdpm_med.images import (
    AppendClassd as AppendClassd,
    AugmentedPictures as AugmentedPictures,
    CentreSquared as CentreSquared,
    LoadPictured as LoadPictured,
    SavePictured as SavePictured,
    hold_out as hold_out,
    image_datalist as image_datalist,
    imagenet_datalist as imagenet_datalist,
    readable_pictures as readable_pictures,
    repeated as repeated,
)
from cgdpm_med.inference.bundles import bundle_path as bundle_path, list_bundles as list_bundles
from cgdpm_med.inference.inferers import RegionInferer as RegionInferer, SliceEnsembleInferer as SliceEnsembleInferer
from cgdpm_med.inference.predictor import DiffusionPredictor as DiffusionPredictor
from cgdpm_med.inference.quality import QualityLimits as QualityLimits
from cgdpm_med.inference.segmenter import Segmenter as Segmenter
from cgdpm_med.inference.staple import staple as staple
from cgdpm_med.models import (
    VolumeInput as VolumeInput,
    describe as describe,
    guidance_beside as guidance_beside,
    load_model as load_model,
    load_upsampler as load_upsampler,
    load_weights as load_weights,
    save_model as save_model,
)
from cgdpm_med.networks.adm import load_adm_upsampler as load_adm_upsampler
from cgdpm_med.networks.classes import ClassConditioned as ClassConditioned
from cgdpm_med.networks.unet import ConditionalUNet as ConditionalUNet
from cgdpm_med.phantom import write_phantom_dataset as write_phantom_dataset
from cgdpm_med.report.overlay import draw_overlay as draw_overlay
from cgdpm_med.runtime.allocator import keep_freed_memory as keep_freed_memory
from cgdpm_med.runtime.autocast import Autocast as Autocast
from cgdpm_med.runtime.batching import sample_ensemble as sample_ensemble
from cgdpm_med.runtime.precision import autocast_dtype as autocast_dtype
from cgdpm_med.runtime.processes import leave_process_group as leave_process_group
from cgdpm_med.studies.cases import find_cases as find_cases
from cgdpm_med.studies.keep import KeepingSegmenter as KeepingSegmenter
from cgdpm_med.training.engines import (
    BestWeights as BestWeights,
    DiffusionUpdate as DiffusionUpdate,
    TargetPrepareBatch as TargetPrepareBatch,
    TrainingState as TrainingState,
    WarmupCosine as WarmupCosine,
)
from cgdpm_med.training.guidance import (
    ReplayLoader as ReplayLoader,
    examples_prepare_batch as examples_prepare_batch,
    guide_from_denoiser as guide_from_denoiser,
)
from cgdpm_med.training.handlers import Progress as Progress, SampleGrid as SampleGrid
from cgdpm_med.volumes import Volume as Volume, read_labels as read_labels, read_volume as read_volume
from cgdpm_med.volumes.dicom.finding import find_dicom as find_dicom, read_dicom as read_dicom

__version__: str
__all__: list[str]
