"""Whole runs: cines, studies, options, what a second run leaves out, and who does what on several machines."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import REPO
from stubs import Oracle, Thresholder, segmentation_of

from cgdpm_med import InputError, Options, collect_cohort, find_cases, read_labels, segment_all, segment_cases, staple
from cgdpm_med.apps import cli
from cgdpm_med.apps.cardiac import cardiac_function, frame_volumes
from cgdpm_med.apps.components import keep_largest
from cgdpm_med.apps.outputs import label_tables
from cgdpm_med.apps.pipeline import check_options
from cgdpm_med.apps.quality import Finding, Quality
from cgdpm_med.apps.records import read_study_record, study_record
from cgdpm_med.apps.resume import Shard, find_shard
from cgdpm_med.apps.segment import Segmenter
from cgdpm_med.apps.study import StudyResult
from cgdpm_med.phantom import write_phantom_dataset
from cgdpm_med.volumes import Volume, frames, read_volume

PLAIN = Options(pages=False)
SMALL = {"shape": (64, 56, 4), "spacing": (2.8, 2.8, 22.0), "num_frames": 6}
AFFINE = np.array([[-1.5, 0, 0, 40.0], [0, 1.6, -4, 20], [0, 1.2, 6, 5], [0, 0, 0, 1]])
VOXEL_ML = abs(np.linalg.det(AFFINE[:3, :3])) / 1000


def write_image(path: Path, data: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(data.astype(np.float32), AFFINE).to_filename(path)
    return path


def scan(path: Path, seed: int = 0) -> Path:
    return write_image(path, np.random.default_rng(seed).uniform(0, 100, (5, 4, 3)))


def cine(path: Path, cavities: tuple[int, ...] = (3, 5, 2, 4)) -> Path:
    """Noise of 0 to 1, and in frame t a bright block of ``cavities[t]`` x 2 x 2 voxels."""
    data = np.random.default_rng(0).uniform(0, 1, (8, 6, 4, len(cavities)))
    for t, width in enumerate(cavities):
        data[1 : 1 + width, 2:4, 1:3, t] = 100
    return write_image(path, data)


class Cavity(Thresholder):
    """Calls what is brighter than 50 left ventricle; member k of three lacks its k first columns."""

    def __call__(self, volume: Volume, key: str, progress: object = None) -> object:
        self.seen.append(key)
        members = np.stack([3 * (volume.data > 50).astype(np.uint8)] * 3)
        members[1, :2] = members[2, :3] = 0
        return segmentation_of(volume, key, members)


# --- cine -------------------------------------------------------------------------------------------------------------


def test_a_cine_becomes_one_mask_on_its_own_grid_and_one_study(tmp_path: Path) -> None:
    image = cine(tmp_path / "cine.nii.gz")
    segmenter = Cavity()
    options = Options(write=("mask", "entropy", "members"), pages=False)
    result = segment_all(segmenter, find_cases(image), tmp_path / "out", options=options)
    assert segmenter.seen == [f"cine/frame{t:03d}" for t in (1, 2, 3, 4)]
    frame_files = [f"cine_frame{t:03d}_members.nii.gz" for t in (1, 2, 3, 4)]
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == sorted(["cine.nii.gz", "cine_entropy.nii.gz", "cine.json", *frame_files])

    source, mask = nib.load(image), nib.load(tmp_path / "out" / "cine.nii.gz")
    assert mask.shape == source.shape
    np.testing.assert_array_equal(mask.affine, source.affine)
    # two of three members leave out the first column: the majority of probabilities does, too
    expected = 3 * (source.get_fdata() > 50)
    expected[:2] = 0
    np.testing.assert_array_equal(mask.get_fdata(), expected)
    members = nib.load(tmp_path / "out" / "cine_frame002_members.nii.gz")
    assert members.shape == (8, 6, 4, 3)
    assert np.count_nonzero(members.get_fdata()[..., 0]) == 5 * 4

    (study,) = result["studies"]
    assert (study["ed_frame"], study["es_frame"]) == (2, 3)
    edv, esv = (study["function"]["measures"][name]["value"] for name in ("lv_edv", "lv_esv"))
    assert edv == pytest.approx((5 - 1) * 4 * VOXEL_ML, rel=1e-6)
    assert esv == pytest.approx((2 - 1) * 4 * VOXEL_ML, rel=1e-6)
    record = json.loads((tmp_path / "out" / "cine.json").read_text())
    assert list(record["frames"]) == ["1", "2", "3", "4"]
    assert record["study"]["quality"]["status"] == "review"  # it has no right ventricle


def test_named_frames_and_body_size_go_into_the_function(tmp_path: Path) -> None:
    image = cine(tmp_path / "cine.nii.gz")
    options = Options(pages=False, ed=1, es=4, height=180, weight=80)
    outcome = segment_cases(Cavity(), find_cases(image), tmp_path / "out", options=options)
    (result,) = outcome.results
    assert (result.ed, result.es) == (1, 4)
    assert result.function is not None
    assert result.function.body_surface == 2.0


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (Options(ed=5), "has 4 frames, so ED cannot be frame 5"),
        (Options(es=9), "has 4 frames, so ES cannot be frame 9"),
    ],
)
def test_frames_that_a_cine_does_not_have(tmp_path: Path, options: Options, complaint: str) -> None:
    segmenter = Cavity()
    outcome = segment_cases(segmenter, find_cases(cine(tmp_path / "c.nii.gz")), tmp_path / "out", options=options)
    assert complaint in outcome.failed["c"]
    assert segmenter.seen == []
    assert not (tmp_path / "out").exists()


def test_a_constant_frame_is_named(tmp_path: Path) -> None:
    data = np.random.default_rng(0).uniform(0, 1, (4, 4, 2, 3))
    data[..., 1] = 0
    outcome = segment_cases(Thresholder(), find_cases(write_image(tmp_path / "c.nii.gz", data)), tmp_path / "out")
    assert "is constant in frame 2" in outcome.failed["c"]
    assert not (tmp_path / "out").exists()


# --- options ----------------------------------------------------------------------------------------------------------


def test_the_largest_piece_of_each_label_stays_and_the_rest_is_counted() -> None:
    mask = np.zeros((6, 5, 2), np.uint8)
    mask[0:2, 0, 0] = 1
    mask[2, 1, 1] = 1  # touches at a corner: the same piece
    mask[5, 4, 0] = 1
    mask[4, 0, 0] = mask[4, 2, 0] = 3  # two equal pieces
    kept, removed = keep_largest(mask)
    assert removed == {1: 1, 3: 1}
    expected = mask.copy()
    expected[5, 4, 0] = expected[4, 2, 0] = 0
    np.testing.assert_array_equal(kept, expected)
    assert keep_largest(np.zeros((2, 2, 2), np.uint8))[1] == {}


def test_keeping_the_largest_piece_is_off_unless_asked_for(tmp_path: Path) -> None:
    data = np.zeros((8, 6, 4))
    data[1:3, 1:3, 1:3] = data[6, 5, 0] = 100
    data[0, 0, 0] = 1
    image = write_image(tmp_path / "a.nii.gz", data)
    for options, voxels, said in ((PLAIN, 5, None), (Options(pages=False, keep_largest=True), 4, {"3": 1})):
        segment_cases(Rows(), find_cases(image), tmp_path / "out", options=options)
        mask = read_labels(tmp_path / "out" / "a.nii.gz").data
        assert np.count_nonzero(mask) == voxels
        assert json.loads((tmp_path / "out" / "a.json").read_text()).get("removed_voxels") == said


class Rows(Thresholder):
    """One member, the first of :class:`Cavity`'s with its second slice left out."""

    def __call__(self, volume: Volume, key: str, progress: object = None) -> object:
        labels = 3 * (volume.data > 50).astype(np.uint8)
        labels[..., 2:] = 0
        return segmentation_of(volume, key, labels[None])


