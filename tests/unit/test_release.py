"""The release script on copies: versions are written everywhere or nowhere, weights travel with their terms."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
from conftest import REPO, load_script

release = load_script("release")
PLACES = release.places(REPO)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in (*PLACES, "CHANGELOG.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / name, tmp_path / name)
    text = "# Changelog\n\n## Unreleased\n\n- new\n\n## [0.1.0] - 2026-01-01\n\n- old\n"
    (tmp_path / "CHANGELOG.md").write_text(text, encoding="utf-8")
    return tmp_path


def contents(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text(encoding="utf-8") for name in (*PLACES, "CHANGELOG.md")}


def test_this_checkout_states_one_version() -> None:
    assert release.VERSION.fullmatch(release.stated_version(REPO))
    assert {"CITATION.cff", "bundles/acdc_segmentation/configs/metadata.json"} < PLACES.keys()


def test_a_version_is_written_everywhere(checkout: Path) -> None:
    before = contents(checkout)
    release.prepare(checkout, "9.8.7", "2030-01-02")
    assert release.stated_version(checkout) == "9.8.7"
    after = contents(checkout)
    assert "## [9.8.7] - 2030-01-02\n\n- new\n\n## [0.1.0]" in after["CHANGELOG.md"]
    for name in PLACES:
        assert len(after[name].splitlines()) == len(before[name].splitlines())
        changed = [line for line in after[name].splitlines() if line not in before[name].splitlines()]
        assert len(changed) == 1


@pytest.mark.parametrize("version", ["0.0.9", "0.1.0", "0.2", "v0.2.0", "next"])
def test_no_version_after_this_one_changes_nothing(checkout: Path, version: str) -> None:
    for name in PLACES:
        path = checkout / name
        path.write_text(release.replaced(path, PLACES[name], "0.1.0"), encoding="utf-8")
    before = contents(checkout)
    with pytest.raises(ValueError, match="after"):
        release.prepare(checkout, version, "2030-01-02")
    assert contents(checkout) == before


@pytest.mark.parametrize("changelog", ["# Changelog\n", "## Unreleased\n\n## [0.1.0]\n\n- old\n"])
def test_nothing_new_is_no_release(checkout: Path, changelog: str) -> None:
    (checkout / "CHANGELOG.md").write_text(changelog, encoding="utf-8")
    before = contents(checkout)
    with pytest.raises(ValueError, match="Unreleased"):
        release.prepare(checkout, "9.8.7", "2030-01-02")
    assert contents(checkout) == before


def test_places_that_disagree_are_named(checkout: Path) -> None:
    (checkout / "CITATION.cff").write_text("version: 0.0.1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"CITATION\.cff 0\.0\.1"):
        release.prepare(checkout, "9.8.7", "2030-01-02")


def bundle(root: Path) -> Path:
    models = root / "bundles" / "task" / "models"
    models.mkdir(parents=True)
    (models / "model.pt").write_bytes(b"weights")
    return models.parent


def test_weights_travel_with_their_terms(tmp_path: Path) -> None:
    made = bundle(tmp_path)
    assert list(release.bundles_with_weights(tmp_path)) == [made]
    with pytest.raises(ValueError, match="data_license"):
        release.archive_weights(made, tmp_path / "weights.zip")
    (made / "docs").mkdir()
    (made / "docs" / "data_license.txt").write_text("terms", encoding="utf-8")
    release.archive_weights(made, tmp_path / "weights.zip")
    with zipfile.ZipFile(tmp_path / "weights.zip") as archive:
        assert set(archive.namelist()) == {"task/docs/data_license.txt", "task/models/model.pt"}
        assert archive.read("task/models/model.pt") == b"weights"


def test_checksums_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "empty.whl").write_bytes(b"")
    (tmp_path / release.SUMS).write_text("old", encoding="utf-8")
    expected = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # FIPS 180-4: of no bytes
    assert release.checksums(tmp_path) == [f"{expected}  empty.whl"]


def test_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.whl").write_bytes(b"")
    with pytest.raises(ValueError, match="not empty"):
        release.build(REPO, tmp_path)
