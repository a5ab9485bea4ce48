"""A network small enough for tests, with every parameter that starts at zero made random."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cgdpm_med.diffusion.targets import MaskDenoiser
from cgdpm_med.networks.unet import ConditionalUNet


def field(*shape: int, seed: int = 0) -> Tensor:
    """Normal noise."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small_network(
    seed: int = 0, *, in_channels: int = 4, cond_channels: int = 1, **settings: object
) -> ConditionalUNet:
    """Two levels of 8 and 16 channels; sizes must be divisible by 2 (4 with patch_size=2)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ConditionalUNet(
            2,
            in_channels,
            cond_channels,
            in_channels,
            channels=(8, 16),
            num_res_blocks=1,
            attention_levels=(False, False),
            **settings,  # type: ignore[arg-type]
        )
        for parameter in network.parameters():
            if not parameter.any():  # a zero head would make every prediction the same
                nn.init.normal_(parameter, std=0.2)
    return network.eval()


def small_mask_denoiser(seed: int = 0, *, scale: float = 0.5, cond_channels: int = 1) -> MaskDenoiser:
    """Four classes."""
    return MaskDenoiser(small_network(seed, cond_channels=cond_channels), scale=scale)
