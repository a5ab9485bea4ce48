"""Remedies of folders, of ACDC's layout and of DICOM series."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_scans import Scan
from dicom_scans import save as save_dicom
from nifti_files import OBLIQUE, RAMP, nifti, save
from remedies import QUIET, Attempts, elsewhere, folder, says, segment

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


@says("Give this file by itself, or rename it without ED and ES")
def series_called_like_phases(tmp: Path) -> Attempts:
    source = folder(tmp)
    for phase in ("ED", "ES"):
        save(source / f"x_{phase}.nii", nifti(np.stack([RAMP, 2 * RAMP], axis=3), sform=OBLIQUE))
    yield segment(source)
    for name, phase in (("x_first", "ED"), ("x_second", "ES")):
        (source / f"x_{phase}.nii").rename(source / f"{name}.nii")
    yield segment(source, out="again")


@says("Give its folder")
def a_table_of_contents(tmp: Path) -> Attempts:
    source = Scan().write(tmp / "in")
    (source / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    yield segment(source / "DICOMDIR")
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
