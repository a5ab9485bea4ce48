"""NIfTI files that are no use: name, content, and words of the one error."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
from nifti_files import OBLIQUE, RAMP, at, nifti


def without_tail(content: bytes, n: int) -> bytes:
    return content[: len(content) - n]


def one_bit_flipped(content: bytes) -> bytes:
    stored = bytearray(gzip.compress(content, 0))  # stored blocks: the damage is in a voxel, not in the deflate code
    stored[-20] ^= 1
    return bytes(stored)


RGB = np.zeros((4, 5, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
SINGULAR = np.array([[1.0, 2, 0, 0], [1, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
ZERO_COLUMN = np.diag([1.0, 1.0, 0.0, 1.0])
BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("v.nii.gz", b"", "is an empty file"),
    "empty plain": ("v.nii", b"", "is an empty file"),
    "not gzip": ("v.nii.gz", nifti(), "not gzip data"),
    "hidden gzip": ("v.nii", gzip.compress(nifti()), "is gzip data but not named .gz"),
    "text": ("v.nii", b"patient,volume\n" * 40, "is not a single-file NIfTI"),
    "zipped text": ("v.nii.gz", gzip.compress(b"patient,volume\n" * 40), "is not a single-file NIfTI"),
    "other format": ("v.vtk", b"# vtk DataFile", "is not named .nii or .nii.gz"),
    "zip of nothing": ("v.nii.gz", gzip.compress(b""), "truncated inside its header"),
    "truncated header": ("v.nii", nifti()[:200], "truncated inside its header"),
    "truncated plain": ("v.nii", without_tail(nifti(), 1), "the header promises 120 bytes of voxels"),
    "truncated gzip": ("v.nii.gz", gzip.compress(nifti())[:120], "is truncated or damaged"),
    "gzip without trailer": ("v.nii.gz", without_tail(gzip.compress(nifti()), 8), "is truncated or damaged"),
    "short voxels in gzip": ("v.nii.gz", gzip.compress(without_tail(nifti(), 1)), "Expected 120 bytes, got 119"),
    "damaged gzip": ("v.nii.gz", one_bit_flipped(nifti()), "CRC check failed"),
    "header of a pair": ("v.nii", nifti(magic=b"ni1"), "is the header of a NIfTI pair"),
    "Analyze": ("v.nii", nifti(magic=b""), "is not a single-file NIfTI"),
    "2D": ("v.nii", nifti(RAMP[..., 0], pixdim=(1.0, 1.0)), "has 2 dimensions"),
    "5D": ("v.nii", nifti(np.stack([RAMP[..., None]] * 2, axis=-1)), "has 5 dimensions"),
    "six axes": ("v.nii", nifti(dim=(4, 5, 3, 1, 1, 2)), "has 6 dimensions"),
    "no dimensions": ("v.nii", nifti(dim=()), "has 0 dimensions"),
    "zero size": ("v.nii", nifti(dim=(4, 0, 3)), "has size 0 along axis 1 (shape 4 x 0 x 3)"),
    "negative size": ("v.nii", nifti(dim=(4, 5, -3)), "has size -3 along axis 2"),
    "huge": ("v.nii", nifti(dim=(32767, 32767, 32767)), "has 35,181,150,961,663 voxels"),
    "huge cine": ("v.nii.gz", gzip.compress(nifti(dim=(512, 512, 30, 3000))), "has 23,592,960,000 voxels"),
    "large promise": ("v.nii.gz", gzip.compress(nifti(dim=(512, 512, 1000))), "promises 524,288,000 bytes"),
    "RGB": ("v.nii", nifti(RGB), "holds colour (RGB) voxels"),
    "complex": ("v.nii", nifti(RAMP.astype(np.complex64)), "holds complex voxels"),
    "unknown type": ("v.nii", nifti(datatype=999), "unknown data type (code 999)"),
    "NaN": ("v.nii.gz", gzip.compress(nifti(at(np.nan, 1, 2, 2))), "1 NaN and 0 infinite voxels in slices 3."),
    "Inf": ("v.nii", nifti(at(-np.inf, slice(2), 2, 1)), "0 NaN and 2 infinite voxels in slices 2."),
    "NaN in a frame": ("v.nii", nifti(at(np.nan, 0, 0, 1, 1, shape=(4, 5, 3, 2))), "slices 2 of frames 2."),
    "overflow": ("v.nii", nifti(RAMP * 1e300), "beyond the range of float32"),
    "constant": ("v.nii", nifti(np.full((4, 5, 3), 7, np.int16)), "every voxel is 7"),
    "scaled out of range": ("v.nii", nifti(scl_slope=3e38), "0 NaN and 58 infinite voxels in slices 1, 2, 3."),
    "infinite inter": ("v.nii", nifti(scl_inter=np.inf), "invalid intercept"),
    "offset beyond the end": ("v.nii", nifti(vox_offset=10_000), "is truncated"),
    "negative offset": ("v.nii", nifti(vox_offset=-16), "vox_offset -16"),
    "offset not a number": ("v.nii", nifti(vox_offset=np.nan), "vox_offset nan"),
    "singular affine": ("v.nii", nifti(sform=SINGULAR), "singular affine"),
    "zero column": ("v.nii", nifti(sform=ZERO_COLUMN), "singular affine"),
    "all-zero sform": ("v.nii", nifti(sform=np.zeros((4, 4))), "singular affine"),
    "NaN affine": ("v.nii", nifti(sform=OBLIQUE * np.nan), "not finite"),
    "impossible quaternion": ("v.nii", nifti(qform_code=1, quatern_b=0.9, quatern_c=0.9), "impossible qform"),
    "immense affine": ("v.nii", nifti(sform=OBLIQUE * 1e300, kind=nib.Nifti2Header), "not finite"),
    "NaN quaternion": ("v.nii", nifti(qform_code=1, quatern_b=np.nan), "not finite"),
    "no spacing": ("v.nii", nifti(pixdim=(1.0, 0.0, 8.0)), "has no voxel spacing: pixdim is 1 x 0 x 8 mm"),
    "metres": ("v.nii", nifti(xyzt_units=1), "implausible voxel spacing of 1250 x 1400 x 8000 mm"),
}
