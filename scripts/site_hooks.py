"""What mkdocs does not know by itself: notebooks as pages, and links to files that are not on the site.

Named in mkdocs.yml. A link that leaves ``docs`` becomes one to ``extra.source``, if mkdocs.yml has that address, else
text; one to a notebook leads to its page.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!\w+:)([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """A page for each notebook."""
    for path in sorted(Path(config["docs_dir"]).rglob("*.ipynb")):
        name = path.relative_to(config["docs_dir"])
        text = as_markdown(json.loads(path.read_text(encoding="utf-8")))
        files.append(File.generated(config, name.with_suffix(".md").as_posix(), content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links out of ``docs`` as links to the source, those to notebooks as links to their pages."""
    return with_outward_links(markdown, page.file.src_uri, config["extra"].get("source"))


def with_outward_links(markdown: str, page: str, source: str | None) -> str:
    """The text of a page at a path below ``docs`` without links that leave it or lead to a notebook's file."""

    def replace(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        place = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
        if place.startswith("docs/"):
            return f"[{text}]({target.removesuffix('.ipynb')}.md{anchor})" if target.endswith(".ipynb") else match[0]
        return f"[{text}]({source}/{place}{anchor})" if source else text

    return LINK.sub(replace, markdown)


def as_markdown(notebook: dict[str, Any]) -> str:
    """A notebook with its outputs as a page."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        shell = source.startswith("!")
        parts.append(
            fenced(source.replace("!cgdpm-med", "cgdpm-med") if shell else source, "sh" if shell else "python")
        )
        parts.extend(shown(output) for output in cell["outputs"])
    return "\n\n".join(parts) + "\n"


def shown(output: dict[str, Any]) -> str:
    """Printed text, or a picture."""
    if output["output_type"] == "stream":
        return fenced("".join(output["text"]).rstrip(), "text")
    return f'<img alt="output of the cell above" src="data:image/png;base64,{output["data"]["image/png"]}">'


def fenced(text: str, language: str) -> str:
    """A block of code."""
    return f"```{language}\n{text}\n```"
