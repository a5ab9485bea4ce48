"""Members over several networks: what they differ in is doubt that one network cannot have.

Lakshminarayanan, Pritzel and Blundell, 2017. The members of one network differ by their noise alone, and share all
that this network believes wrongly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cgdpm_med.diffusion.ensemble import keys_and_members
from cgdpm_med.files import InputError
from cgdpm_med.inference.predictor import DiffusionPredictor
from cgdpm_med.models.files import Model, completed, load_model


class DeepEnsemble(nn.Module):
    """Draws member k with network k modulo their number.

    There are as many members as one network would draw, and as many evaluations; a shared first step is made once for
    each network. Inferers and segmenters take it where they take a :class:`~cgdpm_med.DiffusionPredictor`.

    Args:
        predictors: of one target; members are drawn as the first draws them.

    Attributes:
        sampling: how; what the predictors themselves say counts no more.

    Raises:
        ValueError: without predictors, with guidance, or for predictors of other channels or another size.

    Example:
        >>> import torch
        >>> from cgdpm_med import ConditionalUNet, DiffusionPredictor, MaskTarget
        >>> target = MaskTarget(2)
        >>> networks = [ConditionalUNet(2, 2, 1, 2, channels=(8, 8), attention_levels=(False, False)) for _ in "ab"]
        >>> drawn = [
        ...     DiffusionPredictor(target.denoiser(network), target=target, members=4, steps=2) for network in networks
        ... ]
        >>> DeepEnsemble(drawn).ensemble(torch.zeros(1, 1, 8, 8)).shape
        torch.Size([4, 1, 2, 8, 8])
    """

    def __init__(self, predictors: Sequence[DiffusionPredictor]) -> None:
        super().__init__()
        if not predictors:
            raise ValueError("an ensemble needs at least one network")
        if any(predictor.guide is not None for predictor in predictors):
            raise ValueError("a guidance network belongs to one denoiser: draw over several networks without guidance")
        if len({(predictor.out_channels, predictor.size_factor) for predictor in predictors}) > 1:
            raise ValueError("the networks' targets have other channels, or another size")
        self.predictors = nn.ModuleList(predictors)
        first = predictors[0]
        self.sampling, self.precision, self.limit, self.guide = first.sampling, first.precision, first.limit, None
        self.out_channels, self.size_factor = first.out_channels, first.size_factor
        self.register_load_state_dict_pre_hook(_place_first_network)

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, Cc, *S) -> mean over members, (B, C, *S); all of them are held."""
        return self.ensemble(image).mean(dim=0)

    def ensemble(
        self,
        image: Tensor,
        keys: Sequence[Hashable] | None = None,
        member_ids: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
        wrap: Callable[[Any], Any] | None = None,
    ) -> Tensor:
        """Every member, (K, B, C, *S): as :meth:`.DiffusionPredictor.ensemble`, member by member with its network."""
        named, ids = keys_and_members(len(image), self.sampling, keys, member_ids)
        drawn: dict[int, Tensor] = {}
        predictor: Any
        for place, predictor in enumerate(self.predictors):
            own = [member for member in ids if member % len(self.predictors) == place]
            if own:
                as_told = copy.copy(predictor)
                as_told.sampling = self.sampling
                drawn.update(zip(own, as_told.ensemble(image, named, own, progress, wrap), strict=True))
        return torch.stack([drawn[member] for member in ids])


def over_networks(
    model: Model,
    further: Sequence[str | Path],
    denoiser: nn.Module,
    adapter: Callable[[nn.Module], nn.Module] | None = None,
    **how: Any,
) -> DiffusionPredictor | DeepEnsemble:
    """A predictor of one denoiser, or, with ``further`` model files, an ensemble over their networks and its own.

    Args:
        model: of the denoiser.
        adapter: put around the networks of the further files, where the denoiser has it around its own, such as
            :class:`~cgdpm_med.Mirrored`.
        how: arguments of :class:`~cgdpm_med.DiffusionPredictor`; no guide where there are further networks.

    Raises:
        InputError: for a file that cannot be used, or says another target, schedule, input or other labels; for fewer
            members than networks, or with guidance.
    """
    predictor = DiffusionPredictor(denoiser, **how)
    if not further:
        return predictor
    if predictor.guide is not None:
        what = "a guidance network belongs to one denoiser, and members are drawn over several networks"
        raise InputError(what, remedy="Set guidance_scale to 0, or leave out further_weights")
    count, members = 1 + len(further), predictor.sampling.members
    if members < count:
        what = f"{members} members cannot be drawn over {count} networks"
        raise InputError(what, remedy=f"Set members to {count} or more")
    others = [_fitting(load_model(path, allow=model.allow), model) for path in further]
    if adapter is not None:
        others = [replace(each, network=adapter(each.network)) for each in others]
    return DeepEnsemble([predictor, *(predictor.drawing_with(each.denoiser(predictor.sampling)) for each in others)])


def _fitting(other: Model, model: Model) -> Model:
    said, wanted = (completed(each.description, each.path, each.allow) for each in (other, model))
    differing = said.differences(wanted)
    if model.multiple % other.multiple:
        differing.append("depth of the network")
    if differing:
        what = f"was trained with another {' and '.join(differing)} than {model.path.name}"
        raise InputError(what, path=other.path, remedy="Combine networks of one configuration, such as other seeds")
    return other


def _place_first_network(ensemble: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Whoever loads one network's file, as MONAI Label does, means the first; the others keep what they have."""
    own, place = ensemble.state_dict(), "predictors.0.denoiser.network."
    if not prefix and all(place + name in own for name in state_dict):
        of_first = {place + name: state_dict.pop(name) for name in list(state_dict)}
        state_dict.update({name: value for name, value in own.items() if name not in of_first} | of_first)