def test_staple_fuses_where_it_was_asked_for(tmp_path: Path) -> None:
    image = cine(tmp_path / "a.nii.gz", (5, 4))
    segment_cases(Cavity(), find_cases(image), tmp_path / "out", options=Options(pages=False, staple=True))
    segmenter = Cavity()
    expected = [staple(segmenter(frame, "k").members).mask for frame in frames(read_volume(image))]
    mask = read_labels(tmp_path / "out" / "a.nii.gz").data
    np.testing.assert_array_equal(mask, np.stack(expected, axis=-1))
    assert json.loads((tmp_path / "out" / "a.json").read_text())["frames"]["1"]["fusion"] == "staple"


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    for name in ("a", "b"):
        scan(tmp_path / "two" / f"{name}.nii.gz")
    write_phantom_dataset(tmp_path / "acdc", patients=[901], **SMALL)
    two, acdc = find_cases(tmp_path / "two"), find_cases(tmp_path / "acdc")
    for options, cases, complaint in [
        (Options(ed=1), acdc, "Info.cfg says which"),
        (Options(ed=2, es=2), two, "the same frame"),
        (Options(height=170), two[:1], "both height and weight"),
        (Options(height=170, weight=70), two, "cannot be those of 2 studies"),
    ]:
        with pytest.raises(InputError, match=complaint) as error:
            check_options(options, cases)
        assert error.value.remedy is not None
    check_options(Options(height=170, weight=70), acdc)
    outcome = segment_cases(Thresholder(), two, tmp_path / "out", options=Options(ed=1))
    assert "has no frames to name" in outcome.failed["a"]


