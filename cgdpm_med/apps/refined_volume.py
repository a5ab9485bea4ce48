"""From the slices of a volume to finer ones, in plane, on a grid that leaves the anatomy where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgdpm_med.apps.input_notes import notes_on_volume
from cgdpm_med.apps.refined import HEADER_REMARK, Disagreement, Refined, fresh
from cgdpm_med.apps.resolver import SuperResolver
from cgdpm_med.data.transforms import case_name
from cgdpm_med.models.description import CoarseSliceInput
from cgdpm_med.report.refined import View
from cgdpm_med.volumes import (
    Grid,
    Spacing,
    Volume,
    check_size,
    frames,
    read_volume,
    refined_grid,
    view_of,
    write_on_grid,
)

MOST_AT_ONCE = 2**26
"""Fine pixels of all members that are sampled in one go; the result does not depend on it."""

Progress = Callable[[float], None]


def super_resolve_volume(
    resolver: SuperResolver,
    path: Path,
    folder: Path,
    key: str | None = None,
    progress: Progress | None = None,
    spacing: Spacing = "auto",
) -> Refined:
    """Refine the slices of a volume, or of each frame of a cine, on the grid of :func:`fine_grid`.

    The slice axis is the last, unless another has much longer voxels. Intensities are scaled linearly, from the
    percentiles of each frame that the model file names (else its least and greatest) to [-1, 1], and back; the result
    may leave the input's range, as signals of MR have no greatest value. A slice of one value stays so. Slice s of
    every frame has the noise of slice s, so that detail does not flicker.

    Written as float32, with a remark in the header that detail is synthetic: ``<case>.nii.gz``, the mean over members,
    and with several members also ``<case>_std.nii.gz``, in units of the intensities, and ``<case>_samples.nii.gz``
    (the members along the last axis), of a cine ``<case>_frame<number>_samples.nii.gz``.

    Raises:
        InputError: for a file that cannot be read, a result that would be too large, or one that would take the place
            of the input.
    """
    name = case_name(path)
    target = fresh(folder / f"{name}.nii.gz", path)
    volume = read_volume(path, spacing=spacing)
    slices = view_of(volume.grid).axes[2]
    grid = fine_grid(volume.grid, slices, resolver.factor)
    count = resolver.predictor.sampling.members
    check_size([*grid.spatial_shape, max(count, *grid.shape[3:], 1)], path=path)
    output = _Output(folder, name, grid, volume.data.shape[3:])
    done = []
    for t, frame in enumerate(frames(volume)):
        of_frame = _part(progress, t, int(np.prod(volume.data.shape[3:], dtype=int)))
        refined = refine_frame(resolver, frame.data, slices, key or name, of_frame)
        output.add(t, refined.members)
        done.append(refined)
        if t == 0:
            views = _views(volume, grid, refined, frame.data)
    files = output.save(target)
    first, second = (volume.grid.spacing[axis] for axis in range(3) if axis != slices)
    return Refined(
        files,
        None if count == 1 else float(np.mean([frame.spread for frame in done])),
        Disagreement.over([frame.disagreement for frame in done]),
        views,
        _facts(volume, grid, done),
        notes_on_volume(resolver, volume, (first, second)),
    )


def fine_grid(grid: Grid, slices: int, factor: int) -> Grid:
    """The grid of the result: cut along the two axes that are not ``slices``."""
    return refined_grid(grid, [1 if axis == slices else factor for axis in range(3)])


def _facts(volume: Volume, grid: Grid, done: Sequence[Frame]) -> dict[str, Any]:
    of_frames = [{"offset": frame.offset, "scale": frame.scale} for frame in done]
    return {
        "shape": list(grid.shape),
        "spacing_mm": [round(float(size), 6) for size in grid.spacing],
        "header_note": volume.grid.note,
        "intensity": of_frames[0] if len(of_frames) == 1 else of_frames,
    }


# --- one frame --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Frame:
    """A refined frame.

    Attributes:
        members: (K, X, Y, Z), intensities, the axes as in the input.
        offset, scale: the network saw (intensity - offset) / scale.
        extent: greatest intensity of the input less the least.
        disagreement: with the input.
    """

    members: Tensor
    offset: float
    scale: float
    extent: float
    disagreement: Disagreement

    @property
    def spread(self) -> float:
        """Mean standard deviation as a fraction of the range of intensities."""
        return float(self.members.std(dim=0, correction=0).mean()) / self.extent


def refine_frame(
    resolver: SuperResolver, data: NDArray[np.float32], slices: int, key: str, progress: Progress | None = None
) -> Frame:
    """Refine (X, Y, Z) across the axes other than ``slices``; its intensities need no range, and may be constant."""
    extent = float(np.ptp(data)) or 1.0
    offset, scale = intensity_of(resolver, data)
    stack = torch.from_numpy(np.ascontiguousarray(np.moveaxis(data, slices, 0)))[:, None]
    coarse = (stack - offset) / scale
    fine = (resolver.factor * n for n in coarse.shape[2:])
    members = torch.empty(resolver.predictor.sampling.members, len(coarse), *fine)
    empty = coarse.amin(dim=(1, 2, 3)) == coarse.amax(dim=(1, 2, 3))
    members[:, empty] = coarse[empty, 0, :1, :1]  # a network would see something even here
    differences = [torch.zeros_like(coarse[empty])]
    for part, of_part in _parts(resolver, coarse, (~empty).nonzero()[:, 0], progress):
        images = coarse[part]
        batch = resolver(images, [f"{key}/{int(s)}" for s in part], of_part)
        batch = resolver.agreeing(batch, images)
        off = resolver.disagreement(batch, images).amax(dim=0).amax(dim=1, keepdim=True)
        differences.append(off * (2 * scale / extent))
        members[:, part] = batch.mean(dim=2)
    members = members.movedim(1, slices + 1) * scale + offset
    return Frame(members, offset, scale, extent, Disagreement.of(torch.cat(differences)))


def intensity_of(resolver: SuperResolver, data: NDArray[np.float32]) -> tuple[float, float]:
    """Offset and scale with which the network was trained: (data - offset) / scale is what it sees."""
    low, high = float(data.min()), float(data.max())
    if isinstance(resolver.input, CoarseSliceInput):
        ends = tuple(float(value) for value in np.percentile(data, resolver.input.percentiles))
        if ends[0] < ends[1]:  # an image that is nearly all background may have no others
            low, high = ends
    return (high + low) / 2, (high - low) / 2 or 1.0


def _parts(
    resolver: SuperResolver, coarse: Tensor, chosen: Tensor, progress: Progress | None
) -> Iterator[tuple[Tensor, Progress | None]]:
    """Indices of slices to refine together, and where their progress goes."""
    fields = coarse[0].numel() * resolver.factor**2 * resolver.predictor.sampling.members
    parts = chosen.split(max(1, MOST_AT_ONCE // fields))
    for number, part in enumerate(parts if len(chosen) else ()):
        yield part, _part(progress, number, len(parts))


def _part(progress: Progress | None, number: int, of: int) -> Progress | None:
    """Progress of one of several equal parts as that of the whole."""
    return None if progress is None else lambda fraction: progress((number + fraction) / of)


# --- what is written --------------------------------------------------------------------------------------------------


class _Output:
    """Collects the frames of a volume or cine; the members of a cine are written as they come."""

    def __init__(self, folder: Path, name: str, grid: Grid, times: Sequence[int]) -> None:
        self.folder, self.name, self.grid, self.times = folder, name, grid, tuple(times)
        shape = (*grid.spatial_shape, *self.times)
        self.mean, self.deviation = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self.files: list[Path] = []
        self.several = False

    def add(self, t: int, members: Tensor) -> None:
        place = (..., t) if self.times else (...,)
        self.mean[place] = members.mean(dim=0).numpy()
        if len(members) == 1:
            return
        self.several = True
        self.deviation[place] = members.std(dim=0, correction=0).numpy()
        name = f"{self.name}_frame{t + 1:03d}" if self.times else self.name
        self._write(members.movedim(0, -1).numpy(), self.grid.frame(), self.folder / f"{name}_samples.nii.gz")

    def save(self, target: Path) -> list[Path]:
        self._write(self.mean, self.grid, target)
        if self.several:
            self._write(self.deviation, self.grid, self.folder / f"{self.name}_std.nii.gz")
        return [target, *(path for path in self.files if path != target)]

    def _write(self, array: NDArray[np.float32], grid: Grid, path: Path) -> None:
        write_on_grid(array, grid, path, dtype=np.float32, remark=HEADER_REMARK)
        self.files.append(path)


# --- what is shown ----------------------------------------------------------------------------------------------------


def _views(volume: Volume, grid: Grid, refined: Frame, coarse: NDArray[np.float32]) -> list[View]:
    """Three slices at a quarter, half and three quarters of the stack, as a reader of short-axis images sees them."""
    view = view_of(volume.grid)
    before, after = view.apply(coarse), view.apply(refined.members.mean(dim=0).numpy())
    several = len(refined.members) > 1
    doubt = view.apply(refined.members.std(dim=0, correction=0).numpy()) / refined.extent if several else None
    low, high = np.percentile(before, (1, 99.5))
    unit = max(float(high - low), 1e-6 * refined.scale)
    numbers, depth = view.slice_numbers(volume.grid.spatial_shape), before.shape[2]
    aspect = grid.spacing[view.axes[1]] / grid.spacing[view.axes[0]]
    return [
        View(
            f"slice {numbers[z]}",
            (before[..., z].T - low) / unit,
            (after[..., z].T - low) / unit,
            None if doubt is None else doubt[..., z].T,
            aspect,
        )
        for z in sorted({depth // 4, depth // 2, 3 * depth // 4})
    ]
