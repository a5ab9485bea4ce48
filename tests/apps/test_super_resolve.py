"""Super-resolution of pictures and volumes: geometry, windows, spread, files. The networks are known functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from small_resolver import BUNDLE, save_small_model, small_unet
from torch import Tensor, nn
from typer.testing import CliRunner

from cgdpm_med.apps.cli import app
from cgdpm_med.apps.load_resolver import load_resolver
from cgdpm_med.apps.refined_picture import super_resolve_picture
from cgdpm_med.apps.refined_volume import super_resolve_volume
from cgdpm_med.apps.resolver import SuperResolver, spread
from cgdpm_med.apps.super_resolve import find_images, super_resolve
from cgdpm_med.diffusion.ensemble import KeyedNoise
from cgdpm_med.diffusion.schedule import NoiseSchedule
from cgdpm_med.diffusion.targets import ImageTarget
from cgdpm_med.files import InputError
from cgdpm_med.images import Picture, read_picture, write_picture
from cgdpm_med.inference.bundles import bundle_path
from cgdpm_med.inference.predictor import DiffusionPredictor
from cgdpm_med.studies.folders import FolderWarning
from cgdpm_med.volumes import read_volume, refined_grid

SCHEDULE = NoiseSchedule(prediction_type="sample")
FACTOR = 2


class Nearest(nn.Module):
    """x_0 is the condition with every pixel repeated, plus ``noise`` times x_t."""

    def __init__(self, factor: int = FACTOR, noise: float = 0.0) -> None:
        super().__init__()
        self.factor, self.noise = factor, noise
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return F.interpolate(context, scale_factor=float(self.factor)) + self.noise * x_t


def resolver(denoiser: nn.Module | None = None, window: int | None = None, **changes: Any) -> SuperResolver:
    target = ImageTarget(changes.pop("out_channels", 3), changes.pop("size_factor", FACTOR))
    settings: dict[str, Any] = {"steps": 1, "members": 1, "target": target}
    predictor = DiffusionPredictor(
        denoiser or Nearest(), schedule=SCHEDULE, precision="float32", **{**settings, **changes}
    )
    return SuperResolver(predictor, window)


def repeated(array: np.ndarray, factor: int = FACTOR) -> np.ndarray:
    return array.repeat(factor, 0).repeat(factor, 1)


# --- any size ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(5, 7), (8, 3), (16, 16)])
@pytest.mark.parametrize("window", [None, 32])
def test_any_size_comes_out_with_its_own(size: tuple[int, int], window: int | None) -> None:
    network = resolver(small_unet(cond_scale=2), window)
    out = network(torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1)) - 0.5)
    assert out.shape == (1, 2, 3, 2 * size[0], 2 * size[1])


def test_padding_stays_outside() -> None:
    """Sizes the network cannot take are padded at the end, and the padding cut off again."""
    image = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(1)) - 0.5
    seen: list[Tensor] = []

    class Watched(Nearest):
        def forward(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
            seen.append(context)
            return super().forward(x_t, t, context)

    network = resolver(Watched())
    network.multiple = 8
    assert torch.equal(network(image)[0], F.interpolate(image, scale_factor=2.0))
    torch.testing.assert_close(seen[0], F.pad(image, (0, 1, 0, 3), mode="replicate"))


def windowed(image: Tensor, window_batch: int) -> Tensor:
    network = resolver(small_unet(), window=32, size_factor=4)
    network.window_batch = window_batch
    return network(image)


@pytest.fixture(scope="module")
def large() -> tuple[Tensor, Tensor]:
    """A smooth image of 50 x 75 pixels, and it at 200 x 300 through windows of 32."""
    rows, columns = torch.linspace(0, 3, 50)[:, None], torch.linspace(0, 4, 75)
    image = torch.stack([(rows + columns).sin(), (rows * columns).cos(), (rows - columns).cos()])[None] * 0.8
    return image, windowed(image, window_batch=8)


@pytest.mark.parametrize("window_batch", [1, 3])
def test_window_batch_changes_nothing(large: tuple[Tensor, Tensor], window_batch: int) -> None:
    image, expected = large
    # kernels choose the order of their sums by the size of the batch: some tens of float32's 1.2e-7
    torch.testing.assert_close(windowed(image, window_batch), expected, atol=4e-6, rtol=0)


def test_no_seams(large: tuple[Tensor, Tensor]) -> None:
    _, out = large
    assert out.shape == (1, 1, 3, 200, 300)
    for axis, size in ((3, 200), (4, 300)):
        gradient = out.diff(dim=axis).abs().mean(dim=[d for d in range(5) if d != axis])
        borders = range(16, size - 8, 16)  # windows of 32 begin and end at multiples of 16
        at = gradient[[b - 1 for b in borders]].mean()
        elsewhere = gradient[[b - 1 + shift for b in borders for shift in (-4, 4)]].mean()
        assert abs(at / elsewhere - 1) < 0.1


def test_a_large_window_is_the_whole_image() -> None:
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)) - 0.5
    network = small_unet(cond_scale=2)
    torch.testing.assert_close(resolver(network, 64)(image), resolver(network)(image))


def test_progress_reaches_one() -> None:
    seen: list[float] = []
    network = resolver(steps=3, members=2, max_batch=1)
    network(torch.zeros(1, 3, 4, 4), progress=seen.append)
    assert seen == pytest.approx([i / 6 for i in range(1, 7)])


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4, not 30"):
        resolver(small_unet(), window=30, size_factor=4)
    with pytest.raises(ValueError, match="ImageTarget"):
        SuperResolver(DiffusionPredictor(Nearest(), schedule=SCHEDULE))


def test_grey_and_colour_meet_the_networks_channels() -> None:
    class Channels(Nearest):
        def forward(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
            return super().forward(x_t, t, context)

    grey = torch.tensor([[[[-0.5, 0.5]]]])
    assert torch.equal(resolver(Channels())(grey), F.interpolate(grey, scale_factor=2.0).expand(1, 1, 3, 2, 4))
    single = resolver(Channels(), out_channels=1)
    single.channels = 1
    colour = torch.tensor([-0.6, 0.0, 0.3]).reshape(1, 3, 1, 1)
    torch.testing.assert_close(single(colour), torch.full((1, 1, 1, 2, 2), -0.1))


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "bits", "channels"),
    [("a.png", 8, 1), ("a.png", 8, 3), ("a.tiff", 8, 1), ("a.tiff", 8, 3), ("a.png", 16, 1), ("a.tif", 16, 1)],
)
def test_pictures_keep_format_and_depth(
    name: str, bits: int, channels: int, tmp_path: Path, rng: np.random.Generator
) -> None:
    levels = rng.integers(0, 2**bits, (5, 6, channels))
    pixels = torch.from_numpy(np.moveaxis(2 * levels / (2**bits - 1) - 1, -1, 0)).float()
    write_picture(pixels, tmp_path / name, bits=bits)
    result = super_resolve_picture(resolver(), tmp_path / name, tmp_path / "out")
    assert result.files == [tmp_path / "out" / name]
    assert result.mean_spread is None
    refined = read_picture(result.files[0])
    assert (refined.bits, refined.grey) == (bits, channels == 1)
    expected = F.interpolate(pixels[None], scale_factor=2.0)[0].expand(3, -1, -1)
    torch.testing.assert_close(refined.pixels, expected, atol=1e-6, rtol=0)


def test_rotation_profile_and_exif(tmp_path: Path, rng: np.random.Generator) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a phantom"
    array = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png", exif=exif)
    (file,) = super_resolve_picture(resolver(), tmp_path / "a.png", tmp_path / "out").files
    with Image.open(file) as image:
        np.testing.assert_array_equal(np.asarray(image), repeated(np.rot90(array, -1)))
        assert image.getexif().get(0x0112, 1) == 1
        assert image.getexif()[0x010E] == "a phantom"


def test_samples_and_their_spread(tmp_path: Path) -> None:
    """One step from x_T: member k is the condition plus a tenth of its own noise, grey as the picture is."""
    path = write_picture(torch.zeros(1, 8, 8), tmp_path / "a.png", bits=16)
    result = super_resolve_picture(resolver(Nearest(noise=0.1), members=4), path, tmp_path / "out", key="folder/a")
    names = ["a.png", *(f"a_sample{k}.png" for k in range(4)), "a_std.png"]
    assert [file.name for file in result.files] == names
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(names)
    noise = KeyedNoise(0, [("folder/a", k) for k in range(4)]).randn((4, 3, 16, 16))
    members = read_picture(path).pixels[:1, :1, :1] + 0.1 * noise.mean(dim=1, keepdim=True)
    for file, expected in zip(result.files[1:5], members, strict=True):
        torch.testing.assert_close(read_picture(file).pixels, expected.expand(3, -1, -1), atol=4e-5, rtol=0)
    torch.testing.assert_close(read_picture(result.files[0]).pixels[:1], members.mean(0), atol=4e-5, rtol=0)
    deviation = members.var(0, correction=0).mean(0).sqrt() / 2
    written = np.asarray(Image.open(result.files[-1])) / 65535
    np.testing.assert_allclose(written, deviation, atol=1e-5)
    assert result.mean_spread == pytest.approx(float(deviation.mean()), rel=1e-5)


def test_spread_by_hand() -> None:
    members = torch.tensor([[[[1.0]], [[0.0]]], [[[3.0]], [[0.0]]]])  # two members of two channels
    assert spread(members).tolist() == [[pytest.approx(0.5**0.5)]]


def test_an_input_is_never_overwritten(tmp_path: Path) -> None:
    path = write_picture(torch.zeros(3, 4, 4), tmp_path / "a.png")
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"a\.png: would be overwritten"):
        super_resolve_picture(resolver(), path, tmp_path)
    assert path.read_bytes() == before


# --- volumes ----------------------------------------------------------------------------------------------------------

OBLIQUE = np.array([[1.1, -0.4, 0.3, -20], [0.5, 1.2, -0.2, 11], [0.1, 0.2, 7.9, 5], [0, 0, 0, 1]])


def orthogonal(spacing: tuple[float, float, float]) -> np.ndarray:
    """An oblique affine without shear."""
    q, _ = np.linalg.qr(OBLIQUE[:3, :3])
    affine = OBLIQUE.copy()
    affine[:3, :3] = q * spacing
    return affine


def headers() -> dict[str, nib.Nifti1Header]:
    """Spacing 1.3 x 0.9 x 8 mm, stated in the ways found in the wild."""
    made = {}
    for name in ("sform", "qform", "both", "acdc", "none"):
        header = nib.Nifti1Header()
        header.set_data_shape((6, 5, 3))
        header.set_data_dtype(np.int16)
        if name in ("sform", "both"):
            header.set_sform(orthogonal((1.3, 0.9, 8)), 1)
        if name in ("qform", "both"):
            header.set_qform(orthogonal((1.3, 0.9, 8)), 1)
        if name == "acdc":
            header.set_sform(np.diag([-1, -1, 1, 1]), 2)
        header["pixdim"][1:4] = (1.3, 0.9, 8)
        made[name] = header
    return made


def write_volume(path: Path, header: nib.Nifti1Header, data: np.ndarray) -> Path:
    with open(path, "wb") as file:
        header = header.copy()
        header["vox_offset"] = 352
        header["magic"] = b"n+1"
        header.write_to(file)
        file.write(b"\0" * (352 - file.tell()))
        file.write(data.astype(np.int16).tobytes(order="F"))
    return path


def centres(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """World coordinates of the centre of mass of each label."""
    return np.array([affine[:3] @ [*np.argwhere(data == label).mean(0), 1] for label in (1, 2, 3)])


@pytest.mark.filterwarnings("ignore::cgdpm_med.volumes.HeaderWarning")
@pytest.mark.parametrize("kind", headers())
def test_landmarks_stay_in_place(kind: str, tmp_path: Path) -> None:
    data = np.zeros((6, 5, 3), np.int16)
    data[1, 2, 0], data[4:6, 0:2, 1], data[0, 4, 2] = 1, 2, 3
    path = write_volume(tmp_path / "case.nii", headers()[kind], data)
    (file,) = super_resolve_volume(resolver(Nearest(3), size_factor=3), path, tmp_path / "out").files
    assert file.name == "case.nii.gz"
    coarse, fine = read_volume(path), read_volume(file)
    assert fine.data.shape == (18, 15, 3)
    np.testing.assert_allclose(fine.data, repeated(data, 3), atol=1e-5)
    expected = centres(data, coarse.grid.affine)
    np.testing.assert_allclose(centres(np.rint(fine.data), fine.grid.affine), expected, atol=0.01)
    # also for programs that know nothing of this package
    image = nib.load(file)
    np.testing.assert_allclose(centres(np.rint(image.get_fdata()), image.affine), expected, atol=0.01)
    np.testing.assert_allclose(image.header.get_zooms(), (1.3 / 3, 0.3, 8), rtol=1e-6)
    if image.header["qform_code"] > 0:
        np.testing.assert_allclose(image.header.get_qform(), image.affine, atol=1e-4)


def test_a_sheared_grid_is_refined_by_its_sform(tmp_path: Path) -> None:
    header = headers()["sform"]
    header.set_sform(OBLIQUE, 1)
    header["pixdim"][1:4] = np.linalg.norm(OBLIQUE[:3, :3], axis=0)
    data = np.arange(90).reshape(6, 5, 3)
    grid = read_volume(write_volume(tmp_path / "a.nii", header, data)).grid
    fine = refined_grid(grid, (2, 4, 1))
    assert fine.shape == (12, 20, 3)
    for index in ((0, 0, 0), (5, 2, 1)):
        # the mean place of the parts of a voxel is the place of the voxel
        parts = [(2 * index[0] + i, 4 * index[1] + j, index[2], 1) for i in range(2) for j in range(4)]
        centre = np.mean([fine.affine @ part for part in parts], axis=0)
        np.testing.assert_allclose(centre, grid.affine @ (*index, 1), atol=1e-4)


@pytest.mark.parametrize("factors", [(2, 2), (0, 1, 1), (1.5, 1, 1)])
def test_bad_factors(factors: tuple, tmp_path: Path) -> None:
    grid = read_volume(write_volume(tmp_path / "a.nii", headers()["sform"], np.arange(90).reshape(6, 5, 3))).grid
    with pytest.raises(ValueError, match="whole numbers"):
        refined_grid(grid, factors)


def test_spread_of_a_volume_is_in_its_own_units(tmp_path: Path) -> None:
    data = np.full((6, 5, 3), 500)
    data[0, 0, 0], data[5, 4, 2] = -1000, 2000  # 500 is the middle of the range
    data[3, 3, 1] = 600
    path = write_volume(tmp_path / "case.nii", headers()["both"], data)
    network = resolver(Nearest(noise=0.01), members=3)
    result = super_resolve_volume(network, path, tmp_path / "out", key="case")
    assert [file.name for file in result.files] == ["case.nii.gz", "case_samples.nii.gz", "case_std.nii.gz"]
    mean, samples, deviation = (nib.load(file).get_fdata() for file in result.files)
    assert samples.shape == (12, 10, 3, 3)
    np.testing.assert_allclose(samples.mean(-1), mean, atol=1e-2)
    np.testing.assert_allclose(samples.std(-1), deviation, atol=1e-2)
    noise = KeyedNoise(0, [("case/1", k) for k in range(3)]).randn((3, 3, 12, 10)).mean(1)
    drawn = repeated(data[:, :, 1])[..., None] + np.moveaxis(0.01 * noise.numpy() * 1500, 0, -1)
    np.testing.assert_allclose(samples[:, :, 1], drawn, atol=1e-2)
    assert result.mean_spread == pytest.approx(deviation.mean() / 3000, rel=1e-4)


# --- folders and the command ------------------------------------------------------------------------------------------


def test_a_folder_is_mirrored_and_bad_files_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in", tmp_path / "in" / "out"
    write_picture(torch.zeros(3, 4, 4), source / "b" / "x.png")
    write_picture(torch.zeros(3, 4, 4), source / "b" / "x.tif")
    write_picture(torch.zeros(3, 4, 4), source / "y.jpg")
    write_volume(source / "z.nii", headers()["both"], np.arange(90).reshape(6, 5, 3))
    (source / "broken.png").write_bytes(b"nothing")
    for _ in range(2):  # results of the first run are no inputs of the second
        result = super_resolve(resolver(), source, out)
        written = [Path(file).relative_to(out).as_posix() for case in result["cases"] for file in case["files"]]
        assert sorted(written) == ["b/x.png", "y.jpg", "z.nii.gz"]
        assert set(result["failed"]) == {"broken", "b/x.tif"}
    errors = capsys.readouterr().err
    assert "broken.png: is not a readable picture" in errors
    assert "x.tif: has the name of x.png" in errors


def test_a_picture_that_does_not_fit_into_the_memory_fails_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Small(Nearest):
        def forward(self, x_t: Tensor, t: Tensor, context: Tensor) -> Tensor:
            if context.shape[-1] > 8:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes")
            return super().forward(x_t, t, context)

    for name, side in (("a", 16), ("b", 4)):
        write_picture(torch.zeros(3, side, side), tmp_path / "in" / f"{name}.png")
    result = super_resolve(resolver(Small()), tmp_path / "in", tmp_path / "out")
    assert list(result["failed"]) == ["a"]
    assert [Path(case["input"]).name for case in result["cases"]] == ["b.png"]
    assert "a.png: does not fit into the device's memory" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_told_before_any_work(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        super_resolve(resolver(), tmp_path / "a.png", tmp_path / "file")


def test_nothing_to_refine(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no picture and no volume"):
        find_images(tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        find_images(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"neither as a picture nor as a volume.*\.png"):
        find_images(tmp_path / "notes.txt")


@pytest.fixture
def adm_file(tmp_path: Path) -> Path:
    """Weights of a small network, by ADM's names, with ten classes."""
    from conftest import shared_path

    tensors = torch.load(shared_path("reference", "adm_upsampler_tiny.pt"), weights_only=True)["state_dict"]
    torch.save(tensors, tmp_path / "tiny.pt")
    return tmp_path / "tiny.pt"


