"""Remedies, followed to the letter, lead to the goal: each case fails, does what its error says, and works.

A case is a generator. What it yields first is a command line that must fail with the words the case is marked with;
then it does what the remedy says, and yields the command line that must succeed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import nibabel as nib
import numpy as np
import pytest
import torch
from calibrations import MADE, example
from dicom_scans import Scan
from dicom_scans import save as save_dicom
from label_files import heart, renamed, write_labels
from nifti_files import ACDC_SFORM, LABELS, OBLIQUE, RAMP, at, nifti, raw_header, save
from scans import PLAIN
from stubs import Thresholder
from test_cli import run
from test_engines import toy_run
from test_super_resolve import BUNDLE, small_unet
from test_training_patients import write_cohort

from cgdpm_med import (
    InputError,
    bundle_path,
    find_cases,
    read_dicom,
    read_labels,
    read_volume,
    segment_all,
    write_on_grid,
)
from cgdpm_med.apps import cli
from cgdpm_med.apps.calibrate import calibration_items
from cgdpm_med.apps.calibration_file import CALIBRATION, find_calibration, write_calibration
from cgdpm_med.apps.segment import Segmenter
from cgdpm_med.images import write_picture

pytestmark = [
    pytest.mark.usefixtures("quiet_headers", "threshold"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

Words: TypeAlias = list[Any]
Attempts: TypeAlias = Iterator[Words]
CASES: dict[str, tuple[str, Callable[[Path], Attempts]]] = {}
QUIET = ["--no-report", "--device", "cpu"]


def says(words: str) -> Callable[[Callable[[Path], Attempts]], Callable[[Path], Attempts]]:
    """Registers a case, whose first error must contain these words."""

    def register(case: Callable[[Path], Attempts]) -> Callable[[Path], Attempts]:
        CASES[case.__name__] = words, case
        return case

    return register


@pytest.fixture
def threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Segmenter, "from_bundle", lambda *_, **__: Thresholder())


@pytest.mark.parametrize("name", CASES)
def test_a_remedy_followed_leads_to_the_goal(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TERM", "dumb")
    words, case = CASES[name]
    attempts = case(tmp_path)
    assert run(monkeypatch, *map(str, next(attempts))) in (1, 2)
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(set(errors))
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list((tmp_path / "out").glob("v.*"))  # of the input that failed
    assert run(monkeypatch, *map(str, next(attempts))) == 0, capsys.readouterr().err


def segment(source: Path, *options: Any, out: str = "out") -> Words:
    return ["segment", source, source.parent / out, *QUIET, *options]


def folder(tmp: Path, **files: bytes) -> Path:
    """A folder of a good image and these; ``__`` in a name stands for a dot."""
    (tmp / "in").mkdir()
    save(tmp / "in" / "good.nii", nifti(sform=OBLIQUE))
    for name, content in files.items():
        save(tmp / "in" / name.replace("__", "."), content)
    return tmp / "in"


def elsewhere(path: Path, tmp: Path) -> None:
    (tmp / "elsewhere").mkdir(exist_ok=True)
    path.rename(tmp / "elsewhere" / path.name)


# --- files ------------------------------------------------------------------------------------------------------------


@says("--spacing 1.5,1.5,8")
def no_voxel_size(tmp: Path) -> Attempts:
    source = save(tmp / "v.nii", nifti(sform=ACDC_SFORM, pixdim=(1.5, 1.5, 0)))
    yield segment(source)
    yield segment(source, "--spacing", "1.5,1.5,8")


@says("--spacing pixdim")
def no_affine_of_use(tmp: Path) -> Attempts:
    source = save(tmp / "v.nii", nifti(sform=np.diag([1.5, 0, 8, 1])))
    yield segment(source)
    yield segment(source, "--spacing", "pixdim")


@says("Set the wrong sform_code or qform_code to 0")
def an_sform_that_is_wrong(tmp: Path) -> Attempts:
    source = save(tmp / "v.nii", nifti(sform=np.diag([1.5, 0, 8, 1])))
    yield segment(source)
    header = raw_header(source)
    header["sform_code"] = 0
    source.write_bytes(header.binaryblock + source.read_bytes()[348:])
    yield segment(source)


@says("Rename it to .nii if")
def named_gz_without_being(tmp: Path) -> Attempts:
    (tmp / "v.nii.gz").write_bytes(nifti(sform=OBLIQUE))
    yield segment(tmp / "v.nii.gz")
    yield segment((tmp / "v.nii.gz").rename(tmp / "v.nii"))


@says("Rename it to .nii.gz")
def gz_without_the_name(tmp: Path) -> Attempts:
    save(tmp / "v.nii.gz", nifti(sform=OBLIQUE)).rename(tmp / "v.nii")
    yield segment(tmp / "v.nii")
    yield segment((tmp / "v.nii").rename(tmp / "v.nii.gz"))


@says("Rename it to .hdr, and put the .img")
def the_header_of_a_pair_named_nii(tmp: Path) -> Attempts:
    image = nib.Nifti1Pair(RAMP, OBLIQUE)
    nib.save(image, tmp / "v.hdr")
    (tmp / "v.hdr").rename(tmp / "v.nii")
    yield segment(tmp / "v.nii")
    yield segment((tmp / "v.nii").rename(tmp / "v.hdr"))


@says("Put that file beside it, under this name")
def a_header_without_its_voxels(tmp: Path) -> Attempts:
    nib.save(nib.Nifti1Pair(RAMP, OBLIQUE), tmp / "v.hdr")
    (tmp / "v.img").rename(tmp / "other.img")
    yield segment(tmp / "v.hdr")
    (tmp / "other.img").rename(tmp / "v.img")
    yield segment(tmp / "v.hdr")


@says("Give a volume (x, y, z)")
def five_dimensions(tmp: Path) -> Attempts:
    yield segment(save(tmp / "v.nii", nifti(np.stack([[RAMP, RAMP + 1]] * 2).transpose(2, 3, 4, 0, 1))))
    yield segment(save(tmp / "v.nii", nifti(RAMP)))


@says("replace them by the background value")
def voxels_that_are_no_numbers(tmp: Path) -> Attempts:
    yield segment(save(tmp / "v.nii", nifti(at(np.nan, 0, 0, 0))))
    yield segment(save(tmp / "v.nii", nifti(at(0, 0, 0, 0))))


@says("Convert it to a single grey-scale channel")
def colours(tmp: Path) -> Attempts:
    colour = np.zeros((4, 5, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.Nifti1Image(colour, OBLIQUE).to_filename(tmp / "v.nii")
    yield segment(tmp / "v.nii")
    yield segment(save(tmp / "v.nii", nifti(sform=OBLIQUE)))


@says("Give the image itself")
def labels_for_an_image(tmp: Path) -> Attempts:
    yield segment(save(tmp / "v.nii", nifti((RAMP % 4).astype(np.int16), sform=OBLIQUE)))
    yield segment(save(tmp / "image.nii", nifti(sform=OBLIQUE)))


@says("or give a 4D file")
def frames_of_a_single_volume(tmp: Path) -> Attempts:
    source = save(tmp / "v.nii", nifti(sform=OBLIQUE))
    yield segment(source, "--ed", "1", "--es", "2")
    yield segment(source)


@says("Give --es from 1 to 3")
def a_frame_beyond_the_last(tmp: Path) -> Attempts:
    source = save(tmp / "v.nii", nifti(np.stack([RAMP, 2 * RAMP, 3 * RAMP], axis=3), sform=OBLIQUE))
    yield segment(source, "--ed", "1", "--es", "4")
    yield segment(source, "--ed", "1", "--es", "3")


@says("Give two different frames")
def one_frame_twice(tmp: Path) -> Attempts:
    source = save(tmp / "v.nii", nifti(np.stack([RAMP, 2 * RAMP], axis=3), sform=OBLIQUE))
    yield segment(source, "--ed", "1", "--es", "1")
    yield segment(source, "--ed", "1", "--es", "2")


# --- options of segment -----------------------------------------------------------------------------------------------


@says("Give --height and --weight")
def a_height_alone(tmp: Path) -> Attempts:
    source = save(tmp / "v.nii", nifti(sform=OBLIQUE))
    yield segment(source, "--height", "180")
    yield segment(source, "--height", "180", "--weight", "80")


@says("Segment one patient at a time")
def one_height_for_two(tmp: Path) -> Attempts:
    source = folder(tmp, b__nii=nifti(sform=OBLIQUE))
    yield segment(source, "--height", "180", "--weight", "80")
    yield segment(source / "b.nii", "--height", "180", "--weight", "80")


@says("Leave out --series")
def a_series_of_a_file(tmp: Path) -> Attempts:
    source = save(tmp / "v.nii", nifti(sform=OBLIQUE))
    yield segment(source, "--series", "5")
    yield segment(source)


@says("Leave out --dicom-seg")
def a_dicom_segmentation_of_a_file(tmp: Path) -> Attempts:
    source = save(tmp / "v.nii", nifti(sform=OBLIQUE))
    yield segment(source, "--dicom-seg", "deidentified")
    yield segment(source)


@says("Choose among mask, probabilities")
def an_output_there_is_not(tmp: Path) -> Attempts:
    source = save(tmp / "v.nii", nifti(sform=OBLIQUE))
    yield segment(source, "--write", "masks")
    yield segment(source, "--write", "mask")


@says("such as 2/8")
def a_part_beyond_the_last(tmp: Path) -> Attempts:
    source = save(tmp / "v.nii", nifti(sform=OBLIQUE))
    yield segment(source, "--shard", "9/8")
    yield segment(source, "--shard", "2/8")


@says("Use auto, cpu")
def a_device_there_is_not(tmp: Path) -> Attempts:
    source = save(tmp / "v.nii", nifti(sform=OBLIQUE))
    yield ["segment", source, tmp / "out", "--no-report", "--device", "gpu"]
    yield ["segment", source, tmp / "out", "--no-report", "--device", "cpu"]


@says("Choose a folder that can be written to")
def an_output_that_is_a_file(tmp: Path) -> Attempts:
    source = save(tmp / "v.nii", nifti(sform=OBLIQUE))
    (tmp / "taken").touch()
    yield segment(source, out="taken")
    yield segment(source, out="free")


@says("segment with --no-calibration")
def a_file_that_is_no_calibration(tmp: Path) -> Attempts:
    source = save(tmp / "v.nii", nifti(sform=OBLIQUE))
    (tmp / "mine.json").write_text("{}")
    yield segment(source, "--calibration", tmp / "mine.json")
    yield segment(source, "--calibration", tmp / "mine.json", "--no-calibration")


# --- folders ----------------------------------------------------------------------------------------------------------


@says("Check the path")
def a_path_to_nowhere(tmp: Path) -> Attempts:
    yield segment(tmp / "absent.nii")
    yield segment(save(tmp / "present.nii", nifti(sform=OBLIQUE)))


@says("Rename one of the two")
def two_files_of_one_name(tmp: Path) -> Attempts:
    source = folder(tmp, good__nii__gz=nifti(sform=OBLIQUE))
    yield segment(source)
    (source / "good.nii.gz").rename(source / "better.nii.gz")
    yield segment(source, out="again")


@says("Rename it, or move earlier results elsewhere")
def an_image_called_like_a_map(tmp: Path) -> Attempts:
    source = folder(tmp, good_entropy__nii=nifti(sform=OBLIQUE))
    yield segment(source)
    (source / "good_entropy.nii").rename(source / "other.nii")
    yield segment(source, out="again")


@says("Rename it")
def an_image_called_like_the_cohort(tmp: Path) -> Attempts:
    source = folder(tmp, cohort__nii=nifti(sform=OBLIQUE))
    yield segment(source)
    (source / "cohort.nii").rename(source / "other.nii")
    yield segment(source, out="again")


@says("Give another output folder")
def results_over_the_inputs(tmp: Path) -> Attempts:
    (tmp / "in").mkdir()
    source = save(tmp / "in" / "a.nii.gz", nifti(sform=OBLIQUE))
    yield ["segment", source, tmp / "in", *QUIET]
    yield ["segment", source, tmp / "out", *QUIET]


@says("Give another output folder")
def inputs_inside_the_results(tmp: Path) -> Attempts:
    source = folder(tmp)
    yield ["segment", source, tmp, *QUIET]
    yield ["segment", source, tmp / "out", *QUIET]


@says("Unpack it and give what it holds")
def an_archive(tmp: Path) -> Attempts:
    source = folder(tmp)
    save(tmp / "b.nii", nifti(sform=OBLIQUE))
    shutil.make_archive(str(source / "more"), "zip", tmp, "b.nii")
    yield segment(source)
    shutil.unpack_archive(source / "more.zip", source)
    elsewhere(source / "more.zip", tmp)
    yield segment(source, out="again")


@says("or move it elsewhere")
def a_format_that_is_not_read(tmp: Path) -> Attempts:
    source = folder(tmp)
    (source / "scan.par").write_bytes(b"\0" * 64)
    yield segment(source)
    elsewhere(source / "scan.par", tmp)
    yield segment(source, out="again")


@says("Put the header beside it")
def voxels_without_a_header(tmp: Path) -> Attempts:
    source = folder(tmp)
    nib.save(nib.Nifti1Pair(RAMP, OBLIQUE), source / "b.hdr")
    elsewhere(source / "b.hdr", tmp)
    yield segment(source)
    (tmp / "elsewhere" / "b.hdr").rename(source / "b.hdr")
    yield segment(source, out="again")


@says("or leave it out")
def an_image_of_one_value(tmp: Path) -> Attempts:
    source = folder(tmp, flat__nii=nifti(0 * RAMP + 700))
    yield segment(source)
    elsewhere(source / "flat.nii", tmp)
    yield segment(source, out="again")


def patient(tmp: Path) -> Path:
    """One of ACDC's layout, with its Info.cfg."""
    (tmp / "in" / "patient007").mkdir(parents=True)
    for frame in (1, 12):
        save(tmp / "in" / "patient007" / f"patient007_frame{frame:02d}.nii.gz", nifti(sform=OBLIQUE))
    (tmp / "in" / "patient007" / "Info.cfg").write_text("ED: 1\nES: 12\n")
    return tmp / "in" / "patient007"


