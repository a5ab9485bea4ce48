"""Work for workers that have little to import."""

from __future__ import annotations

import time


def slowly(item: str, progress: object) -> str:
    """The item itself, after a while."""
    time.sleep(0.5)
    return item
