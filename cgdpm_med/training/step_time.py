"""How long a training step takes here, so that hours can be told in steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import torch

from cgdpm_med.diffusion.losses import DiffusionLoss
from cgdpm_med.diffusion.schedule import NoiseSchedule
from cgdpm_med.diffusion.targets import MaskTarget
from cgdpm_med.networks.unet import ConditionalUNet
from cgdpm_med.runtime.layers import optimise
from cgdpm_med.runtime.precision import autocast_dtype


def step_seconds(
    *,
    classes: int,
    channels: int,
    widths: Sequence[int],
    patch_size: int,
    crop: Sequence[int],
    batch_size: int,
    device: torch.device,
    steps: int = 6,
) -> float:
    """Median seconds of a step on random numbers, as ``train.yaml`` takes it; the first two are not counted."""
    target = MaskTarget(classes)
    network = optimise(
        ConditionalUNet(
            in_channels=target.channels,
            cond_channels=channels,
            out_channels=target.channels,
            channels=widths,
            num_res_blocks=1,
            attention_levels=[*[False] * (len(widths) - 1), True],
            num_head_channels=32,
            patch_size=patch_size,
        ).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ).train()
    loss = DiffusionLoss(NoiseSchedule(schedule="cosine", prediction_type="sample"), target)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    dtype = autocast_dtype(device, "auto")
    y = torch.randn((batch_size, channels, *crop), device=device)
    x_0 = target.encode(torch.zeros((batch_size, 1, *crop), dtype=torch.long, device=device))
    times = []
    for _ in range(2 + steps):
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            value = loss(network, x_0, y)
        value.backward()
        optimizer.step()
        value.item()  # waits for a GPU
        times.append(time.perf_counter() - begin)
    return median(times[2:])