@says("Add a line 'ES: <frame number>'")
def a_frame_that_is_not_stated(tmp: Path) -> Attempts:
    info = patient(tmp) / "Info.cfg"
    info.write_text("ED: 1\n")
    yield segment(tmp / "in")
    info.write_text("ED: 1\nES: 12\n")
    yield segment(tmp / "in", out="again")


@says("Correct one of them")
def frames_that_are_one(tmp: Path) -> Attempts:
    info = patient(tmp) / "Info.cfg"
    info.write_text("ED: 1\nES: 1\n")
    yield segment(tmp / "in")
    info.write_text("ED: 1\nES: 12\n")
    yield segment(tmp / "in", out="again")


@says("Add the file")
def a_frame_without_its_file(tmp: Path) -> Attempts:
    file = patient(tmp) / "patient007_frame12.nii.gz"
    elsewhere(file, tmp)
    yield segment(tmp / "in")
    (tmp / "elsewhere" / file.name).rename(file)
    yield segment(tmp / "in", out="again")


@says("Leave out --ed")
def a_frame_of_a_patient_that_says_which(tmp: Path) -> Attempts:
    patient(tmp)
    yield segment(tmp / "in", "--ed", "1")
    yield segment(tmp / "in")


# --- DICOM ------------------------------------------------------------------------------------------------------------


