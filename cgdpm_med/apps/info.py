"""What a bug report or a methods section needs: versions, device, bundles and the hashes of their weights."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cgdpm_med import __version__
from cgdpm_med.inference.bundles import bundle_path, list_bundles
from cgdpm_med.models.weights import weights_digest

_DISTRIBUTIONS = ("torch", "monai", "pytorch-ignite", "numpy", "scipy", "nibabel", "SimpleITK", "itk", "highdicom")


def collect_info() -> dict[str, Any]:
    """Versions, device and bundles as plain values that JSON can hold.

    ``packages`` maps a distribution to its version, or to None where it is not installed; each entry of ``bundles``
    has ``name``, ``version`` and ``weights``, a map from file name to SHA-256.
    """
    return {
        "cgdpm_med": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _installed_version(name) for name in _DISTRIBUTIONS},
        "device": _device(),
        "threads": torch.get_num_threads(),
        "bundles": [_describe_bundle(bundle_path(name)) for name in list_bundles()],
    }


def info_lines(info: dict[str, Any]) -> list[str]:
    """What ``collect_info`` returned as aligned lines of text, hashes unbroken."""
    rows = [("cgdpm_med", info["cgdpm_med"]), ("python", f"{info['python']} on {info['platform']}")]
    rows += [(name, installed or "not installed") for name, installed in info["packages"].items()]
    rows.append(("device", f"{info['device']} ({info['threads']} CPU threads)"))
    for bundle in info["bundles"]:
        rows.append((f"bundle {bundle['name']}", bundle["version"]))
        rows += [(f"  {file}", f"sha256 {digest}") for file, digest in bundle["weights"].items()]
    if not info["bundles"]:
        rows.append(("bundles", "none found"))
    width = max(len(label) for label, _ in rows)
    return [f"{label:<{width}}  {value}" for label, value in rows]


def model_lines(said: dict[str, Any]) -> list[str]:
    """What :func:`~cgdpm_med.models.files.describe_file` returned as aligned lines of text."""
    training, labels = said["training"], said["labels"]
    rows = [("kind", _kind(said))]
    rows += [(part, _one_line(said[part])) for part in ("network", "target", "schedule")]
    rows.append(("parameters", str(said["parameters"])))
    rows.append(("input", ", ".join(f"{name} {_one_line(value)}" for name, value in said["input"].items())))
    rows += [(f"label {n}", f"{label['name']} {label['colour']}".strip()) for n, label in enumerate(labels, start=1)]
    patients = (
        "not known" if training is None else f"{len(training['patients'])} patients, split {training['split'][:16]}"
    )
    rows.append(("trained on", patients))
    rows += [(f"written with {name}", number) for name, number in said["versions"].items()]
    rows.append(("digest", said["digest"]))
    width = max(len(label) for label, _ in rows)
    return [f"{label:<{width}}  {value}" for label, value in rows]


def _kind(said: dict[str, Any]) -> str:
    if said["denoiser"] is not None:
        return f"guidance of the denoiser {said['denoiser'][:16]}"
    if walk := said.get("walk"):
        return f"denoiser at the timesteps {', '.join(map(str, walk))}, distilled from {said['teacher'][:16]}"
    return str(said["kind"])


def _one_line(value: Any) -> str:
    if isinstance(value, dict) and "class" in value:
        given = {name: item for name, item in value["arguments"].items() if item is not None}
        return f"{value['class']}({', '.join(f'{name}={_one_line(item)}' for name, item in given.items())})"
    return str(value)


def _installed_version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _device() -> str:
    if torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name()}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _describe_bundle(folder: Path) -> dict[str, Any]:
    metadata = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
    weights = sorted(path for path in folder.glob("models/**/*") if path.suffix in {".pt", ".safetensors"})
    return {
        "name": folder.name,
        "version": metadata.get("version", "unknown"),
        "weights": {path.relative_to(folder / "models").as_posix(): weights_digest(path) for path in weights},
    }
