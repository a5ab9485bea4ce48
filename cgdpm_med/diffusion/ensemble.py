"""Ensembles: keyed noise, K members per image, fusion of masks, uncertainty.

Member k of slice s of case c is a function of (seed, case, s, k) alone. Each has a generator of its own, seeded from a
hash of that key, so batch size, chunking, devices and the other cases of a run change nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .sampling import Denoiser, encode, sample
from .schedule import NoiseSchedule


def key_seed(seed: int, *key: Hashable) -> int:
    """A 63-bit seed from a base seed and a key of strings and integers, equal on every machine."""
    digest = hashlib.sha256("/".join(map(str, (seed, *key))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class KeyedNoise:
    """Standard normal noise with one CPU generator per batch element; use it as ``generator=`` of a sampler.

    Args:
        seed: base seed of the run.
        keys: one key per batch element, for example ``(case, slice, member)``.
    """

    def __init__(self, seed: int, keys: Sequence[tuple[Hashable, ...]]) -> None:
        self.generators = [torch.Generator().manual_seed(key_seed(seed, *key)) for key in keys]

    def randn(self, shape: Sequence[int], *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):  # type: ignore[no-untyped-def]
        """Draw (B, …), element b from its own generator; float32 on the CPU, then moved."""
        if shape[0] != len(self.generators):
            raise ValueError(f"noise for a batch of {shape[0]} asked of {len(self.generators)} keys")
        noise = torch.stack([torch.randn(tuple(shape[1:]), generator=g) for g in self.generators])
        return noise.to(device=device, dtype=dtype)


@torch.no_grad()
def sample_ensemble(
    denoiser: Denoiser,
    context: Tensor,
    schedule: NoiseSchedule,
    *,
    shape: Sequence[int],
    members: int = 16,
    seed: int = 0,
    keys: Sequence[Hashable] | None = None,
    member_ids: Sequence[int] | None = None,
    max_batch: int = 64,
    progress: Callable[[int], None] | None = None,
    **as_trajectory: Any,
) -> Tensor:
    """K samples for each condition image, batched over members and images together.

    Args:
        context: condition images, (B, Cc, *S).
        shape: (C, *S) of one target.
        members: K.
        keys: one key per image, by default its index; a member's noise depends on (seed, key, member) alone.
        member_ids: which members to draw, by default 0 … K-1; overrides ``members``.
        max_batch: most target fields evaluated at once.
        progress: called with the number of finished fields after each chunk.
        as_trajectory: steps, method, eta, clip, timesteps.

    Returns:
        (K, B, C, *S), float32, on the context's device.
    """
    ids = list(range(members)) if member_ids is None else list(member_ids)
    if not ids:
        raise ValueError("an ensemble needs at least one member")
    keys = list(range(context.shape[0])) if keys is None else list(keys)
    if len(keys) != context.shape[0]:
        raise ValueError(f"{len(keys)} keys for {context.shape[0]} images")
    images = max(1, max_batch // len(ids))
    per_image = min(len(ids), max_batch)
    out = torch.empty((len(ids), context.shape[0], *shape), dtype=torch.float32, device=context.device)
    for b in range(0, context.shape[0], images):
        rows = slice(b, b + images)
        features = encode(denoiser, context[rows])
        for k in range(0, len(ids), per_image):
            chunk = ids[k : k + per_image]
            noise = KeyedNoise(seed, [(key, member) for key in keys[rows] for member in chunk])
            x_T = noise.randn((len(keys[rows]) * len(chunk), *shape), device=context.device)
            x_0 = sample(
                denoiser, x_T, _per_member(features, context[rows], len(chunk)), schedule, generator=noise, **as_trajectory
            )
            # members of one image lie beside each other in the batch
            out[k : k + per_image, rows] = x_0.unflatten(0, (-1, len(chunk))).transpose(0, 1)
            if progress is not None:
                progress(len(x_T))
    return out


def _per_member(features: Any, images: Tensor, members: int) -> Any:
    """A denoiser without ``encode_condition`` gets each image once per member; features broadcast by themselves."""
    return images.repeat_interleave(members, dim=0) if features is images else features


class MaskDenoiser(nn.Module):
    """Adapter: a network with class logits as output becomes a denoiser of +-1 mask channels (prediction "sample").

    E[x_0 | x_t, y] of one-hot channels in {-scale, +scale} is scale (2 p - 1) with p the class probabilities.

    Args:
        network: ``network(x_t, t, context) -> logits`` (B, C, *S); softmax over C, or a sigmoid when C = 1.
        scale: magnitude of the encoded mask.
    """

    def __init__(self, network: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.scale = scale

    def encode_condition(self, y: Tensor, size: Sequence[int] | None = None) -> Any:
        """The network's own; see ``ConditionalUNet.encode_condition``."""
        return self.network.encode_condition(y, size=size)

    def forward(self, x_t: Tensor, t: Tensor, context: Any) -> Tensor:
        """-> (B, C, *S) in [-scale, scale]."""
        logits = self.network(x_t, t, context).float()
        p = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)
        return self.scale * (2 * p - 1)


