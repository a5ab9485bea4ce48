"""The page over a cohort: one file, every study with a picture, right counts, a script the browser admits."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from pages import ORIGIN, Page, references
from stubs import Oracle
from typer.testing import CliRunner

from cgdpm_med.apps.cli import app
from cgdpm_med.apps.pipeline import segment_all
from cgdpm_med.files import InputError
from cgdpm_med.inference.quality import Finding, Quality
from cgdpm_med.phantom import PhantomSpec, write_phantom_patient
from cgdpm_med.report.records import finished_studies
from cgdpm_med.report.view import filters_of, flags_of, view_page, write_view
from cgdpm_med.studies.cases import find_cases


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("view")
    for number in (1, 2):
        write_phantom_patient(folder / "in", number, PhantomSpec.small(seed=number))
    segment_all(Oracle(members=2), find_cases(folder / "in"), folder / "out")
    return folder / "out"


def test_a_page_of_every_study_with_its_picture(out: Path) -> None:
    made = write_view(out)
    assert made["studies"] == ["patient001", "patient002"]
    assert made["without_picture"] == []
    html = Path(made["file"]).read_text(encoding="utf-8")
    assert references(html) == ["patient001/patient001.html", "patient002/patient002.html"]
    assert all((out / link).is_file() for link in references(html))
    pictures = [attributes["src"] for tag, attributes in Page(html).tags if tag == "img"]
    assert len(set(pictures)) == 2
    for key, picture in zip(made["studies"], pictures, strict=True):
        assert picture in (out / key / f"{key}.html").read_text(encoding="utf-8")


def test_the_browser_admits_this_script_and_no_other(out: Path) -> None:
    html = Path(write_view(out)["file"]).read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    (policy,) = [a["content"] for tag, a in Page(html).tags if a.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert not any(name.startswith("on") for _, attributes in Page(html).tags for name in attributes)


def test_filters_count_verdicts_and_checks(out: Path) -> None:
    result = finished_studies(out).results[0]
    findings = (Finding("voxel size", "large"), Finding("gap", "wide"), Finding("note", "seen", review=False))
    good, bad = replace(result, quality=Quality()), replace(result, key="b", quality=Quality(findings))
    assert flags_of(good) == ["pass"]
    assert flags_of(bad) == ["review", "gap", "voxel size"]
    counted = {name: count for name, _, count in filters_of([good, bad, bad])}
    assert counted == {"": 3, "pass": 1, "review": 2, "gap": 2, "voxel size": 2}
    rows = [a["data-flags"] for tag, a in Page(view_page([good, bad], ORIGIN, {}, {})).tags if "data-flags" in a]
    assert rows == ["review|gap|voxel size", "pass"]  # "b" before "patient001"


def test_names_are_escaped(out: Path) -> None:
    result = replace(finished_studies(out).results[0], key='<script>alert("1")</script>')
    html = view_page([result], ORIGIN, {result.key: '"><script>'}, {})
    assert len(re.findall("<script", html)) == 1


def test_a_study_without_a_page_is_named(out: Path, tmp_path: Path) -> None:
    shutil.copytree(out, tmp_path / "out")
    (tmp_path / "out" / "patient001" / "patient001.html").unlink()
    assert write_view(tmp_path / "out")["without_picture"] == ["patient001"]


def test_the_command_writes_it(out: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["view", str(out), "--no-open"])
    assert done.exit_code == 0
    assert str(out / "view.html") in done.output
    with pytest.raises(InputError, match="no finished study"):
        write_view(tmp_path)
