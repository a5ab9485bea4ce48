"""Documents: every command parses, the site builds offline without a warning, notebooks and examples run."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from conftest import REPO, load_script

from cgdpm_med.apps.cli import app

PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").glob("*.md"))]
NOTEBOOKS = sorted((REPO / "docs" / "tutorials").glob("*.ipynb"))
COMMAND = re.compile(r"^(?:    |!)?(?:torchrun .* --no-python )?(cgdpm-med .*)$")
needs_mkdocs = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings_handlers") is None,
    reason="the extra 'docs' is not installed",
)


def blocks(page: Path) -> Iterator[str]:
    """Lines of code of a page: indented by four, or between fences."""
    text = page.read_text(encoding="utf-8")
    for place, part in enumerate(text.split("```")):
        lines = part.splitlines()
        yield from (line for line in lines if place % 2 or line.startswith("    "))


def commands(page: Path) -> list[str]:
    """The commands of this package on a page, in full."""
    found = [match[1] for line in blocks(page) if (match := COMMAND.match(line.rstrip("\\")))]
    return [command for command in found if "…" not in command]


def notebook_commands() -> list[str]:
    cells = [cell for path in NOTEBOOKS for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    lines = [line for cell in cells if cell["cell_type"] == "code" for line in "".join(cell["source"]).splitlines()]
    return [match[1] for line in lines if (match := COMMAND.match(line))]


ALL = sorted({command for page in PAGES for command in commands(page)} | set(notebook_commands()))


def test_there_are_commands_to_look_at() -> None:
    assert len(ALL) > 20


@pytest.mark.parametrize("command", ALL)
def test_every_command_is_one(command: str) -> None:
    """Its options and arguments are accepted; whether the files are there is not asked."""
    words = shlex.split(command, comments=True)[1:]
    group: Any = typer.main.get_command(app)
    if words[0].startswith("-"):
        group.make_context("cgdpm-med", [*words, "info"], resilient_parsing=True)
        return
    assert words[0] in group.commands
    group.commands[words[0]].make_context(words[0], words[1:])


def test_a_wrong_option_is_noticed() -> None:
    with pytest.raises(Exception, match="no-such-option"):  # click's own class, which typer brings along
        test_every_command_is_one("cgdpm-med segment IN OUT --no-such-option")


def test_scripts_that_pages_run_exist() -> None:
    texts = [line for page in PAGES for line in blocks(page)]
    named = {name for text in texts for name in re.findall(r"(?:python |\./)((?:scripts|examples)/[\w.]+)", text)}
    assert "scripts/release.py" in named
    assert [name for name in named if not (REPO / name).is_file()] == []


def prose(page: Path) -> str:
    """The text of a page, or of a notebook's pages."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: page.stem)
def test_links_lead_to_files_of_the_repository(page: Path) -> None:
    """Who reads in the repository meets files, not the pages that the site makes of them."""
    targets = re.findall(r"\]\((?!\w+:)([^)#\s]+)", prose(page))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_front_page_leads_everywhere() -> None:
    text = (REPO / "docs" / "index.md").read_text(encoding="utf-8")
    for page in ("scaling", "integration", "own_data", "export", "api", "concepts", "architecture"):
        assert f"({page}.md)" in text


def test_a_link_out_of_the_documents_is_text_or_source() -> None:
    pytest.importorskip("mkdocs")
    hooks = load_script("site_hooks")
    text = (
        "see [a file](../cgdpm_med/files.py#L3), [a page](train.md), [both](https://example.org) and ![p](images/a.png)"
    )
    plain = hooks.with_outward_links(text, "index.md", None)
    assert plain == text.replace("[a file](../cgdpm_med/files.py#L3)", "a file")
    linked = hooks.with_outward_links(text, "index.md", "https://example.org/tree")
    assert "[a file](https://example.org/tree/cgdpm_med/files.py#L3)" in linked
    inside = hooks.with_outward_links("[a page](../train.md)", "tutorials/a.md", None)
    assert inside == "[a page](../train.md)"
    assert hooks.with_outward_links("[n](tutorials/a.ipynb#b)", "index.md", None) == "[n](tutorials/a.md#b)"


def test_a_notebook_becomes_a_page_with_what_it_printed_and_drew() -> None:
    pytest.importorskip("mkdocs")
    cells = [
        {"cell_type": "markdown", "source": ["# A\n", "text"]},
        {"cell_type": "code", "source": ["print(1)"], "outputs": [{"output_type": "stream", "text": ["1\n"]}]},
        {"cell_type": "code", "source": ["!cgdpm-med info"], "outputs": []},
        {
            "cell_type": "code",
            "source": ["draw()"],
            "outputs": [{"output_type": "display_data", "data": {"image/png": "QUJD"}}],
        },
    ]
    page = load_script("site_hooks").as_markdown({"cells": cells})
    assert page.startswith("# A\ntext\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n```sh\ncgdpm-med info\n```")
    assert page.count("data:image/png;base64,QUJD") == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_with_their_outputs(path: Path) -> None:
    cells = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert any(output["output_type"] == "display_data" for cell in cells for output in cell["outputs"])
    assert not any(str(REPO) in line for cell in cells for o in cell["outputs"] for line in o.get("text", ()))


def test_three_notebooks_are_on_the_site() -> None:
    text = (REPO / "mkdocs.yml").read_text(encoding="utf-8")
    assert len(NOTEBOOKS) == 3
    tutorials = [entry["Tutorials"] for entry in yaml.safe_load(text)["nav"] if "Tutorials" in entry]
    assert {Path(page).stem for entry in tutorials[0] for page in entry.values()} == {path.stem for path in NOTEBOOKS}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.usefixtures("leaves_no_determinism")
def test_notebooks_run(path: Path, tmp_path: Path) -> None:
    before = json.loads(path.read_text(encoding="utf-8"))["cells"]
    after = json.loads(path.read_text(encoding="utf-8"))
    load_script("notebooks").run(after, tmp_path)
    kinds = [[[o["output_type"] for o in c.get("outputs", ())] for c in cells] for cells in (before, after["cells"])]
    assert kinds[0] == kinds[1]


@pytest.mark.slow
def test_the_examples_of_the_api_run(tmp_path: Path) -> None:
    text = (REPO / "docs" / "api.md").read_text(encoding="utf-8")
    program = tmp_path / "program.py"
    program.write_text("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), encoding="utf-8")
    subprocess.run([sys.executable, str(program)], check=True, cwd=tmp_path)
    assert (tmp_path / "overlay.png").is_file()


def test_the_api_has_an_example_at_each_of_its_names() -> None:
    text = (REPO / "docs" / "api.md").read_text(encoding="utf-8")
    names = [name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)", text, re.MULTILINE)]
    code = "".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    assert len(names) >= 20
    assert [name for name in names if name not in code and name != "Volume"] == []


@pytest.mark.slow
@needs_mkdocs
def test_the_site_builds_and_needs_no_network(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    subprocess.run(build, check=True, cwd=REPO)
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 15
    loaded = re.compile(r'(?:<script[^>]* src|<link[^>]* rel="stylesheet"[^>]* href|<img[^>]* src)="https?:')
    assert [page.name for page in pages if loaded.search(page.read_text(encoding="utf-8"))] == []
