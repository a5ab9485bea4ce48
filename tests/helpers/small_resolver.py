"""A small network for super-resolution, its model file, and a bundle that samples with it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from cgdpm_med.diffusion.schedule import NoiseSchedule
from cgdpm_med.diffusion.targets import ImageTarget
from cgdpm_med.models import describe, save_model
from cgdpm_med.networks.unet import ConditionalUNet


def small_unet(cond_scale: int = 4) -> ConditionalUNet:
    torch.manual_seed(0)
    network = ConditionalUNet(
        in_channels=3,
        cond_channels=3,
        out_channels=3,
        channels=(8, 16),
        num_res_blocks=1,
        attention_levels=(False, False),
        cond_scale=cond_scale,
    )
    for parameter in network.parameters():  # the untrained head and residual paths are zero, which would hide windows
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return network.eval()


BUNDLE = """
imports:
  - $import cgdpm_med
bundle_root: .
weights: $@bundle_root + '/models/model.pt'
guidance_weights: $@bundle_root + '/models/guidance.pt'
guidance_scale: 0.0
device: cpu
window: 16
members: 1
steps: 2
model: $cgdpm_med.load_model(@weights)
resolver:
  _target_: cgdpm_med.SuperResolver
  predictor:
    _target_: cgdpm_med.DiffusionPredictor
    denoiser: $@model.network
    guide: $@model.guide(@guidance_weights) if @guidance_scale else None
    guidance_scale: '@guidance_scale'
    schedule: $@model.schedule
    target: $@model.target
    steps: '@steps'
    members: '@members'
  window: '@window'
  device: '@device'
"""


def save_small_model(path: Path, guides: Path | None = None) -> None:
    network = small_unet(cond_scale=2)
    picture = {"kind": "picture", "window": 16}
    save_model(path, network, describe(network, ImageTarget(3, 2), NoiseSchedule(), picture, guides=guides))
