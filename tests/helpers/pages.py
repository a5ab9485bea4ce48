"""Pages of reports: read as a browser would, and what they say of their making."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from cgdpm_med.studies.outputs import Provenance

VOID = {"meta", "img", "br", "input"}
ORIGIN = Provenance({"cgdpm_med": "0.1.0"}, {"seed": 7, "members": 5}, {"model.pt": "ab" * 32})


class Page(HTMLParser):
    """Checks that elements nest, and collects tags with their attributes and the visible text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not (self.open and self.open[-1] == "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def references(html: str) -> list[str]:
    """Whatever a browser would fetch: addresses in attributes and in the style, except data inside the page."""
    found = [
        value
        for tag, attributes in Page(html).tags
        for name, value in attributes.items()
        if name in {"src", "href", "srcset", "action", "data", "poster", "xlink:href", "background"}
    ]
    found += re.findall(r"url\(([^)]*)\)|@import\s+([^;]*)", html)
    return [value for value in found if not value.startswith("data:")]
