"""Every command of README and docs/ is executed here, or its block says which test executes it, or what it needs.

The mark is a comment on the line before the block: ``<!-- runs in: tests/… -->`` or ``<!-- needs: … -->``.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import REPO
from data_sets import write_pictures
from PIL import Image
from typer.testing import CliRunner

from cgdpm_med.apps.cli import app
from cgdpm_med.phantom import PhantomSpec, make_phantom

PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").glob("*.md"))]
PROGRAMS = re.compile(
    r"(cgdpm-med|python|pip|torchrun|docker|monailabel|cp|rm|sbatch|srun|export|apptainer|\.\S+/\S+) ?"
)
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>.*?) -->\n+)?(?:^```(?:sh|bash)\n(?P<fence>(?s:.*?))^```|(?P<indent>(?:^    .*\n)+))",
    re.MULTILINE,
)
FEW = ["--iterations", "2", *(f"--set={name}" for name in ("batch_size=2", "epoch=1", "widths=32,32"))]
ONE = ["--members", "1", "--steps", "1", "--device", "cpu"]
QUICK = {
    "segment": ONE,
    "super-resolve": ONE,
    "train": [*FEW, "--device", "cpu"],
    "plan": ["--device", "cpu"],
    "export": ["--format", "torch"],
}
"""Options that follow those of the page, so that a command takes seconds."""


@dataclass(frozen=True)
class Block:
    """Commands that stand together on a page."""

    page: Path
    commands: tuple[str, ...]
    mark: str

    @property
    def runs_here(self) -> bool:
        return not self.mark

    def __str__(self) -> str:
        return f"{self.page.stem}: {self.commands[0][:40]}"


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of commands of a page, other code left out."""
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        whole = (match["fence"] or match["indent"]).replace("\\\n", " ")
        lines = tuple(line.strip() for line in whole.splitlines())
        lines = tuple(line for line in lines if line and not line.startswith("#"))
        if match["fence"] or PROGRAMS.match(lines[0]):
            yield Block(page, lines, match["mark"] or "")


def subject(command: str) -> str:
    """The word by which a test that runs a command can be known: segment, sample_with_numpy, monai.bundle."""
    words = command.replace(" -m ", " ").split()
    return words[min(1, len(words) - 1)].rpartition("/")[2].removesuffix(".py")


ALL = [block for page in PAGES for block in blocks(page)]
HERE = [page for page in PAGES if any(block.page == page and block.runs_here for block in ALL)]


def test_the_pages_are_read() -> None:
    assert len(ALL) > 30
    assert {"README", "index", "integration", "scoring"} <= {page.stem for page in HERE}


@pytest.mark.parametrize("block", ALL, ids=str)
def test_a_block_runs_or_says_why_not(block: Block) -> None:
    kind, _, what = block.mark.partition(": ")
    assert kind in ("", "needs", "runs in")
    if kind == "needs":
        assert what
    elif kind == "runs in":
        text = (REPO / what).read_text(encoding="utf-8")
        assert block.page.name in text or [c for c in block.commands if subject(c) not in text] == []
    else:
        assert [command for command in block.commands if not command.startswith("cgdpm-med ")] == []
        assert "…" not in "".join(block.commands)


def test_a_block_without_a_mark_would_be_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "text\n\n    python -m other thing\n\n<!-- needs: a cluster -->\n\n```sh\nsrun \\\n  x\n```\n\n    F = 2\n"
    )
    first, second = blocks(page)
    assert second == Block(page, ("srun    x",), "needs: a cluster")
    with pytest.raises(AssertionError):
        test_a_block_runs_or_says_why_not(first)


def images(folder: Path) -> None:
    """A scan by itself, and a folder of them."""
    drawn = make_phantom(PhantomSpec.small(seed=1))
    nib.Nifti1Image(drawn.images[1], np.diag([-2.8, -2.8, 22.0, 1.0])).to_filename(folder / "scan.nii.gz")
    (folder / "IN").mkdir()
    shutil.copy(folder / "scan.nii.gz", folder / "IN")


def masks(folder: Path) -> None:
    """Masks and their references."""
    drawn = make_phantom(PhantomSpec.small(seed=1))
    for name in ("PRED", "REF"):
        (folder / name).mkdir()
        nib.Nifti1Image(drawn.labels[1], np.diag([-2.8, -2.8, 22.0, 1.0])).to_filename(folder / name / "a.nii.gz")


def pictures(folder: Path) -> None:
    """A data set, and pictures that have no masks yet."""
    write_pictures(folder / "DATA")
    shutil.copytree(folder / "DATA" / "images", folder / "IMAGES")


def coarse_pictures(folder: Path) -> None:
    """A picture to refine, under each name that a page gives it."""
    for name in ("face.png", "photo.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(folder / name)


LONG = {"README": pytest.mark.long}  # a minute and more: it trains, exports and super-resolves
THINGS: dict[str, Callable[[Path], None]] = {
    "IN": images,
    "PRED": masks,
    "DATA": pictures,
    "photo.png": coarse_pictures,
}
"""What stands on pages, and who writes it."""


@pytest.mark.slow
@pytest.mark.usefixtures("leaves_no_determinism")
@pytest.mark.parametrize("page", [pytest.param(page, marks=LONG.get(page.stem, ()), id=page.stem) for page in HERE])
def test_the_commands_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the page's order, in one folder."""
    monkeypatch.chdir(tmp_path)
    commands = [command for block in ALL if block.page == page and block.runs_here for command in block.commands]
    for name, write in THINGS.items():
        if any(re.search(rf"\b{name}\b", command) for command in commands) and f"phantom {name}" not in str(commands):
            write(tmp_path)
    for command in commands:
        words = shlex.split(command, comments=True)[1:]
        if "--hours" in words:
            del words[words.index("--hours") : words.index("--hours") + 2]
        found = CliRunner().invoke(app, [*words, *QUICK.get(words[0], [])])
        assert found.exit_code == 0, (command, found.output, found.exception)
