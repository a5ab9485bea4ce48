"""Remedies of single files and of the options of ``segment``."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from nifti_files import ACDC_SFORM, OBLIQUE, RAMP, at, nifti, raw_header, save
from remedies import Attempts, folder, says, segment

CINE = np.stack([RAMP, 2 * RAMP], axis=3)

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
    source = save(tmp / "v.nii", nifti(CINE, sform=OBLIQUE))
    yield segment(source, "--ed", "1", "--es", "1")
    yield segment(source, "--ed", "1", "--es", "2")


# --- options of segment -----------------------------------------------------------------------------------------------


@says("Give --height and --weight")
def a_height_alone(tmp: Path) -> Attempts:
    source = save(tmp / "v.nii", nifti(CINE, sform=OBLIQUE))
    yield segment(source, "--height", "180")
    yield segment(source, "--height", "180", "--weight", "80")


@says("Give --height in cm")
def a_height_in_metres(tmp: Path) -> Attempts:
    source = save(tmp / "v.nii", nifti(CINE, sform=OBLIQUE))
    yield segment(source, "--height", "1.8", "--weight", "80")
    yield segment(source, "--height", "180", "--weight", "80")


@says("Give --weight in kg")
def a_weight_in_grams(tmp: Path) -> Attempts:
    source = save(tmp / "v.nii", nifti(CINE, sform=OBLIQUE))
    yield segment(source, "--height", "50", "--weight", "3500")
    yield segment(source, "--height", "50", "--weight", "3.5")


@says("Leave out --height and --weight, or give a 4D file")
def a_height_of_a_single_volume(tmp: Path) -> Attempts:
    source = save(tmp / "v.nii", nifti(sform=OBLIQUE))
    yield segment(source, "--height", "180", "--weight", "80")
    yield segment(source)


@says("Segment one patient at a time")
def one_height_for_two(tmp: Path) -> Attempts:
    source = folder(tmp, b__nii=nifti(CINE, sform=OBLIQUE))
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