@says("Give the folder of its series")
def one_dicom_file(tmp: Path) -> Attempts:
    source = Scan().write(tmp / "in")
    yield segment(source / "IM0000.dcm")
    yield segment(source)


@says("Choose among 5")
def a_series_there_is_not(tmp: Path) -> Attempts:
    source = Scan().write(tmp / "in")
    yield segment(source, "--series", "6")
    yield segment(source, "--series", "5")


@says("choose its series with --series, or move these images elsewhere")
def a_single_slice_of_the_same_number_beside_a_stack(tmp: Path) -> Attempts:
    source = Scan().write(tmp / "in")
    Scan(slices=1, phases=1, size=(9, 9)).write(tmp / "in" / "scout")
    yield segment(source)
    elsewhere(source / "scout", tmp)
    yield segment(source, out="again")


@says("choose its series with --series")
def a_single_slice_beside_a_stack(tmp: Path) -> Attempts:
    source = Scan().write(tmp / "in")
    Scan(slices=1, phases=1, series=2, size=(9, 9)).write(tmp / "in" / "scout")
    yield segment(source)
    yield segment(source, "--series", "5", out="again")


@says("choose another series with --series")
def images_of_two_sizes(tmp: Path) -> Attempts:
    source = Scan().write(tmp / "in")
    other = Scan(series=8)
    other.write(tmp / "in" / "mixed")
    odd = other.image(0, 0)
    odd.Rows, odd.Columns, odd.PixelData = 2, 2, bytes(8)
    save_dicom(odd, tmp / "in" / "mixed" / "odd.dcm")
    yield segment(source)
    yield segment(source, "--series", "5", out="again")


