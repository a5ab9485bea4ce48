"""Files of an example to arrays with the slices last: pictures are volumes of one slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cgdpm_med.datasets.dataset import DataSet, Example, data_files, is_data, stem
from cgdpm_med.datasets.label_values import as_classes, stored_labels
from cgdpm_med.files import InputError
from cgdpm_med.images.pictures import BROKEN, read_picture
from cgdpm_med.volumes import Grid, read_volume
from cgdpm_med.volumes.formats import volume_suffix

THICK = 1.5
"""An axis whose voxels are this much longer than along both others is the slice axis."""


@dataclass(frozen=True)
class View:
    """Which stored axis is shown as first, second and last (the slices), and which of the shown run backwards."""

    axes: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[int, ...] = ()

    def apply(self, stored: NDArray[Any]) -> NDArray[Any]:
        """(…, X, Y, Z) as stored to the view."""
        lead = stored.ndim - 3
        order = [*range(lead), *(lead + axis for axis in self.axes)]
        return np.flip(stored.transpose(order), tuple(lead + axis for axis in self.flips))

    def undo(self, shown: NDArray[Any]) -> NDArray[Any]:
        """The inverse of :meth:`apply`."""
        lead = shown.ndim - 3
        order = [*range(lead), *(lead + int(axis) for axis in np.argsort(self.axes))]
        return np.flip(shown, tuple(lead + axis for axis in self.flips)).transpose(order)


@dataclass(frozen=True, eq=False)
class Loaded:
    """An example in memory.

    Attributes:
        image: (C, X, Y, Z) float32 with the slices along Z; pictures are in [-1, 1].
        spacing: mm in X, Y and between slices; 1 for pictures.
        view: how the arrays lie in their files.
        grid: of a volume's file, else None.
        label: (X, Y, Z) uint8, or None.
    """

    image: NDArray[np.float32]
    spacing: tuple[float, float, float]
    view: View
    grid: Grid | None = None
    label: NDArray[np.uint8] | None = None


def slice_view(grid: Grid) -> View:
    """Axes in the patient's directions (right, front, up), the slice axis last: the one of thick voxels, if any."""
    order = nib.orientations.io_orientation(grid.affine) if grid.directions else np.array([[0, 1], [1, 1], [2, 1]])
    stored = [int(np.flatnonzero(order[:, 0] == world)[0]) for world in range(3)]
    sizes = [grid.spacing[axis] for axis in stored]
    thick = int(np.argmax(sizes))
    last = thick if sizes[thick] >= THICK * sorted(sizes)[1] else 2
    shown = [*(world for world in range(3) if world != last), last]
    axes = tuple(stored[world] for world in shown)
    flips = tuple(place for place, axis in enumerate(axes) if order[axis, 1] < 0)
    return View((axes[0], axes[1], axes[2]), flips)


def load_image(files: Sequence[Path], channels: int | None = None) -> Loaded:
    """The channels of an image together.

    Args:
        channels: how many there have to be; None takes what there is.

    Raises:
        InputError: for a file that cannot be read, channels on different grids, or another number of them.
    """
    loaded = _volumes(files) if volume_suffix(files[0]) else _pictures(files)
    if channels is not None:
        check_channels(files[0], len(loaded.image), channels)
    return loaded


def check_channels(path: Path, count: int, usual: int) -> None:
    """Raise InputError where an image has another number of channels than is usual in its data set."""
    if count != usual:
        what = f"has {_counted(count)}, the others of the data set {_counted(usual)}"
        remedy = "Convert all images to one kind: all grey, or all colour; as many channel files for each"
        raise InputError(what, path=path, remedy=remedy)


def _counted(channels: int) -> str:
    return "1 channel" if channels == 1 else f"{channels} channels"


def _pictures(files: Sequence[Path]) -> Loaded:
    pictures = [read_picture(path) for path in files]
    planes = [picture.pixels[:1] if picture.grey else picture.pixels for picture in pictures]
    for path, plane in zip(files, planes, strict=True):
        if plane.shape[1:] != planes[0].shape[1:]:
            what = f"has {_by(plane.shape[1:])} pixels, {files[0].name} has {_by(planes[0].shape[1:])}"
            raise InputError(what, path=path, remedy="Give the channels of an image at one size")
    stacked = np.concatenate([plane.numpy() for plane in planes])[..., None]
    return Loaded(np.ascontiguousarray(stacked, np.float32), (1.0, 1.0, 1.0), View())


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape)


