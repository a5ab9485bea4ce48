"""Objects that remember what they were made with, so that a file can say it and another process make them again."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

from torch import nn

T = TypeVar("T")


class KeepsArguments:
    """The arguments of the constructor by name, defaults included, as ``arguments``; {} for a bare copy.

    Networks among them are left out: they are attributes of the same name.
    """

    arguments: dict[str, Any]

    def __new__(cls: type[T], *args: Any, **kwargs: Any) -> T:
        """Bind the arguments to the names of ``__init__``, which complains itself of those that do not fit."""
        made = object.__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(made, *args, **kwargs)
        except TypeError:
            kept: list[tuple[str, Any]] = []
        else:
            bound.apply_defaults()
            kept = list(bound.arguments.items())[1:]
        made.__dict__["arguments"] = {name: value for name, value in kept if not isinstance(value, nn.Module)}
        return made