def test_adm_weights(adm_file: Path) -> None:
    settings: dict[str, Any] = {"num_heads": 4, "steps": 1, "precision": "float32"}
    image = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    outputs = []
    for index in (3, 4):
        network = SuperResolver.from_adm(adm_file, index, window=16, **settings)
        assert (network.factor, network.predictor.sampling.method) == (4, "ddpm")
        outputs.append(network(image, ["a"]))
        assert outputs[-1].shape == (1, 1, 3, 16, 20)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3  # the class reaches the network
    with pytest.raises(InputError, match=r"tiny\.pt: needs the class of the images"):
        SuperResolver.from_adm(adm_file, **settings)
    with pytest.raises(InputError, match=r"tiny\.pt: has no class 10"):
        SuperResolver.from_adm(adm_file, 10, **settings)
    with pytest.raises(InputError, match="attention heads"):
        load_resolver(adm_file, class_index=1, device="cpu")
    with pytest.raises(InputError, match="no weights here"):
        load_resolver(adm_file.with_name("absent.pt"))
    with pytest.raises(InputError, match=r"only a bundle says .* Give --bundle"):
        load_resolver(adm_file, class_index=1, guidance_scale=1.0)


def test_the_command_with_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    (tmp_path / "bundle" / "configs" / "inference.yaml").write_text(BUNDLE)
    save_small_model(tmp_path / "weights.pt")
    write_picture(torch.zeros(3, 12, 9), tmp_path / "a.png", Picture(torch.zeros(0), grey=True))
    arguments = [str(tmp_path / "a.png"), str(tmp_path / "out"), "--weights", str(tmp_path / "weights.pt")]
    arguments += ["--bundle", str(tmp_path / "bundle"), "--members", "2", "--device", "cpu", "--json"]
    run = CliRunner().invoke(app, ["super-resolve", *arguments])
    assert run.exit_code == 0, run.output
    (case,) = json.loads(run.stdout)["cases"]
    assert [Path(file).name for file in case["files"]] == ["a.png", "a_sample0.png", "a_sample1.png", "a_std.png"]
    assert case["mean_spread"] > 0
    refined = read_picture(case["files"][0])
    assert refined.grey
    assert refined.pixels.shape == (3, 24, 18)
    with pytest.raises(InputError, match="no key 'stepz'"):
        SuperResolver.from_bundle(tmp_path / "bundle", stepz=3)


