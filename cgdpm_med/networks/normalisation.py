"""Group normalisation with a modulation of its output (FiLM) and SiLU behind it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """``nn.GroupNorm`` with the same parameters, an optional modulation of its output, and SiLU."""

    def forward(self, x: Tensor, film: tuple[Tensor, Tensor] | None = None, *, silu: bool = False) -> Tensor:
        """Normalise (B, C, *S).

        Args:
            film: a further scale and shift of the channels, (C,) or (B, C) each.
            silu: apply SiLU to the result.
        """
        scale, shift = self.scale_and_shift(film)
        if scale.ndim == 1:
            h = F.group_norm(x, self.num_groups, scale, shift, self.eps)
        else:
            h = modulated(F.group_norm(x, self.num_groups, eps=self.eps), scale, shift)
        return F.silu(h) if silu else h

    def scale_and_shift(self, film: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """The parameters with the modulation in them, (C,) or (B, C) each."""
        if film is None:
            return self.weight, self.bias
        return self.weight * film[0], self.bias * film[0] + film[1]


def modulated(h: Tensor, scale: Tensor, shift: Tensor, out: Tensor | None = None) -> Tensor:
    """h (B, C, *S) scaled and shifted by (B, C)."""
    scale, shift = (z.to(h.dtype).reshape(*z.shape, *[1] * (h.ndim - 2)) for z in (scale, shift))
    return torch.addcmul(shift, h, scale, out=out)
