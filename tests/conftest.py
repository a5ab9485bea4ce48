"""Shared fixtures: where the optional development data lies, and reproducible generators."""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

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


def load_script(name: str) -> ModuleType:
    """scripts/NAME.py as a module, once."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, REPO / "scripts" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # its dataclasses look themselves up there
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture
def leaves_no_determinism() -> Iterator[None]:
    """Bundles call MONAI's ``set_determinism``, which other tests shall not inherit."""
    yield
    from monai.utils import set_determinism

    set_determinism(seed=None)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def quiet_headers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test is the first in its process to meet a header conflict, and meets it quietly unless it looks."""
    from cgdpm_med.volumes import HeaderWarning, grid

    monkeypatch.setattr(grid, "_WARNED", set())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HeaderWarning)
        yield
