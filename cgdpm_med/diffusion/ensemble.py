"""Ensembles: keyed noise, K members per image, masks combined, uncertainty.

Member k of slice s of case c is a function of (seed, case, s, k) alone. Each has a generator of its own, keyed by a
hash of these, so batch size, chunking, devices and the other cases of a run change nothing.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cgdpm_med.networks.denoiser import features_of, per_member

from .samplers import Prediction
from .sampling import DenoiserLike, Sampling, first_prediction, sample
from .schedule import NoiseSchedule


def key_seed(seed: int, *key: Hashable) -> int:
    """A 63-bit seed from a base seed and a key of strings, integers and tuples of them, equal on every machine.

    Raises:
        TypeError: for a key of anything else.
    """
    digest = hashlib.sha256(_canonical((seed, *key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _canonical(key: Hashable) -> str:
    """Text that differs for different keys: ("a/b",) is not ("a", "b"), and "1" is not 1."""
    if isinstance(key, str):
        return repr(key)
    if isinstance(key, tuple):
        return f"({','.join(map(_canonical, key))})"
    try:
        return str(operator.index(key))  # type: ignore[arg-type]  # NumPy's and torch's integers too
    except TypeError:
        raise TypeError(f"a key holds strings, integers and tuples of them, not {type(key).__name__}") from None


SERIAL = 2**18  # values of noise that one thread draws before several have begun


class KeyedNoise:
    """Standard normal noise with one generator per key; use it as ``generator=`` of a sampler.

    The generators are NumPy's counter-based Philox: torch's CPU generator keeps only 32 bits of its seed.

    Args:
        seed: base seed of the run.
        keys: one key per batch element, for example ``(case, slice, member)``. Elements of one key share their noise,
            which is then drawn and moved once.
    """

    def __init__(self, seed: int, keys: Sequence[tuple[Hashable, ...]]) -> None:
        seeds = [key_seed(seed, *key) for key in keys]
        places = {each: place for place, each in enumerate(dict.fromkeys(seeds))}
        self.places = [places[each] for each in seeds]
        self.generators = [np.random.Generator(np.random.Philox(key=each)) for each in places]

    def randn(
        self, shape: Sequence[int], *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Draw (B, …), element b from the generator of its key; float32 on the CPU, on torch's threads, then moved.

        Raises:
            ValueError: when B is not the number of keys.
        """
        if shape[0] != len(self.places):
            raise ValueError(f"noise for a batch of {shape[0]} asked of {len(self.places)} keys")
        drawn = np.empty((len(self.generators), math.prod(shape[1:])), dtype=np.float32)

        def fill(place: int) -> None:
            self.generators[place].standard_normal(out=drawn[place], dtype=np.float32)

        threads = torch.get_num_threads() if drawn.size > SERIAL else 1
        with ThreadPoolExecutor(threads) as pool:
            list((pool.map if threads > 1 else map)(fill, range(len(drawn))))
        noise = self.move(torch.from_numpy(drawn), device).to(dtype).reshape(-1, *shape[1:])
        return noise if len(noise) == len(self.places) else noise[self.move(torch.tensor(self.places), device)]

    def move(self, x: Tensor, device: torch.device | str) -> Tensor:
        """On the device, for the noise and the places of the keys."""
        return x.to(device)


@torch.no_grad()
def sample_members(
    denoiser: DenoiserLike,
    context: Tensor,
    schedule: NoiseSchedule,
    sampling: Sampling | None = None,
    *,
    shape: Sequence[int],
    keys: Sequence[Hashable] | None = None,
    member_ids: Sequence[int] | None = None,
    features: Any = None,
    first: Prediction | None = None,
    correct: Callable[..., Tensor] | None = None,
    clip: tuple[float, float] | None = None,
    noise: type[KeyedNoise] = KeyedNoise,
    **dials: Any,
) -> Tensor:
    """K samples for each condition image, as one batch; :func:`~cgdpm_med.sample_ensemble` cuts large ones.

    Args:
        context: condition images, (B, Cc, *S).
        sampling: how; sixteen members of twenty steps by default.
        shape: (C, *S) of one target.
        keys: one key per image, by default its index; a member's noise depends on (seed, key, member) alone, so
            images of one key share it.
        member_ids: which members to draw, by default 0 … K-1; overrides ``sampling.members``.
        features: of the images, where they are encoded already.
        first: of :func:`shared_first_step`, where it is made already.
        correct: ``correct(x_0, y)`` of every predicted x_0, see :meth:`.targets.Target.correct`.
        clip: bounds on every predicted x_0, in place of ``correct``.
        noise: the kind of keyed noise.
        dials: fields of :class:`~.sampling.Sampling`, in place of those of ``sampling``.

    Returns:
        (K, B, C, *S), float32, on the context's device.

    Raises:
        ValueError: without members, or with another number of keys than images.
    """
    sampling = ensemble_sampling(sampling, **dials)
    keys, ids = keys_and_members(len(context), sampling, keys, member_ids)
    features = features_of(denoiser, context) if features is None else features
    rows = len(context) * len(ids)
    how: dict[str, Any] = {"shape": shape, "features": features, "correct": correct, "clip": clip, "noise": noise}
    first = shared_first_step(denoiser, context, schedule, sampling, keys=keys, **how) if first is None else first
    corrected = None if correct is None else partial(correct, y=per_member(context, rows))
    # members of one image lie beside each other in the batch
    drawn = noise(sampling.seed, [(key, member) for key in keys for member in ids])
    x_T = sampling.noise_scale * drawn.randn((rows, *shape), device=context.device)
    condition = per_member(features, rows)
    by_field: dict[str, Any] = {"generator": drawn, "first": first, "clip": clip, "correct": corrected}
    x_0 = sample(denoiser, x_T, condition, schedule, sampling, **by_field)
    return x_0.unflatten(0, (-1, len(ids))).transpose(0, 1)


