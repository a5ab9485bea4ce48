"""ADM's published upsamplers as models: their files say nothing of themselves, so what is known is said here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cgdpm_med.diffusion.schedule import NoiseSchedule
from cgdpm_med.diffusion.targets import ImageTarget
from cgdpm_med.files import InputError
from cgdpm_med.models.description import ModelDescription, PictureInput
from cgdpm_med.models.files import Model, load_model
from cgdpm_med.models.rebuild import Allowed, described
from cgdpm_med.models.weights import Tensors, read_content
from cgdpm_med.networks.adm import STEM, adm_upsampler
from cgdpm_med.networks.classes import ClassConditioned

_REMEDY = "Give an ADM upsampler, such as 64_256_upsampler.pt, with its head split where it is not a published one"


def load_upsampler(
    path: str | Path,
    *,
    window: int = 256,
    project: bool = False,
    num_heads: int | None = None,
    num_head_channels: int | None = None,
    description: ModelDescription | str | Path | None = None,
    allow: Allowed = (),
) -> Model:
    """The model in a file of ADM's tensors, or in a model file whose training began with them.

    Args:
        window: side of the field that ADM's network was trained on; a model file says its own.
        project: pictures are made to agree with their input at every step (:class:`~cgdpm_med.ImageTarget`); ADM itself
            does not.
        num_heads, num_head_channels: see :func:`~cgdpm_med.load_adm_upsampler`; a model file says its own.
        description, allow: see :func:`~cgdpm_med.load_model`.

    Raises:
        InputError: for a file of anything else, or a head split that is not known.
    """
    path = Path(path)
    tensors, content = read_content(path)
    if content is None and f"{STEM}.weight" in tensors:
        model = _of_tensors(path, tensors, window, {"num_heads": num_heads, "num_head_channels": num_head_channels})
    elif content is None and description is None:
        raise InputError("holds no upsampler of ADM", path=path, remedy=_REMEDY)
    else:
        model = load_model(path, allow=allow, description=description)
    if isinstance(model.target, ImageTarget):
        return replace(model, target=replace(model.target, project=project))
    if project:
        raise InputError("makes another target than pictures as they are", path=path, remedy="Leave out project")
    return model


def _of_tensors(path: Path, tensors: Tensors, window: int, heads: dict[str, Any]) -> Model:
    try:
        unet = adm_upsampler(tensors, **heads)
    except ValueError as error:
        raise InputError(str(error), path=path, remedy=_REMEDY) from error
    network = unet if unet.num_classes is None else ClassConditioned(unet).eval()
    target = ImageTarget(unet.out_channels, unet.cond_scale, learn_sigma=unet.learn_sigma)
    schedule = NoiseSchedule()  # ADM's: linear betas, epsilon
    said = ModelDescription(
        "denoiser", described(network), described(target), described(schedule), PictureInput(window)
    )
    return Model(network, target, schedule, said, path)