def mask_probabilities(x_0: Tensor, scale: float = 1.0, channel_dim: int = -3) -> Tensor:
    """Decode mask channels in {-scale, +scale} to class probabilities that sum to one (or lie in [0, 1] when C = 1).

    Values between the two ends are read as (x_0 / scale + 1) / 2, the inverse of the expectation above.
    """
    p = ((x_0 / scale + 1) / 2).clamp(0, 1)
    if x_0.shape[channel_dim] == 1:
        return p
    return p / p.sum(dim=channel_dim, keepdim=True).clamp(min=1e-8)


def fuse_mean(probabilities: Tensor) -> Tensor:
    """Mean over members: (K, …) -> (…). The linear opinion pool."""
    return probabilities.mean(dim=0)


def fuse_majority(probabilities: Tensor, channel_dim: int = 1) -> Tensor:
    """Fraction of members voting for each class: (K, C, *S) -> (C, *S) for ``channel_dim`` = 1.

    A single channel (binary) votes at one half.
    """
    if probabilities.shape[channel_dim] == 1:
        return (probabilities > 0.5).to(probabilities.dtype).mean(dim=0)
    votes = probabilities.argmax(dim=channel_dim, keepdim=True)
    return torch.zeros_like(probabilities).scatter_(channel_dim, votes, 1.0).mean(dim=0)


def entropy(probabilities: Tensor, channel_dim: int = 0) -> Tensor:
    """Entropy of the class probabilities divided by log C, in [0, 1]; a single channel is read as (p, 1 - p)."""
    p = probabilities
    if p.shape[channel_dim] == 1:
        p = torch.cat([p, 1 - p], dim=channel_dim)
    return torch.special.entr(p).sum(dim=channel_dim) / torch.log(torch.tensor(float(p.shape[channel_dim])))


def disagreement(probabilities: Tensor, channel_dim: int = 1) -> Tensor:
    """Fraction of members outside the most voted class: (K, C, *S) -> (*S), in [0, 1 - 1/C]."""
    votes = fuse_majority(probabilities, channel_dim)
    if probabilities.shape[channel_dim] == 1:
        return torch.minimum(votes, 1 - votes).squeeze(channel_dim - 1)
    return 1 - votes.amax(dim=channel_dim - 1)


def mutual_information(probabilities: Tensor, channel_dim: int = 1) -> Tensor:
    """Entropy of the mean less the mean of the entropies, over log C: what the members disagree about. (K, C, *S) -> (*S)."""
    total = entropy(probabilities.mean(dim=0), channel_dim - 1)
    return (total - entropy(probabilities, channel_dim).mean(dim=0)).clamp(min=0)