def shared_first_step(
    denoiser: DenoiserLike,
    context: Tensor,
    schedule: NoiseSchedule,
    sampling: Sampling,
    *,
    shape: Sequence[int],
    keys: Sequence[Hashable],
    features: Any,
    correct: Callable[..., Tensor] | None = None,
    clip: tuple[float, float] | None = None,
    noise: type[KeyedNoise] = KeyedNoise,
) -> Prediction | None:
    """What serves the first step of all members of these images; None where each member evaluates its own.

    From member 0's noise, whichever members are drawn: the network knows the like of it, as it does not of zeros or of
    a mean over members, and member 0 keeps the walk it would have alone. Arguments as for :func:`sample_members`.
    """
    if not sampling.shares_first_step(schedule):
        return None
    drawn = noise(sampling.seed, [(key, 0) for key in keys])
    x_T = sampling.noise_scale * drawn.randn((len(context), *shape), device=context.device)
    corrected = None if correct is None else partial(correct, y=context)
    return first_prediction(denoiser, x_T, features, schedule, sampling, clip=clip, correct=corrected)


def ensemble_sampling(sampling: Sampling | None, **dials: Any) -> Sampling:
    """The sampling of an ensemble with its dials in place, sixteen members of twenty steps by default."""
    return (sampling or Sampling(steps=20, members=16)).with_dials(**dials)


def keys_and_members(
    images: int, sampling: Sampling, keys: Sequence[Hashable] | None, member_ids: Sequence[int] | None
) -> tuple[list[Hashable], list[int]]:
    """A key for each image, by default its index, and the members to draw, by default all.

    Raises:
        ValueError: without members, or with another number of keys than images.
    """
    ids = list(range(sampling.members)) if member_ids is None else list(member_ids)
    if not ids:
        raise ValueError("an ensemble needs at least one member")
    named: list[Hashable] = list(range(images)) if keys is None else list(keys)
    if len(named) != images:
        raise ValueError(f"{len(named)} keys for {images} images")
    return named, ids


def combine_mean(probabilities: Tensor) -> Tensor:
    """Mean over members: (K, …) -> (…). The linear opinion pool."""
    return probabilities.mean(dim=0)


def labels_of(probabilities: Tensor, channel_dim: int) -> Tensor:
    """Most probable class as uint8, the channel kept with size one; (…, C, *S) -> (…, 1, *S).

    The first of equally likely classes wins; a single channel is foreground above one half.
    """
    channels = probabilities.split(1, dim=channel_dim)
    if len(channels) == 1:
        return (channels[0] > 0.5).to(torch.uint8)
    # torch's argmax over a strided axis is several times slower than this on a CPU
    best, labels = channels[0], torch.zeros_like(channels[0], dtype=torch.uint8)
    for c, channel in enumerate(channels[1:], start=1):
        labels.masked_fill_(channel > best, c)
        best = torch.maximum(best, channel)
    return labels


def combine_majority(probabilities: Tensor, channel_dim: int = 1) -> Tensor:
    """Fraction of members voting for each class: (K, …, C, *S) -> (…, C, *S).

    The first of equally likely classes gets the vote; a single channel (binary) votes for values above one half.
    """
    labels, classes = labels_of(probabilities, channel_dim), probabilities.shape[channel_dim]
    votes = [(labels == c).to(probabilities.dtype).mean(dim=0) for c in ([1] if classes == 1 else range(classes))]
    return torch.cat(votes, dim=channel_dim % probabilities.ndim - 1)


def entropy(probabilities: Tensor, channel_dim: int = 0) -> Tensor:
    """Entropy of the class probabilities divided by log C, in [0, 1]; a single channel is read as (p, 1 - p).

    (…, C, *S) -> (…, *S).
    """
    p = probabilities
    if p.shape[channel_dim] == 1:
        p = torch.cat([p, 1 - p], dim=channel_dim)
    return torch.special.entr(p).sum(dim=channel_dim) / math.log(p.shape[channel_dim])


def disagreement(probabilities: Tensor, channel_dim: int = 1) -> Tensor:
    """Fraction of members outside the most voted class: (K, …, C, *S) -> (…, *S), in [0, 1 - 1/C]."""
    channel_dim %= probabilities.ndim
    votes = combine_majority(probabilities, channel_dim)
    if probabilities.shape[channel_dim] == 1:
        return torch.minimum(votes, 1 - votes).squeeze(channel_dim - 1)
    return 1 - votes.amax(dim=channel_dim - 1)


def mutual_information(probabilities: Tensor, channel_dim: int = 1) -> Tensor:
    """Entropy of the mean less the mean of the entropies, over log C: what the members disagree about.

    (K, …, C, *S) -> (…, *S), in [0, 1].
    """
    channel_dim %= probabilities.ndim
    total = entropy(probabilities.mean(dim=0), channel_dim - 1)
    return (total - entropy(probabilities, channel_dim).mean(dim=0)).clamp(min=0)
