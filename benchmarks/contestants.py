"""The networks that are compared, what they cost, and something to run them on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cgdpm_med import ConditionalUNet, DiffusionPredictor, MaskDenoiser, NoiseSchedule, Segmenter

CLASSES = 4
SCALE = 0.1  # of the encoded masks, as in the shipped bundle
# Found by search over widths in multiples of 32: parameters and FLOPs within a tenth of the shipped network's, whether
# its condition branch is counted or not. Attention as there, at the coarsest level, with heads of 64 channels.
MONAI_CHANNELS = (32, 32, 64, 96, 192, 192)


def shipped(**settings: Any) -> DiffusionPredictor:
    """The predictor of the cardiac bundle with its weights and these settings of inference.yaml.

    It is unguided, and every member makes all steps itself, as the members of others do.
    """
    alone = {"guidance_scale": 0.0, "shared_first_step": False}
    predictor = Segmenter.from_bundle("acdc_segmentation", **{**alone, **settings}).predictor
    assert isinstance(predictor, DiffusionPredictor)
    return predictor


def network_of(predictor: DiffusionPredictor) -> ConditionalUNet:
    """The network inside the predictor's denoiser."""
    network = predictor.denoiser.get_submodule("network")
    assert isinstance(network, ConditionalUNet)
    return network


def shipped_unet() -> ConditionalUNet:
    """The cardiac bundle's network alone, with its weights."""
    return copy.deepcopy(network_of(shipped())).eval()


def monai_unet(cond_channels: int, head_channels: int = 64) -> nn.Module:
    """MONAI's DiffusionModelUNet of the shipped network's size, with the condition concatenated to its input."""
    from monai.networks.nets import DiffusionModelUNet

    torch.manual_seed(0)
    levels = len(MONAI_CHANNELS)
    network = DiffusionModelUNet(
        spatial_dims=2,
        in_channels=CLASSES + cond_channels,
        out_channels=CLASSES,
        channels=MONAI_CHANNELS,
        num_res_blocks=1,
        attention_levels=(False,) * (levels - 1) + (True,),
        num_head_channels=head_channels,
    )
    return network.eval()


def monai_scheduler(steps: int) -> Any:
    """MONAI's DDIM with as many steps; x_0 prediction, as the shipped network has it."""
    from monai.networks.schedulers import DDIMScheduler

    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        schedule="cosine",
        prediction_type="sample",
        clip_sample_min=-SCALE,
        clip_sample_max=SCALE,
    )
    scheduler.set_timesteps(num_inference_steps=steps)
    return scheduler


def schedule() -> NoiseSchedule:
    """Of the shipped network."""
    return NoiseSchedule(1000, "cosine", "sample")


def mask_denoiser(network: nn.Module) -> MaskDenoiser:
    """The network's logits as a denoiser."""
    return MaskDenoiser(network, SCALE).eval()


def condition(slices: int, size: int, channels: int, device: str = "cpu") -> Tensor:
    """A volume's slices as condition images, (slices, channels, size, size); noise costs what images cost."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(slices, channels, size, size, generator=generator).to(device)


def parameters(network: nn.Module) -> int:
    """How many numbers a network holds."""
    return sum(parameter.numel() for parameter in network.parameters())


def flops(work: Callable[[], Any]) -> int:
    """Floating-point operations of ``work`` by PyTorch's own counter: matrix products and convolutions."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())