@says("Give the short-axis images alone")
def images_of_two_sizes_and_no_other_series(tmp: Path) -> Attempts:
    scan = Scan()
    source = scan.write(tmp / "in")
    odd = scan.image(0, 0)
    odd.Rows, odd.Columns, odd.PixelData = 2, 2, bytes(8)
    save_dicom(odd, source / "odd.dcm")
    yield segment(source)
    elsewhere(source / "odd.dcm", tmp)
    yield segment(source, out="again")


@says("choose another series with --series")
def images_without_a_place(tmp: Path) -> Attempts:
    source = Scan().write(tmp / "in")
    Scan(series=8, extra={"ImagePositionPatient": None}).write(tmp / "in" / "lost")
    yield segment(source)
    yield segment(source, "--series", "5", out="again")


@says("Choose the series of magnitude images with --series")
def phase_images(tmp: Path) -> Attempts:
    source = Scan(extra={"ImageType": ["ORIGINAL", "PRIMARY", "M"]}).write(tmp / "in")
    Scan(series=8, extra={"ImageType": ["ORIGINAL", "PRIMARY", "P"]}).write(tmp / "in" / "phase")
    yield segment(source)
    yield segment(source, "--series", "5", out="again")


@says("Move the files of one acquisition elsewhere")
def a_slice_twice_in_no_order(tmp: Path) -> Attempts:
    scan = Scan(extra={"InstanceNumber": 1})
    source = scan.write(tmp / "in")
    for t in range(3):
        again = scan.image(1, t)
        again.PixelData = (scan.voxels[:, :, 1, t] + 5).T.tobytes()
        save_dicom(again, source / f"again{t}.dcm")
    yield segment(source)
    for file in source.glob("again*"):
        elsewhere(file, tmp)
    yield segment(source, out="once")


