"""Which network refines which input, and where its weights come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgdpm_med.apps.resolver import SuperResolver
from cgdpm_med.diffusion.sampling import Sampling
from cgdpm_med.files import InputError
from cgdpm_med.inference.bundles import bundle_folder, bundle_path, list_bundles
from cgdpm_med.inference.segmenter import choose_device
from cgdpm_med.models.description import ModelDescription
from cgdpm_med.models.files import load_model
from cgdpm_med.models.weights import read_content
from cgdpm_med.studies.cases import Case
from cgdpm_med.studies.folders import is_volume

VOLUME_BUNDLE = "cardiac_sr"
"""Refines volumes where no other bundle is asked for."""

_WEIGHTS = Path("models") / "model.pt"


@dataclass(frozen=True)
class Resolvers:
    """One for volumes and one for pictures; None where no input is of that kind, or where pictures have none."""

    volumes: SuperResolver | None
    pictures: SuperResolver | None

    @property
    def alike_members(self) -> bool:
        """Whether several members are drawn in a single step, which hardly differ."""
        return any(sampling.members > 1 and sampling.steps == 1 for sampling in self._samplings)

    @property
    def calm_members(self) -> bool:
        """Whether several members start from less noise than the network's x_T has, so that they differ less."""
        return any(sampling.members > 1 and sampling.noise_scale < 1 for sampling in self._samplings)

    @property
    def _samplings(self) -> list[Sampling]:
        return [each.predictor.sampling for each in (self.volumes, self.pictures) if each is not None]

    def of(self, case: Case) -> SuperResolver:
        """That of a case.

        Raises:
            InputError: for a picture, where no bundle was chosen.
        """
        if is_volume(case.image) and self.volumes is not None:
            return self.volumes
        if self.pictures is None:
            raise _no_bundle(case.image)
        return self.pictures


def kinds_of(cases: Sequence[Case]) -> list[Case]:
    """One case in place of many, for :func:`load_resolvers`: a volume where there is one."""
    return [next((case for case in cases if is_volume(case.image)), cases[0])]


def load_resolvers(
    cases: Sequence[Case], weights: str | Path | None = None, bundle: str | Path | None = None, **settings: Any
) -> Resolvers:
    """The resolvers that these cases need.

    A bundle, or weights of ADM, refine every input. Without them volumes go to :data:`VOLUME_BUNDLE`, with ``weights``
    in place of its own if they are a model file, and pictures to none: nothing says what they show.

    Args:
        settings: see :func:`load_resolver`.

    Raises:
        InputError: as :func:`load_resolver`, and where there are pictures alone and no bundle.
    """
    if bundle is not None or (weights is not None and not _is_model_file(weights)):
        resolver = load_resolver(weights, bundle, **settings)
        return Resolvers(resolver, resolver)
    if not any(is_volume(case.image) for case in cases):
        raise _no_bundle(cases[0].image)
    return Resolvers(load_resolver(weights, VOLUME_BUNDLE, **settings), None)


def _is_model_file(weights: str | Path) -> bool:
    return read_content(weights)[1] is not None


def _no_bundle(picture: Path) -> InputError:
    shipped = picture_bundles_with_weights()
    what = "is a picture, and nothing says which network knows such pictures"
    if not shipped:
        remedy = "Train a bundle of pictures, and give it as --bundle NAME --weights RUN/model.pt"
    else:
        remedy = f"Give --bundle, of those shipped with weights {', '.join(shipped)}"
    return InputError(what, path=picture, remedy=remedy)


def picture_bundles_with_weights() -> list[str]:
    """Names of the super-resolution bundles whose weights lie in them, but for the one of volumes."""
    return [
        name
        for name in list_bundles()
        if name != VOLUME_BUNDLE and (bundle_path(name) / _WEIGHTS).is_file() and _states(bundle_path(name), "resolver")
    ]