def test_weights_that_segment_do_not_refine() -> None:
    weights = bundle_path("acdc_segmentation") / "models" / "model.pt"
    with pytest.raises(InputError, match="is of another task: its network sees the input 'volume'") as caught:
        load_resolver(weights, "cardiac_sr", device="cpu")
    assert caught.value.path == weights


def test_the_command_guides(tmp_path: Path) -> None:
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    (tmp_path / "bundle" / "configs" / "inference.yaml").write_text(BUNDLE)
    save_small_model(tmp_path / "weights.pt")
    save_small_model(tmp_path / "guide.pt", guides=tmp_path / "weights.pt")
    write_picture(torch.zeros(3, 12, 9), tmp_path / "a.png")
    common = [str(tmp_path / "a.png"), "--weights", str(tmp_path / "weights.pt"), "--bundle", str(tmp_path / "bundle")]
    pixels = {}
    for scale in ("0", "0.5", "1"):
        out = str(tmp_path / scale)
        guided = ["--guidance-scale", scale, "--guidance-weights", str(tmp_path / "guide.pt"), "--device", "cpu"]
        run = CliRunner().invoke(app, ["super-resolve", *common, out, *guided])
        assert run.exit_code == 0, run.output
        pixels[scale] = read_picture(tmp_path / scale / "a.png").pixels
    assert not torch.equal(pixels["0"], pixels["0.5"])
    assert not torch.equal(pixels["0.5"], pixels["1"])
    run = CliRunner().invoke(app, ["super-resolve", *common, str(tmp_path / "none"), "--guidance-scale", "1"])
    assert isinstance(run.exception, InputError)
    assert "guidance network for the denoiser" in str(run.exception)


