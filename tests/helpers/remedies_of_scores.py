"""Remedies of ``evaluate``, ``compare``, ``super-resolve`` and ``cohort``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from label_files import heart, renamed, write_labels
from nifti_files import OBLIQUE, nifti, save
from remedies import Attempts, Words, elsewhere, folder, says
from scans import PLAIN
from small_resolver import BUNDLE, save_small_model
from stubs import Thresholder

from cgdpm_med import (
    find_cases,
    segment_all,
)
from cgdpm_med.images import write_picture

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
        save_small_model(tmp / "weights.pt")
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


@says("--bundle")
def a_picture_without_a_bundle(tmp: Path) -> Attempts:
    words = refine(tmp)
    yield words[:3]
    yield words


@says("give --weights RUN/model.pt")
def a_bundle_without_weights(tmp: Path) -> Attempts:
    words = refine(tmp)
    yield [*words[:3], "--bundle", "face_sr_64_512"]
    yield words


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