def _states(bundle: Path, key: str) -> bool:
    """Whether the bundle's inference configuration has a key at its top."""
    lines = (bundle / "configs" / "inference.yaml").read_text(encoding="utf-8").splitlines()
    return any(line.startswith(f"{key}:") for line in lines)


def load_resolver(
    weights: str | Path | None,
    bundle: str | Path | None = None,
    *,
    factor: int | None = None,
    class_index: int | None = None,
    window: int | None = None,
    device: str = "auto",
    **settings: Any,
) -> SuperResolver:
    """A resolver from a file of weights: a bundle's, or without a bundle an ADM upsampler's.

    Args:
        weights: None is the bundle's own.
        factor: fine pixels per pixel, for a bundle with weights for several.
        class_index: of the images, for networks that have classes.
        window: side of the network's field; None is the bundle's own, or 256 for ADM weights.
        device: see :func:`~cgdpm_med.inference.segmenter.choose_device`.
        settings: keys of the bundle's configuration, or of the predictor; None keeps the default.

    Raises:
        InputError: for weights, a class or a device that cannot be used, weights of another factor, a bundle without
            weights, or guidance without a bundle.
    """
    chosen = choose_device(device)
    if bundle is not None:
        settings["class_index"] = class_index
    changes = {name: value for name, value in {**settings, "window": window}.items() if value is not None}
    if weights is not None and not Path(weights).is_file():
        raise InputError("there are no weights here", path=weights, remedy="Give a file of weights")
    if bundle is not None:
        own = {} if weights is None else {"weights": str(weights)}
        if weights is None:
            _check_has_weights(bundle)
            # others have one factor, that of their weights
            changes |= {"factor": factor} if factor is not None and _states(bundle_folder(bundle), "factor") else {}
        try:
            resolver = SuperResolver.from_bundle(bundle, **own, device=chosen, **changes)
        except InputError:
            if "factor" in changes:
                _check_factor(changes["factor"], bundle_folder(bundle))
            raise
        resolver.require_factor(factor)
        return resolver
    if weights is None:
        raise InputError("there is neither a bundle nor weights", remedy="Give --bundle NAME")
    if "guidance_scale" in changes or "guidance_weights" in changes:
        remedy = "Give --bundle, for ADM's weights imagenet_sr_64_256 or imagenet_sr_128_512"
        raise InputError("only a bundle says what its guidance network looks like", remedy=remedy)
    try:
        resolver = SuperResolver.from_adm(weights, class_index, device=chosen, **changes)
    except ValueError as error:
        raise _of_option(error) from error
    resolver.require_factor(factor)
    return resolver


def _check_has_weights(bundle: str | Path) -> None:
    """A bundle as it comes has its weights in ``models``, whatever their name."""
    root = Path(bundle) if Path(bundle).is_dir() else bundle_path(str(bundle))
    if not any((root / "models").glob("*.pt")):
        remedy = "Train it as its docs/README.md says and give --weights RUN/model.pt"
        raise InputError(f"the bundle {root.name} comes without weights", remedy=remedy)


def _check_factor(factor: int, bundle: Path) -> None:
    """Say which factors there are, where none of the bundle's weights refines so many times."""
    denoisers = [file for file in (bundle / "models").glob("*.pt") if _is_denoiser(file)]
    found = sorted({load_model(file).target.size_factor for file in denoisers})
    if factor not in found:
        what = f"{bundle.name} has weights for the factors {' and '.join(map(str, found))}, not {factor}"
        raise InputError(what, remedy=f"Give --factor {' or '.join(map(str, found))}, or --weights of your own")


def _is_denoiser(file: Path) -> bool:
    content = read_content(file)[1]
    return content is not None and ModelDescription.from_dict(content, file).kind == "denoiser"


def _of_option(error: ValueError) -> InputError:
    """A number that the network or the sampling cannot take; these say what they can."""
    return error if isinstance(error, InputError) else InputError(str(error), remedy="Correct that option")