@says("or move it elsewhere")
def a_damaged_dicom_file(tmp: Path) -> Attempts:
    source = Scan().write(tmp / "in")
    (source / "IM9999.dcm").write_bytes((source / "IM0000.dcm").read_bytes()[:300])
    yield segment(source)
    elsewhere(source / "IM9999.dcm", tmp)
    yield segment(source, out="again")


@says("Leave out --dicom-seg")
def images_no_segmentation_can_refer_to(tmp: Path) -> Attempts:
    pytest.importorskip("highdicom")
    source = Scan(extra={"FrameOfReferenceUID": None}).write(tmp / "in")
    yield segment(source, "--dicom-seg", "deidentified")
    yield segment(source, out="again")


# --- evaluate ---------------------------------------------------------------------------------------------------------


def masks(tmp: Path, predicted: Any = None, reference: Any = None, ending: str = "_gt") -> tuple[Path, Path]:
    """Folders of one mask each, ``p/a.nii.gz`` and ``r/a_gt.nii.gz``."""
    write_labels(tmp / "p" / "a.nii.gz", heart() if predicted is None else predicted)
    write_labels(tmp / "r" / f"a{ending}.nii.gz", heart() if reference is None else reference)
    return tmp / "p", tmp / "r"


@says("Add b_gt.nii.gz to the references")
def a_prediction_alone(tmp: Path) -> Attempts:
    sides = masks(tmp)
    write_labels(tmp / "p" / "b.nii.gz", heart())
    yield ["evaluate", *sides]
    write_labels(tmp / "r" / "b_gt.nii.gz", heart())
    yield ["evaluate", *sides]


@says("Add b.nii.gz to the predictions, or move this file elsewhere")
def a_reference_alone(tmp: Path) -> Attempts:
    sides = masks(tmp)
    write_labels(tmp / "r" / "b_gt.nii.gz", heart())
    yield ["evaluate", *sides]
    elsewhere(tmp / "r" / "b_gt.nii.gz", tmp)
    yield ["evaluate", *sides]


