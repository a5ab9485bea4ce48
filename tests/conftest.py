"""Shared fixtures: where the optional development data lies, and reproducible generators."""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from data_sets import write_nnunet, write_pictures

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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
def pictures(tmp_path: Path) -> Path:
    """A data set of pictures with masks."""
    return write_pictures(tmp_path)


@pytest.fixture
def nnunet(tmp_path: Path) -> Path:
    """A data set of volumes in nnU-Net's layout."""
    return write_nnunet(tmp_path)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patient of each section; read only."""
    from phantoms_of_acdc import write_phantoms

    return write_phantoms(tmp_path_factory.mktemp("phantoms"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every bundle segments by a threshold."""
    from stubs import Thresholder

    from cgdpm_med import Segmenter

    monkeypatch.setattr(Segmenter, "from_bundle", lambda *_, **__: Thresholder())


@pytest.fixture(scope="session")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture
def quiet_headers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test is the first in its process to meet a header conflict, and meets it quietly unless it looks."""
    from cgdpm_med.volumes import HeaderWarning, grid

    monkeypatch.setattr(grid, "_WARNED", set())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HeaderWarning)
        yield
