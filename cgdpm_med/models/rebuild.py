"""Objects as plain values, ``{"class": name, "arguments": {…}}``, and back by a table of classes, never by ``eval``."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from cgdpm_med.files import InputError
from cgdpm_med.networks.arguments import KeepsArguments

KNOWN = {
    "ConditionalUNet": "cgdpm_med.networks.unet",
    "ClassConditioned": "cgdpm_med.networks.classes",
    "Regression": "cgdpm_med.diffusion.baselines",
    "ConditionOnly": "cgdpm_med.diffusion.baselines",
    "NoiseLevelConditioned": "cgdpm_med.diffusion.baselines",
    "DynUNet": "monai.networks.nets.dynunet",
    "NoiseSchedule": "cgdpm_med.diffusion.schedule",
    "MaskTarget": "cgdpm_med.diffusion.targets",
    "ImageTarget": "cgdpm_med.diffusion.targets",
    "ResidualTarget": "cgdpm_med.diffusion.targets",
    "AreaDegradation": "cgdpm_med.diffusion.degradation",
    "KSpaceDegradation": "cgdpm_med.diffusion.degradation",
}
"""Classes that a model file may name, and their modules."""

Allowed = Iterable[str | type]


def described(value: Any) -> Any:
    """A value as JSON can hold it; objects of :data:`KNOWN` classes by their names, others by their dotted paths.

    Raises:
        InputError: for an object that does not say how it was made.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): described(item) for name, item in value.items()}
    if isinstance(value, Sequence):
        return [described(item) for item in value]
    return {"class": _name_of(type(value)), "arguments": described(_arguments_of(value))}


def rebuilt(value: Any, path: str | Path | None = None, allow: Allowed = ()) -> Any:
    """The inverse of :func:`described`.

    Args:
        path: of the file that ``value`` came from, for errors.
        allow: classes of your own, or their dotted paths, which are imported.

    Raises:
        InputError: for a class that is neither known nor allowed, or arguments that it does not take.
    """
    if isinstance(value, list):
        return [rebuilt(item, path, allow) for item in value]
    if not isinstance(value, Mapping):
        return value
    parts = {name: rebuilt(item, path, allow) for name, item in value.items() if name != "class"}
    if "class" not in value:
        return parts
    chosen = _class_of(value["class"], path, allow)
    try:
        return chosen(**parts.get("arguments", {}))
    except InputError:
        raise
    except Exception as error:  # whatever a constructor finds wrong
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"describes a {value['class']} that cannot be: {reason}", path=path, remedy=_TRAIN) from error


_TRAIN = "Use a file as the training wrote it, and the version of the package that it names"


def _name_of(chosen: type) -> str:
    own = f"{chosen.__module__}.{chosen.__qualname__}"
    return chosen.__name__ if f"{KNOWN.get(chosen.__name__)}.{chosen.__name__}" == own else own


def _arguments_of(thing: Any) -> dict[str, Any]:
    if is_dataclass(thing):
        return {field.name: getattr(thing, field.name) for field in fields(thing) if field.init}
    if isinstance(thing, KeepsArguments) or type(thing).__name__ in KNOWN:  # MONAI's networks keep them one by one
        kept = getattr(thing, "arguments", {})
        names = [name for name in inspect.signature(type(thing).__init__).parameters if name != "self"]
        return {n: kept[n] if n in kept else getattr(thing, n) for n in names if n in kept or hasattr(thing, n)}
    what = f"a {type(thing).__name__} does not say how it was made, so no model file can"
    raise InputError(what, remedy="Make its class a dataclass, or a Denoiser")


def _class_of(name: str, path: str | Path | None, allow: Allowed) -> type:
    if name in KNOWN:
        return getattr(import_module(KNOWN[name]), name)  # type: ignore[no-any-return]
    for chosen in allow:
        if isinstance(chosen, type) and _name_of(chosen) == name:
            return chosen
        if chosen == name:
            module, _, attribute = name.rpartition(".")
            return getattr(import_module(module), attribute)  # type: ignore[no-any-return]
    remedy = f"Known are {', '.join(KNOWN)}; if you trust this one, give allow=[{name!r}]"
    raise InputError(f"names the class {name}, which is not known", path=path, remedy=remedy)
