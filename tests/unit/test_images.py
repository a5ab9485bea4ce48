"""Pictures of every kind read right, exact area averaging. All pictures are generated."""

from __future__ import annotations

import logging
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import Compose
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from cgdpm_med.data.transforms import Degraded
from cgdpm_med.files import InputError
from cgdpm_med.images import (
    AppendClassd,
    CentreSquared,
    LoadPictured,
    Picture,
    area_resize,
    image_datalist,
    largest_centre_square,
    read_picture,
    readable_pictures,
    write_picture,
)
from cgdpm_med.metrics.masks import consistency


def colours(rng: np.random.Generator, height: int = 5, width: int = 7, channels: int = 3) -> NDArray[np.uint8]:
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def scaled(array: NDArray[Any], top: float = 255) -> torch.Tensor:
    """(H, W, C) levels to (C, H, W) in [-1, 1], in float64."""
    return torch.from_numpy(2 * np.moveaxis(array.astype(np.float64), -1, 0) / top - 1).float()


def assert_pixels(path: Path, expected: torch.Tensor) -> Picture:
    picture = read_picture(path)
    assert picture.pixels.dtype == torch.float32
    torch.testing.assert_close(picture.pixels, expected, atol=1e-6, rtol=0)
    return picture


# --- reading ----------------------------------------------------------------------------------------------------------


def test_known_values(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[[0, 255, 51], [204, 0, 255]]], np.uint8)).save(path)
    pixels = read_picture(path).pixels
    assert pixels.shape == (3, 1, 2)
    torch.testing.assert_close(pixels[:, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))
    torch.testing.assert_close(pixels[:, 0, 1], torch.tensor([0.6, -1.0, 1.0]))


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "webp"])
def test_rgb_is_read_exactly(suffix: str, tmp_path: Path, rng: np.random.Generator) -> None:
    array = colours(rng)
    path = tmp_path / f"a.{suffix}"
    exactly: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(array).save(path, **exactly)
    picture = assert_pixels(path, scaled(array))
    assert (picture.bits, picture.grey) == (8, False)


def test_grey_and_black_and_white(tmp_path: Path, rng: np.random.Generator) -> None:
    array = colours(rng, channels=1)
    Image.fromarray(array[..., 0]).save(tmp_path / "grey.png")
    assert assert_pixels(tmp_path / "grey.png", scaled(array.repeat(3, 2))).grey
    Image.fromarray(array[..., 0] > 100).save(tmp_path / "bw.png")
    assert assert_pixels(tmp_path / "bw.png", scaled((array > 100).repeat(3, 2), top=1)).grey


def test_palette(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png")
    assert_pixels(tmp_path / "p.png", scaled(np.array([[[10, 20, 30], [200, 100, 0]]])))
    image.save(tmp_path / "transparent.png", transparency=0)
    assert_pixels(tmp_path / "transparent.png", scaled(np.array([[[255, 255, 255], [200, 100, 0]]])))


def test_cmyk(tmp_path: Path) -> None:
    # white, cyan, half magenta, black
    cmyk = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 128, 0, 0], [0, 0, 0, 255]]], np.uint8)
    Image.fromarray(cmyk, mode="CMYK").save(tmp_path / "a.tif")
    rgb = np.array([[[255, 255, 255], [0, 255, 255], [255, 127, 255], [0, 0, 0]]])
    assert_pixels(tmp_path / "a.tif", scaled(rgb))
    Image.fromarray(cmyk.repeat(8, 0).repeat(8, 1), mode="CMYK").save(tmp_path / "a.jpg", quality=100, subsampling=0)
    pixels = read_picture(tmp_path / "a.jpg").pixels[:, 4, 4::8]
    assert (pixels - scaled(rgb)[:, 0]).abs().max() < 0.05


def test_transparency_lies_over_white(tmp_path: Path, rng: np.random.Generator) -> None:
    rgba = colours(rng, channels=4)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    alpha = rgba[..., 3:] / 255
    assert_pixels(tmp_path / "rgba.png", scaled(alpha * rgba[..., :3] + (1 - alpha) * 255))
    la = Image.fromarray(rgba[..., :2], mode="LA")
    la.save(tmp_path / "la.png")
    alpha = rgba[..., 1:2] / 255
    assert assert_pixels(tmp_path / "la.png", scaled((alpha * rgba[..., :1] + (1 - alpha) * 255).repeat(3, 2))).grey


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits(suffix: str, tmp_path: Path, rng: np.random.Generator) -> None:
    array = rng.integers(0, 65536, (5, 7), dtype=np.uint16)
    path = tmp_path / f"a.{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    picture = assert_pixels(path, scaled(array[..., None].repeat(3, 2), top=65535))
    assert (picture.bits, picture.grey) == (16, True)


