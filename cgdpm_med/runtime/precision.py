"""The precision networks are evaluated in: what a device is fast at."""

from __future__ import annotations

import torch

PRECISIONS = ("auto", "float32", "bfloat16")


def lower_precision(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Matrix products and convolutions in ``dtype``; without effect for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def check_precision(precision: str) -> str:
    """``precision`` itself when it is one of :data:`PRECISIONS`.

    Raises:
        ValueError: for any other.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    return precision


def autocast_dtype(device: torch.device, precision: str = "auto") -> torch.dtype:
    """The precision networks are evaluated in on ``device``.

    Raises:
        ValueError: for an unknown ``precision``.
    """
    check_precision(precision)
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    return torch.bfloat16 if bfloat16_is_fast(device) else torch.float32


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware: NVIDIA from Ampere on, CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        return bool(supported and supported())
    return False
