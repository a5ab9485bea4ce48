"""A picture of a segmentation: slices with the contours of mask and reference, and where the ensemble doubts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cgdpm_med.files import InputError, atomic_write
from cgdpm_med.inference.labels import Labels
from cgdpm_med.inference.segmenter import Segmentation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARGIN_MM = 18.0
ROW_INCHES = 2.3


def draw_overlay(
    segmentation: Segmentation,
    path: str | Path,
    reference: NDArray[Any] | None = None,
    *,
    slices: Sequence[int] | None = None,
    title: str = "",
) -> Path:
    """Write a PNG: a row for each slice; image, contours of the mask (and the reference, dashed), entropy.

    Slices are cropped to the structures and drawn with x to the right and y downwards.

    Args:
        path: ends in .png.
        reference: label map on the same grid, (X, Y, Z).
        slices: indices along the last axis; by default three spread from the first slice with any label to the last.

    Raises:
        InputError: a reference of another shape, or a slice that does not exist.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    mask, image = segmentation.mask, segmentation.volume.data
    if reference is not None and reference.shape != mask.shape:
        raise InputError(
            f"the reference has shape {reference.shape}, the mask {mask.shape}",
            remedy="Give a reference on the grid of the mask",
        )
    labelled = mask > 0 if reference is None else (mask > 0) | (reference > 0)
    rows = default_slices(labelled) if slices is None else list(slices)
    if not rows or not all(0 <= z < mask.shape[2] for z in rows):
        raise InputError(
            f"slices {rows} are not all within 0 to {mask.shape[2] - 1}",
            remedy=f"Choose slices from 0 to {mask.shape[2] - 1}",
        )

    dx, dy = segmentation.grid.spacing[:2]
    labels = segmentation.labels
    window = _window(labelled, (dx, dy))
    width_mm, height_mm = ((s.stop - s.start) * d for s, d in zip(window, (dx, dy), strict=True))
    column = ROW_INCHES * width_mm / height_mm
    figure = Figure(figsize=(3 * column + 0.9, ROW_INCHES * len(rows) + 0.75), dpi=130, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), 3, squeeze=False)
    low, high = np.percentile(image, (1, 99.5))
    for row, z in zip(axes, rows, strict=True):
        extent = (0.0, width_mm, height_mm, 0.0)
        cut = (*window, z)
        for axis in row[:2]:
            axis.imshow(image[cut].T, cmap="gray", vmin=low, vmax=high, extent=extent)
        draw_contours(row[1], mask[cut], (dx, dy), labels, solid=True)
        if reference is not None:
            draw_contours(row[1], reference[cut], (dx, dy), labels, solid=False)
        doubt = row[2].imshow(segmentation.entropy[cut].T, cmap="magma", vmin=0, vmax=0.5, extent=extent)
        row[0].set_ylabel(f"slice {z + 1}", fontsize=9)
        for axis in row:
            axis.set(xlim=(0, width_mm), ylim=(height_mm, 0), xticks=[], yticks=[])
            axis.set_frame_on(False)
    names = ("image", "mask and reference" if reference is not None else "mask", "uncertainty (entropy)")
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name, fontsize=10)
    entries = [Line2D([], [], color=labels.colour_of(n), label=name) for n, name in labels.by_number.items()]
    if reference is not None:
        entries.append(Line2D([], [], color="0.35", linestyle=(0, (3, 2)), label="reference (dashed)"))
    figure.suptitle(title, fontsize=11)
    figure.legend(handles=entries, loc="lower center", ncols=len(entries), frameon=False, fontsize=9)
    edge = 0.42 / figure.get_figheight()
    figure.subplots_adjust(left=0.05, right=0.9, top=1 - 1.3 * edge, bottom=edge, wspace=0.03, hspace=0.03)
    bar = figure.add_axes((0.915, edge + 0.02, 0.014, 1 - 2.3 * edge - 0.04))
    figure.colorbar(doubt, cax=bar, ticks=[0, 0.25, 0.5]).ax.tick_params(labelsize=8)
    path = Path(path)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})
    return path


def default_slices(labelled: NDArray[np.bool_], count: int = 3) -> list[int]:
    """Slices spread from base to apex over those with any label; the middle of the stack where there is none."""
    found = np.flatnonzero(labelled.any(axis=(0, 1)))
    if not len(found):
        return [labelled.shape[2] // 2]
    first, last = int(found[0]), int(found[-1])
    inner = np.linspace(first, last, count + 2)[1:-1] if last - first > count else np.arange(first, last + 1)
    return sorted({round(float(z)) for z in inner})


def draw_contours(axis: Axes, mask: NDArray[Any], spacing: tuple[float, float], labels: Labels, *, solid: bool) -> None:
    """The outline of each structure of one slice (X, Y), along the voxels' edges, in mm."""
    x, y = ((np.arange(n) + 0.5) * d for n, d in zip(mask.shape, spacing, strict=True))
    for label in np.unique(mask[mask > 0]).tolist():
        region, colour = (mask == label).T.astype(float), labels.colour_of(label)
        if region.sum() < region.size:
            style: Any = "solid" if solid else [(0, (3, 2))]
            axis.contour(
                x, y, region, levels=[0.5], colors=colour if solid else "white", linewidths=1.3 if solid else 0.9,
                linestyles=style,
            )  # fmt: skip


def _window(labelled: NDArray[np.bool_], spacing: tuple[float, float]) -> tuple[slice, slice]:
    """The structures in the plane with a margin, or everything where nothing is labelled."""
    x, y = spacing
    return _extent(np.asarray(labelled.any(axis=(1, 2))), x), _extent(np.asarray(labelled.any(axis=(0, 2))), y)


def _extent(filled: NDArray[np.bool_], spacing: float) -> slice:
    places = np.flatnonzero(filled)
    if not len(places):
        return slice(0, len(filled))
    margin = round(MARGIN_MM / spacing)
    return slice(max(0, int(places[0]) - margin), min(len(filled), int(places[-1]) + 1 + margin))
