"""What ``cgdpm-med super-resolve`` does by itself: which network for which input, notes, and the record it leaves."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from resolvers import noisy_resolver, small_bundle
from typer.testing import CliRunner, Result

from cgdpm_med.apps import load_resolver as choice
from cgdpm_med.apps.cli import app
from cgdpm_med.apps.super_resolve import find_images, super_resolve
from cgdpm_med.files import InputError
from cgdpm_med.images import write_picture
from cgdpm_med.models.description import CoarseSliceInput, PictureInput

SCANS = CoarseSliceInput(16, (0, 100), (2.0, 8.0))
FACES = PictureInput(16, shows="single faces that fill the picture")


def volume(path: Path, spacing: float = 3.0, lowest: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(0).integers(lowest, 900, (7, 8, 2)).astype(np.int16)
    data[0, 0, 0] = lowest
    nib.save(nib.Nifti1Image(data, np.diag([-spacing, -spacing, 9, 1])), path)
    return path


def picture(path: Path, height: int = 8, width: int = 8) -> Path:
    generator = torch.Generator().manual_seed(0)
    return write_picture(0.5 * torch.rand(3, height, width, generator=generator) - 0.25, path)


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["super-resolve", *map(str, words)])


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle for volumes with weights, in the place of the one that is shipped."""
    bundle = small_bundle(tmp_path / "shipped", SCANS)
    monkeypatch.setattr(choice, "VOLUME_BUNDLE", str(bundle))
    return bundle


# --- which network ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("shipped")
def test_a_volume_needs_no_option(tmp_path: Path) -> None:
    result = run(volume(tmp_path / "scan.nii.gz"), tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"scan.nii.gz", "scan.json", "scan.html"}
    assert nib.load(tmp_path / "out" / "scan.nii.gz").shape == (14, 16, 2)


@pytest.mark.usefixtures("shipped")
def test_in_a_mixed_folder_volumes_are_done_and_pictures_named(tmp_path: Path) -> None:
    volume(tmp_path / "in" / "scan.nii")
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "b.png")
    result = run(tmp_path / "in", tmp_path / "out", "--json")
    assert result.exit_code == 1
    printed = json.loads(result.stdout)
    assert [Path(case["input"]).name for case in printed["cases"]] == ["scan.nii"]
    assert set(printed["failed"]) == {"a", "b"}
    assert all("--bundle" in error for error in printed["failed"].values())


@pytest.mark.parametrize("there", [[], ["face_sr_16_128"]])
def test_pictures_alone_ask_for_a_bundle_that_is_shipped(
    there: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "picture_bundles_with_weights", lambda: there)
    result = run(picture(tmp_path / "a.png"), tmp_path / "out")
    assert isinstance(result.exception, InputError)
    assert result.exception.remedy is not None
    assert all(word in result.exception.remedy for word in (there or ["--weights"]) + ["--bundle"])
    assert not (tmp_path / "out").exists()


def test_bundles_with_weights_are_those_that_hold_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, weights, what in (("a", True, "resolver: 1"), ("b", False, "resolver: 1"), ("c", True, "segmenter: 1")):
        (tmp_path / name / "configs").mkdir(parents=True)
        (tmp_path / name / "configs" / "inference.yaml").write_text(what)
        (tmp_path / name / "models").mkdir()
        if weights:
            (tmp_path / name / "models" / "model.pt").touch()
    monkeypatch.setattr(choice, "list_bundles", lambda: ["a", "b", "c"])
    monkeypatch.setattr(choice, "bundle_path", lambda name: tmp_path / name)
    assert choice.picture_bundles_with_weights() == ["a"]


def test_a_bundle_without_weights_says_what_to_do(tmp_path: Path) -> None:
    result = run(picture(tmp_path / "a.png"), tmp_path / "out", "--bundle", "face_sr_64_512")
    assert isinstance(result.exception, InputError)
    assert "face_sr_64_512" in str(result.exception)
    assert "--weights" in str(result.exception)


@pytest.mark.usefixtures("shipped")
def test_a_bundle_that_is_chosen_takes_everything(tmp_path: Path) -> None:
    faces = small_bundle(tmp_path / "faces", FACES)
    volume(tmp_path / "in" / "scan.nii")
    picture(tmp_path / "in" / "a.png")
    result = run(tmp_path / "in", tmp_path / "out", "--bundle", faces)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "a.png").exists()
    assert json.loads((tmp_path / "out" / "scan.json").read_text())["notes"]


