"""Volumes that are not single-file NIfTI: the voxels and places that other tools see, or one error."""

from __future__ import annotations

import bz2
import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nifti_files import LABELS, OBLIQUE, nifti, only_error, save
from numpy.typing import NDArray

from cgdpm_med import InputError, read_labels, read_volume
from cgdpm_med.volumes import write_on_grid
from cgdpm_med.volumes.formats import files_of, volume_stem
from cgdpm_med.volumes.orientation import directions_known

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
VOXELS = np.random.default_rng(0).integers(-200, 3000, (5, 4, 3)).astype(np.int16)
CINE = np.random.default_rng(1).integers(0, 3000, (5, 4, 3, 6)).astype(np.int16)
FLIPPED = OBLIQUE @ np.diag([1.0, -1.0, 1.0, 1.0])  # left-handed
PLACES = {"oblique": OBLIQUE, "flipped": FLIPPED}


def itk_image(voxels: NDArray[Any], affine: NDArray[np.float64]) -> sitk.Image:
    """ITK's image of (X, Y, Z) voxels at a place in RAS+."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
    place = LPS @ affine
    spacing = np.linalg.norm(place[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(place[:3, 3].tolist())
    image.SetDirection((place[:3, :3] / spacing).ravel().tolist())
    return image


def itk_affine(image: sitk.Image) -> NDArray[np.float64]:
    """Voxel indices to RAS+ as ITK believes."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return LPS @ affine


def nrrd(path: Path, data: bytes, **fields: str | None) -> Path:
    """An NRRD file with the fields of a small oblique volume, others in their place, and None to leave one out."""
    columns = (LPS @ OBLIQUE)[:3, :3].T
    usual: dict[str, str | None] = {
        "type": "short",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": "5 4 3",
        "space directions": " ".join(f"({x!r},{y!r},{z!r})" for x, y, z in columns.tolist()),
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "raw",
        "space origin": "({!r},{!r},{!r})".format(*(LPS @ OBLIQUE)[:3, 3].tolist()),
    }
    usual |= {name.replace("_", " "): value for name, value in fields.items()}
    lines = [f"{name}: {value}" for name, value in usual.items() if value is not None]
    path.write_bytes("\n".join(["NRRD0004", "# comment", *lines, "", ""]).encode() + data)
    return path


def mha(path: Path, data: bytes, **fields: str | None) -> Path:
    """A MetaImage of 5 x 4 x 3 int16 voxels of 1.5 x 1.6 x 8 mm."""
    usual: dict[str, str | None] = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "10 20 30",
        "ElementSpacing": "1.5 1.6 8",
        "DimSize": "5 4 3",
        "ElementType": "MET_SHORT",
    }
    usual |= fields
    usual["ElementDataFile"] = usual.pop("ElementDataFile", "LOCAL")  # the last field, always
    lines = [f"{name} = {value}" for name, value in usual.items() if value is not None]
    path.write_bytes("\n".join([*lines, ""]).encode() + data)
    return path


def raw(voxels: NDArray[np.int16]) -> bytes:
    return voxels.tobytes(order="F")


# --- as other tools write them ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd", ".hdr", ".img", ".hdr.gz", ".img.gz"])
def test_what_itk_writes_is_read_where_itk_puts_it(tmp_path: Path, suffix: str, compressed: bool, place: str) -> None:
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(itk_image(VOXELS, PLACES[place]), str(path), compressed)
    volume = read_volume(path)
    assert np.array_equal(volume.data, VOXELS)
    assert volume.data.dtype == np.float32
    assert (volume.grid.shape, volume.grid.note) == ((5, 4, 3), None)
    np.testing.assert_allclose(volume.grid.affine, PLACES[place], rtol=0, atol=1e-4)
    np.testing.assert_allclose(volume.grid.spacing, (1.25, 1.4, 8), rtol=1e-6)
    assert directions_known(volume.grid)
    sitk.WriteImage(itk_image(LABELS.reshape(VOXELS.shape), PLACES[place]), str(path), compressed)
    labels = read_labels(path, like=volume.grid)
    assert np.array_equal(labels.data, LABELS.reshape(VOXELS.shape))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".hdr"])