@pytest.mark.parametrize(("suffix", "channels"), [("png", 2), ("png", 3), ("png", 4), ("tif", 3), ("tif", 4)])
def test_colour_of_sixteen_bits_is_refused_and_not_halved(suffix: str, channels: int, tmp_path: Path) -> None:
    array = np.zeros((5, 7, channels), np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(tmp_path / f"a.{suffix}"))
    with pytest.raises(InputError, match="16 bits") as caught:
        read_picture(tmp_path / f"a.{suffix}")
    assert caught.value.path == tmp_path / f"a.{suffix}"


@pytest.mark.parametrize("plain", [False, True])
def test_pixmaps_of_one_and_of_two_bytes(plain: bool, tmp_path: Path) -> None:
    """Netpbm's own format: the brightest level stands in the header."""
    for top, order in ((255, ">u1"), (65535, ">u2")):
        levels = np.array([[[0, top, 51 * top // 255]]])
        body = b"0 %d %d" % (top, 51 * top // 255) if plain else levels.astype(order).tobytes()
        (tmp_path / f"{top}.ppm").write_bytes(b"P%d 1 1 %d\n" % (3 if plain else 6, top) + body)
    assert_pixels(tmp_path / "255.ppm", scaled(np.array([[[0, 255, 51]]])))
    with pytest.raises(InputError, match="16 bits"):
        read_picture(tmp_path / "65535.ppm")


def test_sixteen_bits_a_pixel_are_not_sixteen_a_channel(tmp_path: Path) -> None:
    """A BMP of 5, 6 and 5 bits: one pixel of full red, one of full green."""
    pixels = np.array([0b11111 << 11, 0b111111 << 5], "<u2").tobytes()
    masks = np.array([0b11111 << 11, 0b111111 << 5, 0b11111], "<u4").tobytes()
    information = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 16, 3, 4, 0, 0, 0, 0)
    header = b"BM" + struct.pack("<IHHI", 14 + 40 + 12 + 4, 0, 0, 14 + 40 + 12)
    (tmp_path / "a.bmp").write_bytes(header + information + masks + pixels)
    assert_pixels(tmp_path / "a.bmp", scaled(np.array([[[255, 0, 0], [0, 255, 0]]])))


@pytest.mark.parametrize("compression", ["Deflate", "LZW", "PackBits"])
def test_compressed_sixteen_bit_tiff(compression: str, tmp_path: Path, rng: np.random.Generator) -> None:
    array = rng.integers(0, 65536, (40, 50), dtype=np.uint16)
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(tmp_path / "a.tif"))
    writer.SetUseCompression(True)
    writer.SetCompressor(compression)
    writer.Execute(sitk.GetImageFromArray(array))
    assert_pixels(tmp_path / "a.tif", scaled(array[..., None].repeat(3, 2), top=65535))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(("channels", "bits"), [(3, 8), (1, 8), (1, 16)])
def test_exif_rotation(
    orientation: int, suffix: str, channels: int, bits: int, tmp_path: Path, rng: np.random.Generator
) -> None:
    array = colours(rng, channels=channels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = array if channels == 3 else array[..., 0]
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(stored if bits == 8 else 257 * stored.astype(np.uint16)).save(path, exif=exif)
    upright = np.asarray(_transposed(array.repeat(3 // channels, 2), orientation))
    picture = assert_pixels(path, scaled(upright))
    assert picture.bits == bits
    assert 0x0112 not in picture.exif


def _transposed(array: NDArray[np.uint8], orientation: int) -> Image.Image:
    """Pillow's own reading of the tag."""
    image = Image.fromarray(array)
    image.getexif()[0x0112] = orientation
    return ImageOps.exif_transpose(image)


# --- files that cannot be used ----------------------------------------------------------------------------------------


def damaged(folder: Path, rng: np.random.Generator) -> dict[str, str]:
    """Writes broken pictures; name -> what the error says."""
    noise = Image.fromarray(colours(rng, 64, 64))
    for suffix in ("png", "jpg"):
        noise.save(folder / f"cut.{suffix}")
        whole = (folder / f"cut.{suffix}").read_bytes()
        (folder / f"cut.{suffix}").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("<html>404</html>")
    (folder / "empty.png").write_bytes(b"")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((40, 40), np.uint16)), str(folder / "deep.png"))
    whole = (folder / "deep.png").read_bytes()
    (folder / "deep.png").write_bytes(whole[:60])
    Image.fromarray(np.zeros((2, 2), np.float32)).save(folder / "float.tif")
    noise.save(folder / "pages.tif", save_all=True, append_images=[noise])
    return {
        "cut.png": "not a readable picture",
        "cut.jpg": "not a readable picture",
        "text.jpg": "not a readable picture",
        "empty.png": "not a readable picture",
        "deep.png": "not a readable picture",
        "float.tif": "floating-point",
        "pages.tif": "2 pages",
    }


def test_broken_pictures_are_named(tmp_path: Path, rng: np.random.Generator) -> None:
    for name, message in damaged(tmp_path, rng).items():
        with pytest.raises(InputError, match=f"{name}: .*{message}"):
            read_picture(tmp_path / name)
    with pytest.raises(InputError, match="absent"):
        read_picture(tmp_path / "absent.png")


def test_broken_and_small_pictures_are_skipped_with_a_count(
    tmp_path: Path, rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    broken = damaged(tmp_path, rng)
    Image.fromarray(colours(rng, 20, 31)).save(tmp_path / "good.png")
    Image.fromarray(colours(rng, 40, 19)).save(tmp_path / "narrow.png")
    items = image_datalist(tmp_path)
    seen: list[int] = []
    with caplog.at_level(logging.WARNING):
        kept, skipped = readable_pictures(items, min_side=20, workers=2, progress=seen.append)
    assert [item["key"] for item in kept] == ["good.png"]
    assert {error.path.name for error in skipped if error.path} == {*broken, "narrow.png"}
    assert sum(seen) == len(items) == len(broken) + 2
    for name in (*broken, "narrow.png"):
        assert f"{name}: " in caplog.text
    assert "19 x 40 pixels, below 20" in caplog.text
    assert "8 of 9 pictures were skipped" in caplog.text
    with pytest.raises(InputError, match="none of 9 pictures can be used"):
        readable_pictures(items, min_side=21)


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "bits", "grey"),
    [
        *((name, 8, grey) for name in ("a.png", "a.tif") for grey in (False, True)),
        *((n, 16, True) for n in ("a.png", "a.tiff")),
    ],
)
def test_every_level_survives_a_round_trip(name: str, bits: int, grey: bool, tmp_path: Path) -> None:
    levels = np.arange(2**bits).reshape(2 ** (bits // 2), -1)
    array = np.stack([levels] * 3 if grey else [levels, levels[::-1], levels.T], axis=-1)
    written = write_picture(scaled(array, 2**bits - 1), tmp_path / name, Picture(torch.zeros(0), bits=bits, grey=grey))
    decoded = sitk.GetArrayFromImage(sitk.ReadImage(str(written)))
    np.testing.assert_array_equal(decoded, array[..., 0] if grey else array)
    picture = assert_pixels(written, scaled(array, 2**bits - 1))
    assert (picture.bits, picture.grey) == (bits, grey)


def test_values_are_clipped_and_rounded(tmp_path: Path) -> None:
    pixels = torch.tensor([-3.0, 3.0, 0.6 / 127.5 - 1, 0.4 / 127.5 - 1]).reshape(1, 1, 4).expand(3, 1, 4)
    write_picture(pixels, tmp_path / "a.png")
    assert np.asarray(Image.open(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 255, 1, 0]


@pytest.mark.parametrize(("suffix", "bits"), [("png", 8), ("png", 16), ("tif", 8), ("tif", 16), ("jpg", 8)])
def test_profile_and_exif_are_kept(suffix: str, bits: int, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if bits == 16:
        profile = profile[:16] + b"GRAY" + profile[20:]
    exif = Image.Exif()
    exif[0x010E] = "a phantom"
    exif[0x0112] = 6
    exif.get_ifd(0x8769).update({0xA002: 4, 0xA003: 4, 0x829D: 2.5})
    array = np.zeros((4, 4, 3) if bits == 8 else (4, 4), np.uint8)
    Image.fromarray(array).save(tmp_path / "in.jpg", exif=exif, icc_profile=profile)
    like = read_picture(tmp_path / "in.jpg")
    path = write_picture(torch.zeros(3, 16, 12), tmp_path / f"out.{suffix}", like, bits=bits)
    with Image.open(path) as image:
        image.load()
        assert image.size == (12, 16)
        assert image.info["icc_profile"] == profile
        tags = image.getexif()
        assert tags[0x010E] == "a phantom"
        assert tags.get(0x0112, 1) == 1
        details = tags.get_ifd(0x8769)
        assert (details[0xA002], details[0xA003], float(details[0x829D])) == (12, 16, 2.5)
    assert read_picture(path).icc == profile
    assert {file.name for file in tmp_path.iterdir()} == {"in.jpg", path.name}


def test_a_profile_of_another_colour_space_is_dropped(tmp_path: Path) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png", icc_profile=lab)
    assert read_picture(tmp_path / "a.png").icc is None


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.jpg has no 16 bits"):
        write_picture(torch.zeros(1, 2, 2), tmp_path / "a.jpg", bits=16)
    with pytest.raises(InputError, match="16 bits"):
        write_picture(torch.zeros(3, 2, 2), tmp_path / "a.png", bits=16)
    with pytest.raises(InputError, match=r"not written as \.gif"):
        write_picture(torch.zeros(3, 2, 2), tmp_path / "a.gif")
    assert list(tmp_path.iterdir()) == []


# --- transforms -------------------------------------------------------------------------------------------------------


def test_area_average_by_hand() -> None:
    # three pixels become two: each output covers one and a half inputs
    row = torch.tensor([[[[3.0, 6.0, 12.0]]]])
    torch.testing.assert_close(area_resize(row, (1, 2)), torch.tensor([[[[4.0, 10.0]]]]))


@pytest.mark.parametrize(("old", "new"), [((7, 5), (3, 4)), ((12, 8), (4, 4)), ((12, 8), (6, 4)), ((5, 9), (5, 2))])
def test_area_average_equals_counting_small_squares(old: tuple[int, int], new: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *old, generator=torch.Generator().manual_seed(0))
    # cut every pixel into new x new small squares; every output pixel is then a block of old x old of them
    fine = image.repeat_interleave(new[0], 2).repeat_interleave(new[1], 3)
    expected = fine.reshape(2, 3, new[0], old[0], new[1], old[1]).mean(dim=(3, 5))
    torch.testing.assert_close(area_resize(image, new), expected)


def test_area_average_does_not_enlarge() -> None:
    with pytest.raises(ValueError, match="cannot become"):
        area_resize(torch.zeros(1, 1, 4, 8), (4, 9))


def test_largest_centre_square() -> None:
    image = torch.arange(5 * 8).reshape(1, 5, 8)
    assert torch.equal(largest_centre_square(image), image[:, :, 1:6])
    assert torch.equal(largest_centre_square(image.mT), image.mT[:, 1:6])


def test_the_pipeline_of_a_super_resolution_bundle(tmp_path: Path, rng: np.random.Generator) -> None:
    for index in range(3):
        Image.fromarray(colours(rng, 20 + index, 26)).save(tmp_path / f"{index}.png")
    items = [{**item, "class": 700 + i} for i, item in enumerate(image_datalist(tmp_path))]
    steps = [LoadPictured("image"), CentreSquared("image", 16), Degraded("image", 4), AppendClassd()]
    (batch,) = DataLoader(Dataset(items, Compose(steps)), batch_size=3)
    assert batch["image"].shape == (3, 3, 16, 16)
    assert batch["condition"].shape == (3, 4, 4, 4)
    assert torch.equal(batch["condition"][:, 3], torch.tensor([700.0, 701.0, 702.0]).reshape(3, 1, 1).expand(3, 4, 4))
    assert batch["key"] == ["0.png", "1.png", "2.png"]
    # the truth, averaged down, is the condition itself
    low, truth = (batch["condition"][:, :3] + 1) / 2, (batch["image"] + 1) / 2
    assert consistency(low, area_resize(truth, (4, 4))) == pytest.approx(0, abs=1e-9)
    assert math.isclose(float(batch["image"].mean()), float(batch["condition"][:, :3].mean()), abs_tol=1e-6)


def test_a_picture_too_small_is_named(tmp_path: Path, rng: np.random.Generator) -> None:
    Image.fromarray(colours(rng, 15, 40)).save(tmp_path / "small.png")
    (item,) = image_datalist(tmp_path)
    with pytest.raises(InputError, match=r"small\.png: a picture of \(15, 40\) pixels is smaller than 16 x 16"):
        CentreSquared("image", 16)(LoadPictured("image")(dict(item.items())))


@pytest.mark.parametrize("fault", ["unit as text", "software as a number", "a negative resolution"])
def test_exif_of_odd_types_is_left_out_and_the_rest_kept(fault: str, tmp_path: Path) -> None:
    tag, kind, content = {
        "unit as text": (0x0128, 2, b"2\0\0\0"),
        "software as a number": (0x0131, 11, struct.pack("<f", 1.5)),
        "a negative resolution": (0x011A, 10, struct.pack("<ii", -1, 1)),
    }[fault]
    count = 2 if kind == 2 else 1
    entries = [(0x010F, 2, 4, b"abc\0"), (tag, kind, count, content)]
    inline, after = b"", b""
    for number, form, length, value in entries:
        place = value if len(value) == 4 else struct.pack("<I", 8 + 2 + 12 * len(entries) + 4)
        after += b"" if len(value) == 4 else value
        inline += struct.pack("<HHI", number, form, length) + place
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + inline + struct.pack("<I", 0) + after
    Image.new("RGB", (8, 8)).save(tmp_path / "in.jpg", exif=exif)
    read = read_picture(tmp_path / "in.jpg")
    write_picture(read.pixels, tmp_path / "out.jpg", read)
    with Image.open(tmp_path / "out.jpg") as written:
        assert written.getexif().get(0x010F) == "abc"
        assert tag not in written.getexif()
