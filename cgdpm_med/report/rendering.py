"""Templates of pages, filled in. They and the style of the pages lie in ``templates``, beside this file."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cgdpm_med.files import atomic_write

_REPORT = "cgdpm_med.report"


def render(template: str, package: str = _REPORT, **values: Any) -> str:
    """HTML of a template. Texts are escaped, except where the template calls them ``safe``, being HTML already.

    Args:
        package: whose folder ``templates`` holds it.
    """
    return _environment(package).get_template(template).render(values).strip()


def render_page(template: str, **values: Any) -> str:
    """A whole document, with its style inside; see ``page.html.j2`` for what every page needs."""
    return render(template, stylesheet=template_text("report.css"), **values) + "\n"


def write_report(html: str, path: str | Path) -> Path:
    """Write a page, whole or not at all; returns the path."""
    with atomic_write(path) as file:
        file.write(html.encode("utf-8"))
    return Path(path)


@cache
def _environment(package: str) -> Environment:
    environment = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"pixels": _pixels, "points": _points, "plain_words": _plain_words}
    return environment


def template_text(name: str) -> str:
    """A file beside the templates as it is: a style or a script."""
    loader = _environment(_REPORT).loader
    assert loader is not None
    return loader.get_source(_environment(_REPORT), name)[0].strip()


def _pixels(position: float) -> str:
    return f"{position:.1f}"


def _points(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{_pixels(x)},{_pixels(y)}" for x, y in points)


def _plain_words(value: Any) -> str:
    """A setting in words."""
    if isinstance(value, (list, tuple)):
        return " to ".join(str(part) for part in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