@pytest.mark.usefixtures("shipped")
def test_weights_of_ones_own_replace_those_of_the_bundle_for_volumes(tmp_path: Path) -> None:
    own = small_bundle(tmp_path / "own", SCANS, factor=4) / "models" / "model.pt"
    result = run(volume(tmp_path / "scan.nii"), tmp_path / "out", "--weights", own)
    assert result.exit_code == 0, result.output
    assert nib.load(tmp_path / "out" / "scan.nii.gz").shape == (28, 32, 2)
    result = run(picture(tmp_path / "a.png"), tmp_path / "out", "--weights", own)
    assert "--bundle" in str(result.exception)


def test_a_bundle_may_have_weights_for_several_factors(shipped: Path, tmp_path: Path) -> None:
    four_times(shipped, tmp_path)
    scan = volume(tmp_path / "scan.nii")
    for options, shape in (((), (14, 16, 2)), (("--factor", 2), (14, 16, 2)), (("--factor", 4), (28, 32, 2))):
        out = tmp_path / f"out{len(options)}{shape[0]}"
        assert run(scan, out, *options).exit_code == 0
        assert nib.load(out / "scan.nii.gz").shape == shape


def test_factors_that_a_bundle_has_not_are_refused(shipped: Path, tmp_path: Path) -> None:
    scan = volume(tmp_path / "scan.nii")
    assert "refines 2 times, not 4" in str(run(scan, tmp_path / "out", "--factor", 4).exception)  # it has one
    own = four_times(shipped, tmp_path)
    error = str(run(scan, tmp_path / "out", "--factor", 3).exception)
    assert "has weights for the factors 2 and 4, not 3. Give --factor 2 or 4" in error
    error = str(run(scan, tmp_path / "out", "--factor", 2, "--weights", own).exception)
    assert "refines 4 times, not 2" in error
    assert not (tmp_path / "out").exists()


def four_times(bundle: Path, folder: Path) -> Path:
    """Give a bundle that refines two times weights for four; where they are."""
    own = small_bundle(folder / "four", SCANS, factor=4) / "models" / "model.pt"
    config = bundle / "configs" / "inference.yaml"
    text = config.read_text()
    several = "'model.pt' if @factor == 2 else 'model_' + str(@factor) + 'x.pt'"
    weights = f"factor: 2\nweights: \"$@bundle_root + '/models/' + ({several})\"\n"
    config.write_text(re.sub("^weights:.*\n", weights, text, flags=re.MULTILINE))
    return own.rename(bundle / "models" / "model_4x.pt")


@pytest.mark.usefixtures("shipped")
def test_several_samples_in_one_step_are_remarked_upon(tmp_path: Path) -> None:
    scan = volume(tmp_path / "scan.nii")
    assert "one step" in run(scan, tmp_path / "1", "--members", 2, "--steps", 1).stderr
    assert "one step" in run(scan, tmp_path / "1", "--members", 2).stderr  # the bundle's default
    assert "note" not in run(scan, tmp_path / "2", "--members", 2, "--steps", 2).stderr


@pytest.mark.usefixtures("shipped")
def test_samples_from_less_noise_are_remarked_upon_where_they_tell_of_doubt(tmp_path: Path) -> None:
    scan, less = volume(tmp_path / "scan.nii"), ("--steps", 2, "--noise-scale", 0.5)
    assert "their spread is too small" in run(scan, tmp_path / "1", "--members", 2, *less).stderr
    assert "note" not in run(scan, tmp_path / "2", *less).stderr


# --- which files ------------------------------------------------------------------------------------------------------


def test_masks_and_earlier_results_of_a_folder_are_left_out(tmp_path: Path) -> None:
    volume(tmp_path / "in" / "scan.nii.gz")
    volume(tmp_path / "in" / "scan_gt.nii.gz")
    with pytest.warns(UserWarning, match=r"left out 1 label maps: scan_gt"):
        super_resolve(noisy_resolver(members=2), tmp_path / "in", tmp_path / "in" / "out")
    # given as input, the refined image is one, and what lies beside it is not
    assert [case.key for case in find_images(tmp_path / "in")] == ["out/scan", "scan"]


