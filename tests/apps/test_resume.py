"""Runs that continue, share their work among machines, or are interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from conftest import REPO
from runs import again, contents, start
from scans import PLAIN, scan
from stubs import Thresholder

from cgdpm_med import InputError, Options, find_cases, segment_all
from cgdpm_med.apps.resume import Shard, find_shard
from cgdpm_med.inference.segmenter import Segmentation, Segmenter
from cgdpm_med.report.records import collect_cohort
from cgdpm_med.studies.outputs import provenance
from cgdpm_med.volumes import Volume

# --- a second run -----------------------------------------------------------------------------------------------------


def test_what_is_complete_is_left_out(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for n, name in enumerate("abc"):
        scan(source / f"{name}.nii.gz", n)
    assert again(source, out) == ["a", "b", "c"]
    before = contents(out)
    assert again(source, out) == []
    assert contents(out) == before  # the cohort's table too, made of the records

    (out / "a_entropy.nii.gz").unlink()
    (out / "b.nii.gz").write_bytes((out / "b.nii.gz").read_bytes()[:-30])
    (out / "c.json").write_text("{}")
    assert again(source, out) == ["a", "b", "c"]
    assert contents(out) == before

    scan(source / "b.nii.gz", 17)  # another scan under the old name
    assert again(source, out) == ["b"]
    assert again(source, out, seed=4) == ["a", "b", "c"]
    assert again(source, out, Options(pages=False, keep_largest=True), seed=4) == ["a", "b", "c"]
    assert again(source, out, Options(pages=False, keep_largest=True), seed=4) == []


def test_other_timesteps_are_another_run(tmp_path: Path) -> None:
    scan(tmp_path / "in" / "a.nii.gz", 0)
    assert again(tmp_path / "in", tmp_path / "out", timesteps=(999, 666, 333)) == ["a"]
    assert again(tmp_path / "in", tmp_path / "out", timesteps=[333, 666, 999]) == []
    assert again(tmp_path / "in", tmp_path / "out", timesteps=(999, 700)) == ["a"]
    assert again(tmp_path / "in", tmp_path / "out", steps=2) == ["a"]
    assert again(tmp_path / "in", tmp_path / "out", steps=2, shared_first_step=True) == ["a"]


@pytest.mark.parametrize(("steps", "members", "told"), [(1, 2, True), (1, 1, False), (2, 2, False)])
def test_members_of_a_single_step_are_told_to_be_alike(
    steps: int, members: int, told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan(tmp_path / "in" / "a.nii.gz", 0)
    again(tmp_path / "in", tmp_path / "out", steps=steps, members=members)
    assert ("members are nearly the same" in capsys.readouterr().err) is told


def test_records_of_version_0_1_call_the_combination_of_members_fusion(tmp_path: Path) -> None:
    scan(tmp_path / "in" / "a.nii.gz", 0)
    again(tmp_path / "in", tmp_path / "out")
    file = tmp_path / "out" / "a.json"
    record = json.loads(file.read_text())
    settings = record["made_with"]["settings"]
    settings["fusion"] = settings.pop("combine")
    file.write_text(json.dumps(record))
    assert again(tmp_path / "in", tmp_path / "out") == []
    settings["fusion"] = "majority"
    file.write_text(json.dumps(record))
    assert again(tmp_path / "in", tmp_path / "out") == ["a"]


def test_a_record_never_stands_beside_files_of_another_run(tmp_path: Path) -> None:
    image, out = scan(tmp_path / "a.nii.gz"), tmp_path / "out"
    segment_all(Thresholder(), find_cases(image), out, options=PLAIN)

    class Killed(Thresholder):
        def __call__(self, *_: object, **__: object) -> NoReturn:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment_all(Killed(seed=1), find_cases(image), out, options=PLAIN)
    assert not (out / "a.json").exists()
    assert again(image, out) == ["a"]


def test_leftovers_of_a_killed_run_are_swept(tmp_path: Path) -> None:
    image, out = scan(tmp_path / "a.nii.gz"), tmp_path / "out"
    program = (
        "import os, sys; from cgdpm_med.files import atomic_write\n"
        f"with atomic_write({str(out / 'a.nii.gz')!r}) as file: file.write(b'half'); file.flush(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=REPO, check=False)
    (stale,) = out.iterdir()
    assert stale.name.startswith(".")
    keep = out / ".somebody.tmp"
    keep.write_bytes(b"else's")
    assert again(image, out) == ["a"]
    assert sorted(path.name for path in out.glob(".*")) == [keep.name]


# --- several machines -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_study_belongs_to_exactly_one_part(count: int) -> None:
    keys = [f"site{n % 3}/patient{n:03d}" for n in range(200)] + ["心脏", "bad\udcff"]
    taken = Counter(key for index in range(1, count + 1) for key in keys if Shard(index, count).takes(key))
    assert taken == Counter(keys)
    sizes = [sum(Shard(index, count).takes(key) for key in keys) for index in range(1, count + 1)]
    assert min(sizes) > 0.5 * len(keys) / count


def test_parts_from_text_and_from_torchrun() -> None:
    torchrun = {"RANK": "1", "WORLD_SIZE": "4"}
    assert find_shard("2/8", torchrun) == Shard(2, 8)
    assert find_shard(None, torchrun) == Shard(2, 4)
    assert find_shard(None, {}) is find_shard("1/1", {}) is find_shard(None, {"RANK": "0", "WORLD_SIZE": "1"}) is None
    for text in ("0/2", "3/2", "2", "/2", "1/", "a/b", "-1/2", "1/0", "1/2/3", ""):
        with pytest.raises(InputError, match="no part of a whole"):
            find_shard(text, {})
    with pytest.raises(InputError, match="RANK is '4'"):
        find_shard(None, {"RANK": "4", "WORLD_SIZE": "4"})


def test_parts_together_are_the_whole(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for n in range(7):
        scan(source / f"s{n}.nii.gz", n)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    segment_all(Thresholder(), find_cases(source), whole, options=PLAIN)
    seen: list[str] = []
    for index in (1, 2, 3):
        segmenter = Thresholder()
        segment_all(segmenter, find_cases(source), parts, options=PLAIN, shard=Shard(index, 3))
        seen += segmenter.seen
    assert sorted(seen) == [f"s{n}" for n in range(7)]
    assert not (parts / "cohort.csv").exists()
    assert collect_cohort(parts)["studies"] == [f"s{n}" for n in range(7)]
    assert contents(parts) == contents(whole)


def test_a_cohort_is_made_of_like_studies(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        image = scan(tmp_path / "in" / f"{name}.nii.gz")
        segment_all(Thresholder(seed=seed), find_cases(image), tmp_path / "out", options=PLAIN)
    with pytest.raises(InputError, match=r"b\.json: was made with other settings than a\.json") as refused:
        collect_cohort(tmp_path / "out")
    assert "than a.json (seed). " in str(refused.value)
    for folder, complaint in (("absent", "no such folder"), ("in", "no finished study")):
        with pytest.raises(InputError, match=complaint):
            collect_cohort(tmp_path / folder)


# --- interrupted ------------------------------------------------------------------------------------------------------


class Slow(Thresholder):
    """Slow enough to be interrupted."""

    def __call__(self, volume: Volume, key: str, progress: object = None) -> Segmentation:
        time.sleep(0.02)
        return super().__call__(volume, key)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_cleanly_and_continue_does_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    source, out, undisturbed = tmp_path / "in", tmp_path / "out", tmp_path / "undisturbed"
    for n in range(12):
        scan(source / f"s{n:02d}.nii.gz", n)
    segment_all(Thresholder(), find_cases(source), undisturbed, options=PLAIN)
    monkeypatch.setattr(Segmenter, "from_bundle", lambda *_, **__: Slow())
    child = start(tmp_path / "log", str(source), str(out))
    while not (out / "s02.json").exists():
        assert os.waitpid(child, os.WNOHANG) == (0, 0), (tmp_path / "log").read_text()
        time.sleep(0.002)
    os.kill(child, number)
    _, status = os.waitpid(child, 0)
    errors = (tmp_path / "log").read_text()
    assert os.waitstatus_to_exitcode(status) == code
    assert errors.splitlines()[-1].startswith("interrupted: ")
    assert "Traceback" not in errors
    assert not list(out.rglob(".*"))
    assert 2 < len(list(out.glob("*.json"))) < 12
    done = {path.name: path.read_bytes() for path in out.glob("*.json")}
    assert all(contents(undisturbed)[name] == content for name, content in done.items())
    assert not set(again(source, out)) & {name.removesuffix(".json") for name in done}
    assert contents(out) == contents(undisturbed)


@pytest.mark.parametrize("how", ["torchrun", "--shard"])
def test_processes_at_once_on_one_folder_do_each_study_once(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out, whole = tmp_path / "in", tmp_path / "out", tmp_path / "whole"
    for n in range(9):
        scan(source / f"s{n}.nii.gz", n)
    segment_all(Thresholder(), find_cases(source), whole, options=PLAIN)
    monkeypatch.setattr(Segmenter, "from_bundle", lambda *_, **__: Slow())
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    children, count = [], 3
    for rank in range(count):
        if how == "torchrun":
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", str(count))
        shard = () if how == "torchrun" else ("--shard", f"{rank + 1}/{count}")
        children.append(start(tmp_path / f"log{rank}", str(source), str(out), *shard))
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    logs = [(tmp_path / f"log{rank}").read_text() for rank in range(count)]
    assert codes == [0] * count, logs
    done = Counter(line.split()[1] for log in logs for line in log.splitlines() if line.startswith("segmented "))
    assert done == Counter(f"s{n}" for n in range(9))
    assert [log.splitlines()[0].split(":")[0] for log in logs] == [f"part {rank + 1}/3" for rank in range(count)]
    assert collect_cohort(out)["studies"] == [f"s{n}" for n in range(9)]
    assert contents(out) == contents(whole)


@pytest.mark.slow
def test_killed_at_any_moment_continue_gives_what_an_undisturbed_run_gives(tmp_path: Path) -> None:
    source, undisturbed = tmp_path / "in", tmp_path / "undisturbed"
    for n in range(4):
        scan(source / f"s{n:02d}.nii.gz", n)
    segment_all(Thresholder(), find_cases(source), undisturbed, options=PLAIN)
    halves = 0
    # every call that changes the folder is a moment to die before; a child per moment shares the imports
    # (the first four look into the scans)
    for moment in np.random.default_rng(0).choice(60, 20, replace=False) + 4:
        out = tmp_path / f"out{moment}"
        if (child := os.fork()) == 0:
            _die_at(int(moment))
            segment_all(Thresholder(), find_cases(source), out, options=PLAIN)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        left = contents(out)
        halves += any(name.endswith(".tmp") for name in left)
        assert {item for item in left.items() if not item[0].endswith(".tmp")} <= set(contents(undisturbed).items())
        segment_all(Thresholder(), find_cases(source), out, options=PLAIN, resume=True)
        assert contents(out) == contents(undisturbed)
    assert halves > 3  # some died in the middle of a file


def _die_at(moment: int) -> None:
    """Kill this process by SIGKILL at its ``moment``-th call that opens, writes out, renames or removes a file."""
    left = moment

    def watch(event: str, _: object) -> None:
        nonlocal left
        if event in ("open", "os.rename", "os.remove", "os.mkdir"):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


# --- what an earlier run left -----------------------------------------------------------------------------------------


def test_nothing_of_an_earlier_run_stays_beside_new_masks(tmp_path: Path) -> None:
    source, out = scan(tmp_path / "in" / "a.nii.gz"), tmp_path / "out"
    everything = Options(write=("mask", "probabilities", "members", "entropy", "disagreement"))
    segment_all(Thresholder(), find_cases(source), out, options=everything)
    assert (out / "a_members.nii.gz").is_file()
    assert (out / "a.html").is_file()
    (out / "a_notes.nii.gz").write_bytes(b"of a reader")
    segment_all(Thresholder(), find_cases(source), out, options=PLAIN)
    kept = {path.name for path in out.iterdir() if path.name.startswith("a")}
    assert kept == {"a.json", "a_notes.nii.gz", *json.loads((out / "a.json").read_text())["files"]}
    assert "a_members.nii.gz" not in kept
    assert "a.html" not in kept


@pytest.mark.parametrize("write", ["entropy", "members"])
def test_an_image_in_the_output_folder_is_never_removed(write: str, tmp_path: Path) -> None:
    source, hand = scan(tmp_path / "a.nii.gz"), scan(tmp_path / "b.nii.gz")
    image, other = source.read_bytes(), hand.read_bytes()
    for _ in range(2):
        segment_all(Thresholder(), find_cases(source), tmp_path, options=Options(write=write, pages=False))
        assert source.read_bytes() == image
        assert hand.read_bytes() == other
    assert (tmp_path / f"a_{write}.nii.gz").is_file()


def test_an_image_that_cannot_be_read_any_more_leaves_what_was_made_of_it(tmp_path: Path) -> None:
    source, out = scan(tmp_path / "in" / "a.nii.gz"), tmp_path / "out"
    segment_all(Thresholder(), find_cases(source), out, options=PLAIN)
    before = contents(out)
    source.write_bytes(source.read_bytes()[:-40])
    assert segment_all(Thresholder(), find_cases(source), out, options=PLAIN)["failed"]
    assert contents(out) == before


def test_studies_of_one_name_in_several_folders_are_told_apart(tmp_path: Path) -> None:
    for site in ("north", "south"):
        image = scan(tmp_path / site / "1.nii.gz", len(site))
        segment_all(Thresholder(), find_cases(image), tmp_path / "out" / site)
    found = collect_cohort(tmp_path / "out")
    assert found["studies"] == ["north/1", "south/1"]
    table = (tmp_path / "out" / "cohort.csv").read_text()
    assert "north/1" in table
    assert "south/1" in table
    page = (tmp_path / "out" / "cohort.html").read_text()
    assert 'href="north/1.html"' in page
    assert 'href="south/1.html"' in page


def test_studies_of_one_name_made_unlike_are_told_by_their_folders(tmp_path: Path) -> None:
    for site, made in (("north", {"seed": 0}), ("south", {"seed": 0, "steps": 3})):
        image = scan(tmp_path / "in" / site / "v.nii.gz")
        segment_all(Thresholder(**made), find_cases(image), tmp_path / "out" / site, options=PLAIN)
    with pytest.raises(InputError) as caught:
        collect_cohort(tmp_path / "out")
    assert caught.value.path == tmp_path / "out" / "south" / "v.json"
    assert "than north/v.json (steps). " in str(caught.value)


def test_records_older_than_a_setting_stand_beside_newer_ones(tmp_path: Path) -> None:
    for name in "ab":
        scan(tmp_path / "in" / f"{name}.nii.gz", ord(name))
    again(tmp_path / "in", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "a.json").read_text())
    del record["made_with"]["settings"]["one_body"], record["made_with"]["settings"]["eta"]
    (tmp_path / "out" / "a.json").write_text(json.dumps(record))
    assert again(tmp_path / "in", tmp_path / "out") == []
    assert collect_cohort(tmp_path / "out")["studies"] == ["a", "b"]


def test_networks_whose_files_have_one_name_are_all_recorded(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.pt").write_bytes(folder.encode())
    made = provenance({}, tmp_path / "first" / "model.pt", tmp_path / "second" / "model.pt")
    assert list(made.weights) == ["model.pt", "model.pt (2)"]
    assert len(set(made.weights.values())) == 2


@pytest.mark.parametrize("name", ["cohort", "view"])
def test_a_name_of_the_cohorts_own_files_is_refused(name: str, tmp_path: Path) -> None:
    image = scan(tmp_path / "in" / f"{name}.nii.gz")
    failed = segment_all(Thresholder(), find_cases(image), tmp_path / "out", options=PLAIN)["failed"]
    assert f"has the name of a file that cgdpm-med {name} writes there" in str(failed[name])
