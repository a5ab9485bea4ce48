"""How numbers are written in tables, reports and on the command line."""

from __future__ import annotations

MISSING = "–"
"""What stands for a number that is undefined or unknown."""


def format_number(value: float | None, digits: int = 2, factor: float = 1.0, unit: str = "") -> str:
    """A number with ``digits`` decimals and its unit, :data:`MISSING` for None and for NaN.

    Args:
        factor: what the number is multiplied with, 100 for a fraction in percent.
        unit: written behind the number, after a space.
    """
    if value is None or value != value:
        return MISSING
    return f"{factor * value:.{digits}f}" + (f" {unit}" if unit else "")


def format_interval(lower: float | None, upper: float | None, digits: int = 1) -> str:
    """Both ends of an interval, and nothing where one is unknown."""
    if lower is None or upper is None:
        return ""
    return f"{format_number(lower, digits)} to {format_number(upper, digits)}"
