"""Hostile input through the command: one clear error or a right result; no traceback, no half-written file."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import nibabel as nib
import numpy as np
import pytest
import torch
from bad_files import BAD_FILES
from command import run
from nifti_files import ACDC_SFORM, OBLIQUE, RAMP, nifti, save
from stubs import Thresholder

from cgdpm_med import DiffusionPredictor, Sampling, find_cases, segment_all
from cgdpm_med.inference.segmenter import Segmentation, Segmenter
from cgdpm_med.volumes import HeaderWarning, Volume, grid


@pytest.fixture(autouse=True)
def _stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A threshold stands in for the network; every test is the first to meet a header conflict."""
    monkeypatch.setattr(Segmenter, "from_bundle", lambda *_, **__: Thresholder())
    monkeypatch.setattr(grid, "_WARNED", set())
    for name in ("RANK", "WORLD_SIZE", "CGDPM_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HeaderWarning)
        yield


class Command:
    """``cgdpm-med segment`` in a process of its own making: exit code, errors and what it wrote."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, source: Path, out: Path, *options: str) -> tuple[int, list[str]]:
        code = run(self.monkeypatch, "segment", str(source), str(out), "--no-report", "--device", "cpu", *options)
        text = self.capsys.readouterr().err
        assert "Traceback" not in text
        assert not [path for path in out.rglob(".*") if out.is_dir()]
        return code, [line for line in text.splitlines() if line.startswith("error: ")]

    def fails(self, complaint: str, source: Path, out: Path, *options: str) -> None:
        """Exit code 1 and one line with the complaint; nothing is written."""
        before = {path for path in out.rglob("*") if path.is_file()} if out.is_dir() else set()
        code, errors = self(source, out, *options)
        assert code == 1
        (error,) = errors
        assert complaint in error
        after = {path for path in out.rglob("*") if path.is_file()} if out.is_dir() else set()
        assert after == before

    def succeeds(self, source: Path, out: Path, *options: str, name: str = "v") -> None:
        """Exit code 0, and a mask on the very grid of the input, brighter half 3."""
        code, errors = self(source, out, *options)
        assert (code, errors) == (0, [])
        before, after = nib.load(source), nib.load(out / f"{name}.nii.gz")
        assert after.shape == before.shape
        np.testing.assert_array_equal(after.affine, before.affine)
        for field in ("pixdim", "qform_code", "sform_code", "srow_x", "quatern_b", "xyzt_units"):
            np.testing.assert_array_equal(after.header[field], before.header[field])
        voxels = before.get_fdata()
        np.testing.assert_array_equal(after.get_fdata(), 3 * (voxels > np.median(voxels)))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_one_error(case: str, tmp_path: Path, command: Command) -> None:
    name, content, complaint = BAD_FILES[case]
    (tmp_path / name).write_bytes(content)
    command.fails(complaint, tmp_path / name, tmp_path / "out")


@pytest.mark.parametrize("case", ["truncated gzip", "NaN", "2D", "constant", "huge"])
def test_among_good_files_it_is_still_one_error(case: str, tmp_path: Path, command: Command) -> None:
    name, content, complaint = BAD_FILES[case]
    (tmp_path / "in" / "bad").mkdir(parents=True)
    (tmp_path / "in" / "bad" / name).write_bytes(content)
    for good in ("a.nii.gz", "z.nii"):
        save(tmp_path / "in" / good, nifti())
    code, errors = command(tmp_path / "in", tmp_path / "out")
    assert code == 1
    (error,) = errors
    assert complaint in error
    assert sorted(path.name for path in (tmp_path / "out").glob("*.json")) == ["a.json", "z.json"]
    assert not (tmp_path / "out" / "bad").exists()


GOOD_FILES: dict[str, tuple[str, bytes]] = {
    "unit sform": ("v.nii.gz", nifti(sform=ACDC_SFORM, sform_code=2)),
    "pixdim never filled in": ("v.nii.gz", nifti(sform=OBLIQUE, pixdim=(1.0, 1.0, 1.0))),
    "negative pixdim": ("v.nii", nifti(sform=OBLIQUE, pixdim=(-1.25, 1.4, -8.0))),
    "qform against sform": ("v.nii", nifti(sform=OBLIQUE, qform_code=1, qoffset_x=500)),
    "sheared": ("v.nii", nifti(sform=OBLIQUE + np.eye(4, k=2) * 2, pixdim=(1.25, 1.4, 8.0))),
    "left-handed": ("v.nii.gz", nifti(sform=np.diag([1.25, 1.4, -8.0, 1.0]))),
    "permuted": ("v.nii.gz", nifti(sform=OBLIQUE[:, [2, 0, 1, 3]], pixdim=(8.0, 1.25, 1.4))),
    "big-endian": ("v.nii.gz", nifti(sform=OBLIQUE, endian=">")),
    "float64": ("v.nii", nifti(RAMP * 1e-3, sform=OBLIQUE)),
    "scaled": ("v.nii", nifti(scl_slope=0.5, scl_inter=-3)),
    "scl_slope 0": ("v.nii", nifti(scl_slope=0, scl_inter=7)),
    "NIfTI-2": ("v.nii.gz", nifti(sform=OBLIQUE, kind=nib.Nifti2Header)),
    "one frame": ("v.nii.gz", nifti(RAMP[..., None])),
    "one slice": ("v.nii.gz", nifti(RAMP[..., :1])),
    "capitals": ("v.NII.GZ", nifti()),
}


@pytest.mark.parametrize("case", GOOD_FILES)
def test_an_odd_file_gives_a_mask_on_its_grid(case: str, tmp_path: Path, command: Command) -> None:
    name, content = GOOD_FILES[case]
    path = tmp_path / name
    path.write_bytes(gzip.compress(content, 1) if name.lower().endswith("gz") else content)
    command.succeeds(path, tmp_path / "out")


@pytest.mark.parametrize("name", ["two words", "Jürgen 心脏 (1)", "a.b.c", " leading", "-dash", "quote'\"", "n" * 200])
def test_awkward_names(name: str, tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "in put"
    folder.mkdir()
    command.succeeds(save(folder / f"{name}.nii.gz", nifti()), tmp_path / "out put", name=name)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("n" * 240, ()),
        ("心" * 80, ()),
        ("n" * 230, ("--write", "mask,probabilities")),
    ],
    ids=["letters", "letters of three bytes", "a long output"],
)
def test_a_name_too_long_for_its_results_is_refused_before_any_work(
    name: str, options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    stub = Thresholder()
    monkeypatch.setattr(Segmenter, "from_bundle", lambda *_, **__: stub)
    source = save(tmp_path / f"{name}.nii.gz", nifti())
    command.fails("has a name so long", source, tmp_path / "out", *options)
    assert stub.seen == []


def test_the_longest_name_that_leaves_room(tmp_path: Path, command: Command) -> None:
    name = "n" * (255 - len("_disagreement.nii.gz"))
    command.succeeds(save(tmp_path / f"{name}.nii.gz", nifti()), tmp_path / "out", name=name)


# --- folders ----------------------------------------------------------------------------------------------------------


def _loop(folder: Path) -> None:
    (folder / "v.nii.gz").symlink_to(folder / "v.nii.gz")
    (folder / "circle").symlink_to(folder, target_is_directory=True)


def _twins(folder: Path) -> None:
    save(folder / "v.nii.gz", nifti())
    save(folder / "v.nii", nifti())


def _channels(folder: Path) -> None:
    save(folder / "v.nii.gz", nifti())
    save(folder / "v_0000.nii.gz", nifti())


def _like_a_map(folder: Path) -> None:
    save(folder / "v.nii.gz", nifti())
    save(folder / "v_entropy.nii.gz", nifti())


def _cohort(folder: Path) -> None:
    save(folder / "cohort.nii.gz", nifti())


def _folder_called_like_a_file(folder: Path) -> None:
    (folder / "v.nii.gz").mkdir()


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "v.nii.gz")


FOLDERS: dict[str, tuple[Callable[[Path], None], str, int]] = {
    "empty": (lambda folder: None, "holds no .nii or .nii.gz file", 0),
    "no image": (lambda folder: (folder / "a.txt").touch(), "holds no .nii or .nii.gz file", 0),
    "symbolic loop": (_loop, "too many levels of symbolic links. Remove the loop", 0),
    "link to nowhere": (lambda folder: (folder / "v.nii.gz").symlink_to(folder / "x"), "no such file", 0),
    "one name twice": (_twins, "v.nii.gz: has the name of v.nii", 1),
    "channel ending": (_channels, "v_0000.nii.gz: has the name of v.nii.gz", 1),
    "called like a map": (_like_a_map, "v_entropy.nii.gz: has the name of a map of v.nii.gz", 1),
    "called cohort": (_cohort, "has the name of a file that cgdpm-med cohort writes there", 0),
    "folder as a file": (_folder_called_like_a_file, "holds no .nii or .nii.gz file", 0),
    "pipe": (_pipe, "is not a regular file", 0),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_bad_folder_is_one_error(case: str, tmp_path: Path, command: Command) -> None:
    make, complaint, good = FOLDERS[case]
    (tmp_path / "in").mkdir()
    make(tmp_path / "in")
    code, errors = command(tmp_path / "in", tmp_path / "out")
    assert code == 1
    (error,) = errors
    assert complaint in error
    assert len(list((tmp_path / "out").glob("*.json"))) == good


def test_the_output_folder_around_the_inputs(tmp_path: Path, command: Command) -> None:
    save(tmp_path / "v.nii.gz", nifti())
    command.fails("lies inside the output folder", tmp_path, tmp_path)
    command.fails("would be overwritten by its mask", tmp_path / "v.nii.gz", tmp_path)


# --- outputs ----------------------------------------------------------------------------------------------------------


def test_places_that_cannot_be_written(tmp_path: Path, command: Command) -> None:
    image = save(tmp_path / "v.nii.gz", nifti())
    (tmp_path / "file").write_text("taken")
    command.fails("file: is a file", image, tmp_path / "file")
    command.fails("file: is a file", image, tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "taken"
    if Path("/proc/self").is_dir():  # a file system on which not even root may create a folder
        command.fails("cannot be written", image, Path("/proc/cgdpm_med_output"))


def test_a_folder_where_a_mask_should_be(tmp_path: Path, command: Command) -> None:
    image = save(tmp_path / "v.nii.gz", nifti())
    (tmp_path / "out" / "v.nii.gz").mkdir(parents=True)
    command.fails("v.nii.gz: cannot be written: is a directory", image, tmp_path / "out")


def test_a_folder_where_the_json_should_be(tmp_path: Path, command: Command) -> None:
    image = save(tmp_path / "v.nii.gz", nifti())
    (tmp_path / "out" / "v.json").mkdir(parents=True)
    code, errors = command(image, tmp_path / "out")
    assert code == 1
    (error,) = errors
    assert "v.json: cannot be written: is a directory" in error


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--shard", "3/2"), "'3/2' is no part of a whole"),
        (("--shard", "x"), "'x' is no part of a whole"),
        (("--write", "mask,,"), "there is no output ''"),
        (("--ed", "2"), "has no frames to name"),
        (("--ed", "2", "--es", "2"), "the same frame"),
        (("--height", "170", "--weight", "70"), "has no function to index"),
        (("--height", "170"), "needs both height and weight"),
        (("--device", "cuda:99"), "device 'cuda:99' was asked for"),
        (("--device", "gpu"), "there is no device called 'gpu'"),
    ],
)
def test_bad_options(options: tuple[str, ...], complaint: str, tmp_path: Path, command: Command) -> None:
    command.fails(complaint, save(tmp_path / "v.nii.gz", nifti()), tmp_path / "out", *options)


@pytest.mark.parametrize(
    "options",
    [
        ("--members", "0"),
        ("--steps", "0"),
        ("--ed", "0"),
        ("--combine", "median"),
        ("--weight", "0"),
        ("--guidence", "1"),
    ],
)
def test_options_out_of_range_are_refused_by_the_command_line(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = save(tmp_path / "v.nii.gz", nifti())
    assert run(monkeypatch, "segment", str(image), str(tmp_path / "out"), *options) == 2
    assert not (tmp_path / "out").exists()


# --- bundles and weights, with the real builder -----------------------------------------------------------------------

SMALL = """
imports: [$import cgdpm_med]
bundle_root: .
weights: model.pt
steps: 3
members: 2
combine: mean
interval: [0, 1000]
unet: {_target_: cgdpm_med.ConditionalUNet, spatial_dims: 2, in_channels: 4, cond_channels: 1, out_channels: 4,
  channels: [4, 4], num_res_blocks: 1, attention_levels: [false, false]}
network: {_target_: cgdpm_med.DiffusionPredictor, denoiser: '$cgdpm_med.load_weights(@unet, @weights)',
  steps: '@steps', members: '@members', guidance_interval: '@interval'}
combined: {_target_: cgdpm_med.CombineMembersd, combine: '@combine'}
segmenter: {_target_: cgdpm_med.Segmenter, preprocessing: '$lambda x: x', inferer: '$lambda x: x',
  predictor: '@network', postprocessing: '@combined', device: '@device'}
device: cpu
"""


class Malicious:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("ran",)


def _torch_bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


WEIGHTS: dict[str, tuple[bytes | None, str]] = {
    "absent": (None, "model.pt: there are no weights here"),
    "empty": (b"", "is an empty file"),
    "text": (b"weights", "is not a file of plain weights"),
    "malicious pickle": (pickle.dumps(Malicious()), "is not a file of plain weights"),
    "malicious checkpoint": (_torch_bytes({"a": Malicious()}), "files that would run code are refused"),
    "truncated": (_torch_bytes({"a": torch.zeros(1000)})[:900], "is truncated"),
    "another network": (_torch_bytes({"a": torch.zeros(3)}), "belongs to another network"),
    "a list": (_torch_bytes([torch.zeros(3)]), "holds something else than a state_dict"),
}

CONFIGS: dict[str, tuple[Callable[[str], str], str]] = {
    "misspelt argument": (lambda text: text.replace("num_res_blocks", "num_res_block"), "num_res_block"),
    "misspelt class": (lambda text: text.replace("ConditionalUNet", "ConditionalUnet"), "ConditionalUnet"),
    "misspelt reference": (lambda text: text.replace("'@members'", "'@member'"), "member"),
    "no segmenter": (lambda text: text.replace("segmenter:", "segmentor:"), "segmenter"),
    "no YAML": (lambda text: "a: [1, 2", "inference.yaml: cannot be used"),
    "steps beyond T": (lambda text: text.replace("steps: 3", "steps: 1001"), "steps must be between 1 and 1000"),
    "no steps": (lambda text: text.replace("steps: 3", "steps: 0"), "steps must be between 1 and 1000"),
    "start beyond T": (
        lambda text: text.replace("members: '@members'", "members: '@members', start: 1000"),
        "must start at a timestep 0 … 999",
    ),
    "no members": (lambda text: text.replace("members: 2", "members: 0"), "at least one member"),
    "unknown combination": (lambda text: text.replace("combine: mean", "combine: median"), "combine must be one of"),
    "interval": (lambda text: text.replace("[0, 1000]", "[0, 2000]"), "the guidance interval must be"),
}


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of a tiny network, and the builder that the other tests replace."""
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    (tmp_path / "bundle" / "configs" / "inference.yaml").write_text(SMALL)
    return tmp_path / "bundle"


def refused(bundle: Path, complaint: str, command: Command, *options: str) -> None:
    image = save(bundle.parent / "v.nii.gz", nifti())
    command.fails(complaint, image, bundle.parent / "out", "--bundle", str(bundle), *options)
    assert sorted(path.name for path in bundle.parent.iterdir() if path.name != "w.pt") == ["bundle", "v.nii.gz"]


@pytest.mark.parametrize("case", WEIGHTS)
def test_bad_weights(case: str, bundle: Path, command: Command) -> None:
    content, complaint = WEIGHTS[case]
    if content is None:
        refused(bundle, complaint, command)
        return
    (bundle.parent / "w.pt").write_bytes(content)
    refused(bundle, complaint, command, "--weights", "w.pt")


@pytest.mark.parametrize("case", CONFIGS)
def test_bad_configurations(case: str, bundle: Path, command: Command) -> None:
    change, complaint = CONFIGS[case]
    config = bundle / "configs" / "inference.yaml"
    changed = change(SMALL).replace("'$cgdpm_med.load_weights(@unet, @weights)'", "'@unet'")
    config.write_text(changed)
    refused(bundle, complaint, command)


def test_options_the_bundle_cannot_follow(bundle: Path, command: Command) -> None:
    refused(bundle, "the configuration has no key 'guidance_scale'", command, "--guidance-scale", "1")
    image = save(bundle.parent / "v.nii.gz", nifti())
    command.fails("there is no bundle named 'absent'", image, bundle.parent / "out", "--bundle", "absent")
    (bundle / "configs" / "inference.yaml").unlink()
    refused(bundle, "cannot be used", command)


def test_an_answer_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    def post(data: dict[str, object]) -> dict[str, object]:
        nan = torch.full((4, *RAMP.shape), float("nan"))
        return {"mask": nan[:1], "probabilities": nan, "entropy": nan[:1], "disagreement": nan[:1], "members": nan}

    class Net(DiffusionPredictor):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.sampling = Sampling(members=1)

    image = save(tmp_path / "v.nii.gz", nifti())
    stub, network = Thresholder(), Net()
    segmenter = Segmenter(
        lambda data: {"image": torch.zeros(1, *RAMP.shape)}, lambda image, *_, **__: image, network, post, "cpu"
    )
    monkeypatch.setattr(stub, "__class__", type("Bad", (Thresholder,), {"__call__": lambda _, *a: segmenter(*a)}))
    monkeypatch.setattr(Segmenter, "from_bundle", lambda *_, **__: stub)
    command.fails("the network's answer is not finite", image, tmp_path / "out")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["gpu", "cpu", "numpy"],
)
def test_a_device_that_is_full(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    class Full(Thresholder):
        def __call__(self, volume: Volume, key: str, progress: object = None) -> Segmentation:
            if key == "large":
                raise error
            return super().__call__(volume, key)

    monkeypatch.setattr(Segmenter, "from_bundle", lambda *_, **__: Full())
    (tmp_path / "in").mkdir()
    for name in ("large", "small"):
        save(tmp_path / "in" / f"{name}.nii.gz", nifti())
    code, errors = command(tmp_path / "in", tmp_path / "out")
    assert code == 1
    assert ["large.nii.gz: does not fit into the device's memory" in line for line in errors] == [True]
    assert "--members" in errors[0]
    assert (tmp_path / "out" / "small.json").is_file()
    assert not (tmp_path / "out" / "large.json").exists()


def test_other_faults_of_a_network_are_not_called_a_full_memory(tmp_path: Path) -> None:
    class Faulty(Thresholder):
        def __call__(self, *_: object, **__: object) -> NoReturn:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    cases = find_cases(save(tmp_path / "v.nii.gz", nifti()))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        segment_all(Faulty(), cases, tmp_path / "out")


def test_a_json_document_is_all_that_machines_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "in.nii.gz", nifti())
    arguments = (
        "segment",
        str(tmp_path / "in.nii.gz"),
        str(tmp_path / "out"),
        "--no-report",
        "--label-table",
        "--json",
    )
    assert run(monkeypatch, *arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert [Path(path).name for path in result["label_tables"]] == ["labels.ctbl", "labels.label"]
    assert all(Path(path).is_file() for case in result["cases"] for path in case["files"])