def _volumes(files: Sequence[Path]) -> Loaded:
    volumes = [read_volume(path) for path in files]
    grid = volumes[0].grid.frame()
    for volume in volumes:
        if difference := grid.difference(volume.grid.frame()):
            remedy = "Resample the channels of an image to one grid"
            raise InputError(
                f"lies on another grid than {files[0].name}: {difference}", path=volume.path, remedy=remedy
            )
    arrays = [np.moveaxis(v.data, 3, 0) if v.data.ndim == 4 else v.data[None] for v in volumes]
    view = slice_view(grid)
    image = np.ascontiguousarray(view.apply(np.concatenate(arrays)), np.float32)
    x, y, z = (grid.spacing[axis] for axis in view.axes)
    return Loaded(image, (x, y, z), view, grid)


def load_example(dataset: DataSet, example: Example, channels: int | None = None) -> Loaded:
    """Image and label map of an example.

    Raises:
        InputError: as :func:`load_image`; for a label map on another grid, or of values that name no class.
    """
    loaded = load_image(example.images, channels)
    if example.label is None:
        return loaded
    stored = stored_labels(example.label, loaded.grid)
    if stored.ndim == 2 or (stored.ndim == 4 and stored.shape[3] == 1):
        stored = stored.reshape(*stored.shape[:3], *[1] * (3 - stored.ndim))
    shape = loaded.view.undo(loaded.image[0]).shape
    if stored.shape != shape:
        sizes = [_by(size[:2] if size[2:] == (1,) else size) for size in (stored.shape, shape)]
        what = f"has {sizes[0]} pixels, its image {example.images[0].name} has {sizes[1]}"
        raise InputError(what, path=example.label, remedy="Give the mask at the size of its image")
    classes = as_classes(stored, dataset.values, len(dataset.labels) + 1, example.label)
    shown = np.ascontiguousarray(loaded.view.apply(classes), np.uint8)
    return Loaded(loaded.image, loaded.spacing, loaded.view, loaded.grid, shown)


def input_files(source: Path, channels: int | None = None) -> tuple[dict[str, tuple[Path, ...]], dict[str, InputError]]:
    """Images to segment by name: a file, or those of a folder, whose channels ``_0000``, ``_0001`` are grouped.

    Files are channels of one image where their numbers count from 0 to ``channels`` - 1; with one channel that is
    nnU-Net's ending ``_0000`` of all files. Other numbers belong to the name.

    Returns:
        The files of each image, and the error of each file that cannot be named apart from another.

    Raises:
        InputError: there are none.
    """
    files = [source] if source.is_file() else data_files(_image_folder(source))
    groups, failed = _channel_groups(files, channels), {}
    for name, paths in list(groups.items()):
        if len({stem(path) for path in paths}) < len(paths):
            remedy = "Keep one of the two, or rename it"
            failed[name] = InputError(f"has the same name as {paths[0].name}", path=paths[1], remedy=remedy)
            del groups[name]
    maps = {_map_of(name, paths[0]): name for name, paths in groups.items()}
    for name in maps.keys() & groups.keys():  # its mask would take the place of the map
        what = f"has the name of the map that {maps[name]} gets"
        failed[name] = InputError(what, path=groups[name][0], remedy="Rename it")
    return {name: paths for name, paths in groups.items() if name not in failed}, failed


def _map_of(name: str, image: Path) -> str:
    """What the mask's map of doubt is called, see :func:`~cgdpm_med.apps.segment_images.segment_folder`."""
    return f"{name}_entropy" if volume_suffix(image) else f"{name}_doubt"


def _image_folder(source: Path) -> Path:
    """The folder, or the one inside it in which data sets keep what is to be segmented."""
    if source.is_dir() and not any(path.is_file() and is_data(path) for path in source.iterdir()):
        return next((source / name for name in ("imagesTs", "images") if (source / name).is_dir()), source)
    return source


def _is_colour(path: Path) -> bool:
    """Whether a file is a picture that holds several channels itself; what cannot be opened is found out later."""
    if volume_suffix(path):
        return False
    try:
        with Image.open(path) as image:
            return image.mode in ("RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV")
    except BROKEN:
        return False


def _channel_groups(files: Sequence[Path], channels: int | None) -> dict[str, tuple[Path, ...]]:
    numbered: dict[str, list[tuple[int, Path]]] = {}
    for path in files:
        name, _, number = stem(path).rpartition("_")
        if name and len(number) == 4 and number.isdigit():
            numbered.setdefault(name, []).append((int(number), path))
    count = channels or max((len(group) for group in numbered.values()), default=1)
    whole = {name for name, group in numbered.items() if sorted(n for n, _ in group) == list(range(count))}
    if count == 1 and len(whole) < len(files):  # frame_0000 beside frame_0007 is a name
        whole = set()
    whole = {name for name in whole if count == 1 or not _is_colour(numbered[name][0][1])}
    grouped = {path: name for name in whole for _, path in numbered[name]}
    found: dict[str, list[Path]] = {}
    for path in files:
        found.setdefault(grouped.get(path, stem(path)), []).append(path)
    return {name: tuple(sorted(paths)) for name, paths in sorted(found.items())}