@says("Move one of the two elsewhere")
def one_mask_in_two_files(tmp: Path) -> Attempts:
    sides = masks(tmp)
    nib.save(nib.load(tmp / "p" / "a.nii.gz"), tmp / "p" / "a.nii")
    yield ["evaluate", *sides]
    elsewhere(tmp / "p" / "a.nii", tmp)
    yield ["evaluate", *sides]


@says("as in --labels 1=RV,2=Myo,3=LV,4=NAME")
def a_value_without_a_name(tmp: Path) -> Attempts:
    sides = masks(tmp, reference=renamed(heart(), 0, 1, 2, 4))
    yield ["evaluate", *sides]
    yield ["evaluate", *sides, "--labels", "1=RV,2=Myo,3=LV,4=LV"]


@says("as in --reference-labels 1=RV,2=Myo,4=NAME")
def a_value_without_a_name_on_a_side_that_has_names(tmp: Path) -> Attempts:
    sides = masks(tmp, reference=renamed(heart(), 0, 1, 2, 4))
    yield ["evaluate", *sides, "--reference-labels", "1=RV,2=Myo"]
    yield ["evaluate", *sides, "--reference-labels", "1=RV,2=Myo,4=NAME"]


@says("Give a mask, not an image")
def an_image_for_a_mask(tmp: Path) -> Attempts:
    sides = masks(tmp, predicted=np.arange(96).reshape(8, 6, 2))
    yield ["evaluate", *sides]
    write_labels(tmp / "p" / "a.nii.gz", heart())
    yield ["evaluate", *sides]


@says("give --ignore-geometry")
def headers_that_differ(tmp: Path) -> Attempts:
    sides = masks(tmp)
    write_labels(tmp / "p" / "a.nii.gz", heart(), np.diag([1.0, 1, 1, 1]))
    yield ["evaluate", *sides]
    yield ["evaluate", *sides, "--ignore-geometry"]


@says("Cut the frame it shows out of the reference")
def a_frame_against_a_cine(tmp: Path) -> Attempts:
    sides = masks(tmp, reference=np.stack([heart(), 0 * heart()], axis=3))
    yield ["evaluate", *sides]
    write_labels(tmp / "r" / "a_gt.nii.gz", heart())
    yield ["evaluate", *sides]


@says("with --reference-labels and --prediction-labels")
def no_name_in_common(tmp: Path) -> Attempts:
    sides = masks(tmp)
    yield ["evaluate", *sides, "--reference-labels", "1=a,2=b,3=c", "--prediction-labels", "1=x,2=y,3=z"]
    yield ["evaluate", *sides, "--reference-labels", "1=a,2=b,3=c", "--prediction-labels", "1=c,2=b,3=a"]


@says("name their labels with --reference-labels")
def references_that_hold_nothing_of_that_name(tmp: Path) -> Attempts:
    sides = masks(tmp, reference=renamed(heart(), 0, 0, 0, 4))
    yield ["evaluate", *sides, "--reference-labels", "1=RV,2=Myo,3=LV,4=background"]
    yield ["evaluate", *sides, "--reference-labels", "1=RV,2=Myo,4=LV"]


@says("Give two files or two folders")
def a_file_against_a_folder(tmp: Path) -> Attempts:
    predictions, references = masks(tmp)
    yield ["evaluate", predictions / "a.nii.gz", references]
    yield ["evaluate", predictions, references]


@says("give --labels, as in 1=LV,2=Myo,3=RV")
def a_dataset_file_that_is_damaged(tmp: Path) -> Attempts:
    sides = masks(tmp)
    (tmp / "dataset.json").write_text("{")
    yield ["evaluate", *sides]
    yield ["evaluate", *sides, "--labels", "1=LV,2=Myo,3=RV"]


# --- compare ----------------------------------------------------------------------------------------------------------


def two_methods(tmp: Path) -> Words:
    predictions, references = masks(tmp)
    shutil.copytree(predictions, tmp / "q")
    return ["compare", references, f"A={predictions}", f"B={tmp / 'q'}"]


@says("Give a --patient-pattern that fits every case")
def a_pattern_that_finds_nobody(tmp: Path) -> Attempts:
    words = two_methods(tmp)
    yield [*words, "--patient-pattern", "^case(.)"]
    yield [*words, "--patient-pattern", "^(.)"]


