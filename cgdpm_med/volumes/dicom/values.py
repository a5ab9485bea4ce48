"""Values of DICOM headers as plain texts and numbers, None where they are absent or no such values."""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from pydicom import config
from pydicom.errors import BytesLengthException

UNREADABLE = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    OverflowError,
    RecursionError,
    NotImplementedError,
    struct.error,
    zlib.error,
    BytesLengthException,
)
"""What pydicom raises on damaged files."""


@contextmanager
def without_remarks() -> Iterator[None]:
    """Keeps pydicom from warning and logging of values that are not as they should be, since that quotes the header."""
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def text_of(header: Any, keyword: str) -> str:
    """A value as text, several joined by backslashes; "" where it is absent."""
    try:
        value = header.get(keyword)
    except UNREADABLE:
        return ""
    if value is None:
        return ""
    parts = [value] if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__") else list(value)
    return "\\".join(str(part).strip(" \0") for part in parts)


def numbers_of(header: Any, keyword: str, count: int) -> list[float] | None:
    """Finite numbers, or None unless there are ``count`` of them."""
    try:
        values = [float(part) for part in text_of(header, keyword).split("\\")]
    except ValueError:
        return None
    return values if len(values) == count and np.isfinite(values).all() else None


def number_of(header: Any, keyword: str) -> float | None:
    """A single finite number, or None."""
    values = numbers_of(header, keyword, 1)
    return None if values is None else values[0]


def seconds_of(text: str) -> float | None:
    """DICOM's TM, or the end of a DT, as seconds of the day."""
    found = re.fullmatch(r"(?:\d{8})?(\d{2}):?(\d{2})?:?(\d{2}(?:\.\d+)?)?(?:[+-]\d{4})?", text.strip())
    if found is None:
        return None
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return 3600 * hours + 60 * minutes + seconds


def whole_of(header: Any, keyword: str) -> int | None:
    """A single number without its decimals, or None."""
    value = number_of(header, keyword)
    return None if value is None else int(value)


def positive_of(header: Any, keyword: str) -> float | None:
    """A single number above zero, or None."""
    value = number_of(header, keyword)
    return value if value is not None and value > 0 else None
