"""A file like ADM's upsamplers, small enough for tests: two levels, two classes, learned variance."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from cgdpm_med.networks.adm import AdmTopology, _build, _module_names

TOPOLOGY = AdmTopology(3, (8, 16), 1, (False, True), 2, True)
NUM_HEADS = 1


def write_tiny_adm(path: Path, cond_scale: int = 4, seed: int = 0) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _build(TOPOLOGY, "input", {"cond_scale": cond_scale, "num_heads": NUM_HEADS})
        for parameter in network.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
    # the one place where ADM's names depend on the tensors: up-sampling stands behind the coarse level's attention
    theirs = {
        ours: adm for adm, ours in _module_names({"output_blocks.1.2.in_layers.0.weight": torch.ones(1)}, TOPOLOGY)
    }
    ours = network.state_dict()
    stem = torch.cat([ours.pop("stem.weight"), ours.pop("cond_stem.weight")], dim=1)
    del ours["cond_stem.bias"]
    state = {f"{theirs[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": tensor for name, tensor in ours.items()}
    torch.save({**state, f"{theirs['stem']}.weight": stem}, path)
    return path
