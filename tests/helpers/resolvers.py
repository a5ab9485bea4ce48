"""Resolvers whose network is a known function, and bundles of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cgdpm_med.apps.resolver import SuperResolver
from cgdpm_med.diffusion.degradation import Degradation
from cgdpm_med.diffusion.schedule import NoiseSchedule
from cgdpm_med.diffusion.targets import ResidualTarget
from cgdpm_med.inference.predictor import DiffusionPredictor
from cgdpm_med.models import describe, save_model
from cgdpm_med.models.description import CoarseSliceInput, PictureInput
from cgdpm_med.networks.unet import ConditionalUNet


class NoiseItself(nn.Module):
    """x_0 is ``strength`` times x_t, whatever the condition."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return self.strength * x_t


def noisy_resolver(
    strength: float = 0.2,
    factor: int = 2,
    degradation: Degradation | None = None,
    window: int | None = None,
    input: PictureInput | CoarseSliceInput | None = None,
    **sampling: Any,
) -> SuperResolver:
    """The interpolation of a grey image and noise, made to agree with the image."""
    target = ResidualTarget(1, factor, scale=1.0, degradation=degradation, clip=degradation is None)
    predictor = DiffusionPredictor(
        NoiseItself(strength),
        schedule=NoiseSchedule(prediction_type="sample"),
        target=target,
        precision="float32",
        **{"steps": 1, "members": 1, **sampling},
    )
    resolver = SuperResolver(predictor, window, input=input)
    resolver.channels = 1
    return resolver


INFERENCE = """
imports:
  - $import cgdpm_med
bundle_root: .
weights: $@bundle_root + '/models/model.pt'
device: cpu
members: 1
steps: 1
noise_scale: 1.0
seed: 0
window: $@model.input.window
model: $cgdpm_med.load_model(@weights)
resolver:
  _target_: cgdpm_med.SuperResolver
  predictor:
    _target_: cgdpm_med.DiffusionPredictor
    denoiser: $@model.network
    schedule: $@model.schedule
    target: $@model.target
    steps: '@steps'
    noise_scale: '@noise_scale'
    members: '@members'
    seed: '@seed'
  window: '@window'
  device: '@device'
  weights: '@weights'
  input: $@model.input
"""


def small_bundle(
    folder: Path,
    input: PictureInput | CoarseSliceInput,
    degradation: Degradation | None = None,
    factor: int = 2,
) -> Path:
    """A bundle of one grey channel with seeded weights."""
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "inference.yaml").write_text(INFERENCE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ConditionalUNet(
            in_channels=1,
            cond_channels=1,
            out_channels=1,
            channels=(8, 16),
            num_res_blocks=1,
            attention_levels=(False, False),
            cond_scale=factor,
        )
        for parameter in network.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.05)
    schedule, target = NoiseSchedule(prediction_type="sample"), ResidualTarget(1, factor, degradation=degradation)
    save_model(folder / "models" / "model.pt", network, describe(network, target, schedule, input))
    return folder