def test_a_file_beside_the_input_is_not_taken_for_an_earlier_result(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.json").write_text('{"Modality": "MR"}')
    result = super_resolve(noisy_resolver(), path, tmp_path / "out")
    assert "would be overwritten" in result["failed"]["a"]
    assert (tmp_path / "out" / "a.json").read_text() == '{"Modality": "MR"}'


# --- what is said -----------------------------------------------------------------------------------------------------


def notes(path: Path, known: PictureInput | CoarseSliceInput, out: Path) -> list[str]:
    (case,) = super_resolve(noisy_resolver(input=known), path, out)["cases"]
    found: list[str] = case["notes"]
    return found


@pytest.mark.parametrize(
    ("spacing", "lowest", "words"),
    [(3.0, 0, []), (1.3, 0, ["1.3"]), (9.0, 0, ["9"]), (3.0, -1000, ["CT"]), (1.3, -1024, ["1.3", "CT"])],
)
def test_notes_on_volumes(spacing: float, lowest: int, words: list[str], tmp_path: Path) -> None:
    found = notes(volume(tmp_path / "a.nii", spacing, lowest), SCANS, tmp_path / "out")
    assert len(found) == len(words)
    assert all(word in note for word, note in zip(words, found, strict=True))


@pytest.mark.parametrize("where", ["descrip", "beside", "text"])
def test_ct_is_also_known_by_what_files_say(where: str, tmp_path: Path) -> None:
    path = volume(tmp_path / "a.nii")
    if where == "beside":
        (tmp_path / "a.json").write_text('{"Modality": "CT"}')
    elif where == "descrip":
        image = nib.load(path)
        image.header["descrip"] = b"thorax CT"
        nib.save(image, tmp_path / "b.nii")
        path = tmp_path / "b.nii"
    else:
        path = tmp_path / "a.mha"
        header = "ObjectType = Image\nNDims = 3\nModality = MET_MOD_CT\nDimSize = 7 8 2\nElementSpacing = 3 3 9\n"
        header += "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
        path.write_bytes(header.encode() + np.arange(112, dtype="<i2").tobytes())
    assert ["CT" in note for note in notes(path, SCANS, tmp_path / "out")] == [True]


@pytest.mark.parametrize(
    ("size", "known", "count"),
    [((8, 8), FACES, 0), ((7, 9), FACES, 0), ((40, 60), FACES, 1), ((4, 4), FACES, 1), ((40, 60), PictureInput(16), 0)],
)
def test_notes_on_pictures(size: tuple[int, int], known: PictureInput, count: int, tmp_path: Path) -> None:
    assert len(notes(picture(tmp_path / "a.png", *size), known, tmp_path / "out")) == count


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("kind", ["picture", "volume"])
def test_the_record_and_the_page(kind: str, members: int, tmp_path: Path) -> None:
    place = tmp_path / "Doe^John" / "in"
    path = volume(place / "a.nii") if kind == "volume" else picture(place / "a.png")
    (case,) = super_resolve(noisy_resolver(members=members), path, tmp_path / "out")["cases"]
    assert [Path(file).name for file in case["record"]] == ["a.html", "a.json"]
    record, page = (Path(file).read_text() for file in case["record"][::-1])
    content = json.loads(record)
    assert "synthetic_detail" in content
    assert content["disagreement_with_input"]["largest"] < 1e-3
    assert (content["mean_std"] is None) == (members == 1)
    assert content["made_with"]["settings"]["members"] == members
    assert all((tmp_path / "out" / name).is_file() for name in (content["image"], *content["files"]))
    if kind == "volume":
        assert content["shape"] == [14, 16, 2]
        offset, scale = content["intensity"]["offset"], content["intensity"]["scale"]
        data = nib.load(path).get_fdata()  # type: ignore[attr-defined]
        assert (offset - scale, offset + scale) == pytest.approx((data.min(), data.max()))
    assert "Synthetic detail" in page
    views = {"picture": 1, "volume": 2}[kind]
    assert page.count('src="data:image/png;base64,') == views * (2 if members == 1 else 3)
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert "Doe" not in page + record


def test_the_record_names_the_weights(shipped: Path, tmp_path: Path) -> None:
    run(volume(tmp_path / "scan.nii"), tmp_path / "out")
    weights = json.loads((tmp_path / "out" / "scan.json").read_text())["made_with"]["weights"]
    assert [len(digest) for digest in weights.values()] == [64]
