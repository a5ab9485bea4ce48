"""MONAI inferer: an ensemble over a volume by a 3D network, its windows denoised together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type
from torch import Tensor

from cgdpm_med.inference.inferers import WindowedDenoiser
from cgdpm_med.inference.predictor import DiffusionPredictor

KEPT_VOXELS = 2**21
"""Of windows whose condition features are kept through all steps."""


class PatchEnsembleInferer(Inferer):
    """Ensemble of masks for a 3D volume by a 3D predictor.

    A member has one noise for the whole volume. In every step all windows predict, their predictions are blended, and
    the volume takes the step as a whole (:class:`~cgdpm_med.inference.inferers.WindowedDenoiser`): no window goes its
    own way, so members have no seams.

    Args:
        window: sides of the network's patch; axes that are shorter are taken whole.
        overlap: fraction of a window shared with the next one.
        progress: called with the number of finished volumes.
        window_batch: windows evaluated at once; the result does not depend on it.
    """

    def __init__(
        self,
        window: Sequence[int],
        overlap: float = 0.5,
        progress: Callable[[int], None] | None = None,
        window_batch: int = 1,
    ) -> None:
        self.window, self.overlap = tuple(window), overlap
        self.progress, self.window_batch = progress, window_batch

    def __call__(
        self,
        inputs: Tensor,
        network: DiffusionPredictor,
        *args: Any,
        progress: Callable[[int], None] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """inputs: (B, Cc, X, Y, Z) -> probabilities of all members, (B, K * C, X, Y, Z), member by member.

        The noise is keyed by the case key in the volume's metadata, else by its place in the batch.
        """
        wrap = self._windowed(inputs.shape[2:])
        volumes = []
        for number, volume in enumerate(inputs):
            case = volume.meta["key"] if isinstance(volume, MetaTensor) and "key" in volume.meta else str(number)
            plain = torch.as_tensor(volume).as_subclass(Tensor)[None]
            drawn = network.ensemble(plain, keys=[case], progress=progress or self.progress, wrap=wrap)
            volumes.append(drawn[:, 0].flatten(0, 1))
        together = volumes[0][None] if len(volumes) == 1 else torch.stack(volumes)
        return convert_to_dst_type(together, inputs)[0]

    def _windowed(self, size: Sequence[int]) -> Callable[[Any], Any] | None:
        if all(n <= side for n, side in zip(size, self.window, strict=True)):
            return None
        kept = max(1, KEPT_VOXELS // math.prod(self.window))
        return lambda denoiser: WindowedDenoiser(
            denoiser, self.window, self.overlap, self.window_batch, kept_windows=kept
        )