@says("Correct --patient-pattern, as in '^([^_]+)'")
def a_pattern_that_is_none(tmp: Path) -> Attempts:
    words = two_methods(tmp)
    yield [*words, "--patient-pattern", "("]
    yield [*words, "--patient-pattern", "^([^_]+)"]


@says("as in --prediction-labels A:1=LV,2=Myo,3=RV")
def methods_without_a_structure_in_common(tmp: Path) -> Attempts:
    words = two_methods(tmp)
    named = [f"--prediction-labels={name}" for name in ("A:1=RV,2=background,3=background", "B:1=x,2=Myo,3=LV")]
    yield [*words, *named]
    yield [*words, *(f"--prediction-labels={name}:1=LV,2=Myo,3=RV" for name in "AB")]


@says("files pair by name")
def methods_without_a_case_in_common(tmp: Path) -> Attempts:
    words = two_methods(tmp)
    (tmp / "q" / "a.nii.gz").rename(tmp / "q" / "b.nii.gz")
    yield words
    (tmp / "q" / "b.nii.gz").rename(tmp / "q" / "a.nii.gz")
    yield words


# --- super-resolve, cohort, calibrate ---------------------------------------------------------------------------------


def refine(tmp: Path, *options: Any, source: str = "a.png") -> Words:
    """A picture and a small bundle with its weights."""
    if not (tmp / "bundle").exists():
        (tmp / "bundle" / "configs").mkdir(parents=True)
        (tmp / "bundle" / "configs" / "inference.yaml").write_text(BUNDLE)
        torch.save(small_unet(cond_scale=2).state_dict(), tmp / "weights.pt")
        write_picture(torch.zeros(3, 12, 9), tmp / "a.png")
    bundle = ["--weights", tmp / "weights.pt", "--bundle", tmp / "bundle", "--device", "cpu"]
    return ["super-resolve", tmp / source, tmp / "out", *bundle, *options]


@says("multiple of 2, not 7")
def a_window_that_does_not_fit(tmp: Path) -> Attempts:
    yield refine(tmp, "--window", "7")
    yield refine(tmp, "--window", "8")


@says("between 1 and 1000")
def more_steps_than_there_are(tmp: Path) -> Attempts:
    yield refine(tmp, "--steps", "1001")
    yield refine(tmp, "--steps", "1")


@says("Leave out --class-index")
def a_class_for_a_network_without(tmp: Path) -> Attempts:
    yield refine(tmp, "--class-index", "3")
    yield refine(tmp)


@says("Save each frame as a 3D file of its own")
def frames_to_refine(tmp: Path) -> Attempts:
    (tmp / "frames").mkdir()
    save(tmp / "frames" / "v.nii", nifti(np.stack([RAMP, 2 * RAMP], axis=3), sform=OBLIQUE))
    yield refine(tmp, source="frames/v.nii")
    save(tmp / "frames" / "v.nii", nifti(sform=OBLIQUE))
    yield refine(tmp, source="frames")


@says("Give pictures or volumes named .png")
def nothing_to_refine(tmp: Path) -> Attempts:
    (tmp / "in").mkdir()
    (tmp / "in" / "a.txt").touch()
    yield refine(tmp, source="in")
    shutil.copy(tmp / "a.png", tmp / "in" / "b.png")
    yield refine(tmp, source="in")


@says("Run cgdpm-med segment first")
def a_cohort_of_nothing(tmp: Path) -> Attempts:
    source = folder(tmp)
    (tmp / "out").mkdir()
    yield ["cohort", tmp / "out"]
    segment_all(Thresholder(), find_cases(source), tmp / "out", options=PLAIN)
    yield ["cohort", tmp / "out"]


@says("or keep them in separate folders")
def a_cohort_made_in_two_ways(tmp: Path) -> Attempts:
    for seed, name in enumerate("ab"):
        source = save(tmp / f"{name}.nii", nifti(sform=OBLIQUE))
        segment_all(Thresholder(seed=seed), find_cases(source), tmp / "out", options=PLAIN)
    yield ["cohort", tmp / "out"]
    (tmp / "other").mkdir()
    for path in (tmp / "out").glob("b*"):
        path.rename(tmp / "other" / path.name)
    yield ["cohort", tmp / "out"]


# --- from Python ------------------------------------------------------------------------------------------------------


