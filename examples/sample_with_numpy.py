"""Draws masks from an exported model with numpy and onnxruntime alone: neither torch nor this package is imported.

    cgdpm-med export acdc_segmentation EXPORTED
    python examples/sample_with_numpy.py EXPORTED SLICE.npy MASK.npy --members 8

A distilled network has its own timesteps, "walk" of model.json. Others take --steps evenly spaced ones.

SLICE.npy holds one condition as the network was trained to see it, float32 (Cc, H, W): "input" of model.json says which
spacing, slices and intensities. H and W are divisible by "multiple". MASK.npy gets class probabilities (C, H, W).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Graph = Callable[..., list[Array]]


def timesteps(T: int, steps: int) -> list[int]:
    """Evenly spaced from T-1 down to 0."""
    return [T - 1] if steps == 1 else np.linspace(0, T - 1, steps).round().astype(int)[::-1].tolist()


def x0_and_eps(output: Array, x_t: Array, alpha_bar: float, predicts: str) -> tuple[Array, Array]:
    """What a network's output says of x_0 and of the noise."""
    signal, noise = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    if predicts == "epsilon":
        return (x_t - noise * output) / signal, output
    if predicts == "sample":
        return output, (x_t - signal * output) / noise
    return signal * x_t - noise * output, noise * x_t + signal * output  # v_prediction


def sample(condition: Graph, denoiser: Graph, y: Array, x_T: Array, about: dict[str, Any], steps: int) -> Array:
    """DDIM without noise of its own: y (1, Cc, H, W) and x_T (K, C, H, W) -> x_0 (K, C, H, W), the K members."""
    members = [np.repeat(feature, len(x_T), axis=0) for feature in condition(y)]  # once for an image
    x_t, scale = x_T, about["target"]["arguments"]["scale"]
    visited = about.get("walk") or timesteps(len(about["alpha_bar"]), steps)
    for t, following in zip(visited, [*visited[1:], None], strict=True):
        alpha_bar = about["alpha_bar"][t]
        (output,) = denoiser(x_t, np.array([t]), *members)
        x_0, _ = x0_and_eps(output, x_t, alpha_bar, about["predicts"])
        x_0 = x_0.clip(-scale, scale)
        eps = (x_t - alpha_bar**0.5 * x_0) / (1 - alpha_bar) ** 0.5
        alpha_bar = 1.0 if following is None else about["alpha_bar"][following]
        x_t = (alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * eps).astype(np.float32)
    return x_t


def probabilities(x_0: Array, scale: float) -> Array:
    """Mask channels in [-scale, scale], (K, C, H, W), to class probabilities."""
    p = ((x_0 / scale + 1) / 2).clip(0, 1)
    total = p.sum(axis=1, keepdims=True)
    return p if x_0.shape[1] == 1 else np.where(total > 0, p / np.where(total > 0, total, 1), 1 / x_0.shape[1])


def load_graph(folder: Path, name: str, about: dict[str, Any]) -> Graph:
    """One graph as a function of its inputs in their order."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
    names = about["graphs"][name]["inputs"]
    return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def main() -> None:
    """Sample one slice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exported", type=Path)
    parser.add_argument("slice", type=Path)
    parser.add_argument("mask", type=Path)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    about = json.loads((wanted.exported / "model.json").read_text())
    if wanted.steps and "walk" in about:
        parser.error("a distilled network has its own timesteps: leave out --steps")
    y = np.load(wanted.slice)[None].astype(np.float32)
    shape = (wanted.members, about["channels"], *y.shape[2:])
    x_T = np.random.default_rng(wanted.seed).standard_normal(shape, dtype=np.float32)
    condition = load_graph(wanted.exported, "condition", about)
    denoiser = load_graph(wanted.exported, "denoiser", about)
    x_0 = sample(condition, denoiser, y, x_T, about, wanted.steps or 4)
    np.save(wanted.mask, probabilities(x_0, about["target"]["arguments"]["scale"]).mean(axis=0))


if __name__ == "__main__":
    main()
