"""A weights file that would run code if it were unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


class Payload:
    """A pickle of it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def write_malicious(path: Path, marker: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"weight": Payload(marker)}, path)