def remedy_of(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value.remedy)


@pytest.mark.filterwarnings("ignore")
def test_a_series_is_chosen_in_python(tmp_path: Path) -> None:
    scan = Scan()
    scan.write(tmp_path / "a")
    Scan(series=8, seed=1, size=(9, 9)).write(tmp_path / "b")
    assert "with series= among 5, 8" in remedy_of(lambda: read_dicom(tmp_path))
    np.testing.assert_array_equal(read_dicom(tmp_path, series=[5]).data, scan.voxels)
    np.testing.assert_array_equal(read_dicom(tmp_path / "a").data, scan.voxels)


def test_a_bundle_is_chosen_among_those_there_are() -> None:
    (first, *_) = remedy_of(lambda: bundle_path("nonesuch")).removeprefix("Use ").split(",")
    assert bundle_path(first).is_dir()


def test_labels_under_another_header_are_not_resampled(tmp_path: Path) -> None:
    image = read_volume(save(tmp_path / "a.nii", nifti(sform=OBLIQUE)))
    labels = save(tmp_path / "a_gt.nii", nifti(LABELS, sform=np.diag([1.25, 1.4, 8, 1])))
    assert "with the header of their image" in remedy_of(lambda: read_labels(labels, like=image.grid))
    write_on_grid(read_labels(labels).data, image.grid, labels)
    np.testing.assert_array_equal(read_labels(labels, like=image.grid).data, LABELS)
    smaller = save(tmp_path / "b_gt.nii", nifti(LABELS[1:], sform=OBLIQUE))
    assert remedy_of(lambda: read_labels(smaller, like=image.grid)).startswith("Resample")


@pytest.mark.parametrize("damage", ["unreadable", "of another run"])
def test_a_checkpoint_moved_elsewhere_lets_the_run_start_anew(damage: str, tmp_path: Path) -> None:
    toy_run(tmp_path, epochs=1)
    checkpoint = tmp_path / "checkpoint.pt"
    if damage == "unreadable":
        checkpoint.write_bytes(b"no checkpoint")
    else:
        torch.save([1, 2], checkpoint)
    remedy = remedy_of(lambda: toy_run(tmp_path, epochs=1))
    assert "ove " in remedy
    assert "elete" not in remedy
    checkpoint.rename(tmp_path / "kept.pt")
    assert toy_run(tmp_path, epochs=1)["iteration"] == 3


def test_a_split_needs_all_its_lists_and_the_remedy_says_so(tmp_path: Path) -> None:
    names = [f"own{n:02d}" for n in range(9)]
    cohort, split = write_cohort(tmp_path / "data", names), tmp_path / "mine.json"
    assert "list validation of a JSON file" in remedy_of(lambda: calibration_items(cohort))
    split.write_text(json.dumps({"validation": names}))
    assert "train, validation and test" in remedy_of(lambda: calibration_items(cohort, "validation", split))
    split.write_text(json.dumps({"train": [], "validation": names, "test": []}))
    assert len(calibration_items(cohort, "validation", split)) == 18


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({"members": 16}, ["--members 16"]),
        ({"steps": 2, "method": "ddpm"}, ["--steps 2", "--method ddpm"]),
        ({"staple": True}, []),
        ({"keep_largest": True, "members": 3}, []),
    ],
)
def test_a_calibration_is_fitted_again_only_where_that_helps(
    change: dict[str, Any], options: list[str], tmp_path: Path
) -> None:
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"weights")
    file = tmp_path / CALIBRATION
    write_calibration(example(weights), file)
    remedy = remedy_of(lambda: find_calibration([weights], {**MADE, **change}, file))
    assert all(option in remedy for option in options)
    if options:
        write_calibration(example(weights, settings={**MADE, **change}), file)
        assert find_calibration([weights], {**MADE, **change}, file)[0] is not None
    else:
        assert "--no-calibration" in remedy
        assert "cgdpm-med calibrate" not in remedy


def test_an_interrupt_names_continue_only_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise cli.Interrupted(130)

    monkeypatch.setattr(cli, "app", interrupted)
    for command, named in (("segment", True), ("calibrate", False), ("evaluate", False)):
        assert run(monkeypatch, command, "in", "out") == 130
        assert ("--continue" in capsys.readouterr().err) == named