def test_label_tables_hold_every_label_once() -> None:
    tables = label_tables()
    slicer = [line.split() for line in tables["labels.ctbl"].splitlines() if not line.startswith("#")]
    assert [(row[0], row[1]) for row in slicer] == [("0", "background"), ("1", "RV"), ("2", "Myo"), ("3", "LV")]
    assert slicer[3] == ["3", "LV", "255", "90", "79", "255"]
    snap = [line.split(maxsplit=7) for line in tables["labels.label"].splitlines() if not line.startswith("#")]
    assert [row[0] for row in snap] == ["0", "1", "2", "3"]
    assert snap[3] == ["3", "255", "90", "79", "1", "1", "1", '"LV"']


# --- studies and cohorts ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def acdc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("acdc")
    write_phantom_dataset(root, patients=[901, 902], **SMALL)
    return root


def test_a_patient_is_one_study_with_page_record_and_a_row_in_the_cohort(acdc: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = segment_all(Oracle(), find_cases(acdc), out)
    key = "patient901"
    record = json.loads((out / key / f"{key}.json").read_text())
    images = sorted((acdc / key).glob("*_frame??.nii.gz"))
    names = [path.name.removesuffix(".nii.gz") for path in images]
    assert len(names) == 2
    assert sorted(path.name for path in (out / key).iterdir()) == sorted(
        [f"{key}.json", f"{key}.html"]
        + [f"{n}{end}" for n in names for end in (".nii.gz", "_entropy.nii.gz", "_disagreement.nii.gz", ".json")]
    )
    assert sorted(record["inputs"]) == [path.name for path in images]
    # the function is that of the true masks, whose members the oracle makes
    with (out / "cohort.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["patient901", "patient902"]
    masks = [read_labels(out / key / f"{n}.nii.gz") for n in names]
    volumes = [frame_volumes(m.data, m.data[None], m.grid.voxel_volume) for m in masks]
    assert float(rows[key]["lv_ef_percent"]) == pytest.approx(
        cardiac_function(*volumes).measures["lv_ef"].value, abs=6e-4
    )
    page = (out / "cohort.html").read_text()
    assert f'href="{key}/{key}.html"' in page
    assert [study["key"] for study in result["studies"]] == ["patient901", "patient902"]


def test_a_study_with_a_bad_image_is_not_finished(acdc: Path, tmp_path: Path) -> None:
    shutil.copytree(acdc / "patient901", tmp_path / "in" / "patient901")
    first, second = sorted((tmp_path / "in" / "patient901").glob("*_frame??.nii.gz"))
    second.write_bytes(b"")
    outcome = segment_cases(Thresholder(), find_cases(tmp_path / "in"), tmp_path / "out", options=PLAIN)
    bad, good = (path.name.removesuffix(".nii.gz") for path in (second, first))
    assert list(outcome.failed) == [bad]
    assert outcome.results == []
    assert (tmp_path / "out" / "patient901" / f"{good}.json").is_file()
    assert not (tmp_path / "out" / "patient901" / "patient901.json").exists()


def example_result() -> StudyResult:
    rng = np.random.default_rng(0)
    volumes = {n: frame_volumes(rng.integers(0, 4, (3, 4)), rng.integers(0, 4, (5, 3, 4)), 7.3) for n in (1, 4)}
    function = cardiac_function(
        volumes[1], volumes[4], height=171, weight=66, widening={"lv_ef": 1.7}, margin={"rv_ef": 2}
    )
    quality = Quality((Finding("a", "b", review=False), Finding("c", "d")), {"ED": {1: 0.9, 3: 1.0}})
    return StudyResult("x/y", volumes, quality, 1, 4, function)


def test_a_record_gives_back_the_result_it_was_made_of() -> None:
    result = example_result()
    again = read_study_record(json.loads(json.dumps(study_record(result))))
    for frame, volumes in result.volumes.items():
        np.testing.assert_array_equal(again.volumes[frame].fused, volumes.fused)
        np.testing.assert_array_equal(again.volumes[frame].members, volumes.members)
    assert (again.key, again.quality, again.ed, again.es, again.function) == (
        "x/y",
        result.quality,
        1,
        4,
        result.function,
    )


# --- a second run -----------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def again(source: Path, out: Path, options: Options = PLAIN, **settings: object) -> list[str]:
    """Keys segmented by a run with ``--continue``."""
    segmenter = Thresholder(**settings)
    segment_all(segmenter, find_cases(source), out, options=options, resume=True)
    return segmenter.seen


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


def test_a_record_never_stands_beside_files_of_another_run(tmp_path: Path) -> None:
    image, out = scan(tmp_path / "a.nii.gz"), tmp_path / "out"
    segment_all(Thresholder(), find_cases(image), out, options=PLAIN)

    class Killed(Thresholder):
        def __call__(self, *_: object) -> object:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment_all(Killed(seed=1), find_cases(image), out, options=PLAIN)
    assert not (out / "a.json").exists()
    assert again(image, out) == ["a"]


def test_leftovers_of_a_killed_run_are_swept(tmp_path: Path) -> None:
    image, out = scan(tmp_path / "a.nii.gz"), tmp_path / "out"
    program = (
        "import os, sys; from cgdpm_med.volumes import atomic_write\n"
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
    with pytest.raises(InputError, match=r"b\.json: was made with other settings than a\.json"):
        collect_cohort(tmp_path / "out")
    for folder, complaint in (("absent", "no such folder"), ("in", "no finished study")):
        with pytest.raises(InputError, match=complaint):
            collect_cohort(tmp_path / folder)


# --- interrupted ------------------------------------------------------------------------------------------------------


class Slow(Thresholder):
    """Slow enough to be interrupted."""

    def __call__(self, volume: Volume, key: str, progress: object = None) -> object:
        time.sleep(0.02)
        return super().__call__(volume, key)


def start(log: Path, *arguments: str) -> int:
    """Run the command in a child, which shares this process's imports; returns its process id."""
    if child := os.fork():
        return child
    sys.stdout = sys.stderr = log.open("w", encoding="utf-8", buffering=1)
    sys.argv = ["cgdpm-med", "segment", *arguments, "--no-report", "--device", "cpu"]
    code = 99
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        os._exit(code)


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


def test_killed_at_any_moment_continue_gives_what_an_undisturbed_run_gives(tmp_path: Path) -> None:
    source, undisturbed = tmp_path / "in", tmp_path / "undisturbed"
    for n in range(4):
        scan(source / f"s{n:02d}.nii.gz", n)
    segment_all(Thresholder(), find_cases(source), undisturbed, options=PLAIN)
    halves = 0
    # every call that changes the folder is a moment to die before; a child per moment shares the imports
    for moment in np.random.default_rng(0).choice(60, 20, replace=False):
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
