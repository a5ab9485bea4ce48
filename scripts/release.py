#!/usr/bin/env python3
"""A release in two steps; between them somebody reads, commits and tags.

python scripts/release.py prepare 0.2.0     # the version where it stands, and the changelog dated
python scripts/release.py build dist        # wheel, source archive, the weights by themselves, checksums

The wheel holds code and weights, and its metadata name both licences. An archive of weights holds one bundle's, with
the licence of the data they were trained on.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
VERSION = re.compile(r"\d+\.\d+\.\d+")
UNRELEASED = "## Unreleased\n"
PLACES = {
    "pyproject.toml": r'(?m)^version = "([^"]+)"',
    "cgdpm_med/__init__.py": r'(?m)^__version__ = "([^"]+)"',
    "CITATION.cff": r"(?m)^version: (\S+)$",
}
"""Files that state the version, and the pattern that finds it in each; requirements of bundles besides."""
REQUIREMENT = r'"cgdpm-med": "([^"]+)"'
SUMS = "SHA256SUMS"


def main() -> None:
    """Prepare or build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("prepare", help="write the version and date the changelog")
    first.add_argument("version")
    first.add_argument("--date", default=datetime.date.today().isoformat())
    second = commands.add_parser("build", help="make the files of the release")
    second.add_argument("out", type=Path)
    wanted = parser.parse_args()
    try:
        if wanted.command == "prepare":
            prepare(REPO, wanted.version, wanted.date)
        else:
            print("\n".join(build(REPO, wanted.out)))
    except ValueError as error:
        sys.exit(f"error: {error}")


def prepare(root: Path, version: str, date: str) -> None:
    """Write a version into every place and date the changelog; all of it or nothing.

    Raises:
        ValueError: for a version that is none or not newer, places that disagree, or a changelog with nothing new.
    """
    old = stated_version(root)
    if not VERSION.fullmatch(version) or numbers(version) <= numbers(old):
        raise ValueError(f"{version} is no version after {old}, such as {old.rpartition('.')[0]}.{numbers(old)[2] + 1}")
    written = {path: replaced(root / path, pattern, version) for path, pattern in places(root).items()}
    written["CHANGELOG.md"] = dated((root / "CHANGELOG.md").read_text(encoding="utf-8"), version, date)
    for path, text in written.items():
        (root / path).write_text(text, encoding="utf-8")


def places(root: Path) -> dict[str, str]:
    """Each file that states the version, with its pattern: bundles and recipes ask for the package they came with."""
    files = sorted(path for kind in ("bundles", "recipes") for path in root.glob(f"{kind}/*/configs/metadata.json"))
    return {**PLACES, **{path.relative_to(root).as_posix(): REQUIREMENT for path in files}}


def stated_version(root: Path) -> str:
    """The version that all places state.

    Raises:
        ValueError: where they disagree, or one states none.
    """
    found = {}
    for path, pattern in places(root).items():
        match = re.search(pattern, (root / path).read_text(encoding="utf-8"))
        found[path] = match[1] if match else "no version"
    if len(set(found.values())) > 1:
        raise ValueError("the versions disagree: " + ", ".join(f"{path} {version}" for path, version in found.items()))
    return found["pyproject.toml"]


def numbers(version: str) -> tuple[int, ...]:
    """0.2.0 -> (0, 2, 0)."""
    return tuple(int(part) for part in version.split("."))


def replaced(path: Path, pattern: str, version: str) -> str:
    """The text of a file with another version in it."""
    text = path.read_text(encoding="utf-8")
    match = re.search(pattern, text)
    assert match is not None
    return text[: match.start(1)] + version + text[match.end(1) :]


def dated(changelog: str, version: str, date: str) -> str:
    """The changelog with its unreleased part as that of a version.

    Raises:
        ValueError: where nothing stands under it.
    """
    _, heading, rest = changelog.partition(UNRELEASED)
    if not heading or not rest.partition("\n## ")[0].strip():
        raise ValueError("CHANGELOG.md has nothing under '## Unreleased': write what changes first")
    return changelog.replace(UNRELEASED, f"## [{version}] - {date}\n", 1)


def build(root: Path, out: Path) -> list[str]:
    """Wheel, source archive and archives of weights in an empty folder, and a file of their checksums; its lines.

    Raises:
        ValueError: for a folder that is not empty, or a checkout with changes that are not committed.
    """
    out = out.resolve()
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: a release is made from nothing")
    if subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, check=True).stdout:
        raise ValueError("there are changes that are not committed: the files would be of no known state")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(out), str(root)], check=True)
    version = stated_version(root)
    for bundle in bundles_with_weights(root):
        archive_weights(bundle, out / f"{bundle.name}-{version}.zip")
    lines = checksums(out)
    (out / SUMS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return lines


def bundles_with_weights(root: Path) -> Iterator[Path]:
    """Folders of bundles that ship weights."""
    return (path.parents[1] for path in sorted(root.glob("bundles/*/models/model.pt")))


def archive_weights(bundle: Path, archive: Path) -> None:
    """A bundle's weights, and the licences that say what may be done with them.

    Raises:
        ValueError: for weights without the licence of their data.
    """
    terms = bundle / "docs" / "data_license.txt"
    if not terms.is_file():
        raise ValueError(f"{bundle.name} ships weights without docs/data_license.txt: write their terms first")
    files = [path for path in sorted(bundle.glob("models/**/*")) if path.is_file()]
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        for path in [terms, *files]:
            made.write(path, Path(bundle.name) / path.relative_to(bundle))


def checksums(folder: Path) -> list[str]:
    """One line for each file, as ``sha256sum --check`` reads them."""
    files = [path for path in sorted(folder.iterdir()) if path.name != SUMS]
    return [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in files]


if __name__ == "__main__":
    main()
