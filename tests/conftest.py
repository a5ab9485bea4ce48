"""Shared fixtures: where the optional development data lies, and reproducible generators."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# tiny networks: more threads only wait for each other
torch.set_num_threads(1)

REPO = Path(__file__).resolve().parents[1]


def shared_path(*parts: str) -> Path:
    """Path below the development data folder, or skip the calling test with the reason when it is absent."""
    root = Path(os.environ.get("CGDPM_SHARED", REPO.parent / "shared"))
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"development data not present: {'/'.join(parts)} (set CGDPM_SHARED)")
    return path


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