# --- results among inputs ---------------------------------------------------------------------------------------------


def test_results_of_an_earlier_run_are_no_inputs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_picture(torch.zeros(3, 4, 4), tmp_path / "in" / f"{name}.png")
    super_resolve(resolver(members=2), tmp_path / "in", tmp_path / "in" / "fine")
    write_picture(torch.zeros(3, 4, 4), tmp_path / "in" / "fine" / "c_std.png")  # a picture of that name
    with pytest.warns(FolderWarning, match="8 results of an earlier run"):
        done = super_resolve(resolver(), tmp_path / "in", tmp_path / "out")
    assert sorted(Path(case["input"]).name for case in done["cases"]) == ["a.png", "b.png", "c_std.png"]


def test_a_picture_never_takes_the_place_of_anothers_sample(tmp_path: Path) -> None:
    for name in ("a", "a_sample0", "b"):
        write_picture(torch.zeros(3, 4, 4), tmp_path / "in" / f"{name}.png")
    one = super_resolve(resolver(members=1), tmp_path / "in", tmp_path / "one")
    assert (len(one["cases"]), one["failed"]) == (3, {})
    two = super_resolve(resolver(members=2), tmp_path / "in", tmp_path / "two")
    assert list(two["failed"]) == ["a_sample0"]
    assert "a sample or the spread of a" in two["failed"]["a_sample0"]
    assert (tmp_path / "two" / "a_sample0.png").is_file()
    before = (tmp_path / "one" / "a_sample0.png").read_bytes()
    later = super_resolve(resolver(members=2), tmp_path / "in" / "a.png", tmp_path / "one")
    assert "the result of another picture" in later["failed"]["a"]
    assert (tmp_path / "one" / "a_sample0.png").read_bytes() == before
