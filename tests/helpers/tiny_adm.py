"""A file like ADM's upsamplers, small enough for tests: two levels, two classes, learned variance."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from cgdpm_med.networks.adm import AdmTopology, adm_network, adm_tensors

TOPOLOGY = AdmTopology(3, (8, 16), 1, (False, True), 2, True)
NUM_HEADS = 1


def write_tiny_adm(path: Path, cond_scale: int = 4, seed: int = 0) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = adm_network(TOPOLOGY, cond_scale=cond_scale, num_heads=NUM_HEADS)
        for parameter in network.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
    torch.save(adm_tensors(network, TOPOLOGY), path)
    return path