def test_a_mask_on_such_a_grid_lies_in_itk_and_nibabel_where_its_image_does(
    tmp_path: Path, suffix: str, place: str
) -> None:
    image = itk_image(VOXELS, PLACES[place])
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    volume = read_volume(tmp_path / f"a{suffix}")
    write_on_grid(volume.data > 500, volume.grid, tmp_path / "mask.nii.gz")
    mask = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(mask), sitk.GetArrayFromImage(image) > 500)
    np.testing.assert_allclose(itk_affine(mask), itk_affine(image), rtol=0, atol=1e-4)
    seen = nib.Nifti1Image.from_filename(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(seen.affine, PLACES[place], rtol=0, atol=1e-4)
    np.testing.assert_allclose(seen.header.get_qform(), PLACES[place], rtol=0, atol=1e-4)
    assert seen.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_four_dimensions_of_itk_are_a_cine(tmp_path: Path, suffix: str) -> None:
    image = sitk.JoinSeries([itk_image(CINE[..., t], np.diag([-1.5, -1.6, 8, 1])) for t in range(6)])
    image.SetSpacing((1.5, 1.6, 8, 30))
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"), True)
    volume = read_volume(tmp_path / f"a{suffix}")
    assert np.array_equal(volume.data, CINE)
    assert volume.grid.spacing == pytest.approx((1.5, 1.6, 8))


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
def test_a_pair_of_nibabel_keeps_its_header(tmp_path: Path, kind: type[nib.Nifti1Pair]) -> None:
    image = kind(VOXELS, OBLIQUE)
    image.header.set_slope_inter(2, -7)
    image.set_sform(OBLIQUE, 2)
    image.header["pixdim"][3] = 8
    nib.save(image, tmp_path / "a.hdr")
    single = nib.Nifti1Image(VOXELS, OBLIQUE) if kind is nib.Nifti1Pair else nib.Nifti2Image(VOXELS, OBLIQUE)
    single.header.set_slope_inter(2, -7)
    single.set_sform(OBLIQUE, 2)
    nib.save(single, tmp_path / "b.nii")
    pair, alone = read_volume(tmp_path / "a.hdr"), read_volume(tmp_path / "b.nii")
    assert np.array_equal(pair.data, alone.data)
    assert np.array_equal(pair.grid.affine, alone.grid.affine)
    assert int(pair.grid.header["sform_code"]) == 2
    assert np.array_equal(read_volume(tmp_path / "a.img").data, alone.data)


def test_the_rule_of_nifti_holds_for_pairs(tmp_path: Path) -> None:
    single = save(tmp_path / "a.nii", nifti(VOXELS, sform=np.diag([-1.0, -1, 1, 1]), pixdim=(1.5, 1.5, 10)))
    content = single.read_bytes()
    header = nib.Nifti1Header(content[:348], check=False)
    header["magic"], header["vox_offset"] = b"ni1", 0
    (tmp_path / "p.hdr").write_bytes(header.binaryblock)
    (tmp_path / "p.img").write_bytes(content[352:])
    pair, alone = read_volume(tmp_path / "p.hdr").grid, read_volume(single).grid
    assert pair.spacing == alone.spacing == pytest.approx((1.5, 1.5, 10))


@pytest.mark.parametrize("name", ["a.mgh", "a.mgz"])
@pytest.mark.parametrize("voxels", [VOXELS, CINE])
def test_what_freesurfer_stores_is_read_as_nibabel_reads_it(
    tmp_path: Path, name: str, voxels: NDArray[np.int16]
) -> None:
    nib.save(nib.MGHImage(voxels, OBLIQUE.astype(np.float32)), tmp_path / name)
    volume = read_volume(tmp_path / name)
    assert np.array_equal(volume.data, voxels)
    np.testing.assert_allclose(volume.grid.affine, OBLIQUE, rtol=0, atol=1e-4)
    np.testing.assert_allclose(
        volume.grid.affine, nib.MGHImage.from_filename(tmp_path / name).affine, rtol=0, atol=1e-4
    )


# --- by hand ----------------------------------------------------------------------------------------------------------

DIRECTIONS = "(1.5,0,0) (0,1.6,0) (0,0,8)"
SEQUENCES = {
    "3D Slicer: the first axis": (3, f"none {DIRECTIONS}", "list domain domain domain"),
    "the last axis is a list": (0, f"{DIRECTIONS} none", "domain domain domain list"),
    "the last axis is time": (0, f"{DIRECTIONS} none", "domain domain domain time"),
    "a direction of NaN": (0, f"{DIRECTIONS} (nan,nan,nan)", "domain domain domain time"),
    "no kinds": (3, f"none {DIRECTIONS}", None),
    "the third axis": (1, "(1.5,0,0) (0,1.6,0) none (0,0,8)", "domain domain list domain"),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sequence_is_a_cine_with_its_frames_in_order(tmp_path: Path, name: str) -> None:
    turn, directions, kinds = SEQUENCES[name]
    stored = np.moveaxis(CINE, 3, 3 - turn)
    sizes = " ".join(map(str, stored.shape))
    fields = {"dimension": "4", "sizes": sizes, "space_directions": directions, "kinds": kinds}
    volume = read_volume(nrrd(tmp_path / "a.seq.nrrd", raw(stored), **fields))
    assert np.array_equal(volume.data, CINE)
    np.testing.assert_allclose(volume.grid.affine[:3, :3], np.diag([-1.5, -1.6, 8]), rtol=1e-6)


def test_a_space_with_time_is_a_cine(tmp_path: Path) -> None:
    fields = {
        "dimension": "4",
        "sizes": "5 4 3 6",
        "space": "right-anterior-superior-time",
        "space_directions": "(1.5,0,0,0) (0,1.6,0,0) (0,0,8,0) (0,0,0,30)",
        "space_origin": "(1,2,3,0)",
        "kinds": "domain domain domain time",
    }
    volume = read_volume(nrrd(tmp_path / "a.nrrd", raw(CINE), **fields))
    assert np.array_equal(volume.data, CINE)
    expected = np.array([[1.5, 0, 0, 1], [0, 1.6, 0, 2], [0, 0, 8, 3]], dtype=np.float64)
    np.testing.assert_allclose(volume.grid.affine[:3], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("space", "signs", "noted"),
    [
        ("RAS", (1, 1, 1), False),
        ("left-anterior-superior", (-1, 1, 1), False),
        ("LPS", (-1, -1, 1), False),
        ("scanner-xyz", (-1, -1, 1), True),
    ],
)
def test_the_world_of_an_nrrd(tmp_path: Path, space: str, signs: tuple[int, ...], noted: bool) -> None:
    path = nrrd(tmp_path / "a.nrrd", raw(VOXELS), space=space)
    expected = np.diag((*signs, 1)) @ LPS @ OBLIQUE
    grid = read_volume(path).grid
    np.testing.assert_allclose(grid.affine, expected, rtol=1e-6)
    assert (grid.note is not None) == noted
    if space != "left-anterior-superior":  # which ITK does not turn
        np.testing.assert_allclose(itk_affine(sitk.ReadImage(str(path))), expected, rtol=0, atol=1e-5)


def test_units_become_millimetres(tmp_path: Path) -> None:
    fields = {"space_units": '"cm" "cm" "cm"', "space_directions": "(0.15,0,0) (0,0.16,0) (0,0,0.8)"}
    grid = read_volume(nrrd(tmp_path / "a.nrrd", raw(VOXELS), **fields)).grid
    assert grid.spacing == pytest.approx((1.5, 1.6, 8))
    np.testing.assert_allclose(grid.affine[:3, 3], OBLIQUE[:3, 3] * 10, rtol=1e-6)
    apart = {"space": None, "space_directions": None, "space_origin": None, "spacings": "1500 1600 8000"}
    grid = read_volume(nrrd(tmp_path / "b.nrrd", raw(VOXELS), units='"microns" "um" "µm"', **apart)).grid
    assert grid.spacing == pytest.approx((1.5, 1.6, 8))
    path = nrrd(tmp_path / "c.nrrd", raw(VOXELS), space_units='"in" "in" "in"')
    assert "unit" in only_error(lambda: read_volume(path), path)


def test_spacings_without_directions_state_no_directions(tmp_path: Path) -> None:
    fields = {"space": None, "space_directions": None, "space_origin": None, "kinds": None, "spacings": "1.5 1.6 8"}
    grid = read_volume(nrrd(tmp_path / "a.nrrd", raw(VOXELS), **fields)).grid
    assert grid.spacing == pytest.approx((1.5, 1.6, 8))
    assert not directions_known(grid)
    four = {**fields, "dimension": "4", "sizes": "5 4 3 6", "spacings": "1.5 1.6 8 nan"}
    assert np.array_equal(read_volume(nrrd(tmp_path / "b.nrrd", raw(CINE), **four)).data, CINE)


ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "hex": lambda data: data.hex("\n", 32).encode(),
    "ascii": lambda data: " ".join(map(str, np.frombuffer(data, "<i2"))).encode(),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings_of_nrrd(tmp_path: Path, encoding: str) -> None:
    path = nrrd(tmp_path / "a.nrrd", ENCODINGS[encoding](raw(VOXELS)), encoding=encoding)
    assert np.array_equal(read_volume(path).data, VOXELS)


def test_byte_orders_and_bytes_to_skip(tmp_path: Path) -> None:
    big = VOXELS.astype(">i2").tobytes(order="F")
    assert np.array_equal(read_volume(nrrd(tmp_path / "a.nrrd", big, endian="big")).data, VOXELS)
    assert np.array_equal(read_volume(mha(tmp_path / "a.mha", big, BinaryDataByteOrderMSB="True")).data, VOXELS)
    (tmp_path / "v.raw").write_bytes(b"line\nskipped" + raw(VOXELS))
    for n, skip in enumerate(({"line_skip": "1", "byte_skip": "7"}, {"byte_skip": "-1"})):
        path = nrrd(tmp_path / f"{n}.nhdr", b"", data_file="v.raw", **skip)
        assert np.array_equal(read_volume(path).data, VOXELS)
    for size in ("12", "-1"):
        path = mha(tmp_path / "s.mhd", b"", ElementDataFile="v.raw", HeaderSize=size)
        assert np.array_equal(read_volume(path).data, VOXELS)


def test_a_file_for_each_slice(tmp_path: Path) -> None:
    for k in range(3):
        (tmp_path / f"s{k + 1:02d}.raw").write_bytes(raw(VOXELS[..., k]))
    names = "\n".join(f"s{k:02d}.raw" for k in (1, 2, 3))
    paths = [
        nrrd(tmp_path / "a.nhdr", b"", data_file="s%02d.raw 1 3 1"),
        mha(tmp_path / "a.mhd", b"", ElementDataFile="s%02d.raw 1 3 1"),
        mha(tmp_path / "b.mhd", names.encode(), ElementDataFile="LIST"),
        nrrd(tmp_path / "b.nhdr", b"", data_file=f"LIST\n{names}"),
    ]
    for path in paths[:3]:
        assert np.array_equal(read_volume(path).data, VOXELS), path
        assert [p.name for p in files_of(path)] == [path.name, "s01.raw", "s02.raw", "s03.raw"]
    # in NRRD the list ends the header, so it is the last field
    text = paths[3].read_bytes().decode().replace("\nspace origin", "\n#").split("data file")
    paths[3].write_text(text[0].rstrip("\n") + "\ndata file" + text[1])
    assert np.array_equal(read_volume(paths[3]).data, VOXELS)


def test_trailing_axes_of_one_are_harmless(tmp_path: Path) -> None:
    fields = {
        "dimension": "5",
        "sizes": "5 4 3 1 1",
        "space_directions": f"{DIRECTIONS} none none",
        "kinds": "domain domain domain list vector",
    }
    assert np.array_equal(read_volume(nrrd(tmp_path / "a.nrrd", raw(VOXELS), **fields)).data, VOXELS)
    matrix = " ".join(map(str, np.eye(4, dtype=int).ravel()))
    path = mha(
        tmp_path / "a.mha",
        raw(VOXELS),
        NDims="4",
        DimSize="5 4 3 1",
        ElementSpacing="1.5 1.6 8 1",
        TransformMatrix=matrix,
    )
    assert np.array_equal(read_volume(path).data, VOXELS)


def test_a_matrix_that_is_longer_than_the_spacing_is_noted(tmp_path: Path) -> None:
    path = mha(tmp_path / "a.mha", raw(VOXELS), TransformMatrix="2 0 0 0 2 0 0 0 2")
    grid = read_volume(path).grid
    stated = read_volume(path, spacing="pixdim").grid.spacing
    assert grid.note is not None
    assert "affine is taken" in grid.note
    np.testing.assert_allclose(grid.spacing, 2 * np.array(stated))


def test_a_sheared_place_is_kept(tmp_path: Path) -> None:
    directions = "(1.5,0,0) (0.3,1.6,0) (0,0,8)"
    volume = read_volume(nrrd(tmp_path / "a.nrrd", raw(VOXELS), space_directions=directions))
    assert "shear" in str(volume.grid.note)
    assert volume.grid.voxel_volume == pytest.approx(1.5 * 1.6 * 8)
    write_on_grid(volume.data > 0, volume.grid, tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(
        nib.Nifti1Image.from_filename(tmp_path / "mask.nii.gz").affine, volume.grid.affine, rtol=1e-6
    )


# --- one error --------------------------------------------------------------------------------------------------------


def _without_spacing(folder: Path) -> dict[str, Path]:
    nowhere = {"space": None, "space_directions": None, "space_origin": None}
    flagless = nib.MGHImage(VOXELS, OBLIQUE.astype(np.float32))
    nib.save(flagless, folder / "f.mgh")
    content = bytearray((folder / "f.mgh").read_bytes())
    content[28:30] = bytes(2)
    (folder / "f.mgh").write_bytes(content)
    return {
        "NRRD": nrrd(folder / "a.nrrd", raw(VOXELS), **nowhere),
        "NRRD of NaN": nrrd(folder / "b.nrrd", raw(VOXELS), spacings="1.5 1.6 nan", **nowhere),
        "NRRD of zero": nrrd(folder / "c.nrrd", raw(VOXELS), space_directions="(1.5,0,0) (0,1.6,0) (0,0,0)"),
        "MetaImage": mha(folder / "d.mha", raw(VOXELS), ElementSpacing=None),
        "MetaImage with the thickness": mha(folder / "e.mha", raw(VOXELS), ElementSpacing=None, ElementSize="1 1 8"),
        "MGH": folder / "f.mgh",
    }


@pytest.mark.parametrize(
    "kind", ["NRRD", "NRRD of NaN", "NRRD of zero", "MetaImage", "MetaImage with the thickness", "MGH"]
)
def test_no_spacing_is_an_error_and_not_one_millimetre(tmp_path: Path, kind: str) -> None:
    path = _without_spacing(tmp_path)[kind]
    assert "spacing" in only_error(lambda: read_volume(path), path)
    volume = read_volume(path, spacing=(1.5, 1.6, 8))
    assert volume.grid.spacing == (1.5, 1.6, 8)
    assert np.array_equal(volume.data, VOXELS)


def _flip(data: bytes, place: int) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 255
    return bytes(changed)


GZ, ZIP = gzip.compress(raw(VOXELS)), zlib.compress(raw(VOXELS))
COLOUR = {"dimension": "4", "sizes": "3 5 4 3", "space_directions": f"none {DIRECTIONS}"}
Z = {"CompressedData": "True"}
FOUR = {"dimension": "4", "sizes": "5 4 3 1"}
BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no NRRD": (lambda f: save(f / "a.nrrd", b"not a scan"), "NRRD"),
    "an empty NRRD": (lambda f: save(f / "a.nrrd", b""), "NRRD"),
    "an NRRD of one line": (lambda f: save(f / "a.seq.nrrd", b"NRRD0004\n"), "sizes"),
    "a header without end": (lambda f: save(f / "a.nrrd", b"NRRD0004\n" + b"x" * 2**21), "header"),
    "raw, cut off": (lambda f: nrrd(f / "a.nrrd", raw(VOXELS)[:-7]), "truncated"),
    "gzip, cut off": (lambda f: nrrd(f / "a.nrrd", GZ[:-12], encoding="gzip"), "truncated"),
    "gzip, wrong checksum": (lambda f: nrrd(f / "a.nrrd", _flip(GZ, -6), encoding="gzip"), "damaged"),
    "gzip, changed": (lambda f: nrrd(f / "a.nrrd", _flip(GZ, 40), encoding="gzip"), "damaged"),
    "raw that is said to be gzip": (lambda f: nrrd(f / "a.nrrd", raw(VOXELS), encoding="gzip"), "damaged"),
    "text that is no number": (lambda f: nrrd(f / "a.nrrd", b"x " * 60, encoding="txt"), "damaged"),
    "unknown encoding": (lambda f: nrrd(f / "a.nrrd", raw(VOXELS), encoding="zrl"), "zrl"),
    "no byte order": (lambda f: nrrd(f / "a.nrrd", raw(VOXELS), endian=None), "endian"),
    "colour": (lambda f: nrrd(f / "a.nrrd", bytes(360), kinds="RGB-color domain domain domain", **COLOUR), "rgb"),
    "vectors": (lambda f: nrrd(f / "a.nrrd", bytes(360), kinds="vector domain domain domain", **COLOUR), "vector"),
    "blocks": (lambda f: nrrd(f / "a.nrrd", bytes(60), type="block"), "type"),
    "two dimensions": (
        lambda f: nrrd(
            f / "a.nrrd", bytes(40), dimension="2", sizes="5 4", kinds="domain domain", space_directions=None
        ),
        "2 dimensions",
    ),
    "pictures in time": (
        lambda f: nrrd(f / "a.nrrd", raw(VOXELS), kinds="domain domain time", space_directions=None, spacings="1 1 1"),
        "2 dim",
    ),
    "sizes that contradict": (lambda f: nrrd(f / "a.nrrd", raw(VOXELS), dimension="4"), "contradict"),
    "too many voxels": (lambda f: nrrd(f / "a.nrrd", b"", sizes="4000 4000 4000"), "limit"),
    "a size of zero": (lambda f: nrrd(f / "a.nrrd", b"", sizes="5 4 0"), "size 0"),
    "a great size behind little": (lambda f: nrrd(f / "a.nrrd", GZ, sizes="500 500 1000", encoding="gzip"), "promises"),
    "no voxels beside it": (lambda f: nrrd(f / "a.nhdr", b"", data_file="gone.raw"), "gone.raw"),
    "voxels elsewhere": (lambda f: nrrd(f / "a.nhdr", b"", data_file="/etc/hostname"), "folder"),
    "voxels above": (lambda f: nrrd(f / "a.nhdr", b"", data_file="../x.raw"), "folder"),
    "no MetaImage": (lambda f: save(f / "a.mha", b"junk\n"), "MetaImage"),
    "an empty MetaImage": (lambda f: save(f / "a.mha", b""), "MetaImage"),
    "MetaImage, cut off": (lambda f: mha(f / "a.mha", raw(VOXELS)[:-1]), "truncated"),
    "MetaImage zipped, cut off": (lambda f: mha(f / "a.mha", ZIP[:-20], **Z), "truncated"),
    "MetaImage zipped, changed": (lambda f: mha(f / "a.mha", _flip(ZIP, 30), **Z), "damaged"),
    "MetaImage zipped, wrong checksum": (lambda f: mha(f / "a.mha", _flip(ZIP, -1), **Z), "damaged"),
    "MetaImage without its voxels": (lambda f: mha(f / "a.mhd", b"", ElementDataFile="gone.zraw"), "gone.zraw"),
    "channels": (lambda f: mha(f / "a.mha", bytes(360), ElementNumberOfChannels="3"), "3 values"),
    "ultrasound": (lambda f: mha(f / "a.mha", raw(VOXELS), Kinds="domain domain list"), "2 dim"),
    "a mesh": (lambda f: mha(f / "a.mha", raw(VOXELS), ObjectType="Mesh"), "Mesh"),
    "no MGZ": (lambda f: save(f / "a.mgz", b"not a scan"), "gzip"),
    "no MGH": (lambda f: save(f / "a.mgh", b"not a scan" * 60), "MGH"),
    "Analyze": (lambda f: _analyze(f), "Analyze"),
    "a header without its voxels": (lambda f: _pair(f, voxels=None), "a.img"),
    "voxels without their header": (lambda f: save(f / "a.img", raw(VOXELS)), "a.hdr"),
    "a pair, cut off": (lambda f: _pair(f, voxels=raw(VOXELS)[:-5]), "truncated"),
    "no header": (lambda f: save(f / "a.hdr", b"#?RADIANCE"), "header"),
}


def _analyze(folder: Path) -> Path:
    nib.save(nib.AnalyzeImage(VOXELS, np.diag([1.5, 1.6, 8, 1])), folder / "a.hdr")
    return folder / "a.hdr"


def _pair(folder: Path, voxels: bytes | None) -> Path:
    nib.save(nib.Nifti1Pair(VOXELS, OBLIQUE), folder / "a.hdr")
    (folder / "a.img").unlink() if voxels is None else (folder / "a.img").write_bytes(voxels)
    return folder / "a.hdr"


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_used_is_one_error_and_no_noise(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    make, word = BROKEN[name]
    path = make(tmp_path)
    blamed = path.with_name("a.img") if name == "a pair, cut off" else path
    assert word in only_error(lambda: read_volume(path), blamed)
    assert capfd.readouterr() == ("", "")


def test_a_pipe_in_place_of_voxels_is_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "v.raw")
    path = nrrd(tmp_path / "a.nhdr", b"", data_file="v.raw")
    assert "regular" in only_error(lambda: read_volume(path), tmp_path / "v.raw")


def test_the_files_of_a_volume(tmp_path: Path) -> None:
    image = itk_image(VOXELS, OBLIQUE)
    for name in ("a.nhdr", "b.mhd", "c.hdr", "d.mha"):
        sitk.WriteImage(image, str(tmp_path / name), True)
    named = {
        path: [p.name for p in files_of(tmp_path / path)] for path in ("a.nhdr", "b.mhd", "c.hdr", "c.img", "d.mha")
    }
    assert named == {
        "a.nhdr": ["a.nhdr", "a.raw.gz"],
        "b.mhd": ["b.mhd", "b.zraw"],
        "c.hdr": ["c.hdr", "c.img"],
        "c.img": ["c.hdr", "c.img"],
        "d.mha": ["d.mha"],
    }
    assert files_of(save(tmp_path / "e.nhdr", b"junk")) == (tmp_path / "e.nhdr",)


def test_stems() -> None:
    names = ["a.nii", "b.NII.gz", "c.seq.nrrd", "d.seg.nrrd", "e.x.nrrd", "f.img.gz", "g.mhd", "h.mgz", "i.txt"]
    assert [volume_stem(name) for name in names] == ["a", "b", "c", "d", "e.x", "f", "g", "h", "i.txt"]


def test_any_other_name_says_what_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read_volume(save(tmp_path / "a.xyz", b"x"))
    assert ".nrrd" in str(error.value.remedy)
